"""Megatron on CPUs: gloo instead of NCCL, its own unfused layers instead of Transformer Engine.

For demos and tests: every parallel layout runs, none of them fast. Megatron's code is
unchanged; what it cannot do without CUDA is provided by :mod:`.torch_cuda`, and the few of its
functions that are wrong here are replaced when it is imported.
"""

from __future__ import annotations

import os
import sys
from argparse import Action, ArgumentParser
from collections.abc import Sequence
from functools import wraps
from types import ModuleType
from typing import Any

from domain_pretrain.backends import core_attention, torch_cuda
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.seams.importhook import after_import

# What a user would type. A flag that this Megatron does not know is skipped.
FLAGS: tuple[tuple[str, str | None], ...] = (
    ("--distributed-backend", "gloo"),
    ("--use-cpu-initialization", None),
    ("--transformer-impl", "local"),
    ("--attention-backend", "unfused"),
    ("--no-persist-layer-norm", None),
    ("--no-masked-softmax-fusion", None),
    ("--no-bias-gelu-fusion", None),
    ("--no-bias-swiglu-fusion", None),
    ("--no-bias-dropout-fusion", None),
    ("--no-gradient-accumulation-fusion", None),
    ("--no-rope-fusion", None),
    ("--num-workers", "0"),
)

_installed = False


def install() -> None:
    """Make this process run Megatron on the CPU; a second call does nothing.

    Call it before ``megatron`` is imported.

    Raises:
        UnsupportedError: ``megatron.core`` is imported already, so names that it took from
            ``torch.cuda`` can no longer be replaced.
    """
    global _installed
    if _installed:
        return
    if "megatron.core" in sys.modules:
        raise UnsupportedError(
            "the CPU backend must be installed before megatron.core is imported: "
            "launch with `-m domain_pretrain`, or call enable() above the megatron imports"
        )
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    torch_cuda.install()
    _keep_random_numbers()
    skip_cuda_extensions()
    after_import("megatron.training.initialize", _initialize_without_cuda)
    after_import("megatron.core.pipeline_parallel.schedules", _keep_sent_tensors)
    after_import("megatron.core.transformer.dot_product_attention", core_attention.install)
    after_import("megatron.core.transformer.transformer_layer", _seed_layers)
    after_import("megatron.core.transformer.moe.moe_utils", _count_tokens_on_host)
    after_import("megatron.core.fp8_utils", _quantize_only_fp8)
    _installed = True


def skip_cuda_extensions() -> None:
    """Let ``megatron.core`` be imported where there is no GPU to compile for."""
    after_import("torch.utils.cpp_extension", _refuse_cuda_extensions)


def add_default_flags(parser: ArgumentParser) -> dict[str, str]:
    """Make :data:`FLAGS` the defaults of Megatron's ``parser``; the command line takes precedence.

    Returns:
        What was supplied, option to value (empty for a switch), without those that the user gave.
    """
    actions = parser._option_string_actions
    typed = {word.split("=", 1)[0] for word in sys.argv[1:]}
    given = {actions[word].dest for word in typed if word in actions}
    supplied: dict[str, str] = {}
    for option, value in FLAGS:
        action = actions.get(option)
        if action is not None and action.dest not in given:
            parser.set_defaults(**{action.dest: _default(action, value)})
            supplied[option] = value or ""
    return supplied


def describe(supplied: dict[str, str]) -> str:
    """The line that tells the user what :func:`add_default_flags` supplied."""
    flags = " ".join(f"{option} {value}".strip() for option, value in supplied.items())
    return f"CPU backend, for demos and tests: supplied {flags or 'nothing'}"


def _default(action: Action, value: str | None) -> Any:
    if value is None:
        return True if action.const is None else action.const
    return action.type(value) if callable(action.type) else value


def _keep_random_numbers() -> None:
    """A data loader draws a seed for its workers whenever it is iterated, after a resume again.

    On a GPU dropout has a generator of its own, which that does not move.
    """
    from torch.random import fork_rng
    from torch.utils.data import dataloader

    iterator: Any = dataloader._BaseDataLoaderIter
    initialize = iterator.__init__

    @wraps(initialize)
    def initialize_apart(*args: Any, **kwargs: Any) -> None:
        with fork_rng(devices=()):
            initialize(*args, **kwargs)

    iterator.__init__ = initialize_apart


def _refuse_cuda_extensions(module: ModuleType) -> None:
    """0.15 and 0.16 compile CUDA code when imported, and carry on where that is a RuntimeError."""
    load = module.load_inline

    @wraps(load)
    def load_inline(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("with_cuda"):
            raise RuntimeError("the CPU backend has no CUDA to compile for")
        return load(*args, **kwargs)

    module.load_inline = load_inline  # type: ignore[attr-defined]


def _initialize_without_cuda(module: ModuleType) -> None:
    initialize = module.initialize_megatron

    @wraps(initialize)
    def initialize_megatron(*args: Any, **kwargs: Any) -> Any:
        return initialize(*args, **{**kwargs, "allow_no_cuda": True})

    module.initialize_megatron = initialize_megatron  # type: ignore[attr-defined]
    # The warm-up draws random numbers by sequence length and CP size, from the generator that
    # initialises the weights: without it, every layout starts from the same weights.
    module._warmup_jit_function = lambda *args, **kwargs: None  # type: ignore[attr-defined]


def _seed_layers(module: ModuleType) -> None:
    """Megatron seeds pipeline stages apart; here a layer's weights depend on its number alone.

    ``layer_number`` counts over all stages, and a layer sets it before it builds its weights.
    """
    import torch

    def set_layer_number(layer: Any, number: int) -> None:
        from megatron.training.global_vars import get_args

        vars(layer)["layer_number"] = number
        torch.manual_seed(get_args().seed + number)

    number = property(lambda layer: vars(layer)["layer_number"], set_layer_number)
    module.TransformerLayer.layer_number = number


def _count_tokens_on_host(module: ModuleType) -> None:
    """The MoE dispatcher's split sizes become numbers only on their way from a GPU."""
    import torch

    move = module.maybe_move_tensor_to_cpu

    @wraps(move)
    def maybe_move_tensor_to_cpu(tensor: Any, as_numpy: bool = False, **kwargs: Any) -> Any:
        tensor = move(tensor, as_numpy=as_numpy, **kwargs)
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    module.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu  # type: ignore[attr-defined]


def _keep_sent_tensors(module: ModuleType) -> None:
    """A stage frees its output once it is sent; gloo may still be reading it then (NaN)."""
    import torch

    def backward(output: torch.Tensor, grad_output: torch.Tensor | None) -> None:
        torch.autograd.backward(output, grad_tensors=grad_output)

    module.deallocate_output_tensor = lambda *args, **kwargs: None  # type: ignore[attr-defined]
    module.custom_backward = backward  # type: ignore[attr-defined]


def _quantize_only_fp8(module: ModuleType) -> None:
    """0.12's distributed optimizer asks for Transformer Engine to quantize no parameters at all."""
    quantize = module.quantize_param_shard

    @wraps(quantize)
    def quantize_param_shard(model_params: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        if model_params:
            quantize(model_params, *args, **kwargs)

    module.quantize_param_shard = quantize_param_shard  # type: ignore[attr-defined]
