"""What the GPU day imports beyond the standard library, and whether this Python has it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# Modules of the wheels in wheels.txt.
WHEELS = (
    "megatron.core",
    "megatron.training",
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_inspection",
    "typing_extensions",
)
# What the machine has: PyTorch with CUDA, the tools around it, and what those depend on.
MACHINE = (
    "torch",
    "triton",
    "cuda.bindings",
    "numpy",
    "packaging",
    "yaml",
    "rich",
    "pyarrow",
    "tokenizers",
    "transformers",
    "tensorboard",
    "matplotlib",
    "psutil",
    "pytest",
    "hypothesis",
)


def missing(names: tuple[str, ...]) -> list[str]:
    """Those that cannot be imported here."""
    return [name for name in names if not found(name)]


def found(name: str) -> bool:
    """Whether there is such a module; it is not imported."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even its parent
        return False


def obstacle() -> str:
    """What no step can do without, and what to do about it; nothing where all of that is there."""
    if not found("torch"):
        return f"{sys.executable} lacks torch: name a Python that has it, PYTHON=command"
    absent = missing(WHEELS)
    if absent and sys.version_info[:2] != (3, 12):
        version = ".".join(map(str, sys.version_info[:2]))
        return f"the wheels are for Python 3.12, this is {version}: name another, PYTHON=command"
    if absent:
        return (
            f"this Python lacks {', '.join(absent)}: where there is network, run "
            "scripts/gpu_wheels.sh DIR, bring DIR here, and give --wheels DIR (make: WHEELS=DIR)"
        )
    return ""
