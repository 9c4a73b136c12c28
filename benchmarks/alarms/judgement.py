"""What the alarms of the runs have said, beside what they should have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from faults import FAULTS, KINDS, STEPS, Fault

from domain_pretrain.records.events_file import plain
from domain_pretrain.records.reader import read_findings
from domain_pretrain.records.record import Finding

NEAR = 25  # iterations after a fault in which a finding is about it


def judge(fault: Fault, run: Mapping[str, Any]) -> dict[str, Any]:
    """Of one run: whether alarm, domain, cause and documents are right, and how late it was."""
    found = [one for one in read_findings(Path(run["folder"])) if _is_about(fault, one)]
    right = [one for one in found if (one.rule, one.domain) == (fault.rule, fault.domain)]
    first = right[0] if right else None
    return {
        "alarm": first is not None,
        "domain": first is not None,
        "cause": first is not None and first.cause in fault.causes,
        "documents": None
        if not fault.documents
        else first is not None and _named(fault, first, run),
        "iteration": None if first is None else first.iteration,
        "message": "" if first is None else first.message,
    }


def _is_about(fault: Fault, finding: Finding) -> bool:
    return fault.at is None or fault.at <= finding.iteration <= fault.at + NEAR


def _named(fault: Fault, finding: Finding, run: Mapping[str, Any]) -> bool:
    """The worst document is one of the domain's, and of those that were spoilt or copied."""
    if not finding.documents:
        return False
    worst = finding.documents[0]
    right = Path(str(worst["prefix"])).name == fault.domain
    if run["garbage"]:
        return right and worst["document"] in run["garbage"]
    if fault.rule == "duplicate":
        return right and worst["copies"] > 1
    return right


def told(kind: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """All that the results keep of a run."""
    return {
        "seed": run["seed"],
        "seconds": run["seconds"],
        "judged": {one.title: judge(one, run) for one in FAULTS if one.kind == kind},
        "unexplained": [
            f"{one.rule} in {one.domain} at {one.iteration}" for one in others(kind, run)
        ],
        "findings": [plain(asdict(one)) for one in read_findings(Path(run["folder"]))],
    }


def others(kind: str, run: Mapping[str, Any]) -> list[Finding]:
    """Findings of a run that no planted fault explains."""
    planted = [fault for fault in FAULTS if fault.kind == kind]
    return [
        one
        for one in read_findings(Path(run["folder"]))
        if not any(_explains(fault, one) for fault in planted)
    ]


def _explains(fault: Fault, finding: Finding) -> bool:
    """Of the same domain; or, where all domains are concerned in the end, anything after it."""
    if fault.at is None:
        return finding.domain == fault.domain
    if fault.rule in ("all_moved", "nonfinite"):
        return finding.iteration >= fault.at
    return finding.domain == fault.domain and _is_about(fault, finding)


def markdown(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The tables of docs/alarms.md.

    Args:
        runs: of each kind, as :func:`told` has them.
    """
    lines = [
        "| planted | alarm | found | likely cause | documents | at iteration |",
        "|---|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        judged = [run["judged"][fault.title] for run in runs.get(fault.kind, ())]
        where = f" in `{fault.domain}`" if fault.domain else ""
        at = f", planted at {fault.at}" if fault.at else ""
        cells = [
            fault.title,
            f"`{fault.rule}`{where}",
            _of(one["alarm"] for one in judged),
            _of(one["cause"] for one in judged),
            _of(one["documents"] for one in judged) if fault.documents else "–",
            ", ".join(str(one["iteration"] or "–") for one in judged) + at,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| run | runs | iterations of each | findings that nothing planted explains |"]
    lines += ["|---|---|---|---|"]
    for kind in KINDS:
        found = [one for run in runs.get(kind, ()) for one in run["unexplained"]]
        count, more = len(runs.get(kind, ())), f": {'; '.join(found)}" if found else ""
        lines.append(f"| {kind} | {count} | {STEPS} | {len(found)}{more} |")
    return "\n".join(lines) + "\n"


def _of(right: Iterable[bool]) -> str:
    values = list(right)
    return f"{sum(values)} of {len(values)}" if values else "not run"
