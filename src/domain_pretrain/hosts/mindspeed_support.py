"""What the plugin refuses in MindSpeed and MindSpeed-LLM, besides Megatron's own flags."""

from __future__ import annotations

from typing import Any

from domain_pretrain.refusal import Refusal


def _given(args: Any, name: str) -> bool:
    return bool(getattr(args, name, None))


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "--stage",
        lambda a: _given(a, "stage"),
        "fine-tuning and preference training have their own datasets and losses, without a blend "
        "of domains; train with pretrain_gpt.py",
    ),
    Refusal(
        "--is-instruction-dataset",
        lambda a: _given(a, "is_instruction_dataset"),
        "its dataset reads the first prefix only, so there are no domains to tell apart, and the "
        "loss is shifted against the mask inside of the model",
    ),
    Refusal(
        "--is-pairwise-dataset",
        lambda a: _given(a, "is_pairwise_dataset"),
        "a preference loss has no tokens that belong to a domain",
    ),
    Refusal(
        "--schedules-method dualpipev",
        lambda a: getattr(a, "schedules_method", None) == "dualpipev",
        "losses then arise on the first pipeline stage, forward and backward mixed; use virtual "
        "pipeline stages",
    ),
    Refusal(
        "--layerwise-disaggregated-training",
        lambda a: _given(a, "layerwise_disaggregated_training"),
        "losses then arise on the first pipeline stage, and its ranks do not form the groups that "
        "the sums travel in",
    ),
    Refusal(
        "--loss-compute-mode chunk without tensor or context parallelism",
        lambda a: (
            getattr(a, "loss_compute_mode", None) == "chunk"
            and a.tensor_model_parallel_size == 1
            and a.context_parallel_size == 1
        ),
        "the model then returns a single loss instead of one per token; use --loss-compute-mode "
        "default",
    ),
    Refusal(
        "--enable-high-availability",
        lambda a: _given(a, "enable_high_availability"),
        "it repairs a step inside of the process, and the plugin's sums would not be repaired with "
        "it; restart the job (torchrun --max-restarts) instead",
    ),
    Refusal(
        "--auto-settings",
        lambda a: _given(a, "auto_settings"),
        "it searches for settings with short runs of its own; give the flags to the training that "
        "follows",
    ),
    Refusal(
        "--ai-framework mindspore",
        lambda a: getattr(a, "ai_framework", "pytorch") != "pytorch",
        "the plugin computes with PyTorch",
    ),
)
