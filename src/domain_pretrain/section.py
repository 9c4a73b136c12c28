"""Mappings that the user writes, as pydantic models, and errors that name the key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from domain_pretrain.errors import ConfigError
from domain_pretrain.process import notice
from domain_pretrain.suggest import did_you_mean

SectionT = TypeVar("SectionT", bound="Section")


class Section(BaseModel):
    """A mapping of the config; a key that it does not know is an error, never ignored.

    Attributes:
        renamed: old name → name, of keys that an earlier version knew by another one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}

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
                notice(f"the config's key {old!r} is called {new!r} now; the old name still works")
        return given


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


def _describe(problem: Any, model: type[BaseModel], where: str, also: tuple[str, ...]) -> str:
    path = [str(part) for part in problem["loc"] if part != "[key]"]
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        known = list(_section_at(model, path[:-1]).model_fields)
        known += also if len(path) == 1 else ()
        message = f"unknown key{did_you_mean(path[-1], known)} (known keys: {', '.join(known)})"
    elif not isinstance(problem["input"], (dict, BaseModel)):
        message += f" (given: {problem['input']!r})"
    return f"{'.'.join(filter(None, [where, *path])) or 'top level'}: {message}"


def _section_at(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model of the mapping at ``path``; a name among several leads to what it names."""
    for key in path:
        if key in model.model_fields:
            model = next(_models(model.model_fields[key].annotation), model)
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    for part in get_args(annotation) or (annotation,):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part
        elif get_args(part):
            yield from _models(part)
