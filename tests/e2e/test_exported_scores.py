"""Two hundred texts: real Megatron says of them what the exported weights say in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.huggingface import load_model, model_flags, write_model
from support.launch import train
from support.probes import config, parts
from support.texts import losses, write_texts

from domain_pretrain.commands.main import main
from domain_pretrain.huggingface.importing import import_model
from domain_pretrain.records.reader import read_evaluations

pytestmark = pytest.mark.megatron
pytest.importorskip("transformers")
pytest.importorskip("safetensors")

CONTEXT = 64
# By name of the model: processes and layout.
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "qwen3": (1, []),
    "qwen3_moe": (2, ["--expert-model-parallel-size", "2"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_log_probabilities_of_200_texts(name: str, tmp_path: Path, blend: list[str]) -> None:
    """English, Chinese and code, of one token to more than the context; after two steps."""
    base, run, out = (tmp_path / folder for folder in ("base", "run", "out"))
    write_model(tmp_path / "model", name)
    import_model(tmp_path / "model", base)
    texts = write_texts(tmp_path)
    nproc, layout = LAYOUTS[name]
    train(
        run,
        *blend,
        *model_flags(base),
        *("--seq-length", str(CONTEXT), "--eval-interval", "2", "--eval-iters", "1"),
        *layout,
        *("--save", run / "checkpoints", "--save-interval", "2", "--ckpt-format", "torch_dist"),
        *("--pretrained-checkpoint", base),
        *config(tmp_path / "domains.yaml", {"perplexity": {"texts": texts}}),
        nproc=nproc,
        iterations=2,
    )
    assert main(["export", str(run), str(out)]) == 0
    first, last = (
        {name: loss for domain in texts for name, loss in parts(one, ("loss", domain)).items()}
        for one in read_evaluations(run)
    )
    expected = losses(texts, load_model(out, torch.float64), CONTEXT)
    assert len(last) == 200
    # Sums of up to 75 losses of 6 nats in float32; 4e-6 was seen.
    assert last == pytest.approx(expected, rel=0, abs=1e-4)
    assert first != pytest.approx(last, rel=0, abs=1)  # those of another model
