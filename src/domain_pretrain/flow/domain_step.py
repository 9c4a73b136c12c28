"""The step of a custom training loop: without Megatron, without a host's seams."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.moment import Moment
from domain_pretrain.flow.steer import Reweighting
from domain_pretrain.flow.step import Step
from domain_pretrain.flow.windows import Windows
from domain_pretrain.kernels.exactness.device_check import require_device
from domain_pretrain.records.exporter import Publisher
from domain_pretrain.stats import Average, Column, DomainStats
from domain_pretrain.strategies.section import parse_reweight
from domain_pretrain.watch import Known, Watch
from domain_pretrain.watch.section import Watching


class DomainStep(Step):
    """Channel loss and reweighting in a loop that calls it: open → loss → end_step (or close)."""

    _most_attempts = math.inf  # a loop of one's own may leave as many steps unfinished as it likes

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
        """For a custom training loop: one process, or data parallel over all processes.

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
        steering, agreed = None, ""
        if reweight is not None:
            checked = Reweighting.check(
                parse_reweight(reweight),
                names,
                average=average,
                tokens_per_step=tokens_per_step,
                pinned=pinned,
                floor=floor,
            )
            steering, agreed = checked.start(groups, device, None), checked.agreed()
        return cls(
            names,
            groups,
            device,
            publisher,
            steering,
            watch=Watch(Watching(), names, Known(average=average, pinned=frozenset(pinned))),
            agreed=agreed,
            allow_domain_change=allow_domain_change,
        )

    def loss(
        self, losses: torch.Tensor, loss_mask: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Count a training microbatch of a custom training loop; the loss to differentiate.

        Args:
            losses: ``[b, s]`` per-token losses, nats, with gradient.
            loss_mask: ``[b, s]``, 1 where a token counts; fractions are allowed.
            ids: integer ``[b]``, index of each sample's domain in ``names``.

        Returns:
            ``Σ m·mask·loss``, an fp32 scalar, m being the multiplier of the sample's domain (1
            where nothing reweights). Divide it by the tokens of the global batch.

        Raises:
            ValueError: mask and ids have other shapes, or ids are no integers.
            IntegrityError: there is not one loss for each token of the mask.
        """
        return self._train.loss(losses, loss_mask, ids)

    def end_step(self, *, skipped: bool = False) -> None:
        """End a step on every rank: what :meth:`close` does, unpublished.

        Args:
            skipped: no update was made of it (an overflow, say): the weights do not move on.
        """
        self._reduce()
        self._commit(None, Moment(0, 0, False, False, 0, skipped=skipped))
        for window in (Windows.SCALARS, Windows.LOG):
            self.windows.restart(window)

    def stats(self) -> DomainStats:
        """Exact global sums of the step that ended last, on every rank; synchronises.

        Raises:
            IntegrityError: in a step since the last reading an id was out of range or tokens are
                missing, or ranks have different multipliers; to name those, all ranks must be
                calling.
        """
        stats = self._read()
        self.windows.check()
        return stats

    def multipliers(self) -> dict[str, float]:
        """By domain, the mean multiplier of its tokens in the step that ended last; synchronises.

        Domains without tokens are left out.
        """
        layers = self._train.ledger.sums[:, :-1, Column.TOKENS].tolist()
        tokens = zip(self.names, layers[0], layers[-1], strict=True)
        return {name: weighted / counted for name, counted, weighted in tokens if counted}
