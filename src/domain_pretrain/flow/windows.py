"""Sums over the steps of a logging window, and since the start."""

from __future__ import annotations

from typing import Any

import torch

from domain_pretrain.flow.conservation import HostSums, check_conservation
from domain_pretrain.flow.ledger import TOTALS, Ledger
from domain_pretrain.stats import SCALE, Column, DomainStats


class Windows:
    """Sums since the last console line, since the last TensorBoard point, and since the start.

    The device keeps ``int64 [3, L, D + 1, len(Column)]`` with the ledger's L layers; a step is
    added by one operation. Consumed totals move to Python integers whenever they are read, so that
    they never overflow; what the host counted meanwhile lies beside them, and must be the same.
    """

    LOG, SCALARS, CONSUMED = range(3)

    def __init__(
        self,
        names: tuple[str, ...],
        device: torch.device,
        *,
        layers: int = 1,
        host_repeats: int = 1,
    ) -> None:
        self.names = names
        shape = (3, layers, len(names) + 1, len(Column))
        self._sums = torch.zeros(shape, dtype=torch.int64, device=device)
        self._host = torch.zeros(TOTALS, dtype=torch.int64, device=device)  # since the last check
        self._host_repeats = host_repeats
        self._microbatches: int | None = 0  # that there must have been; None: nobody knows
        self._tokens = [0] * len(names)  # fixed point, SCALE[Column.TOKENS]
        self._samples = [0] * len(names)

    def add(self, step: Ledger, microbatches: int | None, *, skipped: bool) -> None:
        """Add a step's global sums.

        A step whose update was skipped (overflow) consumed its data, but is not in the host's
        average either.

        Args:
            step: reduced.
            microbatches: how many it must have had on all ranks; None if that is not known.
            skipped: whether the update was.
        """
        if skipped:
            self._sums[self.CONSUMED] += step.sums
        else:
            self._sums += step.sums
        self._host += step.host
        if self._microbatches is None or microbatches is None:
            self._microbatches = None
        else:
            self._microbatches += microbatches

    def read(self, window: int) -> list[DomainStats]:
        """The sums of a window, a DomainStats for each layer; synchronises with the device."""
        layers = self._sums[window].cpu().numpy().copy()
        return [DomainStats(self.names, layer) for layer in layers]

    def restart(self, window: int) -> None:
        """Start a window anew."""
        self._sums[window].zero_()

    def check(self) -> None:
        """Every step since the last check must have lost nothing; synchronises with the device.

        Raises:
            IntegrityError: see :func:`.check_conservation`; on every rank alike.
        """
        stats = self.read(self.CONSUMED)[0]
        host = HostSums.of(self._host.tolist(), self._host_repeats)
        check_conservation(stats, host, self._microbatches)
        for index, row in enumerate(stats.sums[:-1]):
            self._tokens[index] += int(row[Column.TOKENS])
            self._samples[index] += int(row[Column.SAMPLES])
        self.restart(self.CONSUMED)
        self._host.zero_()
        self._microbatches = 0

    def consumed(self) -> tuple[dict[str, float], dict[str, int]]:
        """Tokens and samples per domain since training began, after :meth:`check`."""
        tokens = {
            name: count / SCALE[Column.TOKENS]
            for name, count in zip(self.names, self._tokens, strict=True)
        }
        return tokens, dict(zip(self.names, self._samples, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Python primitives, by domain name; the same on every rank.

        Raises:
            IntegrityError: what would be saved is not whole.
        """
        self.check()
        open_sums = self._sums[: self.CONSUMED].cpu()
        return {
            "consumed": {
                name: {"tokens": tokens, "samples": samples}
                for name, tokens, samples in zip(
                    self.names, self._tokens, self._samples, strict=True
                )
            },
            "windows": {
                name: open_sums[:, :, index].tolist() for index, name in enumerate(self.names)
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore by name; a domain that the state does not know starts at zero."""
        self._sums.zero_()
        self._host.zero_()
        self._microbatches = 0
        for index, name in enumerate(self.names):
            consumed = state["consumed"].get(name, {"tokens": 0, "samples": 0})
            self._tokens[index] = int(consumed["tokens"])
            self._samples[index] = int(consumed["samples"])
            if name in state["windows"]:
                # Where the run before did not reweight, its multipliers were one: the unweighted
                # layer is broadcast to both.
                window = torch.tensor(state["windows"][name], dtype=torch.int64)
                layers = self._sums.shape[1]
                self._sums[: self.CONSUMED, :, index] = window[:, :layers].to(self._sums.device)
