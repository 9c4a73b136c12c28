"""Keeping lm-eval and the libraries below it from the network, and from what a run draws."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module

import numpy as np

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
        stack.enter_context(_kept_random_state())
        if not online:
            stack.enter_context(_offline())
        yield


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Data sets get names by Python's ``random``, and a task's own code may draw or seed."""
    import torch  # the config is read without it

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


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
