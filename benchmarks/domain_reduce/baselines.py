"""What the per-domain sums are compared with: the same question, asked the usual ways."""

from __future__ import annotations

import torch

from domain_pretrain.kernels.domain_reduce import Inputs, select


class Bincount:
    """The recipe in circulation: three bincounts. On CUDA each one syncs with the host, twice."""

    name = "bincount recipe"
    graphable = False

    def __init__(self, domains: int, device: str) -> None:
        self.domains = domains
        self.sums = torch.zeros(3, domains, device=device)

    def __call__(self, losses, mask, ids, inputs):  # type: ignore[no-untyped-def]
        terms = losses * mask
        if ids.dim() == 1:
            terms, mask = terms.sum(dim=1), mask.sum(dim=1)
        flat = ids.reshape(-1)
        for index, weights in enumerate((terms.reshape(-1), mask.reshape(-1), None)):
            self.sums[index] += torch.bincount(flat, weights, minlength=self.domains)


class IndexAdd:
    """The same in floats without a sync: three ``index_add_``. Their order, so their bits, vary."""

    name = "index_add_ of floats"
    graphable = True

    def __init__(self, domains: int, device: str) -> None:
        self.sums = torch.zeros(3, domains, device=device)

    def __call__(self, losses, mask, ids, inputs):  # type: ignore[no-untyped-def]
        terms = losses * mask
        if ids.dim() == 1:
            terms, mask = terms.sum(dim=1), mask.sum(dim=1)
        flat = ids.reshape(-1)
        self.sums[0].index_add_(0, flat, terms.reshape(-1))
        self.sums[1].index_add_(0, flat, mask.reshape(-1))
        self.sums[2].index_add_(0, flat, torch.ones_like(terms).reshape(-1))


class Ours:
    """A backend of the plugin: five exact columns, samples and non-finite tokens among them."""

    graphable = True

    def __init__(self, domains: int, device: str, backend: str, *, inductor: bool = False) -> None:
        from domain_pretrain.stats import Column

        self.name = f"{backend}, inductor" if inductor else backend
        shape = (domains + 1, len(Column))
        self.sums = torch.zeros(shape, dtype=torch.int64, device=device)
        self._reduce = select(backend).domain_reduce  # type: ignore[arg-type]
        if inductor:
            self._reduce = torch.compile(self._reduce, fullgraph=True)

    def __call__(self, losses, mask, ids, inputs):  # type: ignore[no-untyped-def]
        self._reduce(inputs._replace(accumulator=self.sums))


class EmptyKernel:
    """One launch that does nothing: the floor."""

    name = "empty kernel"
    graphable = True

    def __init__(self, domains: int, device: str) -> None:
        self._ours = Ours(domains, device, "cuda")

    def __call__(self, losses, mask, ids, inputs):  # type: ignore[no-untyped-def]
        nothing = Inputs(*(part if part is None else part[:0] for part in inputs))
        self._ours(losses, mask, ids, nothing)


class Copy:
    """A copy of the losses and of the mask: what reading them costs at the least, and writing."""

    name = "copy"
    graphable = True

    def __call__(self, losses, mask, ids, inputs):  # type: ignore[no-untyped-def]
        return losses.clone(), mask.clone()
