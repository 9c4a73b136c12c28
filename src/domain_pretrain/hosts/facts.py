"""What a host tells of a run before it trains, the same from every host."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_pretrain.data.already_read import KEY
from domain_pretrain.data.blend import Blend
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.order import Order
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.tokenizer import Tokenizer
from domain_pretrain.paths import is_remote
from domain_pretrain.process import notice
from domain_pretrain.refusal import Refusal

# What orders the samples besides the data, as any of the hosts calls it.
_ORDERING = ("seed", "random_seed", "seq_length", "dataloader_type")
_SURPLUS = 0.005  # that the host builds of every prefix, where no flag says
# What one compares runs by, beside their data.
_HYPERPARAMETERS = (
    *("num_layers", "hidden_size", "num_attention_heads", "num_experts", "seq_length"),
    *("train_iters", "train_samples", "global_batch_size", "micro_batch_size", "seed"),
    *("optimizer", "lr", "min_lr", "lr_decay_style", "lr_warmup_fraction", "lr_warmup_iters"),
    *("lr_warmup_samples", "weight_decay", "clip_grad", "adam_beta1", "adam_beta2", "adam_eps"),
)


@dataclass(frozen=True)
class RunFacts:
    """What a host tells of a run before it trains.

    Attributes:
        core_version: of ``megatron.core``.
        flags: an object with the host's settings, under the names of Megatron-LM's flags.
        refusals: refused combinations of the host's flags, besides Megatron-LM's own.
        blends: gives what Megatron-LM's ``get_blend_and_blend_per_split`` returns; asked for once
            the host and its flags are known to be supported.
        validation_set_names: ``--validation-set-names``.
        micro_batch_size: in samples.
        log_dir: where the metrics file goes; None writes none.
        offers: what the host tells of the :class:`.Course` of the run.
    """

    core_version: str
    flags: Any
    refusals: tuple[Refusal, ...]
    blends: Callable[[], tuple[Blend, Sequence[Blend] | None]]
    validation_set_names: Sequence[str] | None
    micro_batch_size: int
    log_dir: Path | None
    offers: frozenset[str] = frozenset()

    def on(self, flag: str) -> bool:
        """Whether a switch is given; one that this host does not have is not."""
        return bool(getattr(self.flags, flag, False))

    @property
    def samples(self) -> int | None:
        """That the run trains on; None where the flags do not say."""
        flags = self.flags
        batch, steps = (getattr(flags, name, None) for name in ("global_batch_size", "train_iters"))
        return getattr(flags, "train_samples", None) or (steps * batch if steps and batch else None)

    @property
    def largest_batch(self) -> int | None:
        """Samples of a step, at most; None where the flags do not say."""
        schedule = getattr(self.flags, "step_batch_size_schedule", None) or ""
        sizes = [int(size) for size in re.findall(r":\s*(\d+)", schedule)]
        return max([*sizes, getattr(self.flags, "global_batch_size", None) or 0]) or None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What one compares runs by, as far as this host has it, by the flag's name."""
        found = {name: getattr(self.flags, name, None) for name in _HYPERPARAMETERS}
        return {name: value for name, value in found.items() if value is not None}

    def order(self, reading: Reading, plan: Plan | None = None) -> Order:
        """Which sample of ``reading`` comes when; by ``plan``, where there is one."""
        flags = self.flags
        given = {f"--{name.replace('_', '-')}": getattr(flags, name, None) for name in _ORDERING}
        given[KEY] = None if reading.already_read is None else reading.already_read.digest
        return Order.of(
            reading,
            {flag: value for flag, value in given.items() if value is not None},
            Tokenizer.of(flags),
            self.samples,
            surplus=getattr(flags, "mid_level_dataset_surplus", None) or _SURPLUS,
            plan=plan,
        )


def log_dir_of(own: str | Path | None, *others: str | Path | None) -> Path | None:
    """Where the metrics file goes.

    Args:
        own: the plugin's own folder, which goes before the others.
        others: the first that is given and on a disk: TensorBoard's, that of the checkpoints.
    """
    if own:
        return Path(own)
    given = [folder for folder in others if folder]
    on_disk = [Path(folder) for folder in given if not is_remote(folder)]
    if given and not on_disk:
        notice(
            f"no domain_metrics.jsonl is written, since {given[0]} is in an object store: give "
            "--domain-log-dir a folder on a disk"
        )
    return on_disk[0] if on_disk else None
