"""Probes on the model that Megatron holds: right, the same in every layout, and of no consequence.

One run of five steps is asked at every evaluation; the other layouts ask its checkpoint.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import read_tensors
from support.float64 import log_probabilities
from support.launch import Run, train
from support.probes import (
    ALL,
    ITEMS,
    PREDICTED,
    TEXTS,
    VALUES,
    config,
    parts,
    write_data,
    write_spy,
)
from support.texts import COUNTS, losses, write_texts

from domain_pretrain.records.evaluated import EVALUATIONS_FILE, Evaluated
from domain_pretrain.records.reader import read_evaluations, read_events
from domain_pretrain.records.score import Score

pytestmark = pytest.mark.megatron

STEPS = 5
FLAGS = [
    *("--eval-interval", "2", "--eval-iters", "1"),
    *("--hidden-dropout", "0.1", "--attention-dropout", "0.1"),
    *("--ckpt-format", "torch_dist"),
    *("--vocab-size", "257"),  # bytes, and what ends a document; padded to 300
]
LAYOUTS: dict[str, tuple[int, str]] = {
    "DP2, rows of two": (2, "--micro-batch-size 2"),
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "PP2 with virtual stages": (
        2,
        "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2",
    ),
    "CP2": (2, "--context-parallel-size 2"),
}
MOE = shlex.split(
    "--num-experts 4 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss "
    "--moe-aux-loss-coeff 0.01 --disable-bias-linear --num-layers 2"
)


class Folder:
    """What the runs of this file share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("data", "spy", "texts"):
            (path / name).mkdir()
        self.data = write_data(path / "data")
        self.env = write_spy(path / "spy")
        self.texts = write_texts(path / "texts")
        self._count = 0

    def run(self, *flags: str | Path, probes: Any = None, **how: Any) -> Run:
        self._count += 1
        folder = how.pop("folder", None) or self.path / f"run{self._count}"
        folder.mkdir(exist_ok=True)
        more = {"every": how.pop("every")} if "every" in how else {}
        asked = config(folder / "config.yaml", probes, **more) if probes else []
        how = {"iterations": STEPS, "env": self.env, **how}
        return train(folder, *self.data, *FLAGS, *asked, *flags, **how)


def spy(**options: Any) -> dict[str, Any]:
    return {"completion": {"items": ITEMS}, "spy": {"texts": ALL, **options}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("probes"))


@pytest.fixture(scope="module")
def asked(shared: Folder) -> Run:
    """In one process, with dropout."""
    return shared.run(*saved(shared, "asked"), probes=spy())


def saved(shared: Folder, name: str) -> list[str]:
    return ["--save", str(shared.path / name), "--save-interval", "3"]


def named(found: Evaluated) -> dict[tuple[str, str], Score]:
    return {(score.name, score.domain): score for score in found.scores}


def of_200_texts(shared: Folder) -> dict[str, Any]:
    """The probe that asks about them."""
    return {"perplexity": {"texts": shared.texts}}


def losses_of_200_texts(found: Evaluated) -> dict[str, float]:
    """By text, nats."""
    return {
        name: loss for domain in COUNTS for name, loss in parts(found, ("loss", domain)).items()
    }


