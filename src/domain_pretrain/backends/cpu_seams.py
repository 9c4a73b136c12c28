"""What of Megatron, and of PyTorch, is wrong on a CPU, and what stands there instead.

Every target is there in all versions of ``hosts.versions``, unless its seam says which lack it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from domain_pretrain.backends.core_attention import forward_with_cp, init_with_cp
from domain_pretrain.seams.seam import Seam

Function = Callable[..., Any]


def _apart(initialize: Function) -> Function:
    from torch.random import fork_rng

    def initialize_apart(*args: Any, **kwargs: Any) -> None:
        with fork_rng(devices=()):
            initialize(*args, **kwargs)

    return initialize_apart


def _without_cuda(load: Function) -> Function:
    def load_inline(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("with_cuda"):
            raise RuntimeError("the CPU backend has no CUDA to compile for")
        return load(*args, **kwargs)

    return load_inline


def _allow_no_cuda(initialize: Function) -> Function:
    def initialize_megatron(*args: Any, **kwargs: Any) -> Any:
        return initialize(*args, **{**kwargs, "allow_no_cuda": True})

    return initialize_megatron


def _nothing(_original: Function) -> Function:
    return lambda *args, **kwargs: None


def _plain_backward(_original: Function) -> Function:
    import torch

    def backward(output: torch.Tensor, grad_output: torch.Tensor | None) -> None:
        torch.autograd.backward(output, grad_tensors=grad_output)

    return backward


def _seeding(_original: None) -> property:
    import torch

    def set_layer_number(layer: Any, number: int) -> None:
        from megatron.training.global_vars import get_args

        vars(layer)["layer_number"] = number
        torch.manual_seed(get_args().seed + number)

    return property(lambda layer: vars(layer)["layer_number"], set_layer_number)


def _as_numbers(move: Function) -> Function:
    import torch

    def maybe_move_tensor_to_cpu(tensor: Any, as_numpy: bool = False, **kwargs: Any) -> Any:
        tensor = move(tensor, as_numpy=as_numpy, **kwargs)
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    return maybe_move_tensor_to_cpu


def _if_any(quantize: Function) -> Function:
    def quantize_param_shard(model_params: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        if model_params:
            quantize(model_params, *args, **kwargs)

    return quantize_param_shard


def _tells_logits(is_te_min_version: Function) -> Function:
    def is_te_min_version_or_ours(version: str, *args: Any, **kwargs: Any) -> Any:
        # The version that parsing asks for where attention has to tell its largest logits.
        return version == "2.9.0" or is_te_min_version(version, *args, **kwargs)

    return is_te_min_version_or_ours


CUDA_EXTENSIONS = Seam(
    "cuda-extensions",
    "torch.utils.cpp_extension:load_inline",
    ("with_cuda",),
    "0.15 and 0.16 compile CUDA code when imported, and carry on where that is a RuntimeError",
    _without_cuda,
)

_INITIALIZE = "megatron.training.initialize"
_NO_LOOP = "wheels before 0.17 hold no training loop; a loop of another package starts by itself"
_SCHEDULES = "megatron.core.pipeline_parallel.schedules"
_ATTENTION = "megatron.core.transformer.dot_product_attention:DotProductAttention"

SEAMS = (
    CUDA_EXTENSIONS,
    Seam(
        "loader-seed",
        "torch.utils.data.dataloader:_BaseDataLoaderIter.__init__",
        (),
        "a data loader draws a seed for its workers whenever it is iterated, after a resume again; "
        "on a GPU dropout has a generator of its own, which that does not move",
        _apart,
    ),
    Seam(
        "initialize",
        f"{_INITIALIZE}:initialize_megatron",
        ("allow_no_cuda",),
        "no flag sets its argument, and without it the start ends where there is no GPU",
        _allow_no_cuda,
        absent=_NO_LOOP,
    ),
    Seam(
        "warm-up",
        f"{_INITIALIZE}:_warmup_jit_function",
        (),
        "never called: it draws random numbers by sequence length and CP size from the generator "
        "that initialises the weights; without it every layout starts from the same weights",
        _nothing,
        absent=_NO_LOOP,
    ),
    Seam(
        "sent-tensor",
        f"{_SCHEDULES}:deallocate_output_tensor",
        (),
        "never called: a stage frees what it has sent, and gloo may still be reading it (NaN)",
        _nothing,
    ),
    Seam(
        "backward",
        f"{_SCHEDULES}:custom_backward",
        ("output", "grad_output"),
        "never called: it insists that the output was freed; autograd's own does the rest",
        _plain_backward,
    ),
    Seam(
        "attention-init",
        f"{_ATTENTION}.__init__",
        ("config", "cp_comm_type"),
        "refuses context parallelism; all layer specifications of all versions use this class",
        init_with_cp,
    ),
    Seam(
        "attention",
        f"{_ATTENTION}.forward",
        ("query", "key", "value", "attention_mask", "packed_seq_params"),
        "leaves context parallelism and packed sequences to Transformer Engine",
        forward_with_cp,
    ),
    Seam(
        "attention-logits",
        "megatron.training.arguments:is_te_min_version",
        ("version",),
        "--qk-clip and --log-max-attention-logit insist on Transformer Engine, whose attention "
        "tells its largest logits, and so does ours; nothing else of it is claimed",
        _tells_logits,
        absent="hosts before 0.16 have neither flag; wheels before 0.17 hold no training loop",
    ),
    Seam(
        "layer-seed",
        "megatron.core.transformer.transformer_layer:TransformerLayer.layer_number",
        (),
        "Megatron seeds pipeline stages apart; this number counts over all stages, and a layer "
        "sets it before it builds its weights, which thus depend on the number alone",
        _seeding,
        assigned=True,
    ),
    Seam(
        "expert-tokens",
        "megatron.core.transformer.moe.moe_utils:maybe_move_tensor_to_cpu",
        ("tensor", "as_numpy"),
        "the MoE dispatcher's split sizes become numbers only on their way from a GPU",
        _as_numbers,
    ),
    Seam(
        "fp8",
        "megatron.core.fp8_utils:quantize_param_shard",
        ("model_params",),
        "0.12's distributed optimizer asks for Transformer Engine to quantize no parameters at all",
        _if_any,
    ),
)
