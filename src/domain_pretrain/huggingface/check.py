"""Whether a run trains the model that it was given: its flags and its tokenizer, at the start."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.base import Base
from domain_pretrain.huggingface.flags import differences, model_of, vocabulary_flag
from domain_pretrain.json_file import read_json


def check_run(args: Mapping[str, Any], base: Base, rows: int | None) -> list[str]:
    """Hold a run's arguments against the model that it starts from.

    Megatron itself compares three of them. A weight that is not loaded, another epsilon or base
    of the rotary embeddings only makes the loss worse. Lengths, batches and all that is training
    are the user's; rotary embeddings that are stretched are told, as a longer context needs them.

    Args:
        args: Megatron's, validated.
        base: what ``--pretrained-checkpoint`` or ``--load`` was imported from.
        rows: of the run's embedding, with padding; None where nothing tells.

    Returns:
        What the user should know.

    Raises:
        ConfigError: names each flag that has to be another.
    """
    if args.get("position_embedding_type") != "rope":
        raise ConfigError(f"{_of(base)}: --position-embedding-type rope is missing")
    try:
        run = model_of(args, base.model.vocab)
    except ConfigError as error:
        raise ConfigError(f"{_of(base)}: {error}") from None
    wrong = differences(base.model, run)
    told: list[str] = []
    for text, stretched in _rope(base, args, run.rope_base, run.rope_factor):
        (told if stretched else wrong).append(text)
    wrong += _window(base, args, run.window)
    if isinstance(args.get("moe_layer_freq"), list) and base.model.uniform:
        wrong.append("--moe-layer-freq: all layers of the base are alike: leave it out")
    wrong += _vocabulary(base, args, rows, told)
    wrong += tokenizer_problems(
        base, args.get("tokenizer_model") or args.get("tokenizer_name_or_path")
    )
    if wrong:
        lines = "\n  ".join(wrong)
        raise ConfigError(f"{_of(base)}:\n  {lines}\n  model.env beside its weights has the flags")
    return told


def _of(base: Base) -> str:
    return f"the run does not fit the model that it starts from, {base.source}"


def _rope(
    base: Base, args: Mapping[str, Any], rope_base: int, factor: float | None
) -> list[tuple[str, bool]]:
    """Differences, each with whether it stretches the base's."""
    found = []
    if rope_base != base.model.rope_base:
        text = f"--rotary-base: the base has {base.model.rope_base}, the run {rope_base}"
        found.append((text, rope_base > base.model.rope_base))
    if factor != base.model.rope_factor:
        text = f"--use-rope-scaling: by {base.model.rope_factor} in the base, in the run {factor}"
        found.append((text, (factor or 1.0) > (base.model.rope_factor or 1.0)))
    return found


def _window(base: Base, args: Mapping[str, Any], window: int | None) -> list[str]:
    """A window that no sequence is longer than makes no difference."""
    length = args.get("seq_length") or 0
    if window == base.model.window or length <= min(base.model.window or length, window or length):
        return []
    if base.model.window is None:
        return [f"--window-size: the base has none, the run attends to {window} tokens"]
    return [
        f"--seq-length {length}: in the base a token attends to {base.model.window}; give "
        f"--window-size {base.model.window - 1},0 or a --seq-length of at most {base.model.window}"
    ]


def _vocabulary(
    base: Base, args: Mapping[str, Any], rows: int | None, told: list[str]
) -> list[str]:
    have, parallel = base.model.vocab, args.get("tensor_model_parallel_size") or 1
    if rows is None or rows == have:
        return []
    flag, divisor = vocabulary_flag(base.model, parallel)
    least = int(divisor) * parallel
    fix = f"{flag} {divisor}"
    if least != have:
        fix += f" makes it {least:,}, the fewest that TP {parallel} divides"
    if rows == least:
        fix = f"TP {parallel} divides no fewer"
    if rows < have:
        return [f"the vocabulary is padded to {rows:,} rows, and the base has {have:,}: {fix}"]
    told.append(
        f"the vocabulary is padded to {rows:,} rows, and the base has {have:,}: the others are "
        f"new, and part of the softmax ({fix})"
    )
    return []


def tokenizer_problems(base: Base, model: str | Path | None) -> list[str]:
    """Tokens that have other ids in the run's tokenizer; one that only adds tokens is none."""
    if model is None or not Path(model).is_dir():
        return []
    for name in ("tokenizer.json", "tokenizer.model"):
        ours, theirs = base.folder / name, Path(model, name)
        if not (ours.is_file() and theirs.is_file()):
            continue
        if filecmp.cmp(ours, theirs, shallow=False):
            return []
        if name == "tokenizer.model":
            return [f"--tokenizer-model {model}: {name} is another than that of the base"]
        old, new = _ids(ours), _ids(theirs)
        other = sorted(token for token in old.keys() & new.keys() if old[token] != new[token])
        foreign = len(new.keys() - old.keys())
        if other:
            first = other[0]
            return [
                f"--tokenizer-model {model}: {len(other):,} tokens have other ids than in the "
                f"base's tokenizer: {first!r} is {new[first]}, not {old[first]}"
            ]
        if foreign and max(new.values()) >= base.model.vocab:
            return [
                f"--tokenizer-model {model}: it has ids up to {max(new.values()):,}, and the base "
                f"{base.model.vocab:,} rows"
            ]
        # Ids by chance the same: nothing in common but bytes and a few words.
        if len(old.keys() & new.keys()) < len(old) // 2:
            return [f"--tokenizer-model {model}: most of the base's tokens are not in it"]
        return []
    return []


def _ids(path: Path) -> dict[str, int]:
    """Of a ``tokenizer.json``, whose model holds a dict or (unigram) pairs."""
    content = read_json(path)
    try:
        known = content["model"]["vocab"]
        if not isinstance(known, dict):
            known = {token: number for number, (token, _) in enumerate(known)}
        return known | {each["content"]: each["id"] for each in content.get("added_tokens") or ()}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ConfigError(f"{path} is no tokenizer that can be read") from None