@pytest.fixture(scope="module")
def expected_losses(asked: Run, shared: Folder) -> dict[str, float]:
    """Those of the checkpoint that the layouts ask, in float64."""
    weights = read_tensors(shared.path / "asked" / "iter_0000005")

    def model(tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([log_probabilities(weights, row) for row in tokens.tolist()])

    return losses(shared.texts, model, context=32)


def values(found: Evaluated) -> dict[str, float]:
    """By text, what the spy was told."""
    return parts(found, VALUES)


def predicted(found: Evaluated) -> dict[str, int]:
    return {name: int(token) for name, token in parts(found, PREDICTED).items()}


def test_when_probes_run(asked: Run) -> None:
    """Before the first step, at every evaluation, and at the end, though not twice."""
    found = read_evaluations(asked.log_dir)
    points = [(one.iteration, one.consumed_samples, one.final) for one in found]
    assert points == [(0, 0, False), (2, 16, False), (4, 32, False), (5, 40, True)]
    for one in found:
        domains = [score.domain for score in one.scores if score.name == "completion"]
        assert sorted(domains) == sorted(TEXTS)
    first, *_, last = (named(one)["completion", "english"] for one in found)
    assert first.count == sum(len(item["completion"]) for item in ITEMS["english"])
    assert last.mean > first.mean, "it has learnt something"
    assert asked.output.count("evaluation of the model of iteration") == 4


def test_log_probabilities_are_those_of_an_independent_float64_model(
    asked: Run, shared: Folder
) -> None:
    weights = read_tensors(shared.path / "asked" / "iter_0000005")
    found = values(read_evaluations(asked.log_dir)[-1])
    assert found.keys() == set(ALL)
    for text, value in found.items():
        tokens = [256, *text.encode()]
        of_all = log_probabilities(weights, tokens[:-1])
        expected = float(of_all.gather(1, torch.tensor(tokens[1:])[:, None]).sum())
        # Some 30 fp32 losses of 5 nats: each is right to 1e-6.
        assert value == pytest.approx(expected, abs=1e-4)


def test_predictions_are_the_float64_models(asked: Run, shared: Folder) -> None:
    """The last is of the token behind the text. The rows that pad the embedding never win, also
    where the model has not learnt yet that they do not occur."""
    for one in read_evaluations(asked.log_dir):
        assert max(predicted(one).values()) <= 256
    weights = read_tensors(shared.path / "asked" / "iter_0000005")
    found = predicted(read_evaluations(asked.log_dir)[-1])
    for text in ALL:
        tokens = [256, *text.encode()][:32]
        of_all = log_probabilities(weights, tokens)[min(3, len(tokens) - 1) - 1 :, :257]
        told = [found[f"{text} {place}"] for place in range(len(of_all))]
        # Of nearly equal ones, either.
        chosen = of_all.gather(1, torch.tensor(told)[:, None])[:, 0]
        assert (chosen >= of_all.max(-1).values - 1e-5).all()


def test_the_training_is_the_same_bit_for_bit(asked: Run, shared: Folder) -> None:
    """With a probe that draws and seeds, and with dropout."""
    plain = shared.run(*saved(shared, "plain"))
    assert asked.host_losses() == plain.host_losses()
    assert asked.host_grad_norms() == plain.host_grad_norms()
    assert asked.host_evaluations() == plain.host_evaluations()
    assert asked.metrics(None) == plain.metrics(None)
    assert not (plain.log_dir / EVALUATIONS_FILE).exists()
    have, want = (read_tensors(shared.path / name / "iter_0000005") for name in ("asked", "plain"))
    assert any(name.startswith("optimizer") for name in want)
    assert have.keys() == want.keys()
    assert [name for name in want if not torch.equal(have[name], want[name])] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(
    layout: str, asked: Run, shared: Folder, expected_losses: dict[str, float]
) -> None:
    """The checkpoint, asked without training."""
    nproc, flags = LAYOUTS[layout]
    load = ["--load", str(shared.path / "asked"), "--skip-train"]
    probes = {**spy(predict="--context" not in flags), **of_200_texts(shared)}
    (found,) = read_evaluations(
        shared.run(*load, *flags.split(), probes=probes, nproc=nproc).log_dir
    )
    assert (found.iteration, found.final) == (STEPS, True)
    expected = read_evaluations(asked.log_dir)[-1]
    assert values(found) == pytest.approx(values(expected), abs=1e-4)
    told = losses_of_200_texts(found)
    assert len(told) == 200
    # So no two layouts are further apart than 1e-4; 5e-6 was seen.
    assert told == pytest.approx(expected_losses, rel=0, abs=5e-5)
    for key, score in named(expected).items():
        if key[0] == "completion":
            assert named(found)[key].count == score.count
            assert named(found)[key].sum == pytest.approx(score.sum, abs=1e-4)
    if "--context" not in flags:
        # Of nearly equal ones, another may be ahead; so near they are in this model nowhere.
        assert predicted(found) == predicted(expected)


def test_experts_on_several_ranks(shared: Folder) -> None:
    probes = {**spy(), **of_200_texts(shared)}
    alone = shared.run(*MOE, *saved(shared, "experts"), probes=probes, iterations=2)
    load = [*MOE, "--load", str(shared.path / "experts"), "--skip-train"]
    ranks = shared.run(*load, "--expert-model-parallel-size", "2", probes=probes, nproc=2)
    expected, found = (read_evaluations(one.log_dir)[-1] for one in (alone, ranks))
    told, wanted = losses_of_200_texts(found), losses_of_200_texts(expected)
    assert len(told) == 200
    assert told == pytest.approx(wanted, rel=0, abs=1e-4)
    assert values(found) == pytest.approx(values(expected), abs=1e-4)
    assert predicted(found) == predicted(expected)


def test_a_resumed_run_asks_where_the_unbroken_one_did(asked: Run, shared: Folder) -> None:
    folder = shared.path / "resumed"
    shutil.copytree(asked.log_dir, folder)
    load = ["--load", str(shared.path / "asked"), "--ckpt-step", "3"]
    resumed = shared.run(*load, probes=spy(), folder=folder)
    assert resumed.output.count("evaluation of the model of iteration") == 2
    assert read_evaluations(folder) == read_evaluations(asked.log_dir)


def test_a_probe_that_fails_while_training_is_told_and_the_run_goes_on(shared: Folder) -> None:
    """On two ranks, of which one runs it; the other probe's scores are there."""
    load = ["--load", str(shared.path / "asked"), "--ckpt-step", "3"]
    run = shared.run(*load, probes=spy(fail=True), nproc=2, every=2)
    assert "WARNING: evaluate.probes.spy failed: ZeroDivisionError" in run.output
    assert "ZeroDivisionError" in run.output and "Traceback" in run.output
    found = read_evaluations(run.log_dir)
    assert [(one.iteration, one.final) for one in found] == [(4, False), (5, True)]
    assert {score.name for one in found for score in one.scores} == {
        "completion",
        "completion_prob",
    }
    events = [event for event in read_events(run.log_dir) if event.name == "probe"]
    assert [event.iteration for event in events] == [4, 5]


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        (spy(fail=True), "evaluate.probes.spy failed: ZeroDivisionError: float division by zero"),
        (
            {"completion": {"items": {"a": [{"prompt": "p" * 30, "completion": "long"}]}}},
            "evaluate.probes.completion: a text of 34 tokens does not fit the model's context",
        ),
    ],
)
def test_a_probe_that_fails_before_the_first_step_ends_the_run(
    probes: Any, message: str, shared: Folder
) -> None:
    """All ranks, with its message."""
    run = shared.run(probes=probes, nproc=2, expect=None)
    assert run.returncode != 0
    assert run.output.count(f"domain_pretrain: error: {message}") == 1
    assert run.metrics() == []
