"""A training step from batch to log: tap → loss → ledger → windows → publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from domain_pretrain.errors import ConfigError, IntegrityError
from domain_pretrain.flow.ledger import Groups, Ledger, Windows, check_conservation
from domain_pretrain.flow.loss import count_microbatch, weighted_loss
from domain_pretrain.flow.microbatch import Microbatch
from domain_pretrain.flow.publish import Publisher, Record, reweighted
from domain_pretrain.flow.steer import Steering
from domain_pretrain.flow.tap import BatchTap, Rows, Source
from domain_pretrain.stats import Split

STATE_VERSION = 1
# The rerun machine may run a step three times: first, again in place, again from a checkpoint.
MOST_ATTEMPTS = 4


@dataclass(frozen=True)
class Moment:
    """Where training stands after a step.

    Attributes:
        iteration: number of the step, from 1.
        consumed_samples: samples consumed by then, as the host counts them.
        log, scalars: whether the host prints a line / writes scalars at this step.
        microbatches: how many the step had per data-parallel rank.
        skipped: the optimizer skipped the update.
    """

    iteration: int
    consumed_samples: int
    log: bool
    scalars: bool
    microbatches: int
    skipped: bool = False


class DomainStep:
    """The plugin's side of one training process: what the seams of every host call.

    Every rank has one and calls its methods in the same order; only the ranks that count see
    batches and losses, and only the rank that owns the host's writers has a publisher.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        groups: Groups,
        device: torch.device,
        publisher: Publisher | None = None,
        steering: Steering | None = None,
        *,
        config_hash: str = "",
        allow_domain_change: bool = False,
    ) -> None:
        self.names = names
        self.groups = groups
        self.device = device
        self.publisher = publisher
        self.steering = steering
        weighted = steering is not None
        self.windows = Windows(names, device, layers=1 + weighted)
        self._training = Ledger(len(names), groups, device, weighted=weighted)
        self._evaluation = Ledger(len(names), groups, device)
        self._config_hash = config_hash
        self._allow_domain_change = allow_domain_change
        self._proven = False
        self._attempts = 0

    # A training step: open → microbatches → close.

    def open(self) -> None:
        """Start an attempt at a step; what an earlier attempt counted is forgotten.

        Raises:
            IntegrityError: so many attempts without a :meth:`close` that the host's train_step
                must be going past the plugin.
        """
        self._attempts += 1
        if self._attempts > MOST_ATTEMPTS:
            raise IntegrityError(
                f"{MOST_ATTEMPTS} training schedules ran, but no step was closed: the script calls "
                "a train_step of its own, past the plugin's seam; use Megatron's train loop"
            )
        self._training.open()

    def open_evaluation(self) -> None:
        """Start an evaluation."""
        self._evaluation.open()

    def wrap_forward_step(
        self, forward_step: Callable[..., Any], source: Source, *, training: bool
    ) -> Callable[..., Any]:
        """The host's ``forward_step_func`` with the tap before it and the sums behind it."""
        steering = self.steering if training else None

        def tapped_forward_step(data_iterator: Any, *args: Any, **kwargs: Any) -> Any:
            # Ranks that read no data (TP rank > 0, middle stages) have no iterator.
            tap = None if data_iterator is None else BatchTap(data_iterator)
            output, loss_func = forward_step(tap, *args, **kwargs)
            needed = self.groups.counts or (steering is not None and self.groups.last_stage)
            if not needed or not callable(loss_func):
                return output, loss_func
            return output, self._wrap_loss(loss_func, tap, source, steering, training)

        return tapped_forward_step

    def _wrap_loss(
        self,
        loss_func: Callable[..., Any],
        tap: BatchTap | None,
        source: Source,
        steering: Steering | None,
        training: bool,
    ) -> Callable[..., Any]:
        ledger = self._training if training else self._evaluation

        def counted_loss(output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("non_loss_data"):
                return loss_func(output, *args, **kwargs)
            rows = self._rows(tap, source, output.device, shared=steering is not None)
            microbatch = Microbatch.build(output, _loss_mask(loss_func), rows, self.groups)
            multipliers = steering.sample_multipliers(microbatch) if steering else None
            if self.groups.counts:
                # Before the host's own check for NaN, which raises without naming a domain.
                count_microbatch(ledger, microbatch, multipliers)
            result = loss_func(output, *args, **kwargs)
            if not isinstance(result, tuple) or len(result) != 3:
                raise IntegrityError(
                    "the script's loss function must return (loss_sum, num_tokens, report), as "
                    "Megatron's pretrain_gpt.py does since core 0.12; it returned "
                    f"{len(result) if isinstance(result, tuple) else type(result).__name__}"
                )
            if self.groups.counts:
                ledger.add_host(result[0], result[1])
            if multipliers is None:
                return result
            return (weighted_loss(microbatch, multipliers), *result[1:])

        return counted_loss

    def _rows(
        self, tap: BatchTap | None, source: Source, device: torch.device, *, shared: bool
    ) -> Rows:
        rows = None if tap is None else tap.rows(source, device)
        groups = self.groups
        if shared and groups.tensor_parallel is not None:
            return Rows.shared(
                rows,
                groups.micro_batch_size,
                device,
                group=groups.tensor_parallel,
                source=groups.tensor_source,
            )
        assert rows is not None  # this rank counts, so it reads data
        return rows

    def close(self, moment: Moment) -> None:
        """End a step, on every rank: reduce, check, add to the windows, publish."""
        self._attempts = 0
        ledger = self._training
        ledger.reduce()
        if moment.log or not self._proven:
            self._check(ledger, moment.microbatches)
        self.windows.add(ledger.sums, skipped=moment.skipped)
        if self.steering is not None and not moment.skipped:
            self.steering.commit(ledger.read(self.names)[0])
        # Every rank restarts its windows, so that every rank has the same state to checkpoint;
        # only the publisher's rank has to wait for the numbers.
        for window, due in ((Windows.SCALARS, moment.scalars), (Windows.LOG, moment.log)):
            if due and self.publisher is not None:
                self._publish(self.publisher, window, moment)
            if due:
                self.windows.restart(window)

    def close_evaluation(
        self, split: Split, iteration: int, consumed_samples: int, *, final: bool
    ) -> None:
        """End an evaluation, on every rank: reduce and publish."""
        self._evaluation.reduce()
        stats, host = self._evaluation.read(self.names)
        check_conservation(stats, host)
        if self.publisher is not None and host.microbatches:
            record = Record(split, iteration, consumed_samples, stats, final=final)
            self.publisher.scalars(record)
            self.publisher.line(record)

    def _check(self, ledger: Ledger, microbatches: int) -> None:
        stats, host = ledger.read(self.names)
        expected = microbatches * self.groups.dp_cp_size
        if host.microbatches != expected:
            raise IntegrityError(
                f"the plugin saw {host.microbatches} of the step's {expected} microbatch losses: "
                "the script's forward step or schedule goes past the plugin's seams"
            )
        check_conservation(stats, host)
        self._proven = True

    def _publish(self, publisher: Publisher, window: int, moment: Moment) -> None:
        publish = publisher.line if window == Windows.LOG else publisher.scalars
        stats, *weighted = self.windows.read(window)
        tokens, samples = self.windows.consumed()
        record = Record("train", moment.iteration, moment.consumed_samples, stats, tokens, samples)
        if self.steering is not None:
            record = reweighted(record, weighted[0], self.steering.diagnostics(stats))
        publish(record)

    def nonfinite_domains(self, *, training: bool) -> list[str]:
        """Domains with a non-finite loss on this rank in the present attempt; synchronises."""
        stats, _ = (self._training if training else self._evaluation).read(self.names)
        return [name for name, totals in stats if totals.nonfinite]

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Python primitives, the same on every rank."""
        return {
            "version": STATE_VERSION,
            "domains": list(self.names),
            "config_hash": self._config_hash,
            **self.windows.state_dict(),
            **({} if self.steering is None else {"reweight": self.steering.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, by domain name.

        Raises:
            ConfigError: the domain list differs and that was not allowed, or the state is newer.
        """
        if state["version"] > STATE_VERSION:
            raise ConfigError(
                f"the checkpoint's domain_pretrain state has version {state['version']}, this "
                f"installation reads up to {STATE_VERSION}: install a newer domain_pretrain"
            )
        old, new = set(state["domains"]), set(self.names)
        if old != new and not self._allow_domain_change:
            raise ConfigError(
                "the checkpoint was written with other domains: "
                f"gone {sorted(old - new) or 'none'}, new {sorted(new - old) or 'none'}; "
                "give --allow-domain-change to carry the others over by name, or --finetune to "
                "start counting afresh"
            )
        self.windows.load_state_dict(state)
        if self.steering is not None and "reweight" in state:
            self.steering.load_state_dict(state["reweight"])


def _loss_mask(loss_func: Callable[..., Any]) -> torch.Tensor:
    """The mask that the host's forward step bound into its loss partial."""
    args = getattr(loss_func, "args", ())
    mask = args[0] if args else getattr(loss_func, "keywords", {}).get("loss_mask")
    if not isinstance(mask, torch.Tensor):
        raise IntegrityError(
            "the script's forward step must return (output, partial(loss_func, loss_mask, …)), as "
            f"Megatron's pretrain_gpt.py does; it returned {loss_func!r}"
        )
    return mask
