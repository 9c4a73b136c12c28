"""As much of torch_npu as MindSpeed needs to run on a CPU: for tests.

``torch.npu`` is ``torch.cuda``, which the plugin's CPU backend answers, so ``transfer_to_npu`` has
nothing to do. Of the fused operators there is causal attention. Any other name, and the packages
``acl`` and ``torchair``, can be imported; what comes of them is of no use to a computation.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from itertools import pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class Absent:
    """Stands for anything, gives itself when called or asked for an attribute."""

    def __call__(self, *args, **kwargs):
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Absent()


class Finder(MetaPathFinder, Loader):
    """Modules that hold nothing but absent things."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("acl", "torchair", "torch_npu"):
            return ModuleSpec(name, self, is_package=True)
        return None

    def exec_module(self, module):
        module.__getattr__ = __getattr__


def npu_fusion_attention(query, key, value, heads, layout, *, scale, actual_seq_qlen=None, **_):
    """Causal attention without dropout.

    Args:
        query, key, value: ``[s, b, h]`` (layout SBH), or ``[t, heads, d]`` (TND), where sequences
            follow each other.
        actual_seq_qlen: TND: where each sequence ends.
    """
    if layout == "SBH":
        q, k, v = (x.unflatten(2, (heads, -1)).permute(1, 2, 0, 3) for x in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return out.permute(2, 0, 1, 3).flatten(2), None, None
    assert layout == "TND"
    assert actual_seq_qlen[-1] == len(query)
    sequences = []
    for start, end in pairwise([0, *actual_seq_qlen]):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        sequences.append(out.transpose(0, 1))
    return torch.cat(sequences), None, None


class OnCpu(TorchFunctionMode):
    """Tensors that are made on an NPU are made on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if str(kwargs.get("device")).startswith("npu"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


__version__ = "2.7.1"
torch.npu = npu = torch.cuda
torch.Tensor.npu = torch.Tensor.cuda
sys.modules["torch_npu.npu"] = torch.cuda
sys.meta_path.append(Finder())
OnCpu().__enter__()
