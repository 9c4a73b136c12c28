"""What a kernel launch needs, worked out on the host: which variant, which grid, the arguments.

Nothing here touches a device, so all of it is tested without one.
"""

from __future__ import annotations

import ctypes
from typing import Literal, NamedTuple

from domain_pretrain.kernels.domain_reduce import contract
from domain_pretrain.kernels.domain_reduce.contract import Inputs
from domain_pretrain.stats import Column

THREADS = 256  # per block
WARPS = THREADS // 32
BLOCKS_PER_PROCESSOR = 4
"""Enough warps in flight to cover the latency of device memory. The compiler is told: it leaves a
thread so few registers that as many blocks fit."""
VEC = 4  # tokens that a thread reads at once
PACK = 4 * VEC  # bytes; what is read so must be aligned to them

Kernel = Literal["reduce", "loss", "gradient"]


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
            "NAME": self.kernel,
            "SCALARS": int(self.kernel == "loss"),
            "GRADIENT": int(self.kernel == "gradient"),
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


TENSORS = (
    *(*Inputs._fields, "row_tokens"),
    *("loss", "report", "num_tokens", "workspace"),
    *("grad", "grad_losses"),
)
"""What the arguments point to, in the order of ``struct Arguments``; see there for shapes."""

FORMATS: dict[Kernel, str] = {
    "reduce": "10Q",
    "loss": "14Q",
    "gradient": "8x2Q8xQ72x2Q",
}
"""Which of them a kernel takes, as a ``struct``."""


class Arguments(ctypes.Structure):
    """The one argument of every kernel; ``struct Arguments`` of ``domain_reduce.cu``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in TENSORS),
        *((name, ctypes.c_uint32) for name in ("tokens", "rows", "magic", "shift")),
        ("tiles_per_warp", ctypes.c_uint32),
        ("domains", ctypes.c_int32),
    ]


class KernelLaunch(NamedTuple):
    """A launch of ``grid`` blocks of ``THREADS`` threads, but for the addresses of its tensors."""

    variant: Variant
    grid: int
    arguments: Arguments


def lay_out(kernel: Kernel, inputs: Inputs, *, aligned: bool, processors: int) -> KernelLaunch:
    """Choose the variant and the grid, and what the arguments hold besides addresses.

    Args:
        kernel: the entry point in ``domain_reduce.cu``.
        inputs: contiguous, of the types of ``struct Arguments``.
        aligned: whether ``PACK`` divides the addresses of all that is given for each token.
        processors: multiprocessors of the device.

    Raises:
        ValueError: there are more tokens than the kernels count.
    """
    rows, columns = inputs.losses.shape
    tokens = rows * columns
    if tokens >= 2**31:
        raise ValueError(f"a microbatch must have fewer than 2^31 tokens, got {rows} x {columns}")
    by_row = columns > 1 and inputs.ids.dim() == 1
    vec = VEC if aligned and (columns if by_row else tokens) % VEC == 0 else 1
    tiles = -(-tokens // (32 * vec))
    # Kernels that sum keep each warp on a stretch of tiles; the gradient is one pass.
    warps = tiles if kernel == "gradient" else processors * BLOCKS_PER_PROCESSOR * WARPS
    tiles_per_warp = -(-tiles // warps) or 1 if warps else 1
    grid = -(-tiles // (tiles_per_warp * WARPS)) or 1
    arguments = Arguments(
        tokens=tokens, rows=rows, tiles_per_warp=tiles_per_warp, domains=inputs.domains()
    )
    if by_row:
        arguments.magic, arguments.shift = divisor(columns)
    return KernelLaunch(Variant(kernel, by_row, vec), grid, arguments)


def divisor(columns: int) -> tuple[int, int]:
    """(magic, shift): ``n // columns == (n * magic >> 32) >> shift`` for all n < 2^31.

    With 2^shift < columns <= 2^(shift + 1), magic·columns exceeds 2^(32 + shift) by less than
    columns, so n times that stays below 2^(32 + shift), and magic itself below 2^32.

    Args:
        columns: 2 to 2^31.
    """
    shift = (columns - 1).bit_length() - 1
    return -(-(1 << (32 + shift)) // columns), shift
