"""What a probe may ask of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Model(Protocol):
    """A language model, as far as a probe needs it.

    In a parallel layout every rank calls it with the same tokens, and gets the same values.
    """

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without one that begins or ends it."""

    def log_probabilities(self, tokens: Sequence[int]) -> list[float]:
        """``log p(token i | tokens 0 … i−1)`` for i ≥ 1, nats: one less than there are tokens."""


class LogitsModel:
    """A :class:`Model` of a function from tokens to logits.

    Args:
        logits: integer ``[1, n]`` → ``[1, n, V]``; called without gradients.
        encode: text → tokens.
        device: where ``logits`` takes its tokens.
    """

    def __init__(
        self,
        logits: Callable[[torch.Tensor], torch.Tensor],
        encode: Callable[[str], list[int]],
        device: torch.device | str = "cpu",
    ) -> None:
        self._logits = logits
        self.encode = encode
        self._device = device

    def log_probabilities(self, tokens: Sequence[int]) -> list[float]:
        """See :class:`Model`; the softmax is taken in fp32 at least."""
        import torch  # the config is read without it, and imports this room's section

        ids = torch.tensor([tokens], device=self._device)
        with torch.no_grad():
            scores = self._logits(ids)[0, :-1]
        scores = scores.float() if scores.dtype.itemsize < 4 else scores
        found = torch.log_softmax(scores, dim=-1).gather(1, ids[0, 1:, None])
        values: list[float] = found[:, 0].tolist()
        return values
