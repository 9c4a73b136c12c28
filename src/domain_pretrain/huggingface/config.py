"""``config.json`` of Hugging Face ⇄ :class:`Model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from domain_pretrain.errors import ConfigError, first_problem
from domain_pretrain.huggingface.families import FAMILIES, Family
from domain_pretrain.huggingface.model import Experts, Model
from domain_pretrain.json_file import read_json

CONFIG = "config.json"
# What Megatron's --use-rope-scaling does: rotary_pos_embedding.py, RotaryEmbedding._apply_scaling.
LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
BRIDGE = (
    "Megatron-Bridge's AutoBridge knows more families (docs/huggingface.md says which versions "
    "install)"
)


class _Read(BaseModel):
    """Strict: a text or ``true`` is no number, nor is Python's ``NaN`` or ``Infinity``."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


_ReadT = TypeVar("_ReadT", bound=_Read)


class _Rope(_Read):
    """Rotary embeddings: ``rope_parameters``, or ``rope_theta`` and ``rope_scaling``."""

    rope_theta: float | None = Field(None, gt=0)
    factor: float | None = Field(None, gt=0)


class _Keys(_Read):
    """What is read of a ``config.json``; older and newer spellings of ``transformers`` 4 and 5."""

    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int | None = Field(None, gt=0)
    head_dim: int | None = Field(None, gt=0)
    intermediate_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    rms_norm_eps: float = Field(ge=0)
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    use_sliding_window: bool = False
    max_window_layers: int | None = None
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    num_experts: int | None = None
    num_local_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None
    norm_topk_prob: bool = False
    decoder_sparse_step: int = Field(1, gt=0)
    mlp_only_layers: list[int] | None = None
    router_aux_loss_coef: float = 0.001


def read_config(folder: Path) -> tuple[Family, Model, dict[str, Any]]:
    """Family, model, and the whole ``config.json`` of a Hugging Face folder.

    Raises:
        ConfigError: there is none, its architecture is not known, or it has what the table of the
            family, or Megatron, cannot express; the message names the key.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(
            f"{folder} is no Hugging Face model: it holds no {CONFIG}; give the folder "
            "that it was downloaded into"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} should be an object of keys")
    family = _family(content, path)
    keys = _parse(_Keys, content, path)
    if family.window is not None and "sliding_window" not in content:
        keys.sliding_window = family.window
    return family, _model(family, keys, path), content


def _parse(model: type[_ReadT], content: dict[str, Any], path: Path) -> _ReadT:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from None


def _family(content: dict[str, Any], path: Path) -> Family:
    named = content.get("architectures") or [content.get("model_type")]
    name = named[0] if isinstance(named, list) and named else named
    for family in FAMILIES:
        if name in (family.architecture, family.kind):
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise ConfigError(f"{path}: the architecture {name} is not known; known are {known}. {BRIDGE}")


def _model(family: Family, keys: _Keys, path: Path) -> Model:
    def refuse(key: str, why: str) -> ConfigError:
        return ConfigError(f"{path}: {key} {why}")

    if keys.quantization_config is not None:
        raise refuse(
            "quantization_config",
            "says that the weights are quantized; training needs the unquantized model",
        )
    if keys.hidden_act != "silu":
        raise refuse("hidden_act", f"is {keys.hidden_act!r}; a {family.kind} has 'silu'")
    if keys.attention_bias or keys.mlp_bias:
        key = "attention_bias" if keys.attention_bias else "mlp_bias"
        raise refuse(
            key, "asks for biases that Megatron has only all together or on query, key and value"
        )
    if keys.partial_rotary_factor != 1.0:
        raise refuse("partial_rotary_factor", f"is {keys.partial_rotary_factor}; only 1 is known")
    base, factor = _rope(keys, path)
    groups = keys.num_key_value_heads or keys.num_attention_heads
    if keys.num_attention_heads % groups:
        raise refuse(
            "num_key_value_heads",
            f"is {groups}, which does not divide the {keys.num_attention_heads} heads",
        )
    return Model(
        layers=keys.num_hidden_layers,
        hidden=keys.hidden_size,
        heads=keys.num_attention_heads,
        groups=groups,
        head=keys.head_dim or keys.hidden_size // keys.num_attention_heads,
        ffn=keys.intermediate_size,
        vocab=keys.vocab_size,
        positions=keys.max_position_embeddings,
        norm_eps=keys.rms_norm_eps,
        rope_base=base,
        rope_factor=factor,
        tied=keys.tie_word_embeddings,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        window=_window(family, keys, path),
        experts=_experts(keys, path) if family.experts else None,
    )


def _rope(keys: _Keys, path: Path) -> tuple[int, float | None]:
    """Base, and the factor of Llama 3's scaling."""
    scaling = {
        "rope_theta": keys.rope_theta,
        **(keys.rope_scaling or {}),
        **(keys.rope_parameters or {}),
    }
    rope = _parse(_Rope, scaling, path)
    base = 10000.0 if rope.rope_theta is None else rope.rope_theta
    if base != int(base):
        raise ConfigError(
            f"{path}: rope_theta {base} is no whole number: --rotary-base takes those"
        )
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return int(base), None
    if kind != "llama3":
        raise ConfigError(
            f"{path}: the rope scaling {kind!r} is not what Megatron has (--use-rope-scaling is "
            "'llama3'). Where it only lengthens the context for inference, as Qwen's yarn does, "
            "the weights are trained without it: take it out of config.json"
        )
    other = {k: scaling.get(k) for k, v in LLAMA3.items() if scaling.get(k) != v}
    if other:
        raise ConfigError(
            f"{path}: of the rope scaling 'llama3', Megatron has {LLAMA3}; here it is {other}"
        )
    if rope.factor is None:
        raise ConfigError(f"{path}: the rope scaling 'llama3' lacks its factor")
    return int(base), rope.factor


