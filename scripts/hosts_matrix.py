"""What ``make hosts`` runs, and the page that it writes: docs/hosts-matrix.md.

``plan CHECKOUTS`` prints a line per host: name, folder (or ``wheel:SERIES``), environment,
requirements. An environment is named by its Python, and by its PyTorch where that is not the
newest that the host runs with: ``3.12``, ``3.10-torch2.4``.
``report RESULTS`` makes the page of pytest's own JUnit files and fails unless every check passed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

from domain_pretrain.hosts.markdown import table
from domain_pretrain.hosts.versions import VERSIONS, find, host_version

LAYOUTS = ("one", "DP2", "TP2", "PP2", "PP2xVPP2", "CP2")
# Property of the test suite → head of its column.
FACTS = {
    "host": "host",
    "python": "Python",
    "torch": "PyTorch",
    "seams": "seams",
    "seconds": "seconds",
}
# test_<name> → title, and what has to hold.
CHECKS = {
    "channel_loss": (
        "**C**hannel loss",
        "every domain's Σ mask·loss and tokens are the float64 sums over the losses that the ranks "
        "computed; together they are the host's `lm loss`; and they are those of one process",
    ),
    "gradients": (
        "**G**radients",
        "under reweighting every parameter's gradient is what autograd makes of the formula, in "
        "float64 on one process; relative error ≤ 1e-5",
    ),
    "off_is_off": (
        "**O**ff is off",
        "with channel loss, losses, gradient norms, evaluations, weights and optimizer states are "
        "those of the host alone, bit for bit; with dropout",
    ),
    "resume": (
        "**R**esume",
        "from the last checkpoint, in the folder that a crash two steps later leaves: metrics "
        "file, gradient norms and final checkpoint of the unbroken run, bit for bit; reweighted",
    ),
    "evaluation": (
        "**E**valuation",
        "every domain's validation and test loss at the host's own points: adds up to what the "
        "host printed, and equals one process",
    ),
}

PAGE = """\
<!-- Written by scripts/test_hosts.sh: `make hosts CHECKOUTS=dir` -->
# Host matrix

**{passed} of {total} checks passed** on {hosts} hosts. Measured on {date}, commit {commits},
with [test_hosts.py](../tests/e2e/test_hosts.py): real training on the CPU over gloo. A checkout ran
its own unmodified `pretrain_gpt.py`; a wheel, which has none, the built-in entry. To save time,
ranks are forked from a process that has imported PyTorch; each imports Megatron and the plugin
itself.

{matrix}

`seams`: how many places of the source fit, and how long it took to read them. In a layout, one
letter for each check that passed, ✗ before one that did not:

{checks}

`one` is the single process that the layouts are compared with. Under CP the host alone trains on a
single corpus, because since 0.18 it ends in an error on a blend; with the plugin it trains on the
blend.

{notes}## Run it

```bash
cd Megatron-LM  # a clone
for v in 0.12.3 0.13.1 0.14.0 0.15.3 0.16.1 0.17.1 0.18.2 0.19.0; do
  git worktree add ../checkouts/$v core_v$v
done
git worktree add --detach ../checkouts/main main
```

```bash
make hosts CHECKOUTS=../checkouts
```

