"""What an import leaves beside the weights: flags, config and tokenizer of the base model.

``OUT`` is a folder for ``--pretrained-checkpoint``, or ``--load`` with ``--finetune``::

    OUT/latest_checkpointed_iteration.txt   "release"
    OUT/release/                            the weights, format torch_dist
    OUT/model.env                           MODEL_FLAGS and TOKENIZER, for env files of the scripts
    OUT/huggingface/                        config.json, tokenizer, licence: all but the weights
    OUT/base.json                           where it comes from, and what was read there
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.config import CONFIG, read_config
from domain_pretrain.huggingface.families import Family
from domain_pretrain.huggingface.flags import flags_of, vocabulary_flag
from domain_pretrain.huggingface.model import Model
from domain_pretrain.json_file import read_json

RECORD = "base.json"
ENV = "model.env"
BESIDE = "huggingface"
# All that a Hugging Face folder may hold beside config and weights and that others need.
_COPIED = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt"),
    *("merges.txt", "*.tiktoken", "chat_template*", "generation_config.json"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"),
)


@dataclass(frozen=True)
class Base:
    """The Hugging Face model that a run began with.

    Attributes:
        folder: with its config and its tokenizer.
        family: of it.
        model: of it.
        config: its ``config.json``.
        source: what the user called it.
    """

    folder: Path
    family: Family
    model: Model
    config: dict[str, Any]
    source: str


def is_huggingface(folder: str | Path) -> bool:
    """Whether a folder is a Hugging Face model, not one that was imported."""
    path = Path(folder)
    weights = any(any(path.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))
    return path.is_dir() and (path / CONFIG).is_file() and weights


def is_imported(folder: str | Path) -> bool:
    """Whether a folder is what an import left."""
    return (Path(folder) / RECORD).is_file() and (Path(folder) / BESIDE / CONFIG).is_file()


def read_base(folder: Path) -> Base:
    """Of a folder that was imported, or of Hugging Face itself.

    Raises:
        ConfigError: it is neither, or what an import left is broken.
    """
    if is_imported(folder):
        beside = folder / BESIDE
        source = str(read_record(folder).get("source"))
    elif (folder / CONFIG).is_file():
        beside, source = folder, str(folder)
    else:
        raise ConfigError(
            f"{folder} is no base model: neither a Hugging Face folder with a {CONFIG}, nor what "
            "`domain-pretrain import` made of one"
        )
    family, model, config = read_config(beside)
    return Base(beside, family, model, config, source)


def read_record(out: Path) -> dict[str, Any]:
    """What an import has left about itself.

    Raises:
        ConfigError: it cannot be read.
    """
    record = read_json(out / RECORD)
    if not isinstance(record, dict):
        raise ConfigError(
            f"{out / RECORD} should be an object of keys, as `domain-pretrain import` writes it: "
            f"remove {out}, and import the model again"
        )
    return record


def copied_files(folder: Path) -> list[Path]:
    """Tokenizer, generation config and licence of a Hugging Face folder."""
    found = {path for pattern in _COPIED for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def imported_beside(folder: Path) -> list[Path]:
    """What an import takes of a Hugging Face folder beside its weights."""
    return [folder / CONFIG, *copied_files(folder)]


def write_env(out: Path, model: Model, source: Path) -> None:
    """``model.env``: bash, to be sourced by an env file of the launch scripts."""
    flags = [" ".join(map(shlex.quote, words)) for words in flags_of(model)]
    flag, divisor = vocabulary_flag(model, "${TP:-1}")
    lines = [
        f"# The model in this folder, of {source}: made by `domain-pretrain import`.",
        "#   source models/NAME/model.env  # after TP is set",
        '#   FLAGS=("${MODEL_FLAGS[@]}" --seq-length 4096 …)',
        "# shellcheck shell=bash disable=SC2034",
        f'TOKENIZER="$(CDPATH="" cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)/{BESIDE}"',
        "MODEL_FLAGS=(",
        *(f"  {words}" for words in flags),
        f"  {flag} {divisor} # the embedding's rows, or the fewest more that TP divides",
        "  --tokenizer-type HuggingFaceTokenizer",
        '  --tokenizer-model "$TOKENIZER"',
        ")",
    ]
    (out / ENV).write_text("\n".join(lines) + "\n", encoding="utf-8")
