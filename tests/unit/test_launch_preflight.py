"""The plan of tokens and the report of a preflight."""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from support.prefixes import write_prefix

from domain_pretrain.commands import main as cli
from domain_pretrain.errors import ConfigError
from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.host import Answer
from domain_pretrain.launch.preflight import Report, inspect, plan_of_flags

STEPS = (
    "--seq-length 10 --micro-batch-size 1 --global-batch-size 4 --train-iters 30"  # 1,200 tokens
)
MODEL = "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --vocab-size 256"


@pytest.fixture(autouse=True)
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of one epoch: 10 of finance, 30 of its news, 100 of general."""
    monkeypatch.chdir(tmp_path)
    for name, tokens in (("finance", 101), ("news", 301), ("general", 1001)):
        write_prefix(name, [1] * tokens)


def epochs(flags: str) -> dict[str, float]:
    plan = plan_of_flags(Flags.parse(f"{STEPS} {flags}".split()))
    assert plan is not None
    assert plan.tokens == 1200
    assert sum(domain.share for domain in plan.domains) == pytest.approx(1)
    return {domain.name: domain.epochs for domain in plan.domains}


def test_epochs_of_weights() -> None:
    found = epochs("--data-path 1 finance 5 general --split 100,0,0")
    assert found == pytest.approx({"finance": 200 / 100, "general": 1000 / 1000})


def test_without_weights_the_mix_follows_the_sizes() -> None:
    found = epochs("--data-path finance news general --split 100,0,0")
    assert found == pytest.approx(dict.fromkeys(("finance", "news", "general"), 1200 / 1400))


def test_it_counts_the_tokens_of_the_documents_not_a_part_of_all() -> None:
    """The first half of the documents may have few of the tokens, or most."""
    write_prefix("finance", [100] * 5 + [1] * 5)
    write_prefix("news", [1] * 5 + [100] * 5)
    plan = plan_of_flags(
        Flags.parse(f"{STEPS} --data-path 1 finance 1 news --split 50,50,0".split())
    )
    assert plan is not None
    assert [domain.corpus.tokens for domain in plan.domains] == [500, 5]
    assert [domain.corpus.samples for domain in plan.domains] == [49, 0]
    finance, news = plan.domains
    assert (finance.samples, finance.epochs) == (60, pytest.approx(60 / 49))
    assert news.epochs == pytest.approx(60 * 10 / 5)  # shorter than a sample


def test_only_the_training_split_is_read() -> None:
    found = epochs("--data-path 1 finance 5 general --split 80,10,10")
    assert found["finance"] == pytest.approx(200 / 80)
    write_prefix("finance", [1] * 1000)
    write_prefix("general", [10] * 1000)
    default = epochs("--data-path 1 finance 5 general")
    assert default["finance"] == pytest.approx(20 / 96)  # 20 samples; one epoch is (969 - 1) // 10
    whole = epochs("--train-data-path 1 finance 5 general")
    assert whole["finance"] == pytest.approx(20 / 99)


def test_the_config_supplies_the_blend() -> None:
    Path("domains.yaml").write_text(
        "domains:\n  money: {data: [finance, news], weight: 1}\n"
        "  general: {data: [general], weight: 5}\n",
        encoding="utf-8",
    )
    found = epochs("--domain-config domains.yaml --split 100,0,0")
    assert found == pytest.approx({"money": 200 / 400, "general": 1})
    with pytest.raises(ConfigError, match=r"domain .money.: the config.s weight 1 is 16\.6"):
        epochs("--domain-config domains.yaml --data-path 1 finance 1 news 5 general")


def test_missing_files_and_flags() -> None:
    with pytest.raises(ConfigError, match=r"'finanse.idx' does not exist; did you mean 'finance'"):
        epochs("--data-path 1 finanse 5 general")
    without_length = ["--global-batch-size", "4", "--split", "1", "--data-path", "1", "finance"]
    assert plan_of_flags(Flags.parse(without_length)) is None
    with pytest.raises(ConfigError, match=r"'finanse.idx' does not exist"):
        plan_of_flags(Flags.parse([*without_length, "--data-path", "1", "finanse"]))


def test_without_a_global_batch_every_replica_takes_a_microbatch() -> None:
    words = "--seq-length 10 --micro-batch-size 2 --train-samples 120"
    flags = Flags.parse(words.split())
    plan = plan_of_flags(flags, dp=3)
    assert plan is not None
    assert (plan.tokens_per_step, plan.iterations) == (2 * 3 * 10, 20)


def test_data_that_is_not_on_this_disk_has_no_plan() -> None:
    plan = plan_of_flags(Flags.parse([*STEPS.split(), "--mock-data"]))
    assert plan is not None
    assert (plan.tokens, plan.domains) == (1200, ())
    remote = plan_of_flags(
        Flags.parse([*STEPS.split(), "--split", "1", "--data-path", "s3://a/b", "finance"])
    )
    assert remote is not None
    assert remote.domains == ()


def test_all_problems_are_reported_at_once() -> None:
    words = (
        f"{STEPS} {MODEL} --data-path 1 finanse 5 general --tensor-model-parallel-size 3 "
        "--domain-config nowhere.yaml --tokenizer-model ./models/none --save run"
    )
    problems = "\n".join(inspect(["gone.py", *words.split()], 2, 8).problems)
    assert "the script 'gone.py' does not exist" in problems
    assert "--domain-config 'nowhere.yaml' does not exist" in problems
    assert "the tokenizer './models/none' does not exist" in problems
    assert "world size 16 is not a multiple of TP x PP x CP = 3 x 1 x 1" in problems
    assert "nowhere.yaml" in problems


def test_a_tokenizer_may_be_a_name_on_the_hub() -> None:
    def said(words: str) -> tuple[list[str], list[str]]:
        report = inspect(words.split(), 1, 1)
        return report.problems, report.warnings

    for name in ("gpt2", "Qwen/Qwen3-8B"):
        problems, warnings = said(f"--tokenizer-type HuggingFaceTokenizer --tokenizer-model {name}")
        assert not problems
        assert f"there is no folder {name!r} here" in warnings[0]
        assert said(f"--tokenizer-type Llama2Tokenizer --tokenizer-model {name}")[0]
    Path("gpt2").mkdir()
    assert said("--tokenizer-type HuggingFaceTokenizer --tokenizer-model gpt2") == ([], [])


def test_conversations_are_no_prefixes() -> None:
    for switch in ("--sft", "--is-instruction-dataset"):
        assert not inspect([switch, "--data-path", "chats.jsonl", *STEPS.split()], 1, 1).problems
    assert inspect(["--data-path", "chats.jsonl", *STEPS.split()], 1, 1).problems


def test_one_broken_check_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises; and a wrong value leaves the other flags to be checked."""
    words = f"{STEPS} {MODEL} --data-path 1 finanse --tensor-model-parallel-size 3 --split 1,0,0"

    def broken(*_: object) -> None:
        raise ValueError("could not convert string to float: '95 5 0'")

    monkeypatch.setattr("domain_pretrain.launch.preflight.plan_of_flags", broken)
    problems = inspect(["gone.py", *words.split(), "--hidden-size", "wide"], 1, 8).problems
    assert [text for text in problems if text.startswith("--hidden-size: ")]
    assert "the script 'gone.py' does not exist" in problems
    assert [text for text in problems if text.startswith("world size 8 is not a multiple")]
    (found,) = [text for text in problems if "95 5 0" in text]
    assert found.startswith("data could not be checked: ValueError: could not convert")


