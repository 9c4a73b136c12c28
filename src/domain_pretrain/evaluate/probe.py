"""Probes by name, and running them.

Another package adds one by a decorator and an entry point of the group ``domain_pretrain.probes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from domain_pretrain.evaluate.model import Model
from domain_pretrain.records.score import Score
from domain_pretrain.rules.options import Options
from domain_pretrain.rules.registry import Configured, Registry

# (the model, the probe's options) → scores. The model is not changed.
Probe = Callable[[Model, Any], Sequence[Score]]

PROBES: Registry[Probe] = Registry("probe", "domain_pretrain.probes")
register = PROBES.register


class ProbeOptions(Options):
    """Options of a probe.

    Attributes:
        predicts: the probe calls :meth:`Model.predict`, which not every layout can do.
    """

    predicts: ClassVar[bool] = False

    def predicting(self) -> bool:
        """:attr:`predicts`, or that of a probe it runs. Asked after :meth:`check`, on that rank."""
        return self.predicts

    def check(self) -> None:
        """See that what the probe is going to read and to import is there, before a model is.

        Called on the rank that probes run on.

        Raises:
            ConfigError: it is not; names the file or the package.
        """


def build_probes(section: Mapping[str, Mapping[str, Any]]) -> list[Configured[Probe]]:
    """The probes of a config, their options read; nothing else is.

    Args:
        section: the options of every probe, by its name, as a YAML file would hold them.

    Raises:
        ConfigError: an unknown probe or a wrong option.
    """
    return [
        PROBES.build(name, given, (), key="probes", where=f"probes.{name}")
        for name, given in section.items()
    ]


def check_probes(probes: Sequence[Configured[Probe]]) -> None:
    """See that they can run; see :meth:`ProbeOptions.check`."""
    for probe in probes:
        _terms(probe).check()


def predicting(probes: Sequence[Configured[Probe]]) -> list[str]:
    """The names of those that predict; see :meth:`ProbeOptions.predicting`."""
    return [probe.name for probe in probes if _terms(probe).predicting()]


def _terms(probe: Configured[Probe]) -> ProbeOptions:
    """What the options say of the probe; of plain ones, what holds of any."""
    return probe.options if isinstance(probe.options, ProbeOptions) else ProbeOptions()


def run_probes(section: Mapping[str, Mapping[str, Any]], model: Model) -> list[Score]:
    """Run probes on a model.

    Args:
        section: as :func:`build_probes` takes it.
        model: what they ask.

    Raises:
        ConfigError: of one that cannot run, before any of them does.
    """
    probes = build_probes(section)
    check_probes(probes)
    return [score for probe in probes for score in probe.rule(model, probe.options)]
