"""The rules by name; other packages may add theirs.

A third party registers a rule with :func:`register` in a module of its own and names that module
as an entry point, so that it is imported when somebody asks for it::

    [project.entry-points."domain_pretrain.strategies"]
    steep = "my_package.steep"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np

from domain_pretrain.errors import ConfigError, IntegrityError
from domain_pretrain.strategies.observation import Array, Observation, State
from domain_pretrain.strategies.options import Options, nearest, parse

GROUP = "domain_pretrain.strategies"

# (what was observed, what the rule kept, its options) → (weights [D], what it keeps).
# A pure function: it never writes into what it is given. See Observation.weights for the weights.
Rule = Callable[[Observation, State, Any], tuple[Array, State]]

_RULES: dict[str, tuple[Rule, type[Options]]] = {}


def register(name: str, options: type[Options] = Options) -> Callable[[Rule], Rule]:
    """Decorator: make a rule available as ``name``.

    Raises:
        ConfigError: the name is taken.
    """

    def add(rule: Rule) -> Rule:
        if name in _RULES:
            raise ConfigError(
                f"two strategies are named {name!r}: {_RULES[name][0].__module__} and "
                f"{rule.__module__}; rename one"
            )
        _RULES[name] = (rule, options)
        return rule

    return add


@dataclass(frozen=True)
class Strategy:
    """A rule with its options, ready for use."""

    name: str
    rule: Rule
    options: Options

    def __call__(self, seen: Observation, state: State) -> tuple[Array, State]:
        """Weights ``[D]``, a distribution over the active domains, and the state to keep.

        Without an active domain the weights are zero and the rule is not asked.

        Raises:
            IntegrityError: the rule gave something else.
        """
        if not seen.active.any():
            return np.zeros(len(seen.names)), state
        weights, state = self.rule(seen, state, self.options)
        if not (
            weights.shape == seen.active.shape
            and bool((weights >= 0).all())  # NaN fails too
            and not weights[~seen.active].any()
            and abs(weights.sum() - 1) < 1e-9
        ):
            raise IntegrityError(
                f"strategy {self.name!r} gave weights that are no distribution over the "
                f"{int(seen.active.sum())} active domains: {weights}"
            )
        return weights, state


def available() -> tuple[str, ...]:
    """Names of all rules, entry points that are not imported yet among them; sorted."""
    return tuple(sorted({*_RULES, *_entry_points()}))


def build(
    name: str,
    given: Mapping[str, Any],
    names: tuple[str, ...],
    *,
    where: str = "reweight",
    also: tuple[str, ...] = (),
) -> Strategy:
    """A rule with its options, checked for these domains.

    Args:
        name: a registered name, or one of an entry point of group ``domain_pretrain.strategies``.
        given: the rule's own options, as the user wrote them.
        names: the domains.
        where: path of the options in the config, for messages.
        also: further keys that are known there, for messages.

    Raises:
        ConfigError: unknown name or key, bad value, a domain without a value it needs.
    """
    rule, model = _find(name, where)
    return Strategy(name, rule, parse(model, given, where, also).bind(names, where))


def _find(name: str, where: str) -> tuple[Rule, type[Options]]:
    external = _entry_points()
    if name not in _RULES and name in external:
        point = external[name]
        try:
            point.load()  # registers by importing
        except Exception as error:
            raise ConfigError(
                f"{where}.strategy: {name!r} comes from {point.value!r}, which failed to import: "
                f"{type(error).__name__}: {error}"
            ) from error
        if name not in _RULES:
            raise ConfigError(
                f"{where}.strategy: {point.value!r} is installed as strategy {name!r}, but "
                f"importing it registers none of that name; it needs @register({name!r})"
            )
    if name not in _RULES:
        known = list(available())
        raise ConfigError(
            f"{where}.strategy: unknown strategy {name!r}{nearest(name, known)} "
            f"(known: {', '.join(known)})"
        )
    return _RULES[name]


def _entry_points() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in _RULES and _RULES[point.name][0].__module__.startswith(__package__ + "."):
            raise ConfigError(
                f"an installed package offers {point.value!r} as strategy {point.name!r}, which is "
                "the name of a built-in one; uninstall it, or have it renamed"
            )
        if found.setdefault(point.name, point).value != point.value:
            raise ConfigError(
                f"two installed packages offer a strategy {point.name!r}: "
                f"{found[point.name].value!r} and {point.value!r}; uninstall one"
            )
    return found
