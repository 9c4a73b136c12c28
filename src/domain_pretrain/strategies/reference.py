"""Losses to compare with, per domain: given, or taken from the metrics file of another run."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from domain_pretrain.errors import ConfigError
from domain_pretrain.records.reader import is_event, stream_lines
from domain_pretrain.rules.options import Options, check_domains
from domain_pretrain.stats import Average

# Part of a domain's tokens in the baseline run, counted from its end, whose mean is the reference.
LAST_PART = 0.1


def _check(value: Any) -> Any:
    if isinstance(value, (str, Path)):
        return Path(value)
    if not isinstance(value, dict):
        raise ValueError("should be losses by domain, or the path of a run's domain_metrics.jsonl")
    for name, loss in value.items():
        number = isinstance(loss, (int, float)) and not isinstance(loss, bool)
        if not (number and math.isfinite(loss)):
            raise ValueError(f"the loss of domain {name!r} should be a finite number")
    return value


# One key, two forms; the check above is the whole validation, so that errors name the one key.
Reference = Annotated[Any, BeforeValidator(_check)]


class Measured(dict[str, float]):
    """Losses of another run.

    Attributes:
        average: by which it took its means.
    """

    def __init__(self, losses: Mapping[str, float], average: Average) -> None:
        super().__init__(losses)
        self.average = average


def check_average(options: Options, average: Average, where: str) -> None:
    """Losses that are compared must be means of one kind.

    Args:
        options: of a rule, bound; those of its values count that another run measured.
        average: of this run.
        where: path of the options in the config, for messages.

    Raises:
        ConfigError: names the option.
    """
    for name in type(options).model_fields:
        given = getattr(options, name)
        if isinstance(given, Measured) and given.average != average:
            raise ConfigError(
                f"{where}.{name}: that run's losses are means over {given.average}s, and this "
                f"run's over {average}s (channel_loss.average): give the losses by domain, or a "
                "run of the same average"
            )


def resolve(reference: Any, names: tuple[str, ...], key: str) -> dict[str, float]:
    """Losses in nats of exactly these domains.

    Args:
        reference: losses by domain, or the path of a ``domain_metrics.jsonl`` (or its folder).
        names: the domains.
        key: path of the option in the config, for messages.

    Raises:
        ConfigError: a domain has no loss; a name is no domain (a *file* may hold further domains);
            the file cannot be read.
    """
    if not isinstance(reference, Path):
        check_domains(key, reference, names, complete=True)
        return {name: float(reference[name]) for name in names}
    found = final_losses(reference)
    losses = {name: loss for name, loss in found.items() if name in names}
    check_domains(f"{key} ({reference})", losses, names, complete=True)
    return Measured({name: losses[name] for name in names}, found.average)


def final_losses(path: Path) -> Measured:
    """Mean training loss of every domain over the last tenth of its tokens, nats.

    Σ sums / Σ tokens of whole lines, from the last one back; lines with a token of the domain that
    was not finite do not count for it. Per domain, so that a rare one gets its own last tenth. Of a
    run that took its means over samples, these means, as :func:`.reduced` takes them.
    """
    # Of a long run with many domains they are gigabytes as lines, and megabytes as numbers.
    sums: defaultdict[str, tuple[array[float], array[float]]]
    sums = defaultdict(lambda: (array("d"), array("d")))
    average: Average = "token"
    lines = 0
    for entry in stream_lines(path):
        if is_event(entry) or entry["split"] != "train":
            continue
        lines += 1
        for name, row in entry["domains"].items():
            average = "sample" if "sample_loss_sum" in row else "token"
            # Where a token was not finite, the file holds the sum of the others.
            loss_sum = None if row.get("nonfinite") else _loss_sum(row)
            if loss_sum is not None:
                sums[name][0].append(loss_sum)
                sums[name][1].append(row["tokens"])
    if not lines:
        raise ConfigError(f"{path}: no training losses in it; a reference needs a finished run")
    losses = {}
    for name, (loss_sums, counts) in sums.items():
        enough = LAST_PART * sum(counts)
        loss_sum = tokens = 0.0
        for s, n in zip(reversed(loss_sums), reversed(counts), strict=True):
            loss_sum, tokens = loss_sum + s, tokens + n
            if tokens >= enough:
                break
        if tokens:
            losses[name] = loss_sum / tokens
    return Measured(losses, average)


def _loss_sum(row: Mapping[str, Any]) -> float | None:
    """The loss of a line's domain times its tokens, by the average of its run; None: no sample."""
    if "sample_loss_sum" not in row:
        return float(row["loss_sum"])
    samples = row.get("samples")
    return row["sample_loss_sum"] / samples * row["tokens"] if samples else None
