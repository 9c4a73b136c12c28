"""What the tests of ``domain-pretrain prepare`` have in common: files, and killed runs."""

from __future__ import annotations

import gzip
import json
import os
import signal
from pathlib import Path

import pytest

from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.errors import PrepareError

TEXTS = ["hello", "süß 你好 🙂", "two\nlines\r\n", "tail\u2028end"]


def read_back(prefix: Path) -> list[list[int]]:
    from megatron.core.datasets import indexed_dataset

    dataset = indexed_dataset.IndexedDataset(str(prefix))
    assert list(dataset.document_indices) == list(range(len(dataset) + 1))
    return [dataset[i].tolist() for i in range(len(dataset))]


def as_bytes(texts: list[str]) -> list[list[int]]:
    return [[*text.encode(), 256] for text in texts]


def json_lines(texts: list[str], key: str = "text") -> str:
    return "".join(json.dumps({key: text}) + "\n" for text in texts)


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def final_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("out"))


CHANGES = ("mkdir", "replace", "rmdir", "unlink")


class Interrupted:
    """``Path`` whose methods that change a folder call ``stop`` before the one numbered ``at``."""

    def __init__(self, at: int, stop) -> None:
        self.calls, self._at, self._stop = 0, at, stop

    def patch(self, monkeypatch) -> None:
        for name in CHANGES:
            monkeypatch.setattr(Path, name, self._counting(getattr(Path, name)))

    def _counting(self, method):
        def counted(path, *args, **kwargs):
            self.calls += 1
            if self.calls == self._at:
                self._stop()
            return method(path, *args, **kwargs)

        return counted


def killed(at: int, *args, **kwargs) -> bool:
    """``prepare`` in a process that SIGKILL ends before its change ``at``; False: it has fewer."""
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            Interrupted(at, lambda: os.kill(os.getpid(), signal.SIGKILL)).patch(patch)
            try:
                prepare(*args, workers=1, **kwargs)
            except PrepareError:
                os._exit(3)
            except BaseException:
                os._exit(4)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) in (0, 3)
    return os.WIFSIGNALED(status)


def interrupt():
    raise KeyboardInterrupt
