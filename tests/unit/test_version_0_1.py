"""What version 0.1 wrote is read, and what its readers looked for is still written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.board import points
from torch.utils.tensorboard import SummaryWriter

from domain_pretrain import DomainStep
from domain_pretrain.commands.main import main
from domain_pretrain.config import DomainConfig
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.reader import METRICS_FILE, read_metrics
from domain_pretrain.records.record import Record
from domain_pretrain.stats import SCALE, Column, DomainStats
from domain_pretrain.strategies.reference import resolve

OLD = Path(__file__).parents[1] / "data" / "v0_1"
DOMAINS = ("finance", "general")
REWEIGHT = {"strategy": "group_dro", "warmup_steps": 0, "blend": 0.1, "step_size": 0.5}


def holds(new: Any, old: Any, where: str = "") -> None:
    """All that ``old`` says is in ``new``, which may say more."""
    if isinstance(old, dict):
        missing = old.keys() - new.keys()
        assert not missing, f"{where}: {missing}"
        for key, value in old.items():
            holds(new[key], value, f"{where}.{key}")
    else:
        assert new == old, where


# --- what it reads ----------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.yaml", "sample_config.yaml"])
def test_config(file: str) -> None:
    config = DomainConfig.load(OLD / file)
    assert tuple(config.domains) == DOMAINS
    assert config.reweight is not None
    assert config.reweight.strategy == "group_dro"
    average = "sample" if file.startswith("sample") else "token"
    assert config.channel_loss.average == average


def test_state() -> None:
    """As a checkpoint of iteration 2 holds it: what comes back is what was there."""
    state = json.loads((OLD / "state.json").read_text())
    step = DomainStep.create(DOMAINS, REWEIGHT, tokens_per_step=128)
    step.load_state_dict(state)
    again = step.state_dict()
    del state["config_hash"]  # which nothing compared
    holds(again, state)
    assert step.steering is not None and step.steering.step_multipliers is not None
    in_force = step.steering.step_multipliers.tolist()
    assert in_force == pytest.approx(list(state["reweight"]["multipliers"].values()), rel=1e-6)
    assert in_force[0] < 1 < in_force[1]


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(OLD)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in DOMAINS)


def test_reference() -> None:
    """The last tenth of finance's tokens is its last window; general broke after the first."""
    first, *_, last = [line for line in read_metrics(OLD) if line["split"] == "train"]
    finance, general = last["domains"]["finance"], first["domains"]["general"]
    assert resolve(OLD / METRICS_FILE, DOMAINS, "reference") == {
        "finance": finance["loss_sum"] / finance["tokens"],
        "general": general["loss_sum"] / general["tokens"],
    }


# --- what it writes ---------------------------------------------------------------------------


def records(lines: Iterable[dict[str, Any]]) -> list[Record]:
    """What the lines were made of."""
    made = []
    for line in lines:
        sums = np.zeros((len(DOMAINS) + 1, len(Column)), dtype=np.int64)
        domains = line["domains"]
        for row, name in zip(sums, DOMAINS, strict=False):
            row[Column.LOSS] = domains[name]["loss_sum"] * SCALE[Column.LOSS]
            row[Column.TOKENS] = domains[name]["tokens"] * SCALE[Column.TOKENS]
            row[Column.SAMPLES] = domains[name]["samples"]
            row[Column.SAMPLE_LOSS] = domains[name]["sample_loss_sum"] * SCALE[Column.SAMPLE_LOSS]
            row[Column.NONFINITE] = domains[name].get("nonfinite", 0)
        training: dict[str, Any] = {}
        if line["split"] == "train":
            columns = {
                "consumed_tokens": "consumed_tokens",
                "consumed_domain_samples": "consumed_samples",
                "weights": "weight",
                "shares": "share",
            }
            training = {
                field: {name: domains[name][key] for name in DOMAINS}
                for field, key in columns.items()
            }
            numbers = line["reweighting"].items()
            training["reweighting"] = {k: np.nan if v is None else v for k, v in numbers}
        made.append(
            Record(
                line["split"],
                line["iteration"],
                line["consumed_samples"],
                DomainStats(DOMAINS, sums),
                final=line.get("final", False),
                **training,
            )
        )
    return made


def test_metrics_file_and_tags(tmp_path: Path) -> None:
    """Every key, every number to its last bit, and every curve of TensorBoard, now in runs."""
    old = read_metrics(OLD)
    assert {line["split"] for line in old} == {"train", "valid", "test"}
    assert "nonfinite" in str(old) and "sample_loss_sum" in str(old)
    writer = SummaryWriter(str(tmp_path / "tensorboard"))
    publisher = open_publisher(tmp_path, writer, None, "sample", after_iteration=0)
    for record in records(old):
        publisher.scalars(record)
        publisher.line(record)
    publisher.close()
    writer.close()
    new = read_metrics(tmp_path)
    assert len(new) == len(old)
    for number, (have, want) in enumerate(zip(new, old, strict=True), start=1):
        holds(have, want, f"line {number}")
    assert points(tmp_path / "tensorboard").keys() >= set(
        json.loads((OLD / "tags.json").read_text())
    )
