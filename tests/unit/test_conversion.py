"""Hugging Face → Megatron's format → Hugging Face, and what is wrong is told before any work."""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import shutil
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.flags import FLAG, arguments_of
from support.huggingface import (
    LLAMA3,
    MODELS,
    SIZES,
    logits_of,
    model_flags,
    write_model,
    write_tokenizer,
)

from domain_pretrain.checkpoints.arguments import read_saved
from domain_pretrain.checkpoints.tracker import TRACKER
from domain_pretrain.commands.main import main
from domain_pretrain.data.vocabulary import padded
from domain_pretrain.errors import ConfigError
from domain_pretrain.hosts.base_model import check_model
from domain_pretrain.huggingface import exporting, safetensors_file
from domain_pretrain.huggingface.base import read_base
from domain_pretrain.huggingface.check import check_run
from domain_pretrain.huggingface.config import read_config, write_config
from domain_pretrain.huggingface.exporting import export_model
from domain_pretrain.huggingface.families import Row, rows, shapes
from domain_pretrain.huggingface.flags import _FIXED, flags_of, model_of, vocabulary_flag
from domain_pretrain.huggingface.found import find_checkpoint
from domain_pretrain.huggingface.importing import import_model, write_outline
from domain_pretrain.huggingface.safetensors_file import weight_files
from domain_pretrain.launch.base_model import Import
from domain_pretrain.records.evaluated import EVALUATIONS_FILE, Evaluated
from domain_pretrain.records.reader import METRICS_FILE
from domain_pretrain.records.score import Part, Score

pytest.importorskip("transformers")
load_file = pytest.importorskip("safetensors.torch").load_file


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Hugging Face models, by the names of MODELS, in bf16 as they are published."""
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        write_model(folder / name, name, torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def imported(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them imported, by the same names."""
    folder = tmp_path_factory.mktemp("imported")
    for name in MODELS:
        assert import_model(models / name, folder / name)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def equal(a: Path, b: Path) -> bool:
    old, new = weights(a), weights(b)
    assert old.keys() == new.keys()
    return all(old[k].dtype == new[k].dtype and torch.equal(old[k], new[k]) for k in old)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name: str, models: Path, imported: Path, tmp_path: Path) -> None:
    export_model(find_checkpoint(imported / name), tmp_path / "back")
    assert equal(models / name, tmp_path / "back")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "back" / file).read_text()) == json.loads(
            (models / name / file).read_text()
        )


def write_scores(run: Path) -> None:
    """A run with one score; also one of a part whose name has a separator of lines, which JSON
    leaves as it is, and one that no version has written."""
    whole = Score.of("loss", "general", [Part("a\u2028b", 2.5, 1)], higher_is_better=False)
    assert whole is not None
    entry = Evaluated(0, 0, (whole,)).dump()
    foreign = {**entry, "scores": [{**entry["scores"][0], "name": "other", "count": 0}]}
    lines = [json.dumps(one, ensure_ascii=False) for one in (entry, foreign)]
    (run / EVALUATIONS_FILE).write_text("\n".join(lines), encoding="utf-8")
    (run / METRICS_FILE).write_text(
        '{"iteration": 1, "split": "train", "domains": {}}\n', encoding="utf-8"
    )


