"""The loop of docs/api.md runs as it stands, and does what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from domain_pretrain import DomainStep
from domain_pretrain.flow.moment import Moment
from domain_pretrain.records.publisher import open_publisher

ROOT = Path(__file__).parents[2]
(LOOP,) = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, Any]]:
    """What the loop of the page passed to DomainStep.loss and got back, and its steps' weights."""
    seen: list[tuple[str, Any]] = []

    class Watched(DomainStep):
        def loss(self, losses: Any, loss_mask: Any, ids: Any) -> Any:
            result = super().loss(losses, loss_mask, ids)
            seen.append(("loss", (losses.detach(), ids, result.detach())))
            return result

        def end_step(self, **how: Any) -> None:
            super().end_step(**how)
            seen.append(("step", (self.multipliers(), self.stats())))

    code = LOOP.replace("from domain_pretrain import DomainStep\n", "")
    assert code != LOOP
    exec(code, {"DomainStep": Watched})
    return seen


def test_it_is_short() -> None:
    assert len([line for line in LOOP.splitlines() if line.strip()]) <= 30


def test_it_gives_the_weights_of_the_formula(calls: list[tuple[str, Any]]) -> None:
    """Against sums in float64, the fading averages and the softmax, written down once more."""
    names = ("prose", "code", "maths")
    horizon = 16 * 256 / 3
    sums, counts, shares = torch.zeros(3, 3, dtype=torch.float64)
    multipliers = torch.ones(3, dtype=torch.float64)
    step_sums, step_counts = torch.zeros(2, 3, dtype=torch.float64)
    steps = 0
    for kind, seen in calls:
        if kind == "loss":
            losses, ids, result = seen
            rows = losses.double().sum(1)
            expected = (multipliers[ids] * rows).sum()
            torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=0)
            step_sums.index_add_(0, ids, rows)
            step_counts += 16 * torch.bincount(ids, minlength=3)
            continue
        found, stats = seen
        for name, m, total, tokens in zip(names, multipliers, step_sums, step_counts, strict=True):
            assert found[name] == pytest.approx(float(m), rel=1e-6)
            assert stats.get(name).loss() == pytest.approx(float(total / tokens), rel=1e-6)
        steps += 1
        sums = sums * torch.exp(-step_counts / horizon) + step_sums
        counts = counts * torch.exp(-step_counts / horizon) + step_counts
        shares = shares * torch.exp(-step_counts.sum() / (3 * horizon)) + step_counts
        mean = sums / counts
        h = (2 * mean - (mean.max() + mean.min())) / (mean.max() - mean.min())
        w = 0.99 * torch.softmax((h + 1).clamp(max=1), dim=0) + 0.01 / 3
        if steps >= 2:
            multipliers = w / (shares / shares.sum() @ w)
        step_sums, step_counts = torch.zeros(2, 3, dtype=torch.float64)
    assert steps == 8
    assert multipliers.max() - multipliers.min() > 0.5


def test_it_needs_no_megatron() -> None:
    code = f"{LOOP}\nimport sys\nassert not [m for m in sys.modules if m.startswith('megatron')]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8 * 3
    assert all(re.fullmatch(r"\d \w+ loss \d\.\d{3} weight \d\.\d\d", line) for line in lines)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, domain_pretrain; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_it_can_publish(tmp_path: Path) -> None:
    said: list[str] = []
    publisher = open_publisher(tmp_path, None, None, "token", said.append, after_iteration=0)
    section = {
        "strategy": "static",
        "weights": {"a": 3, "b": 1},
        "warmup_steps": 0,
        "uniform_part": 0,
    }
    step = DomainStep.create(("a", "b"), section, tokens_per_step=8, publisher=publisher)
    for iteration in (1, 2):
        step.open()
        step.loss(torch.ones(2, 4), torch.ones(2, 4), torch.tensor([0, 1]))
        step.close(Moment(iteration, 2 * iteration, log=True, scalars=False, microbatches=1))
    assert said == [
        "channel loss | a 1.000 ×1.00 | b 1.000 ×1.00 | weighted 1.000",
        "channel loss | a 1.000 ×1.50 | b 1.000 ×0.50 | "
        "weighted 1.000, effective domains 1.6, clipped 0%",
    ]
