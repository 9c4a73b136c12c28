#!/usr/bin/env python3
"""Does a probe find a fact that was planted in one domain's data, and not one that was not?

    python benchmarks/probes/run.py --out benchmarks/probes/results/cpu.json

A small GPT of real Megatron reads sentences of the form "country: capital.", each once. Halfway, a
second domain begins, a third of the samples: four such sentences, again and again. The probes run
there and at the end, on these four and on four that are in no domain.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the shared modules
import yaml
from logged import run_megatron
from provenance import provenance
from written import write_json

from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.reader import read_evaluations
from domain_pretrain.records.score import Score, difference

FACTS, BATCH, LENGTH = 4, 64, 16  # a sentence and the token that ends it are a sample
FLAGS = shlex.split(
    "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --position-embedding-type rope "
    f"--seq-length {LENGTH} --max-position-embeddings {LENGTH} --split 98,2,0 "
    "--attention-dropout 0 --hidden-dropout 0 --make-vocab-size-divisible-by 288 "
    "--tokenizer-type NullTokenizer --vocab-size 257 --num-workers 0 --eval-iters 1 "
    f"--micro-batch-size {BATCH} --global-batch-size {BATCH} --clip-grad 1 "
    "--lr 5e-3 --lr-decay-style constant --lr-warmup-fraction 0.05 --log-interval 50"
)


def made_up(draw: Random) -> tuple[str, str]:
    """A country and its capital, six letters each."""
    country, capital = (
        "".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(3))
        for _ in range(2)
    )
    return country, capital


def write_data(folder: Path, seed: int, steps: int) -> dict[str, list[tuple[str, str]]]:
    """Both domains' data, and the facts to ask about."""
    draw = Random(seed)
    planted, control = ([made_up(draw) for _ in range(FACTS)] for _ in range(2))
    enough = 2 * steps * BATCH
    texts = {
        "general": [made_up(draw) for _ in range(enough)],
        "planted": draw.choices(planted, k=enough // 4),
    }
    for name, facts in texts.items():
        source = folder / f"{name}.jsonl"
        lines = [json.dumps({"text": f"{country}: {capital}."}) for country, capital in facts]
        source.write_text("\n".join(lines), encoding="utf-8")
        prepare([source], folder / name, "bytes", workers=1)
    return {"planted": planted, "control": control}


def train(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """One seed: how the scores of both kinds of facts moved in the second half."""
    facts = write_data(folder, seed, steps)
    items = {
        name: [{"prompt": f"{country}:", "completion": f" {capital}."} for country, capital in own]
        for name, own in facts.items()
    }
    config = {
        "domains": {name: {"data": [str(folder / name)]} for name in ("general", "planted")},
        "mix": {
            "schedule": [
                {"share": 0.5, "weights": {"general": 1}},
                {"weights": {"general": 2, "planted": 1}},
            ]
        },
        "evaluate": {"probes": {"completion": {"items": items}}},
    }
    (folder / "domains.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ["--train-iters", steps, "--eval-interval", steps // 2, "--seed", seed + 1]
    words += ["--domain-config", folder / "domains.yaml", "--domain-log-dir", folder]
    words += ["--data-cache-path", folder / "cache"]
    run_megatron([*FLAGS, *map(str, words)], folder / "train.log")
    found = {one.iteration: scores(one) for one in read_evaluations(folder)}
    return {
        "seed": seed,
        "scores": {
            f"{name} of {kind}": compare(found[steps // 2][name, kind], found[steps][name, kind])
            for name in ("completion", "completion_prob")
            for kind in ("planted", "control")
        },
    }


def scores(evaluated: Evaluated) -> dict[tuple[str, str], Score]:
    """By name and domain."""
    return {(score.name, score.domain): score for score in evaluated.scores}


def compare(before: Score, after: Score) -> dict[str, float | None]:
    """Both means, the change, and its standard error over the facts."""
    change, error = difference(before, after)
    return {"before": before.mean, "after": after.mean, "change": change, "error": error}


def main() -> None:
    """Train, print a table, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, help="JSON file (default: none)")
    args = parser.parse_args()
    started = time.monotonic()
    runs = []
    print("| seed | score | before | after | change |\n|---|---|---|---|---|")
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(train(Path(folder), seed, args.steps))
        for name, one in runs[-1]["scores"].items():
            print(
                f"| {seed} | {name} | {one['before']:.4f} | {one['after']:.4f} | "
                f"{one['change']:+.4f} ± {one['error']:.4f} |",
                flush=True,
            )
    seconds = round(time.monotonic() - started, 1)
    write_json(args.out, {**provenance(__file__), "seconds": seconds, "runs": runs})


if __name__ == "__main__":
    main()
