"""What the plugin supports of Megatron, and what it refuses because the numbers would be wrong."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import Version

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.hosts.versions import HOST_VERSIONS
from domain_pretrain.paths import is_remote
from domain_pretrain.refusal import Refusal, on, on_gloo


def full_iteration_graph(args: Any) -> bool:
    """Whether a CUDA graph replays whole steps, as every version and host spells it."""
    # 0.14: --enable-cuda-graph + scope; 0.15-0.17: impl local + scope; 0.18+: impl; or by modules.
    given = [getattr(args, f"cuda_graph_{name}", None) or [] for name in ("scope", "modules")]
    scopes = [s for one in given for s in (one if isinstance(one, (list, tuple)) else [one])]
    return getattr(args, "cuda_graph_impl", None) == "full_iteration" or any(
        "full_iteration" in str(s) for s in scopes
    )


def replays_layers(args: Any) -> bool:
    """Whether a CUDA graph replays layers, as every version spells it."""
    impl = getattr(args, "cuda_graph_impl", None)
    given = on(args, "enable_cuda_graph") or on(args, "external_cuda_graph")
    return given or impl not in (None, "none")


def _lays_rows_end_to_end(args: Any) -> bool:
    # Since 0.19, which brought the flag; before, --sft packed one row at a time or none.
    has_flag = hasattr(args, "dataloader_inter_document_masking")
    return has_flag and (on(args, "sft") or args.dataloader_inter_document_masking)


def _names_data_twice(args: Any) -> bool:
    whole = ("data_path", "data_args_path")
    split = ("train_data_path", "valid_data_path", "test_data_path", "per_split_data_args_path")
    return any(on(args, name) for name in whole) and any(on(args, name) for name in split)


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "--data-path or --data-args-path together with data of a split's own "
        "(--train-data-path, --per-split-data-args-path, …)",
        _names_data_twice,
        "the host ignores one of the two, in some combinations silently; give one",
    ),
    Refusal(
        "--hybrid-context-parallel",
        lambda a: on(a, "hybrid_context_parallel"),
        "the CP group changes from batch to batch, so a sample's tokens cannot be told apart; "
        "train with a fixed --context-parallel-size",
    ),
    Refusal(
        "--sft with --context-parallel-size > 1 and --micro-batch-size > 1",
        lambda a: on(a, "sft") and a.context_parallel_size > 1 and a.micro_batch_size > 1,
        "the host cuts every document by Transformer Engine's own indices, which mixes the "
        "microbatch's samples; use --micro-batch-size 1",
    ),
    Refusal(
        "--sft with --context-parallel-size > 1 on the CPU backend",
        lambda a: on(a, "sft") and a.context_parallel_size > 1 and on_gloo(a),
        "the host cuts every document by Transformer Engine's own indices, which needs a GPU; use "
        "--context-parallel-size 1",
    ),
    Refusal(
        "--sft or --dataloader-inter-document-masking with --micro-batch-size > 1 and pipeline "
        "stages",
        lambda a: (
            _lays_rows_end_to_end(a)
            and a.micro_batch_size > 1
            and a.pipeline_model_parallel_size > 1
        ),
        "since 0.19 the host lays packed rows end to end, but passes them between stages side by "
        "side, and crashes; use --micro-batch-size 1",
    ),
    Refusal(
        "--multiple-validation-sets with virtual pipeline stages",
        lambda a: on(a, "multiple_validation_sets", "virtual_pipeline_model_parallel_size"),
        "the host pairs validation sets with pipeline chunks; drop one of the two",
    ),
    Refusal(
        "--multiple-validation-sets with a full-iteration CUDA graph",
        lambda a: on(a, "multiple_validation_sets") and full_iteration_graph(a),
        "the sets' batches carry no id and a replayed graph cannot tell them apart; drop one",
    ),
    Refusal(
        "--iterations-to-skip",
        lambda a: on(a, "iterations_to_skip"),
        "the host freezes the learning rate's schedule while it skips, counts the iterations "
        "otherwise since 0.17, and crashes with virtual pipeline stages and, reading a blend, with "
        "context parallelism; cut the samples out of the stream by mix.skip in the --domain-config "
        "(docs/mixing.md), which works in every layout",
    ),
    Refusal(
        "--full-validation without --multiple-validation-sets",
        lambda a: on(a, "full_validation") and not on(a, "multiple_validation_sets"),
        "the host expects a list of sets, and crashes at the first evaluation; give both flags, "
        "and the sets by --valid-data-path, without weights",
    ),
    Refusal(
        "--perform-rl-step",
        lambda a: on(a, "perform_rl_step"),
        "reinforcement learning has no data blend, hence no domains",
    ),
    Refusal(
        "--logits-load-dir or --export-kd-teacher-load",
        lambda a: on(a, "logits_load_dir") or on(a, "export_kd_teacher_load"),
        "a distillation loss is not Σ mask·loss of the tokens, which the channel loss is",
    ),
    Refusal(
        "--flextron",
        lambda a: on(a, "flextron"),
        "the model returns a loss of its router beside those of the tokens, and trains on both",
    ),
    Refusal(
        "a vision language model (a script that takes --freeze-LM, as pretrain_vlm.py does)",
        lambda a: hasattr(a, "freeze_LM"),
        "its samples are mock data or come from an Energon loader, not from the blend that the "
        "data flags name, and the model puts images between the tokens, so that its loss mask is "
        "not the batch's",
    ),
    Refusal(
        "--freeze-all-layers",
        # 0.19 takes the flag, but its own pretrain_gpt.py trains on regardless.
        lambda a: on(a, "freeze_all_layers"),
        "nothing is trained: since 0.20 the host's steps only run forward, and it resumes them by "
        "a count of its own, without the plugin's state; measure a model that stays as it is by "
        "an evaluation, --skip-train",
    ),
    Refusal(
        "--inprocess-restart",
        lambda a: on(a, "inprocess_restart"),
        "the plugin's state does not survive a restart inside the process; restart the job "
        "(torchrun --max-restarts) instead",
    ),
    Refusal(
        "--tensor-parallel-num-weight-shards > --tensor-model-parallel-size",
        # No flag sets it: the host divides the one by the other. Further shards of the experts
        # alone (--expert-tensor-parallel-num-weight-shards) do not touch the data-parallel size.
        lambda a: getattr(a, "gtp_weight_remat_size", 1) > 1,
        "the ranks with the further shards read samples of their own, which the host's "
        "data-parallel size leaves out, so too few samples would be counted as consumed; leave "
        "--tensor-parallel-num-weight-shards out",
    ),
)

# Since then its cross entropy reads a contiguous factor for every token.
FACTOR_A_TOKEN = Version("2.11")


def _transformer_engine() -> Version:
    try:
        return Version(version("transformer-engine"))
    except PackageNotFoundError:
        return Version("0")


REFUSED_WITH_WEIGHTS: tuple[Refusal, ...] = (
    Refusal(
        "--cross-entropy-fusion-impl te with reweighting, Transformer Engine < 2.11",
        lambda a: (
            on(a, "cross_entropy_loss_fusion")
            and getattr(a, "cross_entropy_fusion_impl", None) == "te"
            and _transformer_engine() < FACTOR_A_TOKEN
        ),
        "Transformer Engine's cross entropy multiplies every token's gradient by that of the first "
        "(before 2.8) or of another token (before 2.11), so the weights would be lost; use "
        "--cross-entropy-fusion-impl native, or Transformer Engine 2.11 or newer",
    ),
)


REFUSED_WITH_MIX: tuple[Refusal, ...] = (
    Refusal(
        "--dataloader-type cyclic or external with mix",
        lambda a: getattr(a, "dataloader_type", None) in ("cyclic", "external"),
        "samples then do not come in the order of the stream; leave the flag out",
    ),
    Refusal(
        "--phase-transition-iterations with mix",
        lambda a: on(a, "phase_transition_iterations"),
        "each phase reads its data from the start, and the run ends between them; give the stages "
        "of the blend by mix.schedule alone",
    ),
    Refusal(
        "--dataloader-fast-cache-load or --dataloader-defer-npy-index-mmap with mix",
        lambda a: on(a, "dataloader_fast_cache_load") or on(a, "dataloader_defer_npy_index_mmap"),
        "the host then takes index files for granted that only its own blend would have made; "
        "leave the flag out",
    ),
    Refusal(
        "--sft or --mock-data with mix",
        lambda a: on(a, "sft") or on(a, "mock_data"),
        "the stream is made of data prefixes; leave mix out",
    ),
)

REFUSED_WITH_ROLLBACK: tuple[Refusal, ...] = (
    Refusal(
        "--save and --load that are not the same folder on a disk, with watch.on_spike: rollback",
        lambda a: not on(a, "save") or getattr(a, "load", None) != a.save or is_remote(str(a.save)),
        "the run goes back to a checkpoint that it has saved, and finds it where it loads; give "
        "both flags the same folder, and the model to start from by --pretrained-checkpoint",
    ),
    Refusal(
        "--finetune or --ckpt-step with watch.on_spike: rollback",
        lambda a: on(a, "finetune") or on(a, "ckpt_step"),
        "every start would begin at the same checkpoint; leave the flag out once the run has a "
        "checkpoint of its own, and give the model to start from by --pretrained-checkpoint",
    ),
    Refusal(
        "--non-persistent-save-interval with watch.on_spike: rollback",
        lambda a: on(a, "non_persistent_save_interval"),
        "the host resumes from the newest of both kinds of checkpoints, which may come after the "
        "jump; leave the flag out",
    ),
)

REFUSED_WITH_OTHER_TEST_DATA: tuple[Refusal, ...] = (
    Refusal(
        "a full-iteration CUDA graph with a test blend that is not the validation blend's",
        full_iteration_graph,
        "the host captures one graph for all evaluations, so the test's samples would be given the "
        "validation blend's domains; give both the same domains in the same order, or drop the "
        "graph or one of the two",
    ),
)

REFUSED_WITH_CHANNELS: tuple[Refusal, ...] = (
    Refusal(
        "a full-iteration CUDA graph with channels: true",
        full_iteration_graph,
        "how many domains a sample has differs from batch to batch, which a captured graph cannot "
        "follow; drop one of the two",
    ),
)

REFUSED_WITH_FIXED_SET: tuple[Refusal, ...] = (
    Refusal(
        "a full-iteration CUDA graph with evaluate.samples",
        full_iteration_graph,
        "the graph that the host captures of its own evaluation does not read other samples; drop "
        "one of the two",
    ),
)


REFUSED_WITH_PROBES: tuple[Refusal, ...] = (
    Refusal(
        "a full-iteration CUDA graph with evaluate.probes",
        full_iteration_graph,
        "the graph that the host captures of its own evaluation does not read other rows; drop one "
        "of the two",
    ),
    Refusal(
        "--sft or --dataloader-inter-document-masking with evaluate.probes",
        lambda a: on(a, "sft") or on(a, "dataloader_inter_document_masking"),
        "the model then expects packed rows with the boundaries of their documents; ask the "
        "checkpoint without the flag, by --skip-train",
    ),
)


REFUSED_WITH_EXPERTS: tuple[Refusal, ...] = (
    Refusal(
        "adapt.experts without --num-experts",
        lambda a: not on(a, "num_experts"),
        "the model has no experts to count; leave it out",
    ),
    Refusal(
        "CUDA graphs with adapt.experts",
        replays_layers,
        "a graph replays what its routers once did, so nothing is counted; drop one of the two",
    ),
    Refusal(
        "--moe-token-dispatcher-type alltoall_seq with adapt.experts, and tensor parallelism",
        lambda a: (
            getattr(a, "moe_token_dispatcher_type", None) == "alltoall_seq"
            and a.tensor_model_parallel_size > 1
        ),
        "each rank's router then chooses for the tokens of all; use alltoall",
    ),
    Refusal(
        "--sft or --dataloader-inter-document-masking with --micro-batch-size > 1, and "
        "adapt.experts",
        lambda a: _lays_rows_end_to_end(a) and a.micro_batch_size > 1,
        "the host lays the rows end to end, where a router cannot tell them apart; use "
        "--micro-batch-size 1",
    ),
)


EVERY_REFUSAL = (
    REFUSALS
    + REFUSED_WITH_WEIGHTS
    + REFUSED_WITH_MIX
    + REFUSED_WITH_ROLLBACK
    + REFUSED_WITH_OTHER_TEST_DATA
    + REFUSED_WITH_CHANNELS
    + REFUSED_WITH_FIXED_SET
    + REFUSED_WITH_PROBES
    + REFUSED_WITH_EXPERTS
)


def check_version(found: str, *, allow_unknown: bool) -> None:
    """Refuse a Megatron version that the seams were never run on.

    Raises:
        UnsupportedError: names the version, the range and the flag.
    """
    if Version(found) in HOST_VERSIONS or allow_unknown:
        return
    raise UnsupportedError(
        f"megatron.core {found} is outside of the supported range {HOST_VERSIONS}; install a "
        "supported version, or give --allow-unknown-host (Megatron-Bridge: "
        "allow_unknown_host=True)"
    )


def check_flags(args: Any, refusals: tuple[Refusal, ...] = REFUSALS) -> None:
    """Refuse flag combinations that the plugin cannot get right.

    Args:
        args: Megatron's.
        refusals: what to look for; flags that a host does not have are off.

    Raises:
        UnsupportedError: lists each combination with the reason.
    """
    found = [refusal for refusal in refusals if refusal.applies(args)]
    if found:
        raise UnsupportedError(
            "\n".join(f"{r.flags} is not supported with channel loss: {r.why}" for r in found)
        )
