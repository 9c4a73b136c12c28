"""A corpus is there whole or not at all, whenever a run ends."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.prepared import (
    Interrupted,
    as_bytes,
    final_files,
    interrupt,
    json_lines,
    killed,
    read_back,
    write,
)

from domain_pretrain.commands.main import main
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.errors import PrepareError

pytest.importorskip("megatron.core")


def test_an_existing_corpus_is_kept_unless_forced(tmp_path):
    old = write(tmp_path / "old.jsonl", json_lines(["old"]))
    new = write(tmp_path / "new.jsonl", json_lines(["new"]))
    prepare([old], tmp_path / "out", "bytes")
    with pytest.raises(PrepareError, match=r"out\.bin.*exists already.*--force"):
        prepare([new], tmp_path / "out", "bytes")
    assert read_back(tmp_path / "out") == as_bytes(["old"])
    # Megatron's index cache is keyed by the prefix, so the old one would be taken for the new.
    names = ("GPTDataset_indices", "GPTDatasetWithout0f_indices", "GPTFIMDataset_indices", "mine")
    for name in names:
        (tmp_path / "out" / "cache" / name).mkdir(parents=True)
    prepare([new], tmp_path / "out", "bytes", force=True)
    assert read_back(tmp_path / "out") == as_bytes(["new"])
    assert [path.name for path in (tmp_path / "out" / "cache").iterdir()] == ["mine"]
    # A failure leaves what was there.
    with pytest.raises(PrepareError, match="no document"):
        prepare([write(tmp_path / "e.jsonl", "")], tmp_path / "out", "bytes", force=True)
    assert read_back(tmp_path / "out") == as_bytes(["new"])


@pytest.mark.parametrize("more", [[], ["--holdout", "1"]], ids=["whole", "held out"])
def test_a_prefix_with_a_slash_behind_it(tmp_path, monkeypatch, capsys, more):
    """As a shell completes it; what is printed is there."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", json_lines(["x", "y"]))
    Path("out/corpus").mkdir(parents=True)
    assert (
        main(["prepare", "a.jsonl", "--output", "out/corpus/", "--tokenizer", "bytes", *more]) == 0
    )
    told = capsys.readouterr().out
    assert "out/corpus: " in told and "manifest: out/corpus.manifest.json\n" in told
    assert f"{'--train-data-path' if more else '--data-path'} out/corpus -" in told
    assert Path("out/corpus.idx").is_file() and "corpus/" not in told


@pytest.mark.parametrize("prefix", [".", "..", "out/.."])
def test_a_prefix_without_a_name(tmp_path, monkeypatch, prefix):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    write(tmp_path / "a.jsonl", json_lines(["x"]))
    with pytest.raises(PrepareError, match="names a folder, and no files in it; give them a name"):
        prepare(["a.jsonl"], prefix, "bytes", force=True)
    assert sorted(os.listdir()) == ["a.jsonl", "out"]


KILLED = """
import sys
from domain_pretrain.commands.main import main
from domain_pretrain.prepare.corpus import prepare
if __name__ == "__main__":
    def progress(read, manifest):
        if read > 100_000:
            print("reached", flush=True)
            sys.stdin.read()
    prepare([sys.argv[1]], sys.argv[2], "bytes", workers=2, on_progress=progress)
"""