The versions are read from the sources. Each host gets an environment with the Python and PyTorch of
its row in [Supported hosts](hosts.md), made once in `.hosts`; the first time that takes some
gigabytes. {oldest} runs once more, with PyTorch {torch}, the oldest that the package admits.
[test_hosts.sh](../scripts/test_hosts.sh) says how to name another folder, use environments of your
own, or choose the wheels. The exit code is 0 only if everything passed.
"""


@dataclass
class Result:
    """What became of one host.

    Attributes:
        name: its folder, or ``wheel:SERIES``.
        outcomes: (check, layout) → why it did not pass; empty where it did.
        facts: what the tests said of themselves: versions of host, Python and PyTorch.
        commit: of this repository, when they ran.
        problem: why nothing was run.
    """

    name: str
    outcomes: dict[tuple[str, str], str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    commit: str = ""


def plan(checkouts: Path, wheels: list[str]) -> Iterator[str]:
    """A line per host, in the order of versions; each has a row in the table of versions.

    The oldest PyTorch has a line of its own, where a checkout of its version is at hand.
    """
    found = []
    for root in sorted(checkouts.glob("*/megatron")):
        if (root / "core" / "package_info.py").is_file():
            found.append((host_version(root), root.parent))
    if not found:
        sys.exit(f"no Megatron-LM checkout (DIR/*/megatron/core/package_info.py) in {checkouts}")
    for version, folder in sorted(found):
        row = find(version)
        if row is None:
            sys.exit(f"{folder}: megatron.core {version} is not in hosts/versions.py")
        yield f"{folder.name} {folder} {row.tested_python} {' '.join(row.requirements)}"
        if row.oldest_torch:
            name = f"{folder.name}-torch{row.oldest_torch}"
            environment = f"{row.tested_python}-torch{row.oldest_torch}"
            requirements = " ".join((f"torch=={row.oldest_torch}.*", *row.packages))
            yield f"{name} {folder} {environment} {requirements}"
    for row in VERSIONS:
        if row.series in wheels:
            requirements = " ".join(row.requirements)
            yield f"wheel-{row.series} wheel:{row.series} {row.tested_python} {requirements}"


def read(name: str, folder: Path) -> Result:
    """One host's result, of the files that its tests left."""
    result, report = Result(name), folder / f"{name}.xml"
    result.commit = (folder / f"{name}.commit").read_text().strip()
    if not report.is_file():
        error = folder / f"{name}.error"
        text = error.read_text(encoding="utf-8") if error.is_file() else ""
        lines = [line for line in reversed(text.splitlines()) if line]
        errors = [line for line in lines if line.lower().startswith("error")]
        result.problem = (errors or lines or ["the tests did not run"])[0]
        return result
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    for entry in suite.iterfind("properties/property"):
        result.facts[entry.attrib["name"]] = entry.attrib["value"]
    result.facts["seconds"] = f"{float(suite.attrib['time']):.0f}"
    for case in suite.iter("testcase"):
        check, _, layout = (
            case.attrib["name"].removesuffix("]").partition("[")
        )  # test_CHECK[LAYOUT]
        bad = next((e for e in case if e.tag in ("failure", "error", "skipped")), None)
        why = "" if bad is None else bad.attrib.get("message", "").split("\n")[0] or bad.tag
        result.outcomes[check.removeprefix("test_"), layout] = why
    if not result.outcomes:
        result.problem = "pytest found no test"
    return result


def cell(result: Result, layout: str) -> str:
    """The letters of one host and layout."""
    letters = []
    for check in CHECKS:
        if (check, layout) in result.outcomes:
            mark = "✗" if result.outcomes[check, layout] else ""
            letters.append(mark + check[0].upper())
    return " ".join(letters)


def render(results: list[Result]) -> str:
    """The page."""
    rows, notes = [], []
    for result in results:
        wheel = result.name.startswith("wheel-")
        name = result.facts.get("host", result.name.removeprefix("wheel-"))
        name += " (main)" if name.startswith(f"{VERSIONS[-1].series}.") else ""
        host = f"{'wheel' if wheel else 'checkout'} {name}"
        facts = [result.facts.get(fact, "–") for fact in FACTS if fact != "host"]
        cells = (cell(result, layout) or "not run" for layout in LAYOUTS)
        rows.append((host, *facts, *cells))
        if result.problem:
            notes.append(f"* {host}: nothing was run: {result.problem}")
        notes += [
            f"* {host}, {layout or 'source'}, {check.replace('_', ' ')}: `{why}`"
            for (check, layout), why in result.outcomes.items()
            if why
        ]
    tested = {".".join(result.facts.get("host", "").split(".")[:2]) for result in results}
    missing = [row.series for row in VERSIONS if row.series not in tested]
    if missing:
        notes.append(f"* Not tested: {', '.join(missing)}")
    outcomes = [why for result in results for why in result.outcomes.values()]
    (oldest,) = [row for row in VERSIONS if row.oldest_torch]
    return PAGE.format(
        oldest=oldest.series,
        torch=oldest.oldest_torch,
        date=datetime.now(timezone.utc).date(),
        commits=" and ".join(sorted({result.commit for result in results})),
        passed=outcomes.count(""),
        total=len(outcomes),
        hosts=sum(not result.problem for result in results),
        matrix=table((*FACTS.values(), *LAYOUTS), rows),
        checks=table(("check", "what has to hold"), CHECKS.values()),
        notes="## Not passed\n\n" + "\n".join(notes) + "\n\n" if notes else "",
    )


def report(folder: Path) -> int:
    """Print the page; 0 only if every host ran every check, and all of them passed."""
    names = [line.split()[0] for line in (folder / "plan").read_text().splitlines()]
    results = [read(name, folder) for name in names]
    sys.stdout.buffer.write(render(results).encode())  # whatever the locale
    return int(any(result.problem or any(result.outcomes.values()) for result in results))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    planning = commands.add_parser("plan")
    planning.add_argument("checkouts", type=Path)
    planning.add_argument("--wheels", default=" ".join(v.series for v in VERSIONS if v.wheel))
    commands.add_parser("report").add_argument("results", type=Path)
    args = parser.parse_args()
    if args.command == "report":
        return report(args.results)
    print(*plan(args.checkouts, args.wheels.split()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
