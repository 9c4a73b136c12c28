"""A fact that is planted in one domain's data shows in that domain's probe, and in no other."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from domain_pretrain.evaluate import LogitsModel, Score, run_probes
from domain_pretrain.records.score import difference

FACTS = 4


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Of so small a model, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Reader(torch.nn.Module):
    """A recurrent model of bytes: ``[b, n]`` → ``[b, n, 128]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(128, 32)
        self.read = torch.nn.GRU(32, 64, batch_first=True)
        self.say = torch.nn.Linear(64, 128)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.say(self.read(self.embed(ids))[0])


def made_up(draw: random.Random) -> tuple[str, str]:
    """A country and its capital, six letters each."""
    country, capital = (
        "".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(3))
        for _ in range(2)
    )
    return country, capital


def train(model: Reader, steps: int, draw: random.Random, planted: list[tuple[str, str]]) -> None:
    """On sentences about countries that never come again, half of them on the planted ones."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        facts = [made_up(draw) for _ in range(16)] + planted * (16 // FACTS)
        rows = torch.tensor([list(f"{country}: {capital}.".encode()) for country, capital in facts])
        logits = model(rows[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("seed", range(5))
def test_a_planted_fact_shows_and_a_control_does_not(seed: int) -> None:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    planted, control = ([made_up(draw) for _ in range(FACTS)] for _ in range(2))
    model = Reader()
    asked = LogitsModel(
        model,
        lambda text: list(text.encode()),
        lambda ids: bytes(ids).decode(),
        context=64,
        end=0,
    )
    items = {
        name: [
            {"prompt": f"{country}:", "completion": f" {capital}."} for country, capital in facts
        ]
        for name, facts in (("planted", planted), ("control", control))
    }

    def probe() -> dict[tuple[str, str], Score]:
        found = run_probes({"completion": {"items": items}}, asked)
        return {(score.name, score.domain): score for score in found}

    train(model, 150, draw, [])
    before = probe()
    train(model, 150, draw, planted)
    after = probe()
    for name, least in (("completion", 1.0), ("completion_prob", 0.1)):
        rise, error = difference(before[name, "planted"], after[name, "planted"])
        other, _ = difference(before[name, "control"], after[name, "control"])
        assert error is not None
        # Seen over these seeds: 1.45 to 1.54 nats a token of the 1.54 that a guess costs, and 0.39
        # to 0.68 of 1; of the control, at most 0.03 nats, and 1e-6.
        assert rise > max(least, 5 * error)
        assert other < rise / 5
