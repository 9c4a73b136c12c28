"""Two jobs with one --save."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from domain_pretrain import file_lock
from domain_pretrain.errors import WriterError
from domain_pretrain.hosts.ownership import own_folder

OWNS = """
import sys
from domain_pretrain.hosts.ownership import own_folder
owned = own_folder(sys.argv[1])
print("owned", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_another_run_saves_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = str(tmp_path / "new" / "checkpoints")
    monkeypatch.setattr(file_lock, "PATIENCE_S", 0)
    with subprocess.Popen(
        [sys.executable, "-c", OWNS, save],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "owned\n"
        with pytest.raises(WriterError, match=r"another run is saving to .*: give each its own"):
            own_folder(save)
        other.kill()  # as a run that dies: its lock is gone with it
    mine = own_folder(save)
    assert mine is not None
    mine.close()


def test_what_is_no_folder_of_this_disk(tmp_path: Path) -> None:
    assert own_folder(None) is None
    assert own_folder("s3://bucket/checkpoints") is None
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(WriterError, match=r"--save .*file cannot be used: .*"):
        own_folder(str(tmp_path / "file"))
