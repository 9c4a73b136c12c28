"""The strategies by name, and one of them set up for a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np

from domain_pretrain.errors import IntegrityError
from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import Options
from domain_pretrain.rules.registry import Configured, Registry
from domain_pretrain.rules.state import State
from domain_pretrain.strategies.course import Course
from domain_pretrain.strategies.observation import Array, Observation

# (what was observed, what the rule kept, its options) → (weights [D], what it keeps).
# A pure function: it never writes into what it is given. See Observation.weights for the weights.
Rule = Callable[[Observation, State, Any], tuple[Array, State]]

# What a rule may move: multipliers on the losses, or the shares of what is sampled.
Actuator = Literal["losses", "sampling"]
ACTUATORS: tuple[Actuator, ...] = get_args(Actuator)
# Of a rule whose weights are shares of the tokens as they are to be, not a tilt around the blend.
SHARES: Mapping[str, Any] = {
    "objective": "domain_mean",
    "uniform_part": 0.0,
    "warmup_steps": 0,
    "clip": (0.0, 1e6),
}


class StrategyOptions(Options):
    """Options of a rule that says more of itself; plain :class:`Options` do for the others.

    Attributes:
        steers: what the rule may move.
        settles: keys of the section that the rule decides itself.
        needs: what it must be told of :class:`.Course`.
        pins: whether domains may be pinned, which it then has no say in.
    """

    steers: ClassVar[tuple[Actuator, ...]] = ACTUATORS
    settles: ClassVar[Mapping[str, Any]] = {}
    needs: ClassVar[frozenset[str]] = frozenset()
    pins: ClassVar[bool] = True

    def wants(self) -> frozenset[str]:
        """What it needs with these options."""
        return self.needs

    def doubts(self, tokens: float) -> Iterable[str]:
        """What a person should know at start-up.

        Args:
            tokens: of the fixed validation set, of the domains in :meth:`bases` together.
        """
        return ()

    def bases(self, state: State, names: tuple[str, ...]) -> dict[str, bool]:
        """Domains whose validation loss is compared with a base, and whether there is one yet.

        Args:
            state: of the rule.
            names: all domains.
        """
        return {}

    def findings(self, state: State, iteration: int) -> Iterable[Finding]:
        """What a person should know, after a step that was taken.

        Args:
            state: of the rule, now.
            iteration: that it is of.
        """
        return ()

    def summary(self, state: State, names: tuple[str, ...], course: Course) -> str | None:
        """A sentence at the end of the run; None: nothing to say.

        Args:
            state: of the rule.
            names: all domains.
            course: of the evaluation after the last step; only ``valid`` and ``errors`` are told.
        """
        return None


# What a rule says of itself, and what it keeps.
Terms = tuple[StrategyOptions, State]

STRATEGIES: Registry[Rule] = Registry("strategy", "domain_pretrain.strategies")
register = STRATEGIES.register
available = STRATEGIES.available


@dataclass(frozen=True)
class Strategy(Configured[Rule]):
    """A rule with its options, ready for use."""

    @property
    def terms(self) -> StrategyOptions:
        """What the rule says of itself; of plain options, what holds where nothing is said."""
        return self.options if isinstance(self.options, StrategyOptions) else StrategyOptions()

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


# What a rule may need of a run, in words, and how one gets it; see :attr:`StrategyOptions.needs`.
NEEDS: Mapping[str, tuple[str, str]] = {
    "valid": (
        "the losses of a fixed validation set",
        "give evaluate.samples (Megatron-LM alone)",
    ),
    "progress": ("how far the run is", "a run of Megatron-LM knows its end"),
    "lr": ("the learning rate", "a run of Megatron-LM knows it"),
}


class Described(NamedTuple):
    """A strategy in words: its name, what it may steer, and what a run must have for it."""

    name: str
    steers: tuple[str, ...]
    needs: tuple[str, ...]


def described() -> list[Described]:
    """All strategies by name; of an installed one that is not imported yet, the name alone."""
    rows = []
    for name in available():
        options = STRATEGIES.options(name)
        if options is None:
            rows.append(Described(name, (), ()))
            continue
        own = options if issubclass(options, StrategyOptions) else StrategyOptions
        required = (key for key, field in options.model_fields.items() if field.is_required())
        needs = (*required, *(NEEDS[need][0] for need in sorted(own.needs)))
        rows.append(Described(name, own.steers, needs))
    return rows


def build(
    name: str,
    given: Mapping[str, Any],
    names: tuple[str, ...],
    *,
    where: str = "reweight",
    also: tuple[str, ...] = (),
) -> Strategy:
    """A strategy with its options, checked for these domains: see :meth:`.Registry.build`."""
    found = STRATEGIES.build(name, given, names, key=f"{where}.strategy", where=where, also=also)
    return Strategy(found.name, found.rule, found.options)
