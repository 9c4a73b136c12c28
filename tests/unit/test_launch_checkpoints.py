"""Which checkpoint a run resumes from, after what crashes and full disks leave."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import tracemalloc
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import WriteItemType

from domain_pretrain.checkpoints.whole import find_damage
from domain_pretrain.errors import ConfigError
from domain_pretrain.launch.checkpoints import TRACKER, find_resume, repair_tracker


def save_distributed(folder: Path, iteration: int) -> Path:
    """As Megatron's torch_dist: PyTorch's distributed checkpoint, then metadata.json."""
    path = folder / f"iter_{iteration:07d}"
    state = {"weight": torch.ones(100), "bias": torch.ones(7)}
    dcp.save(state, checkpoint_id=path)
    torch.save({"iteration": iteration}, path / "common.pt")
    (path / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    (folder / TRACKER).write_text(str(iteration))
    return path


def save_torch(folder: Path, iteration: int) -> Path:
    """As Megatron's torch format, of TP 2."""
    path = folder / f"iter_{iteration:07d}"
    for rank in range(2):
        part = path / f"mp_rank_{rank:02d}"
        part.mkdir(parents=True)
        for name in ("model_optim_rng.pt", "distrib_optim.pt"):
            torch.save({"weight": torch.ones(100)}, part / name)
    (folder / TRACKER).write_text(str(iteration))
    return path


Save = Callable[[Path, int], Path]
both_formats = pytest.mark.parametrize("save", [save_distributed, save_torch])


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@both_formats
def test_a_good_one_is_left_alone(save: Save, tmp_path: Path) -> None:
    save(tmp_path, 2)
    checkpoint = save(tmp_path, 4)
    assert find_damage(checkpoint) is None
    before = (tmp_path / TRACKER).stat()
    resume = repair_tracker(tmp_path)
    assert (resume.iteration, resume.broken, resume.tracker) == (4, (), None)
    assert (tmp_path / TRACKER).stat().st_ino == before.st_ino


@pytest.mark.parametrize("name", [".metadata", "metadata.json", "common.pt", "__0_0.distcp"])
def test_every_file_that_is_cut_off_is_found(name: str, tmp_path: Path) -> None:
    save_distributed(tmp_path, 2)
    checkpoint = save_distributed(tmp_path, 4)
    cut(checkpoint / name)
    assert name in (find_damage(checkpoint) or "")
    resume = repair_tracker(tmp_path)
    assert resume.iteration == 2
    assert len(resume.broken) == 1
    assert "iter_0000004 is not good" in resume.broken[0]
    assert (tmp_path / TRACKER).read_text() == "2"


@pytest.mark.parametrize("name", [".metadata", "metadata.json", "__0_0.distcp"])
def test_every_file_that_is_missing_is_found(name: str, tmp_path: Path) -> None:
    checkpoint = save_distributed(tmp_path, 4)
    (checkpoint / name).unlink()
    assert find_damage(checkpoint) == f"{name} is missing"


@dataclass
class MegatronsPlan:
    """Older versions leave objects of their own beside the sizes."""

    steps: int


def test_what_megatron_adds_to_the_index_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_distributed(tmp_path, 4)
    index = pickle.loads((checkpoint / ".metadata").read_bytes())
    index.all_local_plans = [MegatronsPlan(3)]
    monkeypatch.setattr(MegatronsPlan, "__module__", "megatron.plans")
    plans = ModuleType("megatron.plans")
    plans.MegatronsPlan = MegatronsPlan  # type: ignore[attr-defined]
    with monkeypatch.context() as while_saving:
        while_saving.setitem(sys.modules, "megatron", ModuleType("megatron"))  # pickle looks it up
        while_saving.setitem(sys.modules, "megatron.plans", plans)
        (checkpoint / ".metadata").write_bytes(pickle.dumps(index))
    assert b"megatron.plans" in (checkpoint / ".metadata").read_bytes()
    assert find_damage(checkpoint) is None
    cut(checkpoint / "__0_0.distcp")
    assert "__0_0.distcp has" in (find_damage(checkpoint) or "")


