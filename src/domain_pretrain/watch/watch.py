"""The alarms of a run: asked on every rank alike, with their state in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from domain_pretrain.records.record import Finding
from domain_pretrain.rules import state as codec
from domain_pretrain.rules.registry import Configured
from domain_pretrain.rules.state import State
from domain_pretrain.stats import DomainStats, Split
from domain_pretrain.watch.alarm import ALARMS, Alarm, Known, Reading
from domain_pretrain.watch.scores import Scores
from domain_pretrain.watch.section import Watching

# On unless the config turns them off; in this order.
DEFAULT = (
    "nonfinite",
    "all_moved",
    "spike",
    "dirty",
    "too_low",
    "duplicate",
    "starved",
    "forgetting",
    "plateau",
    "few_experts",
)
_GRAD_NORM = "grad_norm"
_OWN = "/readings"  # in the state, beside the alarms: no alarm has such a name


class Watch:
    """The alarms that are on, and what they keep.

    Args:
        section: of the config.
        names: the domains.
        known: of the data.

    Raises:
        ConfigError: an unknown alarm, or a wrong option; names the key.
    """

    def __init__(
        self, section: Watching, names: tuple[str, ...], known: Known | None = None
    ) -> None:
        asked = {**{name: {} for name in DEFAULT}, **section.alarms}
        self.known = known or Known()
        self._names = names
        self._alarms: list[Configured[Alarm]] = [
            ALARMS.build(name, given, names, key="watch.alarms", where=f"watch.alarms.{name}")
            for name, given in asked.items()
            if given is not False
        ]
        for name, given in section.alarms.items():
            if given is False:  # a name that there is not is a mistake here, too
                ALARMS.build(name, {}, names, key="watch.alarms", where=f"watch.alarms.{name}")
        self._can_be_kept = False
        self._states: dict[str, State] = {alarm.name: {} for alarm in self._alarms}
        self._losses, self._host = Scores(names), Scores((_GRAD_NORM,))
        self._behind = (0, 0)  # iteration and consumed samples at the last window's end
        self._trained = 0  # samples since then, without those of skipped updates

    @property
    def names(self) -> tuple[str, ...]:
        """Of the alarms that are on."""
        return tuple(alarm.name for alarm in self._alarms)

    def begin(self, iteration: int, consumed_samples: int) -> None:
        """Where the first window starts, unless the state that is loaded says otherwise."""
        self._behind = (iteration, consumed_samples)

    def trained(self, samples: int) -> None:
        """After a step whose update was made: it read so many samples."""
        self._trained += samples

    def window(
        self,
        iteration: int,
        consumed_samples: int,
        stats: DomainStats,
        host: Mapping[str, float],
    ) -> Reading:
        """A logged window of training as the alarms read it; takes its numbers in.

        Args:
            iteration, consumed_samples: at its end.
            stats: its exact sums.
            host: the host's numbers of its last step.
        """
        begun, taken = self._behind
        self._behind = (iteration, consumed_samples)
        trained, self._trained = self._trained, 0
        average = self.known.average
        losses = {
            name: (totals.loss(average), float(totals.samples))
            for name, totals in stats
            if not totals.nonfinite
        }
        norm = host.get(_GRAD_NORM, math.nan)
        grad = {_GRAD_NORM: (math.log(norm), 1.0)} if 0 < norm < math.inf else {}
        scores, grad_scores = self._losses.score(losses), self._host.score(grad)
        shares = self.known.shares
        return Reading(
            "train",
            iteration,
            stats,
            iterations=(begun + 1, iteration + 1),
            samples=(taken, consumed_samples),
            trained=trained,
            host=host,
            scores=scores,
            grad_z=grad_scores[_GRAD_NORM].z if grad_scores else None,
            noise=self._losses.noise(),
            shares={} if shares is None else shares(taken, consumed_samples),
            known=self.known,
        )

    def evaluation(
        self,
        split: Split,
        iteration: int,
        stats: DomainStats,
        errors: Mapping[str, float] = MappingProxyType({}),
    ) -> Reading:
        """An evaluation as the alarms read it.

        Args:
            split, iteration, stats: see :class:`.Reading`.
            errors: standard errors of the domains' means, where its samples are counted one by one.
        """
        samples = {name: totals.samples for name, totals in stats}
        own = {name: error * math.sqrt(samples.get(name, 0)) for name, error in errors.items()}
        noise = {**own, **self._losses.noise()}
        return Reading(split, iteration, stats, noise=noise, known=self.known)

    def read(self, seen: Reading) -> list[Finding]:
        """Ask every alarm. No collective: all ranks see the same sums and find the same."""
        found: list[Finding] = []
        for alarm in self._alarms:
            new, self._states[alarm.name] = alarm.rule(
                seen, self._states[alarm.name], alarm.options
            )
            found += new
        if not self._can_be_kept:  # a state that no checkpoint takes shows now, not hours later
            self.state_dict()
            self._can_be_kept = True
        return found

    def state_dict(self) -> dict[str, Any]:
        """Python primitives, by alarm and domain name; alarms that keep nothing are left out."""
        own = {
            "losses": self._losses.state_dict(),
            "host": self._host.state_dict(),
            "behind": list(self._behind),
            "trained": self._trained,
        }
        states = {
            name: codec.dump(state, self._names) for name, state in self._states.items() if state
        }
        return {**states, _OWN: own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse; an alarm that was not on then starts afresh."""
        for name in self._states.keys() & state.keys():
            self._states[name] = codec.load(state[name], self._names)
        if _OWN in state:
            own = state[_OWN]
            self._losses.load_state_dict(own["losses"])
            self._host.load_state_dict(own["host"])
            self._behind = (own["behind"][0], own["behind"][1])
            self._trained = own.get("trained", 0)  # in none of an earlier version
