"""What probes ask about: items by domain, in the config itself or in files of JSON lines."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import Field, PrivateAttr, ValidatorFunctionWrapHandler, WrapValidator
from typing_extensions import Self

from domain_pretrain.errors import ConfigError, shorten
from domain_pretrain.evaluate.probe import ProbeOptions
from domain_pretrain.json_file import parse_json
from domain_pretrain.records.score import Part, Score
from domain_pretrain.section import Section, parse


class Item(Section):
    """One thing that a model is asked. The first field tells what, to a person."""

    @cached_property
    def name(self) -> str:
        """Its own as long as nothing of it changes, wherever it stands: a part's name."""
        content = self.model_dump_json(exclude_defaults=True).encode()
        digest = hashlib.blake2b(content, digest_size=5).hexdigest()
        title = getattr(self, next(iter(type(self).model_fields)))
        return f"{shorten(title, 48)} #{digest}"


ItemT = TypeVar("ItemT", bound=Item)


def _or_path(given: Any, items: ValidatorFunctionWrapHandler) -> Any:
    return given if isinstance(given, str) else items(given)


# To pydantic, a list of items or the path of a file of them.
Items = Annotated[list[ItemT], Field(min_length=1), WrapValidator(_or_path)]


class ItemOptions(ProbeOptions, Generic[ItemT]):
    """Options of a probe that asks about items.

    Attributes:
        item: what one is, as a line of a file gives it.
        items: by domain: a list, or the path of a file with a JSON value a line.
    """

    item: ClassVar[type[Item]]
    items: Annotated[dict[str, Items[ItemT]], Field(min_length=1)]
    _where: str = PrivateAttr("")

    def bind(self, names: tuple[str, ...], where: str) -> Self:
        """Remembers the path in the config, for messages."""
        bound = self.model_copy()
        bound._where = f"{where}.items"
        return bound

    @cached_property
    def by_domain(self) -> dict[str, list[ItemT]]:
        """The items, read once: every evaluation of a run asks about the same."""
        return {domain: self._read(domain) for domain in self.items}

    @property
    def every(self) -> list[ItemT]:
        """The items of all domains, in their order."""
        return [item for items in self.by_domain.values() for item in items]

    def check(self) -> None:
        """Read all items.

        Raises:
            ConfigError: a file cannot be read, a line of it is no item, or an item comes twice.
        """
        _ = self.by_domain

    def _read(self, domain: str) -> list[ItemT]:
        where, given = f"{self._where}.{domain}", self.items[domain]
        if isinstance(given, str):
            items: dict[str, ItemT] = _read_lines(self.item, given, where)
        else:
            items = {f"{where}.{number}": item for number, item in enumerate(given)}
        first: dict[str, str] = {}
        for place, item in items.items():
            if item.name in first:
                raise ConfigError(
                    f"{place}: the same as {first[item.name]} ({item.name!r}), which would count "
                    "twice: leave one out"
                )
            first[item.name] = place
        return list(items.values())


def score_items(
    options: ItemOptions[ItemT],
    measure: Callable[[ItemT], Mapping[str, tuple[float, int]]],
    lower_is_better: Collection[str] = (),
) -> list[Score]:
    """The scores of every domain, with a part for each item.

    Args:
        options: have the items.
        measure: called once for each of :attr:`ItemOptions.every`, in that order → by the score's
            name, a sum and a count.
        lower_is_better: of which scores.
    """
    scores = []
    for domain, items in options.by_domain.items():
        parts = defaultdict(list)
        for item in items:
            for name, (total, count) in measure(item).items():
                parts[name].append(Part(item.name, total, count))
        scores += [
            Score.of(name, domain, found, higher_is_better=name not in lower_is_better)
            for name, found in parts.items()
        ]
    return [score for score in scores if score is not None]


def _read_lines(model: type[Item], path: str, where: str) -> dict[str, Any]:
    """Items by their places."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"{where}: {path!r} cannot be read: {reason} (current directory: {Path.cwd()})"
        ) from error
    items = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{where}: {path!r}, line {number}"
            value = parse_json(line, place)
            try:
                items[place] = parse(model, value)
            except ConfigError as error:
                raise ConfigError(f"{place}: {error}") from None
    if not items:
        raise ConfigError(f"{where}: {path!r} holds no items: write one a line, as JSON")
    return items
