"""Domains within a file: the sums by token equal brute force, in every layout."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.launch import Run, train

from domain_pretrain.commands.trace import open_trace

pytestmark = pytest.mark.megatron

CHANNELS = ("news/daily", "filings", "news/weekly", "chats")
PLAIN = len(CHANNELS)  # the alphabet of a corpus without channels
NAMES = (*(f"mixed/{channel}" for channel in CHANNELS), "plain")
END = 299  # of a document, for this vocabulary
LAYOUTS: dict[str, tuple[int, str]] = {
    "DP1": (1, ""),
    "DP2, workers": (2, "--num-workers 2"),
    "CP2": (2, "--context-parallel-size 2 --micro-batch-size 2"),
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "packed rows": (1, "--dataloader-inter-document-masking --micro-batch-size 2"),
    "packed rows, CP2": (
        2,
        "--dataloader-inter-document-masking --micro-batch-size 2 --context-parallel-size 2",
    ),
    "positions of their own": (1, "--reset-position-ids --reset-attention-mask --eod-mask-loss"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of four channels in one file, and a corpus of one domain; token // 50 tells."""
    import torch

    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    folder, dice = tmp_path_factory.mktemp("channels"), np.random.default_rng(3)
    for name, alphabets in (("mixed", range(PLAIN)), ("plain", [PLAIN])):
        builder = indexed_dataset.IndexedDatasetBuilder(f"{folder / name}.bin", dtype=np.uint16)
        numbers = []
        for _ in range(90):
            number = int(dice.choice(alphabets))
            tokens = 50 * number + dice.choice(50, size=dice.integers(3, 60))
            ended = np.append(tokens, END).astype(np.int64)
            builder.add_document(torch.from_numpy(ended), [len(ended)])
            numbers.append(number)
        builder.finalize(f"{folder / name}.idx")
        if name == "mixed":
            np.save(f"{folder / name}.channels.npy", np.array(numbers, np.int16))
            manifest = {"channels": [{"name": channel} for channel in CHANNELS]}
            Path(f"{folder / name}.manifest.json").write_text(json.dumps(manifest), "utf-8")
    config = {
        "domains": {
            "mixed": {"data": [str(folder / "mixed")], "weight": 3, "channels": True},
            "plain": {"data": [str(folder / "plain")], "weight": 1},
        }
    }
    (folder / "domains.yaml").write_text(json.dumps(config), "utf-8")
    return folder


def run(data: Path, folder: Path, nproc: int, flags: str, *more: str | Path) -> Run:
    words = [*flags.split(), "--domain-config", data / "domains.yaml", "--split", "80,20,0", *more]
    env = {"RECORD_DIR": str(folder)}
    script = "recording_gpt.py"
    return train(folder, *words, nproc=nproc, iterations=3, script=script, env=env)


def brute_force(folder: Path, flags: str) -> list[dict[str, tuple[float, int]]]:
    """Loss sum and tokens by domain, of each step: by what the predicted tokens are."""
    files = sorted(folder.glob("rank*.npz"))
    if "tensor-model" in flags:
        files = files[:1]
    steps: list[dict[str, Any]] = [defaultdict(lambda: np.zeros(2)) for _ in range(3)]
    for file in files:
        record = np.load(file)
        count = sum(key.startswith("losses") for key in record)
        for number in range(count):
            of = {key: record[f"{key}{number}"].ravel() for key in ("losses", "mask", "labels")}
            before = record[f"tokens{number}"].ravel()
            owner = np.where(of["labels"] == END, before, of["labels"]) // 50
            sums = steps[number * 3 // count]
            for domain in range(len(NAMES)):
                mask = of["mask"] * (owner == domain)
                if mask.any():
                    sums[NAMES[domain]] += (np.sum(of["losses"].astype(float) * mask), mask.sum())
    return [{name: (float(s[0]), int(s[1])) for name, s in sums.items()} for sums in steps]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_token_domains_equal_brute_force(data: Path, tmp_path: Path, layout: str) -> None:
    nproc, flags = LAYOUTS[layout]
    lines = run(data, tmp_path, nproc, flags).metrics()
    expected = brute_force(tmp_path, flags)
    assert len(lines) == 3
    for line, sums in zip(lines, expected, strict=True):
        assert line["domains"].keys() == sums.keys()
        assert len(sums) > 2
        for name, (loss_sum, tokens) in sums.items():
            found = line["domains"][name]
            assert found["tokens"] == tokens
            assert abs(found["loss_sum"] - loss_sum) <= tokens * 2**-25
            assert 1 <= found["samples"] <= 8
        for parent in ("mixed", "mixed/news"):
            own = [sums[name] for name in sums if name.startswith(f"{parent}/")]
            rolled = line["parents"][parent]
            assert rolled["tokens"] == sum(tokens for _, tokens in own)
            assert rolled["loss_sum"] == pytest.approx(sum(loss for loss, _ in own), rel=1e-9)
    if layout in ("DP1", "CP2"):
        assert [traced(tmp_path, number) for number in (1, 2, 3)] == [
            {name: tokens for name, (_, tokens) in sums.items()} for sums in expected
        ]


def traced(folder: Path, iteration: int) -> dict[str, int]:
    """Tokens by domain that an iteration had to predict, by the trace: all but each row's first."""
    found: Counter[str] = Counter()
    for sample in open_trace(folder).iterations(iteration, iteration + 1):
        spans = [(one.get("domain", sample.domain), one) for one in sample.dump()["documents"]]
        for name, one in spans:
            found[name] += one["tokens"]
        found[spans[0][0]] -= 1
        assert all(sample.is_of(name) for name, _ in spans)
    return dict(+found)


def test_the_last_of_several_stages_has_the_domains(data: Path, tmp_path: Path) -> None:
    """It does not read the tokens themselves, so the sums are held against those of one process."""
    pipeline = "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"
    (tmp_path / "one").mkdir()
    wanted = run(data, tmp_path / "one", 1, "").metrics()
    found = run(data, tmp_path, 2, pipeline).metrics()
    for line, expected in zip(found, wanted, strict=True):
        assert line["domains"].keys() == expected["domains"].keys()
        for name, of_one in expected["domains"].items():
            domain = line["domains"][name]
            assert (domain["tokens"], domain["samples"]) == (of_one["tokens"], of_one["samples"])
            assert domain["loss"] == pytest.approx(of_one["loss"], rel=1e-4)


def test_reweighting_by_token_is_the_same_in_every_layout(data: Path, tmp_path: Path) -> None:
    reweight = ["--domain-reweight", "linupper", "--calculate-per-token-loss"]
    weighted = []
    for nproc, flags in ((1, ""), (2, "--tensor-model-parallel-size 2")):
        folder = tmp_path / str(nproc)
        folder.mkdir()
        lines = run(data, folder, nproc, flags, *reweight).metrics()
        weighted.append([line["reweighting"]["weighted_loss"] for line in lines])
        assert {name for line in lines for name in line["domains"]} == set(NAMES)
    assert weighted[0] == pytest.approx(weighted[1], rel=1e-4)