def test_an_index_of_every_kind_of_state_is_read(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        str(dtype): torch.zeros(4, dtype=dtype)
        for dtype in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
            *(torch.complex64, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool),
        )
    }
    state["image"] = torch.ones(1, 2, 3, 4).to(memory_format=torch.channels_last)
    state["nested"] = OrderedDict(x=torch.ones(2), y={"z": [torch.ones(1), 3, "text", {1, 2}]})
    checkpoint = tmp_path / "iter_0000004"
    dcp.save(state, checkpoint_id=checkpoint)  # a Path: it is kept in the index
    (checkpoint / "metadata.json").write_text("{}")
    assert b"PosixPath" in (checkpoint / ".metadata").read_bytes()
    assert find_damage(checkpoint) is None
    size = (checkpoint / "__0_0.distcp").stat().st_size
    os.truncate(checkpoint / "__0_0.distcp", size - 1)
    assert f"__0_0.distcp has {size - 1:,} of {size:,} bytes" in (find_damage(checkpoint) or "")


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> Any:
        return self._call


def test_an_index_that_python_3_11_wrote_is_read(tmp_path: Path) -> None:
    """It names a member of an enum by ``getattr``."""
    checkpoint = save_distributed(tmp_path, 4)
    index = pickle.loads((checkpoint / ".metadata").read_bytes())
    index.planner_data = Calls(getattr, WriteItemType, "SHARD")
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))
    assert find_damage(checkpoint) is None


def evil_indexes(mark: Path) -> dict[str, Any]:
    touch = f"open({str(mark)!r}, 'w')"
    return {
        "posix.system": Calls(os.system, f"touch {mark}"),
        "builtins.eval": Calls(eval, touch),
        "builtins.exec": Calls(exec, touch),
        "builtins.open": Calls(open, str(mark), "w"),
        "builtins.getattr": Calls(getattr, Metadata, "__init__"),
        "torch.serialization.load": Calls(torch.load, str(mark)),
        "torch.hub.load": Calls(torch.hub.load, str(mark), "model"),
        "torch.serialization.save": Calls(torch.save, {}, str(mark)),
        "torch.set_default_dtype": Calls(torch.set_default_dtype, torch.float64),
        "collections.namedtuple": Calls(namedtuple, "Name", "x"),
        "pathlib.PureWindowsPath": Calls(PureWindowsPath, "x"),
    }


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", evil_indexes(Path()))
def test_an_index_that_calls_something_is_refused(name: str, inside: bool, tmp_path: Path) -> None:
    save_distributed(tmp_path, 2)
    checkpoint = save_distributed(tmp_path, 4)
    mark = tmp_path / "it_ran"
    evil = evil_indexes(mark)[name]
    index = pickle.loads((checkpoint / ".metadata").read_bytes())
    index.planner_data = evil
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index if inside else evil))
    with pytest.raises(ConfigError, match=r"\.metadata names .*which no checkpoint needs"):
        repair_tracker(tmp_path)
    assert not mark.exists()
    assert torch.get_default_dtype() is torch.float32
    assert (tmp_path / TRACKER).read_text() == "4"


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"not a pickle", pickle.dumps({}), pickle.dumps([1]), b"\x80\x04Nb.", b"}0}b."],
)
def test_an_index_of_any_bytes_is_not_good(content: bytes, tmp_path: Path) -> None:
    checkpoint = save_distributed(tmp_path, 4)
    (checkpoint / ".metadata").write_bytes(content)
    assert ".metadata cannot be read" in (find_damage(checkpoint) or "")


