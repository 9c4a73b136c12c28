"""``domain-pretrain eval``: which models, by which commands; what is refused before any work."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from support.checkpoints import write_checkpoint

from domain_pretrain.adapt.lora import Lora
from domain_pretrain.checkpoints.tracker import RELEASE
from domain_pretrain.commands import eval as command
from domain_pretrain.commands.main import main
from domain_pretrain.demo.launch import PhaseFailed
from domain_pretrain.launch.models import find_models
from domain_pretrain.launch.saved_flags import data_flags, layout_flags, model_flags
from domain_pretrain.records.evaluated import EVALUATIONS_FILE, Evaluated
from domain_pretrain.records.score import Part, Score

ARGS = {
    "num_layers": 2,
    "hidden_size": 32,
    "seq_length": 64,
    "micro_batch_size": 2,
    "tokenizer_type": "HuggingFaceTokenizer",
    "tokenizer_model": "tokenizer",
    "make_vocab_size_divisible_by": 128,
}
PROBES = """
evaluate:
  probes: {completion: {items: {finance: [{prompt: "Prices", completion: " rise"}]}}}
  samples: 8
domains: {finance: {data: [nowhere/finance]}}
mix: {skip: []}
"""


def save(folder: Path, name: str, **changes: Any) -> Path:
    return write_checkpoint(folder, name, **{**ARGS, **changes})


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, a run with two checkpoints, and a config; the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # --dry-run leaves its folder
    save(tmp_path / "base", RELEASE, qk_layernorm=True, seq_length=None)
    for name in ("iter_0000010", "iter_0000020"):
        save(tmp_path / "run" / "checkpoints", name, qk_layernorm=True)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "probes.yaml").write_text(PROBES, encoding="utf-8")
    return tmp_path


def dry(capsys: Any, *words: str) -> list[list[str]]:
    """The commands that would be run, from ``domain_pretrain`` on."""
    assert main(["eval", "--dry-run", *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    commands = [shlex.split(line[2:]) for line in lines]
    for words_of in commands:
        assert words_of[0] == sys.executable
    return [one[one.index("domain_pretrain") + 1 :] for one in commands]


def value(command: list[str], flag: str) -> str:
    assert command.count(flag) == 1, flag
    return command[command.index(flag) + 1]


def test_the_command_of_each_model(work: Path, capsys: Any) -> None:
    base, final = dry(capsys, "base", "run", "--config", "probes.yaml", "--out", "out")
    assert base == shlex.split(
        "--skip-train --load base --no-load-optim --no-load-rng --use-checkpoint-args "
        "--no-use-tokenizer-model-from-checkpoint-args --qk-layernorm "
        "--tokenizer-type HuggingFaceTokenizer --tokenizer-model tokenizer "
        "--make-vocab-size-divisible-by 128 --seq-length 64 --micro-batch-size 2 "
        "--mock-data --split 0,1,0 --train-iters 1 --eval-iters 1 --eval-interval 1000000000 "
        "--lr 1e-5 "
        "--domain-config out/evaluate.yaml --domain-log-dir out/01-release"
    )
    assert value(final, "--load") == "run/checkpoints"
    assert value(final, "--ckpt-step") == "20"
    assert value(final, "--domain-log-dir") == "out/02-iter_0000020"
    # The same for both: probes alone, and one context.
    config = (work / "out" / "evaluate.yaml").read_text("utf-8")
    assert "completion" in config and "nowhere" not in config and "mix" not in config
    assert value(base, "--seq-length") == value(final, "--seq-length")


def test_adapters_are_part_of_the_model_that_was_trained_with_them(work: Path, capsys: Any) -> None:
    adapters = Lora(rank=4, targets=("linear_qkv",)).saved()
    save(work / "lora", "iter_0000030", domain_lora=adapters)
    of_base, of_lora = (
        yaml.safe_load((work / value(command, "--domain-config")).read_text())
        for command in dry(capsys, "base", "lora", "--config", "probes.yaml", "--out", "out")
    )
    assert of_base.keys() == {"evaluate"}
    assert of_lora == {**of_base, "adapt": {"lora": adapters}}


@pytest.mark.parametrize(
    ("places", "labels"),
    [
        ("base run", ["base", "run @ 20"]),
        ("run", ["run @ 20"]),
        ("base/release run/checkpoints/iter_0000010", ["base", "run @ 10"]),
        ("run/checkpoints/iter_0000010 run/checkpoints", ["run @ 10", "run @ 20"]),
        ("run deep/run", ["run @ 20", "deep/run @ 5"]),
    ],
)
def test_labels_are_short_and_tell_models_apart(places: str, labels: list[str], work: Path) -> None:
    save(work / "deep" / "run", "iter_0000005")
    found = find_models([Path(place) for place in places.split()], lambda place: place, every=False)
    assert [one.label for one in found] == labels


def test_all_models_get_the_shortest_context(work: Path, capsys: Any) -> None:
    save(work / "long", "iter_0000005", seq_length=128, micro_batch_size=1)
    commands = dry(capsys, "long", "run", "--config", "probes.yaml")
    assert [value(one, "--seq-length") for one in commands] == ["64", "64"]
    assert [value(one, "--micro-batch-size") for one in commands] == ["1", "1"]


@pytest.mark.parametrize(("most", "context"), [(128, "128"), (1_000_000, "4096")])
def test_imported_models_get_what_they_can_take(
    most: int, context: str, work: Path, capsys: Any
) -> None:
    """None of them was trained; up to what one would ask for."""
    for name, length in (("one", most), ("two", 2 * most)):
        shutil.copytree(work / "base", work / name)
        shutil.rmtree(work / name / RELEASE)
        save(work / name, RELEASE, seq_length=None, max_position_embeddings=length)
    for each in dry(capsys, "one", "two", "--config", "probes.yaml"):
        assert value(each, "--seq-length") == context


def test_the_users_words_win_and_go_to_all(work: Path, capsys: Any) -> None:
    words = "--config probes.yaml -- --seq-length 32 --micro-batch-size=8 --mock-data --bf16"
    for one in dry(capsys, "base", "run", *words.split()):
        assert one[-5:] == words.split()[3:]
        assert one.count("--seq-length") == 1 and "--micro-batch-size" not in one
        assert one.count("--mock-data") == 1 and "--split" not in one


def test_places(work: Path, capsys: Any) -> None:
    """Every checkpoint, one of them, several processes, a script."""
    every = dry(capsys, "base", "run", "--every-checkpoint", "--config", "probes.yaml")
    assert [one[one.index("--ckpt-step") + 1] for one in every[1:]] == ["10", "20"]
    assert "--ckpt-step" not in every[0]
    one = "run/checkpoints/iter_0000010"
    (only,) = dry(capsys, one, "--every-checkpoint", "--config", "probes.yaml")
    assert value(only, "--ckpt-step") == "10"
    (work / "train.py").touch()
    words = ["--config", "probes.yaml", "--dry-run", "--nproc", "2", "--script", "train.py"]
    assert main(["eval", one, *words]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert "--nproc-per-node=2" in words
    assert words[words.index("domain_pretrain") + 1 :][:2] == ["train.py", "--skip-train"]


def test_a_hugging_face_model_is_imported_first(
    work: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "hub").mkdir()
    (work / "hub" / "config.json").write_text("{}")
    (work / "hub" / "model.safetensors").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "cache"))

    def import_model(place: Path, made: Path, known: Any) -> bool:
        assert place == Path("hub") and made.parent == work / "cache/domain_pretrain/models"
        save(made, RELEASE, seq_length=None, tokenizer_type=None, tokenizer_model=None)
        (made / "huggingface").mkdir()
        (made / "huggingface" / "config.json").write_text("{}")
        (made / "base.json").write_text("{}")
        return True

    monkeypatch.setattr(command, "import_model", import_model)
    base, _ = dry(capsys, "hub", "run", "--config", "probes.yaml")
    made = Path(value(base, "--load"))
    assert value(base, "--tokenizer-model") == str(made / "huggingface")
    assert value(base, "--tokenizer-type") == "HuggingFaceTokenizer"


def test_flags_of_saved_arguments() -> None:
    """What Megatron does not take from a checkpoint itself; defaults need no flag."""
    assert model_flags({"norm_epsilon": 1e-5, "qk_layernorm": False, "window_size": None}) == []
    args = {
        "layernorm_epsilon": 1e-6,
        "use_rope_scaling": True,
        "rope_scaling_factor": 8.0,
        "window_size": (127, 0),
        "no_rope_freq": [0, 1],
        "bf16": True,
        "transformer_impl": "local",
        "num_experts": 4,
        "moe_router_load_balancing_type": ["none"],
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_shared_expert_gate": False,
        "moe_router_num_groups": None,
        "kv_lora_rank": 32,  # without --multi-latent-attention, of no model
    }
    assert [" ".join(flag) for flag in model_flags(args)] == [
        "--norm-epsilon 1e-06",
        "--use-rope-scaling",
        "--no-rope-freq [0, 1]",
        "--window-size 127,0",
        "--bf16",
        "--transformer-impl local",
        "--rope-scaling-factor 8.0",
        "--moe-router-load-balancing-type none",
        "--moe-router-score-function sigmoid",
        "--moe-router-enable-expert-bias",
    ]


def test_the_layout_and_the_data_that_are_needed() -> None:
    args = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1}
    assert layout_flags(args) == [("--tensor-model-parallel-size", "2")]
    data = {"data_path": ["1", "a", "2", "b"], "data_cache_path": "cache"}
    assert data_flags({**data, "tokenizer_type": "GPT2BPETokenizer"}) == []
    assert data_flags({**data, "tokenizer_type": "NullTokenizer"}) == [
        ("--data-path", "1", "a", "2", "b"),
        ("--data-cache-path", "cache"),
        ("--split", "0,1,0"),
    ]
    own = {"tokenizer_type": "NullTokenizer", "valid_data_path": ["v"]}
    assert data_flags(own) == [("--valid-data-path", "v")]


def cut(work: Path) -> None:
    path = work / "run/checkpoints/iter_0000020/mp_rank_00/model_optim_rng.pt"
    path.write_bytes(path.read_bytes()[:-40])


def no_probes(work: Path) -> None:
    (work / "probes.yaml").write_text("mix: {skip: []}\n")


def wrong_probe(work: Path) -> None:
    (work / "probes.yaml").write_text("evaluate: {probes: {complexion: {items: {}}}}\n")


def renamed(work: Path) -> None:
    shutil.move(work / "base" / RELEASE, work / "copy")


def untold(work: Path) -> None:
    (work / "base" / "latest_checkpointed_iteration.txt").write_text("20")


def elsewhere(work: Path) -> None:
    save(work / "run" / "checkpoints", "iter_0000030", tokenizer_model="/models/llama")


def full(work: Path) -> None:
    (work / "out").mkdir()
    (work / "out" / "a").touch()


@pytest.mark.parametrize(
    ("spoil", "words", "told"),
    [
        (None, "nothing", "nothing is no folder"),
        (None, "tokenizer", "tokenizer is no checkpoint"),
        (None, "run run/", "given twice"),
        (cut, "run", "model_optim_rng.pt is cut off"),
        (renamed, "copy", "called neither iter_ and seven digits nor release"),
        (untold, "base/release", "Megatron finds a converted model only where"),
        (None, "base", "give -- --seq-length N"),
        (None, "run --config none.yaml", "none.yaml"),
        (no_probes, "run", "names no probes"),
        (wrong_probe, "run", "did you mean 'completion'?"),
        (elsewhere, "run", "the tokenizer '/models/llama' does not exist"),
        (None, "run --script none.py", "none.py"),
        (full, "run --out out", "--out out is not empty"),
        (None, "run --json none/table.json", "cannot write --json none/table.json: No such file"),
        (None, "run --json base --dry-run", "cannot write --json base: it is a folder"),
        (None, "run -- --seq-length x", "--seq-length"),
    ],
)
def test_bad_input_is_told_before_any_work(
    spoil: Callable[[Path], None] | None,
    words: str,
    told: str,
    work: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("it was started")

    monkeypatch.setattr(command, "run_logged", never)
    if spoil is not None:
        spoil(work)
    given = words.split()
    if "--config" not in given:
        at = next((at for at, word in enumerate(given) if word.startswith("--")), len(given))
        given[at:at] = ["--config", "probes.yaml"]
    assert main(["eval", *given]) == 2
    output = capsys.readouterr()
    assert told in output.err, output.err
    assert "Traceback" not in output.err
    assert "$ " not in output.out


def test_the_models_are_run_and_compared(
    work: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what stands for Megatron: the first model is worse by 0.5 on each of 40 texts."""

    def run_logged(command: list[str], environment: Any, log: Path, what: str) -> list[str]:
        assert log.parent == Path(value(command, "--domain-log-dir"))
        step = int(value(command, "--ckpt-step")) if "--ckpt-step" in command else 0
        parts = [Part(f"t:{n}", 20.0 + n - 5 * bool(step), 10) for n in range(40)]
        score = Score.of("loss", "finance", parts, higher_is_better=False)
        assert score is not None
        line = Evaluated(step, 8 * step, (score,), final=True).dump()
        (log.parent / EVALUATIONS_FILE).write_text(json.dumps(line) + "\n")
        return ["a line"]

    monkeypatch.setattr(command, "run_logged", run_logged)
    words = "base run --config probes.yaml --out out --json out/table.json"
    assert main(["eval", *words.split()]) == 0
    output = capsys.readouterr().out
    assert output.count("$ ") == 2
    assert "better in run @ 20 than in base: finance (loss)" in output
    assert "nothing was forgotten" in output
    table = json.loads((work / "out" / "table.json").read_text())
    assert [one["label"] for one in table["models"]] == ["base", "run @ 20"]
    assert [one["iteration"] for one in table["models"]] == [0, 20]
    (line,) = table["lines"]
    assert line["difference"] == pytest.approx(-0.5) and line["verdict"] == "better"
    assert line["means"] == pytest.approx([3.95, 3.45])
    assert table["worst"][0]["worst"][0]["name"] == "t:39"
    assert (work / "out/02-iter_0000020" / EVALUATIONS_FILE).is_file()


