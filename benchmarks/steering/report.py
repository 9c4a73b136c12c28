"""Tables and picture of what has been run, written beside the results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import table
from plan import BASE_STEPS, STEPS, Plan
from provenance import provenance
from training import MODEL, WIDTHS
from written import write_json


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write ``OUT.json``, ``OUT.md`` and, where matplotlib is installed, ``OUT.png``.

    Args:
        results: by the name of the run.
        out: ``OUT.json``.

    Raises:
        ValueError: they do not belong together, see :meth:`.Plan.check`.
    """
    plan = Plan(results)
    plan.check()
    result = {
        "what": "test loss by domain, unweighted, by how the run was steered",
        **provenance(str(Path(__file__).with_name("run.py"))),
        "steps": {"base": BASE_STEPS, "run": STEPS},
        "model": " ".join(MODEL),
        "widths": WIDTHS,
        "runs": dict(results),
    }
    write_json(out, result, lines="runs")
    text = table.page(result, plan)
    print(text)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    try:
        import picture
    except ImportError as error:
        print(f"no picture: {error}")
    else:
        picture.draw(plan, out.with_suffix(".png"))
