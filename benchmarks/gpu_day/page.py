"""One Markdown page of what the steps have written, whatever is missing.

python benchmarks/gpu_day/page.py FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_day.steps import STEPS, Step

NAME = "page.md"
Number = Callable[..., str]


def write(folder: Path) -> None:
    """Make the page anew."""
    new = folder / f"{NAME}.new"
    new.write_text(render(folder), encoding="utf-8")
    new.replace(folder / NAME)


def render(folder: Path) -> str:
    """The page of a folder of results."""
    records = {step.name: read(folder / f"{step.name}.run.json") for step in STEPS}
    rehearsal = True in kinds(folder)
    parts = [heading(records, rehearsal), summary(records, rehearsal)]
    for step in STEPS:
        parts.append(section(step, records[step.name], read(folder / f"{step.name}.json")))
    return "\n\n".join(parts) + "\n"


def kinds(folder: Path) -> set[bool]:
    """Whether the steps in a folder were rehearsed."""
    records = (read(folder / f"{step.name}.run.json") for step in STEPS)
    return {record["rehearsal"] for record in records if record}


def read(path: Path) -> Any:
    """The content of a JSON file; None where there is none, or it is not one."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def heading(records: dict[str, Any], rehearsal: bool) -> str:
    """Where the page comes from."""
    keys = ("gpu", "commit", "torch", "python", "date")
    found = {
        key: sorted({record[key] for record in records.values() if record and record.get(key)})
        for key in keys
    }
    if rehearsal:
        return (
            "# A rehearsal of the GPU day, on a CPU\n\n"
            "**There was no GPU.** It shows that every step starts, ends and is told, in small, "
            "on a CPU; what was measured there is left out, as (CPU).\n\n"
            f"Commit {', '.join(found['commit'])}."
        )
    listed = "\n".join(
        f"* {key}: {', '.join(values) or 'unknown'}" for key, values in found.items()
    )
    return f"# The GPU day\n\n{listed}"


def summary(records: dict[str, Any], rehearsal: bool) -> str:
    """One line a step."""
    number = numbers(rehearsal)
    rows = []
    for step in STEPS:
        record = records[step.name]
        rows.append(
            (
                f"[{step.name}](#{step.name})",
                step.title,
                outcome(record),
                number((record or {}).get("seconds"), ".0f"),
            )
        )
    return table(("step", "question", "outcome", "seconds"), rows)


def outcome(record: dict[str, Any] | None) -> str:
    """What became of a step, with the reason."""
    if record is None:
        return "not begun"
    if record["state"] == "running":
        return "cut off: it began, and nobody wrote down its end"
    state, reason = record["state"], record.get("reason")
    if state == "not run" and record["rehearsal"]:
        state = "needs a GPU"
    return f"{state}: {reason}" if reason else state


def section(step: Step, record: dict[str, Any] | None, data: Any) -> str:
    """What a step was, how it ended, and its numbers as far as it came."""
    parts = [f"## {step.name}", f"{step.title} **{outcome(record)}**"]
    if record is not None:
        where = "" if record["rehearsal"] else f" on {record['gpu']}, commit {record['commit']}"
        parts.append(f"`{record['command']}`{where}")
    if data is not None:
        number = numbers((record or {}).get("rehearsal", False))
        try:
            parts.append(BODIES[step.name](data, number))
        except Exception as error:  # the others' numbers are to be shown whatever this one wrote
            parts.append(f"{step.name}.json is not what this page reads: {error!r}")
    if record is not None and record.get("tail") and record["state"] != "not run":
        parts.append("\n".join(["```text", *record["tail"], "```"]))
    return "\n\n".join(part for part in parts if part)


def numbers(hidden: bool) -> Number:
    """A formatter: of nothing "–", and of what a CPU measured in a rehearsal no figure at all."""

    def number(value: float | None, spec: str = ".2f", unit: str = "") -> str:
        if value is None:
            return "–"
        return "(CPU)" if hidden else f"{value:{spec}}{unit}"

    return number


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def tests(data: dict[str, Any], number: Number) -> str:
    """Counts, and what failed or was skipped, with the reasons."""
    found = data["tests"]
    counts = Counter(test["outcome"] for test in found.values())
    lines = [", ".join(f"{count} {name}" for name, count in sorted(counts.items()))]
    lines += [
        f"* failed: `{name}`: {test['why']}"
        for name, test in found.items()
        if test["outcome"] == "failed"
    ]
    skipped = Counter(test["why"] for test in found.values() if test["outcome"] == "skipped")
    lines += [f"* {count} skipped: {why}" for why, count in skipped.items()]
    return "\n".join([lines[0], "", *lines[1:]]).strip()


def launches(data: dict[str, Any], number: Number) -> str:
    """Names by row."""
    rows = [
        (row["what"], str(len(row["names"])), ", ".join(f"`{n}`" for n in row["names"]))
        for row in data["rows"]
    ]
    return table(("a microbatch", "launches", "which"), rows)


KERNEL_SHAPE = ("b", "s", "D", "ids")
WAYS = (("", "Device time"), (", with launch", "With launch"), (", graph", "In a graph"))


