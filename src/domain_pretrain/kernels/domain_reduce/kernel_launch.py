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
BLOCKS_PER_PROCESSOR = 4
"""Enough warps in flight to cover the latency of device memory. The compiler is told: it leaves a
thread so few registers that as many blocks fit."""
VEC = 4  # tokens that a thread reads at once: 16 bytes of fp32

Kernel = Literal["reduce", "loss", "reduce_and_loss", "gradient"]


class Variant(NamedTuple):
    """One kernel, compiled for one way to read. Each is compiled when it is first used.

    Attributes:
        kernel: the entry point in ``domain_reduce.cu``.
        by_row: ids and inverses are ``[b]``, not ``[b, s]``.
        vec: tokens that a thread reads at once.
    """

    kernel: Kernel
    by_row: bool = True
    vec: int = VEC

    def macros(self) -> dict[str, object]:
        """The macros of ``domain_reduce.cu``; columns and scales come from ``stats``."""
        return {
            self.kernel.upper(): 1,
            "ROWS": int(self.by_row),
            "VEC": self.vec,
            "THREADS": THREADS,
            "BLOCKS_PER_PROCESSOR": BLOCKS_PER_PROCESSOR,
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


GRAD_LOSSES = Tensors._fields.index("grad_losses")


class Arguments(ctypes.Structure):
    """The one argument of every kernel; ``struct Arguments`` of ``domain_reduce.cu``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in Tensors._fields),
        *((name, ctypes.c_uint32) for name in ("tokens", "rows", "magic", "shift")),
        ("tiles_per_warp", ctypes.c_uint32),
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
    kernel: Kernel, shape: tuple[int, ...], tensors: Tensors, *, domains: int, processors: int
) -> KernelLaunch:
    """Choose the variant and the grid, and lay out the arguments.

    This runs before every launch, so its Python time delays every microbatch.

    Args:
        kernel: the entry point in ``domain_reduce.cu``.
        shape: (b, s) of the tokens.
        tensors: on the device, contiguous, of the types of ``struct Arguments``.
        domains: D.
        processors: multiprocessors of the device.
    """
    rows, columns = shape
    tokens = rows * columns
    if tokens >= 2**31:
        raise ValueError(f"a microbatch must have fewer than 2^31 tokens, got {rows} x {columns}")
    pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    by_row = columns > 1 and tensors.ids.dim() == 1  # type: ignore[union-attr]
    losses, mask, ids, inverse = pointers[:4]
    addresses = losses | mask | pointers[GRAD_LOSSES]
    if not by_row:
        addresses |= ids | inverse
    neighbours = columns if by_row else tokens
    vec = 1 if neighbours % VEC or addresses % (4 * VEC) else VEC
    tiles = -(-tokens // (32 * vec))
    # Kernels that sum keep each warp on a stretch of tiles; the gradient is one pass.
    warps = tiles if kernel == "gradient" else processors * BLOCKS_PER_PROCESSOR * WARPS
    tiles_per_warp = -(-tiles // warps) or 1 if warps else 1
    division = divisor(columns) if by_row else (0, 0)
    arguments = Arguments(*pointers, tokens, rows, *division, tiles_per_warp, domains)
    grid = -(-tiles // (tiles_per_warp * WARPS)) or 1
    return KernelLaunch(Variant(kernel, by_row, vec), grid, arguments, tensors)


def divisor(columns: int) -> tuple[int, int]:
    """(magic, shift): ``n // columns == (n * magic >> 32) >> shift`` for all n < 2^31.

    With 2^shift < columns <= 2^(shift + 1), magic·columns exceeds 2^(32 + shift) by less than
    columns, so n times that stays below 2^(32 + shift), and magic itself below 2^32.

    Args:
        columns: 2 to 2^31.
    """
    shift = (columns - 1).bit_length() - 1
    return -(-(1 << (32 + shift)) // columns), shift
