"""The alarms of a run: asked on every rank alike, with their state in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domain_pretrain.records.record import Finding
from domain_pretrain.rules import state as codec
from domain_pretrain.rules.registry import Configured
from domain_pretrain.rules.state import State
from domain_pretrain.watch.alarm import ALARMS, Alarm, Reading
from domain_pretrain.watch.section import Watching

ALWAYS = ("nonfinite",)


class Watch:
    """The alarms that the config asks for, and those that are always on.

    Args:
        section: of the config.
        names: the domains.

    Raises:
        ConfigError: an unknown alarm, or a wrong option; names the key.
    """

    def __init__(self, section: Watching, names: tuple[str, ...]) -> None:
        asked = {**{name: {} for name in ALWAYS}, **section.alarms}
        self._names = names
        self._alarms: list[Configured[Alarm]] = [
            ALARMS.build(name, given, names, key="watch.alarms", where=f"watch.alarms.{name}")
            for name, given in asked.items()
        ]
        self._can_be_kept = False
        self._states: dict[str, State] = {alarm.name: {} for alarm in self._alarms}

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
        return {
            name: codec.dump(state, self._names) for name, state in self._states.items() if state
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse; an alarm that was not on then starts afresh."""
        for name in self._states.keys() & state.keys():
            self._states[name] = codec.load(state[name], self._names)
