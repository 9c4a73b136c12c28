"""What a kernel takes of a multiprocessor, from the compiler's log."""

from __future__ import annotations

import re
from typing import NamedTuple

REGISTERS = 65536  # of a multiprocessor, on all of these architectures
RESERVED = 1024  # bytes of shared memory that a block takes beside its own

LOG = re.compile(
    r"Function properties for (?P<kernel>\w+)\s+ptxas\s+\.\s+(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s+"
    r"ptxas info\s+: Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?"
)


class Processor(NamedTuple):
    """A multiprocessor: threads at a time, and bytes of shared memory."""

    threads: int
    shared: int


# By NVIDIA's table of architectures: cuda/__device/arch_traits.h in CCCL 3, which PyPI has as
# nvidia-cuda-cccl (read in 13.3.5). The registers and what is reserved are there, too.
PROCESSORS = {
    "sm_80": Processor(2048, 164 * 1024),
    "sm_90": Processor(2048, 228 * 1024),
    "sm_100": Processor(2048, 228 * 1024),
    "sm_103": Processor(2048, 228 * 1024),
    "sm_120": Processor(1536, 100 * 1024),
}


class Resources(NamedTuple):
    """Registers of a thread; bytes of a block's shared memory; bytes of a thread in local memory.

    ``spilled`` counts the stack, too: an array with a computed index lies there.
    """

    registers: int
    shared: int
    spilled: int

    def blocks(self, processor: Processor, threads: int) -> int:
        """Blocks of ``threads`` threads that a multiprocessor holds at a time."""
        of_thread = -(-self.registers // 8) * 8  # a warp's come in units of 256
        return min(
            REGISTERS // (of_thread * threads),
            processor.threads // threads,
            processor.shared // (self.shared + RESERVED),
        )


def resources(log: str, kernel: str) -> Resources:
    """What ptxas reports with ``--verbose``."""
    found = LOG.search(log)
    if found is None or found["kernel"] != kernel:
        raise ValueError(f"no report on {kernel} in the compiler's log:\n{log}")
    spilled = sum(int(found[name]) for name in ("stack", "stores", "loads"))
    return Resources(int(found["registers"]), int(found["shared"] or 0), spilled)
