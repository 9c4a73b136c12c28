"""A share of the fuzzing in every test run: always the same cases, told by their numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from domain_pretrain.errors import ConfigError
from fuzz.case import Case, judge
from fuzz.run import KINDS, SEED, findings

LIMIT_S = 60  # of one input; only what never ends takes as long


@pytest.mark.parametrize("kind", KINDS)
def test_no_input_gets_through_unnoticed(kind: str) -> None:
    for needed in ("megatron.core", "pyarrow", "sentencepiece", "tokenizers", "matplotlib"):
        pytest.importorskip(needed)
    found = list(findings(kind, range(KINDS[kind].share), SEED, LIMIT_S))
    assert not found, "\n".join(found)


def refuse(folder: Path) -> bool:
    raise ConfigError("no")


def fail(folder: Path) -> bool:
    raise KeyError("a")


def leave(folder: Path) -> bool:
    raise SystemExit(1)


def take(folder: Path) -> bool:
    return False


def tell(folder: Path) -> bool:
    return True


def wait(folder: Path) -> bool:
    time.sleep(60)
    return False


@pytest.mark.parametrize(
    ("check", "valid", "problem"),
    [
        (refuse, True, "refused, though it is valid: no"),
        (refuse, None, None),
        (refuse, False, None),
        (take, True, None),
        (take, None, None),
        (take, False, "taken without a word"),
        (tell, True, "complained about, though it is valid"),
        (tell, False, None),
        (fail, True, "KeyError: 'a'"),
        (fail, None, "KeyError: 'a'"),
        (leave, False, "SystemExit: 1"),
        (wait, None, "hangs: more than 0.01 s"),
    ],
)
def test_what_a_finding_is(
    check: Callable[[Path], bool], valid: bool | None, problem: str | None
) -> None:
    found = judge(Case("", valid, check), 0.01 if check is wait else LIMIT_S)
    assert found is None if problem is None else problem in (found or "")
