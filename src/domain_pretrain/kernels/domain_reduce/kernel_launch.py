"""What a kernel launch needs, worked out on the host: which variant, which grid, the arguments.

Nothing here touches a device, so all of it is tested without one.
"""

from __future__ import annotations

import ctypes
from typing import Literal, NamedTuple

import torch

from domain_pretrain.kernels.domain_reduce import contract
from domain_pretrain.stats import Column

THREADS = 256  # per block
WARPS = THREADS // 32
BLOCKS_PER_PROCESSOR = 4  # enough warps in flight to cover the latency of device memory
VEC = 4  # tokens that a thread reads at once: 16 bytes of fp32

Kernel = Literal["reduce", "loss", "reduce_and_loss", "gradient", "count"]
LOSS_TYPES = {torch.float32: (32, 0), torch.bfloat16: (16, 1), torch.float16: (16, 0)}
ID_TYPES = {torch.int32: 32, torch.int64: 64}


class Variant(NamedTuple):
    """One kernel, compiled for one set of types. Each is compiled when it is first used."""

    kernel: Kernel
    loss: torch.dtype = torch.float32
    ids: torch.dtype = torch.int64
    vec: int = VEC

    def macros(self) -> dict[str, object]:
        """The macros of ``domain_reduce.cu``; columns and scales come from ``stats``."""
        bits, brain = LOSS_TYPES[self.loss]
        return {
            self.kernel.upper(): 1,
            "LOSS_BITS": bits,
            "LOSS_BRAIN": brain,
            "ID_BITS": ID_TYPES[self.ids],
            "VEC": self.vec,
            "THREADS": THREADS,
            "FIXED": f"{float(contract.FIXED)}f",
            "LIMIT": f"{contract.LIMIT}f",
            "TOTAL_LIMIT": f"{contract.TOTAL_LIMIT}f",
            "SAMPLE_SCALE": f"{float(contract.SAMPLE_SCALE)}f",
            "COLUMNS": len(Column),
            **{f"COLUMN_{column.name}": column.value for column in Column},
        }


class Tensors(NamedTuple):
    """What the arguments point to, in the order of ``struct Arguments``; see there for shapes."""

    losses: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    inverse: torch.Tensor | None = None
    row_tokens: torch.Tensor | None = None
    multipliers: torch.Tensor | None = None
    host_loss: torch.Tensor | None = None
    host_tokens: torch.Tensor | None = None
    accumulator: torch.Tensor | None = None
    totals: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    report: torch.Tensor | None = None
    num_tokens: torch.Tensor | None = None
    grad: torch.Tensor | None = None
    grad_losses: torch.Tensor | None = None
    workspace: torch.Tensor | None = None  # for the kernels that return a loss


STRIDED = Tensors._fields[:4]


class Arguments(ctypes.Structure):
    """The one argument of every kernel; ``struct Arguments`` of ``domain_reduce.cu``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in Tensors._fields),
        *((f"{name}_{axis}", ctypes.c_int64) for name in STRIDED for axis in ("row", "column")),
        *((name, ctypes.c_uint32) for name in ("rows", "columns", "tiles_per_warp")),
        ("domains", ctypes.c_int32),
    ]


class KernelLaunch(NamedTuple):
    """One launch: ``grid`` blocks of ``THREADS`` threads.

    ``tensors`` must live until the launch is enqueued.
    """

    variant: Variant
    grid: int
    arguments: Arguments
    tensors: Tensors


def lay_out(
    kernel: Kernel,
    shape: tuple[int, ...],
    tensors: Tensors,
    *,
    domains: int,
    processors: int,
) -> KernelLaunch:
    """Choose the variant and the grid, and lay out the arguments.

    This runs before every launch, so its Python time delays every microbatch.

    Args:
        kernel: the entry point in ``domain_reduce.cu``.
        shape: (b, s) of the tokens; (b, 1) for ``count``.
        tensors: on the device, of types that the kernels read.
        domains: D.
        processors: multiprocessors of the device.
    """
    rows, columns = shape
    tokens = rows * columns
    if tokens >= 2**31:
        raise ValueError(f"a microbatch must have fewer than 2^31 tokens, got {rows} x {columns}")
    pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    vec = VEC if columns % VEC == 0 else 1
    strides: list[int] = []  # in elements; a column stride of 0 is one value per row
    for tensor, pointer in zip(tensors[: len(STRIDED)], pointers, strict=False):
        row, column = (0, 0) if tensor is None else (*tensor.stride(), 0)[:2]
        strides += (row, column)
        if column and vec > 1:  # VEC neighbours are read at once: side by side, and aligned
            size = tensor.element_size()  # type: ignore[union-attr]
            if column != 1 or (rows > 1 and row % VEC) or pointer % min(16, VEC * size):
                vec = 1
    tiles = -(-tokens // (32 * vec))
    # Kernels that sum keep each warp on a stretch of tiles; gradient and count are one pass.
    warps = tiles if kernel in ("gradient", "count") else processors * BLOCKS_PER_PROCESSOR * WARPS
    tiles_per_warp = -(-tiles // warps) or 1 if warps else 1
    losses = tensors.losses if tensors.losses is not None else tensors.grad_losses
    variant = Variant(
        kernel,
        torch.float32 if losses is None else losses.dtype,
        tensors.ids.dtype,  # type: ignore[union-attr]
        vec,
    )
    arguments = Arguments(*pointers, *strides, rows, columns, tiles_per_warp, domains)
    return KernelLaunch(variant, -(-tiles // (tiles_per_warp * WARPS)) or 1, arguments, tensors)