def test_two_checks_that_find_the_same_say_it_once() -> None:
    words = f"{STEPS} {MODEL} --domain-config broken.yaml --save run".split()
    Path("broken.yaml").write_text("domains: [", encoding="utf-8")
    assert len(inspect(words, 1, 1).problems) == 1


def test_a_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "--data-path 1 finance 5 general --split 98,1,1"
    words = f"{STEPS} {MODEL} {data} --save a/b --save-interval 10".split()
    usage = shutil.disk_usage(".")
    size = 12 * 163_840  # of the checkpoint: 4 bytes a weight and 8 of Adam

    def report(free: int) -> tuple[list[str], list[str]]:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
        found = inspect(words, 1, 1)
        return found.problems, [text for text in found.warnings if "checkpoints" in text]

    module = "domain_pretrain.launch.preflight"
    monkeypatch.setattr(f"{module}.checkpoint_bytes", lambda flags, ids: size)
    problems, _ = report(size - 1)
    assert len(problems) == 1
    assert "a checkpoint takes about" in problems[0]
    problems, warnings = report(2 * size)
    assert not problems
    assert warnings[0].startswith("3 checkpoints are planned, 2 fit")
    assert report(3 * size) == ([], [])


def test_an_unknown_vocabulary_is_said() -> None:
    model = MODEL.replace("--vocab-size 256", "--tokenizer-type HuggingFaceTokenizer")

    def row(words: str) -> str:
        return dict(inspect(f"{STEPS} {words} --save run".split(), 1, 1).rows)["checkpoints"]

    assert "0.10M parameters" in row(model)  # 2 layers of 12 x 64^2
    assert "without embeddings" in row(model)
    assert "0.11M parameters" in row(MODEL)  # and 256 rows of 64
    assert "without embeddings" not in row(MODEL)


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = "domain_pretrain.commands.preflight"
    monkeypatch.setattr(f"{module}.ask", lambda *_: Answer(outcome="not asked", text="no time"))
    words = f"{STEPS} {MODEL} --data-path 1 finance 5 general --split 100,0,0 --save run --load run"
    code = cli.main(["preflight", "--nodes", "2", "--devices-per-node", "2", "--", *words.split()])
    out = capsys.readouterr().out
    assert code == 0
    for text in (
        "not be asked on this machine: no time",
        "2 x 2 = 4 = TP 1 x PP 1 x CP 1 x DP 4",
        "40 per step x 30 steps = 1,200",
    ):
        assert text in out
    assert "random weights: run holds no checkpoint yet" in out
    assert cli.main(["preflight", "--nodes", "3", "--quiet", "--", *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--global-batch-size 4 is not a multiple" in captured.err


def test_paths_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = "domain_pretrain.commands.preflight"
    monkeypatch.setattr(f"{module}.ask", lambda *_: Answer(outcome="not asked", text="no time"))
    for run in ("sweep[/lr=3e-4]", "sweep[lr=3e-4]"):
        prefix = f"{run}/general"
        Path(run).mkdir(parents=True)
        write_prefix(prefix, [1] * 1001)
        config = {
            "domains": {"general": {"data": [glob.escape(prefix)]}},
            "mix": {"skip": [{"samples": [0, 9]}]},
        }
        Path("mix.yaml").write_text(json.dumps(config), "utf-8")
        words = f"{STEPS} {MODEL} --data-path 1 {prefix} --split 100,0,0 --save {run} --load {run}"
        words += " --domain-config mix.yaml"
        assert cli.main(["preflight", "--", *words.split()]) == 0
        out = capsys.readouterr().out
        assert f"random weights: {run} holds no checkpoint yet" in out
        assert f"│ {prefix} │" in out


@pytest.mark.parametrize("flag", ["--nodes", "--devices-per-node"])
@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_a_run_has_processes(flag: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["preflight", flag, number, "--", *STEPS.split()])
    assert f"{flag}: '{number}': give a whole number from 1 on" in capsys.readouterr().err


def test_the_host_has_the_last_word_on_flags() -> None:
    """What it accepts, no rule of ours refuses; what it refuses is a problem, in its words."""
    data = "--data-path 1 finance 5 general --split 98,1,1"
    words = f"{STEPS} {MODEL} {data} --global-batch-size 5".split()
    asked: list[object] = []

    def inspect_with(outcome: str, text: str = "") -> Report:
        def ask(*given: object) -> Answer:
            asked.append(given)
            return Answer(outcome=outcome, host="megatron.core 0.19.2", text=text)

        return inspect(words, 2, 3, ask)

    rule = "--global-batch-size 5 is not a multiple of micro batch x DP = 1 x 6"
    report = inspect_with("accepted")
    assert asked == [(words, 2, 3)]
    assert not report.problems
    assert ("flags", "megatron.core 0.19.2 accepts them") in report.rows
    report = inspect_with("refused", "no (a = 5)")
    assert report.problems[0] == "megatron.core 0.19.2 refuses: no (a = 5)"
    assert report.problems[1].startswith(rule)
    report = inspect_with("refused", "FP8 needs Transformer Engine >= 1.7")
    assert [text[: len(rule)] for text in report.problems] == [rule]
    assert "FP8 needs Transformer Engine >= 1.7 (no problem if" in report.warnings[0]
    report = inspect_with("not asked", "no Megatron here")
    assert [text[: len(rule)] for text in report.problems] == [rule]
    assert "no Megatron here" in report.warnings[0]


def test_what_the_plugin_refuses_does_not_hide_what_the_host_does() -> None:
    """Then the host is asked again, without the plugin's flags."""
    words = ["--channel-loss", *STEPS.split(), "--domain-config", "gone.yaml", "--swiglu"]

    def ask(given: Sequence[str], *_: int) -> Answer:
        if "--domain-config" in given:
            return Answer(outcome="refused by the plugin", text="no config 'gone.yaml'")
        assert list(given) == [*STEPS.split(), "--swiglu"]
        return Answer(outcome="refused", host="megatron.core 0.19.2", text="no GELU")

    problems = inspect(words, 1, 1, ask).problems
    assert {"no config 'gone.yaml'", "megatron.core 0.19.2 refuses: no GELU"} <= set(problems)


def test_a_script_that_is_not_there_is_not_asked() -> None:
    problems = inspect(["gone.py"], 1, 1, lambda *_: pytest.fail("asked")).problems
    assert problems == ["the script 'gone.py' does not exist"]


def test_too_many_epochs_are_a_warning() -> None:
    report = inspect(f"{STEPS} --data-path 1 finance --split 50,50,0".split(), 1, 1)
    assert "domain 'finance' is read 30.0 times" in report.warnings[0]
    assert not report.problems


def test_a_prefix_that_is_listed_twice_holds_its_tokens_once() -> None:
    found = epochs("--data-path 1 finance 1 ./finance 2 general --split 100,0,0")
    assert found == pytest.approx({"finance": 600 / 100, "general": 600 / 1000})


def test_what_the_run_would_refuse_is_refused_here() -> None:
    per_split = Path("per.json")
    per_split.write_text('{"train": "finance", "valid": "gone", "test": null}', "utf-8")
    Path("list.txt").write_text("1 finance 1 gone", "utf-8")
    for words, says in (
        ("--data-args-path list.txt --split 98,2", "'gone.idx' does not exist"),
        ("--data-args-path list.txt", "--data-args-path needs --split"),
        ("--per-split-data-args-path per.json", "'gone.idx' does not exist"),
        ("--train-data-path gone", "'gone.idx' does not exist"),
        ("--train-data-path finance --test-data-path gone", "'gone.idx' does not exist"),
        ("--data-path finance --split 969,30,1", "of which the test split gets none"),
        ("--data-path finance --split 5;5;x", "--split '5;5;x' must be"),
        ("--data-path 1 finance 1 general --split 80,10,10 --eval-iters 0", "--eval-iters 0 with"),
    ):
        (problem,) = inspect([*STEPS.split(), *words.split()], 1, 1).problems
        assert says in problem


def test_a_blend_that_changes_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    """120 samples of 10 tokens: what each stage is, and what every prefix gives."""
    Path("mix.yaml").write_text(
        "domains:\n  money: {data: [finance, news]}\n  general: {data: [general]}\n"
        "mix:\n  schedule:\n"
        "    - {share: 0.5, weights: {general: 1}}\n"
        "    - {weights: {general: 1, money: 1}}\n"
        "  skip: [{samples: [0, 10]}, {samples: [130, 140]}]\n",
        encoding="utf-8",
    )
    words = f"{STEPS} --data-path 1 finance 3 news 4 general --split 100,0,0".split()
    report = inspect([*words, "--domain-config", "mix.yaml"], 1, 1)
    assert not report.problems
    assert ("stage 1", "samples 0 to 60: general 100.00%") in report.rows
    assert ("stage 2", "samples 60 to 120: money 50.00%, general 50.00%") in report.rows
    assert ("skipped", "positions 0 to 10, 130 to 140 of the stream") in report.rows
    assert "mix.skip [130, 140] has no effect: the run ends at position 130 of the stream" in (
        report.warnings
    )
    assert report.plan is not None
    found = {one.prefix: (one.samples, one.epochs) for one in report.plan.prefixes}
    assert sum(samples for samples, _ in found.values()) == 120
    assert found["general"] == pytest.approx((85, 0.85), abs=1)  # 50 of stage 1, 35 of stage 2
    assert found["finance"] == pytest.approx((9, 0.9), abs=1.1)
    shares = {domain.name: domain.share for domain in report.plan.domains}
    assert shares["general"] == pytest.approx(found["general"][0] / 120)
    report.print(Console())
    assert "Plan of samples" in capsys.readouterr().out

    # What a rollback left out of the run that this one resumes.
    back = {"action": "rollback", "iteration": 9, "onset": 6, "message": "", "resume": 5}
    Path("run").mkdir()
    decisions = json.dumps({"decisions": [{**back, "samples": [8, 20]}]})
    Path("run/domain_decisions.json").write_text(decisions, "utf-8")
    report = inspect([*words, "--domain-config", "mix.yaml", "--load", "run"], 1, 1)
    assert ("skipped", "positions 0 to 20, 130 to 140 of the stream") in report.rows

    Path("mix.yaml").write_text("mix: {skip: [{documents: [1000000], prefix: news}]}", "utf-8")
    report = inspect([*words, "--domain-config", "mix.yaml"], 1, 1)
    (problem,) = report.problems
    assert problem.startswith("mix.skip: 'news' has documents 0 to ")

    Path("mix.yaml").write_text("mix: {schedule: [{samples: 7, weights: {news: 1}}]}", "utf-8")
    report = inspect([*words, "--domain-config", "mix.yaml"], 1, 1)
    (problem,) = report.problems
    assert "the stages are 7 = 7 samples, and the run trains on 120" in problem


@pytest.mark.parametrize(
    ("epochs", "pinned", "says"),
    [
        (9, False, None),
        (1, False, "the training data have 119 samples left in 1 epoch, and the rest of the run"),
        (2, True, "the pinned domain 'small' has 38 samples left in 2 epochs, and the rest of"),
    ],
)
def test_epochs_that_cannot_be_enough_are_a_problem(
    epochs: int, pinned: bool, says: str | None
) -> None:
    """120 samples of 10 tokens, in blocks of 40; the data have 19, 99 and 1."""
    for name, documents in (("small", 10), ("large", 50), ("least", 1)):
        write_prefix(name, [20] * documents)
    domains = {
        "small": {"data": ["small"], "weight": 2, "pinned": pinned},
        "large": {"data": ["large"], "weight": 1},
        "least": {"data": ["least"], "weight": 1},
    }
    mix = {"dynamic": {"strategy": "linupper", "block": 40, "epochs": epochs}}
    Path("mix.yaml").write_text(json.dumps({"domains": domains, "mix": mix}), "utf-8")
    words = [*STEPS.split(), "--split", "100,0,0", "--domain-config", "mix.yaml"]
    problems = inspect(words, 1, 1).problems
    assert len(problems) == (says is not None)
    assert not says or says in problems[0]
