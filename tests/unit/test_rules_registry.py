"""Rules by name, of whatever kind: names, options, and other packages' entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import Field

from domain_pretrain.errors import ConfigError
from domain_pretrain.records.exporter import EXPORTERS
from domain_pretrain.rules import registry
from domain_pretrain.rules.options import Options, Positive, check_domains
from domain_pretrain.rules.registry import Configured, Registry
from domain_pretrain.strategies.registry import STRATEGIES
from domain_pretrain.watch.alarm import ALARMS

NAMES = ("finance", "general")
Install = Callable[..., None]
Build = Callable[..., Configured[Any]]


class Edge(Options):
    edge: Positive = 2.0
    only: dict[str, float] = Field(default_factory=dict)

    def bind(self, names: tuple[str, ...], where: str) -> Edge:
        check_domains(f"{where}.only", self.only, names, complete=False)
        return self.model_copy(update={"only": {name: self.edge for name in names}})


def steep() -> None: ...


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    """A kind of its own, with one built-in rule; no other package is installed."""
    monkeypatch.setattr(registry, "_installed", lambda path: EntryPoints())
    made: Registry[Any] = Registry("probe", "domain_pretrain.probes")

    def flat() -> None: ...

    flat.__module__ = "domain_pretrain.probes.flat"
    made.register("flat")(flat)
    return made


@pytest.fixture
def build(probes: Registry[Any]) -> Build:
    def build(name: str, **given: Any) -> Configured[Any]:
        return probes.build(
            name, given, NAMES, key="watch.probes", where=f"watch.probes.{name}", also=("every",)
        )

    return build


@pytest.fixture
def install(probes: Registry[Any], monkeypatch: pytest.MonkeyPatch) -> Install:
    """Pretend that packages with these entry points are installed: (name, value) pairs."""

    def install(*points: tuple[str, str]) -> None:
        found = [EntryPoint(name, value, probes.group) for name, value in points]
        monkeypatch.setattr(registry, "_installed", lambda path: EntryPoints(found))

    return install


# --- names and options --------------------------------------------------------------------------


def test_a_rule_comes_with_its_options_bound_to_the_domains(
    probes: Registry[Any], build: Build
) -> None:
    assert probes.register("steep", Edge)(steep) is steep, "the decorated rule stays itself"
    assert probes.available() == ("flat", "steep")
    found = build("steep", edge=3.0)
    assert (found.name, found.rule) == ("steep", steep)
    assert found.options == Edge(edge=3.0, only={"finance": 3.0, "general": 3.0})
    assert build("flat").options == Options()


def test_a_name_is_taken_once(probes: Registry[Any]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"two rules are registered as probe 'flat': domain_pretrain\.probes\.flat and "
        rf"{__name__}; rename one",
    ):
        probes.register("flat")(steep)


def test_an_unknown_name_suggests_the_nearest_and_lists_all(build: Build, install: Install) -> None:
    install(("steep", "somewhere"))  # known without being imported
    with pytest.raises(ConfigError) as error:
        build("stepp")
    assert str(error.value) == (
        "watch.probes: unknown probe 'stepp'; did you mean 'steep'? (known: flat, steep)"
    )
    with pytest.raises(ConfigError, match=r"unknown probe 'zzz' \(known: flat, steep\)"):
        build("zzz")


def test_a_wrong_option_is_named_by_its_path(probes: Registry[Any], build: Build) -> None:
    probes.register("steep", Edge)(steep)
    with pytest.raises(ConfigError, match=r"^watch\.probes\.steep\.edge: .*greater than 0"):
        build("steep", edge=0)
    with pytest.raises(
        ConfigError,
        match=r"^watch\.probes\.steep\.egde: unknown key; did you mean 'edge'\? "
        r"\(known keys: edge, only, every\)$",
    ):
        build("steep", egde=1)
    with pytest.raises(ConfigError, match=r"^watch\.probes\.flat\.edge: unknown key"):
        build("flat", edge=1)
    with pytest.raises(ConfigError, match=r"steep\.only: there is no domain 'finanse'; did you"):
        build("steep", only={"finanse": 1})


def test_every_kind_has_entry_points_of_its_own() -> None:
    kinds = (STRATEGIES, ALARMS, EXPORTERS)
    assert len({kind.group for kind in kinds}) == len({kind.kind for kind in kinds}) == 3
    for kind in kinds:
        with pytest.raises(ConfigError, match=f"here: unknown {kind.kind} 'zzz' "):
            kind.build("zzz", {}, NAMES, key="here", where="here.zzz")


# --- entry points -------------------------------------------------------------------------------


def test_an_entry_point_is_imported_when_somebody_asks_for_it(
    probes: Registry[Any],
    build: Build,
    install: Install,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("plugin_host", "steep_probe"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    host = ModuleType("plugin_host")
    host.register = probes.register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plugin_host", host)
    (tmp_path / "steep_probe.py").write_text(
        "from plugin_host import register\n@register('steep')\ndef steep(): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    install(("steep", "steep_probe"))
    assert probes.available() == ("flat", "steep")
    build("flat")
    assert "steep_probe" not in sys.modules
    for _ in range(2):  # once imported, it is beside its entry point, and no clash
        assert build("steep").rule is sys.modules["steep_probe"].steep
    monkeypatch.delitem(sys.modules, "steep_probe")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "ModuleNotFoundError: No module named 'broken_probe'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def", "SyntaxError: "),
    ],
)
def test_an_entry_point_that_fails_to_import(
    text: str | None,
    why: str,
    build: Build,
    install: Install,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if text is not None:
        (tmp_path / "broken_probe.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    install(("steep", "broken_probe"))
    with pytest.raises(ConfigError) as error:
        build("steep")
    assert str(error.value).startswith(
        f"watch.probes: 'steep' comes from 'broken_probe', which failed to import: {why}"
    )


def test_an_entry_point_that_registers_nothing(
    build: Build, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "idle_probe", ModuleType("idle_probe"))
    install(("steep", "idle_probe"))
    with pytest.raises(
        ConfigError,
        match=r"watch\.probes: 'idle_probe' is installed as probe 'steep', but importing it "
        r"registers none of that name; it needs @register\('steep'\)",
    ):
        build("steep")


def test_an_entry_point_with_the_name_of_a_built_in_rule(build: Build, install: Install) -> None:
    install(("flat", "mine"))
    with pytest.raises(
        ConfigError, match="offers 'mine' as probe 'flat', which is the name of a built-in one"
    ):
        build("flat")


def test_two_entry_points_of_one_name(build: Build, install: Install) -> None:
    install(("steep", "one"), ("steep", "two"))
    with pytest.raises(
        ConfigError,
        match="two installed packages offer a probe 'steep': 'one' and 'two'; uninstall one",
    ):
        build("steep")


def test_one_package_that_is_found_twice_is_one(probes: Registry[Any], install: Install) -> None:
    install(("steep", "one"), ("steep", "one"))
    assert probes.available() == ("flat", "steep")


def test_installed_packages_are_read_once_for_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[None] = []

    def entry_points() -> EntryPoints:
        reads.append(None)
        return EntryPoints()

    monkeypatch.setattr(registry, "entry_points", entry_points)
    made: Registry[Any] = Registry("probe", "domain_pretrain.probes")
    registry._installed.cache_clear()
    assert made.available() == made.available() == ()
    assert len(reads) == 1
    monkeypatch.syspath_prepend("a folder of more packages")
    assert made.available() == ()
    assert len(reads) == 2
    registry._installed.cache_clear()  # what was read here is no other test's
