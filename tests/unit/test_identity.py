"""A model is told from another by the content of what is imported, which is read once."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch

from domain_pretrain.commands import eval as command
from domain_pretrain.demo.journey import write_model
from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface import identity
from domain_pretrain.huggingface.exporting import export_model
from domain_pretrain.huggingface.found import find_checkpoint
from domain_pretrain.huggingface.identity import digest_of, read_files, recorded
from domain_pretrain.huggingface.importing import import_model
from domain_pretrain.launch.base_model import Import

safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("tokenizers")

WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content was read, as it is done."""
    found: list[str] = []
    original = identity._sha256

    def sha256(path: Path) -> str:
        found.append(path.name)
        return original(path)

    monkeypatch.setattr(identity, "_sha256", sha256)
    return found


def later(model: Path, folder: Path) -> Path:
    """A later checkpoint of the same model: the same files and sizes, another weight."""
    if folder != model:
        shutil.copytree(model, folder)
    with open(folder / WEIGHTS, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(struct.pack("<f", 42.0))
    return folder


def as_before(out: Path) -> None:
    """The record of a version that knew names and sizes alone."""
    path = out / "base.json"
    record = {"source": json.loads(path.read_text())["source"], "fingerprint": "0" * 64}
    path.write_text(json.dumps(record), encoding="utf-8")


def test_other_weights_are_another_model(model: Path, tmp_path: Path) -> None:
    later(model, tmp_path / "later")
    assert import_model(model, tmp_path / "base")
    with pytest.raises(ConfigError, match=r"base holds another model already, .*/model as it was"):
        import_model(tmp_path / "later", tmp_path / "base")
    assert not import_model(model, tmp_path / "base")


def test_weights_that_were_written_again(model: Path, tmp_path: Path) -> None:
    """In their old place: a run must not begin from what they were."""
    assert import_model(model, tmp_path / "base")
    assert Import(model, tmp_path / "base", needed=True).done()
    later(model, model)
    with pytest.raises(ConfigError, match="base holds another model already"):
        Import(model, tmp_path / "base", needed=True).done()


def test_what_is_not_imported_does_not_count(model: Path, tmp_path: Path) -> None:
    assert import_model(model, tmp_path / "base")
    (model / "note.json").write_text("{}", encoding="utf-8")
    (model / "training.txt").write_text("42", encoding="utf-8")
    assert not import_model(model, tmp_path / "base")
    (model / "LICENSE").write_text("free", encoding="utf-8")
    with pytest.raises(ConfigError, match="base holds another model already"):
        import_model(model, tmp_path / "base")


def test_files_are_read_once(model: Path, tmp_path: Path, reads: list[str]) -> None:
    out = tmp_path / "base"
    assert import_model(model, out)
    assert reads.count(WEIGHTS) == 1
    reads.clear()
    assert not import_model(model, out)
    assert reads == []
    os.utime(model / WEIGHTS, ns=(1, 1))
    assert not import_model(model, out)
    assert reads == [WEIGHTS]  # the same: and it is remembered as it is now
    assert not import_model(model, out)
    assert reads == [WEIGHTS]
    shutil.copytree(model, tmp_path / "elsewhere")
    assert not import_model(tmp_path / "elsewhere", out)
    assert reads.count(WEIGHTS) == 2


def test_links_into_a_cache_of_the_hub(model: Path, tmp_path: Path, reads: list[str]) -> None:
    """A link that leads to another file is another file."""
    (model / WEIGHTS).rename(tmp_path / "blob")
    (model / WEIGHTS).symlink_to(tmp_path / "blob")
    assert import_model(model, tmp_path / "base")
    shutil.copy2(tmp_path / "blob", tmp_path / "other")
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).symlink_to(tmp_path / "other")
    reads.clear()
    assert not import_model(model, tmp_path / "base")
    assert reads == [WEIGHTS]


def test_a_record_without_what_was_read(model: Path, tmp_path: Path) -> None:
    """Of an earlier version: the weights themselves are compared, once."""
    out = tmp_path / "base"
    assert import_model(model, out)
    as_before(out)
    assert not import_model(model, out)
    assert recorded(out) == dict(read_files(model))
    as_before(out)
    with pytest.raises(ConfigError, match="holds another model already"):
        import_model(later(model, tmp_path / "later"), out)
    (model / "generation_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds another model already"):
        import_model(model, out)
    assert recorded(out) is None


def test_a_record_that_is_none(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "base"
    assert import_model(model, out)
    (out / "base.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"base\.json should be an object .* import the model"):
        import_model(model, out)
    with pytest.raises(ConfigError, match=r"base\.json should be an object of keys"):
        export_model(find_checkpoint(out), tmp_path / "back")


def test_eval_imports_each_of_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    """Two folders of one name; what was imported before is neither imported nor read again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = tmp_path / "exp1" / "model", tmp_path / "exp2" / "model"
    shutil.copytree(model, first)
    made = [command._import(place) for place in (first, later(model, second))]
    assert made[0] != made[1]
    for place, base in zip((first, second), made, strict=True):
        export_model(find_checkpoint(base), base / "back")
        old, new = (safetensors.load_file(folder / WEIGHTS) for folder in (place, base / "back"))
        assert all(torch.equal(old[name], new[name]) for name in old)
    reads.clear()
    assert [command._import(place) for place in (first, second)] == made
    assert reads == []
    assert made[0].name == f"model-{digest_of(dict(read_files(first)))[:16]}"
