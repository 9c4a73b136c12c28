"""Where a pass of a microbatch spends the host's time, by the functions that it goes through."""

from __future__ import annotations

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from megatron.core.rerun_state_machine import RerunStateMachine
from support.passes import Pass

from domain_pretrain.flow import forward
from domain_pretrain.flow.microbatch import Microbatch
from domain_pretrain.flow.tap import BatchTap, Source
from domain_pretrain.kernels.domain_reduce import Backend, backend, cuda

START, FORWARD, BACKWARD = "start", "forward ends", "backward ends"

# In order: where a mark is set as a function is entered, and as it returns.
POINTS: list[tuple[Any, str]] = [
    (BatchTap, "rows"),
    (Source, "rows"),
    (Microbatch, "build"),
    (forward, "counted_loss"),
    (Backend, "domain_loss"),
    (backend.WithGradient, "forward"),
    (cuda, "loss"),
    (cuda, "_planned"),
    (RerunStateMachine, "validate_result"),
    (backend.WithGradient, "backward"),
    (cuda, "gradient"),
]

# The mark that a part ends with → what the part is.
PARTS = {
    "> BatchTap.rows": "rows: before",
    "> Source.rows": "sum of each row's mask",
    "< Source.rows": "rows: domains and tokens, seen before",
    "> Backend.domain_loss": "rows beside losses and mask, down to the kernels",
    "> WithGradient.forward": "into autograd",
    "> cuda._planned": "outside of torch.compile's graphs",
    "< cuda._planned": "addresses, layout, plan",
    "< cuda.loss": "three tensors, one launch",
    "< WithGradient.forward": "what the gradient needs",
    "< Backend.domain_loss": "out of autograd",
    "> RerunStateMachine.validate_result": "back to the entry",
    FORWARD: "the host's check for NaN",
    "> WithGradient.backward": "autograd's engine, before",
    "> cuda.gradient": "the mask is as it was",
    "< cuda.gradient": "one tensor, one launch",
    BACKWARD: "autograd's engine, after",
}


def parts(one_pass: Pass, passes: int = 2000) -> dict[str, float]:
    """µs of each part: medians, without the collector. A mark takes some 0.1 µs of each.

    Args:
        one_pass: through the ``cuda`` backend's loss, in the host's place.
        passes: how many.
    """
    now, marks = time.perf_counter_ns, []

    def marked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            marks.append((f"> {name}", now()))
            result = function(*args, **kwargs)
            marks.append((f"< {name}", now()))
            return result

        return call

    spent: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        for owner, name in POINTS:
            found = vars(owner)[name]
            kind = type(found) if isinstance(found, (staticmethod, classmethod)) else None
            label = f"{owner.__name__.split('.')[-1]}.{name}"
            function = marked(found.__func__ if kind else found, label)
            stack.enter_context(patch.object(owner, name, kind(function) if kind else function))
        gc.disable()
        for _ in range(passes):
            marks[:] = [(START, now())]
            loss = one_pass.forward()
            marks.append((FORWARD, now()))
            one_pass.backward(loss[0])
            marks.append((BACKWARD, now()))
            took: dict[str, float] = defaultdict(float)
            since = marks[0][1]
            for label, at in marks[1:]:
                if label in PARTS:
                    took[PARTS[label]] += (at - since) / 1000
                    since = at
            for part, value in took.items():
                spent[part].append(value)
        gc.enable()
    return {part: round(statistics.median(values), 2) for part, values in spent.items()}