@pytest.mark.megatron
def test_a_killed_run_leaves_no_final_file_and_no_process(tmp_path):
    source = write(tmp_path / "a.jsonl", json_lines(["x" * 1000] * 5000))
    script = write(tmp_path / "killed.py", KILLED)
    command = [sys.executable, str(script), str(source), str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"reached\n"
        workers = children(process.pid)
        assert len(workers) >= 2
        # Meanwhile the prefix is taken.
        with pytest.raises(PrepareError, match="another run is writing"):
            prepare([source], tmp_path / "out", "bytes")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert final_files(tmp_path) == ["out.tmp"]
    deadline = time.monotonic() + 600
    while [pid for pid in workers if alive(pid)]:
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    # The next run clears the remains.
    prepare([source], tmp_path / "out", "bytes", workers=1)
    assert len(read_back(tmp_path / "out")) == 5000
    assert final_files(tmp_path) == ["out.bin", "out.idx", "out.manifest.json"]


def children(pid: int) -> list[int]:
    return [
        int(child)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    ]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False


ONE = ["out.bin", "out.idx", "out.manifest.json"]
SHAPES = {  # options; what is there in the end; the changes to a folder that a commit takes
    "one": ({}, ONE, 3),
    "holdout": (
        {"holdout": "1"},
        ["out.bin", "out.holdout.bin", "out.holdout.idx", "out.holdout.manifest.json", *ONE[1:]],
        6,
    ),
    "by": ({"by": "kind"}, ["out"], 1),
}


def two_documents(path: Path, name: str) -> Path:
    records = [{"text": f"{name} {kind}", "kind": kind} for kind in ("a", "b/c")]
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def state(folder: Path) -> str:
    """Whose corpus Megatron reads; its two documents are there, or neither."""
    if not (folder / "out.idx").exists() and not (folder / "out").exists():
        return "none"
    found = [
        bytes(text).decode()
        for path in folder.rglob("*.idx")
        if not {"out.tmp", "out.by.tmp"} & set(path.parts)
        for *text, _ in read_back(path.with_suffix(""))
    ]
    name = found[0].split()[0]
    assert sorted(found) == [f"{name} a", f"{name} b/c"]
    return name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("had_old", [False, True])
def test_killed_before_any_change_to_a_folder(tmp_path, had_old, shape):
    """The old corpus, the new one or none is there; the next run puts right what is left.

    Where the kill came amid the commit, the next run's repair is interrupted anywhere, too.
    """
    options, final, changes = SHAPES[shape]
    old, new, last = (
        two_documents(tmp_path / f"{name}.jsonl", name) for name in ("old", "new", "last")
    )

    def next_run(folder: Path) -> None:
        with contextlib.suppress(PrepareError):  # exists already
            prepare([last], folder / "out", "bytes", **options)

    first = "old" if had_old else "none"
    states, commits = [first], 0
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        if had_old:
            prepare([old], folder / "out", "bytes", **options)
        if not killed(at, [new], folder / "out", "bytes", force=had_old, **options):
            break
        left = state(folder)
        states.append(left)
        within = bool(list(folder.glob("out*.tmp/old"))) and left != "new"
        commits += within
        for again in itertools.count(1) if within else [1000]:
            copy = tmp_path / f"{at}-{again}"
            shutil.copytree(folder, copy)
            interruption = Interrupted(again, interrupt)
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
                interruption.patch(patch)
                next_run(copy)
            assert state(copy) in ("none", first, "new", "last")
            next_run(copy)
            assert state(copy) == ("new" if left == "new" else "old" if had_old else "last")
            assert final_files(copy) == final
            if interruption.calls < again:
                break
    # In this order, and in each of them at least once.
    assert [name for name, _ in itertools.groupby(states)] == list(
        dict.fromkeys([first, "none", "new"])
    )
    assert commits >= changes


def test_a_failure_between_renames_leaves_the_old_corpus(tmp_path):
    old = write(tmp_path / "old.jsonl", json_lines(["old one"]))
    new = write(tmp_path / "new.jsonl", json_lines(["new", "new"]))

    prepare([old], tmp_path / "out", "bytes")
    interrupted = 0
    for at in range(1, 100):
        interruption = Interrupted(at, interrupt)
        try:
            with pytest.MonkeyPatch.context() as patch:
                interruption.patch(patch)
                prepare([new], tmp_path / "out", "bytes", force=True)
        except KeyboardInterrupt:
            interrupted += 1
        if interruption.calls < at:
            break
        # The error itself puts things right, or, where it came amid that, the next run does.
        with contextlib.suppress(PrepareError):
            prepare([new], tmp_path / "out", "bytes")
        found = read_back(tmp_path / "out")
        assert found in (as_bytes(["old one"]), as_bytes(["new", "new"]))
        assert final_files(tmp_path) == ["out.bin", "out.idx", "out.manifest.json"]
        prepare([old], tmp_path / "out", "bytes", force=True)
    assert interrupted > 8


def test_other_files_in_a_folder_of_the_stages_name_stay(tmp_path):
    source = write(tmp_path / "a.jsonl", json_lines(["x"]))
    (tmp_path / "out.tmp").mkdir()
    theirs = write(tmp_path / "out.tmp" / "notes.txt", "mine")
    prepare([source], tmp_path / "out", "bytes")
    assert theirs.read_text("utf-8") == "mine"
    assert [path.name for path in (tmp_path / "out.tmp").iterdir()] == ["notes.txt"]


def test_a_held_out_dataset_belongs_to_its_corpus(tmp_path):
    """It goes with the old corpus; another dataset of that name is somebody's own."""
    source = two_documents(tmp_path / "a.jsonl", "x")
    prepare([source], tmp_path / "out.holdout", "bytes")
    theirs = (tmp_path / "out.holdout.bin").read_bytes()
    cache = tmp_path / "out.holdout" / "cache" / "GPTDataset_indices"
    cache.mkdir(parents=True)
    prepare([source], tmp_path / "out", "bytes")
    prepare([source], tmp_path / "out", "bytes", force=True)
    assert (tmp_path / "out.holdout.bin").read_bytes() == theirs
    assert cache.exists()
    with pytest.raises(PrepareError, match=r"out\.holdout\.bin.*exists already"):
        prepare([source], tmp_path / "out", "bytes", holdout="1")
    prepare([source], tmp_path / "out", "bytes", holdout="1", force=True)
    assert len(read_back(tmp_path / "out.holdout")) == 1
    assert not cache.exists()
    prepare([source], tmp_path / "out", "bytes", force=True)
    assert [name for name in final_files(tmp_path) if name.startswith("out.h")] == ["out.holdout"]


def test_the_remains_of_0_1_are_recognised(tmp_path):
    """It left no list of what it replaced, and knew of no held-out dataset."""
    source = two_documents(tmp_path / "a.jsonl", "old")
    for name in ("out", "out.holdout", "new"):
        prepare([source], tmp_path / name, "bytes")
    (tmp_path / "out.tmp" / "old").mkdir(parents=True)
    for suffix in ("bin", "manifest.json", "idx"):
        (tmp_path / f"out.{suffix}").replace(tmp_path / "out.tmp" / "old" / suffix)
    (tmp_path / "new.bin").replace(tmp_path / "out.bin")
    for suffix in ("manifest.json", "idx"):
        (tmp_path / f"new.{suffix}").replace(tmp_path / "out.tmp" / suffix)
    with pytest.raises(PrepareError, match="exists already"):
        prepare([source], tmp_path / "out", "bytes")
    for name in ("out", "out.holdout"):
        assert len(read_back(tmp_path / name)) == 2
    assert not (tmp_path / "out.tmp").exists()