def _window(family: Family, keys: _Keys, path: Path) -> int | None:
    """As transformers has it: the keys that a family does not read say nothing."""
    if family.window is None or keys.sliding_window is None:
        return None
    if family.switch and not keys.use_sliding_window:
        return None
    slides = {True}
    if family.by_layer and keys.layer_types is not None:
        slides = {kind == "sliding_attention" for kind in keys.layer_types}
    elif family.first:
        first = family.first if keys.max_window_layers is None else keys.max_window_layers
        slides = {n >= first for n in range(keys.num_hidden_layers)}
    if len(slides) > 1:
        raise ConfigError(f"{path}: a sliding_window in some layers only is not known here")
    if True not in slides:
        return None
    if keys.sliding_window < 1:
        raise ConfigError(f"{path}: sliding_window is {keys.sliding_window}; a token needs itself")
    return keys.sliding_window


def _experts(keys: _Keys, path: Path) -> Experts:
    count = keys.num_experts or keys.num_local_experts
    if not count or not keys.num_experts_per_tok or not keys.moe_intermediate_size:
        raise ConfigError(
            f"{path}: a mixture of experts needs num_experts, num_experts_per_tok and "
            "moe_intermediate_size"
        )
    if not 0 < keys.num_experts_per_tok <= count:
        raise ConfigError(
            f"{path}: num_experts_per_tok is {keys.num_experts_per_tok}, of {count} experts"
        )
    if keys.norm_topk_prob and keys.num_experts_per_tok == 1:
        raise ConfigError(
            f"{path}: norm_topk_prob with one expert per token makes its weight 1, which Megatron "
            "does not have"
        )
    dense = set(keys.mlp_only_layers or ())
    sparse = tuple(
        n not in dense and (n + 1) % keys.decoder_sparse_step == 0
        for n in range(keys.num_hidden_layers)
    )
    if not any(sparse):
        raise ConfigError(f"{path}: mlp_only_layers and decoder_sparse_step leave no layer experts")
    return Experts(
        count,
        keys.num_experts_per_tok,
        keys.moe_intermediate_size,
        keys.norm_topk_prob,
        sparse,
        keys.router_aux_loss_coef,
    )


def write_config(
    family: Family, model: Model, dtype: str, base: tuple[Model, dict[str, Any]] | None
) -> dict[str, Any]:
    """The content of ``config.json``: of the base, with what is another in the model.

    Args:
        family: of the model.
        model: what the checkpoint holds.
        dtype: of its weights, as PyTorch names it.
        base: the model it began as, and its ``config.json``; None where there is none.
    """
    content = dict(base[1]) if base else {}
    before = base[0] if base else None
    for name, keys in _SPELLED.items():
        value = getattr(model, name)
        if before is None or value != getattr(before, name):
            content.update(keys(value))
    if before is None:
        content = {
            "architectures": [family.architecture],
            "model_type": family.kind,
            "hidden_act": "silu",
            **content,
        }
        if family.kind in ("llama", "qwen3", "qwen3_moe"):
            content["attention_bias"] = False
    if before is None or (model.rope_base, model.rope_factor) != (
        before.rope_base,
        before.rope_factor,
    ):
        content |= _spelled_rope(model, content)
    if before is None or model.window != before.window:
        content |= _spelled_window(family, model, content)
    content["dtype" if "torch_dtype" not in content else "torch_dtype"] = dtype
    return content


_SPELLED = {
    "layers": lambda n: {"num_hidden_layers": n},
    "hidden": lambda n: {"hidden_size": n},
    "heads": lambda n: {"num_attention_heads": n},
    "groups": lambda n: {"num_key_value_heads": n},
    "head": lambda n: {"head_dim": n},
    "ffn": lambda n: {"intermediate_size": n},
    "vocab": lambda n: {"vocab_size": n},
    "positions": lambda n: {"max_position_embeddings": n},
    "norm_eps": lambda x: {"rms_norm_eps": x},
    "tied": lambda yes: {"tie_word_embeddings": yes},
    "experts": lambda e: {} if e is None else _spelled_experts(e),
}


def _spelled_experts(experts: Experts) -> dict[str, Any]:
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.ffn,
        "norm_topk_prob": experts.normalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [n for n, sparse in enumerate(experts.sparse) if not sparse],
        "router_aux_loss_coef": experts.aux_loss,
    }


def _spelled_window(family: Family, model: Model, content: dict[str, Any]) -> dict[str, Any]:
    """In the keys that the family reads, for all layers."""
    if family.window is None:
        return {}
    found: dict[str, Any] = {"sliding_window": model.window}
    if family.switch:
        found["use_sliding_window"] = model.window is not None
    if family.first and model.window is not None:
        found["max_window_layers"] = 0
    if family.by_layer and "layer_types" in content:
        kind = "full_attention" if model.window is None else "sliding_attention"
        found["layer_types"] = [kind] * model.layers
    return found


def _spelled_rope(model: Model, content: dict[str, Any]) -> dict[str, Any]:
    """In the spelling that the base has; without one, in those of ``transformers`` 4 and 5."""
    kind: dict[str, Any] = {"rope_type": "default"}
    if model.rope_factor is not None:
        kind = {"rope_type": "llama3", "factor": model.rope_factor, **LLAMA3}
    found: dict[str, Any] = {}
    if "rope_parameters" in content or "rope_theta" not in content:
        found["rope_parameters"] = {"rope_theta": float(model.rope_base), **kind}
    if "rope_theta" in content or "rope_parameters" not in content:
        found["rope_theta"] = float(model.rope_base)
        found["rope_scaling"] = kind if model.rope_factor is not None else None
    return found
