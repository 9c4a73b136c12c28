"""Which of Megatron's features channel loss is right with, and how that is known.

The table of docs/status.md is made of it: ``python tests/support/features.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["right, ran", "right, read", "refused", "not known"]


@dataclass(frozen=True)
class Feature:
    """One row.

    Attributes:
        name: of the feature; flags as typed.
        state: what is known.
        proof: the test that ran it or saw it refused, ``FILE::TEST`` below tests/; of a refusal
            of flags, words of theirs; else empty.
        note: what else there is to say.
    """

    name: str
    state: State
    proof: str = ""
    note: str = ""


def _ran(name: str, proof: str, note: str = "") -> Feature:
    return Feature(name, "right, ran", proof, note)


def _read(name: str, note: str) -> Feature:
    return Feature(name, "right, read", note=note)


def _refused(name: str, proof: str, note: str = "") -> Feature:
    return Feature(name, "refused", proof, note)


def _not_known(name: str, note: str) -> Feature:
    return Feature(name, "not known", note=note)


_FEATURES = "e2e/test_features.py::test_feature"
_LAYOUT = "e2e/test_equivalence.py::test_layout"

FEATURES: tuple[Feature, ...] = (
    # Layouts.
    _ran("DP, TP, PP, VPP, CP, TP × PP, CP × DP, distributed optimizer", _LAYOUT),
    _ran("`--pipeline-model-parallel-layout`", _LAYOUT, "uneven, without VPP"),
    _ran("`--num-distributed-optimizer-instances`", _FEATURES),
    _ran("expert parallelism", _FEATURES),
    _read("`--sequence-parallel`", "it divides activations, not losses; no norm for it on the CPU"),
    _read(
        "schedule plans (`--overlap-moe-expert-parallel-comm`)",
        "further arguments of the forward step are passed on; needs a GPU",
    ),
    _refused("`--hybrid-context-parallel`", "--hybrid-context-parallel"),
    _refused("further weight shards (GTP)", "--tensor-parallel-num-weight-shards"),
    _ran(
        "Megatron-FSDP",
        "e2e/test_resume.py::test_a_format_that_loads_into_a_template",
        "`optim_grads_params`, one process",
    ),
    _not_known(
        "`--use-torch-fsdp2`",
        "its device mesh wants a GPU; with one of the CPU put in its place, two steps trained",
    ),
    # Losses and batches.
    _ran("multi-token prediction", _FEATURES, "its losses are not weighted"),
    _ran("bf16", _FEATURES),
    _ran("fp16 with overflows", "e2e/test_features.py::test_skipped_iterations"),
    _ran("packed documents, also with CP", _FEATURES),
    _ran("`--sft`", "e2e/test_features.py::test_supervised_finetuning"),
    _refused("`--sft` with CP and micro-batches of several rows", "--sft with --context-parallel"),
    _ran("fractional masks", "unit/test_flow.py::test_fractional_masks", "without Megatron"),
    _ran(
        "`--step-batch-size-schedule`, since 0.18",
        "e2e/test_reweighting.py::test_batches_that_grow",
    ),
    _ran(
        "`--rampup-batch-size`, up to 0.17",
        "e2e/test_hosts.py::test_batch_schedule",
        "later versions ignore the flag",
    ),
    _refused(
        "`--iterations-to-skip`", "--iterations-to-skip", "`mix.skip` cuts the stream instead"
    ),
    _refused("distillation", "--logits-load-dir"),
    _refused("elastic models", "--flextron"),
    _refused("`--freeze-all-layers`", "--freeze-all-layers"),
    # Steps that are run again.
    _ran("rerun mode `validate_results`", "e2e/test_rerun.py::test_repeated_steps"),
    _read("rerun modes `report_stats`, `disabled`", "an attempt starts from zero in any"),
    _ran(
        "schedules that Megatron repeats (`--moe-expert-rank-capacity-factor`)",
        "e2e/test_evaluation.py::test_schedules_that_the_host_repeats",
        "by a wrapper that repeats them as it does",
    ),
    _refused("`--inprocess-restart`", "--inprocess-restart"),
    _read("full-iteration CUDA graphs", "sums and weights lie in buffers that a replay writes"),
    _refused("… with domains within a file", "a full-iteration CUDA graph with channels"),
    _refused("… with several validation sets", "--multiple-validation-sets with a full-iteration"),
    _refused("… where test and validation have other domains", "a test blend that is not"),
    # Evaluations.
    _ran("a blend for all splits", "e2e/test_evaluation.py::test_points_and_sums"),
    _ran(
        "a blend per split, several validation sets, `--full-validation`",
        "e2e/test_evaluation.py::test_multiple_validation_sets",
    ),
    _refused("several validation sets with VPP", "with virtual pipeline stages"),
    _ran(
        "`--exit-duration-in-mins` within an evaluation",
        "e2e/test_evaluation.py::test_time_runs_out",
        "it has no number",
    ),
    _ran("`--skip-train`", "e2e/test_evaluation.py::test_a_model_that_is_not_trained"),
    # Checkpoints.
    _ran("format `torch`", "e2e/test_resume.py::test_torch_format"),
    _ran("format `torch_dist`", "e2e/test_resume.py::test_killed_and_resumed"),
    _ran("… with `--async-save`", "e2e/soak.py::main", "a soak, by hand: docs/faults.md"),
    _ran(
        "format `fsdp_dtensor`",
        "e2e/test_resume.py::test_a_format_that_loads_into_a_template",
    ),
    _not_known(
        "format `torch_dcp`",
        "its leaf is found (tests/unit/test_host_checkpoint.py); Megatron 0.19.2 itself cannot "
        "resume from it on the CPU: `state_dict() got an unexpected keyword argument`",
    ),
    _read("non-persistent checkpoints, global", "the same files in another folder"),
    _not_known("non-persistent checkpoints, local", "they need the resiliency extension"),
    _ran("another layout at the resume", "e2e/test_resume.py::test_another_layout", "TP2 to PP2"),
    # Starts.
    _ran(
        "`enable()` after `import megatron`",
        "e2e/test_resume.py::test_enabled_after_megatron_was_imported",
    ),
    _read("`--yaml-cfg`", "the run starts at the same place as with a late `enable()`"),
    # Other models.
    _ran("hybrid models, Mamba", "e2e/test_scripts.py::test_hybrid"),
    _ran("T5", "e2e/test_scripts.py::test_t5"),
    _refused(
        "BERT, up to 0.17",
        "unit/test_flow.py::test_scripts_that_cannot_be_counted",
        "at its first step; without Megatron",
    ),
    _refused("vision language models", "a vision language model"),
    _refused("reinforcement learning", "--perform-rl-step"),
)


def table() -> str:
    """As docs/status.md has it."""
    lines = ["| Megatron-LM's feature | state | proof |", "|---|---|---|"]
    for feature in FEATURES:
        proof = feature.note
        if "::" in feature.proof:
            file, test = feature.proof.split("::")
            proof = f"[{test}](../tests/{file})" + (f"; {feature.note}" if feature.note else "")
        elif feature.state == "refused":
            proof = "[why](hosts.md#refused-with-channel-loss)"
            proof += f"; {feature.note}" if feature.note else ""
        lines.append(f"| {feature.name} | {feature.state} | {proof} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
