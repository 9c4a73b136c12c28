"""The GPT of the tests once more, in float64, from the weights of a checkpoint."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, layer_norm, linear

Weights = dict[str, torch.Tensor]


def log_probabilities(weights: Weights, tokens: list[int], heads: int = 4) -> torch.Tensor:
    """``[n, V]``: of every token, behind each of these ``n`` and those before it."""
    model = {
        name: one.double() for name, one in weights.items() if not name.startswith("optimizer")
    }
    ids = torch.tensor(tokens)
    words = model["embedding.word_embeddings.weight"]
    count = len(ids)
    hidden = words[ids] + model["embedding.position_embeddings.weight"][:count]
    size = hidden.shape[1] // heads
    later = torch.ones(count, count).triu(1).bool()
    stacked = {
        name.removeprefix("decoder.layers."): one
        for name, one in model.items()
        if name.startswith("decoder.layers.")
    }
    for layer in range(len(stacked["mlp.linear_fc1.weight"])):
        own = {name: one[layer] for name, one in stacked.items()}
        mixed = linear(
            _normed(hidden, own, "self_attention.linear_qkv.layer_norm_"),
            own["self_attention.linear_qkv.weight"],
            own["self_attention.linear_qkv.bias"],
        )
        # By head: its query, its key, its value.
        query, key, value = mixed.view(count, heads, 3, size).permute(2, 1, 0, 3)
        scores = (query @ key.transpose(1, 2) / size**0.5).masked_fill(later, -torch.inf)
        seen = (scores.softmax(-1) @ value).transpose(0, 1).reshape(count, -1)
        hidden = hidden + linear(
            seen, own["self_attention.linear_proj.weight"], own["self_attention.linear_proj.bias"]
        )
        inner = gelu(
            linear(
                _normed(hidden, own, "mlp.linear_fc1.layer_norm_"),
                own["mlp.linear_fc1.weight"],
                own["mlp.linear_fc1.bias"],
            )
        )
        hidden = hidden + linear(inner, own["mlp.linear_fc2.weight"], own["mlp.linear_fc2.bias"])
    logits = _normed(hidden, model, "decoder.final_layernorm.") @ words.T
    return logits.log_softmax(-1)


def _normed(hidden: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return layer_norm(hidden, hidden.shape[1:], weights[f"{name}weight"], weights[f"{name}bias"])
