"""The documentation's pages, and the commands that they show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def text(name: str) -> str:
    """Of a page, or of another file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def prose(name: str) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text(name))


def blocks(name: str, language: str) -> list[str]:
    """A page's code blocks of a language."""
    return [body for _, found, body in FENCE.findall(text(name)) if found == language]


def commands(name: str) -> Iterator[str]:
    """The lines of a page's shell examples, without comments, continued lines joined.

    A block that begins with the path of a file shows that file; it is no command.
    """
    for body in blocks(name, "bash"):
        first = body.split("\n", 1)[0].removeprefix("# ")
        if "/" in first and (ROOT / first).is_file():
            assert body == text(first), f"{name} does not show {first} as it is"
            continue
        for line in body.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+", " ", re.split(r"(?:^|\s)#", line)[0]).strip()
            if command:
                yield command
