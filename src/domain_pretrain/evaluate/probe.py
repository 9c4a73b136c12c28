"""Probes by name, and running them.

Another package adds one by a decorator and an entry point of the group ``domain_pretrain.probes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from domain_pretrain.evaluate.model import Model
from domain_pretrain.records.score import Score
from domain_pretrain.rules.registry import Registry

# (the model, the probe's options) → scores. A pure function; the model is not changed.
Probe = Callable[[Model, Any], Sequence[Score]]

PROBES: Registry[Probe] = Registry("probe", "domain_pretrain.probes")
register = PROBES.register


def run_probes(section: Mapping[str, Mapping[str, Any]], model: Model) -> list[Score]:
    """Run probes on a model.

    Args:
        section: the options of every probe, by its name, as a YAML file would hold them.
        model: what they ask.

    Raises:
        ConfigError: an unknown probe or a wrong option, before any of them runs.
    """
    probes = [
        PROBES.build(name, given, (), key="probes", where=f"probes.{name}")
        for name, given in section.items()
    ]
    return [score for probe in probes for score in probe.rule(model, probe.options)]
