"""Per-domain sums of the language-model loss: one contract, three choices of backend."""

from domain_pretrain.kernels.domain_reduce.reference import count_samples, domain_reduce

__all__ = ["count_samples", "domain_reduce"]
