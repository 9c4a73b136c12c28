"""``torch.cuda`` on a machine without CUDA: what Megatron calls there, provided by the CPU.

Streams and events do nothing, tensors that are sent to the GPU stay where they are, and the
"CUDA" random state is a constant: every random number comes from PyTorch's CPU generator, whose
sequence therefore depends on the model alone. ``torch.cuda.is_available()`` stays False, so code
that asks first still gets the right answer.
"""

from __future__ import annotations

import sys
from abc import ABCMeta
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def install() -> None:
    """Replace the functions of ``torch.cuda`` and enter the device mode, for good."""
    _replace_functions()
    mode = OnCpu()
    mode.__enter__()
    variable: Any = torch.autograd.Variable
    variable._execution_engine = _Engine(variable._execution_engine, mode)


class OnCpu(TorchFunctionMode):
    """Runs every torch call on the CPU, whatever device it names."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        if func is torch.Tensor.to:
            args = tuple("cpu" if _is_cuda(arg) else arg for arg in args)
        if kwargs:
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = "cpu"
            kwargs.pop("pin_memory", None)
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.type and isinstance(result, str):
            # The optimizers sort parameters by these names and know only those of CUDA.
            return result.replace("torch.", "torch.cuda.", 1)
        return result


class _Engine:
    """The autograd engine with the mode on: PyTorch turns it off while a backward pass runs."""

    def __init__(self, engine: Any, mode: OnCpu) -> None:
        self._engine, self._mode = engine, mode

    def run_backward(self, *args: Any, **kwargs: Any) -> Any:
        with self._mode:
            return self._engine.run_backward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


def _answer(value: Any) -> Callable[..., Any]:
    """A function that always returns ``value``; a new one each time, as torch.compile demands."""
    return lambda *args, **kwargs: value


class _Idle:
    """A stream, event or profiler handle: takes every call and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., _Idle]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _answer(self)  # as record_event() returns an event

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: object) -> float:
        return 0.0


def _replace_functions() -> None:
    cuda: Any = torch.cuda
    stream = _Idle()
    random_state = torch.zeros(16, dtype=torch.uint8)
    answers = {
        "current_device": 0,
        "device_count": 1,  # at 0, Megatron's tracker of random states would stay empty
        "current_stream": stream,
        "default_stream": stream,
        "stream": nullcontext(stream),
        "cudart": stream,
        "memory_stats": defaultdict(int),
        "get_device_capability": (0, 0),
        "get_device_properties": SimpleNamespace(name="cpu", major=0, minor=0),
        "is_current_stream_capturing": False,
        "get_rng_state": random_state,
        "set_rng_state": None,
        "manual_seed": None,
        "set_device": None,
        "set_stream": None,
        "synchronize": None,
        "empty_cache": None,
        "check_error": None,
        "_lazy_call": None,
        "_lazy_init": None,
    }
    for name, value in answers.items():
        setattr(cuda, name, _answer(value))
    cuda.Stream = cuda.Event = _Idle
    # PyTorch 2.4's TorchDynamo insists on their kind as it is imported; later ones have none.
    for name in ("_StreamBase", "_EventBase"):
        base = getattr(sys.modules.get("torch._streambase"), name, None)
        if isinstance(base, ABCMeta):
            base.register(_Idle)
    cuda.random.get_rng_state = _answer(random_state)
    cuda.nvtx.range_push, cuda.nvtx.range_pop = _answer(None), _answer(None)
