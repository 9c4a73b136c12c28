"""One run of Megatron: trained in one process, measured in a second, and what is kept of it."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from logged import run_megatron
from provenance import processor

from domain_pretrain.backends.local_layers import gpu_flags
from domain_pretrain.records.reader import read_metrics

GLOBAL_BATCH, SEQ_LENGTH = 16, 128
# Width by size; four layers each: 0.06, 0.22 and 1.04 million parameters, embeddings included.
WIDTHS = {"tiny": 32, "small": 64, "medium": 144}
TEST_SAMPLES = 480  # of each domain: all that is held out for it
MODEL = shlex.split(
    f"--num-layers 4 --num-attention-heads 4 --seq-length {SEQ_LENGTH} "
    f"--max-position-embeddings {SEQ_LENGTH} --position-embedding-type rope "
    "--attention-dropout 0 --hidden-dropout 0 --make-vocab-size-divisible-by 288 "
    f"--micro-batch-size {GLOBAL_BATCH} --global-batch-size {GLOBAL_BATCH} "
    "--calculate-per-token-loss --lr-decay-style cosine --weight-decay 0.1 --clip-grad 1 "
    "--ckpt-format torch --no-save-optim --no-save-rng --no-load-optim --no-load-rng"
)

# domain → corpus → weight in the training data.
Blend = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Run:
    """All that decides a run's outcome.

    Attributes:
        name: of its folder, and in messages.
        blend: of the training data.
        seed: of the order of the data, and of the first weights where it starts from none.
        lr: at its peak, after a warm-up of 5 %; it decays to a tenth.
        steps: optimizer steps.
        size: of :data:`WIDTHS`.
        config: of the plugin, besides the domains: ``mix`` or ``reweight``.
        every: steps between two looks at the sensor.
        samples: of general, at most 480, that a look reads.
        base: the run whose model it starts from; None: from scratch.
    """

    name: str
    blend: Blend
    seed: int
    lr: float
    steps: int
    size: str = "medium"
    config: Mapping[str, Any] = field(default_factory=dict)
    every: int = 40
    samples: int = 480
    base: str | None = None

    def flags(self, corpora: Path, work: Path) -> list[str]:
        """Megatron's and the plugin's, of the training."""
        train = [
            word
            for parts in self.blend.values()
            for part, weight in parts.items()
            for word in (weight, corpora / "train" / part)
        ]
        folder = work / self.name
        words: list[Any] = [*_common(self, corpora, folder), "--seed", self.seed]
        words += ["--train-data-path", *train]
        words += ["--valid-data-path", 1, corpora / "sensor" / "general"]
        words += ["--train-iters", self.steps, "--eval-iters", 1, "--eval-interval", self.every]
        words += ["--lr", self.lr, "--min-lr", self.lr / 10, "--lr-warmup-fraction", 0.05]
        words += ["--save", folder / "checkpoint", "--save-interval", self.steps]
        words += ["--domain-config", folder / "domains.yaml", "--log-interval", 10]
        if self.base is not None:
            words += ["--load", work / self.base / "checkpoint", "--finetune"]
        return [str(word) for word in words]

    def domains(self, corpora: Path) -> dict[str, Any]:
        """The plugin's config."""
        data = {
            name: {"data": [str(corpora / "train" / part) for part in parts]}
            for name, parts in self.blend.items()
        }
        data["general"]["data"].append(str(corpora / "sensor" / "general"))
        return {"domains": data, "evaluate": {"samples": self.samples}, **self.config}


def _common(run: Run, corpora: Path, folder: Path) -> list[Any]:
    import torch

    return [
        *MODEL,
        *("--hidden-size", WIDTHS[run.size], "--data-cache-path", corpora / "cache"),
        *("--domain-log-dir", folder),
        *(gpu_flags() if torch.cuda.is_available() else []),  # a CPU's are supplied by the plugin
    ]