@pytest.mark.parametrize("put", [b"r" + (2**24).to_bytes(4, "little"), b"p16777216\n"])
def test_a_few_bytes_of_an_index_do_not_fill_the_memory(put: bytes, tmp_path: Path) -> None:
    """They ask for 2^25 places to remember objects in, of 8 bytes each."""
    checkpoint = save_distributed(tmp_path, 4)
    (checkpoint / ".metadata").write_bytes(b"\x80\x04]" + put + b".")
    tracemalloc.start()
    try:
        assert ".metadata cannot be read" in (find_damage(checkpoint) or "")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**24


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize("name", ["mp_rank_00/distrib_optim.pt", "mp_rank_01/model_optim_rng.pt"])
def test_torch_files(name: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    save_torch(tmp_path, 2)
    checkpoint = save_torch(tmp_path, 4)
    damage(checkpoint / name)
    assert name in (find_damage(checkpoint) or "")
    assert repair_tracker(tmp_path).iteration == 2


@both_formats
@pytest.mark.parametrize("torn", ["", "\0\0", "1x", "²", "9" * 5000])
def test_a_torn_tracker(save: Save, torn: str, tmp_path: Path) -> None:
    """As a full disk leaves it, at which Megatron would end with exit code 0."""
    save(tmp_path, 2)
    save(tmp_path, 4)
    (tmp_path / TRACKER).write_text(torn)
    resume = repair_tracker(tmp_path)
    assert resume.iteration == 4
    assert "is torn" in resume.broken[0]
    assert (tmp_path / TRACKER).read_text() == "4"


def test_a_folder_that_a_kill_left_behind_does_no_harm(tmp_path: Path) -> None:
    save_distributed(tmp_path, 4)
    (tmp_path / "iter_0000006").mkdir()
    resume = find_resume(tmp_path)
    assert (resume.iteration, resume.tracker, resume.broken) == (4, None, ())


@pytest.mark.parametrize(
    "name",
    ["iter_00000000004", "iter_٠٠٠٠٠٠٤", "iter_00000000006", "iter_٠٠٠٠٠٠٦", f"iter_{9**20}"],
)
def test_a_copy_under_a_name_that_megatron_does_not_look_for(name: str, tmp_path: Path) -> None:
    save_torch(tmp_path, 2)
    shutil.copytree(save_torch(tmp_path, 4), tmp_path / name)
    shutil.rmtree(tmp_path / "iter_0000004")
    (tmp_path / TRACKER).write_text("")
    resume = repair_tracker(tmp_path)
    assert (resume.iteration, resume.tracker) == (2, "2")
    assert find_resume(tmp_path).tracker is None


def test_a_tracker_that_was_set_back_is_obeyed(tmp_path: Path) -> None:
    save_distributed(tmp_path, 2)
    save_distributed(tmp_path, 4)
    (tmp_path / TRACKER).write_text("2")
    assert find_resume(tmp_path).iteration == 2


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert find_resume(tmp_path / "none").iteration is None
    assert find_resume(tmp_path).iteration is None
    checkpoint = save_distributed(tmp_path, 4)  # killed before the tracker was written
    (tmp_path / TRACKER).unlink()
    (checkpoint / "metadata.json").unlink()
    resume = repair_tracker(tmp_path)
    assert resume.iteration is None
    assert "metadata.json is missing" in resume.broken[0]
    assert not (tmp_path / TRACKER).exists()


def test_a_complete_one_without_a_tracker_counts(tmp_path: Path) -> None:
    save_distributed(tmp_path, 4)
    (tmp_path / TRACKER).unlink()
    assert repair_tracker(tmp_path).iteration == 4
    assert (tmp_path / TRACKER).read_text() == "4"


def test_a_release_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_text("release")
    assert find_resume(tmp_path).iteration is None
    assert repair_tracker(tmp_path).tracker is None


def test_lost_checkpoints_are_an_error(tmp_path: Path) -> None:
    checkpoint = save_distributed(tmp_path, 4)
    (checkpoint / ".metadata").unlink()
    with pytest.raises(
        ConfigError, match=r"(?s)no checkpoint in .*metadata is missing.*start over"
    ):
        repair_tracker(tmp_path)
    assert (tmp_path / TRACKER).read_text() == "4"
