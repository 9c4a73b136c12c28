"""What scripts/journey.sh starts from: raw texts, and a tiny Hugging Face model that knows nothing.

``python -m domain_pretrain.demo.journey FOLDER`` writes ``FOLDER/raw/DOMAIN.jsonl``, the demo's
texts, and ``FOLDER/model``, a Qwen3 of 0.1M parameters with random weights and a tokenizer of
bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from domain_pretrain.demo.corpora import write_texts
from domain_pretrain.huggingface.config import CONFIG, read_config
from domain_pretrain.huggingface.families import shapes
from domain_pretrain.huggingface.safetensors_file import Writer

TEXT_BYTES = 400_000  # of the largest domain
MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 288,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
END = "<|end|>"  # of a document


def write_model(folder: Path) -> None:
    """Config, random weights and tokenizer, as transformers saves them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(MODEL, indent=2) + "\n", encoding="utf-8")
    _, model, _ = read_config(folder)
    random = torch.Generator().manual_seed(1234)
    tensors = shapes(model)
    writer = Writer(folder, tensors, torch.float32)
    for name, shape in tensors.items():
        norm = len(shape) == 1
        writer.write(
            name, torch.ones(shape) if norm else 0.02 * torch.randn(shape, generator=random)
        )
    writer.close()
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    """Of bytes, and an end of documents with the id 256."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    write_texts(Path(sys.argv[1], "raw"), max_bytes=TEXT_BYTES)
    write_model(Path(sys.argv[1], "model"))
