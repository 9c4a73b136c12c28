"""Megatron's arguments ⇄ :class:`Model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.families import FAMILIES, Family
from domain_pretrain.huggingface.model import Experts, Model


def flags_of(model: Model) -> list[list[str]]:
    """The words of the command line, a flag each, that make Megatron build the model.

    Those of the model itself, and what its training begins from: no dropout, which Megatron has by
    default, and the loss that balances the experts. Not the length of the sequences, the
    tokenizer or the vocabulary, which depends on the layout: see :func:`vocabulary_flag`.
    """
    words: list[list[Any]] = [
        ["--num-layers", model.layers],
        ["--hidden-size", model.hidden],
        ["--ffn-hidden-size", model.ffn],
        ["--num-attention-heads", model.heads],
        ["--kv-channels", model.head],
        ["--max-position-embeddings", model.positions],
        ["--position-embedding-type", "rope"],
        ["--rotary-base", model.rope_base],
        ["--swiglu"],
        ["--normalization", "RMSNorm"],
        ["--norm-epsilon", model.norm_eps],
        ["--disable-bias-linear"],
        ["--attention-dropout", 0],
        ["--hidden-dropout", 0],
    ]
    if model.groups != model.heads:
        words += [["--group-query-attention"], ["--num-query-groups", model.groups]]
    if model.rope_factor is not None:
        words += [["--use-rope-scaling"], ["--rope-scaling-factor", model.rope_factor]]
    if model.qkv_bias:
        words += [["--add-qkv-bias"]]
    if model.qk_norm:
        words += [["--qk-layernorm"]]
    if not model.tied:
        words += [["--untie-embeddings-and-output-weights"]]
    if model.experts is not None:
        words += _flags_of_experts(model.experts)
    return [[str(word) for word in each] for each in words]


def _flags_of_experts(experts: Experts) -> list[list[Any]]:
    words: list[list[Any]] = [
        ["--num-experts", experts.count],
        ["--moe-router-topk", experts.per_token],
        ["--moe-ffn-hidden-size", experts.ffn],
        ["--moe-router-load-balancing-type", "aux_loss"],
        ["--moe-aux-loss-coeff", experts.aux_loss],
    ]
    if not experts.normalised:
        # Softmax over all experts, of which the largest are kept; otherwise over those alone.
        words += [["--moe-router-pre-softmax"]]
    if len(set(experts.sparse)) > 1:
        words += [["--moe-layer-freq", _pattern(experts.sparse)]]
    return words


def _pattern(sparse: tuple[bool, ...]) -> str:
    """A sum of lists: Megatron's pattern may hold neither blanks nor too much else."""
    return "+".join(f"[{int(each)}]*{len(list(same))}" for each, same in groupby(sparse))


