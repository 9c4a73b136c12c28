"""A training step from batch to log: tap → loss → ledger → windows → publish."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from domain_pretrain.config import Reweight
from domain_pretrain.errors import ConfigError, IntegrityError
from domain_pretrain.flow import steer
from domain_pretrain.flow.forward import Forward
from domain_pretrain.flow.ledger import Groups, Ledger, Windows, check_conservation
from domain_pretrain.flow.publish import Publisher, Record, reweighted
from domain_pretrain.flow.steer import Steering
from domain_pretrain.flow.tap import Source
from domain_pretrain.kernels.domain_reduce import Backend, select
from domain_pretrain.kernels.domain_reduce.probe import require_device
from domain_pretrain.stats import Average, Column, DomainStats, Split
from domain_pretrain.strategies.options import parse

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
        backend: Backend | None = None,
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
        derived = steering is not None and steering.lasting is not None
        self.windows = Windows(names, device, layers=1 + weighted)
        backend = backend or select("auto", device)
        self._train = Forward(
            groups,
            Ledger(len(names), groups, device, weighted=weighted, derived=derived),
            backend,
            steering,
        )
        self._evaluate = Forward(groups, Ledger(len(names), groups, device), backend)
        self._config_hash = config_hash
        self._allow_domain_change = allow_domain_change
        self._proven = False
        self._attempts = 0

    @classmethod
    def create(
        cls,
        names: Sequence[str],
        reweight: Mapping[str, Any] | None = None,
        *,
        tokens_per_step: float,
        average: Average = "token",
        pinned: Collection[str] = (),
        floor: Mapping[str, float] | None = None,
        device: torch.device | str = "cpu",
        publisher: Publisher | None = None,
        allow_domain_change: bool = False,
    ) -> DomainStep:
        """For a training loop of one's own: one process, or data parallel over all processes.

        Args:
            names: the domains.
            reweight: the ``reweight`` section of the config; None counts, and changes nothing.
            tokens_per_step: tokens of a global batch, for the default EMA horizon.
            average: ``channel_loss.average`` of the config.
            pinned: domains whose multiplier is always 1.
            floor: smallest multipliers, by domain.
            device: where the losses live.
            publisher: takes what :meth:`close` publishes.
            allow_domain_change: load state of other domains, by name.

        Raises:
            ConfigError: names the key.
            UnsupportedError: the device cannot do what is needed of it.
        """
        device, names = torch.device(device), tuple(names)
        require_device(device, reweighting=reweight is not None)
        groups = Groups.data_parallel(device)
        steering = None
        if reweight is not None:
            steering = steer.build(
                parse(Reweight, reweight, "reweight"),
                names,
                groups,
                device,
                average=average,
                tokens_per_step=tokens_per_step,
                pinned=pinned,
                floor=floor,
            )
        return cls(
            names, groups, device, publisher, steering, allow_domain_change=allow_domain_change
        )

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
        self._train.ledger.open()

    def open_evaluation(self) -> None:
        """Start an evaluation."""
        self._evaluate.ledger.open()

    def wrap_forward_step(
        self, forward_step: Callable[..., Any], source: Source, *, training: bool
    ) -> Callable[..., Any]:
        """The host's ``forward_step_func`` with the tap before it and the sums behind it."""
        return (self._train if training else self._evaluate).wrap(forward_step, source)

    def loss(
        self, losses: torch.Tensor, loss_mask: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Count a training microbatch of a loop of one's own; the loss to differentiate.

        Args:
            losses: ``[b, s]`` per-token losses, nats, with gradient.
            loss_mask: ``[b, s]``, 1 where a token counts; fractions are allowed.
            ids: integer ``[b]``, index of each sample's domain in ``names``.

        Returns:
            ``Σ m·mask·loss``, an fp32 scalar, m being the multiplier of the sample's domain (1
            where nothing reweights). Divide it by the tokens of the global batch.
        """
        return self._train.loss(losses, loss_mask, ids)

    def end_step(self, *, skipped: bool = False) -> None:
        """End a step of a loop of one's own, on every rank: what :meth:`close` does, unpublished.

        Args:
            skipped: no update was made of it (an overflow, say): the weights do not move on.
        """
        self._train.ledger.reduce()
        self._commit(skipped=skipped)
        for window in (Windows.SCALARS, Windows.LOG):
            self.windows.restart(window)

    def stats(self) -> DomainStats:
        """Exact global sums of the step that ended last, on every rank; synchronises.

        Raises:
            IntegrityError: an id was out of range, or tokens are missing.
        """
        stats, host = self._train.ledger.read(self.names)
        check_conservation(stats, host)
        return stats

    def multipliers(self) -> dict[str, float]:
        """By domain, the mean multiplier of its tokens in the step that ended last; synchronises.

        Domains without tokens are left out.
        """
        layers = self._train.ledger.sums[:, :-1, Column.TOKENS].tolist()
        tokens = zip(self.names, layers[0], layers[-1], strict=True)
        return {name: weighted / counted for name, counted, weighted in tokens if counted}

    def close(self, moment: Moment) -> None:
        """End a step, on every rank: reduce, check, add to the windows, publish."""
        self._train.ledger.reduce()
        if moment.log or not self._proven:
            self._check(moment.microbatches)
        self._commit(skipped=moment.skipped)
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
        self._evaluate.ledger.reduce()
        stats, host = self._evaluate.ledger.read(self.names)
        check_conservation(stats, host)
        if self.publisher is not None and host.microbatches:
            record = Record(split, iteration, consumed_samples, stats, final=final)
            self.publisher.scalars(record)
            self.publisher.line(record)

    def _commit(self, *, skipped: bool) -> None:
        self._attempts = 0
        ledger = self._train.ledger
        if self.steering is not None and self.steering.lasting is not None:
            ledger.weigh(self.steering.lasting)
        self.windows.add(ledger.sums, skipped=skipped)
        if self.steering is not None and not skipped:
            self.steering.commit(lambda: ledger.read(self.names)[0])

    def _check(self, microbatches: int) -> None:
        stats, host = self._train.ledger.read(self.names)
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
        stats, _ = (self._train if training else self._evaluate).ledger.read(self.names)
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
