"""Reading YAML with errors that say where, and writing what is read as it was."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from domain_pretrain.errors import ConfigError, shorten

# What YAML takes an unquoted key for that was meant as a name: `no` of Norway, a year, nothing.
_NOT_NAMES = {
    "tag:yaml.org,2002:bool": "a boolean",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:null": "null",
    "tag:yaml.org,2002:timestamp": "a date",
}


_LINE_ENDS = frozenset("\x85\u2028\u2029")  # of Unicode, and of YAML


class _Loader(yaml.SafeLoader):
    """SafeLoader whose errors all say where, and which takes only names as keys.

    It refuses a key given twice, where YAML would silently keep the last one.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # an hour of 99, `!!float abc`, `!!bool abc`: each another one
            tag = node.tag.removeprefix("tag:yaml.org,2002:")
            given = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a collection"
            raise yaml.constructor.ConstructorError(
                problem=f"{shorten(given, 80)} is no {tag}: {shorten(str(error), 80)}",
                problem_mark=node.start_mark,
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.tag in _NOT_NAMES:
                text = shorten(key.value)
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {text} is read as {_NOT_NAMES[key.tag]}, not as a name: put "
                    f'it in quotes, as in "{text}":',
                    problem_mark=key.start_mark,
                )
            if key.value in first:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value!r} was already given in line {first[key.value]}",
                    problem_mark=key.start_mark,
                )
            first[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what the loader would take for a number."""


# A number of YAML 1.2, as everybody writes it; by YAML 1.1, which PyYAML reads, 1e-3 is a text.
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def as_yaml(content: Any) -> str:
    """Plain data as text, from which :func:`read_yaml` makes the same; keys stay in their order."""
    text: str = yaml.dump(content, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
    if not _LINE_ENDS.isdisjoint(text):  # PyYAML writes them as they are, and reads them as others
        text = yaml.dump(content, Dumper=_Dumper, sort_keys=False)
    return text


def read_yaml(path: str | Path, what: str = "domain config") -> Any:
    """The content of a YAML file.

    Args:
        path: of the file.
        what: it is, for messages.

    Raises:
        ConfigError: the file does not exist, cannot be read, is not YAML, gives a key twice, or one
            that YAML reads as something else than text; the message says where in the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{what} {str(path)!r} does not exist (current directory: {Path.cwd()})"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {str(path)!r} cannot be read: {error}") from error
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = shorten(str(error.problem or error.context))
        raise ConfigError(f"{what} {str(path)!r}{where}: {problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} {str(path)!r} is not YAML: {shorten(str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{what} {str(path)!r} is nested too deeply to be read") from None
