"""The other training scripts of the checkout that MEGATRON_LM_PATH names: right, or refused."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_runs import host_environment
from support.corpora import END_OF_DOCUMENT
from support.launch import MODEL, SCRIPTS, Run, start
from support.losses import assert_evaluations_add_up, assert_sums, sums_by_domain

HOST = Path(os.environ.get("MEGATRON_LM_PATH", ""))
STEPS = 3
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"<extra_id_{i}>" for i in range(10)))
# An encoder and a decoder instead of one stack of layers.
ENCODER_DECODER = shlex.split(
    "--encoder-num-layers 2 --decoder-num-layers 2 --hidden-size 32 --num-attention-heads 4 "
    "--kv-channels 8 --ffn-hidden-size 64 --encoder-seq-length 32 --decoder-seq-length 16 "
    "--max-position-embeddings 32 --attention-dropout 0 --hidden-dropout 0 "
    "--make-vocab-size-divisible-by 150 --lr 1e-2 --min-lr 1e-3 --lr-decay-style cosine "
    "--micro-batch-size 2 --global-batch-size 8 --log-interval 1 --eval-interval 1000 "
    "--eval-iters 2"
)

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.checkout,
    pytest.mark.skipif(
        "MEGATRON_LM_PATH" not in os.environ, reason="no checkout: set MEGATRON_LM_PATH"
    ),
]


def script(path: str) -> Path:
    if not (HOST / path).is_file():
        pytest.skip(f"this Megatron-LM has no {path}")
    return HOST / path


def run(script: Path, folder: Path, *words: Any, expect: int = 0) -> Run:
    env = host_environment(HOST, folder)
    env |= {"SCRIPT": str(script), "RECORD_DIR": str(folder)}
    plugin = ["--channel-loss", "--domain-log-dir", folder, "--train-iters", str(STEPS)]
    code, output = start(1, SCRIPTS / "other_script.py", *words, *plugin, env=env)
    assert code == expect, output[-6000:]
    return Run(code, output, folder)


def assert_equals_oracle(run: Run) -> None:
    """Sums in float64 over the losses that the script's loss function was given."""
    record = np.load(run.log_dir / "rank0.npz")
    count = len(record.files) // 3 // STEPS
    for step, entry in enumerate(run.metrics()):
        microbatches = range(count * step, count * (step + 1))
        keys = ("losses", "mask", "tokens")
        parts = [[record[f"{key}{i}"] for key in keys] for i in microbatches]
        assert_sums(entry, sums_by_domain(row for part in parts for row in zip(*part, strict=True)))
    assert len(run.metrics()) == STEPS
    assert_evaluations_add_up(run)


def test_hybrid(blend: list[str], tmp_path: Path) -> None:
    """The script of hybrid models and Mamba's: attention and MLP layers, which run on CPUs."""
    layers = ["--hybrid-layer-pattern", "*-*-", "--spec", "hybrid_spec", "stack"]
    words = [*MODEL, *blend, *layers, "--position-embedding-type", "rope"]
    assert_equals_oracle(run(script("pretrain_hybrid.py"), tmp_path, *words))


def test_t5(blend: list[str], tmp_path: Path) -> None:
    """The domain is that of the decoder's labels, which are parts of the text."""
    pytest.importorskip("transformers")
    words = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer(tmp_path)]
    words += ["--tokenizer-special-tokens", *SPECIAL[5:]]
    # Before 0.18, where it was elsewhere, its tokenizers had no sentinels.
    found = script("examples/t5/pretrain_t5.py")
    assert_equals_oracle(run(found, tmp_path, *ENCODER_DECODER, *blend, *words))


def tokenizer(folder: Path) -> str:
    """Ids of the corpora, and after them what a masked language model needs."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = [*(f"w{i}" for i in range(END_OF_DOCUMENT + 1)), *SPECIAL]
    model = WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(names, SPECIAL, strict=False))
    found = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)
    found.save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


def test_vision_language_model(corpora: Path, tmp_path: Path) -> None:
    """Its data are mock images and text, whatever the data flags say."""
    found = script("pretrain_vlm.py")
    given = ["--data-path", corpora / "finance"]
    refused = run(found, tmp_path, *MODEL, *given, expect=2)
    assert "domain_pretrain: error: a vision language model" in refused.output
    assert "Traceback" not in refused.output
