"""Files that are whole or not there; what is no file, and what is only a link, stays so."""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path

import pytest

from domain_pretrain.errors import ConfigError
from domain_pretrain.whole_file import check_writable, whole_file


def write(path: Path, content: bytes = b"new") -> None:
    with whole_file(path) as file:
        file.write(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("there", [True, False])
def test_of_a_link_what_it_names_is_replaced(tmp_path: Path, there: bool) -> None:
    (tmp_path / "far").mkdir()
    target, link, further = tmp_path / "far" / "a", tmp_path / "link", tmp_path / "further"
    if there:
        target.write_bytes(b"old")
    link.symlink_to("far/a")
    further.symlink_to(link)
    check_writable(further, "--html")
    write(further)
    assert link.is_symlink() and further.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "far") == ["a"]


@pytest.mark.parametrize("through", ["name", "link"])
def test_a_pipe_is_written_to(tmp_path: Path, through: str) -> None:
    pipe = path = tmp_path / "pipe"
    os.mkfifo(pipe)
    if through == "link":
        path = tmp_path / "link"
        path.symlink_to(pipe)
    check_writable(path, "--html")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write(path)
    reader.join(timeout=60)
    assert read == [b"new"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_of_this_process_is_written_to() -> None:
    """As ``/dev/stdout`` is one: a link to what has no name among the files."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not show a process's files")
    out, into = os.pipe()
    try:
        write(Path(f"/proc/self/fd/{into}"))
        assert os.read(out, 10) == b"new"
    finally:
        os.close(out)
        os.close(into)


def test_a_device_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "device"
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # takes all, as /dev/null
        write(path)
    except PermissionError:
        pytest.skip("this user may make no devices")
    assert stat.S_ISCHR(path.stat().st_mode)
    assert names(tmp_path) == ["device"]


def test_what_cannot_be_written_is_told_before(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for name, problem in (
        ("folder", "it is a folder"),
        ("none/a", "No such file or directory"),
        ("file/a", "Not a directory"),
    ):
        with pytest.raises(ConfigError, match=re.escape(problem)) as error:
            check_writable(tmp_path / name, "--json")
        assert f"--json {tmp_path / name}" in str(error.value)
        with pytest.raises(OSError):
            write(tmp_path / name)
    check_writable(tmp_path / "new", "--json")
    check_writable(tmp_path / "file", "--json")
    assert names(tmp_path) == ["file", "folder"]
