"""What the GPU day imports beyond the standard library, and whether this Python has it.

python benchmarks/gpu_day/needs.py    # exit code 2, with what to do, where something is missing
"""

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


def main() -> int:
    if sys.version_info[:2] != (3, 12) and missing(WHEELS):
        version = ".".join(map(str, sys.version_info[:2]))
        print(f"gpu_day: the wheels are for Python 3.12, this is {version}", file=sys.stderr)
        return 2
    if absent := missing(WHEELS):
        print(
            f"gpu_day: this Python lacks {', '.join(absent)}: where there is network, run "
            "scripts/gpu_wheels.sh DIR, bring DIR here, and give --wheels DIR (make: WHEELS=DIR)",
            file=sys.stderr,
        )
        return 2
    if absent := missing(MACHINE):  # only some steps need each
        print(f"gpu_day: this Python lacks {', '.join(absent)}: steps that need it will fail")
    return 0


if __name__ == "__main__":
    sys.exit(main())