def vocabulary_flag(model: Model, tensor_parallel: int | str) -> list[str]:
    """Pads the tokenizer's vocabulary to the embedding's rows, no more.

    Rows that only Megatron has take part in its softmax. It pads to a multiple of this divisor
    times TP; with all rows as that multiple, to exactly them, whatever the tokenizer has. Where TP
    does not divide them, to the fewest that it does: rounded down, a tokenizer with a token for
    each row would get twice as many.

    Args:
        model: whose rows they are.
        tensor_parallel: the size of TP, or the name of bash's variable for it.
    """
    divisor = f"$(( ({model.vocab} + {tensor_parallel} - 1) / {tensor_parallel} ))"
    if isinstance(tensor_parallel, int):
        divisor = str(-(-model.vocab // tensor_parallel))
    return ["--make-vocab-size-divisible-by", divisor]


def model_of(args: Mapping[str, Any], vocab: int) -> Model:
    """The model that Megatron's arguments describe.

    Args:
        args: as a checkpoint holds them, or a run's, validated.
        vocab: rows of the embedding without the host's padding; nothing of the arguments says.

    Raises:
        ConfigError: it is none of Llama's kind; the message names the flag.
    """
    for name, (good, flag) in _FIXED.items():
        if name in args and args[name] not in (good, None):
            raise ConfigError(
                f"the model has {flag} ({name}: {args[name]}), which no family here has"
            )
    heads, hidden = args["num_attention_heads"], args["hidden_size"]
    grouped = args.get("group_query_attention") and args.get("num_query_groups")
    window = args.get("window_size")
    return Model(
        layers=args["num_layers"],
        hidden=hidden,
        heads=heads,
        groups=args["num_query_groups"] if grouped else heads,
        head=args.get("kv_channels") or hidden // heads,
        ffn=args["ffn_hidden_size"],
        vocab=vocab,
        positions=args["max_position_embeddings"],
        norm_eps=epsilon_of(args),
        rope_base=args["rotary_base"],
        rope_factor=args.get("rope_scaling_factor") if args.get("use_rope_scaling") else None,
        tied=not args.get("untie_embeddings_and_output_weights"),
        qkv_bias=bool(args.get("add_qkv_bias")),
        qk_norm=bool(args.get("qk_layernorm")),
        window=window[0] + 1 if window and window[0] >= 0 else None,
        experts=_experts_of(args),
    )


# What has to be so, by the argument's name, and what another value is told as. None is as good
# everywhere: what is not given. A factor of 1 changes nothing.
_FIXED: dict[str, tuple[Any, str]] = {
    "position_embedding_type": ("rope", "another --position-embedding-type"),
    "rotary_percent": (1.0, "another --rotary-percent"),
    "rotary_interleaved": (False, "--rotary-interleaved"),
    "rotary_seq_len_interpolation_factor": (1, "--rotary-seq-len-interpolation-factor"),
    "no_rope_freq": (None, "--no-rope-freq"),
    "multi_latent_attention": (False, "--multi-latent-attention"),
    "window_attn_skip_freq": (None, "--window-attn-skip-freq"),
    "softmax_type": ("vanilla", "another --softmax-type"),
    "qk_l2_norm": (False, "--qk-l2-norm"),
    "attention_output_gate": (False, "--attention-output-gate"),
    "swiglu": (True, "no --swiglu"),
    "glu_linear_offset": (0.0, "--glu-linear-offset"),
    "activation_func_clamp_value": (None, "--activation-func-clamp-value"),
    "add_bias_linear": (False, "no --disable-bias-linear"),
    "normalization": ("RMSNorm", "another --normalization"),
    "layernorm_zero_centered_gamma": (False, "--apply-layernorm-1p"),
    "apply_layernorm_1p": (False, "--apply-layernorm-1p"),  # up to 0.15
    "apply_residual_connection_post_layernorm": (
        False,
        "--apply-residual-connection-post-layernorm",
    ),
    "use_mup": (False, "--use-mup"),
    "moe_shared_expert_intermediate_size": (None, "--moe-shared-expert-intermediate-size"),
    "moe_router_score_function": ("softmax", "another --moe-router-score-function"),
    "moe_router_topk_scaling_factor": (1.0, "--moe-router-topk-scaling-factor"),
    "moe_router_enable_expert_bias": (False, "--moe-router-enable-expert-bias"),
    "moe_router_group_topk": (None, "--moe-router-group-topk"),
    "moe_apply_probs_on_input": (False, "--moe-apply-probs-on-input"),
    "mtp_num_layers": (None, "--mtp-num-layers"),
}


def _experts_of(args: Mapping[str, Any]) -> Experts | None:
    if not args.get("num_experts"):
        return None
    return Experts(
        args["num_experts"],
        args["moe_router_topk"],
        args.get("moe_ffn_hidden_size") or args["ffn_hidden_size"],
        not args.get("moe_router_pre_softmax"),
        sparse_layers(args.get("moe_layer_freq"), args["num_layers"]),
        _number(args.get("moe_aux_loss_coeff")),
    )


def sparse_layers(frequency: Any, layers: int) -> tuple[bool, ...]:
    """Which layers have experts, of ``--moe-layer-freq``: every so many, or one by one."""
    if isinstance(frequency, (list, tuple)):
        return tuple(bool(each) for each in frequency)
    return tuple(number % (frequency or 1) == 0 for number in range(layers))


def epsilon_of(args: Mapping[str, Any]) -> float:
    """Of ``--norm-epsilon``, which is another argument since 0.16."""
    return float(args["norm_epsilon"] if "norm_epsilon" in args else args["layernorm_epsilon"])


def _number(value: Any) -> float:
    return float(value[0] if isinstance(value, (list, tuple)) else value or 0)


def family_of(model: Model) -> Family:
    """The family whose table fits a model that says nothing else.

    Raises:
        ConfigError: no table fits.
    """
    for family in FAMILIES:
        has = (family.qkv_bias, family.qk_norm, family.experts)
        needs = (model.qkv_bias, model.qk_norm, model.experts is not None)
        if has == needs and (model.window is None or family.kind == "mistral"):
            return family
    raise ConfigError(
        "no family has what this model has together: "
        f"--add-qkv-bias: {model.qkv_bias}, --qk-layernorm: {model.qk_norm}, experts: "
        f"{model.experts is not None}, --window-size: {model.window is not None}"
    )


_Difference = tuple[str, Callable[[Model], Any]]
# What a run must have as its base does, by the flag that gives it.
_COMPARED: tuple[_Difference, ...] = (
    ("--num-layers", lambda m: m.layers),
    ("--hidden-size", lambda m: m.hidden),
    ("--ffn-hidden-size", lambda m: m.ffn),
    ("--num-attention-heads", lambda m: m.heads),
    ("--num-query-groups", lambda m: m.groups),
    ("--kv-channels", lambda m: m.head),
    ("--norm-epsilon", lambda m: m.norm_eps),
    ("--add-qkv-bias", lambda m: m.qkv_bias),
    ("--qk-layernorm", lambda m: m.qk_norm),
    ("--untie-embeddings-and-output-weights", lambda m: not m.tied),
    ("--num-experts", lambda m: m.experts and m.experts.count),
    ("--moe-router-topk", lambda m: m.experts and m.experts.per_token),
    ("--moe-ffn-hidden-size", lambda m: m.experts and m.experts.ffn),
    ("--moe-layer-freq", lambda m: m.experts and [int(s) for s in m.experts.sparse]),
    ("--moe-router-pre-softmax", lambda m: m.experts and not m.experts.normalised),
)


def differences(base: Model, run: Model) -> list[str]:
    """In what a run is not its base, a text each: the flag, the base's value and the run's.

    Not the rotary embeddings, which may be stretched on purpose, nor what is the user's: lengths,
    window, vocabulary.
    """
    pairs = [(flag, value(base), value(run)) for flag, value in _COMPARED]
    return [f"{flag}: the base has {old}, the run {new}" for flag, old, new in pairs if old != new]
