"""``megatron.bridge.peft``, the LoRA of Megatron-Bridge, on plain Megatron.

The only file that knows it: Megatron-LM is about to take PEFT into its core. Its package imports
dozens of others, of which LoRA needs none, so it is imported without the package's ``__init__``.
Where Transformer Engine is, LoRA wraps its layers; its ``lora_layers`` imports it in any case.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from packaging.version import Version

from domain_pretrain.adapt.lora import Lora
from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.random_state import kept_random_state

ADAPTER = ".adapter."  # in the name of every tensor of one, and of no other
NEEDED = Version("0.6")
# megatron.bridge.peft.recompute imports core's hybrid_block, which came with it.
CORE = Version("0.18")
INSTALL = "pip install --no-deps megatron-bridge==0.6.2"
_PACKAGE = "megatron.bridge"
_TE = ("transformer_engine", "transformer_engine.pytorch")


def find_peft() -> Path:
    """The folder of ``megatron.bridge``; nothing is imported.

    Raises:
        ConfigError: it is not installed, or too old; the message has the command.
    """
    folders = (Path(path, *_PACKAGE.split(".")) for path in sys.path)
    found = next((one for one in folders if (one / "peft" / "lora.py").is_file()), None)
    if found is None:
        raise ConfigError(
            "adapt.lora needs megatron.bridge.peft, which is not installed here: "
            f"{INSTALL} (Python 3.12 or newer; no more of Megatron-Bridge is needed)"
        )
    version = _version(found)
    if version < NEEDED:
        raise ConfigError(
            f"adapt.lora needs megatron-bridge {NEEDED} or newer, and {found} is {version}: "
            f"{INSTALL}"
        )
    return found


def _version(package: Path) -> Version:
    text = (package / "package_info.py").read_text(encoding="utf-8")
    return Version(".".join(re.findall(r"^(?:MAJOR|MINOR|PATCH) = (\d+)", text, re.M)))


def add_adapters(model: Any, options: Lora) -> list[str]:
    """Freeze a model, and put adapters beside its layers.

    Args:
        model: a chunk of Megatron's ``GPTModel``, before anything wraps it.
        options: which, and of what size.

    Returns:
        The dotted names of the layers that have one now.
    """
    lora = _lora()(
        target_modules=list(options.patterns()),
        dim=options.rank,
        alpha=options.alpha,
        dropout=options.dropout,
        share_expert_adapters=False,
    )
    with _same_random_numbers(model):
        lora(model, training=True)
    for _, layer in adapted(model):
        layer._register_load_state_dict_pre_hook(_to_wrapped)
    return [name for name, _ in adapted(model)]


def adapted(model: Any) -> Iterator[tuple[str, Any]]:
    """Every layer with an adapter, and its name; without it, :func:`add_adapters` was not here."""
    for name, module in model.named_modules():
        if hasattr(module, "to_wrap") and hasattr(module, "adapter"):
            yield name, module


@contextmanager
def adapters_off(model: Sequence[Any]) -> Iterator[None]:
    """The base model's own forward pass: nothing of the adapters is computed.

    Args:
        model: all chunks of this rank.
    """
    layers = [layer for chunk in model for _, layer in adapted(chunk)]
    for layer in layers:
        layer.disable_adapter_layers()
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapter_layers()


def base_name(name: str) -> str:
    """As a checkpoint calls a tensor of a layer with an adapter."""
    return name.replace(".to_wrap.", ".")


def _to_wrapped(state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give a layer its tensors: it saves them under its own name, and would load them as its
    ``to_wrap``'s. Megatron goes on where they are missing."""
    for key in [key for key in state if key.startswith(prefix)]:
        rest = key[len(prefix) :]
        if not rest.startswith(("adapter.", "to_wrap.")):
            state[f"{prefix}to_wrap.{rest}"] = state.pop(key)


@contextmanager
def _same_random_numbers(model: Any) -> Iterator[None]:
    """What is drawn for A is not missing from what comes after, such as the base's dropout."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    device = next(model.parameters()).device
    tracker = get_cuda_rng_tracker()
    states = tracker.get_states()
    with kept_random_state(device if device.type == "cuda" else None):
        yield
    tracker.set_states(states)


def _lora() -> Any:
    """The class; Megatron must have been imported, to find out whether Transformer Engine is."""
    importlib.import_module("megatron.core.models.gpt.gpt_layer_specs")
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(find_peft())]
        sys.modules[_PACKAGE] = package
    utils = importlib.import_module(f"{_PACKAGE}.peft.utils")
    with _transformer_engine(utils):
        return importlib.import_module(f"{_PACKAGE}.peft.lora").LoRA


@contextmanager
def _transformer_engine(utils: Any) -> Iterator[None]:
    """Where it is absent, what the signatures in ``lora_layers`` name of it."""
    if any(name in sys.modules for name in _TE) or find_spec(_TE[0]) is not None:
        yield
        return
    utils.HAVE_TE = False  # core then has names in the place of its layers that are no types
    top, stand_in = map(ModuleType, _TE)
    vars(top)["pytorch"] = stand_in
    vars(stand_in)["ops"] = SimpleNamespace(Sequential=object)
    sys.modules.update(zip(_TE, (top, stand_in), strict=True))
    try:
        yield
    finally:
        for name in _TE:
            del sys.modules[name]
