"""Reading JSON with errors that say where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from domain_pretrain.errors import ConfigError, shorten


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        ConfigError: the file cannot be read or is not JSON; the message says where in the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{str(path)!r}, {where}, is not JSON: {error.msg}") from None
    except ValueError as error:  # not UTF-8, or a number of 5,000 digits
        raise ConfigError(f"{str(path)!r} is not JSON: {shorten(str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{str(path)!r} is nested too deeply to be read") from None
