"""A checkpoint of Megatron's → a Hugging Face folder, with tokenizer, config and model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from domain_pretrain.adapt.lora import Lora
from domain_pretrain.checkpoints.arguments import read_saved
from domain_pretrain.checkpoints.index import INDEX
from domain_pretrain.data.vocabulary import size_of_tokenizer
from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface import torch_dist, torch_ranks
from domain_pretrain.huggingface.adapters import Adapter, adapter_rows, saved_lora
from domain_pretrain.huggingface.base import Base, copied_files, is_imported, read_base
from domain_pretrain.huggingface.card import write_card
from domain_pretrain.huggingface.check import tokenizer_problems
from domain_pretrain.huggingface.config import CONFIG, write_config
from domain_pretrain.huggingface.families import EMBEDDING, Family, names, rows, shapes
from domain_pretrain.huggingface.flags import differences, family_of, model_of
from domain_pretrain.huggingface.found import Found
from domain_pretrain.huggingface.importing import Progress, check_room
from domain_pretrain.huggingface.model import Model
from domain_pretrain.huggingface.safetensors_file import Writer
from domain_pretrain.records.reader import METRICS_FILE
from domain_pretrain.whole_folder import check_free, whole_folder

Reader = torch_dist.Reader | torch_ranks.Reader


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        family: of the model.
        model: as it was written.
        dtype: of its weights.
        iteration: of the checkpoint.
        base: the model that it began as; None where nothing tells.
        tokenizer: the folder that its tokenizer is from; None: it has none.
        lora: the adapters that were merged into the weights; None: there were none.
    """

    family: Family
    model: Model
    dtype: torch.dtype
    iteration: int
    base: Base | None
    tokenizer: Path | None
    lora: Lora | None = None


def export_model(
    found: Found,
    out: Path,
    base_folder: Path | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress = lambda places: places,
) -> Exported:
    """Convert a checkpoint; what is wrong is found before the first byte is written.

    Args:
        found: the checkpoint.
        out: a folder to be made.
        base_folder: the Hugging Face model that the run began with, or what was imported of it;
            None: what its own arguments name.
        dtype: to write the weights as; None: as the checkpoint has them.
        progress: over the tensors.

    Raises:
        ConfigError: names what is wrong with the checkpoint, its base or its tokenizer.
    """
    check_free(out)
    saved = read_saved(found.folder)
    found = replace(found, run=found.run or _logged(saved.args))
    base = read_base(base_folder) if base_folder else _base_of(saved.args, found.folder)
    tokenizer = _tokenizer_of(saved.args, base)
    model = model_of(saved.args, 0)  # before its tensors: a kind that is not supported has others
    kind = torch_dist.Reader if (found.folder / INDEX).is_file() else torch_ranks.Reader
    reader: Reader = kind(found.folder)
    model = replace(model, vocab=reader.rows(EMBEDDING))
    model = _with_base(model, saved.args, base, tokenizer)
    if base is not None:
        wrong = differences(base.model, model)
        wrong += tokenizer_problems(base, tokenizer)
        if wrong:
            lines = "\n  ".join(wrong)
            raise ConfigError(f"{found.folder} does not come from {base.source}:\n  {lines}")
    family = base.family if base else family_of(model)
    lora = saved_lora(saved.args)
    for row, number, each in [*rows(model), *adapter_rows(rows(model), lora)]:
        reader.check(row, number, each)
    dtype = dtype or reader.dtype()
    done = Exported(family, model, dtype, saved.iteration, base, tokenizer, lora)
    check_room(out, sum(map(prod, shapes(model).values())) * dtype.itemsize)
    with whole_folder(out) as part:
        _write(reader, part, done, progress)
        _write_beside(part, done)
        write_card(part, done, found)
    return done


def _logged(args: Mapping[str, Any]) -> Path | None:
    """Where a run has written its metrics, as its own arguments say; None: not there any more."""
    given = (args.get(name) for name in ("domain_log_dir", "tensorboard_dir"))
    folders = (Path(folder) for folder in given if folder)
    return next((folder for folder in folders if (folder / METRICS_FILE).is_file()), None)


def _write(reader: Reader, out: Path, done: Exported, progress: Progress) -> None:
    writer = Writer(out, shapes(done.model), done.dtype)
    for row, number, each in progress(rows(done.model)):
        weight = reader.read(row, number, each)
        adapter = None if done.lora is None else Adapter.of(row, done.lora)
        if adapter is not None:
            weight = adapter.merge(weight, partial(reader.read, layer=number, expert=each))
        parts = row.unpack(weight)
        for name, part in zip(names(row, number), parts, strict=True):
            writer.write(name, part)
    writer.close()


def _write_beside(out: Path, done: Exported) -> None:
    """Config, tokenizer, and what else came with the base."""
    base = done.base
    before = None if base is None else (base.model, base.config)
    config = write_config(done.family, done.model, str(done.dtype).removeprefix("torch."), before)
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for folder in dict.fromkeys((base.folder if base else None, done.tokenizer)):
        for path in copied_files(folder) if folder else ():
            shutil.copyfile(path, out / path.name)


def _base_of(args: Mapping[str, Any], checkpoint: Path) -> Base | None:
    """What the run's own arguments name, or the checkpoint itself was imported into."""
    for name in (checkpoint.parent, args.get("pretrained_checkpoint"), args.get("load")):
        if isinstance(name, (str, Path)) and is_imported(name):
            return read_base(Path(name))
    return None


def _tokenizer_of(args: Mapping[str, Any], base: Base | None) -> Path | None:
    """The run's own, which may have more tokens than the base's; where it is not here, that."""
    for name in (args.get("tokenizer_model"), args.get("tokenizer_name_or_path")):
        if isinstance(name, str) and Path(name).is_dir() and size_of_tokenizer(Path(name)):
            return Path(name)
    return base.folder if base else None


def _with_base(
    model: Model, args: Mapping[str, Any], base: Base | None, tokenizer: Path | None
) -> Model:
    """What the checkpoint holds; of what training does not change, what its base says.

    Args:
        model: by the checkpoint's arguments, with all rows of its vocabulary.
        args: those arguments.
        base: that it began as.
        tokenizer: its folder.
    """
    if base is None:
        return model  # all rows took part in the softmax
    size = (size_of_tokenizer(tokenizer) if tokenizer else None) or 0
    vocab = max(base.model.vocab, size)  # rows beyond are padding
    if vocab > model.vocab:
        raise ConfigError(
            f"the checkpoint has {model.vocab:,} rows of the vocabulary, and {base.source} has "
            f"{vocab:,}"
        )
    experts = model.experts
    if experts is not None and base.model.experts is not None:
        experts = replace(experts, aux_loss=base.model.experts.aux_loss)
    return replace(
        model,
        vocab=vocab,
        positions=max(base.model.positions, args.get("seq_length") or 0),
        window=model.window or base.model.window,
        experts=experts,
    )
