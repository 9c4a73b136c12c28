"""Corpora and a checkpoint that the end-to-end tests share, and the end of what starts them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.corpora import blend_flags, write_corpora
from support.forks import close_fork_servers
from support.launch import start, train


@pytest.fixture(scope="session", autouse=True)
def fork_servers() -> Iterator[None]:
    """They are started where a run needs one; none is to outlive the tests."""
    yield
    close_fork_servers()


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five small corpora: see :mod:`support.corpora`."""
    pytest.importorskip("megatron.core.datasets.indexed_dataset")
    folder = tmp_path_factory.mktemp("corpora")
    write_corpora(folder)
    return folder


@pytest.fixture(scope="session")
def blend(corpora: Path) -> list[str]:
    """``--data-path`` with one frequent domain and some that most microbatches do not hold."""
    return blend_flags(corpora)


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Path:
    """A torch_dist checkpoint that every layout can load."""
    folder = tmp_path_factory.mktemp("base")
    save = ["--save", folder / "checkpoint", "--save-interval", "2", "--no-save-optim"]
    train(folder / "log", *blend, *save, iterations=2)
    return folder / "checkpoint"


@pytest.fixture
def forked_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``eval`` and ``replay`` start is forked, instead of started anew."""

    def run_logged(words: list[str], environment: Any, log: Path, what: str) -> Iterator[str]:
        code, output = start(1, *words[words.index("domain_pretrain") + 1 :])
        assert code == 0, output[-6000:]
        yield from output.splitlines()

    monkeypatch.setattr("domain_pretrain.commands.eval.run_logged", run_logged)