@pytest.mark.parametrize("told", ["beside", "by its arguments"])
def test_the_card_has_the_scores_that_can_be_read(
    told: str, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run whose log is above the checkpoint, or where the run itself says it is."""
    write_scores(tmp_path)
    found = find_checkpoint(imported / next(iter(MODELS)))
    if told == "beside":
        found = replace(found, run=tmp_path)
    else:
        saved = read_saved(found.folder)
        saved = replace(saved, args={**saved.args, "domain_log_dir": str(tmp_path)})
        monkeypatch.setattr(exporting, "read_saved", lambda folder: saved)
    export_model(found, tmp_path / "back")
    card = (tmp_path / "back" / "README.md").read_text(encoding="utf-8")
    assert "| loss | general | 2.5000 |" in card
    assert "other" not in card


@pytest.mark.parametrize("name", MODELS)
def test_without_its_base(name: str, models: Path, imported: Path, tmp_path: Path) -> None:
    """The arguments in the checkpoint say enough for another config of the same model."""
    shutil.copytree(imported / name / "release", tmp_path / "iter_0000000")
    done = export_model(find_checkpoint(tmp_path / "iter_0000000"), tmp_path / "back")
    assert (done.base, done.tokenizer) == (None, None)
    assert equal(models / name, tmp_path / "back")
    assert "\nTrained with Megatron-LM;" in (tmp_path / "back/README.md").read_text()
    assert read_config(tmp_path / "back")[:2] == read_config(models / name)[:2]
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(tmp_path / "back").num_hidden_layers == 2


def test_groups_are_interleaved() -> None:
    """Query heads of a group, its key, its value: by hand, with one row a head."""
    row = Row(("qkv",), (("q", (4, 1)), ("k", (2, 1)), ("v", (2, 1))), groups=2)
    q, k, v = (torch.tensor(rows)[:, None] for rows in ([1, 2, 3, 4], [10, 20], [100, 200]))
    packed = row.pack([q, k, v])
    assert packed.flatten().tolist() == [1, 2, 10, 100, 3, 4, 20, 200]
    assert packed.shape == row.shape
    assert [part.flatten().tolist() for part in row.unpack(packed)] == [
        [1, 2, 3, 4],
        [10, 20],
        [100, 200],
    ]


def test_in_shards(models: Path, imported: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Several files, out and in; no tensor is kept longer than it takes to write it."""
    monkeypatch.setattr(safetensors_file, "SHARD_BYTES", 20_000)
    export_model(find_checkpoint(imported / "qwen3_moe"), tmp_path / "shards")
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert equal(models / "qwen3_moe", tmp_path / "shards")
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "shards").state_dict()
    assert set(again) and not any(tensor.is_meta for tensor in again.values())
    assert import_model(tmp_path / "shards", tmp_path / "again")
    export_model(find_checkpoint(tmp_path / "again"), tmp_path / "back")
    assert equal(models / "qwen3_moe", tmp_path / "back")


