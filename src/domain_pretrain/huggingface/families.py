"""The families, and the table of names and shapes that they share.

Both sides multiply by the transposed weight, and rotate halves of a head. They differ in what is
put together: Megatron has query, key and value in one tensor, in which each group's queries, its
key and its value follow each other; and the two halves of SwiGLU in one, gate first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.model import Model

EMBEDDING = "embedding.word_embeddings.weight"
VOCABULARY = (EMBEDDING, "output_layer.weight")  # what a host pads
EXPERTS = "mlp.experts.experts."


@dataclass(frozen=True)
class Family:
    """How a Hugging Face architecture differs from a Llama.

    Attributes:
        kind: its ``model_type``.
        architecture: its class.
        qkv_bias: whether queries, keys and values always have a bias.
        qk_norm: whether queries and keys are normalised.
        experts: whether it is a mixture of experts.
        window: of a ``config.json`` that does not name ``sliding_window``; None: a family whose
            layers never slide, whatever it says.
        switch: whether the window counts only with ``use_sliding_window``.
        by_layer: whether ``layer_types`` says which layers slide.
        first: ``max_window_layers`` of a ``config.json`` that does not name it; 0: all slide,
            whatever it says.
    """

    kind: str
    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: bool = False
    window: int | None = None
    switch: bool = False
    by_layer: bool = False
    first: int = 0


# Windows as transformers 5.24 reads them, in configuration_<kind>.py and modeling_<kind>.py; a
# Mistral with layer_types is a Ministral there (configuration_auto.py), of the same weights.
FAMILIES = (
    Family("llama", "LlamaForCausalLM"),
    Family("mistral", "MistralForCausalLM", window=4096, by_layer=True),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        qkv_bias=True,
        window=4096,
        switch=True,
        by_layer=True,
        first=28,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        qk_norm=True,
        window=4096,
        switch=True,
        by_layer=True,
        first=28,
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        qk_norm=True,
        experts=True,
        window=4096,
        switch=True,
    ),
)


@dataclass(frozen=True)
class Row:
    """One tensor of Megatron's, and those of Hugging Face that it consists of.

    Attributes:
        names: Megatron's: the checkpoint's key, and under which other layer specs (local,
            Transformer Engine) and formats have it.
        parts: name and shape of each tensor of Hugging Face's, in order.
        groups: they are interleaved in so many groups; 1: they follow each other.
        cut: the dimension that tensor parallelism divides; None: every rank has all of it.
    """

    names: tuple[str, ...]
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    groups: int = 1
    cut: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of Megatron's tensor."""
        shapes = [shape for _, shape in self.parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def pack(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Megatron's tensor of Hugging Face's, a copy."""
        if self.groups == 1:
            return torch.cat(list(parts))
        return torch.cat([p.unflatten(0, (self.groups, -1)) for p in parts], 1).flatten(0, 1)

    def unpack(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Hugging Face's tensors of Megatron's."""
        sizes = [shape[0] // self.groups for _, shape in self.parts]
        grouped = whole.unflatten(0, (self.groups, -1)).split(sizes, dim=1)
        return [part.flatten(0, 1) for part in grouped]

    def check(self, checkpoint: Path, shape: tuple[int, ...]) -> None:
        """Whether a checkpoint's tensor is of the shape; a vocabulary may be padded.

        Raises:
            ConfigError: it is not.
        """
        padded = self.names[0] in VOCABULARY and shape[0] >= self.shape[0]
        if shape != self.shape and not (padded and shape[1:] == self.shape[1:]):
            raise ConfigError(
                f"{checkpoint}: {self.names[0]} has the shape {list(shape)}, and a model of its "
                f"arguments {list(self.shape)}"
            )


Place = tuple[Row, int | None, int | None]
"""A row, its layer and its expert."""


def ends(model: Model) -> list[Row]:
    """What comes before and after the layers; the vocabulary is not padded."""
    vocab = (model.vocab, model.hidden)
    rows = [
        Row((EMBEDDING,), (("model.embed_tokens.weight", vocab),), cut=0),
        Row(("decoder.final_layernorm.weight",), (("model.norm.weight", (model.hidden,)),)),
    ]
    if not model.tied:
        rows.append(Row(("output_layer.weight",), (("lm_head.weight", vocab),), cut=0))
    return rows


def layer(model: Model, number: int) -> list[Row]:
    """Of one layer, without its experts; names after ``decoder.layers.`` and ``model.layers.N.``"""
    width, head = model.hidden, (model.head,)
    outs = {"q": model.heads * model.head, "k": model.groups * model.head}
    outs["v"] = outs["k"]
    rows = [
        Row(
            ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
            (("input_layernorm.weight", (width,)),),
        ),
        Row(
            ("self_attention.linear_qkv.weight",),
            tuple((f"self_attn.{n}_proj.weight", (out, width)) for n, out in outs.items()),
            model.groups,
            cut=0,
        ),
        Row(
            ("self_attention.linear_proj.weight",),
            (("self_attn.o_proj.weight", (width, outs["q"])),),
            cut=1,
        ),
        # With experts, Transformer Engine's spec names it otherwise than the local one.
        Row(
            ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
            (("post_attention_layernorm.weight", (width,)),),
        ),
    ]
    if model.qkv_bias:
        parts = tuple((f"self_attn.{n}_proj.bias", (out,)) for n, out in outs.items())
        rows.append(Row(("self_attention.linear_qkv.bias",), parts, model.groups, cut=0))
    if model.qk_norm:
        rows += [
            Row((f"self_attention.{n}_layernorm.weight",), ((f"self_attn.{n}_norm.weight", head),))
            for n in ("q", "k")
        ]
    if model.experts is not None and model.is_sparse(number):
        router = (("mlp.gate.weight", (model.experts.count, width)),)
        return [*rows, Row(("mlp.router.weight",), router)]
    return [*rows, *_mlp("mlp.", "mlp.", width, model.ffn)]


def expert(model: Model, number: int) -> list[Row]:
    """Of one expert of a layer; Megatron's names say not which, as its tensors hold them all."""
    assert model.experts is not None
    hf = f"mlp.experts.{number}."
    return _mlp(EXPERTS, hf, model.hidden, model.experts.ffn)


def _mlp(megatron: str, hf: str, width: int, ffn: int) -> list[Row]:
    halves = tuple((f"{hf}{name}_proj.weight", (ffn, width)) for name in ("gate", "up"))
    return [
        Row((f"{megatron}linear_fc1.weight",), halves, cut=0),
        Row((f"{megatron}linear_fc2.weight",), ((f"{hf}down_proj.weight", (width, ffn)),), cut=1),
    ]


def rows(model: Model) -> list[Place]:
    """All rows in the order of the model, each with its layer and its expert, where it has one."""
    first, *last = ends(model)
    found: list[Place] = [(first, None, None)]
    for number in range(model.layers):
        found += [(row, number, None) for row in layer(model, number)]
        if model.experts is not None and model.is_sparse(number):
            for each in range(model.experts.count):
                found += [(row, number, each) for row in expert(model, each)]
    return found + [(row, None, None) for row in last]


def names(row: Row, number: int | None) -> list[str]:
    """Hugging Face's of a row's parts, in a layer or in none."""
    prefix = "" if number is None else f"model.layers.{number}."
    return [prefix + name for name, _ in row.parts]


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Hugging Face model, by name, in the order of the model."""
    return {
        name: shape
        for row, number, _ in rows(model)
        for name, (_, shape) in zip(names(row, number), row.parts, strict=True)
    }
