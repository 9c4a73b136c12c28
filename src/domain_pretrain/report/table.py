"""What became of every domain: the table at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from rich.table import Table

from domain_pretrain.errors import ConfigError
from domain_pretrain.json_file import read_json
from domain_pretrain.records.reader import domain_names
from domain_pretrain.stats import perplexity

CORPUS_TOKENS_FILE = "corpus_tokens.json"
_COUNTS = TypeAdapter(dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]])


@dataclass(frozen=True)
class Summary:
    """One domain over a run. A loss is None where there was no window; NaN where not finite.

    Attributes:
        tokens: training tokens consumed in this run.
        epochs: ``tokens`` divided by those of the domain's corpus; None where that is not known.
        start, end: training loss of its first and last window, nats.
        valid: loss of its last evaluation, nats.
    """

    domain: str
    tokens: float
    epochs: float | None
    start: float | None
    end: float | None
    valid: float | None

    @property
    def ppl(self) -> float | None:
        """Perplexity on the validation set where there is one, else in training."""
        loss = self.end if self.valid is None else self.valid
        return None if loss is None else perplexity(loss)


def corpus_tokens(folder: Path) -> Mapping[str, float] | None:
    """Tokens of each domain's training data, where the folder of a run says so.

    Raises:
        ConfigError: the file is there, and is not that.
    """
    path = folder / CORPUS_TOKENS_FILE
    if not path.is_file():
        return None
    try:
        return _COUNTS.validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{path} should hold the number of tokens of each domain: {first['msg']}"
        ) from None


def summarise(
    entries: Sequence[Mapping[str, Any]], corpus_tokens: Mapping[str, float] | None = None
) -> list[Summary]:
    """The lines of a metrics file, domain by domain.

    Args:
        entries: what :func:`~domain_pretrain.records.reader.read_metrics` returns.
        corpus_tokens: tokens in each domain's training data, for the epochs.
    """
    summaries = []
    for domain in domain_names(entries):
        here = [(entry["split"], entry["domains"].get(domain)) for entry in entries]
        train = [values for split, values in here if split == "train" and values]
        valid = [values for split, values in here if split == "valid" and values]
        tokens = sum(values["tokens"] for values in train)
        size = (corpus_tokens or {}).get(domain)
        summaries.append(
            Summary(
                domain,
                tokens,
                tokens / size if size else None,
                _loss(train[0]) if train else None,
                _loss(train[-1]) if train else None,
                _loss(valid[-1]) if valid else None,
            )
        )
    return summaries


def loss_table(summaries: Sequence[Summary], title: str | None = None) -> Table:
    """The table, without the columns that have nothing to say in this run."""
    epochs = any(summary.epochs is not None for summary in summaries)
    valid = any(summary.valid is not None for summary in summaries)
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("domain")
    table.add_column("tokens", justify="right")
    if epochs:
        table.add_column("epochs", justify="right")
    table.add_column("train loss\nstart → end", justify="right")
    if valid:
        table.add_column("valid\nloss", justify="right")
    table.add_column("valid\nppl" if valid else "train\nppl", justify="right")
    for summary in summaries:
        cells = [summary.domain, f"{summary.tokens:,.0f}"]
        if epochs:
            cells.append(_number(summary.epochs, ",.2f"))
        cells.append(f"{_number(summary.start)} → {_number(summary.end)}")
        if valid:
            cells.append(_number(summary.valid))
        shown = None if valid and summary.valid is None else summary.ppl
        table.add_row(*cells, _number(shown, ",.2f"))
    return table


def _loss(values: Mapping[str, Any]) -> float:
    return math.nan if values["loss"] is None else float(values["loss"])


def _number(value: float | None, spec: str = ".3f") -> str:
    if value is None:
        return "–"
    return "NaN" if math.isnan(value) else format(value, spec)
