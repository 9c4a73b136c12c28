"""What a warp executes for one common tile, read from the machine code.

A tile is common if it lies within the domain of the tile before and all its values are plain (see
``PLAIN`` in ``domain_reduce.cu``). The kernels find that out by one vote of the warp, and round to
32 bits then. The rule follows from this:

* The tile loop is the outermost loop with a conversion to integers (``F2I``). It has one header,
  where it is entered.
* Rare tiles are left out: what converts to 64 bits (``F2I.S64``), and every vote but the first.
* Of the ways that remain round the loop, from the header back to it, the longest counts. So no
  branch saves any work, such as one past the multipliers where there are none.

Where a compiler has made several loops of one, the longest counts. Code without such a loop is
counted the longest way from entry to exit. A branch for diverged warps (``BRA.DIV``) is not taken:
the kernels' warps are whole there. A predicated instruction counts whether it has an effect or not,
for it is issued.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import networkx as nx

BYTES = 16  # of an instruction


class Instruction(NamedTuple):
    """As nvdisasm spells it: ``@!P0 BRA.U UP1, 0x10`` has a predicate and two operands."""

    opcode: str
    operands: tuple[str, ...]
    predicate: str = ""


def nvdisasm() -> str | None:
    """Where NVIDIA's disassembler is (PyPI's nvidia-cuda-nvdisasm, or a CUDA toolkit)."""
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        return shutil.which("nvdisasm")
    return find_nvidia_binary_utility("nvdisasm")


def disassemble(cubin: bytes, kernel: str, tool: str) -> list[Instruction]:
    """The instructions of ``kernel`` in the order of their addresses, from 0."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [tool, "-json", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    (code,) = (f for f in json.loads(text)[1] if f["function-name"] == kernel)
    return [
        Instruction(i["opcode"], tuple(i.get("operands", "").split(",")), i.get("predicate", ""))
        for i in code["sass-instructions"]
    ]


def hot_path(code: list[Instruction]) -> list[Instruction]:
    """The instructions that a warp executes for one tile, by the rule above.

    Raises:
        ValueError: the code is not of the shape that the rule is for.
    """
    graph = _flow(code)
    loops = _tile_loops(code, graph)
    if loops:
        path = max((_round(code, graph, loop) for loop in loops), key=len)
    else:
        ends = [n for n in graph if code[n].opcode == "EXIT"]
        path = max((_longest(graph, 0, end) for end in ends), key=len)
    instructions = [code[n] for n in path]
    if any(_calls(i) for i in instructions):
        raise ValueError("a function is called on the way: its instructions would not be counted")
    return instructions


def _calls(instruction: Instruction) -> bool:
    """ptxas also spells a jump out of a loop as a call, of an address that has no name."""
    name, operands, _ = instruction
    return name.startswith("CALL") and not operands[-1].startswith("0x")


def _flow(code: list[Instruction]) -> nx.DiGraph:
    """Which instruction (its index) may follow which, as far as the entry leads to it."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(code)))
    graph.add_edges_from((n, m) for n, i in enumerate(code) for m in _successors(n, i))
    return graph.subgraph({0, *nx.descendants(graph, 0)}).copy()


def _successors(n: int, instruction: Instruction) -> list[int]:
    name, operands, predicate = instruction
    if name == "BRA.DIV":
        return [n + 1]
    if name.startswith("BRA") or (name.startswith("CALL") and not _calls(instruction)):
        target = int(operands[-1], 16) // BYTES
        # BRA.CONV is taken by a whole warp; other operands before the target are conditions.
        always = name == "BRA.CONV" or not (predicate or operands[:-1])
        return [target] if always else [target, n + 1]
    if name.split(".")[0] in ("EXIT", "RET", "BRX", "JMX") and not predicate:
        return []
    return [n + 1]


def _tile_loops(code: list[Instruction], graph: nx.DiGraph) -> list[set[int]]:
    return [
        loop
        for loop in nx.strongly_connected_components(graph)
        if len(loop) > 1 and any(code[n].opcode.startswith("F2I") for n in loop)
    ]


def _round(code: list[Instruction], graph: nx.DiGraph, loop: set[int]) -> list[int]:
    headers = {m for n, m in graph.edges if m in loop and n not in loop}
    if len(headers) != 1:
        raise ValueError(f"the loop is entered at {len(headers)} places, want one")
    (header,) = headers
    body = graph.subgraph(loop).copy()
    latches = list(body.predecessors(header))
    body.remove_edges_from([(n, header) for n in latches])
    body.remove_nodes_from([n for n in loop if code[n].opcode.startswith("F2I.S64")])
    body.remove_nodes_from(_later_votes(code, body, header))
    reached = {header, *nx.descendants(body, header)}
    ways = [_longest(body, header, latch) for latch in latches if latch in reached]
    way = max(ways, key=len, default=[])
    if not any(code[n].opcode.startswith("F2I") for n in way):
        raise ValueError("every way round the loop that rounds anything is one of a rare tile")
    return way


def _later_votes(code: list[Instruction], body: nx.DiGraph, header: int) -> list[int]:
    votes = [n for n in body if code[n].opcode.startswith("VOTE")]
    upto = body.copy()
    upto.remove_edges_from(list(upto.out_edges(votes)))
    first = [n for n in votes if nx.has_path(upto, header, n)]
    if len(first) > 1:
        raise ValueError(f"{len(first)} votes may be the first of a tile, want one")
    return [n for n in votes if n not in first]


def _longest(graph: nx.DiGraph, start: int, end: int) -> list[int]:
    between = ({start} | nx.descendants(graph, start)) & ({end} | nx.ancestors(graph, end))
    try:
        return nx.dag_longest_path(graph.subgraph(between))
    except nx.NetworkXUnfeasible:
        raise ValueError("a loop within the way: how often it runs is not known") from None
