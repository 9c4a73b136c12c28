"""A Hugging Face model as --pretrained-checkpoint: imported once, held against the flags before."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from domain_pretrain.demo.journey import write_model
from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.importing import import_model
from domain_pretrain.launch import __main__ as each_process
from domain_pretrain.launch.base_model import Import, find_import, main, wait_for
from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.host import Answer
from domain_pretrain.launch.preflight import inspect
from domain_pretrain.whole_folder import unfinished

pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

WORDS = ["--save", "run/checkpoints", "--load", "run/checkpoints", "--channel-loss"]
WORDS += ["--pretrained-checkpoint", "model"]


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(Path("model"))


def found(words: Sequence[str] = WORDS) -> Import:
    model = find_import(words, Flags.parse(words))
    assert model is not None
    return model


def resumed() -> None:
    """The run has a checkpoint of its own."""
    Path("run/checkpoints/iter_0000005").mkdir(parents=True)
    Path("run/checkpoints/latest_checkpointed_iteration.txt").write_text("5", encoding="utf-8")


def test_the_first_node_imports_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--node-rank", "0", "--", *WORDS]
    assert main(words) == 0
    assert capsys.readouterr().out == "launch: imported model into run/base\n"
    assert not unfinished(Path("run/base")).exists()
    assert main(words) == 0
    assert capsys.readouterr().out == ""


def test_a_run_that_resumes_needs_none() -> None:
    resumed()
    assert main(["--node-rank", "0", "--", *WORDS]) == 0
    assert not Path("run/base").exists()


def test_torchrun_knows_the_first_node_by_its_address() -> None:
    assert main(["--address", "127.0.0.1", "--", *WORDS]) == 0
    assert Path("run/base/base.json").is_file()


def test_another_model_is_not_taken_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--node-rank", "0", "--", *WORDS]) == 0
    (Path("model") / "generation_config.json").write_text("{}", encoding="utf-8")
    for rank in ("0", "1"):
        assert main(["--node-rank", rank, "--", *WORDS]) == 2
        assert "launch: run/base holds another model already" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["imported", "gone"])
def test_what_is_no_hugging_face_model_is_left_alone(folder: str) -> None:
    import_model(Path("model"), Path("imported"))
    words = [*WORDS[:-1], folder]
    assert find_import(words, Flags.parse(words)) is None


def test_mindspeed_llm_has_a_tool_of_its_own() -> None:
    Path("checkout/mindspeed_llm").mkdir(parents=True)
    words = ["checkout/pretrain_gpt.py", *WORDS]
    assert find_import(words, Flags.parse(words)) is None
    assert any("convert_ckpt_v2.py" in problem for problem in inspect(words, 1, 1).problems)


def test_somewhere_it_has_to_be() -> None:
    with pytest.raises(ConfigError, match="give --save a folder, or import it yourself"):
        found(WORDS[-2:])
    (problem,) = inspect(WORDS[-2:], 1, 1).problems
    assert "give --save a folder" in problem


def test_the_others_wait_as_long_as_it_grows() -> None:
    model, looks = found(), 0

    def nap() -> None:
        nonlocal looks
        looks += 1
        part = unfinished(model.out)
        if looks < 5:
            part.mkdir(parents=True, exist_ok=True)
            (part / f"part{looks}").write_bytes(b"x")
        else:
            shutil.rmtree(part, ignore_errors=True)
            import_model(model.source, model.out)

    wait_for(model, 0.0, nap)  # no patience at all, if it did not grow
    assert looks == 5
    with pytest.raises(ConfigError, match=r"within 0 s \(JOIN_TIMEOUT\)"):
        wait_for(Import(model.source, Path("elsewhere/base"), True), 0.0, lambda: None)


def test_each_process_reads_what_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["mine.py", *WORDS, "--lr", "1"]
    monkeypatch.setattr("sys.argv", ["launch", *words])
    monkeypatch.setattr(each_process, "train", lambda: None)
    each_process.main()
    import sys

    assert Flags.parse(sys.argv[1:]).pretrained_checkpoint == Path("run/base")
    assert sys.argv[1 : 1 + len(words)] == words


# --- the preflight -------------------------------------------------------------------------------


def asked(words: Sequence[str], nodes: int, devices: int) -> Answer:
    """The host reads a folder that is like the import, and tells of it."""
    folder = Flags.parse(words).pretrained_checkpoint
    assert folder is not None and folder != Path("model")
    assert (folder / "release" / "common.pt").is_file()
    assert (folder / "huggingface" / "tokenizer.json").is_file()
    return Answer(outcome="refused", host="host", text=f"{folder} does not fit")


def test_it_says_what_is_going_to_be_done() -> None:
    report = inspect(WORDS, 1, 1, asked)
    rows = dict(report.rows)
    size = Path("model/model.safetensors").stat().st_size
    assert rows["starts from"] == "the released weights of run/base"
    said = f"model, to be imported into run/base first: {size / 1024:.1f} KiB"
    assert rows["base model"] == said
    assert report.problems == ["host refuses: run/base does not fit"]
    assert not Path("run").exists() or not Path("run/base").exists()
    import_model(Path("model"), Path("run/base"))
    assert dict(inspect(WORDS, 1, 1).rows)["base model"] == "model, imported into run/base"


def test_of_a_run_that_resumes_it_says_nothing() -> None:
    resumed()
    assert "base model" not in dict(inspect(WORDS, 1, 1).rows)


def test_a_model_that_cannot_be_imported_is_a_problem() -> None:
    config = Path("model/config.json")
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("Qwen3ForCausalLM", "MyForCausalLM"), encoding="utf-8")
    (problem,) = inspect(WORDS, 1, 1).problems
    assert "the architecture MyForCausalLM is not known" in problem
