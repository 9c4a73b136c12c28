"""Tables and picture of a results file, written beside it.

python benchmarks/reweighting/report.py benchmarks/reweighting/results/cpu.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

import table  # noqa: E402


def write(results: Path) -> None:
    """Write ``RESULTS.md`` and, where matplotlib is installed, ``RESULTS.png``; print the tables.

    Args:
        results: ``RESULTS.json``, as run.py wrote it.
    """
    result = json.loads(results.read_text(encoding="utf-8"))
    text = table.page(result)
    print(text)
    results.with_suffix(".md").write_text(text)
    try:
        import picture
    except ImportError as error:
        print(f"no picture: {error}")
    else:
        picture.draw(result, results.with_suffix(".png"))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write(Path(name))
