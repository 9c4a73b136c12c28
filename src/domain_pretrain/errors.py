"""The errors that this package raises on purpose; each message names what was given and the fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands that check nothing start without it
    from pydantic import ValidationError


class DomainPretrainError(Exception):
    """Base class: catching it catches every deliberate stop of the plugin."""


class ConfigError(DomainPretrainError, ValueError):
    """What the user gave is wrong: a file, a flag, a key, a weight, or two of them disagree."""


class LocalError(ConfigError):
    """What one rank finds out, and perhaps no other: it has to say so itself."""


class WriterError(LocalError):
    """What only the rank that writes finds out."""


class LogFolderError(WriterError):
    """The log folder cannot be used."""


class UnsupportedError(DomainPretrainError):
    """What the user asked for cannot be right on this host: a version, a flag combination."""


class IntegrityError(DomainPretrainError):
    """A check at run time failed: the numbers cannot be trusted, so the run stops."""


def shorten(text: str, most: int = 300) -> str:
    """For a message: what a user gave may be as long as a file. The end, with the fix, stays."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"


def first_problem(error: ValidationError, *under: str) -> str:
    """Where, and what, is the first that pydantic found in a file of ours, for a message.

    Args:
        error: of pydantic.
        under: the keys above what was validated.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = shorten(".".join(map(str, (*under, *first["loc"]))), 120)
    # " or instance of": a class of ours; "Value error": what its validator said.
    what = first["msg"].partition(" or instance of")[0].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
