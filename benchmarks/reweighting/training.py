"""One run of Megatron, and what is kept of it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from arms import DOMAINS

from domain_pretrain.backends.local_layers import gpu_flags
from domain_pretrain.records.reader import read_metrics

GLOBAL_BATCH, SEQ_LENGTH, LOG_INTERVAL = 16, 128, 10

# Bytes as tokens, as in the demo, on half its layers and width. The one evaluation, when training
# has ended, reads the same held-out text in all arms.
MODEL = shlex.split(
    f"--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length {SEQ_LENGTH} "
    f"--max-position-embeddings {SEQ_LENGTH} --position-embedding-type rope "
    "--attention-dropout 0 --hidden-dropout 0 --make-vocab-size-divisible-by 288 "
    f"--micro-batch-size {GLOBAL_BATCH} --global-batch-size {GLOBAL_BATCH} "
    "--calculate-per-token-loss --lr-decay-style cosine --lr-warmup-fraction 0.05 "
    f"--weight-decay 0.1 --clip-grad 1 --log-interval {LOG_INTERVAL} --eval-interval 1000000"
)
CONTROL = Path(__file__).resolve().parent / "control"  # the strategy of the shuffled runs


@dataclass(frozen=True)
class Run:
    """All that decides a run's outcome.

    Attributes:
        name: of its folder, and in messages.
        blend: domain → corpus → weight of the training data.
        seed: of the model's first weights and of the order of the data.
        lr: after its warm-up; it decays to a tenth.
        steps: optimizer steps.
        evaluations: batches in the evaluation.
        reweight: the section of the config.
        pinned: domains that are left alone.
        load: checkpoint folder to start from.
        save: checkpoint folder to write.
    """

    name: str
    blend: Mapping[str, Mapping[str, float]]
    seed: int
    lr: float
    steps: int
    evaluations: int
    reweight: Mapping[str, Any] = field(default_factory=dict)
    pinned: tuple[str, ...] = ()
    load: Path | None = None
    save: Path | None = None

    def config(self, corpora: Path) -> dict[str, Any]:
        """The plugin's config: which corpora make which domain, and how to reweight."""
        domains = {}
        for name, parts in self.blend.items():
            data = [str(corpora / "train" / part) for part in parts]
            domains[name] = {"data": [*data, str(corpora / "valid" / name)]}
            if name in self.pinned:
                domains[name]["pinned"] = True
        return {"domains": domains, "reweight": dict(self.reweight)}

    def flags(self, corpora: Path, folder: Path) -> list[str]:
        """Megatron's flags and the plugin's."""
        train = [
            word
            for parts in self.blend.values()
            for part, weight in parts.items()
            for word in (weight, corpora / "train" / part)
        ]
        valid = [word for name in self.blend for word in (1, corpora / "valid" / name)]
        words: list[Any] = [*MODEL, *device_flags()]
        words += ["--train-iters", self.steps, "--eval-iters", self.evaluations]
        words += ["--seed", self.seed, "--lr", self.lr, "--min-lr", self.lr / 10]
        words += ["--train-data-path", *train, "--valid-data-path", *valid]
        words += ["--data-cache-path", corpora / "cache"]
        words += ["--domain-config", folder / "domains.yaml", "--domain-log-dir", folder]
        words += ["--load", self.load, "--finetune"] if self.load else []
        words += ["--save", self.save, "--save-interval", self.steps] if self.save else []
        return [str(word) for word in words]


def device_flags() -> list[str]:
    """What the device needs; a CPU's are supplied by the plugin."""
    import torch

    return gpu_flags() if torch.cuda.is_available() else []


def result_of(run: Run, corpora: Path, tokenizer: Sequence[str], root: Path) -> dict[str, Any]:
    """Train, or return what an earlier call of the very same run left in ``root/NAME``.

    A run counts as done when its ``result.json`` is there, which is written last and at once.

    Raises:
        RuntimeError: Megatron failed; the message names its log and shows the end of it.
    """
    folder = root / run.name
    folder.mkdir(parents=True, exist_ok=True)
    words = ["-m", "domain_pretrain", *run.flags(corpora, folder), *tokenizer]
    config, kept = run.config(corpora), folder / "result.json"
    if kept.is_file():
        saved: dict[str, Any] = json.loads(kept.read_text())
        if saved["of"] == [words, config]:
            return saved["result"]
    (folder / "domains.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    started = time.monotonic()
    _train(words, folder / "train.log")
    result = {"seconds": round(time.monotonic() - started, 1), **read(read_metrics(folder), run)}
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps({"of": [words, config], "result": result}))
    partial.replace(kept)
    return result


def _train(words: list[str], log: Path) -> None:
    path = os.pathsep.join(filter(None, [str(CONTROL), os.environ.get("PYTHONPATH")]))
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, *words]
        code = subprocess.run(command, env=environment, stdout=file, stderr=file).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise RuntimeError(f"training ended with exit code {code}; the end of {log}:\n{tail}")


def read(entries: Sequence[Mapping[str, Any]], run: Run) -> dict[str, Any]:
    """The validation losses (unweighted, nats per token), and the multipliers of the whole run.

    ``weights`` is each domain's mean multiplier over its tokens after the warm-up, so that
    Σ share·weight = 1 holds for it as it does for the multipliers of a step.
    """
    (final,) = (entry for entry in entries if entry["split"] == "valid")
    windows = [
        entry
        for entry in entries
        if entry["split"] == "train"
        and entry["iteration"] - LOG_INTERVAL >= run.reweight.get("warmup_steps", 0)
    ]
    result = {
        "valid": {name: domain["loss"] for name, domain in final["domains"].items()},
        "valid_tokens": {name: domain["tokens"] for name, domain in final["domains"].items()},
    }
    if run.reweight:
        effective = [window["reweighting"]["effective_domains"] for window in windows]
        result["effective_domains"] = sum(effective) / len(effective)
        result["weights"] = {name: _mean_weight(windows, name) for name in DOMAINS}
        result["curve"] = [
            [w["iteration"], {name: round(d["weight"], 4) for name, d in w["domains"].items()}]
            for w in windows
        ]
    return result


def _mean_weight(windows: Sequence[Mapping[str, Any]], name: str) -> float:
    parts = [window["domains"][name] for window in windows if name in window["domains"]]
    return sum(p["weight"] * p["tokens"] for p in parts) / sum(p["tokens"] for p in parts)
