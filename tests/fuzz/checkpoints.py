"""Folders of checkpoints after crashes and worse: nothing in them is ever run."""

from __future__ import annotations

import atexit
import functools
import os
import pickle
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from domain_pretrain.checkpoints.tracker import TRACKER
from domain_pretrain.checkpoints.whole import find_damage
from domain_pretrain.errors import ConfigError
from domain_pretrain.hosts.base import check_base
from domain_pretrain.launch.checkpoints import find_resume, repair_tracker
from fuzz.case import Case
from fuzz.damage import damaged

ITERATIONS = (2, 4, 6)
PROOF = "pwned"  # the file that a pickle of ours writes where it is run


def case(rng: random.Random) -> Case:
    """A folder that is whole, broken in a known way, or damaged anywhere."""
    form, what, seed = rng.choice(("torch_dist", "torch")), rng.random(), rng.getrandbits(32)
    if what < 0.15:
        return Case("whole", True, _Check(seed, form, lambda rng, folder: None))
    if what < 0.55:
        broken = rng.choice(BROKEN if form == "torch_dist" else BROKEN_EVERYWHERE)
        return Case(broken.__name__, False, _Check(seed, form, broken))
    if what < 0.75:
        return Case("an index that calls", False, _Check(seed, "torch_dist", an_index_that_calls))
    loose = rng.choice((_damaged_tracker, _damaged_index, _damaged_file, _strange_folder))
    return Case(loose.__name__, None, _Check(seed, form, loose))


class _Check:
    """Copy a whole folder, change it, and ask where a run resumes; then mend, and ask again."""

    def __init__(self, seed: int, form: str, change: Callable[[random.Random, Path], None]) -> None:
        self._seed, self._form, self._change = seed, form, change

    def __call__(self, folder: Path) -> bool:
        rng = random.Random(self._seed)
        run = folder / "run"
        shutil.copytree(_whole(self._form), run, symlinks=True)
        self._change(rng, run)
        modules = set(sys.modules)
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
        try:
            _start(run)
            found = find_resume(run)
            for path in run.glob("iter_*"):
                find_damage(path)
        finally:
            assert not Path(PROOF).exists(), "a pickle was run"
            assert {p: p.stat().st_mtime_ns for p in before} == before
            new = {name for name in sys.modules if name.startswith(("megatron", "evil"))}
            assert new <= modules, "a pickle has imported something"
        if found.iteration is not None:
            good = run / f"iter_{found.iteration:07d}"
            assert find_damage(good) is None
        assert repair_tracker(run) == found
        again = find_resume(run)
        assert (again.iteration, again.tracker) == (found.iteration, None)
        return bool(found.broken)


def _start(run: Path) -> None:
    """As a run starts: with and without ``--finetune``, from the folder or one of its own."""
    for load in (run, *run.glob("iter_*"), run / TRACKER, run / "none"):
        for finetune in (False, True):
            args = SimpleNamespace(load=str(load), finetune=finetune, pretrained_checkpoint=None)
            holds = (load / TRACKER).is_file()
            try:
                check_base(args)
            except ConfigError:
                assert finetune or holds  # or the tracker names nothing
            else:
                assert holds or not finetune


