"""Loss and token share of every domain, remembered over steps."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from domain_pretrain.rules import state
from domain_pretrain.stats import Average, DomainStats
from domain_pretrain.strategies.observation import Array, Mask

# Steps of one domain's tokens that the default horizon spans.
HORIZON_STEPS = 16


def default_horizon(tokens_per_step: float, domains: int) -> float:
    """Tokens of one domain in :data:`HORIZON_STEPS` steps, were all domains equally frequent."""
    return HORIZON_STEPS * tokens_per_step / domains


def reduced(stats: DomainStats, average: Average = "token") -> tuple[Array, Array]:
    """``(loss_sum, tokens)`` ``[D]`` of a step, as :meth:`Ema.fold` takes them.

    A domain with a non-finite loss has NaN as its sum. With ``average="sample"`` the sum is the
    mean over samples times the tokens, so that the quotient is the mean the user chose.
    """
    loss_sum, tokens = np.zeros(len(stats.names)), np.zeros(len(stats.names))
    rows = {name: row for row, name in enumerate(stats.names)}
    for name, totals in stats:
        row = rows[name]
        tokens[row] = totals.tokens
        if totals.nonfinite:
            loss_sum[row] = np.nan
        elif average == "token":
            loss_sum[row] = totals.loss_sum
        else:
            loss_sum[row] = totals.loss(average) * totals.tokens
    return loss_sum, tokens


@dataclass(frozen=True)
class Ema:
    """Token-weighted exponential averages; sums and counts, divided when read.

    With n tokens of domain d in a step and horizon H (tokens)::

        S_d ← S_d·exp(−n/H) + Σ loss        N_d ← N_d·exp(−n/H) + n        L_d = S_d / N_d

    So every token has the same weight when it comes and loses it as *its own domain's* tokens pass:
    a rare domain is not forgotten while it is absent, and all estimates rest on about H tokens.
    There is no start-up bias to correct. H → ∞ is the plain mean over all tokens.
    The share forgets over D·H tokens of any domain.

    Attributes:
        loss_sum: ``[D]``, S.
        loss_tokens: ``[D]``, N.
        share_tokens: ``[D]``, decayed tokens on the common clock.
        consumed: ``[D]``, tokens so far, never decayed.
        steps: ``[D]``, steps that were folded in: 0 means never seen.
    """

    loss_sum: Array
    loss_tokens: Array
    share_tokens: Array
    consumed: Array
    steps: Array

    @classmethod
    def empty(cls, domains: int) -> Ema:
        """Nothing seen yet."""
        return cls(*(np.zeros(domains) for _ in fields(cls)))

    @property
    def seen(self) -> Mask:
        """``[D]``: whether the domain has ever had a finite loss."""
        return self.steps > 0

    @property
    def loss(self) -> Array:
        """``[D]`` nats; NaN where never seen."""
        return np.divide(
            self.loss_sum,
            self.loss_tokens,
            out=np.full_like(self.loss_sum, np.nan),
            where=self.seen,
        )

    @property
    def share(self) -> Array:
        """``[D]``: part of the tokens that each domain has, Σ = 1; zeros before the first token."""
        total = self.share_tokens.sum()
        return self.share_tokens / total if total > 0 else np.zeros_like(self.share_tokens)

    def fold(self, loss_sum: Array, tokens: Array, horizon: float) -> Ema:
        """Add one step.

        Args:
            loss_sum: ``[D]``, Σ mask·loss, nats.
            tokens: ``[D]``, Σ mask; 0 where absent.
            horizon: tokens; H above.

        A domain that is absent, or whose loss is not finite, keeps its estimate; its tokens still
        count for the shares.
        """
        tokens = np.where(np.isfinite(tokens), tokens, 0.0)
        valid = finite(loss_sum, tokens)
        decay = np.where(valid, np.exp(-tokens / horizon), 1.0)
        common = np.exp(-tokens.sum() / (horizon * len(tokens)))
        return Ema(
            loss_sum=self.loss_sum * decay + np.where(valid, loss_sum, 0.0),
            loss_tokens=self.loss_tokens * decay + np.where(valid, tokens, 0.0),
            share_tokens=self.share_tokens * common + tokens,
            consumed=self.consumed + tokens,
            steps=self.steps + valid,
        )

    def dump(self, names: tuple[str, ...]) -> dict[str, Any]:
        """By name, in primitives."""
        return state.dump({field.name: getattr(self, field.name) for field in fields(self)}, names)

    @classmethod
    def load(cls, saved: dict[str, Any], names: tuple[str, ...]) -> Ema:
        """The inverse; a domain that ``saved`` does not know is one never seen."""
        arrays = state.load(saved, names)
        return cls(**{field.name: np.nan_to_num(arrays[field.name]) for field in fields(cls)})


def finite(loss_sum: Array, tokens: Array) -> Mask:
    """``[D]``: whether a domain has tokens, and its loss is a number."""
    return (tokens > 0) & np.isfinite(loss_sum)
