"""Data flags whose words are in a file, which is read as Megatron reads it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from domain_pretrain.errors import ConfigError
from domain_pretrain.hosts.command_line import read_data_flags

STORE = {
    "msc://profile/blend.txt": "1 msc://profile/a 5 msc://profile/b",
    "msc://profile/odd.txt": "1 msc://profile/a msc://profile/b",
    "msc://profile/blends.json": json.dumps(
        {"train": "1 msc://profile/a 5 msc://profile/b", "valid": ["msc://profile/a"], "test": None}
    ),
}


def check(**flags: str) -> None:
    read_data_flags(SimpleNamespace(**flags))


class Client:
    """As much of the package ``multistorageclient`` as Megatron opens files with."""

    @staticmethod
    def open(path: str, mode: str) -> Any:
        if path not in STORE:
            raise RuntimeError(f"no object {path}")  # a kind of its own
        assert mode == "r"
        return io.StringIO(STORE[path])


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Multi-Storage Client of the Megatron that is installed, on."""
    utils = pytest.importorskip("megatron.core.msc_utils")
    monkeypatch.setattr(utils, "msc", Client)
    monkeypatch.setattr(utils.MultiStorageClientFeature, "_enabled", True)


def test_files_in_an_object_store(client: None) -> None:
    check(data_args_path="msc://profile/blend.txt")
    check(per_split_data_args_path="msc://profile/blends.json")
    with pytest.raises(ConfigError, match=r"^--data-args-path: '1' is taken for prefix 1 of 3"):
        check(data_args_path="msc://profile/odd.txt")
    with pytest.raises(
        ConfigError, match=r"^--data-args-path .*none.txt cannot be read: no object"
    ):
        check(data_args_path="msc://profile/none.txt")


def test_files_on_a_disk(tmp_path: Path) -> None:
    file = tmp_path / "blend.txt"
    file.write_text("1 s3://bucket/a 5 msc://profile/b", encoding="utf-8")
    check(data_args_path=str(file))
    with pytest.raises(ConfigError, match=r"none.txt cannot be read: .*No such file[^;]*$"):
        check(data_args_path=str(tmp_path / "none.txt"))


def test_an_object_store_without_its_client() -> None:
    with pytest.raises(ConfigError, match=r"multi-storage-client and, since 0\.18, --enable-msc"):
        check(data_args_path="msc://profile/blend.txt")
