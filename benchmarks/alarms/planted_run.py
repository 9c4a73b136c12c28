"""One run of real Megatron, as a user starts it; a finished one is kept."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from faults import AT, KINDS, STEPS, Kind
from logged import run_megatron
from planted_data import FLAGS, spoil

from domain_pretrain.data.trace.windows import Span

BATCH = 16
MODEL = shlex.split(
    "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 128 "
    "--max-position-embeddings 128 --position-embedding-type rope --split 90,10,0 "
    "--attention-dropout 0 --hidden-dropout 0 --make-vocab-size-divisible-by 288 "
    f"--micro-batch-size {BATCH} --global-batch-size {BATCH} --num-workers 0 "
    "--calculate-per-token-loss --lr-decay-style cosine --lr-warmup-fraction 0.05 "
    "--lr 2e-3 --min-lr 2e-4 --weight-decay 0.1 --clip-grad 1 --log-interval 1 "
    f"--eval-interval 50 --eval-iters 8 --train-iters {STEPS}"
)


def run(root: Path, corpora: Path, kind_name: str, seed: int, data_seed: int) -> dict[str, Any]:
    """Train, unless it has been done.

    Args:
        root: of all runs.
        corpora: folder of the corpora of all data seeds.
        kind_name: of :data:`KINDS`.
        seed: of the model and of the order of the data.
        data_seed: of the corpora.

    Returns:
        Where it is, and how long it took.
    """
    kind, folder = KINDS[kind_name], root / f"{kind_name}-{seed}"
    done = folder / "done.json"
    if done.is_file():
        kept: dict[str, Any] = json.loads(done.read_text())
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    data = corpora / str(data_seed)
    garbage: list[Any] = []
    if kind.spoiled is not None:
        garbage = _garbage(root / f"clean-{seed}", kind.spoiled)
        spoiled = folder / "data"
        spoil(data, spoiled, kind.spoiled, [Span(*one) for one in garbage], seed)
        data = spoiled
    (folder / "domains.yaml").write_text(yaml.safe_dump(_config(kind, data), sort_keys=False))
    started = time.monotonic()
    _train(folder, [*MODEL, *FLAGS, *_flags(kind, root, folder, data, seed)], kind)
    result = {
        "folder": str(folder),
        "seconds": round(time.monotonic() - started, 1),
        "garbage": [document for document, *_ in garbage],
    }
    done.write_text(json.dumps(result))
    return result


def _config(kind: Kind, data: Path) -> dict[str, Any]:
    domains = {
        name: {
            "data": [str(data / name)],
            "weight": weight,
            **({"pinned": True} if name in kind.pinned else {}),
        }
        for name, weight in kind.weights.items()
    }
    fixed = {} if kind.samples is None else {"evaluate": {"samples": kind.samples}}
    return {"domains": domains, **fixed}


def _flags(kind: Kind, root: Path, folder: Path, data: Path, seed: int) -> list[str]:
    words: list[Any] = ["--seed", seed + 1, "--data-cache-path", data / "cache", *kind.flags]
    words += ["--domain-config", folder / "domains.yaml", "--domain-log-dir", folder]
    if kind.saves:
        words += ["--save", folder / "checkpoint", "--save-interval", STEPS]
    if kind.base is not None:
        words += ["--load", root / f"{kind.base}-{seed}" / "checkpoint", "--finetune"]
    return [str(word) for word in words]


def _train(folder: Path, words: list[str], kind: Kind) -> None:
    script = str(Path(__file__).with_name("faulty_gpt.py"))
    run_megatron([script, *words], folder / "train.log", {"FAULT": kind.fault, "AT": str(AT)})


def _garbage(clean: Path, domain: str) -> list[tuple[int, int, int]]:
    """The spans of the documents in half of a domain's samples at step :data:`AT`."""
    command = [sys.executable, "-m", "domain_pretrain.commands", "trace", str(clean)]
    command += ["--iteration", str(AT), "--domain", domain, "--json"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    samples = [json.loads(line) for line in lines]
    half = samples[: -(-len(samples) // 2)]
    return [
        (span["index"], span["first"], span["tokens"])
        for sample in half
        for span in sample["documents"]
    ]
