"""The recipes of docs/extending.md work as they stand: copied, installed, named in a config."""

from __future__ import annotations

import csv
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domain_pretrain.config import DomainConfig
from domain_pretrain.errors import ConfigError, WriterError
from domain_pretrain.evaluate.probe import PROBES
from domain_pretrain.records.exporter import EXPORTERS, Exporter, Publisher, configured
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.record import Finding, Record
from domain_pretrain.rules.registry import Registry
from domain_pretrain.stats import DomainStats
from domain_pretrain.strategies import build
from domain_pretrain.strategies.registry import STRATEGIES
from domain_pretrain.watch import Reading, Watch
from domain_pretrain.watch.alarm import ALARMS
from domain_pretrain.watch.section import Watching

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
NAMES = ("general", "finance")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


# A block whose first line is a path is that file.
FILES = {
    found[1]: block
    for language in ("python", "toml", "yaml")
    for block in blocks(language)
    if (found := re.match(r"# ([\w/]+\.\w+)\n", block))
}


def trial(heading: str) -> str:
    """The block of a section that is to be tried out."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"^Try it.*?```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return str(code)


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of the page, as pip would leave it; registries that forget it afterwards."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "my_rules" / "__init__.py").touch()
    info = tmp_path / "my_rules-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-rules\nVersion: 0.1\n")
    points = re.findall(
        r'^\[project\.entry-points\."(.*?)"\]\n(.*?)(?=^\[|\Z)',
        FILES["pyproject.toml"],
        re.MULTILINE | re.DOTALL,
    )
    assert points
    text = "\n".join(f"[{group}]\n{lines}" for group, lines in points).replace('"', "")
    (info / "entry_points.txt").write_text(text)
    registry: Registry[Any]
    for registry in (STRATEGIES, ALARMS, PROBES, EXPORTERS):
        monkeypatch.setattr(registry, "_rules", dict(registry._rules))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "my_rules"]:
        monkeypatch.delitem(sys.modules, name)


def test_the_page_shows_every_file_of_the_package() -> None:
    assert set(FILES) == {
        "pyproject.toml",
        "domains.yaml",
        *(f"my_rules/{name}.py" for name in ("steep", "relapse", "rank", "csv_file")),
    }


def test_the_config_of_the_page_finds_all_of_them() -> None:
    config = DomainConfig.load("domains.yaml")
    section = config.reweighting(None)
    assert section is not None and section.strategy == "steep"
    assert build(section.strategy, {"power": 3}, NAMES).name == "steep"
    Watch(config.watch, NAMES)
    (one,) = configured(config.exporters, NAMES)
    assert one.name == "csv"


def test_strategy() -> None:
    space: dict[str, Any] = {}
    exec(trial("A strategy"), space)
    np.testing.assert_allclose(space["weights"], [1 / 9, 8 / 9], rtol=1e-14)
    with pytest.raises(ConfigError, match="power"):
        build("steep", {"power": 0}, NAMES)


def alarm_space() -> dict[str, Any]:
    space: dict[str, Any] = {}
    exec(trial("An alarm"), space)
    return space


def test_alarm() -> None:
    """It finds what it is for, nothing in training, and remembers by name across a resume."""
    space = alarm_space()
    finding, watch, stats = space["finding"], space["watch"], space["stats"]
    assert (finding.rule, finding.domain, finding.iteration) == ("relapse", "general", 200)
    assert finding.evidence == {"loss": pytest.approx(1.9), "best": pytest.approx(1.8)}
    assert f"# {finding.message}\n" in PAGE
    assert not watch.read(Reading("train", 300, stats(9.0, 9.0)))

    swapped = NAMES[::-1]
    resumed = Watch(DomainConfig.load("domains.yaml").watch, swapped)
    resumed.load_state_dict(watch.state_dict())
    now = DomainStats(swapped, stats(2.2, 1.9).sums)  # finance has its best loss, general has not
    (again,) = resumed.read(Reading("valid", 300, now))
    assert (again.domain, again.evidence["best"]) == ("general", pytest.approx(1.8))


def test_an_alarm_reaches_the_exporters(capsys: pytest.CaptureFixture[str]) -> None:
    space = alarm_space()
    publisher = open_publisher(None, None, None, "token", after_iteration=0)
    publisher.finding(space["finding"])
    assert f"WARNING: {space['finding'].message}" in capsys.readouterr().out


def test_probe() -> None:
    space: dict[str, Any] = {}
    exec(trial("A probe"), space)
    score = space["score"]
    assert (score.name, score.domain, score.sum, score.count) == ("beats", "letters", 1, 2)
    assert f"# {score.mean}\n" in PAGE


def test_exporter(tmp_path: Path) -> None:
    space = alarm_space()
    exec(trial("An exporter"), space)
    space["publisher"].finding(Finding("x", None, 10, "info", "an exporter need not take these"))
    space["publisher"].line(Record("valid", 20, 640, space["stats"](1.5, 2.5)))
    with (tmp_path / "losses.csv").open(newline="") as file:
        rows = [
            (int(iteration), split, name, round(float(loss), 6), float(tokens))
            for iteration, split, name, loss, tokens in csv.reader(file)
        ]
    assert rows == [
        (10, "train", "general", 1.8, 1000.0),
        (10, "train", "finance", 2.4, 1000.0),
        (20, "valid", "general", 1.5, 1000.0),
        (20, "valid", "finance", 2.5, 1000.0),
    ]


def test_an_exporter_that_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the rank that writes finds out, so the error is of the kind that this rank prints."""
    config = configured({"csv": {"path": "losses.csv"}}, NAMES)
    broken = dataclasses.replace(config[0], rule=lambda options, start: 1 / 0)
    with pytest.raises(WriterError, match=r"exporters\.csv cannot be opened: ZeroDivisionError"):
        open_publisher(None, None, None, "token", after_iteration=0, others=[broken])


def test_one_exporter_that_cannot_be_closed_leaves_the_others_to_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken(Exporter):
        def close(self) -> None:
            raise OSError("gone")

    class Closed(Exporter):
        closed = False

        def close(self) -> None:
            self.closed = True

    last = Closed()
    Publisher([Broken(), last]).close()
    assert last.closed
    assert "Broken cannot be closed: OSError('gone')" in capsys.readouterr().out


def test_a_state_that_no_checkpoint_takes_shows_at_the_first_reading() -> None:
    space = alarm_space()

    @ALARMS.register("hoarding")
    def hoarding(seen: Reading, state: Any, options: Any) -> Any:
        return [], {"lines": [seen]}

    @ALARMS.register("counting")
    def counting(seen: Reading, state: Any, options: Any) -> Any:
        return [], {"highest": np.float64(3.5), "count": np.int64(2)}

    watch = Watch(Watching(alarms={"hoarding": {}}), NAMES)
    with pytest.raises(TypeError, match="state 'lines' is list"):
        watch.read(Reading("train", 1, space["stats"](1.0, 2.0)))
    watch = Watch(Watching(alarms={"counting": {}}), NAMES)
    watch.read(Reading("train", 1, space["stats"](1.0, 2.0)))
    kept = watch.state_dict()["counting"]
    assert {key: type(value) for key, value in kept.items()} == {"highest": float, "count": int}
