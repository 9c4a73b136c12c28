"""The flags that a checkpoint's own arguments come to, for a run that only evaluates it.

``--use-checkpoint-args`` has Megatron take the model's sizes from the checkpoint, but not all that
makes the model: an epsilon, a norm of queries and keys, the scaling of rotary embeddings are left
at their defaults in every version from 0.12 to 0.19, and a checkpoint loads without a word into a
model that lacks its norms. What is left out is given as flags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from domain_pretrain.data.vocabulary import WITHOUT_TEXT

Flag = tuple[str, ...]  # a flag and its values

# By the argument's name: Megatron's default, for which no flag is needed.
_MODEL: dict[str, Any] = {
    "norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "qk_layernorm": False,
    "qk_l2_norm": False,
    "rotary_seq_len_interpolation_factor": None,
    "use_rope_scaling": False,
    "no_rope_freq": None,
    "mrope_section": None,
    "window_size": None,
    "window_attn_skip_freq": None,
    "softmax_type": "vanilla",
    "attention_softmax_in_fp32": False,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "openai_gelu": False,
    "quick_geglu": False,
    "multi_latent_attention": False,
    "bf16": False,
    "fp16": False,
    "transformer_impl": "transformer_engine",
}
# Given always, where the argument before it is on: their defaults have changed.
_WITH: dict[str, tuple[str, ...]] = {
    "use_rope_scaling": ("rope_scaling_factor",),
    "multi_latent_attention": (
        "q_lora_rank",
        "kv_lora_rank",
        "qk_head_dim",
        "qk_pos_emb_head_dim",
        "v_head_dim",
        "rope_type",
        "rotary_scaling_factor",
        "mscale",
        "mscale_all_dim",
    ),
    "num_experts": (
        "moe_router_load_balancing_type",
        "moe_router_score_function",
        "moe_router_num_groups",
        "moe_router_group_topk",
        "moe_router_topk_scaling_factor",
        "moe_router_enable_expert_bias",
        "moe_router_dtype",
        "moe_expert_capacity_factor",
        "moe_pad_expert_input_to_capacity",
        "moe_shared_expert_gate",
    ),
}
_TOKENIZER: dict[str, Any] = {
    "tokenizer_type": None,
    "tokenizer_model": None,
    "vocab_file": None,
    "merge_file": None,
    "vocab_size": None,
    "make_vocab_size_divisible_by": None,
    "special_tokens": None,
    "tiktoken_pattern": None,
    "tiktoken_num_special_tokens": 1000,
}
# Where it is not the argument's own name.
_SPELLED = {"layernorm_epsilon": "--norm-epsilon", "special_tokens": "--tokenizer-special-tokens"}
# Lists that are one word of the command line.
_ONE_WORD = {"window_size": ",", "no_rope_freq": None, "window_attn_skip_freq": None}
_DATA = (
    *("data_path", "data_args_path", "per_split_data_args_path"),
    *("train_data_path", "valid_data_path", "test_data_path", "data_cache_path"),
)
_LAYOUT = ("tensor_model_parallel_size", "pipeline_model_parallel_size")


def model_flags(args: Mapping[str, Any]) -> list[Flag]:
    """What ``--use-checkpoint-args`` leaves out of the model, and its tokenizer.

    Args:
        args: the checkpoint's, by name.
    """
    found = [name for name, default in _MODEL.items() if args.get(name, default) != default]
    for switch, names in _WITH.items():
        found += names if args.get(switch) else ()
    found += [name for name, default in _TOKENIZER.items() if args.get(name, default) != default]
    return list(_flags(args, found))


def layout_flags(args: Mapping[str, Any]) -> list[Flag]:
    """Of a checkpoint that only its own layout can load."""
    return list(_flags(args, [name for name in _LAYOUT if args.get(name, 1) != 1]))


def data_flags(args: Mapping[str, Any]) -> list[Flag]:
    """The data whose manifests tell what the tokens of a tokenizer without text are; else nothing.

    All of it counts as validation data, of which one batch is read.
    """
    if args.get("tokenizer_type") not in WITHOUT_TEXT:
        return []
    found = list(_flags(args, [name for name in _DATA if args.get(name)]))
    blend = any(args.get(name) for name in _DATA[:2])
    return [*found, *([("--split", "0,1,0")] if blend else [])]


def _flags(args: Mapping[str, Any], names: list[str]) -> Iterator[Flag]:
    for name in names:
        flag, value = _SPELLED.get(name, f"--{name.replace('_', '-')}"), args.get(name)
        if value is True:
            yield (flag,)
        elif name in _ONE_WORD and isinstance(value, (list, tuple)):
            comma = _ONE_WORD[name]
            yield flag, comma.join(map(str, value)) if comma else str(list(value))
        elif isinstance(value, (list, tuple)):
            yield flag, *map(str, value)
        elif isinstance(value, (str, int, float)) and value is not False:
            yield flag, str(value)
