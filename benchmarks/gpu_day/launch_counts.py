"""What one microbatch launches, by torch's profiler: its names, from the losses to the gradient.

    python benchmarks/gpu_day/launch_counts.py [--out FILE.json]

The rows of the table in docs/kernels.md, each with a name for every kernel, copy and fill.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from support import passes  # noqa: E402
from support.launches import launches  # noqa: E402
from written import write_json  # noqa: E402

from domain_pretrain.kernels.domain_reduce import select  # noqa: E402
from gpu_day.runner import NOT_RUN  # noqa: E402

# Title, multipliers, loss function; None: without the plugin.
ROWS = (
    ("the host alone", None, passes.loss_func),
    ("a user's script, channel loss", "none", passes.loss_func),
    ("a user's script, with weights", "lagged", passes.loss_func),
    ("the built-in entry, channel loss", "none", passes.our_loss_func),
    ("the built-in entry, with weights", "lagged", passes.our_loss_func),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device")
        sys.exit(NOT_RUN)
    device = torch.device("cuda", torch.cuda.current_device())
    counted: list[dict[str, object]] = []
    for title, weights, function in ROWS:
        plugin = None
        if weights is not None:
            kind = None if weights == "none" else weights
            plugin = passes.forward(select("cuda"), kind, device)
        names = launches(passes.Pass(plugin, function, device))
        print(f"{title}: {len(names)}: {', '.join(names)}", flush=True)
        counted.append({"what": title, "names": names})
        write_json(options.out, {"rows": counted})


if __name__ == "__main__":
    main()
