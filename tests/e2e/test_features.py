"""Channel loss is right with Megatron's features on: an oracle of what the text itself says.

Each corpus has an alphabet of its own, so the oracle knows a sample's domain from its tokens, not
from dataset ids; its float64 sums are of the losses that the script's loss function was given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import DOMAINS, domain_of
from support.launch import train

pytestmark = pytest.mark.megatron

SEQUENCE, BATCH = 32, 8

FEATURES = {
    "bf16, distributed optimizer with overlap": (
        "--bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather",
        {"nproc": 2},
    ),
    "multi-token prediction": ("--mtp-num-layers 1 --position-embedding-type rope", {}),
    "mixture of experts": (
        "--num-experts 4 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss "
        "--moe-aux-loss-coeff 1e-2 --moe-token-dispatcher-type alltoall --disable-bias-linear "
        "--expert-model-parallel-size 2",
        {"nproc": 2},
    ),
    "context parallelism, micro-batch 2": (
        "--context-parallel-size 2 --micro-batch-size 2",
        {"nproc": 2, "cp": 2},
    ),
    "two instances of the distributed optimizer": (
        "--use-distributed-optimizer --num-distributed-optimizer-instances 2",
        {"nproc": 2},
    ),
    "packed documents": (
        "--dataloader-inter-document-masking --micro-batch-size 2",
        {},
    ),
    "packed documents, context parallelism": (
        "--dataloader-inter-document-masking --context-parallel-size 2 --micro-batch-size 2",
        {"nproc": 2, "cp": 2},
    ),
}


def record(
    folder: Path, *flags: str | Path, script: str = "recording_gpt.py", **how: Any
) -> list[dict[str, Any]]:
    """Train with per-sample averages; the metrics lines of three steps."""
    (folder / "config.yaml").write_text("channel_loss: {average: sample}")
    config = ["--domain-config", folder / "config.yaml"]
    env = {"RECORD_DIR": str(folder)}
    run = train(folder, *flags, *config, iterations=3, script=script, env=env, **how)
    entries = run.metrics()
    assert [entry["iteration"] for entry in entries] == [1, 2, 3]
    return entries


def whole_rows(parts: list[np.ndarray]) -> np.ndarray:
    """Samples ``[b, s]`` from what the context parallel ranks have of them: rank r holds chunks r
    and 2·cp − 1 − r of 2·cp, of each row, or of all rows joined."""
    pieces = 2 * len(parts)
    chunks: list[Any] = [None] * pieces
    for rank, part in enumerate(parts):
        chunks[rank], chunks[pieces - 1 - rank] = np.split(part, 2, axis=-1)
    return np.concatenate(chunks, axis=-1).reshape(-1, SEQUENCE)


def samples_of_steps(folder: Path, cp: int) -> list[list[dict[str, np.ndarray]]]:
    """For every step, its samples: losses, mask and tokens, each ``[s]``."""
    files = sorted(folder.glob("rank*.npz"))
    ranks = [np.load(file) for file in files]
    microbatches = sum(name.startswith("losses") for name in ranks[0].files)
    per_step = microbatches // 3
    steps: list[list[dict[str, np.ndarray]]] = [[] for _ in range(3)]
    for first in range(0, len(ranks), cp):
        for index in range(microbatches):
            rows = {
                key: whole_rows([rank[f"{key}{index}"] for rank in ranks[first : first + cp]])
                for key in ("losses", "mask", "tokens")
            }
            for row in range(len(rows["mask"])):
                sample = {key: value[row] for key, value in rows.items()}
                steps[index // per_step].append(sample)
    return steps


def assert_equals_oracle(entries: list[dict[str, Any]], folder: Path, cp: int = 1) -> None:
    seen: set[str] = set()
    for entry, samples in zip(entries, samples_of_steps(folder, cp), strict=True):
        assert len(samples) == BATCH
        sums: dict[str, np.ndarray] = {}
        for sample in samples:
            losses = sample["losses"].reshape(-1).astype(np.float64)
            loss, tokens = losses @ sample["mask"], sample["mask"].sum()
            if tokens:
                total = sums.setdefault(domain_of(sample["tokens"]), np.zeros(4))
                total += (loss, tokens, 1, loss / tokens)
        assert entry["domains"].keys() == sums.keys()
        for name, (loss, tokens, count, sample_means) in sums.items():
            domain = entry["domains"][name]
            assert (domain["tokens"], domain["samples"]) == (tokens, count)
            assert domain["loss_sum"] == pytest.approx(loss, rel=1e-7)
            assert domain["sample_loss_sum"] == pytest.approx(sample_means, rel=1e-6)
            assert domain["loss"] == pytest.approx(sample_means / count, rel=1e-6)
        seen |= sums.keys()
    assert len(seen) > 2


@pytest.mark.parametrize("feature", FEATURES)
def test_feature(feature: str, blend: list[str], tmp_path: Path) -> None:
    flags, how = FEATURES[feature]
    entries = record(tmp_path, *blend, *flags.split(), nproc=how.get("nproc", 1))
    assert_equals_oracle(entries, tmp_path, how.get("cp", 1))


def test_supervised_finetuning(tmp_path: Path) -> None:
    """Packed conversations, of which only the answers count; two rows a microbatch."""
    rng = np.random.default_rng(1)
    data: list[str | Path] = ["--data-path"]
    for number, name in enumerate(DOMAINS):
        lines = []
        for _ in range(40):
            messages = []
            for _ in range(rng.integers(1, 4)):
                for role in ("system", "user", "assistant"):
                    words = rng.integers(50 * number, 50 * number + 50, rng.integers(1, 9))
                    messages.append({"role": role, "content": " ".join(map(str, words))})
            lines.append(json.dumps({"messages": messages}))
        path = tmp_path / name
        path.write_text("\n".join(lines))
        data += ["1", path]
    data += ["--split", "80,10,10"]
    flags = ["--sft", "--micro-batch-size", "2", "--no-create-attention-mask-in-dataloader"]
    entries = record(tmp_path, *data, *flags, script="sft_gpt.py")
    assert_equals_oracle(entries, tmp_path)


def test_skipped_iterations(blend: list[str], tmp_path: Path) -> None:
    """fp16: a step that overflowed has consumed its data, but is in no window, as in the host's."""
    # Each overflow halves the scale, until after about six steps the gradients fit.
    flags = ["--fp16", "--initial-loss-scale", str(2**22), "--log-interval", "4"]
    run = train(tmp_path, *blend, *flags, iterations=12)
    skipped = run.skipped_iterations()
    counts = [skipped[entry["iteration"]] for entry in run.metrics()]
    assert any(0 < count < 4 for count in counts), f"{counts}: no window is partly skipped"
    for entry, count in zip(run.metrics(), counts, strict=True):
        assert sum(d["samples"] for d in entry["domains"].values()) == BATCH * (4 - count)
    last = run.metrics()[-1]["domains"]
    assert len(last) == len(DOMAINS)
    assert sum(d["consumed_samples"] for d in last.values()) == BATCH * 12
