"""What a kernel launch needs, worked out on the host: which variant, which grid, the arguments.

Nothing here touches a device, so all of it is tested without one.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch

from domain_pretrain.kernels.domain_reduce import contract
from domain_pretrain.stats import Column

THREADS = 256
WARPS = THREADS // 32
BLOCKS_PER_PROCESSOR = 4  # enough warps in flight to cover the latency of device memory
VEC = 4  # tokens a thread reads at once: 16 bytes of fp32

KERNELS = ("reduce", "loss", "reduce_and_loss", "gradient", "count")
LOSS_TYPES = {torch.float32: (32, 0), torch.bfloat16: (16, 1), torch.float16: (16, 0)}
ID_TYPES = {torch.int32: 32, torch.int64: 64}


class Variant(NamedTuple):
    """One kernel, compiled for one set of types. Each is compiled when it is first used."""

    kernel: str
    loss: torch.dtype = torch.float32
    ids: torch.dtype = torch.int64
    vec: int = VEC
    squares: bool = False

    def macros(self) -> dict[str, object]:
        """The macros of ``domain_reduce.cu``; columns and scales come from the one place."""
        bits, brain = LOSS_TYPES[self.loss]
        return {
            self.kernel.upper(): 1,
            "LOSS_BITS": bits,
            "LOSS_BRAIN": brain,
            "ID_BITS": ID_TYPES[self.ids],
            "VEC": self.vec,
            "SQUARES": int(self.squares),
            "THREADS": THREADS,
            "FIXED": f"{float(contract.FIXED)}f",
            "LIMIT": f"{contract.LIMIT}f",
            "SAMPLE_SCALE": f"{float(contract.SAMPLE_SCALE)}f",
            "SQUARE_SCALE": f"{float(contract.SQUARE_SCALE)}f",
            "COLUMNS": len(Column),
            **{f"COLUMN_{column.name}": column.value for column in Column},
        }


_INPUTS = ("losses", "mask", "ids", "inverse", "row_tokens", "multipliers", "host_loss")
_OUTPUTS = ("accumulator", "squares", "workspace", "loss", "report", "num_tokens")
_BACKWARD = ("grad", "grad_losses")
_STRIDED = ("losses", "mask", "ids", "inverse")


class Arguments(ctypes.Structure):
    """The one argument of every kernel; ``struct Arguments`` of ``domain_reduce.cu``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (*_INPUTS, *_OUTPUTS, *_BACKWARD)),
        *((f"{name}_{axis}", ctypes.c_int64) for name in _STRIDED for axis in ("row", "column")),
        *((name, ctypes.c_uint32) for name in ("rows", "columns", "tiles_per_warp")),
        ("domains", ctypes.c_int32),
    ]


class Launch(NamedTuple):
    """A kernel launch: ``grid`` blocks of ``THREADS`` threads.

    ``tensors`` are what the arguments point to; they must live until the launch is enqueued.
    """

    variant: Variant
    grid: int
    arguments: Arguments
    tensors: dict[str, torch.Tensor]


def plan(
    kernel: str,
    shape: tuple[int, int],
    tensors: dict[str, torch.Tensor | None],
    *,
    domains: int,
    processors: int,
    workspace: int = 0,
) -> Launch:
    """Choose the variant and the grid, and lay out the arguments.

    Args:
        kernel: one of :data:`KERNELS`.
        shape: (b, s) of the tokens; (b, 1) for ``count``.
        tensors: by the names of :class:`Arguments`, on the device, of types that the kernels know.
        domains: D.
        processors: multiprocessors of the device.
        workspace: address of the launch's workspace, for the kernels that return a loss.
    """
    rows, columns = shape
    if rows * columns >= 2**31:
        raise ValueError(f"a microbatch must have less than 2^31 tokens, got {rows} x {columns}")
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    values: dict[str, int] = {name: tensor.data_ptr() for name, tensor in given.items()}
    vec = VEC if columns % VEC == 0 else 1
    for name in _STRIDED:
        if name in given:
            row, column = _strides(given[name])
            values[f"{name}_row"], values[f"{name}_column"] = row, column
            if not _vectorisable(given[name], row, column):
                vec = 1
    tiles = -(-rows * columns // (32 * vec))
    # The gradient and the count are one pass; the sums keep each warp on a stretch of tokens.
    warps = tiles if kernel in ("gradient", "count") else processors * BLOCKS_PER_PROCESSOR * WARPS
    tiles_per_warp = max(1, -(-tiles // max(1, warps)))
    losses = given.get("losses", given.get("grad_losses"))
    return Launch(
        Variant(
            kernel,
            torch.float32 if losses is None else losses.dtype,
            given["ids"].dtype,
            vec,
            "squares" in given,
        ),
        max(1, -(-tiles // (tiles_per_warp * WARPS))),
        Arguments(
            rows=rows,
            columns=columns,
            tiles_per_warp=tiles_per_warp,
            domains=domains,
            workspace=workspace,
            **values,
        ),
        given,
    )


def _strides(tensor: torch.Tensor) -> tuple[int, int]:
    """In elements, (row, column); column 0 for one value a row."""
    return tensor.stride(0), tensor.stride(1) if tensor.dim() == 2 else 0


def _vectorisable(tensor: torch.Tensor, row: int, column: int) -> bool:
    """Whether VEC neighbours of a row can be read at once, or are one value."""
    if column == 0:
        return True
    aligned = tensor.data_ptr() % min(16, VEC * tensor.element_size()) == 0
    return column == 1 and aligned and (row % VEC == 0 or tensor.shape[0] == 1)
