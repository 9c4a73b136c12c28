"""MindSpeed and MindSpeed-LLM (Ascend NPUs): the same seams, handed to MindSpeed's patch manager.

MindSpeed rewrites Megatron through a manager of patches. It rebinds a function wherever its name
was copied to (MindSpeed-LLM's training loop copies ``train_step``), stacks functions that are
called ``…wrapper``, and starts over from the originals it saved when ``repatch`` is called. A
wrapper that it does not know hides its patches or is dropped by it. So in its presence the seams
are patches of the manager, the last and therefore the outermost ones, registered anew each time
it applies its features.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from domain_pretrain.hosts import megatron
from domain_pretrain.seams.seam import Seam

MANAGER = "mindspeed.features_manager.features_manager"
LOOP = "mindspeed_llm.training.training"
FSDP2 = "mindspeed_llm.fsdp2.train.trainer"

# Where MindSpeed itself hooks in: it replaces schedules here, and the manager rebinds the copies
# that Megatron's training loop and its own ones made.
_TARGETS = {"schedule": "megatron.core.pipeline_parallel.schedules:get_forward_backward_func"}

# Adapters are refused here, and MindSpeed-LLM puts a class of its own in the place of the model's.
_LEFT_OUT = ("model",)

SEAMS: tuple[Seam, ...] = tuple(
    replace(seam, target=_TARGETS.get(seam.name, seam.target))
    for seam in megatron.SEAMS
    if seam.name not in _LEFT_OUT
)


def _then_ours(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_features_patches(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        hand_over()
        return result

    return apply_features_patches


FEATURES = Seam(
    "features",
    f"{MANAGER}:MindSpeedFeaturesManager.apply_features_patches",
    ("mindspeed_args",),
    "what the adaptor's import and every repatch end with",
    _then_ours,
)


def present() -> bool:
    """Whether this process runs under MindSpeed, as far as its imports have come."""
    return MANAGER in sys.modules


def patched() -> bool:
    """Whether MindSpeed has applied patches already."""
    return bool(_manager().patches_info)


def hand_over() -> None:
    """Register the seams with the patch manager, on top of what it holds, and apply them."""
    manager = _manager()
    for path, wrapper in _wrappers().items():
        manager.register_patch(path, wrapper)
    manager.apply_patches()


def take_back() -> None:
    """Take the seams out of the patch manager; MindSpeed's own patches stay."""
    patches = _manager().patches_info
    for path, wrapper in _wrappers().items():
        if path in patches and wrapper in patches[path].wrappers:
            patches[path].wrappers.remove(wrapper)
            patches[path].is_applied = False
    _manager().apply_patches()


def _manager() -> Any:
    return sys.modules[MANAGER].MindSpeedPatchesManager


@functools.cache
def _wrappers() -> dict[str, Callable[..., Any]]:
    """Dotted path → wrapper, always the same objects: by them the manager knows what is new."""
    return {seam.target.replace(":", "."): _wrapper(seam) for seam in SEAMS}


def _wrapper(seam: Seam) -> Callable[..., Any]:
    # The manager stacks what is called so, and lets anything else replace the original.
    def domain_pretrain_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(original)(seam.wrap(original))

    return domain_pretrain_wrapper


# What MindSpeed-LLM's own loop must take from Megatron's, or the seams there do not reach it.
BORROWED = ("train_step", "evaluate_and_print_results")


def check_loop(root: Path) -> str | None:
    """Why MindSpeed-LLM's loop does not fit; None if it does.

    Args:
        root: the ``mindspeed_llm`` folder; read, not imported.
    """
    path = root / "training" / "training.py"
    if not path.is_file():
        return f"the host has no {path}"
    borrowed = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "megatron.training.training"
        for alias in node.names
        if alias.asname is None
    }
    missing = [name for name in BORROWED if name not in borrowed]
    if missing:
        return f"{path} does not import {', '.join(missing)} from megatron.training.training"
    return None
