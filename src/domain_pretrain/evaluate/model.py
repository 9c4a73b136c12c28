"""What a probe may ask of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from domain_pretrain.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Row:
    """Tokens, and from where on they are asked about.

    Attributes:
        tokens: a text's, or a part of them.
        first: position of the first token that is asked about; at least 1, since nothing comes
            before the first. A text is scored from its first token on behind :attr:`Model.end`.
    """

    tokens: Sequence[int]
    first: int = 1


class Model(Protocol):
    """A language model, as far as a probe needs it.

    In a parallel layout, probes run on one rank, and the others serve its calls.

    Attributes:
        context: tokens that it can look back on.
        end: the token that ends a document, and so stands before the next.
    """

    context: int
    end: int

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without one that begins or ends it."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; what is no text becomes U+FFFD."""

    def log_likelihoods(self, rows: Sequence[Row]) -> list[float]:
        """``Σ log p(token i | tokens 0 … i−1)`` over ``i ≥ first`` of each row, nats.

        All rows at once where possible: the model runs batches.

        Raises:
            ConfigError: a row has more than ``context + 1`` tokens (the last is not looked at).
        """

    def predict(self, rows: Sequence[Row]) -> list[list[int]]:
        """The likeliest token at each position from ``first`` to one behind a row's last token.

        ``first = len(tokens)`` asks for the next token alone; of equally likely ones, the lowest.

        Raises:
            ConfigError: a row has more than ``context`` tokens.
        """


class LogitsModel:
    """A :class:`Model` of a function from tokens to logits, in this process.

    Args:
        logits: integer ``[1, n]`` → ``[1, n, V]``; called without gradients.
        encode: text → tokens.
        decode: tokens → text.
        context: tokens that ``logits`` takes.
        end: token that ends a document.
        device: where ``logits`` takes its tokens.
    """

    def __init__(
        self,
        logits: Callable[[torch.Tensor], torch.Tensor],
        encode: Callable[[str], list[int]],
        decode: Callable[[Sequence[int]], str],
        *,
        context: int,
        end: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._logits = logits
        self.encode = encode
        self.decode = decode
        self.context = context
        self.end = end
        self._device = device

    def log_likelihoods(self, rows: Sequence[Row]) -> list[float]:
        """See :class:`Model`; the softmax is taken in fp32 at least."""
        check_rows(rows, self.context + 1)
        return [self._log_likelihood(row) for row in rows]

    def _log_likelihood(self, row: Row) -> float:
        import torch  # the config is read without it, and imports this room's section

        scores = self._scores(row.tokens[:-1])[row.first - 1 :]
        scores = scores.float() if scores.dtype.itemsize < 4 else scores
        wanted = torch.tensor(row.tokens[row.first :], device=scores.device)
        found = torch.log_softmax(scores, dim=-1).gather(1, wanted[:, None])
        return float(found.double().sum())

    def predict(self, rows: Sequence[Row]) -> list[list[int]]:
        """See :class:`Model`."""
        check_rows(rows, self.context)
        return [self._scores(row.tokens)[row.first - 1 :].argmax(-1).tolist() for row in rows]

    def _scores(self, tokens: Sequence[int]) -> torch.Tensor:
        """``[n, V]``."""
        import torch

        with torch.no_grad():
            return self._logits(torch.tensor([list(tokens)], device=self._device))[0]


def check_rows(rows: Sequence[Row], limit: int) -> None:
    """Refuse what a model cannot take.

    Args:
        rows: asked about.
        limit: tokens of one.

    Raises:
        ConfigError: one is too long, or has nothing before its first scored token.
    """
    for row in rows:
        if len(row.tokens) > limit:
            raise ConfigError(
                f"a text of {len(row.tokens):,} tokens does not fit the model's context, which "
                f"takes {limit:,}: cut it, or score it in windows (the probe perplexity does)"
            )
        if not 1 <= row.first <= len(row.tokens):
            raise ConfigError(
                f"nothing comes before token {row.first} of a text of {len(row.tokens):,} tokens: "
                "put the token that ends a document (Model.end) before it"
            )
