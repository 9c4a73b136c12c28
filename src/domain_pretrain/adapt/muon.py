"""Muon and MuonClip, which Megatron has since core 0.16: when their numbers are what was meant."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from packaging.version import Version

from domain_pretrain.adapt.recipe import HostFlag, Recipe
from domain_pretrain.refusal import Refusal, on, on_gloo

PACKAGE = "emerging-optimizers"


def _is_muon(optimizer: object) -> bool:
    """``muon``, ``dist_muon`` (since 0.18 another name for it), ``adaptive_muon``."""
    return "muon" in str(optimizer)


def uses_muon(args: Any) -> bool:
    """Whether a run does, with Megatron's own flags for it."""
    return hasattr(args, "muon_scale_mode") and _is_muon(getattr(args, "optimizer", ""))


def _needs_first_version(args: Any) -> bool:
    # 0.16 alone has the first of these flags and not the second.
    of_0_16 = hasattr(args, "muon_use_nesterov") and not hasattr(args, "muon_coefficient_type")
    return of_0_16 and _installed() >= Version("0.2")


def _needs_second_version(args: Any) -> bool:
    # Hosts before 0.20 do not have this flag.
    adaptive = getattr(args, "optimizer", "") == "adaptive_muon"
    return adaptive and not hasattr(args, "muon_use_syrk") and _installed() >= Version("0.3")


def _installed() -> Version:
    try:
        return Version(version(PACKAGE))
    except PackageNotFoundError:  # perhaps a folder on the path, which the host takes, too
        return Version("0")


def _shards_layers(args: Any) -> bool:
    """Whether the optimizer's work is divided over the data-parallel ranks, by whole matrices."""
    own = str(getattr(args, "optimizer", "")).startswith("dist_")
    return own or on(args, "use_layer_wise_distributed_optimizer")


def asks_for_logits(args: Any) -> bool:
    """Whether the host wants attention's largest logits; before core 0.16 it knows neither flag.

    Args:
        args: Megatron's, or the config of its model.
    """
    return on(args, "qk_clip") or on(args, "log_max_attention_logit")


def _other_optimizer(args: Any, saved: Mapping[str, Any]) -> str | None:
    trained_with = saved.get("optimizer")
    if _is_muon(trained_with):
        return None
    what = (
        f"was trained with --optimizer {trained_with}"
        if trained_with
        else "does not say what it was trained with, which for a published model is mostly AdamW"
    )
    return (
        f"--optimizer {args.optimizer}: the model that this run starts from {what}; on such a base "
        "Muon may have less of an advantage, or none: compare a short run with --optimizer adam "
        "by the losses of the domains (docs/muon.md)"
    )


MUON = Recipe(
    name="Muon",
    summary="matrices are updated along orthogonalised momentum; the rest by Adam",
    applies=uses_muon,
    since="0.16",
    packages=(PACKAGE,),
    refusals=(
        Refusal(
            f"--optimizer muon without the package {PACKAGE}",
            lambda a: uses_muon(a) and find_spec("emerging_optimizers") is None,
            f"the host takes its Newton-Schulz iteration from there: pip install {PACKAGE} (core "
            "0.16 and 0.17 were made with v0.1.0, which is not on PyPI: install that tag of "
            "github.com/NVIDIA-NeMo/Emerging-Optimizers)",
        ),
        Refusal(
            f"--optimizer muon on core 0.16 with {PACKAGE} >= 0.2",
            lambda a: uses_muon(a) and _needs_first_version(a),
            "0.16 calls it as 0.1.0 was called, and stops when it builds the optimizer; install "
            "the tag v0.1.0 of github.com/NVIDIA-NeMo/Emerging-Optimizers, or core 0.17 or newer",
        ),
        Refusal(
            f"--optimizer adaptive_muon on core 0.18 and 0.19 with {PACKAGE} >= 0.3",
            lambda a: _needs_second_version(a),
            "they set it up as 0.2 was, and stop in the first step; install the tag v0.2.0 of "
            "github.com/NVIDIA-NeMo/Emerging-Optimizers, or take --optimizer muon",
        ),
        Refusal(
            "--optimizer muon with --fp16",
            lambda a: uses_muon(a) and on(a, "fp16"),
            "the host has no loss scale for it; use --bf16",
        ),
        Refusal(
            "--optimizer muon with --use-distributed-optimizer, or dist_muon, without --bf16",
            lambda a: uses_muon(a) and _shards_layers(a) and not on(a, "bf16"),
            "the host divides the work among optimizers that it only wraps for 16 bits, and stops "
            "in the first step; give --bf16, or leave the flag out (--optimizer muon)",
        ),
        Refusal(
            "--optimizer muon with --use-distributed-optimizer, or dist_muon, on several "
            "data-parallel ranks of the CPU backend",
            lambda a: (
                uses_muon(a)
                and _shards_layers(a)
                and on_gloo(a)
                and a.data_parallel_size * a.context_parallel_size > 1
            ),
            "they gather matrices of unequal sizes, which gloo cannot; leave the flag out "
            "(--optimizer muon)",
        ),
    ),
    doubts=(
        Refusal(
            "--muon-extra-scale-factor 1 with --muon-scale-mode spectral",
            lambda a: (
                getattr(a, "muon_scale_mode", None) == "spectral"
                and getattr(a, "muon_extra_scale_factor", None) == 1.0
            ),
            "every update then has a root mean square of 1 times --lr, some five times that of "
            "AdamW; give 0.2 to go on with a learning rate that was chosen for AdamW "
            "(arXiv:2502.16982)",
        ),
        Refusal(
            "--muon-tp-mode blockwise with --tensor-model-parallel-size > 1",
            lambda a: (
                getattr(a, "muon_tp_mode", None) == "blockwise" and a.tensor_model_parallel_size > 1
            ),
            "every tensor-parallel rank orthogonalises its own part of a matrix, so that the "
            "update depends on the layout; give duplicated (or distributed) for that of the whole "
            "matrix",
        ),
    ),
    base=_other_optimizer,
    flags=(
        HostFlag("--optimizer muon", "Muon for matrices, Adam for the rest", ">=0.16"),
        HostFlag(
            "--optimizer dist_muon",
            "the same, its work divided over the data-parallel ranks; since 0.18 written "
            "`--optimizer muon --use-distributed-optimizer`",
            ">=0.16",
        ),
        HostFlag("--optimizer adaptive_muon", "with a second moment behind it", ">=0.18"),
        HostFlag("--muon-momentum", "default 0.9", ">=0.16"),
        HostFlag("--muon-use-nesterov", "default off", ">=0.16,<0.18"),
        HostFlag("--muon-nesterov", "the same, since 0.18", ">=0.18"),
        HostFlag("--muon-num-ns-steps", "Newton-Schulz iterations, default 5", ">=0.16"),
        HostFlag("--muon-coefficient-type", "their coefficients, default quintic", ">=0.17"),
        HostFlag(
            "--muon-scale-mode",
            "of an out × in matrix's update: `spectral` √max(out, in) (default), `unit_rms_norm` "
            "√(out / in), `shape_scaling` √max(1, out / in)",
            ">=0.16",
        ),
        HostFlag("--muon-extra-scale-factor", "times this, default 1", ">=0.16"),
        HostFlag("--muon-no-split-qkv", "queries, keys and values as one matrix", ">=0.16"),
        HostFlag(
            "--muon-tp-mode",
            "`blockwise` (default before 0.20): each rank its part; `duplicated` (default since), "
            "`distributed`: the whole matrix",
            ">=0.16",
        ),
        HostFlag("--muon-fp32-matmul-prec", "of the iterations, default medium", ">=0.16"),
        HostFlag("--muon-scalar-optimizer", "of the rest, default adam", ">=0.17"),
        HostFlag("--muon-use-syrk", "a Triton kernel for the iterations", ">=0.20"),
    ),
    page="docs/muon.md",
)

