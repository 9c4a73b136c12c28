"""The command that evaluates one checkpoint: Megatron's --skip-train, without any training data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from domain_pretrain.adapt.lora import SAVED
from domain_pretrain.config import DomainConfig
from domain_pretrain.demo.launch import torchrun
from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate import build_probes, check_probes
from domain_pretrain.flags import names_of
from domain_pretrain.hosts.command_line import DATA_FLAGS
from domain_pretrain.launch.models import Checkpoint, known
from domain_pretrain.launch.saved_flags import Flag, data_flags, layout_flags, model_flags
from domain_pretrain.yaml_file import as_yaml, read_yaml

CONFIG = "evaluate.yaml"
LONGEST = 4096  # tokens of a context, where nobody has said how long
# Megatron evaluates only where it has validation data. One batch of its own made-up tokens does;
# with an interval that no run reaches, of no evaluation before.
_NO_DATA: tuple[Flag, ...] = (("--mock-data",), ("--split", "0,1,0"))
_ONCE: tuple[Flag, ...] = (
    ("--train-iters", "1"),
    ("--eval-iters", "1"),
    ("--eval-interval", "1000000000"),
    ("--lr", "1e-5"),  # up to 0.15 there is an optimizer even so, which wants one
)


def write_config(path: Path, out: Path) -> None:
    """The part of a config that an evaluation needs.

    Its domains would bring their data along, its mix a stream of them.

    Args:
        path: the user's.
        out: the file to write.

    Raises:
        ConfigError: it is wrong, or asks nothing; or what a probe reads is not there.
    """
    probes = DomainConfig.load(path).evaluate.probes
    if not probes:
        raise ConfigError(
            f"{path} names no probes, so that there is nothing to ask: see evaluate.probes in "
            "docs/evaluation.md"
        )
    check_probes(build_probes(probes))
    text = as_yaml({"evaluate": {"probes": probes}})
    out.write_text(text, encoding="utf-8")


def config_of(model: Checkpoint, config: Path, own: Path) -> Path:
    """The config that a model is evaluated with.

    Args:
        model: to be evaluated; of a run with LoRA, its adapters are part of it.
        config: of all models, as :func:`write_config` wrote it.
        own: the file to write where this model needs another.

    Returns:
        One of the two.
    """
    adapters = model.args.get(SAVED)
    if adapters is None:
        return config
    content = read_yaml(config)
    text = as_yaml({**content, "adapt": {"lora": adapters}})
    own.write_text(text, encoding="utf-8")
    return own


def common_flags(models: Sequence[Checkpoint], given: Sequence[str]) -> list[Flag]:
    """The same for all models, so that they are asked the same: the context, and rows at once.

    Args:
        models: to be evaluated.
        given: the user's own flags.

    Raises:
        ConfigError: nothing says how long a context is.
    """
    length = context_of(models)
    if length is None and "--seq-length" not in names_of(given):
        raise ConfigError(
            "none of the checkpoints says how long its sequences were: give -- --seq-length N"
        )
    rows = min(known(models, "micro_batch_size"), default=1)
    found = [] if length is None else [("--seq-length", str(length))]
    return [*found, ("--micro-batch-size", str(rows))]


def context_of(models: Sequence[Checkpoint]) -> int | None:
    """Tokens that all of them are asked with: the shortest that any was trained with.

    Where none has been trained, the shortest that any can take, at most :data:`LONGEST`. None:
    nothing says how long that is.
    """
    trained = min(known(models, "seq_length"), default=None)
    if trained is not None:
        return int(trained)
    possible = min(known(models, "max_position_embeddings"), default=None)
    return None if possible is None else min(int(possible), LONGEST)


def command_of(
    model: Checkpoint,
    log_dir: Path,
    config: Path,
    common: Sequence[Flag],
    words: Sequence[str],
    *,
    script: str | None = None,
    nproc: int = 1,
) -> list[str]:
    """What a shell would start.

    Args:
        model: to be evaluated.
        log_dir: for its ``domain_evaluations.jsonl``.
        config: see :func:`config_of`.
        common: see :func:`common_flags`.
        words: the user's flags, which win over all others.
        script: the one that trained it; None: the built-in.
        nproc: processes.
    """
    taken = names_of(words)
    flags: list[Flag] = [
        ("--skip-train",),
        ("--load", str(model.folder.parent)),
        *((("--ckpt-step", str(model.step)),) if model.step else ()),
        ("--no-load-optim",),
        ("--no-load-rng",),
        ("--use-checkpoint-args",),
        # Its own flag would win over the user's.
        ("--no-use-tokenizer-model-from-checkpoint-args",),
        *model_flags(model.args),
        *_tokenizer_of(model),
        *(layout_flags(model.args) if model.own_layout else ()),
        *common,
        *(() if taken & set(DATA_FLAGS) else data_flags(model.args) or _NO_DATA),
        *_ONCE,
        ("--domain-config", str(config)),
        ("--domain-log-dir", str(log_dir)),
    ]
    ours = [word for flag in flags if flag[0] not in taken for word in flag]
    whole = [*([script] if script else []), *ours, *words]
    return (
        torchrun(nproc, whole) if nproc > 1 else [sys.executable, "-m", "domain_pretrain", *whole]
    )


def _tokenizer_of(model: Checkpoint) -> list[Flag]:
    """Of an imported model, whose arguments name none."""
    if model.tokenizer is None or model.args.get("tokenizer_type"):
        return []
    return [
        ("--tokenizer-type", "HuggingFaceTokenizer"),
        ("--tokenizer-model", str(model.tokenizer)),
    ]
