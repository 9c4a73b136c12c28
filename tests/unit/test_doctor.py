"""The doctor's verdict and exit code, on real and on made-up hosts."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.made_up import write_host

from domain_pretrain.backends import select
from domain_pretrain.backends.cpu_seams import CUDA_EXTENSIONS
from domain_pretrain.commands.main import main
from domain_pretrain.hosts.experts import EXPERT_SEAMS
from domain_pretrain.hosts.megatron import SEAMS
from domain_pretrain.strategies import available


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A made-up checkout in which every seam fits."""
    write_host(tmp_path, SEAMS + EXPERT_SEAMS, "0.19.1")
    return tmp_path


def test_a_host_that_fits(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--host", str(host)]) == 0
    assert "0.19.1" in capsys.readouterr().out


def test_the_strategies_with_what_they_need(
    host: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["doctor", "--host", str(host)])
    rows = [line for line in capsys.readouterr().out.splitlines() if "losses or sampling" in line]
    named = {row.split()[1]: row for row in rows}
    assert set(available()) == set(named)
    for part in ("epsilon", "the learning rate", "fixed validation set"):
        assert part in named["hold"]
    assert "how far the run is" in named["ramp"]


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("training/training.py", "def train_step", "def train_one", "train_step"),
        ("training/training.py", "prefix, ", "", "prefix"),
        ("core/package_info.py", "MINOR = 19", "MINOR = 11", "0.11.1"),
        ("core/optimizer_param_scheduler.py", "load_state_dict", "load", "load_state_dict"),
    ],
)
def test_a_host_that_does_not(
    host: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, said: str
) -> None:
    path = host / "megatron" / file
    path.write_text(path.read_text().replace(old, new))
    assert main(["doctor", "--host", str(host)]) == 1
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("name", ["empty", "mega[tron]", "mega[/tron]"])
def test_no_host(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--host", name]) == 1
    assert f"no megatron/training in {name}: no Megatron found" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["0.19.1", "0.11.1"])
def test_where_a_host_is(
    version: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    host = tmp_path / "a[" / "host]"
    write_host(host, SEAMS + EXPERT_SEAMS, version)
    assert main(["doctor", "--host", str(host)]) == (version == "0.11.1")
    assert f"megatron.core {version} at {host / 'megatron'}: " in capsys.readouterr().out


def test_the_installed_megatron(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("megatron.core")
    assert main(["doctor"]) == 0
    assert (CUDA_EXTENSIONS.target in capsys.readouterr().out) == (select() == "cpu")