QK_CLIP = Recipe(
    name="QK-clip",
    summary="MuonClip's second half: heads with too large attention logits are scaled down",
    applies=asks_for_logits,
    since="0.16",
    refusals=(
        Refusal(
            "--qk-clip or --log-max-attention-logit without --bf16 or --fp16",
            lambda a: asks_for_logits(a) and not on(a, "bf16") and not on(a, "fp16"),
            "the host looks for the layers below the module that converts to 16 bits, and stops "
            "after the first step where there is none; give --bf16",
        ),
        Refusal(
            "--qk-clip or --log-max-attention-logit with --transformer-impl local on a GPU",
            lambda a: (
                asks_for_logits(a)
                and getattr(a, "transformer_impl", None) == "local"
                and not on_gloo(a)
            ),
            "only Transformer Engine's attention, 2.9 or newer, tells its largest logits; leave "
            "--transformer-impl local out",
        ),
        Refusal(
            "--qk-clip with --use-distributed-optimizer and another optimizer than Muon",
            lambda a: on(a, "qk_clip", "use_distributed_optimizer"),
            "the host scales the fp32 weights as a whole matrix, of which each rank here has a "
            "flat part: it stops at the first step in which a logit is above the threshold; leave "
            "--use-distributed-optimizer out, or train with --optimizer muon",
        ),
        Refusal(
            "--qk-clip with --tensor-model-parallel-size > 1, but for --multi-latent-attention",
            lambda a: (
                on(a, "qk_clip")
                and a.tensor_model_parallel_size > 1
                and not on(a, "multi_latent_attention")
            ),
            "the host takes a rank's part of the rows for those of all heads: it stops at the "
            "first step in which a logit is above the threshold; use --tensor-model-parallel-size "
            "1 with other kinds of parallelism, or --log-max-attention-logit alone, which is right",
        ),
        Refusal(
            "--qk-clip with --attention-output-gate",
            lambda a: on(a, "qk_clip", "attention_output_gate"),
            "the host does not count the gate's rows among those of queries and keys, and stops at "
            "the first step in which a logit is above the threshold; leave one out",
        ),
    ),
    doubts=(
        Refusal(
            "--qk-clip with --qk-layernorm",
            lambda a: on(a, "qk_clip", "qk_layernorm"),
            "queries and keys are normalised behind the weights that are scaled down, which "
            "therefore changes no logit; the norms bound the logits by themselves: leave --qk-clip "
            "out",
        ),
        Refusal(
            "--qk-clip with biases of queries and keys",
            lambda a: on(a, "qk_clip", "add_qkv_bias") or on(a, "qk_clip", "add_bias_linear"),
            "the host scales the weights and not the biases, so that a logit shrinks by less than "
            "it should; give --disable-bias-linear, if the model has none",
        ),
    ),
    flags=(
        HostFlag("--qk-clip", "default off", ">=0.16"),
        HostFlag("--qk-clip-threshold", "τ, default 100", ">=0.16"),
        HostFlag("--qk-clip-alpha", "the queries' part of it, default 0.5", ">=0.16"),
        HostFlag("--log-max-attention-logit", "tell the logits, and scale nothing", ">=0.16"),
    ),
    page="docs/muon.md",
)
