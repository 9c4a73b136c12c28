"""What the compiler makes of the kernels: instructions for a tile, registers, blocks, spills.

    python benchmarks/device_code/run.py [--out FILE.json]

Needs NVRTC and nvdisasm, but no GPU. These are counts from a compiler, not times: hot_loop.py says
what is counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent), str(ROOT / "benchmarks")]

from device_code import VARIANTS, nvrtc_version, row, table  # noqa: E402
from hot_loop import nvdisasm  # noqa: E402
from written import commit  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the numbers and where they come from")
    options = parser.parse_args()
    tool = nvdisasm()
    if tool is None:
        sys.exit("no nvdisasm: pip install nvidia-cuda-nvdisasm, or put a CUDA toolkit on PATH")
    result = {"source": source(), "rows": [row(variant, tool) for variant in VARIANTS]}
    print(json.dumps(result["source"]), table(result["rows"]), sep="\n\n")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def source() -> dict[str, str]:
    """Where the numbers come from."""
    return {
        "command": "python benchmarks/device_code/run.py",
        "commit": commit(),
        "date": date.today().isoformat(),
        "nvrtc": nvrtc_version(),
    }


if __name__ == "__main__":
    main()
