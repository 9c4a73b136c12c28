"""Per-token losses of one microbatch → sums by domain, and the loss that is differentiated.

1. ``contract``: what goes in and comes out, with its checks. Sums are int64 fixed point
   (``stats.SCALE``): the same bits for every split over microbatches and ranks, in every backend.
2. ``backend``: the operations, and the choice between ``reference`` (plain torch, any device) and,
   on NVIDIA GPUs, ``cuda``; and the gradient of the loss, of either.
3. ``cuda``: one launch per operation, planned by ``kernel_launch`` once for each layout of the
   tensors; ``driver`` enqueues ``domain_reduce.cu``, which ``compiler`` compiles.

Imported by ``flow`` and ``hosts``; imports only ``errors`` and ``stats``.
"""

from domain_pretrain.kernels.domain_reduce.backend import Backend, Name, select
from domain_pretrain.kernels.domain_reduce.contract import DomainLoss, Inputs
from domain_pretrain.kernels.domain_reduce.reference import count_samples

__all__ = ["Backend", "DomainLoss", "Inputs", "Name", "count_samples", "select"]
