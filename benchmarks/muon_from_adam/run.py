#!/usr/bin/env python3
"""Does a model that Adam has pretrained lose by going on with Muon?

    python benchmarks/muon_from_adam/run.py --out benchmarks/muon_from_adam/results/cpu.json

Real Megatron trains a small GPT on general text, once with Adam and once with Muon, and goes on
with either on a blend of general text, code and maths, with a new optimizer. The rate of going on
is chosen on the first seed, for each of the four ways, and used for the others. What counts is the
loss of held-out text of the three domains. The *mismatch* is what going on with Muon costs against
Adam on the base that Adam has made, more than on the base that Muon has made.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the shared modules
import yaml
from logged import run_megatron
from provenance import provenance
from written import write_json

from domain_pretrain.demo.corpora import write_texts
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.records.reader import read_metrics

LENGTH, BATCH, SAMPLES = 128, 8, 96
BASE_STEPS, STEPS = 1000, 200
BASE_RATE, RATES = 2e-3, (2e-3, 4e-3, 8e-3, 1.6e-2)
CHOSEN_ON, SEEDS = 1, (2, 3, 4)
DOMAINS = ("general", "code", "maths")
BLENDS = {"base": {"general": 1}, "going on": {"general": 2, "code": 1, "maths": 1}}
MODEL = shlex.split(
    f"--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length {LENGTH} "
    f"--max-position-embeddings {LENGTH} --position-embedding-type rope "
    "--attention-dropout 0 --hidden-dropout 0 --make-vocab-size-divisible-by 288 "
    f"--micro-batch-size {BATCH} --global-batch-size {BATCH} --eval-iters 1 --log-interval 50 "
    "--calculate-per-token-loss --lr-decay-style cosine --lr-warmup-fraction 0.05 "
    "--weight-decay 0.1 --clip-grad 1 --tokenizer-type NullTokenizer --vocab-size 257 "
    "--ckpt-format torch --no-save-optim --no-save-rng --no-load-optim --no-load-rng"
)
# Muon as Moonlight has it: an update as large as Adam's, so that both take the same rates.
OPTIMIZERS = {
    "adam": [],
    "muon": shlex.split(
        "--optimizer muon --muon-momentum 0.95 --muon-nesterov --muon-num-ns-steps 5 "
        "--muon-scale-mode spectral --muon-extra-scale-factor 0.2"
    ),
}
Losses = Mapping[str, float]  # of held-out text, nats a token, by domain


def build(folder: Path) -> None:
    """The demo's corpora, a tenth of each domain's documents held out."""
    for name, source in write_texts(folder).items():
        if name in DOMAINS:
            prepare([source], folder / name, "bytes", holdout="10%", force=True)


def train(work: Path, name: str, optimizer: str, seed: int, rate: float, base: str = "") -> Losses:
    """Losses at the end of a run, or of the same one of an earlier call."""
    folder, data = work / name, work / "corpora"
    kept = folder / "result.json"
    if kept.is_file():
        found: Losses = json.loads(kept.read_text("utf-8"))
        return found
    folder.mkdir(parents=True, exist_ok=True)
    steps, blend = (STEPS, BLENDS["going on"]) if base else (BASE_STEPS, BLENDS["base"])
    words: list[Any] = [*MODEL, *OPTIMIZERS[optimizer], "--seed", seed]
    words += ["--lr", rate, "--min-lr", rate / 10, "--train-iters", steps, "--eval-interval", steps]
    words += ["--train-data-path", *(x for d, w in blend.items() for x in (w, data / d))]
    words += ["--valid-data-path", *(x for d in DOMAINS for x in (1, data / f"{d}.holdout"))]
    words += ["--domain-config", folder / "domains.yaml", "--domain-log-dir", folder]
    words += ["--data-cache-path", work / "cache"]
    if base:
        words += ["--load", work / base / "checkpoint", "--finetune"]
    else:
        words += ["--save", folder / "checkpoint", "--save-interval", steps]
    domains = {
        d: {"data": [*([str(data / d)] if d in blend else []), str(data / f"{d}.holdout")]}
        for d in DOMAINS
    }
    config = {"domains": domains, "evaluate": {"samples": SAMPLES}}
    (folder / "domains.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run_megatron([str(word) for word in words], folder / "train.log")
    last = [entry for entry in read_metrics(folder) if entry["split"] == "valid"][-1]
    losses = {domain: last["domains"][domain]["loss"] for domain in DOMAINS}
    write_json(kept, losses)
    return losses


def whole(losses: Losses) -> float:
    """The mean over the domains: one number to choose by."""
    return mean(losses.values())


def measure(work: Path) -> dict[str, Any]:
    """Every run: the bases, the choice of rates, and what the other seeds say."""
    bases = {
        f"base-{by}-{seed}": train(work, f"base-{by}-{seed}", by, seed, BASE_RATE)
        for seed in (CHOSEN_ON, *SEEDS)
        for by in OPTIMIZERS
    }

    def go_on(by: str, base_by: str, seed: int, rate: float) -> Losses:
        name = f"{by}-on-{base_by}-{seed}-{rate:g}"
        return train(work, name, by, seed, rate, f"base-{base_by}-{seed}")

    ways: dict[str, Any] = {}
    for base_by in OPTIMIZERS:
        for by in OPTIMIZERS:
            tried = {rate: go_on(by, base_by, CHOSEN_ON, rate) for rate in RATES}
            rate = min(RATES, key=lambda one: whole(tried[one]))
            found = {seed: go_on(by, base_by, seed, rate) for seed in SEEDS}
            ways[f"{base_by} then {by}"] = {"tried": tried, "rate": rate, "losses": found}
    return {"bases": bases, "ways": ways}


def differences(ways: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """By base, Muon's loss less Adam's, a number a seed; and the mismatch."""

    def loss(way: str, seed: int, domain: str) -> float:
        losses = ways[way]["losses"][seed]
        return whole(losses) if domain == "all" else float(losses[domain])

    found: dict[str, dict[str, list[float]]] = {}
    for domain in ("all", *DOMAINS):
        cost = {
            base: [
                loss(f"{base} then muon", s, domain) - loss(f"{base} then adam", s, domain)
                for s in SEEDS
            ]
            for base in OPTIMIZERS
        }
        mismatch = [a - m for a, m in zip(cost["adam"], cost["muon"], strict=True)]
        found[domain] = {**cost, "mismatch": mismatch}
    return found


def shown(numbers: list[float]) -> str:
    """Mean and standard error."""
    return f"{mean(numbers):+.4f} ± {stdev(numbers) / len(numbers) ** 0.5:.4f}"


def main() -> None:
    """Train what is not there yet, print the tables, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--work", type=Path, default=Path("runs/muon_from_adam"))
    parser.add_argument("--out", type=Path, help="JSON file (default: none)")
    args = parser.parse_args()
    started, work = time.monotonic(), args.work.resolve()
    if not (work / "corpora" / "maths.holdout.idx").is_file():
        build(work / "corpora")
    found = measure(work)
    print("| base, then | rate | general | code | maths | mean |\n|---|---|---|---|---|---|")
    for way, one in found["ways"].items():
        losses = [mean(s[d] for s in one["losses"].values()) for d in DOMAINS]
        cells = " | ".join(f"{loss:.4f}" for loss in [*losses, mean(losses)])
        print(f"| {way} | {one['rate']:g} | {cells} |")
    found["muon less adam"] = differences(found["ways"])
    print(
        "\n| Muon's loss less Adam's | base of Adam | base of Muon | mismatch |\n|---|---|---|---|"
    )
    for domain, one in found["muon less adam"].items():
        print(f"| {domain} | {' | '.join(shown(numbers) for numbers in one.values())} |")
    seconds = round(time.monotonic() - started, 1)
    write_json(args.out, {**provenance(__file__), "seconds": seconds, **found})


if __name__ == "__main__":
    main()
