"""How large a checkpoint is going to be, from the model's flags."""

from __future__ import annotations

from domain_pretrain.data.vocabulary import padded
from domain_pretrain.launch.flags import Flags


def parameters(flags: Flags, vocabulary: int | None) -> int | None:
    """Weights of the model, without biases and norms; None where the flags do not define the model.

    Every layer counts as a mixture of experts where there are experts, so that a model with some
    dense layers is estimated too large rather than too small.

    Args:
        flags: of the command.
        vocabulary: ids of the tokenizer, before padding; None: unknown, and then the embeddings
            are left out.
    """
    layers, hidden, heads = flags.num_layers, flags.hidden_size, flags.num_attention_heads
    if not (layers and hidden and heads):
        return None
    channels = flags.kv_channels or hidden // heads
    groups = flags.num_query_groups if flags.group_query_attention else heads
    attention = 2 * hidden * channels * (heads + groups)
    matrices = 3 if flags.swiglu else 2
    ffn = flags.ffn_hidden_size or 4 * hidden
    feed_forward = matrices * hidden * ffn
    if flags.num_experts:
        width = flags.num_experts * (flags.moe_ffn_hidden_size or ffn)
        width += flags.moe_shared_expert_intermediate_size
        feed_forward = matrices * hidden * width + hidden * flags.num_experts
    rows = padded(vocabulary or 0, flags)
    embeddings = hidden * rows * (2 if flags.untie_embeddings_and_output_weights else 1)
    return layers * (attention + feed_forward) + embeddings


def checkpoint_bytes(flags: Flags, vocabulary: int | None) -> int | None:
    """Of one checkpoint: weights, Adam's two moments, and fp32 weights beside those of 16 bits.

    Args: see :func:`parameters`, and None as there.
    """
    count = parameters(flags, vocabulary)
    if count is None:
        return None
    half = flags.bf16 or flags.fp16
    weights, optimizer = (2, 12) if half else (4, 8)
    return count * (weights + (0 if flags.no_save_optim else optimizer))


def human(count: float) -> str:
    """Bytes as they are read: ``104.7 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.1f} TiB"
