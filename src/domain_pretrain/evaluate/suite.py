"""``suite``: probes of a file, by a name: a built-in one, or the path of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.model import Model
from domain_pretrain.evaluate.probe import (
    Probe,
    ProbeOptions,
    build_probes,
    check_probes,
    predicting,
    register,
)
from domain_pretrain.records.score import Score
from domain_pretrain.rules.options import Names
from domain_pretrain.rules.registry import Configured
from domain_pretrain.suggest import did_you_mean
from domain_pretrain.yaml_file import read_yaml

BUILT_IN = {path.stem: path for path in Path(__file__).with_name("suites").glob("*.yaml")}


class SuiteOptions(ProbeOptions):
    """Options of ``suite``.

    Attributes:
        files: names of built-in suites, or paths of YAML files that hold what ``evaluate.probes``
            of the config does.
    """

    files: Names

    @cached_property
    def suites(self) -> Mapping[str, Sequence[Configured[Probe]]]:
        """By name of the suite: its probes, read once."""
        paths = [_find(given) for given in self.files]
        names = [path.stem for path in paths]
        if len(set(names)) < len(names):
            raise ConfigError(f"two suites have the same name ({', '.join(names)}): rename a file")
        return {path.stem: _read(path) for path in paths}

    def check(self) -> None:
        """Read the suites, and all that their probes need.

        Raises:
            ConfigError: a suite is not there or wrong, or a probe of it cannot run.
        """
        _ = self.suites

    def predicting(self) -> bool:
        """Whether a probe of a suite does."""
        return any(predicting(probes) for probes in self.suites.values())


@register("suite", SuiteOptions)
def suite(model: Model, options: SuiteOptions) -> list[Score]:
    """The scores of the suites' probes, named ``<suite>.<score>``."""
    return [
        replace(score, name=f"{name}.{score.name}")
        for name, probes in options.suites.items()
        for probe in probes
        for score in probe.rule(model, probe.options)
    ]


def _find(given: str) -> Path:
    path = BUILT_IN.get(given, Path(given))
    if not path.is_file():
        raise ConfigError(
            f"there is no suite {given!r}{did_you_mean(given, BUILT_IN)} (built in: "
            f"{', '.join(sorted(BUILT_IN))}), and no such file (current directory: {Path.cwd()})"
        )
    return path


def _read(path: Path) -> list[Configured[Probe]]:
    content = read_yaml(path, "suite")
    if not isinstance(content, dict) or not all(isinstance(one, dict) for one in content.values()):
        raise ConfigError(
            f"suite {str(path)!r} must be a mapping from names of probes to their options, as "
            "evaluate.probes of the config is"
        )
    if "suite" in content:
        raise ConfigError(f"suite {str(path)!r} names suites itself; name them in the config")
    try:
        probes = build_probes(content)
        check_probes(probes)
    except ConfigError as error:
        raise ConfigError(f"suite {str(path)!r}: {error}") from None
    return probes
