"""LoRA in a run: what it is refused with, what a checkpoint must hold, and the base without it.

A checkpoint of the run holds the whole model, adapters included, and says of what size they are. A
base has none: of it exactly the adapters may be missing. Megatron itself asks for less: what it
does not find in a file of the format ``torch``, it leaves as it was made, random.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from packaging.version import Version

from domain_pretrain.adapt.lora import SAVED, Lora
from domain_pretrain.checkpoints.index import INDEX, read_index
from domain_pretrain.checkpoints.start import starts_from
from domain_pretrain.errors import ConfigError, LocalError, UnsupportedError
from domain_pretrain.hosts import peft
from domain_pretrain.hosts.base import MOST_NAMED
from domain_pretrain.hosts.support import replays_layers
from domain_pretrain.process import notice
from domain_pretrain.refusal import Refusal, on

_FORMATS = ("torch_dist", "torch")

REFUSED: tuple[Refusal, ...] = (
    Refusal(
        "Megatron-FSDP or --use-torch-fsdp2 with adapt.lora",
        lambda a: on(a, "use_megatron_fsdp") or on(a, "use_torch_fsdp2"),
        "they shard frozen and trained weights of a layer together, and save them as the ranks "
        "have them, which was not tried with adapters; use --use-distributed-optimizer, which "
        "shards all that LoRA trains",
    ),
    Refusal(
        "--ckpt-format other than torch_dist and torch with adapt.lora",
        lambda a: getattr(a, "ckpt_format", None) not in (None, *_FORMATS),
        "what a base lacks, and whether that is the adapters alone, is known of those two formats",
    ),
    Refusal(
        "--defer-embedding-wgrad-compute with adapt.lora",
        lambda a: on(a, "defer_embedding_wgrad_compute"),
        "the output layer is frozen: there is no gradient to put off; leave the flag out",
    ),
)

_EXPERTS = Refusal(
    "--tensor-model-parallel-size or --expert-tensor-parallel-size > 1 with adapt.lora.experts",
    lambda a: (
        (getattr(a, "tensor_model_parallel_size", None) or 1) > 1
        or (getattr(a, "expert_tensor_parallel_size", None) or 1) > 1
    ),
    "Megatron leaves out what its layers would send between the ranks of TP there, and the "
    "adapters' sums are then wrong without a word (Megatron-Bridge, pull request 5635); use "
    "expert and pipeline parallelism, or leave experts out: attention keeps its adapters",
)

_COMPARED = Refusal(
    "CUDA graphs with adapt.lora.compare_base and evaluate.samples",
    replays_layers,
    "a replayed graph computes the adapters whether or not they are on; give compare_base: false, "
    "or leave the graphs out",
)


def refusals(options: Lora, *, compares: bool) -> tuple[Refusal, ...]:
    """Of Megatron's flags, with these options."""
    return (
        *REFUSED,
        *((_EXPERTS,) if options.experts else ()),
        *((_COMPARED,) if compares else ()),
    )


