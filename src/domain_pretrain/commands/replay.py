"""``domain-pretrain replay``: whether a jump of the loss came of its data, or of the model."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domain_pretrain.checkpoints.tracker import checkpoints_of
from domain_pretrain.commands.eval import add_run_flags, evaluate
from domain_pretrain.commands.report import find_metrics
from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.commands.trace import as_range, open_trace
from domain_pretrain.data.trace.suspects import rows_of, suspects_and_control
from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.found import find_checkpoint
from domain_pretrain.launch.evaluate import CONFIG, write_config
from domain_pretrain.launch.models import Checkpoint, find_models
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.reader import read_findings
from domain_pretrain.records.record import Finding
from domain_pretrain.report.replay import Pair, judge, replay_table
from domain_pretrain.yaml_file import as_yaml

MOST = 64  # suspects
SUSPECTS, CONTROL = "suspects", "control"
JUMPS = ("spike", "all_moved")
TAKES_WORDS = True  # behind --: Megatron's, as ``args.behind``


def add_parser(subparsers: Any) -> None:
    """Add the ``replay`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "replay",
        usage="domain-pretrain replay RUN [BEFORE AFTER] [--finding N | --iterations A:B] "
        "[--domain D] [--nproc N] [--script SCRIPT.py] [--out DIR] [--dry-run] "
        "[-- <megatron flags>]",
        description=(
            "Ask a checkpoint from before a jump of the loss, and one from after it, about the "
            "samples of the jump and as many from just before: was it the data, or the model?"
        ),
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run's --domain-log-dir")
    parser.add_argument(
        "places",
        nargs="*",
        type=Path,
        metavar="BEFORE AFTER",
        help="two checkpoints (the nearest on both sides of the jump, of RUN/checkpoints)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--finding",
        type=int,
        metavar="N",
        help="of the run's domain_events.jsonl, from 1 (the last spike or all_moved)",
    )
    what.add_argument("--iterations", type=as_range, metavar="A:B", help="without B; no finding")
    parser.add_argument("--domain", metavar="D", help="whose samples (the finding's; or all)")
    add_run_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate both, and print the table and the verdict."""
    if len(args.places) not in (0, 2):
        raise ConfigError("give two checkpoints, BEFORE and AFTER, or none")
    iterations, onset, domain = args.iterations, None, args.domain
    if iterations is None:
        finding = find_jump(read_findings(find_metrics(args.run_dir).parent), args.finding)
        print(f"{_name(finding)}: {finding.message}")
        first, stop = finding.evidence["iterations"]
        iterations, onset = (int(first), int(stop)), finding.evidence.get("onset")
        domain = domain or finding.domain
    onset = min(iterations[0] - 1, iterations[0] if onset is None else int(onset))
    places = args.places or around(args.run_dir, onset, iterations[1] - 1)
    with contextlib.redirect_stdout(sys.stderr):  # what others print
        trace = open_trace(args.run_dir)
        if domain is not None:
            trace.check_domain(domain)
        found = suspects_and_control(trace, iterations, onset, domain, MOST)
        rows = dict(zip((SUSPECTS, CONTROL), map(rows_of, found), strict=True))

    def prepare(out: Path) -> Sequence[Checkpoint]:
        file, config = out / "rows.json", out / "replay.yaml"
        file.write_text(json.dumps(rows), encoding="utf-8")
        probes = {"replay": {"rows": str(file.resolve())}}
        config.write_text(as_yaml({"evaluate": {"probes": probes}}), encoding="utf-8")
        write_config(config, out / CONFIG)
        return find_models(places, lambda place: place, every=False)

    console = plain_console()
    models = evaluate(args, prepare, console)
    if models:
        (before, first_found), (after, last_found) = models
        suspects, control = (_pair(first_found, last_found, name) for name in rows)
        console.print(replay_table((before, after), suspects, control))
        console.print(judge(suspects, control), soft_wrap=True)
    return 0


def find_jump(findings: Sequence[Finding], number: int | None) -> Finding:
    """The one that is asked about.

    Args:
        findings: of the run.
        number: of it, from 1; None: the last jump.

    Raises:
        ConfigError: there is none, or it is not of a window of training; names those there are.
    """
    traced = [number for number, one in enumerate(findings, 1) if "iterations" in one.evidence]
    if number is None:
        number = max((at for at in traced if findings[at - 1].rule in JUMPS), default=0)
    if number in traced:
        return findings[number - 1]
    known = "; ".join(f"{at}: {_name(findings[at - 1])}" for at in traced) or "none"
    asked = f"--finding {number}" if number else "the run has no finding of a jump, and"
    raise ConfigError(
        f"{asked} names no window of training: give --finding N (there are: {known}), or "
        "--iterations A:B"
    )


def _name(finding: Finding) -> str:
    whose = "" if finding.domain is None else f" in {finding.domain}"
    return f"{finding.rule}{whose} at iteration {finding.iteration:,}"


def around(run_dir: Path, onset: int, last: int) -> list[Path]:
    """The newest checkpoint up to ``onset``, and the oldest that has trained on ``last``.

    Raises:
        ConfigError: one of them is not there.
    """
    folder = find_checkpoint(run_dir).folder.parent
    there = checkpoints_of(folder)
    before = max((at for at in there if at <= onset), default=None)
    after = min((at for at in there if at >= last), default=None)
    if before is None or after is None:
        missing = f"up to {onset:,}" if before is None else f"from {last:,} on"
        raise ConfigError(
            f"{folder} has no checkpoint of iteration {missing}, only of "
            f"{', '.join(map(str, sorted(there))) or 'none'}: give BEFORE and AFTER"
        )
    return [there[before], there[after]]


def _pair(before: Evaluated, after: Evaluated, domain: str) -> Pair:
    one, other = (
        next(score for score in found.scores if score.domain == domain) for found in (before, after)
    )
    return one, other
