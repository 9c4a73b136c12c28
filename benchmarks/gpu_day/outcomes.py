"""A pytest plugin: what became of each test, as JSON after each; nothing but skips is "not run"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from written import write_json

from gpu_day.runner import NOT_RUN


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="JSON file of what became of each test")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes(config.getoption("--outcomes")))


class Outcomes:
    """Collects the reports."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the call's outcome, or that of a set-up or a tear-down that did not pass."""
        if report.when != "call" and report.passed:
            return
        why = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            why = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            why = str(getattr(report.longrepr, "reprcrash", None) or report.longrepr)
        entry = {"outcome": report.outcome, "seconds": report.duration, "why": why[:500]}
        self._tests[report.nodeid] = entry
        write_json(self._path, {"tests": self._tests})

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        outcomes = {test["outcome"] for test in self._tests.values()}
        if outcomes == {"skipped"} and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = NOT_RUN  # type: ignore[assignment]

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """The last line says why nothing ran."""
        reasons = {test["why"] for test in self._tests.values()}
        if {test["outcome"] for test in self._tests.values()} == {"skipped"}:
            print("; ".join(sorted(reasons)))
