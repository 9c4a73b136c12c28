"""A text of any length as rows that a model can take: rolling windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from domain_pretrain.evaluate.model import Row


def rolling_windows(tokens: Sequence[int], end: int, *, window: int, stride: int) -> Iterator[Row]:
    """Rows in which each token is asked about exactly once, in order.

    The first row asks about ``window`` tokens, each further one about the next ``stride``, as far
    as there are so many, and looks back on ``window``. So a token is predicted from all that stand
    before it and ``end``, where these are at most ``window − stride + 1``, and else from at least
    so many, never from more than ``window``. At one stride, no token sees less in a longer window:
    borders that move by d tokens take away at most d, which is what the window has gained.

    The windows are those of lm-eval's ``get_rolling_token_windows`` with ``max_seq_len = window``
    and ``context_len = window − stride + 1``; its default, 1, is ``stride = window``.

    Args:
        tokens: of a text; none give no row.
        end: stands before the first of them.
        window: tokens that a row looks back on, at least 1; the row has one more, the last, which
            is asked about only.
        stride: 1 to ``window``.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"a stride of {stride} in windows of {window}")
    done = min(window, len(tokens))
    if done:
        yield Row([end, *tokens[:done]])
    while done < len(tokens):
        stop = min(done + stride, len(tokens))
        begin = stop - window - 1
        yield Row(tokens[begin:stop], done - begin)
        done = stop