def kernels(data: dict[str, Any], number: Number) -> str:
    """Our time, and how many times as long the others take, in each way of timing."""
    parts = []
    for suffix, title in WAYS:
        found = [row for row in data["rows"] if f"{own(row)}{suffix}" in row]
        if not found:
            continue
        mine = own(found[0])
        others = [key for key in found[0] if is_way(key, suffix) and key != f"{mine}{suffix}"]
        head = (
            *KERNEL_SHAPE,
            f"{mine}, µs",
            *(f"{key.removesuffix(suffix)} ÷ ours" for key in others),
        )
        rows = [
            [
                *(str(row[key]) for key in KERNEL_SHAPE),
                number(row[f"{mine}{suffix}"], ".1f"),
                *(number(row[key] / row[f"{mine}{suffix}"]) for key in others),
            ]
            for row in found
        ]
        parts += [f"{title if mine == 'cuda' else 'CPU time'}:", table(head, rows)]
    if bandwidth := data.get("bandwidth"):
        copy = number(bandwidth["copy_bytes_per_s"] / 1e12, ".2f", " TB/s")
        shares = [
            f"{name.removesuffix(', share of copy')} {number(100 * value, '.0f', ' %')}"
            for name, value in bandwidth.items()
            if name != "copy_bytes_per_s"
        ]
        parts.append(
            f"16M tokens, replayed: a copy moves {copy}; share of it: {'; '.join(shares)}."
        )
    return "\n\n".join(parts)


def own(row: dict[str, Any]) -> str:
    """The column that is ours."""
    return "cuda" if "cuda" in row else "reference"


def is_way(key: str, suffix: str) -> bool:
    """Whether a column is timed in this way."""
    if key in KERNEL_SHAPE or key.endswith("between matmuls"):
        return False
    if suffix:
        return key.endswith(suffix)
    return not any(key.endswith(other) for other, _ in WAYS if other)


def demo(data: dict[str, Any], number: Number) -> str:
    """Each domain's loss at the start and the end of each phase."""
    rows = [
        (phase, str(found["iteration"]), domain, number(start, ".3f"), number(end, ".3f"))
        for phase, found in data["phases"].items()
        for domain, (start, end) in found["domains"].items()
    ]
    return table(("phase", "iterations", "domain", "loss at first, nats", "at last"), rows)


def step_time(data: dict[str, Any], number: Number) -> str:
    """The ratio, its interval and the host's waits."""
    wall, waits = data["wall"], data["host_syncs"]
    low, high = wall["ratio_interval_95"]
    more = waits["with"] - waits["without"]
    rows = [
        ("pairs of steps", str(wall["pairs"])),
        ("step without the plugin", number(wall["step_ms_without"], ".1f", " ms")),
        ("step with it", number(wall["step_ms_with"], ".1f", " ms")),
        ("with / without", number(wall["ratio_median"], ".4f")),
        ("its 95 % interval", f"{number(low, '.4f')} to {number(high, '.4f')}"),
        ("host syncs more in a step with it", number(more, ".0f")),
    ]
    return table(("what", "value"), rows) + f"\n\nModel: `{data['flags']}`"


def profile(data: dict[str, Any], number: Number) -> str:
    """Launches, device time and waits of a step, and what the plugin adds."""
    kinds = [name for name in ("with", "without") if name in data]
    rows = [
        (
            f"{name} the plugin",
            number(data[name]["launches"], ".0f"),
            number(data[name]["device_us"] / 1e3, ".2f", " ms"),
            number(data[name]["waits"], ".0f"),
        )
        for name in kinds
    ]
    parts = [
        f"Counted: {data['counted']}.",
        table(("a step", "launches", "device time", "waits"), rows),
    ]
    for key, title in (("more_with", "More with the plugin"), ("more_without", "Fewer with it")):
        if key in data:
            names = ", ".join(f"`{name}` {number(count, 'd')}" for name, count in data[key].items())
            parts.append(f"{title}: {names or 'nothing'}.")
    return "\n\n".join(parts)


def graph(data: dict[str, Any], number: Number) -> str:
    """Whether both runs agree."""
    if "tokens_equal" not in data:
        done = ", ".join(name for name in ("eager", "graph") if name in data) or "none"
        return f"Runs that ended: {done}."
    difference = number(data["largest_difference_nats"], ".2e")
    return (
        f"Tokens of {data['iterations']} steps equal: {'yes' if data['tokens_equal'] else 'no'}; "
        f"largest difference of a loss {difference} nats (at most {data['tolerance_nats']})."
    )


BODIES: dict[str, Callable[[Any, Number], str]] = {
    "tests": tests,
    "launches": launches,
    "kernels": kernels,
    "demo": demo,
    "step-time": step_time,
    "step-time-reweight": step_time,
    "profile": profile,
    "graph": graph,
    "sanitizer": tests,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path, help="what scripts/gpu_day.sh --out has filled")
    given = parser.parse_args().folder
    if not kinds(given):
        parser.error(f"{given}: no step has written there; name the folder of a GPU day")
    write(given)