class Adapters:
    """The adapters of one process of a run.

    Args:
        options: of the config.
        args: Megatron's, validated.
        core: the version of ``megatron.core``.

    Raises:
        ConfigError: what LoRA needs is not here, or there is no model to adapt.
        UnsupportedError: this host's version is too old.
    """

    def __init__(self, options: Lora, args: Any, core: str) -> None:
        self.options = options
        if Version(core).release < peft.CORE.release:
            raise UnsupportedError(
                f"adapt.lora needs megatron.core {peft.CORE} or newer, which megatron.bridge.peft "
                f"is written for, and this is {core}"
            )
        peft.find_peft()
        if starts_from(args) is None:
            raise ConfigError(
                "adapt.lora freezes the model that the run starts from, and it starts from none: "
                "give one by --pretrained-checkpoint (`domain-pretrain import` makes one of a "
                "Hugging Face model)"
            )
        setattr(args, SAVED, options.saved())
        self._args = args
        self._folder = ""
        self._base = False  # whether what is loaded has no adapters
        self._layers = 0

    def add_to(self, model: Any) -> None:
        """Put adapters into a chunk of the model, which has just been made.

        Raises:
            ConfigError: it has layers, and the options name none of them.
        """
        names = peft.add_adapters(model, self.options)
        self._layers += len(names)
        if not names and len(model.decoder.layers):
            raise LocalError(
                f"adapt.lora.targets: {', '.join(self.options.targets)}: the model has no such "
                "layer beside its experts; give targets of its attention, or experts: true"
            )
        trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
        whole = sum(one.numel() for one in model.parameters())
        notice(
            f"adapt.lora: {len(names)} layers of this rank have adapters of rank "
            f"{self.options.rank}: {trained:,} of {whole:,} parameters are trained"
        )
        model.register_load_state_dict_post_hook(self._loaded)

    def check_there(self) -> None:
        """Before anything is trained or measured: the script's model must have adapters.

        Raises:
            UnsupportedError: it is of another kind.
        """
        if not self._layers:
            raise UnsupportedError(
                "adapt.lora: the script's model is no GPTModel of Megatron's core, so that it has "
                "got no adapters; leave adapt.lora out"
            )

    def off(self, model: Sequence[Any]) -> AbstractContextManager[None]:
        """See :func:`.peft.adapters_off`."""
        return peft.adapters_off(model)

    # Checkpoints.

    def look_into(self, loaded: Mapping[str, Any], folder: str) -> None:
        """After the host has read a checkpoint, or its head: is it a base, or of such a run?

        Raises:
            ConfigError: its adapters are others, or it has none and the run is to go on from it.
        """
        saved, own = saved_of(loaded), self.options.saved()
        if saved is not None and saved != own:
            told = "; ".join(
                f"{key} {saved.get(key)}, here {value}"
                for key, value in own.items()
                if saved.get(key) != value
            )
            raise ConfigError(
                f"{folder} has other adapters than adapt.lora asks for: {told}. Give the same, or "
                "merge them into the base (`domain-pretrain export`, then `import`) and begin anew"
            )
        self._folder, self._base = folder, saved is None
        # Before there is a model, only the arguments are read, and it is not known what for.
        begins = getattr(self._args, "finetune", False) or not loaded.get("iteration")
        if saved is None and self._layers and not begins:
            raise ConfigError(
                f"{folder} has no adapters, so it is no checkpoint of this run to go on from: give "
                "it by --pretrained-checkpoint, or with --finetune"
            )

    def before_read(self, wanted: dict[str, Any]) -> None:
        """Before the host reads the tensors of a checkpoint that is cut for any layout.

        Args:
            wanted: what it asks for, its own; of a base, the adapters are taken out.

        Raises:
            LocalError: the checkpoint lacks a tensor that this rank needs.
        """
        self.check_there()
        if not Path(self._folder, INDEX).is_file():
            return
        there = read_index(Path(self._folder)).tensors
        missing = set()
        for part in _models(wanted):
            for key in [key for key in part if self._base and peft.ADAPTER in key]:
                del part[key]
            missing |= {one.key for one in part.values() if _is_tensor(one)} - there.keys()
        if missing:
            raise LocalError(_lacks(self._folder, missing))

    def _loaded(self, model: Any, keys: Any) -> None:
        """After a chunk of the model has taken what was read: what of it was not there?

        Args:
            model: the chunk.
            keys: torch's, whose ``missing_keys`` can be excused by taking them out.
        """
        if self._base:
            keys.missing_keys[:] = [one for one in keys.missing_keys if peft.ADAPTER not in one]
        missing = [key for key in keys.missing_keys if not key.endswith("_extra_state")]
        if missing:
            # Not an exception: Megatron catches it, and goes on with what it has.
            text = _lacks(self._folder, map(peft.base_name, missing))
            print(f"domain_pretrain: error: {text}", file=sys.stderr, flush=True)
            raise SystemExit(2)


def saved_of(loaded: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the run that wrote a checkpoint had of adapters; None: none."""
    return getattr(loaded.get("args"), SAVED, None)


def refuse_adapters(loaded: Mapping[str, Any], folder: str) -> None:
    """In a run without LoRA: Megatron would leave the checkpoint's adapters out in silence.

    Raises:
        ConfigError: it has some.
    """
    saved = saved_of(loaded)
    if saved is not None:
        raise ConfigError(
            f"{folder} is of a run with adapt.lora ({saved}), and this run has none: its adapters "
            "would be left out. Give adapt.lora as that run had it, or merge them into the base "
            "(`domain-pretrain export`, then `import`)"
        )


def _models(wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of a model: ``model``, or ``model0``, ``model1`` and so on."""
    for name, part in wanted.items():
        if name.startswith("model") and isinstance(part, dict):
            yield part


def _is_tensor(one: Any) -> bool:
    """Not what a module keeps beside its tensors, which differs between layer specs."""
    key = getattr(one, "key", None)
    return isinstance(key, str) and not key.endswith("_extra_state")


def _lacks(folder: str, names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return (
        f"{folder} lacks {', '.join(found[:MOST_NAMED])}{more}, which adapt.lora keeps as it is: "
        "only adapters may be missing in a base; give a whole one of this model"
    )
