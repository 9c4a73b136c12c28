"""Flags that were typed in vain: --use-checkpoint-args has put the checkpoint's in their place."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

import pytest

from domain_pretrain.errors import ConfigError
from domain_pretrain.hosts.overridden import check_typed


@pytest.fixture
def parser() -> ArgumentParser:
    """As the host's is: values, switches, lists; names that are not those of the options."""
    parser = ArgumentParser(allow_abbrev=False)
    parser.add_argument("--use-checkpoint-args", action="store_true")
    parser.add_argument("--rotary-base", type=int, default=10000)
    parser.add_argument("--hidden-dropout", type=float, default=0.1)
    parser.add_argument("--disable-bias-linear", action="store_false", dest="add_bias_linear")
    parser.add_argument("--spec", nargs="*", default=None)
    parser.add_argument("--tokenizer-model", default=None)
    parser.add_argument("--moe-token-dispatcher-type", default="allgather")
    return parser


def check(
    monkeypatch: pytest.MonkeyPatch, parser: ArgumentParser, line: str, **saved: object
) -> None:
    """What the start makes of a command line whose checkpoint says this."""
    monkeypatch.setattr(sys, "argv", ["pretrain_gpt.py", *line.split()])
    args = parser.parse_args()
    vars(args).update(saved)
    check_typed(args, parser)


@pytest.mark.parametrize(
    ("typed", "saved", "told"),
    [
        ("--rotary-base 1000000", {"rotary_base": 10000}, "--rotary-base: 1000000 has become 1000"),
        ("--rotary-base=1000000", {"rotary_base": 10000}, "--rotary-base: 1000000 has become 1000"),
        ("--hidden-dropout 0", {"hidden_dropout": 0.1}, "--hidden-dropout: 0.0 has become 0.1"),
        ("--disable-bias-linear", {"add_bias_linear": True}, "--disable-bias-linear: False has"),
        ("--spec a b", {"spec": ["c", "d"]}, r"--spec: \['a', 'b'\] has become \['c', 'd'\]"),
        ("--tokenizer-model a", {"tokenizer_model": "b"}, "--no-use-tokenizer-model-from-checkpoi"),
        ("--rotary-base 10000", {"rotary_base": 500000}, "--rotary-base: 10000 has become 500000"),
    ],
)
def test_what_was_typed_in_vain(
    monkeypatch: pytest.MonkeyPatch,
    parser: ArgumentParser,
    typed: str,
    saved: dict[str, object],
    told: str,
) -> None:
    """The last is the host's default, which was typed all the same."""
    with pytest.raises(ConfigError, match=f"{told}.*Leave --use-checkpoint-args out"):
        check(monkeypatch, parser, f"--use-checkpoint-args {typed}", **saved)


def test_all_of_them_are_told(monkeypatch: pytest.MonkeyPatch, parser: ArgumentParser) -> None:
    line = "--use-checkpoint-args --rotary-base 7 --hidden-dropout 0.5"
    with pytest.raises(ConfigError, match=r"--rotary-base: 7 .*--hidden-dropout: 0\.5 "):
        check(monkeypatch, parser, line, rotary_base=8, hidden_dropout=0.0)


@pytest.mark.parametrize(
    ("typed", "saved"),
    [
        ("", {"rotary_base": 500000}),  # not typed: what the flag is for
        ("--rotary-base 500000 --spec a b", {"rotary_base": 500000, "spec": ("a", "b")}),
        ("--hidden-dropout 0", {"hidden_dropout": 0}),
        ("--rotary-base 1 --rotary-base 500000", {"rotary_base": 500000}),
    ],
)
def test_what_is_as_it_was_typed(
    monkeypatch: pytest.MonkeyPatch,
    parser: ArgumentParser,
    typed: str,
    saved: dict[str, object],
) -> None:
    check(monkeypatch, parser, f"--use-checkpoint-args {typed}", **saved)


def test_without_the_flag_nothing_is_compared(
    monkeypatch: pytest.MonkeyPatch, parser: ArgumentParser
) -> None:
    check(monkeypatch, parser, "--rotary-base 1000000", rotary_base=10000)
    check_typed(Namespace(use_checkpoint_args=True, rotary_base=1), None)


def test_what_changes_no_number_is_told(
    monkeypatch: pytest.MonkeyPatch, parser: ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "--use-checkpoint-args --moe-token-dispatcher-type alltoall"
    check(monkeypatch, parser, line, moe_token_dispatcher_type="flex")
    assert "--moe-token-dispatcher-type: alltoall has become flex" in capsys.readouterr().out
