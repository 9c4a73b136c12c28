"""Whether the host can evaluate on what it is going to read: it finds out late, by bare asserts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from domain_pretrain.data.blend import Blend
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.splits import documents
from domain_pretrain.errors import ConfigError
from domain_pretrain.stats import SPLITS

# Evaluations of a run, below which a rule that follows them is warned of, and what is advised.
FEWEST, MANY = 10, 40


def check_evaluations(flags: Any, reading: Reading) -> None:
    """Refuse evaluations that stop the run, at its start or hours later.

    Args:
        flags: an object with the host's settings, under the names of Megatron-LM's flags; what a
            host does not have is not checked.
        reading: what the run is going to read.

    Raises:
        ConfigError: names the flags and what to do.
    """
    train, valid, _ = reading.parts
    trains = not getattr(flags, "skip_train", False)
    if trains and train is None:
        raise ConfigError(
            "there is nothing to train on: --split gives training no part, or no --train-data-path "
            "is given (--skip-train evaluates alone)"
        )
    count, full = getattr(flags, "eval_iters", None), getattr(flags, "full_validation", None)
    if full and valid is not None and _weighted(reading.blends[1]):
        raise ConfigError(
            "--full-validation reads every validation sample once, which weights contradict: give "
            "validation data without weights (--valid-data-path A B …), or take the flag off"
        )
    if count == 0:
        blended = [
            split
            for split, blend, part in zip(SPLITS, reading.blends, reading.parts, strict=True)
            if split != "train" and part is not None and _is_blend(blend)
            if not (full and split == "valid")
        ]
        if blended:
            raise ConfigError(
                f"--eval-iters 0 with data to evaluate on ({', '.join(blended)}): Megatron stops "
                "at a blend of no samples; give --split 100,0,0, or --eval-iters 1 or more"
            )
    # Where the flag exists, the host evaluates whether or not it has the data. Before, it did not.
    if trains and count and full is not None and valid is None:
        raise ConfigError(
            f"--eval-iters {count}, and no validation data: Megatron would stop at the first "
            "evaluation; give validation a part in --split or --valid-data-path, or --eval-iters 0"
        )


def check_fixed_set(flags: Any, reading: Reading) -> None:
    """Refuse ``evaluate.samples`` where there is no fixed set of samples.

    Args:
        flags, reading: as :func:`check_evaluations` takes them.

    Raises:
        ConfigError: names what is missing.
    """
    blend, part = reading.blends[1], reading.parts[1]
    if blend is None or part is None or not reading.indices:
        raise ConfigError(
            "evaluate.samples takes samples of the validation data, and there is none in data "
            "prefixes: give --valid-data-path, or validation a part in --split"
        )
    if getattr(flags, "eval_iters", None) == 0:
        raise ConfigError(
            "evaluate.samples are read when the host evaluates, and --eval-iters 0 never does: "
            "give --eval-iters 1 or more"
        )
    for prefix in blend[0]:
        index = reading.indices.get(prefix)
        rows = range(0) if index is None else documents(part, index.sequences)
        if index is not None and not index.holds(rows.start, rows.stop, flags.seq_length + 1):
            raise ConfigError(
                f"evaluate.samples: the validation part of {prefix!r} ({len(rows):,} documents) is "
                f"shorter than one sample of {flags.seq_length:,} tokens: give it a larger part in "
                "--split, or longer data by --valid-data-path"
            )


def check_followed(
    flags: Any, followed: Collection[str], validated: Collection[str], steps: float, where: str
) -> Iterator[str]:
    """Whether a rule that follows validation losses can follow them; yields what is doubtful.

    Args:
        flags: as :func:`check_evaluations` takes them.
        followed: domains that the rule follows.
        validated: domains that have validation data.
        steps: optimizer steps of the run.
        where: path of the rule in the config, for messages.

    Raises:
        ConfigError: a domain has no validation data.
    """
    missing = [name for name in followed if name not in validated]
    if missing:
        raise ConfigError(
            f"{where}: {missing[0]!r} is followed by its validation loss, and has no validation "
            f"data (there is some of {', '.join(validated)}): give it a prefix in "
            "--valid-data-path, or a part in --split"
        )
    interval = getattr(flags, "eval_interval", None)
    if followed and interval and steps / interval < FEWEST:
        yield (
            f"--eval-interval {interval:,}: the rule of {where} is told of a validation loss "
            f"{int(steps / interval)} times in {steps:,.0f} steps, and needs {FEWEST} or more to "
            f"settle; give --eval-interval {max(int(steps / MANY), 1):,}"
        )


def _weighted(blend: Blend) -> bool:
    return blend is not None and blend[1] is not None


def _is_blend(blend: Blend) -> bool:
    return blend is not None and (len(blend[0]) > 1 or blend[1] is not None)
