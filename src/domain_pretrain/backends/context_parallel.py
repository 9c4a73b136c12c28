"""Core attention under context parallelism, in plain PyTorch."""

from types import ModuleType


def install(module: ModuleType) -> None:
    pass
