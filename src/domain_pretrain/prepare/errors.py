"""What stops a preparation, and what does not."""

from __future__ import annotations

from dataclasses import dataclass

from domain_pretrain.errors import DomainPretrainError


class PrepareError(DomainPretrainError):
    """The preparation cannot go on. The message says what was given, what is wrong, what to do."""


@dataclass(frozen=True)
class BadLine:
    """One line (Parquet: one row) that is left out of the corpus, and why. Lines count from 1."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"
