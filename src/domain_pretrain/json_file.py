"""Reading JSON with errors that say where, and numbers as it has them."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from domain_pretrain.errors import ConfigError, shorten


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        ConfigError: the file cannot be read or is not JSON; the message says where in the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} is not JSON: {shorten(str(error))}") from None
    return parse_json(text, repr(str(path)))


def parse_json(text: str, name: str) -> Any:
    """What a JSON file holds.

    Args:
        text: of the file.
        name: what the user calls it.

    Raises:
        ConfigError: it is not JSON, or an object has a key twice; the message says where.
    """
    try:
        return json.loads(text, object_pairs_hook=partial(_object, name))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{name}, {where}, is not JSON: {error.msg}") from None
    except ConfigError:
        raise
    except ValueError as error:  # a number of 5,000 digits
        raise ConfigError(f"{name} is not JSON: {shorten(str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply to be read") from None


def finite(value: float | None) -> float | None:
    """A number as JSON can have it: no NaN and no infinity."""
    return None if value is None or not math.isfinite(value) else value


def _object(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"{name} has the key {shorten(repr(twice), 80)} twice; leave one out")
    return found
