"""NVRTC: which architecture is compiled for, and that the cache is safe. Needs no GPU."""

from __future__ import annotations

import logging
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import compiler
from domain_pretrain.kernels.domain_reduce.kernel_launch import Variant

try:
    compiler.version()
except UnsupportedError as error:
    pytest.skip(f"NVRTC: {error}", allow_module_level=True)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return compiler.cache_folder()


def test_a_source_that_does_not_compile_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_source", lambda: b"int 7;")
    with pytest.raises(UnsupportedError, match=r"(?s)for sm_90:.*domain_reduce.cu\(1\): error"):
        compiler.cubin(Variant("reduce"), "sm_90")


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((8, 0), "sm_80"), ((8, 6), "sm_86"), ((9, 0), "sm_90"), ((10, 0), "sm_100")],
)
def test_architecture_of_a_device(capability: tuple[int, int], architecture: str) -> None:
    assert compiler.architecture_for(capability) == architecture


@pytest.mark.parametrize(
    ("capability", "known", "architecture"),
    [
        ((10, 3), [90, 100, 101, 120], "sm_100"),  # as NVRTC 12.8 has it
        ((10, 1), [90, 100, 101, 120], "sm_101"),
        ((8, 9), [80, 86, 87, 88], "sm_86"),
        ((8, 7), [80, 86, 87, 88], "sm_87"),
    ],
)
def test_an_integrated_gpus_code_is_for_that_gpu(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    known: list[int],
    architecture: str,
) -> None:
    nvrtc = SimpleNamespace(nvrtcGetSupportedArchs=lambda: (0, known))
    monkeypatch.setattr(compiler, "_nvrtc", lambda: nvrtc)
    assert compiler.architecture_for(capability) == architecture


@pytest.mark.parametrize("capability", [(7, 5), (99, 0)])
def test_a_device_too_old_or_too_new_is_refused(capability: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedError, match=r"compute capability {}\.{}".format(*capability)):
        compiler.architecture_for(capability)


# The cache.


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_compiles_once_and_again_for_another_source(
    cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = Variant("gradient")
    code = compiler.cubin(variant, "sm_90")
    assert len(entries(cache_home)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "compile_source", None)  # must not be called
        assert compiler.cubin(variant, "sm_90") == code
    compiler.cubin(variant, "sm_80")
    compiler.cubin(variant._replace(by_row=False), "sm_90")
    source = compiler._source()
    monkeypatch.setattr(compiler, "_source", lambda: source + b"\n// changed")
    compiler.cubin(variant, "sm_90")
    assert len(entries(cache_home)) == 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_entry_is_rebuilt(
    cache_home: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    variant = Variant("gradient")
    code = compiler.cubin(variant, "sm_90")
    (entry,) = entries(cache_home)
    content = bytearray(entry.read_bytes())
    content[100] ^= 1
    damaged = {"truncate": content[:-7], "flip": content, "empty": b""}[damage]
    entry.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert compiler.cubin(variant, "sm_90") == code
    assert "damaged" in caplog.text
    assert entry.read_bytes()[32:] == code


def test_an_unusable_folder_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert compiler.cubin(Variant("gradient"), "sm_90")[:4] == b"\x7fELF"
    assert "no cache folder" in caplog.text


def _compile_at_once(home, barrier, queue) -> None:  # type: ignore[no-untyped-def]
    os.environ["XDG_CACHE_HOME"] = home
    barrier.wait()
    queue.put(compiler.cubin(Variant("gradient"), "sm_90"))


def test_processes_that_start_at_once_share_one_entry(cache_home: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    barrier, queue = context.Barrier(4), context.Queue()
    arguments = (os.environ["XDG_CACHE_HOME"], barrier, queue)
    processes = [context.Process(target=_compile_at_once, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    codes = {queue.get(timeout=600) for _ in processes}
    for process in processes:
        process.join()
    assert len(codes) == 1
    assert len(entries(cache_home)) == 1, "temporary files must not stay"
