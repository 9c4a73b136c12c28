"""``python -m domain_pretrain``, as far as it needs no Megatron."""

from __future__ import annotations

import sys

import pytest

from domain_pretrain import __main__ as launcher


@pytest.mark.parametrize("words", [["-h"], ["--num-layers", "2", "--help"]])
def test_help_without_a_script_is_ours(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And needs no Megatron, whose own ends in a traceback."""

    def enabled() -> None:
        raise AssertionError("enabled")

    monkeypatch.setattr(launcher, "enable", enabled)
    monkeypatch.setattr(sys, "argv", ["domain_pretrain", *words])
    launcher.main()
    said = capsys.readouterr().out
    assert said.startswith("usage: torchrun [torchrun flags] -m domain_pretrain [SCRIPT.py]")
    assert "--allow-domain-change" in said
