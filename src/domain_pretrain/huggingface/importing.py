"""A Hugging Face folder → a checkpoint that Megatron starts from, in any layout."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import reduce
from math import prod
from pathlib import Path
from typing import Any

import torch

from domain_pretrain.checkpoints.tracker import RELEASE, TRACKER, write_tracker
from domain_pretrain.data.vocabulary import size_of_tokenizer
from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.base import (
    BESIDE,
    imported_beside,
    is_imported,
    read_record,
    write_env,
)
from domain_pretrain.huggingface.config import CONFIG, read_config
from domain_pretrain.huggingface.families import Place, names, rows, shapes
from domain_pretrain.huggingface.identity import (
    Files,
    Read,
    read_files,
    recorded,
    same,
    write_record,
)
from domain_pretrain.huggingface.model import Model
from domain_pretrain.huggingface.safetensors_file import Folder
from domain_pretrain.huggingface.torch_dist import Reader, Writer
from domain_pretrain.paths import free_bytes
from domain_pretrain.suggest import did_you_mean
from domain_pretrain.whole_folder import check_free, whole_folder

Progress = Callable[[Iterable[Place]], Iterable[Place]]
"""Shows how far one is; returns what it is given."""


def import_model(
    source: Path,
    out: Path,
    progress: Progress = lambda places: places,
    known: Iterable[Read] = (),
) -> bool:
    """Convert a model; what is wrong is found before the first byte is written.

    Memory is bounded by the largest tensor of Megatron's, such as query, key and value together.

    Args:
        source: a Hugging Face folder.
        out: a folder to be made; see :mod:`~domain_pretrain.huggingface.base`.
        progress: over the tensors.
        known: files of the source that were read for :mod:`~domain_pretrain.huggingface.identity`.

    Returns:
        False where ``out`` holds this very model already.

    Raises:
        ConfigError: names the file and key, or the folder, that is in the way.
    """
    family, model, _ = read_config(source)
    if is_imported(out) and (out / TRACKER).is_file():
        if _holds(out, source, model, known):
            return False
        raise ConfigError(
            f"{out} holds another model already, {read_record(out).get('source')} as it was then, "
            f"and not what is in {source} now; give another folder, or remove it"
        )
    check_free(out)
    folder = Folder(source)
    dtype = _check_tensors(folder, model, source, family.kind)
    _check_tokenizer(source, model)
    check_room(out, sum(map(prod, shapes(model).values())) * dtype.itemsize)
    with whole_folder(out) as part:
        files: Files = {}
        for name, read in read_files(source, known):
            files[name] = read
            write_record(part, str(source.absolute()), files)  # it grows: nodes that wait see it
        _write(folder, part, model, dtype, progress)
        _write_beside(source, part, model)
    return True


def _holds(out: Path, source: Path, model: Model, known: Iterable[Read]) -> bool:
    """Whether what was imported is this very model; remembers what had to be read to tell.

    What a version left that knew names and sizes of files alone, which all checkpoints of a model
    share, is compared itself: once, as it has such a record then.
    """
    before = recorded(out)
    if before is None and not _is_import_of(out, source, model):
        return False
    now = dict(read_files(source, [*known, *(before or {}).values()]))
    if before is not None and not same(before, now):
        return False
    if now != before:
        with suppress(OSError):  # somebody else's, perhaps; then it is read again next time
            write_record(out, str(read_record(out).get("source")), now)
    return True


def _is_import_of(out: Path, source: Path, model: Model) -> bool:
    """Whether an import would write what is there: config and files beside it, and every weight."""
    ours = {path.name: path for path in imported_beside(source)}
    theirs = {path.name: path for path in (out / BESIDE).iterdir()}
    if ours.keys() != theirs.keys() or not all(
        filecmp.cmp(ours[name], theirs[name], shallow=False) for name in ours
    ):
        return False
    folder, reader = Folder(source), Reader(out / RELEASE)
    dtype = _check_tensors(folder, model, source, "model")
    return dtype == reader.dtype() and all(
        torch.equal(_packed(folder, place).to(dtype), reader.read(*place)) for place in rows(model)
    )


def _packed(folder: Folder, place: Place) -> torch.Tensor:
    row, number, _ = place
    return row.pack([folder.read(name) for name in names(row, number)])


def write_outline(source: Path, out: Path) -> None:
    """All of an import but the tensors: what the flags of a run are held against.

    Raises:
        ConfigError: see :func:`import_model`; the tensors are not looked at.
    """
    _, model, _ = read_config(source)
    _check_tokenizer(source, model)
    Writer(out / RELEASE, model, torch.bfloat16).close(saved_args(model))
    write_record(out, str(source.absolute()), {})
    _write_beside(source, out, model)


def _write_beside(source: Path, out: Path, model: Model) -> None:
    (out / BESIDE).mkdir()
    for path in imported_beside(source):
        shutil.copyfile(path, out / BESIDE / path.name)
    write_env(out, model, source)
    write_tracker(out, RELEASE)


def _write(folder: Folder, out: Path, model: Model, dtype: torch.dtype, progress: Progress) -> None:
    writer = Writer(out / RELEASE, model, dtype)
    for place in progress(rows(model)):
        row, number, each = place
        writer.write(row, _packed(folder, place), number, each)
    writer.close(saved_args(model))


def _check_tensors(folder: Folder, model: Model, source: Path, kind: str) -> torch.dtype:
    """All tensors of the table are there, of its shapes, and no others; their common dtype.

    Raises:
        ConfigError: names the first that is not.
    """
    expected = shapes(model)
    have = {name: found for name, found in folder.tensors.items() if not _is_idle(name, model)}
    for name, shape in expected.items():
        if name not in have:
            raise ConfigError(
                f"{source} lacks the tensor {name}, which a {kind} of its {CONFIG} has"
                + did_you_mean(name, have.keys() - expected.keys())
            )
        if have[name].shape != shape:
            raise ConfigError(
                f"{source}: {name} has the shape {list(have[name].shape)}, and by {CONFIG} it "
                f"should have {list(shape)}"
            )
    more = sorted(have.keys() - expected.keys())
    if more:
        raise ConfigError(
            f"{source} has tensors that the table of {kind} does not know, {more[0]} and "
            f"{len(more) - 1} more: it is another kind of model than its {CONFIG} says"
        )
    # Of several, one that holds the values of all.
    return reduce(torch.promote_types, {have[name].dtype for name in expected})


def _is_idle(name: str, model: Model) -> bool:
    """What older models store and no one reads."""
    return name.endswith("rotary_emb.inv_freq") or (model.tied and name == "lm_head.weight")


def _check_tokenizer(source: Path, model: Model) -> None:
    size = size_of_tokenizer(source)
    if size is None:
        raise ConfigError(
            f"{source} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json) that can "
            "be read; put the model's own there: the texts that it trains on are encoded with it"
        )
    if size > model.vocab:
        raise ConfigError(
            f"{source}: the tokenizer has {size:,} tokens, and the embedding {model.vocab:,} rows; "
            "this is not its tokenizer, or the model has to be resized first "
            "(resize_token_embeddings)"
        )


def check_room(out: Path, need: int) -> None:
    """Whether there is room for so many bytes.

    Raises:
        ConfigError: there is not.
    """
    free = free_bytes(out)
    if free < need:
        raise ConfigError(f"{out}: {need / 1e9:.1f} GB are needed, and {free / 1e9:.1f} are free")


def saved_args(model: Model) -> dict[str, Any]:
    """The arguments that Megatron finds in the checkpoint: with --use-checkpoint-args, for one."""
    args: dict[str, Any] = {
        "num_layers": model.layers,
        "hidden_size": model.hidden,
        "ffn_hidden_size": model.ffn,
        "num_attention_heads": model.heads,
        "group_query_attention": model.groups != model.heads,
        "num_query_groups": model.groups,
        "kv_channels": model.head,
        "max_position_embeddings": model.positions,
        "position_embedding_type": "rope",
        "add_position_embedding": True,
        "rotary_base": model.rope_base,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "use_rope_scaling": model.rope_factor is not None,
        "swiglu": True,
        "normalization": "RMSNorm",
        "norm_epsilon": model.norm_eps,
        "add_bias_linear": False,
        "add_qkv_bias": model.qkv_bias,
        "qk_layernorm": model.qk_norm,
        "untie_embeddings_and_output_weights": not model.tied,
        "padded_vocab_size": model.vocab,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "ckpt_format": "torch_dist",
    }
    if model.rope_factor is not None:
        args["rope_scaling_factor"] = model.rope_factor
    if model.window is not None:
        args["window_size"] = (model.window - 1, 0)
    if model.experts is not None:
        sparse = [int(each) for each in model.experts.sparse]
        args |= {
            "num_experts": model.experts.count,
            "moe_router_topk": model.experts.per_token,
            "moe_ffn_hidden_size": model.experts.ffn,
            "moe_router_pre_softmax": not model.experts.normalised,
            "moe_layer_freq": 1 if model.uniform else sparse,
            "moe_aux_loss_coeff": model.experts.aux_loss,
        }
    return args