@functools.cache
def _whole(form: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz_whole"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for iteration in ITERATIONS:
        (_save_distributed if form == "torch_dist" else _save_torch)(folder, iteration)
    (folder / TRACKER).write_text(str(ITERATIONS[-1]), "utf-8")
    return folder


def _save_distributed(folder: Path, iteration: int) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    path = folder / f"iter_{iteration:07d}"
    state = {f"w{i}": torch.ones(10) for i in range(5)}
    dcp.save(state, checkpoint_id=path)
    torch.save({"iteration": iteration}, path / "common.pt")
    (path / "metadata.json").write_bytes(b'{"sharded_backend": "torch_dist"}')


def _save_torch(folder: Path, iteration: int) -> None:
    import torch

    for rank in range(2):
        part = folder / f"iter_{iteration:07d}" / f"mp_rank_{rank:02d}"
        part.mkdir(parents=True)
        torch.save({"weight": torch.ones(10)}, part / "model_optim_rng.pt")


def _newest(folder: Path) -> Path:
    return folder / f"iter_{ITERATIONS[-1]:07d}"


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


# --- damage anywhere ------------------------------------------------------------------------------


def _damaged_tracker(rng: random.Random, folder: Path) -> None:
    nasty = (b"", b"\0\0\0", b"\xff", b"6\n\n", b" 4 ", b"-2", b"1e3", "٤".encode(), b"9" * 400)
    more = (b"release", b"RELEASE", b"4 6", b"../4", b"0", b"007", b"99")
    (folder / TRACKER).write_bytes(rng.choice((*nasty, *more)))


def _damaged_index(rng: random.Random, folder: Path) -> None:
    for path in folder.glob("iter_*/.metadata"):
        if rng.random() < 0.7:
            _rewrite(path, lambda data: damaged(rng, data))


def _damaged_file(rng: random.Random, folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in rng.sample(files, 2):
        _rewrite(path, lambda data: damaged(rng, data))


def _strange_folder(rng: random.Random, folder: Path) -> None:
    names = ["iter_0000008", "iter_1", "iter_٠٠٠٠٠٠٨", "iter_" + "9" * 30, "iter_0000010.tmp"]
    names += ["iter_00000000006", "iter_00000000004", "iter_٠٠٠٠٠٠٦", "iter_0000006 "]
    for name in rng.sample(names, 2):
        path = folder / name
        how = rng.randrange(6)
        if how > 3:  # good, but not where the host looks
            shutil.copytree(folder / f"iter_{ITERATIONS[1]:07d}", path)
            if rng.random() < 0.5 and any(_newest(folder).iterdir()):
                rng.choice(BROKEN_EVERYWHERE[:-1])(rng, folder)
        elif how == 0:
            path.touch()
        elif how == 1:
            path.symlink_to(rng.choice(("nowhere", name, ".")))
        elif how == 2:
            (path / ".metadata").mkdir(parents=True)
        else:
            (path / "mp_rank_00").mkdir(parents=True)


# --- what is broken, by construction: the newest checkpoint, or all of them -----------------------


def a_torn_tracker(rng: random.Random, folder: Path) -> None:
    (folder / TRACKER).write_bytes(rng.choice((b"", b"\0" * 4, b"six", b"-6", b"6.0")))


def a_tracker_of_none(rng: random.Random, folder: Path) -> None:
    (folder / TRACKER).write_bytes(b"1")


def a_file_is_missing(rng: random.Random, folder: Path) -> None:
    files = [path for path in _newest(folder).rglob("*") if path.is_file()]
    rng.choice([path for path in files if path.name != "common.pt"]).unlink()


def a_file_is_cut_off(rng: random.Random, folder: Path) -> None:
    files = [path for path in _newest(folder).rglob("*") if path.is_file()]
    path = rng.choice([path for path in files if path.name != ".metadata"])
    os.truncate(path, rng.randrange(path.stat().st_size))


def an_empty_folder(rng: random.Random, folder: Path) -> None:
    shutil.rmtree(_newest(folder))
    _newest(folder).mkdir()


def all_are_gone(rng: random.Random, folder: Path) -> None:
    for path in folder.glob("iter_*"):
        shutil.rmtree(path)


def an_index_is_cut_off(rng: random.Random, folder: Path) -> None:
    _rewrite(_newest(folder) / ".metadata", lambda data: data[: rng.randrange(len(data))])


def an_index_of_nothing(rng: random.Random, folder: Path) -> None:
    values: tuple[Any, ...] = (None, {}, [], 1, "x", {"storage_data": {}}, b"", SimpleNamespace())
    raw = pickle.dumps(rng.choice(values[:-1]), protocol=rng.randrange(6))
    (_newest(folder) / ".metadata").write_bytes(raw)


def an_index_of_gigabytes(rng: random.Random, folder: Path) -> None:
    """A few bytes that say how much will come, or where to remember it."""
    sizes = (2**28).to_bytes(4, "little"), (2**34).to_bytes(8, "little")
    raw = (b"]r" + sizes[0], b"]p268435456\n", b"B" + sizes[0], b"\x8e" + sizes[1], b"X" + sizes[0])
    proto = b"\x80" + bytes([rng.randrange(2, 6)])
    (_newest(folder) / ".metadata").write_bytes(proto + rng.choice(raw) + b".")


class _Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def an_index_that_calls(rng: random.Random, folder: Path) -> None:
    """In place of an index, within one, or before it."""
    function, *arguments = rng.choice(
        (
            (os.system, f"touch {PROOF}"),
            (eval, f"open({PROOF!r}, 'w')"),
            (exec, f"open({PROOF!r}, 'w')"),
            (Path.touch, Path(PROOF)),
            (open, PROOF, "w"),
            (__import__, "evil"),
            (getattr, Path(PROOF), "touch"),
            (os.mkdir, PROOF),
        )
    )
    path = _newest(folder) / ".metadata"
    call = pickle.dumps(_Calls(function, *arguments), protocol=rng.randrange(6))
    how = rng.randrange(3)
    if how == 0:
        path.write_bytes(call)
    elif how == 1:  # the call's value is dropped, and the index follows
        path.write_bytes(call[:-1] + b"0" + path.read_bytes())
    else:
        path.write_bytes(pickle.dumps({"storage_data": {1: _Calls(function, *arguments)}}))


BROKEN_EVERYWHERE: tuple[Callable[[random.Random, Path], None], ...] = (
    *(a_torn_tracker, a_tracker_of_none, a_file_is_missing, a_file_is_cut_off, an_empty_folder),
    all_are_gone,
)
BROKEN = (*BROKEN_EVERYWHERE, an_index_is_cut_off, an_index_of_nothing, an_index_of_gigabytes)