def test_the_files_that_transformers_reads(models: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Of a folder that holds a model in shards, one in one file, and what others call it."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(safetensors_file, "SHARD_BYTES", 20_000)
    import_model(models / "llama", tmp_path / "base")
    export_model(find_checkpoint(tmp_path / "base"), tmp_path / "model")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 2
    shutil.copy(models / "qwen3/model.safetensors", tmp_path / "model/consolidated.safetensors")
    assert weight_files(tmp_path / "model") == shards
    whole = tmp_path / "model" / "model.safetensors"
    shutil.copy(models / "llama" / "model.safetensors", whole)
    without(whole.parent, **{"model.norm.weight": torch.full((32,), 3.0)})
    read = AutoModelForCausalLM.from_pretrained(whole.parent).model.norm.weight
    assert torch.equal(read, torch.full((32,), 3.0))
    assert weight_files(whole.parent) == [whole]
    shards[0].unlink()  # transformers removes them, and leaves the index
    import_model(whole.parent, tmp_path / "again")
    export_model(find_checkpoint(tmp_path / "again"), tmp_path / "back")
    assert torch.equal(weights(tmp_path / "back")["model.norm.weight"].float(), read)
    assert Import(whole.parent, tmp_path, needed=True).bytes() == whole.stat().st_size


def test_pytorch_reads_what_was_written(models: Path, imported: Path) -> None:
    """By its own reader: layers stacked, where all are alike, else each by itself."""
    import torch.distributed.checkpoint as dcp

    def read(name: str, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = torch.zeros(shape, dtype=torch.bfloat16)
        dcp.load({key: tensor}, checkpoint_id=imported / name / "release", no_dist=True)
        return tensor

    stacked = read("llama", "decoder.layers.self_attention.linear_proj.weight", (2, 32, 32))
    expected = weights(models / "llama")
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.o_proj.weight"
        assert torch.equal(stacked[layer], expected[name])
    own = read("qwen3_mixed", "decoder.layers.1.mlp.experts.experts.linear_fc2.weight", (4, 32, 24))
    for each in range(4):
        name = f"model.layers.1.mlp.experts.{each}.down_proj.weight"
        assert torch.equal(own[each], weights(models / "qwen3_mixed")[name])


@pytest.mark.parametrize("name", MODELS)
def test_flags_make_the_model(name: str, models: Path, imported: Path) -> None:
    """``model.env`` is bash; the arguments that are saved with the weights are the model again."""
    family, model, _ = read_config(models / name)
    script = '. "$0"; printf "%s\\n" "${MODEL_FLAGS[@]}"'
    command = ["bash", "-c", script, str(imported / name / "model.env")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    for each in flags_of(model):
        at = words.index(each[0])
        assert words[at : at + len(each)] == each
    tokenizer = words[words.index("--tokenizer-model") + 1]
    assert Path(tokenizer) == imported / name / "huggingface"
    assert words[words.index("--make-vocab-size-divisible-by") + 1] == str(SIZES["vocab_size"])
    saved = read_saved(imported / name / "release")
    assert model_of(saved.args, model.vocab) == model
    assert len(shapes(model)) == sum(len(row.parts) for row, _, _ in rows(model))
    assert family.kind in name or name == "qwen3_mixed"


def test_model_env_names_its_folder_from_anywhere(imported: Path) -> None:
    """Also where ``cd`` looks elsewhere, too, and prints where it goes."""
    done = subprocess.run(
        ["bash", "-c", 'CDPATH=.:/; TP=1; . llama/model.env; printf "%s" "$TOKENIZER"'],
        capture_output=True,
        text=True,
        check=True,
        cwd=imported,
    )
    assert Path(done.stdout) == imported / "llama" / "huggingface"


# What is wrong with a folder of Hugging Face.


def rewrite(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content.update(keys)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def cut_off(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5000)


def without(folder: Path, *names: str, **more: torch.Tensor) -> None:
    from safetensors.torch import save_file

    tensors = load_file(folder / "model.safetensors")
    save_file(
        {**{k: v for k, v in tensors.items() if k not in names}, **more},
        folder / "model.safetensors",
    )


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "another architecture": (
        "llama",
        lambda f: rewrite(f, architectures=["GPT2LMHeadModel"]),
        "architecture GPT2LMHeadModel is not known; known are Llama.*AutoBridge",
    ),
    "no config": ("llama", lambda f: (f / "config.json").unlink(), r"holds no config\.json"),
    "a torn config": (
        "llama",
        lambda f: (f / "config.json").write_text("{"),
        "is not JSON",
    ),
    "a key is missing": (
        "llama",
        lambda f: rewrite(f, rms_norm_eps=...),
        "rms_norm_eps: .*required",
    ),
    "a key of another type": ("llama", lambda f: rewrite(f, hidden_size="x"), "hidden_size: "),
    "yarn": (
        "qwen2",
        lambda f: rewrite(f, rope_parameters=..., rope_scaling={"type": "yarn", "factor": 4.0}),
        "the rope scaling 'yarn' is not what Megatron has",
    ),
    "another llama3": (
        "llama",
        lambda f: rewrite(
            f,
            rope_parameters=...,
            rope_theta=5e5,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 8.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        "high_freq_factor': 8.0",
    ),
    "half a base": (
        "qwen3",
        lambda f: rewrite(f, rope_parameters={"rope_theta": 10000.5}),
        r"rope_theta 10000\.5 is no whole number",
    ),
    "biases": (
        "llama",
        lambda f: rewrite(f, attention_bias=True),
        "attention_bias asks for",
    ),
    "more experts for a token than there are": (
        "qwen3_moe",
        lambda f: rewrite(f, num_experts_per_tok=9),
        "num_experts_per_tok is 9, of [1-8] experts",
    ),
    "quantized": (
        "llama",
        lambda f: rewrite(f, quantization_config={"quant_method": "fp8"}),
        "quantization_config says",
    ),
    "another activation": (
        "llama",
        lambda f: rewrite(f, hidden_act="gelu"),
        "_act is 'gelu'",
    ),
    "a window in some layers": (
        "qwen2",
        lambda f: rewrite(
            f,
            sliding_window=8,
            use_sliding_window=True,
            layer_types=["full_attention", "sliding_attention"],
        ),
        "sliding_window in some layers only",
    ),
    "half of the layers have a window": (
        "qwen3",
        lambda f: rewrite(
            f, sliding_window=8, use_sliding_window=True, max_window_layers=1, layer_types=...
        ),
        "sliding_window in some layers only",
    ),
    "a window of nothing": (
        "mistral",
        lambda f: rewrite(f, sliding_window=0),
        r"config\.json: sliding_window is 0; a token needs itself",
    ),
    "llama3 without its factor": (
        "llama",
        lambda f: rewrite(
            f,
            rope_parameters=...,
            rope_scaling={key: value for key, value in LLAMA3.items() if key != "factor"},
        ),
        r"config\.json: the rope scaling 'llama3' lacks its factor",
    ),
    "a base in words": (
        "llama",
        lambda f: rewrite(f, rope_parameters={"rope_type": "default", "rope_theta": "big"}),
        r"config\.json: rope_theta: Input should be a valid number",
    ),
    "a base in a text": (
        "llama",
        lambda f: rewrite(f, rope_parameters=..., rope_scaling=..., rope_theta="1e6"),
        r"config\.json: rope_theta: Input should be a valid number",
    ),
    "several bases": (
        "llama",
        lambda f: rewrite(f, rope_parameters={"rope_type": "default", "rope_theta": [1]}),
        r"config\.json: rope_theta: Input should be a valid number",
    ),
    "a base without end": (
        "llama",
        lambda f: rewrite(f, rope_parameters={"rope_type": "default", "rope_theta": math.inf}),
        r"config\.json: rope_theta: Input should be a finite number",
    ),
    "a base below zero": (
        "llama",
        lambda f: rewrite(f, rope_parameters={"rope_type": "default", "rope_theta": -1.0}),
        r"config\.json: rope_theta: Input should be greater than 0",
    ),
    "no epsilon": (
        "llama",
        lambda f: rewrite(f, rms_norm_eps=math.nan),
        r"config\.json: rms_norm_eps: Input should be a finite number",
    ),
    "yes for a number": (
        "llama",
        lambda f: rewrite(f, num_key_value_heads=True),
        r"config\.json: num_key_value_heads: Input should be a valid integer",
    ),
    "no keys": (
        "llama",
        lambda f: rewrite(f, num_key_value_heads=0),
        r"config\.json: num_key_value_heads: Input should be greater than 0",
    ),
    "one expert, normalised": (
        "qwen3_moe",
        lambda f: rewrite(f, num_experts_per_tok=1),
        "norm_topk_prob with one expert",
    ),
    "a tensor too few": (
        "llama",
        lambda f: without(f, "model.layers.1.mlp.up_proj.weight"),
        "lacks the tensor model.layers.1.mlp.up_proj.weight, which a llama",
    ),
    "a tensor too many": (
        "qwen3",
        lambda f: without(f, **{"model.layers.0.self_attn.o_proj.bias": torch.zeros(32)}),
        "does not know, model.layers.0.self_attn.o_proj.bias",
    ),
    "another shape": (
        "mistral",
        lambda f: rewrite(f, head_dim=8),
        r"has the shape \[64, 32\], and by config.json it should have \[32, 32\]",
    ),
    "a broken file": ("llama", cut_off, r"model\.safetensors cannot be read"),
    "a file of another kind": ("llama", only_pickles, r"holds only pytorch_model\.bin"),
    "integers": (
        "llama",
        lambda f: without(f, **{"model.norm.weight": torch.zeros(32, dtype=torch.int8)}),
        "model.norm.weight is of type I8; .*not quantized",
    ),
    "no tokenizer": (
        "llama",
        lambda f: (f / "tokenizer.json").unlink(),
        "holds no tokenizer",
    ),
    "a tokenizer of another": (
        "llama",
        lambda f: write_tokenizer(f, tuple(f"word {n}" for n in range(50))),
        "the tokenizer has 307 tokens, and the embedding 300 rows",
    ),
}


WINDOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "of a llama": ("llama", {"sliding_window": 8}),
    "of a llama with layers": (
        "llama",
        {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2},
    ),
    "of a mistral": ("mistral", {}),
    "of a mistral with layers": ("mistral", {"layer_types": ["full_attention"] * 2}),
    "of a mistral without": ("mistral", {"sliding_window": None}),
    "of a qwen2 from layer 28": (
        "qwen2",
        {"sliding_window": 8, "use_sliding_window": True},
    ),
    "of a qwen2 from the first layer": (
        "qwen2",
        {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0},
    ),
    "of a qwen2 by its layers": (
        "qwen2",
        {
            "sliding_window": 8,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention"] * 2,
        },
    ),
    "of a qwen3 that is switched off": ("qwen3", {"sliding_window": 8, "max_window_layers": 0}),
    "of a qwen3 from the first layer": (
        "qwen3",
        {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0},
    ),
    "of a qwen3_moe": (
        "qwen3_moe",
        {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 48},
    ),
    "of a qwen3_moe that is switched off": ("qwen3_moe", {"sliding_window": 8}),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_windows_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    """Where the logits of a sequence longer than the window are others than without one."""
    name, keys = WINDOWS[case]
    write_model(tmp_path, name, initializer_range=0.3)
    none = {"sliding_window": None, "use_sliding_window": False, "layer_types": ...}
    rewrite(tmp_path, layer_types=..., max_window_layers=...)
    rewrite(tmp_path, **keys)
    tokens = torch.arange(24)[None]
    window, logits = read_config(tmp_path)[1].window, logits_of(tmp_path, tokens)
    rewrite(tmp_path, **none)
    slides = not torch.allclose(logits, logits_of(tmp_path, tokens), atol=1e-4)
    assert window == (8 if slides else None)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "qwen3_moe"])
def test_a_window_is_written_as_it_is_read(name: str, models: Path, tmp_path: Path) -> None:
    family, model, content = read_config(models / name)
    model = replace(model, window=16)
    for base in (None, (read_config(models / name)[1], content)):
        written = write_config(family, model, "bfloat16", base)
        (tmp_path / "config.json").write_text(json.dumps(written))
        assert read_config(tmp_path)[1] == model


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_folder(
    case: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, spoil, message = WRONG[case]
    source = tmp_path / "source"
    shutil.copytree(models / name, source)
    spoil(source)
    with pytest.raises(ConfigError, match=message):
        import_model(source, tmp_path / "out")
    assert main(["import", str(source), str(tmp_path / "out")]) == 2
    assert "domain-pretrain import: error: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_where_it_goes(
    models: Path, imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder to be made, or the same again; nothing that is there is written over."""
    assert main(["import", str(models / "llama"), str(imported / "llama")]) == 0
    assert "holds this model already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="holds another model already"):
        import_model(models / "qwen3", imported / "llama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="full is not empty"):
        import_model(models / "llama", tmp_path / "full")
    with pytest.raises(ConfigError, match="full is not empty"):
        export_model(find_checkpoint(imported / "llama"), tmp_path / "full")


def test_a_failed_write_leaves_nothing(models: Path, tmp_path: Path) -> None:
    def stop(layers: Any) -> Any:
        yield next(iter(layers))
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        import_model(models / "llama", tmp_path / "out", stop)
    assert not list(tmp_path.iterdir())


# What is wrong with a checkpoint.


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "is no checkpoint: it holds nothing"),
        (["a.bin"], r"is no checkpoint: it holds a\.bin"),
        ([".metadata"], "the format torch_dcp or fsdp_dtensor"),
    ],
)
def test_no_checkpoint(files: list[str], message: str, tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(ConfigError, match=message):
        find_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        find_checkpoint(tmp_path / "none")


def test_a_tracker_that_names_nothing(tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_text("12")
    with pytest.raises(ConfigError, match="says '12', which is not there"):
        find_checkpoint(tmp_path)


def test_a_checkpoint_of_another_base(models: Path, imported: Path, tmp_path: Path) -> None:
    found = find_checkpoint(imported / "qwen3")
    with pytest.raises(ConfigError, match=r"does not come from .*llama:\n  --kv-channels: .* 8, "):
        export_model(found, tmp_path / "out", models / "llama")
    with pytest.raises(ConfigError, match="is no base model"):
        export_model(found, tmp_path / "out", tmp_path)


def test_arguments_of_another_kind_of_model(imported: Path, tmp_path: Path) -> None:
    shutil.copytree(imported / "llama" / "release", tmp_path / "iter_0000001")
    path = tmp_path / "iter_0000001" / "common.pt"
    for name, value, message in (
        ("normalization", "LayerNorm", "another --normalization"),
        ("add_bias_linear", True, "no --disable-bias-linear"),
        ("layernorm_zero_centered_gamma", True, "--apply-layernorm-1p"),
        ("glu_linear_offset", 1.0, "--glu-linear-offset"),
        ("hidden_size", 64, "has the shape"),
    ):
        common = torch.load(imported / "llama" / "release" / "common.pt", weights_only=False)
        setattr(common["args"], name, value)
        torch.save(common, path)
        with pytest.raises(ConfigError, match=message):
            export_model(find_checkpoint(tmp_path / "iter_0000001"), tmp_path / "out")


class Touch:
    """A pickle that would make a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_is_run(imported: Path, tmp_path: Path) -> None:
    shutil.copytree(imported / "llama" / "release", tmp_path / "iter_0000001")
    folder, proof = tmp_path / "iter_0000001", tmp_path / "proof"
    common = torch.load(folder / "common.pt", weights_only=False)
    torch.save({**common, "more": Touch(proof)}, folder / "common.pt")
    export_model(find_checkpoint(folder), tmp_path / "out")
    (folder / ".metadata").write_bytes(pickle.dumps(Touch(proof)))
    with pytest.raises(ConfigError, match="which no checkpoint needs"):
        export_model(find_checkpoint(folder), tmp_path / "other")
    assert not proof.exists()


# What is wrong with a run that starts from one.


def args_of(imported: Path, name: str, **other: Any) -> dict[str, Any]:
    """A run's arguments that fit the base, and what is another in them."""
    saved = read_saved(imported / name / "release").args
    tokenizer = str(imported / name / "huggingface")
    return {**saved, "seq_length": 8, "tokenizer_model": tokenizer, **other}


@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_fits(name: str, imported: Path) -> None:
    assert check_run(args_of(imported, name), read_base(imported / name), 300) == []


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("llama", {"norm_epsilon": 1e-5}, "--norm-epsilon: the base has 1e-06, the run 1e-05"),
        ("qwen2", {"add_qkv_bias": False}, "--add-qkv-bias: the base has True, the run False"),
        ("qwen3", {"qk_layernorm": False}, "--qk-layernorm"),
        ("qwen2", {"untie_embeddings_and_output_weights": True}, "--untie-embeddings"),
        ("llama", {"rotary_base": 10000}, "--rotary-base: the base has 500000, the run 10000"),
        ("llama", {"use_rope_scaling": False}, "--use-rope-scaling: by 8.0 in the base"),
        ("llama", {"swiglu": False}, "no --swiglu"),
        ("llama", {"position_embedding_type": "learned_absolute"}, "embedding-type rope is miss"),
        ("qwen3_moe", {"moe_router_pre_softmax": True}, "--moe-router-pre-softmax"),
        ("qwen3_moe", {"moe_layer_freq": [1, 1]}, "--moe-layer-freq: all layers .* alike"),
        ("qwen3_mixed", {"moe_layer_freq": [1, 0]}, r"--moe-layer-freq: the base has \[0, 1\]"),
        ("mistral", {"seq_length": 9, "window_size": None}, "give --window-size 7,0 or a --seq"),
        ("llama", {"window_size": (3, 0)}, "the base has none, the run attends to 4"),
        ("qwen2", {"rotary_seq_len_interpolation_factor": 4}, "--rotary-seq-len-interpolation-f"),
        ("qwen2", {"no_rope_freq": 2}, r"--no-rope-freq \(no_rope_freq: 2\), which no family"),
        ("mistral", {"window_attn_skip_freq": 2}, "--window-attn-skip-freq"),
        ("llama", {"softmax_type": "off-by-one"}, "another --softmax-type"),
        ("qwen3", {"qk_l2_norm": True}, "--qk-l2-norm"),
        ("llama", {"glu_linear_offset": 1.0}, "--glu-linear-offset"),
        ("llama", {"activation_func_clamp_value": 7.0}, "--activation-func-clamp-value"),
        ("llama", {"use_mup": True}, "--use-mup"),
        ("qwen3", {"attention_output_gate": True}, "--attention-output-gate"),
        ("llama", {"apply_residual_connection_post_layernorm": True}, "--apply-residual-connect"),
        ("llama", {"apply_layernorm_1p": True}, "--apply-layernorm-1p"),
        ("llama", {"layernorm_zero_centered_gamma": True}, "--apply-layernorm-1p"),
        ("qwen3_moe", {"moe_router_topk_scaling_factor": 2.5}, "--moe-router-topk-scaling-factor"),
        ("qwen3_moe", {"moe_router_enable_expert_bias": True}, "--moe-router-enable-expert-bias"),
        ("qwen3_moe", {"moe_router_group_topk": 1}, "--moe-router-group-topk"),
        ("qwen3_moe", {"moe_apply_probs_on_input": True}, "--moe-apply-probs-on-input"),
    ],
)
def test_a_run_that_does_not_fit(
    name: str, other: dict[str, Any], message: str, imported: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(args_of(imported, name, **other), read_base(imported / name), 300)


def test_factors_that_change_nothing(imported: Path) -> None:
    factors = {"rotary_seq_len_interpolation_factor": 1, "moe_router_topk_scaling_factor": 1.0}
    args = args_of(imported, "qwen3_moe", **factors, no_rope_freq=None, glu_linear_offset=0.0)
    assert check_run(args, read_base(imported / "qwen3_moe"), 300) == []


@pytest.mark.megatron
def test_what_is_fixed_is_an_argument_of_the_host() -> None:
    """By the parser of the Megatron that is installed; a name that it lacks guards nothing."""
    pytest.importorskip("megatron.training.arguments")
    _, arguments = arguments_of()
    older = {"apply_layernorm_1p"}  # up to 0.15, whose parser has it by this name
    assert _FIXED.keys() - arguments.values() == older
    told = {flag for _, text in _FIXED.values() for flag in FLAG.findall(text)}
    assert told <= arguments.keys()


def test_stretched_on_purpose(imported: Path) -> None:
    base = read_base(imported / "qwen3")
    (told,) = check_run(args_of(imported, "qwen3", rotary_base=10**6), base, 300)
    assert told == "--rotary-base: the base has 10000, the run 1000000"


def test_rows_of_the_vocabulary(imported: Path) -> None:
    base, args = read_base(imported / "llama"), args_of(imported, "llama")
    with pytest.raises(ConfigError, match=r"to 256 rows, and the base has 300: --make-vocab.* 300"):
        check_run(args, base, 256)
    (told,) = check_run({**args, "tensor_model_parallel_size": 2}, base, 384)
    assert "padded to 384 rows" in told and told.endswith("(--make-vocab-size-divisible-by 150)")


@pytest.fixture(scope="module")
def odd(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """An import whose config says so many rows; of its outline, as no weight is looked at."""

    def of(rows: int) -> Path:
        folder = tmp_path_factory.mktemp(f"rows{rows}")
        shutil.copytree(models / "llama", folder / "model")
        rewrite(folder / "model", vocab_size=rows)
        write_outline(folder / "model", folder / "base")
        return folder / "base"

    return of


@pytest.mark.megatron
@pytest.mark.parametrize("size", [257, 300, 301, 303])
def test_the_host_pads_to_the_fewest_rows(size: int, odd: Callable[[int], Path]) -> None:
    """By its own function, for a tokenizer with a token for each row, and with fewer."""
    host = pytest.importorskip("megatron.core.tokenizers.utils.build_tokenizer")
    base = odd(size)
    for tp in (1, 2, 3, 4, 8):
        flag, divisor = vocabulary_flag(read_base(base).model, tp)
        flags = model_flags(base, tp)
        assert flags[flags.index(flag) + 1] == divisor
        args = argparse.Namespace(make_vocab_size_divisible_by=int(divisor), rank=1)
        args.tensor_model_parallel_size = tp
        for tokens in (size, size - 1, size - 40):
            rows = host.vocab_size_with_padding(tokens, args)
            assert rows % tp == 0 and size <= rows < size + tp
            assert rows == padded(tokens, args)


def test_rows_that_are_not_divisible(odd: Callable[[int], Path], imported: Path) -> None:
    base = read_base(odd(301))
    args = args_of(imported, "llama", tensor_model_parallel_size=2, tokenizer_model=None)
    (told,) = check_run(args, base, 302)
    assert told.endswith("others are new, and part of the softmax (TP 2 divides no fewer)")
    (told,) = check_run(args, base, 384)
    assert told.endswith(
        "(--make-vocab-size-divisible-by 151 makes it 302, the fewest that TP 2 divides)"
    )
    with pytest.raises(ConfigError, match=r"300 rows, and the base has 301: .* 151 makes it 302"):
        check_run(args, base, 300)


def test_another_tokenizer(imported: Path, tmp_path: Path) -> None:
    base = read_base(imported / "llama")
    args = args_of(imported, "llama", tokenizer_model=str(tmp_path))
    write_tokenizer(tmp_path, ("price",))  # in a row that was free
    assert check_run(args, base, 300) == []
    write_tokenizer(tmp_path, tuple(f"word {n}" for n in range(50)))
    with pytest.raises(ConfigError, match="it has ids up to 306, and the base 300 rows"):
        check_run(args, base, 300)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {"<0x00>": 1, "<0x01>": 0}
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"2 tokens have other ids .*'<0x00>' is 1, not 0"):
        check_run(args, base, 300)


# The format torch: a file for each rank.


def write_ranks(source: Path, imported: Path, out: Path, tp: int, pp: int, ep: int) -> None:
    """A checkpoint of the format ``torch`` as Megatron's local layers name and cut it."""
    model = read_config(source)[1]
    assert model.experts is not None
    tensors = weights(source)
    args = read_saved(imported / "release").args
    sizes = {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp}
    sizes["expert_tensor_parallel_size"] = tp
    per_stage, per_rank = model.layers // pp, model.experts.count // ep

    def cut(name: str, dim: int, rank: int) -> torch.Tensor:
        return tensors[name].chunk(tp, dim)[rank].clone()

    def glu(prefix: str, rank: int) -> dict[str, torch.Tensor]:
        halves = [cut(f"{prefix}{half}_proj.weight", 0, rank) for half in ("gate", "up")]
        return {"linear_fc1.weight": torch.cat(halves)} | {
            "linear_fc2.weight": cut(f"{prefix}down_proj.weight", 1, rank)
        }

    for t in range(tp):
        for p in range(pp):
            for e in range(ep):
                state: dict[str, Any] = {}
                if p == 0:
                    padded = torch.cat([tensors["model.embed_tokens.weight"], torch.zeros(20, 32)])
                    state["embedding.word_embeddings.weight"] = padded.bfloat16().chunk(tp)[t]
                if p == pp - 1:
                    state["decoder.final_layernorm.weight"] = tensors["model.norm.weight"]
                    padded = torch.cat([tensors["lm_head.weight"], torch.zeros(20, 32)])
                    state["output_layer.weight"] = padded.bfloat16().chunk(tp)[t]
                for local in range(per_stage):
                    here = f"model.layers.{p * per_stage + local}."
                    own = {
                        "input_layernorm.weight": tensors[f"{here}input_layernorm.weight"],
                        "pre_mlp_layernorm.weight": tensors[
                            f"{here}post_attention_layernorm.weight"
                        ],
                        "self_attention.linear_proj.weight": cut(
                            f"{here}self_attn.o_proj.weight", 1, t
                        ),
                        "self_attention.linear_qkv._extra_state": None,
                        "mlp.router.weight": tensors[f"{here}mlp.gate.weight"],
                    }
                    for n in "qk":
                        name = f"self_attention.{n}_layernorm.weight"
                        own[name] = tensors[f"{here}self_attn.{n}_norm.weight"]
                    group = [
                        tensors[f"{here}self_attn.{n}_proj.weight"].chunk(model.groups)
                        for n in "qkv"
                    ]
                    whole = torch.cat([part for each in zip(*group, strict=True) for part in each])
                    own["self_attention.linear_qkv.weight"] = whole.chunk(tp)[t].clone()
                    for number in range(per_rank):
                        parts = glu(f"{here}mlp.experts.{e * per_rank + number}.", t)
                        own |= {
                            f"mlp.experts.local_experts.{number}.{k}": v for k, v in parts.items()
                        }
                    state |= {f"decoder.layers.{local}.{k}": v for k, v in own.items()}
                folder = out / f"mp_rank_{t:02d}_{p:03d}_{e:03d}"
                folder.mkdir(parents=True)
                saved = {"args": argparse.Namespace(**{**args, **sizes}), "iteration": 7}
                saved |= {"model": OrderedDict(state), "rng_state": [Path("x")]}
                torch.save(saved, folder / "model_optim_rng.pt")


def test_a_file_for_each_rank(models: Path, imported: Path, tmp_path: Path) -> None:
    """TP 2 × PP 2 × EP 2, and 20 rows of padding."""
    source, folder = models / "qwen3_moe", tmp_path / "iter_0000007"
    write_ranks(source, imported / "qwen3_moe", folder, 2, 2, 2)
    done = export_model(find_checkpoint(folder), tmp_path / "out", imported / "qwen3_moe")
    assert done.iteration == 7
    assert equal(source, tmp_path / "out")
    (folder / "mp_rank_01_001_001" / "model_optim_rng.pt").unlink()
    with pytest.raises(ConfigError, match=r"has the shape|holds no"):
        export_model(find_checkpoint(folder), tmp_path / "other", imported / "qwen3_moe")
    for first in folder.glob("mp_rank_*_000_*"):
        shutil.rmtree(first)
    with pytest.raises(ConfigError, match=r"holds no embedding\.word_embeddings\.weight"):
        export_model(find_checkpoint(folder), tmp_path / "other", imported / "qwen3_moe")


def test_the_host_hands_on_its_arguments(imported: Path, tmp_path: Path) -> None:
    base = imported / "llama"
    args = argparse.Namespace(
        **args_of(imported, "llama", pretrained_checkpoint=str(base), load=str(tmp_path)),
        tokenizer_type="HuggingFaceTokenizer",
        make_vocab_size_divisible_by=300,
    )
    check_model(args)
    args.ckpt_format = "torch"
    with pytest.raises(ConfigError, match="only with --ckpt-format torch_dist"):
        check_model(args)
    (tmp_path / TRACKER).write_text("4")  # it resumes from a checkpoint of its own
    check_model(args)
    args.norm_epsilon = 1e-5
    with pytest.raises(ConfigError, match="--norm-epsilon: the base has 1e-06, the run 1e-05"):
        check_model(args)
    args.pretrained_checkpoint = None
    check_model(args)
