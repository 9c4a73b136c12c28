"""NVRTC: which architecture is compiled for, and what it says of a bad source. Needs no GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import compiler
from domain_pretrain.kernels.domain_reduce.kernel_launch import Variant

try:
    compiler.bindings("nvrtc")
except UnsupportedError as error:
    pytest.skip(f"NVRTC: {error}", allow_module_level=True)


def test_a_source_that_does_not_compile_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kernel.cu").write_text("int 7;", "utf-8")
    monkeypatch.setattr(compiler, "SOURCE", tmp_path / "kernel.cu")
    with pytest.raises(UnsupportedError, match=r"(?s)kernel.cu for sm_90:.*kernel.cu\(1\): error"):
        compiler.compile_source(Variant("reduce"), "sm_90")


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
    monkeypatch.setattr(compiler, "bindings", lambda name: nvrtc)
    assert compiler.architecture_for(capability) == architecture


@pytest.mark.parametrize("capability", [(7, 5), (99, 0)])
def test_a_device_too_old_or_too_new_is_refused(capability: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedError, match=r"compute capability {}\.{}".format(*capability)):
        compiler.architecture_for(capability)