def test_a_terminal_says_which_model_is_asked(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """And a folder's name may have brackets."""
    (work / "run").rename("run[lr]")
    out = io.StringIO()
    screen = Console(file=out, force_terminal=True, width=90)
    monkeypatch.setattr(command, "plain_console", lambda: screen)
    monkeypatch.setattr(command, "run_logged", lambda *_: [])
    assert main(["eval", "run[lr]", "--config", "probes.yaml", "--out", "kept"]) == 2
    assert f"wrote no {EVALUATIONS_FILE}: see kept" in capsys.readouterr().err
    assert "evaluating run[lr] @ 20 (1 of 1)" in out.getvalue()


@pytest.mark.parametrize("number", ["0", "-2"])
def test_an_evaluation_has_processes(number: str, work: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "base", "--config", "probes.yaml", "--dry-run", "--nproc", number])
    assert f"--nproc: '{number}': give a whole number from 1 on" in capsys.readouterr().err


def test_what_a_run_said_is_told_where_it_fails(
    work: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(command: list[str], environment: Any, log: Path, what: str) -> list[str]:
        raise PhaseFailed(f"{what} ended with exit code 1; the end of {log}:\n  no device")

    monkeypatch.setattr(command, "run_logged", fails)
    assert main(["eval", "run", "--config", "probes.yaml"]) == 2
    assert "the evaluation of run @ 20 ended with exit code 1" in capsys.readouterr().err

    def writes_nothing(command: list[str], environment: Any, log: Path, what: str) -> list[str]:
        log.write_text("said", encoding="utf-8")
        return []

    monkeypatch.setattr(command, "run_logged", writes_nothing)
    for out in ([], ["--out", "kept"]):
        assert main(["eval", "run", "--config", "probes.yaml", *out]) == 2
        told = capsys.readouterr().err
        assert f"wrote no {EVALUATIONS_FILE}: see " in told
        assert Path(told.split(": see ")[1].strip()).read_text("utf-8") == "said"
