"""Rules by name, of any kind; other packages may add theirs.

A kind (strategy, alarm, exporter) has one :class:`Registry`. A third party registers a rule in a
module of its own, and names that module as an entry point of the kind's group, so that it is
imported when somebody asks for it::

    [project.entry-points."domain_pretrain.strategies"]
    steep = "my_package.steep"
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, Generic, TypeVar

from domain_pretrain.errors import ConfigError
from domain_pretrain.rules.options import Options
from domain_pretrain.section import parse
from domain_pretrain.suggest import did_you_mean

RuleT = TypeVar("RuleT", bound=Callable[..., Any])

OWN = __name__.partition(".")[0] + "."


@dataclass(frozen=True)
class Configured(Generic[RuleT]):
    """A rule with its options, checked for a run's domains."""

    name: str
    rule: RuleT
    options: Options


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> EntryPoints:
    """Of all packages on ``path``, which is Python's own. Every package's files are read for it:
    that takes some 40 ms, and each process of a run asks for a dozen rules.
    """
    return entry_points()


class Registry(Generic[RuleT]):
    """The rules of one kind.

    Args:
        kind: what messages call one of them: ``strategy``.
        group: entry point group of other packages.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._rules: dict[str, tuple[RuleT, type[Options]]] = {}

    def register(self, name: str, options: type[Options] = Options) -> Callable[[RuleT], RuleT]:
        """Decorator: make a rule available as ``name``.

        Raises:
            ConfigError: the name is taken.
        """

        def add(rule: RuleT) -> RuleT:
            if name in self._rules:
                raise ConfigError(
                    f"two rules are registered as {self.kind} {name!r}: "
                    f"{self._rules[name][0].__module__} and {rule.__module__}; rename one"
                )
            self._rules[name] = (rule, options)
            return rule

        return add

    def available(self) -> tuple[str, ...]:
        """Names of all rules, entry points that are not imported yet among them; sorted."""
        return tuple(sorted({*self._rules, *(point.name for point in self._entry_points())}))

    def options(self, name: str) -> type[Options] | None:
        """Of a registered rule; None of an entry point that is not imported yet."""
        found = self._rules.get(name)
        return None if found is None else found[1]

    def build(
        self,
        name: str,
        given: Mapping[str, Any],
        names: tuple[str, ...],
        *,
        key: str,
        where: str,
        also: tuple[str, ...] = (),
    ) -> Configured[RuleT]:
        """A rule with its options, checked for these domains.

        Args:
            name: a registered name, or one of an entry point of the group.
            given: the rule's own options, as the user wrote them.
            names: the domains.
            key: path in the config at which the rule is named, for messages.
            where: path of the options, for messages.
            also: further keys that are known there, for messages.

        Raises:
            ConfigError: unknown name or key, bad value, a domain without a value it needs.
        """
        rule, model = self._find(name, key)
        options = parse(model, dict(given), where, also).bind(names, where)
        return Configured(name, rule, options)

    def _find(self, name: str, key: str) -> tuple[RuleT, type[Options]]:
        offered = self._offered(name)
        if name not in self._rules and offered is not None:
            self._import(offered, name, key)
        if name not in self._rules:
            known = self.available()
            raise ConfigError(
                f"{key}: unknown {self.kind} {name!r}{did_you_mean(name, known)} "
                f"(known: {', '.join(known)})"
            )
        return self._rules[name]

    def _import(self, point: EntryPoint, name: str, key: str) -> None:
        """Importing the module registers the rule."""
        try:
            point.load()
        except Exception as error:
            raise ConfigError(
                f"{key}: {name!r} comes from {point.value!r}, which failed to import: "
                f"{type(error).__name__}: {error}"
            ) from error
        if name not in self._rules:
            raise ConfigError(
                f"{key}: {point.value!r} is installed as {self.kind} {name!r}, but importing it "
                f"registers none of that name; it needs @register({name!r})"
            )

    def _entry_points(self) -> EntryPoints:
        return _installed(tuple(sys.path)).select(group=self.group)

    def _offered(self, name: str) -> EntryPoint | None:
        """The one entry point of this name; what other names clash over is not asked."""
        points = {point.value: point for point in self._entry_points() if point.name == name}
        if points and name in self._rules and self._rules[name][0].__module__.startswith(OWN):
            raise ConfigError(
                f"an installed package offers {next(iter(points))!r} as {self.kind} {name!r}, "
                "which is the name of a built-in one; uninstall it, or have it renamed"
            )
        if len(points) > 1:
            raise ConfigError(
                f"two installed packages offer a {self.kind} {name!r}: "
                f"{' and '.join(map(repr, points))}; uninstall one"
            )
        return next(iter(points.values()), None)
