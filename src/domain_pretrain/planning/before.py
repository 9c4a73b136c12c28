"""The run that a plan goes on from: what it was, what changes, and what is doubtful about that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_pretrain.checkpoints.arguments import read_saved
from domain_pretrain.checkpoints.tracker import RELEASE, folder_of, read_tracker
from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.found import find_checkpoint
from domain_pretrain.planning.section import Continues, PlanFile

_ROTARY = ("rope", "mrope", "yarn")


@dataclass(frozen=True)
class Before:
    """What a checkpoint says of its run.

    Attributes:
        folder: of the checkpoints, as ``--pretrained-checkpoint`` takes it.
        iteration: of the one that it names; 0 of a converted model.
        args: Megatron's, by name.
    """

    folder: Path
    iteration: int
    args: Mapping[str, Any]

    def number(self, name: str) -> int | None:
        """One of the arguments; None where a converted model has none, or 0."""
        value = self.args.get(name)
        return int(value) if isinstance(value, (int, float)) and value else None

    @property
    def is_rotary(self) -> bool:
        """Whether its positions are rotations."""
        kind = self.args.get("position_embedding_type")
        return kind in _ROTARY or bool(self.args.get("use_rotary_position_embeddings"))

    @property
    def tokens_per_step(self) -> int | None:
        """Of its global batch; None where it does not say."""
        length, batch = self.number("seq_length"), self.number("global_batch_size")
        return length * batch if length and batch and self.iteration else None

    def told(self) -> dict[str, Any]:
        """JSON values."""
        names = ("seq_length", "global_batch_size", "max_position_embeddings", "rotary_base")
        numbers = {name: self.number(name) for name in names}
        return {"checkpoint": str(self.folder), "iteration": self.iteration, **numbers}


def read_before(continues: Continues) -> Before:
    """What the checkpoint says.

    Raises:
        ConfigError: there is none, it cannot be read, or Megatron would start from another one.
    """
    found = find_checkpoint(continues.checkpoint).folder
    folder = found.parent
    said = read_tracker(folder)
    named = None if said is None else folder_of(folder, said)
    if named is None or named.resolve() != found.resolve():
        raise ConfigError(
            f"continues: {found} is not the checkpoint that {folder} names ({said or 'nothing'}), "
            "so a run would start from another one: let its tracker say so, or copy the checkpoint "
            "into a folder of its own with a tracker"
        )
    saved = read_saved(found)
    return Before(folder, 0 if said == RELEASE else saved.iteration, saved.args)


def in_tokens_of(before: Before, file: PlanFile) -> PlanFile:
    """The plan with its batch: as many tokens as the run before had, where it gives none.

    Raises:
        ConfigError: that is no whole number of samples, or the plan does not fit the model.
    """
    problems = list(_problems(before, file))
    if problems:
        raise ConfigError("\n  ".join(["the plan cannot be made:", *problems]))
    if file.global_batch_size is not None:
        return file
    tokens = before.tokens_per_step
    if tokens is None:
        raise ConfigError(
            f"global_batch_size: {before.folder} does not say how many tokens a step had, so give "
            "the samples of a step"
        )
    batch, rest = divmod(tokens, file.seq_length)
    if rest or not batch:
        raise ConfigError(
            f"global_batch_size: a step of the run before had {tokens:,} tokens "
            f"({before.number('global_batch_size'):,} × {before.number('seq_length'):,}), which is "
            f"no whole number of samples of {file.seq_length:,}: give another seq_length, or the "
            "samples of a step"
        )
    return file.model_copy(update={"global_batch_size": batch})


def _problems(before: Before, file: PlanFile) -> Iterator[str]:
    assert file.continues is not None
    positions = before.number("max_position_embeddings")
    parallel = file.continues.context_parallel_size or 1
    if parallel > 1 and file.seq_length % (2 * parallel):
        yield (
            f"context_parallel_size: {file.seq_length:,} tokens cannot be cut into 2 × {parallel} "
            f"equal pieces, two for each rank: give a seq_length that {2 * parallel} divides"
        )
    if before.is_rotary:
        return
    if file.continues.rotary_base is not None:
        yield f"rotary_base: {before.folder} holds a model without rotary positions"
    kind = before.args.get("position_embedding_type")
    if kind == "learned_absolute" and positions and file.seq_length > positions:
        yield (
            f"seq_length: {before.folder} has learned {positions:,} positions, and no others: a "
            f"sample cannot have {file.seq_length:,} tokens"
        )


def flags(before: Before, file: PlanFile) -> Iterator[str]:
    """What Megatron is told besides the plan's own flags.

    ``--pretrained-checkpoint`` rather than ``--load … --finetune``: that would begin anew at every
    restart.
    """
    assert file.continues is not None
    positions = max(before.number("max_position_embeddings") or 0, file.seq_length)
    yield from ("--pretrained-checkpoint", str(before.folder))
    yield from ("--max-position-embeddings", str(positions))
    base = file.continues.rotary_base or before.number("rotary_base")
    if before.is_rotary and base is not None:
        yield from ("--rotary-base", str(base))
    if file.continues.context_parallel_size is not None:
        yield from ("--context-parallel-size", str(file.continues.context_parallel_size))


def changes(before: Before, file: PlanFile) -> Iterator[tuple[str, str, str]]:
    """What is another than before, and what stays on purpose: name, before, now."""
    assert file.continues is not None
    base = before.number("rotary_base")
    positions = before.number("max_position_embeddings")
    parallel = file.continues.context_parallel_size
    rows: list[tuple[str, int | None, int | None]] = [
        ("tokens of a sample", before.number("seq_length"), file.seq_length),
        ("samples of a step", before.number("global_batch_size"), file.batch),
        ("tokens of a step", before.tokens_per_step, file.batch * file.seq_length),
        ("positions", positions, max(positions or 0, file.seq_length)),
        ("context parallel", before.number("context_parallel_size"), parallel),
    ]
    if before.is_rotary:
        rows.append(("rotary base", base, file.continues.rotary_base or base))
    for name, old, new in rows:
        yield name, _told(old, "not told"), _told(new, "yours to give")


def _told(value: int | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:,}"


def doubts_of(before: Before | None, file: PlanFile) -> Iterator[str]:
    """What to warn of."""
    if before is None or file.continues is None:
        return
    positions, base = before.number("max_position_embeddings"), before.number("rotary_base")
    new = file.continues.rotary_base or base
    stretched = positions is not None and file.seq_length > positions
    if before.is_rotary and stretched and base is not None and new is not None and new <= base:
        yield (
            f"the positions grow from {positions:,} to {file.seq_length:,}, and the rotary base is "
            f"{new:,} after {base:,}: published long-context stages raise it (docs/long-context.md)"
        )
    tokens = before.tokens_per_step
    if tokens is not None and tokens != file.batch * file.seq_length:
        yield (
            f"a step has {file.batch * file.seq_length:,} tokens, and had {tokens:,}: learning "
            "rate and decay were chosen for those; without global_batch_size they are kept"
        )
    if before.iteration and file.continues.run is None:
        yield (
            "what the run before has read may be read again: name its --domain-log-dir as "
            "continues.run, and its documents are left out"
        )
