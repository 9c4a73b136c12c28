"""Whether probes can run, found at the start of a run: later, it would cost what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domain_pretrain.data.reading import Reading
from domain_pretrain.errors import ConfigError, UnsupportedError, WriterError
from domain_pretrain.evaluate.probe import Probe, check_probes, predicting
from domain_pretrain.hosts.probes.driver import NO_PREDICTIONS
from domain_pretrain.hosts.probes.text import is_bytes
from domain_pretrain.rules.registry import Configured


def check_probing(flags: Any, reading: Reading) -> None:
    """Refuse probes that would never run, or could not, on every rank.

    Args:
        flags: an object with the host's settings, under the names of Megatron-LM's flags.
        reading: what the run is going to read.

    Raises:
        ConfigError, UnsupportedError: name what is missing.
    """
    from domain_pretrain.hosts import mindspeed  # which imports this module, by its seams

    if mindspeed.present():
        raise UnsupportedError(
            "evaluate.probes: MindSpeed-LLM makes other batches than Megatron-LM, and nobody has "
            "tried: leave them out, or ask the checkpoint with Megatron-LM, by --skip-train"
        )
    if reading.parts[1] is None:
        raise ConfigError(
            "evaluate.probes run when the host evaluates on validation data, and there is none: "
            "give --valid-data-path, or validation a part in --split"
        )
    full = getattr(flags, "full_validation", None)
    if getattr(flags, "eval_iters", None) == 0 and not full:
        raise ConfigError(
            "evaluate.probes run when the host evaluates, and --eval-iters 0 never does: give "
            "--eval-iters 1 or more"
        )


def look_up(flags: Any, reading: Reading, probes: Sequence[Configured[Probe]]) -> bool:
    """See, on the rank that drives, that what the probes read is there, and what they ask can be.

    Returns:
        Whether the tokens of the run are bytes.

    Raises:
        WriterError: something is missing, or this layout cannot predict.
    """
    try:
        found = is_bytes(flags, reading.indices)
        check_probes(probes)
        _check_predicting(flags, probes)
    except ConfigError as error:
        raise WriterError(str(error)) from error
    return found


def _check_predicting(flags: Any, probes: Sequence[Configured[Probe]]) -> None:
    if getattr(flags, "context_parallel_size", 1) > 1 and (names := predicting(probes)):
        raise ConfigError(f"evaluate.probes.{names[0]} {NO_PREDICTIONS}")
