"""What the compiler makes of the kernels, and that it is counted right. Needs no GPU."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "device_code"))

import device_code
from device_code import VARIANTS, known, nvrtc_version, row, table
from hot_loop import Instruction, disassemble, hot_path, nvdisasm
from resources import PROCESSORS, Resources, resources

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import compiler
from domain_pretrain.kernels.domain_reduce.kernel_launch import (
    BLOCKS_PER_PROCESSOR,
    THREADS,
    VEC,
    Variant,
)

FOLDER = Path(device_code.__file__).parent


@pytest.fixture
def nvrtc() -> None:
    try:
        compiler.bindings("nvrtc")
    except UnsupportedError as error:
        pytest.skip(f"NVRTC: {error}")


@pytest.fixture
def tool(nvrtc: None) -> str:
    found = nvdisasm()
    if found is None:
        pytest.skip("no nvdisasm (pip install nvidia-cuda-nvdisasm): instructions are not counted")
    return found


@pytest.fixture(params=PROCESSORS)
def architecture(request: pytest.FixtureRequest, nvrtc: None) -> str:
    if not known(request.param):
        pytest.skip(f"NVRTC {nvrtc_version()} does not know {request.param}")
    return request.param


# The kernels.


def test_no_warnings_no_spills_and_four_blocks(architecture: str) -> None:
    for variant in VARIANTS:
        code, log = compiler.compile_source(variant, architecture)
        assert code[:4] == b"\x7fELF"
        assert "warning" not in log.lower(), log
        taken = resources(log, variant.kernel)
        assert taken.spilled == 0, log
        assert taken.blocks(PROCESSORS[architecture], THREADS) >= BLOCKS_PER_PROCESSOR


@pytest.mark.parametrize(("kernel", "limit", "rounded"), [("reduce", 110, 3), ("loss", 200, 4)])
def test_instructions_for_a_tile_of_128_tokens(
    architecture: str, tool: str, kernel: str, limit: int, rounded: int
) -> None:
    code, _ = compiler.compile_source(Variant(kernel), architecture)  # type: ignore[arg-type]
    path = hot_path(disassemble(code, kernel, tool))
    assert len(path) <= limit
    names = Counter(i.opcode.split(".")[0] for i in path)
    assert names["F2I"] == rounded * VEC, "the way counted must round every term"
    assert names["VOTE"] == 1
    assert sum(i.opcode.startswith("LDG.E.128") for i in path) == 2, "losses and mask"


def test_every_access_is_to_global_memory_and_says_so(architecture: str, tool: str) -> None:
    """A generic one, ``LD`` for ``LDG``, first looks which memory the address is of."""
    for variant in VARIANTS:
        code, _ = compiler.compile_source(variant, architecture)
        names = {i.opcode.split(".")[0] for i in disassemble(code, variant.kernel, tool)}
        assert names.isdisjoint({"LD", "ST", "ATOM"})
        assert "LDG" in names


def test_the_last_block_waits_for_no_fence_of_another(architecture: str, tool: str) -> None:
    """Two fences in the one thread that finishes a block; ``__threadfence()`` would be MEMBAR.SC,
    which orders them among all of the device.
    """
    code, _ = compiler.compile_source(Variant("loss"), architecture)
    names = [i.opcode for i in disassemble(code, "loss", tool)]
    assert [name for name in names if "MEMBAR" in name] == ["MEMBAR.ALL.GPU"] * 2


def test_the_page_shows_the_table_of_the_results() -> None:
    results = json.loads((FOLDER / "results" / "counts.json").read_text("utf-8"))
    page = (FOLDER.parents[1] / "docs" / "kernels.md").read_text("utf-8")
    assert table(results["rows"]) in page
    assert f"commit {results['source']['commit']}" in page


def test_an_architecture_that_nvrtc_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"instructions": 88, "registers": 56, "blocks": 4, "spilled": 0}
    monkeypatch.setattr(device_code, "known", lambda name: name != "sm_103")
    monkeypatch.setattr(device_code, "measure", lambda *_: numbers)
    line = table([row(Variant("reduce"), "nvdisasm")]).splitlines()[-1]
    assert line.count("88 · 56 · 4") == len(PROCESSORS) - 1
    assert line.count("unknown to this NVRTC") == 1


# The resources.


def test_a_spill_is_reported(nvrtc: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = b"""extern "C" __global__ void reduce(float* p, int n) {
      float v[32];
      for (int i = 0; i < 32; i++) v[i] = p[i];
      for (int i = 0; i < n; i++) v[i & 31] += v[(i * 7) & 31];
      for (int i = 0; i < 32; i++) p[i] = v[i];
    }"""
    (tmp_path / "kernel.cu").write_bytes(source)
    monkeypatch.setattr(compiler, "SOURCE", tmp_path / "kernel.cu")
    _, log = compiler.compile_source(Variant("reduce"), "sm_90")
    assert resources(log, "reduce").spilled > 0
    assert "warning" in log.lower()
    with pytest.raises(ValueError, match="no report on loss"):
        resources(log, "loss")


@pytest.mark.parametrize(
    ("registers", "shared", "architecture", "blocks"),
    [
        (64, 544, "sm_90", 4),
        (65, 544, "sm_90", 3),  # as 72
        (41, 0, "sm_90", 5),  # as 48
        (16, 0, "sm_90", 8),  # 2048 threads
        (16, 0, "sm_120", 6),  # 1536 threads
        (16, 50 * 1024, "sm_90", 4),
        (16, 50 * 1024, "sm_120", 1),
    ],
)
def test_blocks_of_a_multiprocessor(
    registers: int, shared: int, architecture: str, blocks: int
) -> None:
    assert Resources(registers, shared, 0).blocks(PROCESSORS[architecture], 256) == blocks


# The instructions. Every line has a name, so that jumps can be written down.


def code(*lines: str) -> list[Instruction]:
    """``name: @predicate OPCODE operands, name of a line``."""
    split = [line.partition(": ") for line in lines]
    address = {name: hex(16 * n) for n, (name, _, _) in enumerate(split)}
    instructions = []
    for _, _, text in split:
        predicate, text = text.split(" ", 1) if text.startswith("@") else ("", text)
        opcode, _, operands = text.partition(" ")
        named = tuple(address.get(o, o) for o in operands.split(", "))
        instructions.append(Instruction(opcode, named, predicate))
    return instructions


def opcodes(path: list[Instruction]) -> list[str]:
    return [i.opcode for i in path]


def test_a_loop_is_counted_once_round_and_the_longest_way() -> None:
    lines = code(
        "entry: S2R",
        "head: LDG",
        "if: @P0 BRA round",
        "more: FMUL",
        "more2: FMUL",
        "round: F2I.NTZ",
        "again: @P1 BRA head",
        "end: STG",
        "exit: EXIT",
    )
    assert opcodes(hot_path(lines)) == ["LDG", "BRA", "FMUL", "FMUL", "F2I.NTZ", "BRA"]


def test_a_tile_that_takes_a_second_vote_or_64_bits_is_rare() -> None:
    lines = code(
        "entry: S2R",
        "head: LDG",
        "diverged: BRA.DIV UR4, away",
        "vote: VOTE.ANY P0, P0",
        "if: @P0 BRA rare",
        "round: F2I.NTZ",
        "again: @P1 BRA head",
        "exit: EXIT",
        "rare: SHFL",
        "rare2: SHFL",
        "vote2: VOTE.ANY P0, P0",
        "if2: @P0 BRA rare",
        "wide: @P2 BRA round",
        "wide2: F2I.S64",
        "back: BRA again",
        "away: SHFL",
        "back2: BRA vote",
    )
    expected = ["LDG", "BRA.DIV", "VOTE.ANY", "BRA", "F2I.NTZ", "BRA"]
    assert opcodes(hot_path(lines)) == expected
    lines[10] = Instruction("NOP", ("",))  # without the second vote: a loop that runs any number
    with pytest.raises(ValueError, match="a loop within the way"):
        hot_path(lines)


def test_code_without_a_loop_is_counted_from_end_to_end() -> None:
    lines = code(
        "entry: ISETP", "if: @P0 EXIT", "c: @P1 BRA end", "x: FMUL", "end: STG", "exit: EXIT"
    )
    assert opcodes(hot_path(lines)) == ["ISETP", "EXIT", "BRA", "FMUL", "STG", "EXIT"]


def test_the_longer_of_two_loops_counts() -> None:
    lines = code(
        "if: BRA.U UP0, second",
        "first: F2I.NTZ",
        "again: @P0 BRA first",
        "exit: EXIT",
        "second: FMUL",
        "round: F2I.NTZ",
        "again2: @!P0 CALL.REL.NOINC end",  # which is how a jump out of a loop may be spelt
        "again3: BRA second",
        "end: EXIT",
    )
    assert opcodes(hot_path(lines)) == ["FMUL", "F2I.NTZ", "CALL.REL.NOINC", "BRA"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["a: LDG", "b: F2I.S64", "c: @P0 BRA a", "d: EXIT"],
            "is one of a rare tile",
        ),
        (
            ["a: F2I", "b: CALL $function", "c: @P0 BRA a", "d: EXIT"],
            "a function is called",
        ),
        (["a: @P1 BRA c", "b: F2I", "c: FMUL", "d: @P0 BRA b", "e: EXIT"], "entered at 2 places"),
        (
            [
                *("a: @P1 BRA d", "b: VOTE.ANY", "c: BRA e"),
                *("d: VOTE.ANY", "e: F2I", "f: @P0 BRA a", "g: EXIT"),
            ],
            "2 votes may be the first",
        ),
    ],
)
def test_what_the_rule_is_not_for_is_refused(lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hot_path(code("entry: S2R", *lines))


def test_work_that_is_added_to_a_loop_is_counted(
    architecture: str, tool: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Compiled: a loop of so many additions, of which a rare element takes many more."""
    source = """extern "C" __global__ void reduce(const float* p, i64* out, float step, int n) {
      i64 sum = 0;
    #pragma unroll 1
      for (int i = threadIdx.x; i < n; i += 32) {
        float v = p[i];
    #pragma unroll
        for (int k = 0; k < ADDITIONS; k++) v += step;
        if (__any_sync(0xffffffffu, !(fabsf(v) < 1e6f))) {
    #pragma unroll
          for (int k = 0; k < 50; k++) v += step;
          sum += __float2ll_rn(v);
          continue;
        }
        sum += __float2int_rn(v);
      }
      out[threadIdx.x] = sum;
    }"""
    paths = []
    for additions in (4, 8):
        text = source.replace("ADDITIONS", str(additions)).replace("i64", "long long")
        (tmp_path / "kernel.cu").write_text(text, "utf-8")
        monkeypatch.setattr(compiler, "SOURCE", tmp_path / "kernel.cu")
        cubin, _ = compiler.compile_source(Variant("reduce"), architecture)
        paths.append(hot_path(disassemble(cubin, "reduce", tool)))
    assert [opcodes(path).count("FADD") for path in paths] == [4, 8]
    assert len(paths[1]) - len(paths[0]) == 4
