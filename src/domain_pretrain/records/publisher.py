"""The exporters of a run, in the order in which they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from domain_pretrain.errors import WriterError
from domain_pretrain.records.console import Console, say
from domain_pretrain.records.evaluations_file import EvaluationsFile
from domain_pretrain.records.events_file import EventsFile
from domain_pretrain.records.experts_file import ExpertsFile
from domain_pretrain.records.exporter import Exporter, MakeExporter, Publisher, Start, Tracer
from domain_pretrain.records.metrics_file import MetricsFile
from domain_pretrain.records.scalars import WandB
from domain_pretrain.records.tensorboard import TensorBoard
from domain_pretrain.rules.registry import Configured
from domain_pretrain.stats import Average


def open_publisher(
    log_dir: Path | None,
    tensorboard: Any | None,
    wandb: Any | None,
    average: Average,
    out: Callable[[str], None] = say,
    *,
    after_iteration: int | None,
    corpus_tokens: Mapping[str, float] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    others: Iterable[Configured[MakeExporter]] = (),
    more: Iterable[Exporter] = (),
    tracer: Tracer | None = None,
) -> Publisher:
    """Open everything that a run writes to.

    Args:
        log_dir: folder of ``domain_metrics.jsonl``; None writes no file.
        tensorboard: the host's ``SummaryWriter``, or None.
        wandb: the host's ``wandb`` module, or None.
        average: whether a domain's loss is the mean over tokens or over samples.
        out: takes the console's text.
        after_iteration: where this run starts, as :meth:`LinesFile.open` takes it.
        corpus_tokens: tokens of each domain's training data, as far as they are known.
        hyperparameters: of the host, by name.
        config: what the plugin's config says, by dotted key.
        others: exporters of other packages.
        more: further exporters, called last.
        tracer: of the documents behind findings.

    Raises:
        WriterError: ``log_dir`` cannot be used, or an exporter cannot be opened.
    """
    exporters: list[Exporter] = []
    if tensorboard is not None:
        exporters.append(
            TensorBoard(
                tensorboard,
                average,
                out,
                after_iteration=after_iteration,
                hyperparameters=hyperparameters or {},
                config=config or {},
            )
        )
    if wandb is not None:
        exporters.append(WandB(wandb, average, out))
    if log_dir is not None:
        # Before the console: what a person has read is in the file.
        exporters.append(
            MetricsFile(
                log_dir,
                average,
                after_iteration=after_iteration,
                corpus_tokens=corpus_tokens or {},
                train_iters=(hyperparameters or {}).get("train_iters"),
            )
        )
        exporters.append(EventsFile(log_dir, after_iteration))
        exporters.append(EvaluationsFile(log_dir, after_iteration))
        exporters.append(ExpertsFile(log_dir, after_iteration))
    exporters.append(Console(average, out))
    start = Start(after_iteration, log_dir, average)
    for one in others:
        try:
            exporters.append(one.rule(one.options, start))
        except Exception as error:
            raise WriterError(
                f"exporters.{one.name} cannot be opened: {type(error).__name__}: {error}"
            ) from error
    return Publisher([*exporters, *more], tracer)
