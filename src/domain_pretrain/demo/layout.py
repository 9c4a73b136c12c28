"""How the demo's processes share the model and the batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from domain_pretrain.backends.local_layers import gpu_flags, has_transformer_engine
from domain_pretrain.demo.recipe import GLOBAL_BATCH, HEADS, LAYERS, SEQ_LENGTH
from domain_pretrain.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """A parallel layout that fits the demo's model; data parallelism takes what is left.

    Raises:
        ConfigError: it does not fit, with the reason.
    """

    device: Literal["cuda", "cpu"]
    nproc: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    vpp: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "cp", "vpp", "nproc"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: give at least 1")
        if self.nproc % self.model_parallel:
            raise ConfigError(
                f"--nproc {self.nproc}: not a multiple of tp·pp·cp = {self.tp}·{self.pp}·{self.cp}"
            )
        if self.vpp > 1 and self.pp == 1:
            raise ConfigError(f"--vpp {self.vpp}: virtual stages need --pp of at least 2")
        # What is shared, among how many, and who asks for it.
        shares = [
            ("attention heads", HEADS, self.tp, f"--tp {self.tp}"),
            ("layers", LAYERS, self.pp * self.vpp, f"--pp {self.pp} --vpp {self.vpp}"),
            ("sequence length", SEQ_LENGTH, 2 * self.cp, f"--cp {self.cp} (two parts per rank)"),
            (
                "global batch",
                GLOBAL_BATCH,
                self.dp * self.microbatches,
                f"dp {self.dp} with {self.microbatches} microbatches",
            ),
        ]
        for what, have, among, asked in shares:
            if have % among:
                raise ConfigError(
                    f"{asked}: the demo's {what}, {have}, is not a multiple of {among}"
                )
        if self.device == "cuda":
            self._check_gpus()

    def _check_gpus(self) -> None:
        import torch

        if self.nproc > torch.cuda.device_count():
            raise ConfigError(
                f"--nproc {self.nproc}: this machine has {torch.cuda.device_count()} GPU(s), and "
                "each process needs its own; hide them (CUDA_VISIBLE_DEVICES=) to run on the CPU"
            )
        if self.cp > 1 and not has_transformer_engine():
            raise ConfigError(
                f"--cp {self.cp}: on a GPU, Megatron's context parallelism needs Transformer "
                "Engine: pip install 'domain-pretrain[gpu]'"
            )

    @property
    def model_parallel(self) -> int:
        """Processes that share one copy of the model and of a sequence."""
        return self.tp * self.pp * self.cp

    @property
    def dp(self) -> int:
        """Data-parallel size."""
        return self.nproc // self.model_parallel

    @property
    def microbatches(self) -> int:
        """Per step: a pipeline needs several to be busy, and a multiple of its stages for VPP."""
        return 2 * self.pp if self.pp > 1 else 1

    @property
    def threads(self) -> int:
        """Threads for each process, so that all together have one per core."""
        return max(1, cores() // self.nproc)

    def flags(self) -> list[str]:
        """Megatron's flags for the layout, and for the device, where it needs any."""
        flags = {
            "--tensor-model-parallel-size": self.tp,
            "--pipeline-model-parallel-size": self.pp,
            "--context-parallel-size": self.cp,
            "--micro-batch-size": GLOBAL_BATCH // self.dp // self.microbatches,
            "--global-batch-size": GLOBAL_BATCH,
            "--domain-backend": self.device,
        }
        if self.vpp > 1:
            flags["--num-virtual-stages-per-pipeline-rank"] = self.vpp
        words = [str(word) for item in flags.items() for word in item]
        if self.device == "cuda":
            words += gpu_flags()
        return words

    def __str__(self) -> str:
        sizes = ("dp", "tp", "pp", "cp", "vpp")
        parts = [f"{size} {getattr(self, size)}" for size in sizes if getattr(self, size) > 1]
        processes = "1 process" if self.nproc == 1 else f"{self.nproc} processes"
        return ", ".join([processes, " × ".join(parts)]) if parts else processes


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def default_nproc(device: str, model_parallel: int) -> int:
    """What the layout needs; without one, two on a CPU, where a single one uses the cores badly."""
    if model_parallel != 1:
        return model_parallel
    return 2 if device == "cpu" and cores() > 1 else 1
