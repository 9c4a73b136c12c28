"""Every kernel on every architecture: what is measured, and the table of it."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

from hot_loop import disassemble, hot_path
from resources import PROCESSORS, resources

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import compiler
from domain_pretrain.kernels.domain_reduce.kernel_launch import THREADS, VEC, Kernel, Variant

VARIANTS = [
    Variant(kernel, by_row, vec)
    for by_row, vec, kernel in product((True, False), (VEC, 1), get_args(Kernel))
]


def nvrtc_version() -> str:
    """As NVIDIA writes it, 13.0."""
    _, major, minor = compiler.bindings("nvrtc").nvrtcVersion()
    return f"{major}.{minor}"


def known(architecture: str) -> bool:
    """Whether this NVRTC compiles for ``architecture`` itself."""
    number = int(architecture.removeprefix("sm_"))
    try:
        return compiler.architecture_for(divmod(number, 10)) == architecture
    except UnsupportedError:
        return False


def row(variant: Variant, tool: str) -> dict[str, Any]:
    """One variant on every architecture; null where this NVRTC does not know one."""
    numbers = {name: measure(variant, name, tool) if known(name) else None for name in PROCESSORS}
    return {**variant._asdict(), **numbers}


def measure(variant: Variant, architecture: str, tool: str) -> dict[str, int]:
    code, log = compiler.compile_source(variant, architecture)
    taken = resources(log, variant.kernel)
    path = hot_path(disassemble(code, variant.kernel, tool))
    return {
        "instructions": len(path),
        "registers": taken.registers,
        "blocks": taken.blocks(PROCESSORS[architecture], THREADS),
        "spilled": taken.spilled,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: instructions for a tile · registers · blocks, and spilled bytes where there are."""
    head = ["kernel", "ids of a", "tokens at a time", *PROCESSORS]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for r in rows:
        cells = [cell(r[name]) for name in PROCESSORS]
        lines.append([f"`{r['kernel']}`", "row" if r["by_row"] else "token", str(r["vec"]), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(numbers: dict[str, int] | None) -> str:
    if numbers is None:
        return "unknown to this NVRTC"
    spilled = f" · spills {numbers['spilled']}" if numbers["spilled"] else ""
    return f"{numbers['instructions']} · {numbers['registers']} · {numbers['blocks']}{spilled}"