def measuring(run: Run, corpora: Path, work: Path) -> tuple[list[str], dict[str, Any]]:
    """Flags and config of the second process: it reads the same test text for every run."""
    folder, names = work / run.name / "test", ("general", "code", "maths")
    valid = [word for name in names for word in (1, corpora / "test" / name)]
    words = [*_common(run, corpora, folder), "--skip-train", "--seed", 1, "--lr", run.lr]
    words += ["--valid-data-path", *valid, "--train-iters", 1, "--eval-iters", 1]
    words += ["--eval-interval", 1, "--load", work / run.name / "checkpoint", "--finetune"]
    words += ["--domain-config", folder / "domains.yaml"]
    domains = {name: {"data": [str(corpora / "test" / name)]} for name in names}
    config = {"domains": domains, "evaluate": {"samples": TEST_SAMPLES}}
    return [str(word) for word in words], config


def result_of(run: Run, corpora: Path, tokenizer: Sequence[str], work: Path) -> dict[str, Any]:
    """Train and measure, or return what an earlier call of the very same run left.

    A run counts as done when its ``result.json`` is there, which is written last and at once. The
    model of a base stays there, that of any other run goes. Another processor rounds otherwise, so
    the base that it trains is another one: what a run is kept with is ``start``, the test losses of
    the base that it started from; and its ``config``, which the plan takes from earlier results.

    Raises:
        RuntimeError: Megatron failed; the message names its log and shows the end of it.
    """
    folder = work / run.name
    words, config = run.flags(corpora, work), run.domains(corpora)
    kept = folder / "result.json"
    if kept.is_file():
        saved: dict[str, Any] = json.loads(kept.read_text())
        if saved["of"] == [words, config]:
            return saved["result"]
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted, or another one
    started = time.monotonic()
    _megatron(words, config, tokenizer, folder)
    trained = read_metrics(folder)
    words_of_test, config_of_test = measuring(run, corpora, work)
    _megatron(words_of_test, config_of_test, tokenizer, folder / "test")
    result = {
        "config": run.config,
        "seconds": round(time.monotonic() - started, 1),
        "processor": processor(),
        **read(trained, read_metrics(folder / "test")),
    }
    if run.base is not None:
        base = json.loads((work / run.base / "result.json").read_text())["result"]
        result["start"] = base["test"]
        shutil.rmtree(folder / "checkpoint")
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps({"of": [words, config], "result": result}))
    partial.replace(kept)
    return result


def _megatron(
    words: Sequence[str], config: Mapping[str, Any], tokenizer: Sequence[str], folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "domains.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    run_megatron([*words, *tokenizer], folder / "train.log")


def read(
    trained: Sequence[Mapping[str, Any]], tested: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What is kept: losses are unweighted, in nats per token.

    ``test``: by domain, after the run. ``sensor``: [step, general's loss] on the sensor's text.
    ``shares``: [step, each domain's part of the weighted tokens] of each logged window.
    """
    sensor = [
        [entry["iteration"], entry["domains"]["general"]["loss"]]
        for entry in trained
        if entry["split"] == "valid"
    ]
    windows = [entry for entry in trained if entry["split"] == "train"]
    (final,) = (entry for entry in tested if entry["split"] == "valid")
    return {
        "test": {name: domain["loss"] for name, domain in final["domains"].items()},
        "tokens": {name: domain["tokens"] for name, domain in final["domains"].items()},
        "sensor": sensor,
        "shares": [[entry["iteration"], shares(entry)] for entry in windows],
        "last_train": {name: one["loss"] for name, one in windows[-1]["domains"].items()},
    }


def shares(entry: Mapping[str, Any]) -> dict[str, float]:
    """Each domain's part of a window's tokens, as they were weighted."""
    weighted = {
        name: one["tokens"] * one.get("weight", 1.0) for name, one in entry["domains"].items()
    }
    total = sum(weighted.values())
    return {name: round(one / total, 4) for name, one in weighted.items()}
