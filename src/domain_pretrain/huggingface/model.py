"""What a decoder of the Llama kind looks like: all that weights, flags and config depend on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Experts:
    """The mixture of experts of a model.

    Attributes:
        count: experts of a layer.
        per_token: of which each token takes so many.
        ffn: width of one.
        normalised: whether the weights of those that were taken add up to 1.
        sparse: by layer: whether it has experts, not one dense MLP.
        aux_loss: coefficient of the load balancing loss.
    """

    count: int
    per_token: int
    ffn: int
    normalised: bool
    sparse: tuple[bool, ...]
    aux_loss: float


@dataclass(frozen=True)
class Model:
    """Pre-norm, RMSNorm, rotary embeddings, SwiGLU, no biases but those that it says.

    Attributes:
        layers: of the decoder.
        hidden: width of the residual stream.
        heads: of the queries.
        groups: heads of keys and values.
        head: width of a head.
        ffn: width of a dense MLP.
        vocab: rows of the embedding, as Hugging Face has them: without the host's padding.
        positions: the longest sequence.
        norm_eps: of RMSNorm.
        rope_base: of the rotary embeddings.
        rope_factor: of Llama 3's scaling of them; None without.
        tied: whether the output layer is the embedding.
        qkv_bias: whether queries, keys and values have one.
        qk_norm: whether queries and keys are normalised, head by head.
        window: a token attends to so many, itself among them; None: to all before it.
        experts: None: every layer is dense.
    """

    layers: int
    hidden: int
    heads: int
    groups: int
    head: int
    ffn: int
    vocab: int
    positions: int
    norm_eps: float
    rope_base: int
    rope_factor: float | None
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    window: int | None
    experts: Experts | None

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has experts."""
        return self.experts is not None and self.experts.sparse[layer]

    @property
    def uniform(self) -> bool:
        """Whether all layers are alike."""
        return self.experts is None or len(set(self.experts.sparse)) == 1
