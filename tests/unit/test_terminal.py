"""Names and paths at the console: as they are, whatever is in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.table import Table

import domain_pretrain
from domain_pretrain.commands.terminal import plain_console

NAMES = ("runs/sweep[lr=3e-4]", "a[/lr]", "[red]", "a:x:b", r"\[bold]")


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_shown_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    for stderr in (False, True):
        console = plain_console(stderr=stderr, soft_wrap=True)
        console.print(name)
        console.print(name, style="red")
        console.print(table)
    for stream in capsys.readouterr():
        assert stream.count(name) == 6


def test_there_is_no_other_console() -> None:
    """Nor what reads a text as markup whatever the console is."""
    root = Path(domain_pretrain.__file__).parent
    makes = []
    for path in root.rglob("*.py"):
        source = path.read_text("utf-8")
        if "from rich.console import" in source and re.search(r"\bConsole\(", source):
            makes.append(path.name)
        assert not re.search(r"rich\.markup|from_markup", source), path
    assert makes == ["terminal.py"]
