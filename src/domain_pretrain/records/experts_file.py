"""``domain_experts.json``: how often each domain was given to each expert, at the last logged step.

Numbers about it are in every line of ``domain_metrics.jsonl``; all of the counts would be megabytes
a line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from domain_pretrain.errors import LogFolderError, first_problem, shorten
from domain_pretrain.process import notice
from domain_pretrain.records.exporter import Exporter
from domain_pretrain.records.record import Experts, Record
from domain_pretrain.whole_file import whole_file

EXPERTS_FILE = "domain_experts.json"
DISCARDED_FILE = "domain_experts.discarded.json"
MOST = 2**18  # counts in the file, about a megabyte; then the domains with the fewest are left out

_Count = Annotated[int, Field(strict=True, ge=0)]


class ExpertsTable(BaseModel):
    """The file.

    Attributes:
        iteration: of the step.
        topk: experts that a token is given to.
        layers: that have experts; their numbers, from 1.
        domains: that had tokens, in the order of the run.
        load: by layer, domain and expert.
    """

    iteration: _Count
    topk: _Count
    layers: list[_Count]
    domains: list[str]
    load: list[list[list[_Count]]]

    @model_validator(mode="after")
    def _fits(self) -> ExpertsTable:
        rows = [len(layer) for layer in self.load]
        if len(rows) != len(self.layers) or set(rows) - {len(self.domains)}:
            raise ValueError("load should have a row for each domain of each layer")
        if len({len(row) for layer in self.load for row in layer}) > 1:
            raise ValueError("load should have as many experts in each row")
        return self


class ExpertsFile(Exporter):
    """Writes the file anew at every logged step that was counted.

    One of a step that this run goes back behind is moved aside, whether or not this run counts.

    Args:
        log_dir: the folder.
        after_iteration: where this run starts, as :meth:`.LinesFile.open` takes it.

    Raises:
        LogFolderError: it cannot be moved.
    """

    def __init__(self, log_dir: Path, after_iteration: int | None) -> None:
        self._path = log_dir / EXPERTS_FILE
        if after_iteration is None:
            return
        table = read_experts(log_dir)
        # At 0 there is no checkpoint, and nothing stays.
        if table is not None and (table.iteration > after_iteration or not after_iteration):
            try:
                self._path.replace(log_dir / DISCARDED_FILE)
            except OSError as error:
                raise _not_written(self._path, error) from error

    def line(self, record: Record) -> None:
        """Write; a reader finds the old file or the new one."""
        if record.experts is None:
            return
        table = table_of(record.experts, record.stats.names, record.iteration)
        try:
            with whole_file(self._path) as file:
                file.write(table.model_dump_json().encode())
        except OSError as error:
            raise _not_written(self._path, error) from error


def _not_written(path: Path, error: OSError) -> LogFolderError:
    return LogFolderError(f"cannot write to {path}: {error.strerror}")


def table_of(experts: Experts, names: tuple[str, ...], iteration: int) -> ExpertsTable:
    """What the file tells of a step."""
    tokens = experts.load.sum(axis=(0, 2))
    room = MOST // max(experts.load[:, 0].size, 1)
    most = np.argsort(-tokens, kind="stable")[: max(room, 1)]
    rows = sorted(row for row in most.tolist() if tokens[row])
    return ExpertsTable(
        iteration=iteration,
        topk=experts.topk,
        layers=[*experts.layers],
        domains=[names[row] for row in rows],
        load=experts.load[:, rows].tolist(),
    )


def read_experts(folder: Path) -> ExpertsTable | None:
    """What a run left; None where it counted nothing, or the file is not one of ours."""
    path = folder / EXPERTS_FILE
    try:
        return ExpertsTable.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = error.strerror or str(error)
    except ValidationError as error:
        problem = first_problem(error)
    notice(f"{path} is left out: {shorten(problem)}")
    return None
