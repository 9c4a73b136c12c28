"""Run after run, some at a time, each when what it starts from is there."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any

import corpora
from plan import Plan
from training import Run, result_of


def conduct(
    work: Path,
    only: list[str],
    jobs: int,
    end: float,
    kept: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Run what is not done, ``jobs`` at a time; none is begun after ``end``, of the monotonic
    clock. One that fails is told, and left out. ``kept`` are results of another machine."""
    data = work / "corpora"
    tokenizer = corpora.build(data)
    begun: set[str] = set()
    running: dict[Future[None], str] = {}

    def conducted(run: Run) -> None:
        try:
            result = result_of(run, data, tokenizer, work)
        except RuntimeError as error:
            print(f"{run.name}: {error}", file=sys.stderr, flush=True)
            return
        losses = "  ".join(f"{name} {loss:.4f}" for name, loss in result["test"].items())
        print(f"{run.name:<48} {losses}  ({result['seconds']:.0f} s)", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        while True:
            here = gather(work)
            left = [run for run in asked(only, here, kept) if run.name not in begun]
            while len(running) < jobs and time.monotonic() < end:
                models = here.keys() - running.values()
                ready = (run for run in left if run.base is None or run.base in models)
                if (run := next(ready, None)) is None:
                    break
                left.remove(run)
                begun.add(run.name)
                running[pool.submit(conducted, run)] = run.name
            if not running:
                return
            for one in wait(running, return_when=FIRST_COMPLETED).done:
                del running[one]
                one.result()  # what is not Megatron's failure ends the experiment


def asked(only: list[str], here: Mapping[str, Any], kept: Mapping[str, Any]) -> list[Run]:
    """The runs of the stages ``only`` but those that are kept, behind the bases whose models are
    kept nowhere."""
    stages = Plan({**here, **kept}).stages()
    runs = [run for stage in stages if stage in only for run in stages[stage]]
    runs = [run for run in runs if run.name not in kept]
    bases = {run.base for run in runs} - {None, *here, *(run.name for run in runs)}
    return [run for of in stages.values() for run in of if run.name in bases] + runs


def gather(work: Path) -> dict[str, Any]:
    """What is done, by the name of the run."""
    return {
        str(file.parent.relative_to(work)): json.loads(file.read_text())["result"]
        for file in sorted(work.glob("*/*/result.json"))
    }
