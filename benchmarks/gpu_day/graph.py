"""The same training twice, the second time replayed from a full-iteration CUDA graph.

    python benchmarks/gpu_day/graph.py --work FOLDER [--out FILE.json]

Python does not run while a graph is replayed, so the sums have to come from the buffers that it
writes. Tokens have to be equal; losses may differ by the rounding of other kernels.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks"), str(ROOT / "benchmarks/step_time")]

import torch  # noqa: E402
from run import COMMON, CPU_MODEL, make_corpora  # noqa: E402
from written import write_json  # noqa: E402

from gpu_day.runner import NOT_RUN  # noqa: E402

ITERATIONS, INTERVAL = 20, 5
GRAPH = (
    "--cuda-graph-impl full_iteration --cuda-graph-warmup-steps 3 --te-rng-tracker "
    "--no-check-for-nan-in-loss-and-grad"
)
TOLERANCE = 1e-2  # nats, after 20 steps in fp32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--work", type=Path, required=True, help="folder for all it writes")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device")
        sys.exit(NOT_RUN)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    data = make_corpora(options.work)
    found: dict[str, Any] = {"iterations": ITERATIONS, "tolerance_nats": TOLERANCE}
    for name, more in (("eager", ""), ("graph", GRAPH)):
        train(options.work / name, data, more.split())
        found[name] = windows(options.work / name / "domain_metrics.jsonl")
        write_json(options.out, found)
    found |= compare(found["eager"], found["graph"])
    write_json(options.out, found)
    print(json.dumps({key: found[key] for key in ("tokens_equal", "largest_difference_nats")}))
    if not found["tokens_equal"] or found["largest_difference_nats"] > TOLERANCE:
        sys.exit("the graph's sums are not those of the eager run")


def train(folder: Path, data: list[str], more: list[str]) -> None:
    """Train with the built-in entry, as a user does."""
    from domain_pretrain.backends.local_layers import gpu_flags

    common = COMMON.split()
    common[common.index("--log-interval") + 1] = str(INTERVAL)
    words = [*CPU_MODEL.split(), *gpu_flags(), *common, *data, *more]
    words += ["--train-iters", str(ITERATIONS), "--channel-loss", "--domain-log-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "domain_pretrain", *words], check=True)


def windows(metrics: Path) -> dict[str, dict[str, list[float]]]:
    """Iteration → domain → its loss in nats, and its tokens."""
    lines = (json.loads(line) for line in metrics.read_text("utf-8").splitlines())
    return {
        str(line["iteration"]): {
            name: [domain["loss"], domain["tokens"]] for name, domain in line["domains"].items()
        }
        for line in lines
        if line.get("split") == "train"
    }


def compare(eager: dict[str, Any], graph: dict[str, Any]) -> dict[str, Any]:
    """Whether the tokens are equal, and the largest difference of a loss; NaN counts as one."""
    tokens = [
        {at: {name: values[1] for name, values in line.items()} for at, line in run.items()}
        for run in (eager, graph)
    ]
    equal = bool(eager) and tokens[0] == tokens[1]
    differences = [
        abs(float("inf") if None in (mine[0], values[0]) else values[0] - mine[0])
        for at, line in eager.items()
        for name, values in line.items()
        if (mine := graph.get(at, {}).get(name)) is not None
    ]
    return {
        "tokens_equal": equal,
        "largest_difference_nats": max(differences, default=float("inf")),
    }


if __name__ == "__main__":
    main()
