"""Mistakes stop the run before training, or at its first step, with what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.launch import MODEL, start_many, train

pytestmark = pytest.mark.megatron


@dataclass
class Case:
    """A command line, where ``DATA`` is the corpora's folder and ``TMP`` a scratch folder.

    Attributes:
        words: what the user types after the model's flags.
        says: parts of the message; empty: training may begin.
        config: content of ``TMP/config.yaml``.
    """

    words: str
    says: tuple[str, ...] = ()
    config: str = ""
    env: dict[str, str] = field(default_factory=dict)
    version: str | None = None


SPLIT = "--split 80,10,10"
BLEND = f"{SPLIT} --data-path 1 DATA/finance 5 DATA/general"
CONFIG = "--domain-config TMP/config.yaml"
FINANCE = "domains:\n  finance: {data: [DATA/finance], weight: 1}\n"
GENERAL = "  general: {data: [DATA/general], weight: 5}\n"

CASES = {
    "control": Case(BLEND),
    "control: data from the config": Case(f"{SPLIT} {CONFIG}", config=FINANCE + GENERAL),
    "control: config and command line agree": Case(f"{BLEND} {CONFIG}", config=FINANCE + GENERAL),
    "missing prefix": Case(
        "--data-path 1 DATA/finance 5 DATA/generale",
        ("generale", "did you mean", "general"),
    ),
    "a base model that is not there": Case(
        f"{BLEND} --load TMP/nothing --finetune", ("--load", "no Megatron checkpoint", "not exist")
    ),
    "control: a run that will resume from what it saves": Case(f"{BLEND} --load TMP/nothing"),
    "other weights in the config": Case(
        f"--data-path 1 DATA/finance 4 DATA/general {CONFIG}",
        ("finance", "the config's weight 1", "make them agree"),
        config=FINANCE + GENERAL,
    ),
    "a prefix that the config does not know": Case(
        f"{BLEND} 1 DATA/maths {CONFIG}", ("maths", "config"), config=FINANCE + GENERAL
    ),
    "a domain that the command line does not have": Case(
        f"--data-path 1 DATA/finance {CONFIG}", ("general",), config=FINANCE + GENERAL
    ),
    "unknown key": Case(
        CONFIG,
        ("domains.finance.wieght", "did you mean 'weight'?"),
        config="domains:\n  finance: {data: [DATA/finance], wieght: 1}\n",
    ),
    "unknown section": Case(
        CONFIG, ("did you mean 'channel_loss'?",), config="chanel_loss: {average: token}"
    ),
    "domain without data": Case(
        CONFIG, ("domains.general.data",), config=FINANCE + "  general: {data: [], weight: 1}\n"
    ),
    "domain whose glob finds nothing": Case(
        CONFIG,
        ("general", "DATA/nothing*"),
        config=FINANCE + "  general: {data: ['DATA/nothing*'], weight: 1}\n",
    ),
    "zero weight": Case(
        "--data-path 0 DATA/finance 5 DATA/general", ("weight '0' (value 1) must be positive",)
    ),
    "negative weight": Case(
        "--data-path 1 DATA/finance -5 DATA/general", ("weight '-5' (value 3) must be positive",)
    ),
    "weight missing": Case(
        "--data-path 1 DATA/finance DATA/general", ("'1' is taken for prefix 1 of 3", "weight")
    ),
    "weight that is no number": Case(
        "--data-path 1 DATA/finance five DATA/general", ("five", "weight")
    ),
    "no such data file": Case("--data-args-path TMP/none.txt", ("TMP/none.txt cannot be read",)),
    "data file of splits that is not JSON": Case(
        "--per-split-data-args-path TMP/config.yaml", ("is not JSON",), config="train: DATA/code"
    ),
    "data file without a split": Case(
        "--per-split-data-args-path TMP/config.yaml",
        ("the keys train, valid, test",),
        config='{"train": "DATA/code", "valid": null}',
    ),
    "data file of splits with a number": Case(
        "--per-split-data-args-path TMP/config.yaml",
        ("valid must be null, a text, or a list of texts", "it is 5"),
        config='{"train": "DATA/code", "valid": 5, "test": null}',
    ),
    "data file of splits with a key twice": Case(
        "--per-split-data-args-path TMP/config.yaml",
        ("has the key 'train' twice",),
        config='{"train": "DATA/code", "train": "DATA/maths", "valid": null, "test": null}',
    ),
    "a split without documents": Case(
        f"{BLEND} --split 969,30,1", ("finance", "of which the test split gets none")
    ),
    "a split that is not one": Case(f"{BLEND} --split 1e2,1", ("--split '1e2,1' must be",)),
    "nothing to train on": Case(f"{BLEND} --split 0,0,100", ("nothing to train on",)),
    "control: nothing to train on, and no training": Case(
        f"{BLEND} --split 0,50,50 --skip-train --load TMP --no-load-optim"
    ),
    "evaluations of no steps": Case(f"{BLEND} --eval-iters 0", ("--eval-iters 0", "--split 100")),
    "evaluations without data": Case(
        f"{BLEND} --split 100,0,0 --eval-iters 2", ("--eval-iters 2, and no validation data",)
    ),
    "splits of data that each split has of its own": Case(
        "--train-data-path DATA/code --valid-data-path DATA/code --split 9,1,0",
        ("--split 9,1,0 with data of a split's own",),
    ),
    "full validation of weighted data": Case(
        f"{BLEND} --full-validation --multiple-validation-sets",
        ("--full-validation", "without weights"),
    ),
    "full validation of one set": Case(
        f"{BLEND} --full-validation", ("--full-validation", "give both flags")
    ),
    "a fixed set of a graph": Case(
        f"{BLEND} {CONFIG} --cuda-graph-impl full_iteration --te-rng-tracker "
        "--no-check-for-nan-in-loss-and-grad",
        ("a full-iteration CUDA graph with evaluate.samples",),
        config="evaluate: {samples: 4}",
    ),
    "a fixed set without validation data": Case(
        f"--train-data-path DATA/code --eval-iters 0 {CONFIG}",
        ("evaluate.samples takes samples of the validation data",),
        config="evaluate: {samples: 4}",
    ),
    "a fixed set that is shorter than a sample": Case(
        f"{BLEND} --split 97,1,2 {CONFIG}",
        ("evaluate.samples: the validation part of", "is shorter than one sample"),
        config="evaluate: {samples: 4}",
    ),
    "no data": Case("", ("--data-path",)),
    "mock data with domains": Case(
        f"--mock-data {CONFIG}", ("--mock-data",), config=FINANCE + GENERAL
    ),
    "names of validation sets that do not exist": Case(
        f"{BLEND} --validation-set-names a b", ("--validation-set-names",)
    ),
    "no such config": Case(f"{BLEND} --domain-config TMP/none.yaml", ("TMP/none.yaml",)),
    "log folder is a file": Case(
        f"{BLEND} --domain-log-dir TMP/config.yaml", ("log folder TMP/config.yaml",), config="a"
    ),
    "log folder is a file, on the one rank that writes": Case(
        f"{BLEND} --domain-log-dir TMP/config.yaml",
        ("log folder TMP/config.yaml",),
        config="a",
        env={"RANK": "1", "WORLD_SIZE": "2"},
    ),
    "old Megatron": Case(BLEND, ("0.11.0", ">=0.12"), version="0.11.0"),
    "new Megatron": Case(BLEND, ("0.21.1", "--allow-unknown-host"), version="0.21.1"),
    "control: new Megatron, allowed": Case(f"{BLEND} --allow-unknown-host", version="0.21.1"),
    "distillation": Case(f"{BLEND} --logits-load-dir TMP", ("--logits-load-dir", "distillation")),
    "a frozen model": Case(
        f"{BLEND} --freeze-all-layers",
        ("--freeze-all-layers", "nothing is trained", "--skip-train"),
    ),
    "sft over context parallel ranks": Case(
        f"{BLEND} --sft --micro-batch-size 2 --context-parallel-size 2",
        ("--sft", "--context-parallel-size", "--micro-batch-size 1"),
        env={"WORLD_SIZE": "2"},
    ),
    "data of all splits and of each": Case(
        f"{BLEND} --per-split-data-args-path TMP/config.yaml", ("ignores one of the two",)
    ),
    "packed rows in a pipeline": Case(
        f"{BLEND} --sft --micro-batch-size 2 --pipeline-model-parallel-size 2",
        ("--dataloader-inter-document-masking", "use --micro-batch-size 1"),
        env={"WORLD_SIZE": "2"},
    ),
    "one graph for other evaluations": Case(
        "--train-data-path DATA/code --valid-data-path DATA/general DATA/maths --test-data-path "
        "DATA/maths DATA/general --cuda-graph-impl full_iteration --te-rng-tracker "
        "--no-check-for-nan-in-loss-and-grad",
        ("a full-iteration CUDA graph", "one graph for all evaluations"),
    ),
    "validation sets and virtual stages": Case(
        "--train-data-path DATA/finance --valid-data-path DATA/general DATA/maths "
        "--test-data-path DATA/code --multiple-validation-sets --pipeline-model-parallel-size 2 "
        "--num-virtual-stages-per-pipeline-rank 2",
        ("--multiple-validation-sets", "virtual pipeline"),
        env={"WORLD_SIZE": "2"},
    ),
}


@pytest.fixture(scope="module")
def outcomes(
    corpora: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Case, int | None, str]]:
    """Every case's exit code and message, from one process: Megatron's imports take seconds."""
    cases: dict[str, Case] = {}
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp("case")

        def place(text: str, folder: Path = folder) -> str:
            return text.replace("DATA/", f"{corpora}/").replace("TMP", str(folder))

        (folder / "config.yaml").write_text(place(case.config))
        says = tuple(place(part) for part in case.says)
        cases[name] = Case(place(case.words), says, "", case.env, case.version)
    given = []
    for case in cases.values():
        words = [*MODEL, "--train-iters", "4", "--channel-loss", *case.words.split()]
        version = {"version": case.version} if case.version else {}
        given.append({"words": words, "env": case.env, **version})
    return {
        name: (case, result["code"], result["message"])
        for (name, case), result in zip(cases.items(), start_many(given), strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_command_line(name: str, outcomes: dict[str, tuple[Case, int | None, str]]) -> None:
    case, code, message = outcomes[name]
    if not case.says:
        assert (code, message) == (None, "")
        return
    assert code == 2
    assert message.startswith("domain_pretrain: error: ")
    for part in case.says:
        assert part in message


def test_real_launch(corpora: Path, tmp_path: Path) -> None:
    """The user sees the message, no traceback, and exit code 2; no process group is made."""
    run = train(tmp_path, "--data-path", corpora / "absent", expect=2)
    assert f"{corpora / 'absent'}" in run.output
    assert "Traceback" not in run.output
    assert "initializing torch distributed" not in run.output
    assert not (tmp_path / "domain_metrics.jsonl").exists()


FOREIGN = {
    "own_dataset": "carries no dataset_id",
    "doubled_loss": "the script's loss is not Σ mask·loss",
}


@pytest.mark.parametrize("how", FOREIGN)
def test_foreign_script(how: str, blend: list[str], tmp_path: Path) -> None:
    """A script that the plugin cannot be right with stops at its first step."""
    env = {"HOW": how}
    run = train(tmp_path, *blend, script="foreign_gpt.py", env=env, iterations=2, expect=2)
    assert FOREIGN[how] in run.output
    assert "Traceback" not in run.output
    assert run.host_losses() == []


STRANGE = {
    "the next line": ([], 4),
    "the next point": (["--tensorboard-log-interval", "3"], 3),
    "the next checkpoint": (["--save", "{folder}", "--save-interval", "3"], 3),
    "weights, in the step itself": (["--domain-reweight", "linupper"], 2),
}


@pytest.mark.parametrize("found_at", STRANGE)
def test_ids_of_no_domain_in_a_step_that_is_not_logged(
    found_at: str, blend: list[str], tmp_path: Path
) -> None:
    """The run stops before anything that holds such a step leaves it."""
    flags, iteration = STRANGE[found_at]
    flags = [flag.format(folder=tmp_path / "checkpoints") for flag in flags]
    how: dict[str, Any] = {"script": "foreign_gpt.py", "env": {"HOW": "strange_ids"}, "expect": 2}
    every = ["--log-interval", "4", "--tensorboard-dir", tmp_path / "tensorboard"]
    run = train(tmp_path, *blend, *every, *flags, iterations=iteration, **how)
    assert "256 tokens carry a domain id outside of the 5 domains" in run.output
    assert "Traceback" not in run.output
    assert run.metrics(None) == []
    assert not list((tmp_path / "checkpoints").glob("iter_*"))
