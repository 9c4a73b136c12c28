"""Small Hugging Face models with random weights, made by transformers, and a tokenizer for them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# By name: the class of the config, and what it has that the sizes do not say.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
    "mistral": ("Mistral", {"head_dim": 16, "sliding_window": 8}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 16, **EXPERTS, "norm_topk_prob": True}),
    # A dense layer, and the weights of the experts do not add up to 1.
    "qwen3_mixed": ("Qwen3Moe", {"head_dim": 16, **EXPERTS, "mlp_only_layers": [0]}),
}


def write_model(
    folder: Path, name: str, dtype: torch.dtype = torch.float32, **other: Any
) -> dict[str, Any]:
    """A model of :data:`MODELS` in ``folder``; returns its ``config.json``.

    The weights of its norms and its biases are random, too: a new model has ones and zeros.
    """
    import transformers

    kind, own = MODELS[name]
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **own, **other})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.0 if key.endswith("bias") else 1.0, 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def write_tokenizer(folder: Path, extra: tuple[str, ...] = ()) -> None:
    """Of bytes, as ``<0x00>``, an end of documents with the id 256, and further tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens(list(extra))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def model_flags(base: Path, tensor_parallel: int = 1) -> list[str]:
    """Of an imported model, as an env file of the launch scripts takes them."""
    script = '. "$0"; printf "%s\\n" "${MODEL_FLAGS[@]}"'
    done = subprocess.run(
        ["bash", "-c", script, str(base / "model.env")],
        capture_output=True,
        text=True,
        check=True,
        env={"TP": str(tensor_parallel), "PATH": "/usr/bin:/bin"},
    )
    return done.stdout.splitlines()


def logits_of(folder: Path, tokens: Any) -> torch.Tensor:
    """What transformers computes in float32: ``[b, s, vocabulary]`` of tokens ``[b, s]``."""
    return load_model(folder)(tokens)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Callable[[Any], torch.Tensor]:
    """By transformers: a function from tokens ``[b, s]`` to logits ``[b, s, vocabulary]``."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the others do not know float64

    def logits(tokens: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(torch.as_tensor(tokens)).logits
        return found

    return logits
