"""Mappings that the user writes, as pydantic models, and errors that name the key."""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from domain_pretrain.errors import ConfigError, shorten
from domain_pretrain.process import notice
from domain_pretrain.suggest import did_you_mean
from domain_pretrain.yaml_file import read_yaml

_BRIEF = reprlib.Repr()  # also of a value that YAML's aliases blow up, or that holds itself
_BRIEF.maxstring = _BRIEF.maxother = 80

SectionT = TypeVar("SectionT", bound="Section")


def _make_strict(schema: Any) -> None:
    """Of all numbers and booleans in a schema of pydantic's.

    Not the strict mode of the whole model: it takes no list for a tuple and no text for a path.
    """
    if isinstance(schema, dict):
        if schema.get("type") in ("bool", "float", "int"):
            schema["strict"] = True
        for part in schema.values():
            _make_strict(part)
    elif isinstance(schema, (list, tuple)):
        for part in schema:
            _make_strict(part)


class Section(BaseModel):
    """A mapping of the config; a key that it does not know is an error, never ignored.

    Numbers and booleans are what they are written as, at any depth: ``true`` is not 1, nor is "1".

    Attributes:
        renamed: old name → name, of keys that an earlier version knew by another one.
        idle: key → when it has no effect, of keys that another model of the same mapping knows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}
    idle: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _make_strict(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not cls.renamed.keys() & given.keys():
            return given
        given = dict(given)
        for old, new in cls.renamed.items():
            if old in given and new in given:
                raise PydanticCustomError(
                    "renamed",
                    "{old} is the old name of {new}: give {new} alone",
                    {"old": old, "new": new},
                )
            if old in given:
                given[new] = given.pop(old)
                _tell_new_name(old, new)
        return given


@functools.cache  # a config is read several times
def _tell_new_name(old: str, new: str) -> None:
    notice(f"the config's key {old!r} is called {new!r} now; the old name still works")


def parse(
    model: type[SectionT], given: Any, where: str = "", also: tuple[str, ...] = ()
) -> SectionT:
    """Validate what the user wrote.

    Args:
        model: what it must fit.
        given: as the user wrote it.
        where: path of the mapping, for messages: ``reweight`` makes ``reweight.temperature``.
        also: keys of the same mapping that somebody else reads, for the suggestion.

    Raises:
        ConfigError: names every offending key, what it should be and what was given, a line each.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        lines = [_describe(problem, model, where, also) for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def read_section(model: type[SectionT], path: str | Path, what: str) -> SectionT:
    """Read a YAML file and validate it.

    Args:
        model: what its mapping must fit.
        path: of the file.
        what: it is, for messages.

    Raises:
        ConfigError: it cannot be read, is not a YAML mapping, or breaks the schema; the message
            lists every offending key by its path.
    """
    content = read_yaml(path, what)
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise ConfigError(
            f"{what} {str(path)!r} {found}: it must be a mapping with the keys "
            f"{', '.join(model.model_fields)}"
        )
    try:
        return parse(model, content)
    except ConfigError as error:
        lines = [f"{what} {str(path)!r} is wrong:", *str(error).split("\n")]
        raise ConfigError("\n  ".join(lines)) from None


def _describe(problem: Any, model: type[Section], where: str, also: tuple[str, ...]) -> str:
    path, section = _locate(model, problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        key, known = path[-1], list(section.model_fields)
        known += also if len(path) == 1 else ()
        if key in section.idle:
            message = f"has no effect {section.idle[key]}: take it out"
        else:
            message = f"unknown key{did_you_mean(key, known)} (known keys: {', '.join(known)})"
    elif not isinstance(problem["input"], (dict, BaseModel)):
        message += f" (given: {_BRIEF.repr(problem['input'])})"
    place = ".".join(shorten(part, 80) for part in [where, *path] if part)
    return f"{place or 'top level'}: {shorten(message, 600)}"


def _locate(
    model: type[Section], location: tuple[int | str, ...]
) -> tuple[list[str], type[Section]]:
    """The keys down to a problem, and the model of the last mapping on the way.

    A name among several leads to what it names. Where a key has one of several models, pydantic
    puts the one that it took behind the key.
    """
    path: list[str] = []
    models: list[type[Section]] = []
    for part in location:
        taken = [found for found in models if found.__name__ == part]
        if len(models) > 1 and taken:
            model, models = taken[0], []
            continue
        if part != "[key]":
            path.append(str(part))
        field = model.model_fields.get(str(part))
        models = [] if field is None else list(_models(field.annotation))
        model = next(iter(models), model)
    return path, model


def _models(annotation: Any) -> Iterator[type[Section]]:
    for part in get_args(annotation) or (annotation,):
        if isinstance(part, type) and issubclass(part, Section):
            yield part
        elif get_args(part):
            yield from _models(part)
