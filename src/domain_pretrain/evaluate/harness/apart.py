"""Keeping lm-eval and the libraries below it from the network, and from what a run draws."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module

from domain_pretrain.evaluate.random_state import kept_random_state

VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
# They read the variables when they are imported, which may have been long ago, and never again.
_CONSTANTS = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
    ("evaluate.config", "HF_EVALUATE_OFFLINE"),
)


@contextmanager
def apart(*, online: bool) -> Iterator[None]:
    """What lm-eval runs within.

    Args:
        online: whether the network may be asked.
    """
    with ExitStack() as stack:
        # Data sets get names by Python's ``random``, and a task's own code may draw or seed.
        stack.enter_context(kept_random_state())
        if not online:
            stack.enter_context(_offline())
        yield


@contextmanager
def _offline() -> Iterator[None]:
    """Only what is on this machine is read, within; afterwards, all is as it was.

    A task's own Python code may still do as it likes.
    """
    places = []
    for name, constant in _CONSTANTS:
        try:
            module = import_module(name)
        except ImportError:
            continue  # not every version of lm-eval needs all of them
        if hasattr(module, constant):
            places.append((module, constant, getattr(module, constant)))
    variables = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    for module, constant, _ in places:
        setattr(module, constant, True)
    try:
        yield
    finally:
        for module, constant, value in places:
            setattr(module, constant, value)
        for name, before in variables.items():
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
