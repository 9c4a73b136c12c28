"""``domain_evaluations.jsonl``: what probes found, a line for each point of the run."""

from __future__ import annotations

from pathlib import Path

from domain_pretrain.records.evaluated import EVALUATIONS_FILE, Evaluated
from domain_pretrain.records.exporter import Exporter
from domain_pretrain.records.writer import LinesFile, check_log_dir


class EvaluationsFile(Exporter):
    """Appends a line for each; a run without probes makes no file.

    Args:
        log_dir: the folder; made where it does not exist.
        after_iteration: where this run starts, as :meth:`LinesFile.open` takes it.

    Raises:
        LogFolderError: the folder cannot be used.
    """

    def __init__(self, log_dir: Path, after_iteration: int | None) -> None:
        check_log_dir(log_dir)
        self._path = log_dir / EVALUATIONS_FILE
        self._after_iteration = after_iteration
        # One that is there may hold what this run goes back behind, with or without probes.
        self._file = self._open() if self._path.exists() else None

    def _open(self) -> LinesFile:
        return LinesFile.open(self._path, self._after_iteration)

    def scores(self, evaluated: Evaluated) -> None:
        """Append."""
        self._file = self._file or self._open()
        self._file.append(evaluated.dump())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
