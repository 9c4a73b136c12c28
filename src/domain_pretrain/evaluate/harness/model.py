"""A model as lm-eval asks it, with the conventions of lm-eval's own ``hf``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.generate import cut_at, generate
from domain_pretrain.evaluate.model import Model, Row
from domain_pretrain.evaluate.rows import batches

NEW_TOKENS = 256
"""Of a task that says nothing of them, as in ``hf``."""

# Its names in the order in which lm-eval prefers them.
_COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class HarnessModel(TemplateLM):
    """What ``lm_eval.evaluate`` takes for a model.

    As ``hf`` with ``add_bos_token=False``, ``prefix_token_id`` of ``end`` and ``max_length`` of
    ``context``: a context too long loses its first tokens, an empty one is ``end``. There are no
    chat templates, and one rank asks everything.

    Args:
        model: that is asked.
        greedy: tasks that want to know whether an answer is the likeliest one, which asks the
            model once more; None: all.
    """

    def __init__(self, model: Model, greedy: Collection[str] | None = None) -> None:
        super().__init__()
        self.model = model
        self._greedy = greedy
        self._pairs: set[tuple[str, str]] = set()

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document."""
        return self.model.end

    @property
    def max_length(self) -> int:
        """Tokens that the model takes."""
        return self.model.context

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokens of a text; special ones are never added."""
        return self.model.encode(string)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Of continuations, nats; and whether they are the likeliest, where a task asks that."""
        self._pairs = {
            request.args
            for request in requests
            if self._greedy is None or request.task_name in self._greedy
        }
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        rows = [self._row(*request) for request in requests]
        asked = [n for n, (pair, *_) in enumerate(requests) if pair in self._pairs]
        wanted = [Row(rows[n].tokens[:-1], rows[n].first) for n in asked]
        predicted = [tokens for part in batches(wanted) for tokens in self.model.predict(part)]
        greedy = {
            n: tokens == list(rows[n].tokens[rows[n].first :])
            for n, tokens in zip(asked, predicted, strict=True)
        }
        # lm-eval reads it of every answer, and drops it where no metric of the task needs it.
        return [(value, greedy.get(n, False)) for n, value in enumerate(self._values(rows))]

    def _row(self, pair: Any, context: list[int], continuation: list[int]) -> Row:
        if not context or not continuation or len(continuation) > self.model.context:
            raise ConfigError(
                f"harness: lm-eval asks for {len(continuation):,} tokens behind {len(context):,}, "
                f"and the model takes 1 to {self.model.context:,} behind at least 1: "
                f"{pair[1][:60]!r} behind {pair[0][-60:]!r}"
            )
        tokens = [*context, *continuation][-(self.model.context + 1) :]
        return Row(tokens, len(tokens) - len(continuation))

    def _values(self, rows: Sequence[Row]) -> list[float]:
        return [value for part in batches(rows) for value in self.model.log_likelihoods(part)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Of whole texts, nats, in windows that each begin behind the last."""
        rows, owners = [], []
        for owner, request in enumerate(requests):
            for context, tokens in get_rolling_token_windows(
                token_list=self.model.encode(request.args[0]),
                prefix_token=self.model.end,
                max_seq_len=self.model.context,
                context_len=1,
            ):
                before, behind = make_disjoint_window((context, tokens))
                rows.append(Row([*before, *behind], len(before)))
                owners.append(owner)
        found = [0.0] * len(requests)
        for owner, value in zip(owners, self._values(rows), strict=True):
            found[owner] += value
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations, up to the task's stops."""
        alike: defaultdict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for n, request in enumerate(requests):
            alike[_limits(request.task_name, request.args[1])].append(n)
        found = [""] * len(requests)
        for (count, stops), members in alike.items():
            room = self.model.context - count
            if room < 1:
                raise ConfigError(
                    f"harness: task {requests[members[0]].task_name!r}: {count:,} new tokens "
                    f"leave no room for a prompt: the model's context is {self.model.context:,} "
                    "tokens; give the task less, as generation_kwargs: {max_gen_toks: …}"
                )
            prompts = [
                (self.model.encode(requests[n].args[0]) or [self.model.end])[-room:]
                for n in members
            ]
            for n, tokens in zip(members, generate(self.model, prompts, count, stops), strict=True):
                found[n] = cut_at(self.model.decode(tokens), stops)
        return found


def _limits(task: str | None, given: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """New tokens at most, and texts to stop at, of a task's ``generation_kwargs``.

    Raises:
        ConfigError: it asks for something other than the likeliest tokens.
    """
    kwargs = dict(given)
    until = kwargs.pop("until", None) or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    counts = [kwargs.pop(name, None) for name in _COUNTS]
    count = next((int(count) for count in counts if count is not None), NEW_TOKENS)
    samples = kwargs.pop("do_sample", None)
    temperature = float(kwargs.pop("temperature", None) or 0)
    for without_effect in ("top_k", "top_p"):
        kwargs.pop(without_effect, None)
    if samples or (samples is None and temperature > 0):
        raise ConfigError(
            f"harness: task {task!r} draws its answers (do_sample, temperature {temperature}), and "
            "here they are the likeliest tokens: give it generation_kwargs: {do_sample: false}, "
            "or leave it out"
        )
    if kwargs:
        raise ConfigError(
            f"harness: task {task!r}: generation_kwargs has {', '.join(map(repr, kwargs))}, which "
            f"is not known here (known: until, do_sample, temperature, {', '.join(_COUNTS)})"
        )
    return count, tuple(stop for stop in stops if stop)
