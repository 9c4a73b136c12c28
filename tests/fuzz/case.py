"""One input as a user could give it, and what has to become of it."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_pretrain.errors import DomainPretrainError

LONGEST_MESSAGE = 12_000


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: how it was made.
        valid: by construction: it has to be taken. False: it is broken, and has to be refused, or
            the user be told. None: neither is known.
        check: gives it, in an empty current folder, to what reads it; returns whether the user was
            told of something wrong, raises ``DomainPretrainError`` for a refusal, and anything
            else, an ``AssertionError`` among them, for a fault of the product.
        patience: so many times the usual limit of time; of what starts processes.
    """

    name: str
    valid: bool | None
    check: Callable[[Path], bool]
    patience: int = 1


Make = Callable[[random.Random], Case]


def draw(make: Make, kind: str, seed: int, index: int) -> Case:
    """The case of that number, whatever others were drawn before."""
    return make(random.Random(f"{seed} {kind} {index}"))


class _HangError(BaseException):
    """Not an ``Exception``, which what is tried may catch."""


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    before = Path.cwd()
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def judge(case: Case, limit_s: float) -> str | None:
    """What is wrong with how the product takes the case; None: nothing."""
    said = io.StringIO()
    try:
        with (
            _own_folder() as folder,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            _alarm(limit_s * case.patience),
        ):
            # Numpy's of numbers that overflow.
            warnings.filterwarnings("error", category=RuntimeWarning, module="domain_pretrain")
            told = case.check(folder)
    except DomainPretrainError as error:
        message = str(error)
        if case.valid:
            return f"refused, though it is valid: {message}"
        if not message.strip() or len(message) > LONGEST_MESSAGE:
            return f"a message of {len(message):,} characters: {message[:300]}"
        return None
    except _HangError:
        return f"hangs: more than {limit_s * case.patience:g} s"
    except KeyboardInterrupt:
        raise
    except BaseException:  # SystemExit and a panic of Rust's among them
        return f"fails:\n{traceback.format_exc(limit=-4)}{said.getvalue()[-500:]}"
    if case.valid and told:
        return f"complained about, though it is valid: {said.getvalue()[-500:]}"
    if case.valid is False and not told:
        return "taken without a word, though it is broken"
    return None
