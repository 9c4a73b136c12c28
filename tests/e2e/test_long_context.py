"""A long-context stage: planned after a short run, trained, traced and resumed; the trap stops."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import write_checkpoint
from support.clone import make_clone, shell
from support.launch import MODEL, Run, train
from support.metrics import counted, windows
from support.pages import blocks, commands, text
from support.prefixes import write_prefix
from support.streams import fed, traced
from support.traces import write_documents

from domain_pretrain.commands.main import main
from domain_pretrain.commands.trace import open_trace
from domain_pretrain.data.vocabulary import padded
from domain_pretrain.errors import ConfigError
from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.host import ask
from domain_pretrain.launch.layout import layout_problems
from domain_pretrain.planning.output import flags_of
from domain_pretrain.records.reader import read_events
from domain_pretrain.records.record import Event

pytestmark = pytest.mark.megatron

DOCUMENTS = {"general": 400, "finance": 300}
ROPE = shlex.split("--position-embedding-type rope --no-rope-fusion")
SHORT = shlex.split("--seq-length 128 --max-position-embeddings 128 --rotary-base 10000")
STEPS, LENGTH = 8, 512  # of the long stage
LONG = """
seq_length: 512
split: 90,10,0
domains: {general: data/general, finance: data/finance}
continues:
  checkpoint: short/checkpoints
  run: short
  rotary_base: 100000
stages:
  - tokens: 8192
    mix: {general: 1, finance: 1}
"""
Read = dict[str, set[int]]  # documents, by the name of the prefix


@dataclass(frozen=True)
class Stage:
    """What all tests start from: the folder, the plan, its flags, and the short run."""

    folder: Path
    plan: Mapping[str, Any]
    flags: list[str]
    printed: str
    short: Run

    def train(self, name: str, *flags: str, **how: Any) -> Run:
        """The long stage, as the plan says, into a folder of its own; and again, to go on."""
        out = self.folder / name
        out.mkdir(exist_ok=True)
        own = ["--save", str(out / "checkpoints"), "--load", str(out / "checkpoints")]
        rate = ["--lr", "1e-3", "--min-lr", "0", *self.plan["learning_rate_flags"]]
        words = [*ROPE, *rate, *own, "--save-interval", "3", *self.flags, *flags]
        env = {"RECORD_DIR": str(out), **how.pop("env", {})}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            return train(out, *words, script="stream_gpt.py", env=env, **how)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A short run of eight steps of 8 × 128 tokens, and the plan of what follows it."""
    folder = tmp_path_factory.mktemp("long")
    rng = np.random.default_rng(0)
    for number, (name, count) in enumerate(DOCUMENTS.items()):
        lengths = rng.integers(10, 120, size=count)
        texts = [50 * number + rng.integers(50, size=length) for length in lengths]
        write_documents(folder / "data" / name, [[*text.tolist(), 256] for text in texts])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save = ["--save", "short/checkpoints", "--save-interval", "8"]
        blend = ["--split", "90,10,0", "--data-path", "3", "data/general", "1", "data/finance"]
        short = train(folder / "short", *ROPE, *SHORT, *blend, *save, iterations=8)
        Path("long.yaml").write_text(LONG, "utf-8")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(["plan", "long.yaml"]) == 0
    path = folder / "long.plan" / "plan.json"
    plan = json.loads(path.read_text("utf-8"))
    return Stage(folder, plan, flags_of(path), printed.getvalue(), short)


@pytest.fixture(scope="module")
def unbroken(stage: Stage) -> Run:
    return stage.train("unbroken")


def documents(folder: Path) -> Read:
    """That a run has read a token of."""
    found: Read = {name: set() for name in DOCUMENTS}
    for sample in open_trace(folder).iterations(1, STEPS + 1):
        name = Path(sample.part.prefixes[sample.prefix]).name
        found[name] |= {span.index for span in sample.documents}
    return found


def test_the_plan_says_what_changes(stage: Stage) -> None:
    assert (stage.plan["global_batch_size"], stage.plan["iterations"]) == (2, STEPS)
    assert stage.plan["continues"]["iteration"] == 8
    assert not stage.plan["warnings"]
    flags = " ".join(stage.flags)
    assert "--pretrained-checkpoint short/checkpoints --max-position-embeddings 512" in flags
    assert "--rotary-base 100000" in flags
    assert stage.plan["learning_rate_flags"][:4] == shlex.split(
        f"--lr-decay-style WSD --lr-wsd-decay-iters {STEPS}"
    )


def test_it_trains_on_what_was_not_read(stage: Stage, unbroken: Run) -> None:
    """No document of the short run comes again, not even a part; the model is the short run's."""
    short, long = documents(stage.short.log_dir), documents(unbroken.log_dir)
    assert all(len(one) > 20 for one in (*short.values(), *long.values()))
    assert not any(short[name] & long[name] for name in DOCUMENTS)
    losses = [float(loss) for loss in unbroken.host_losses()]
    assert len(losses) == STEPS
    assert losses[0] < float(stage.short.host_losses()[0]) - 0.5, "from random weights"
    domains = [line["domains"] for line in unbroken.metrics()]
    assert sum(one["tokens"] for line in domains for one in line.values()) == STEPS * 1024
    assert {name for line in domains for name in line} == set(DOCUMENTS)


def test_a_trace_says_what_was_fed(stage: Stage, unbroken: Run) -> None:
    trace = open_trace(unbroken.log_dir)
    rows = fed(unbroken.log_dir)
    assert sorted(rows) == list(range(1, STEPS + 1))
    assert traced(trace.iterations(1, STEPS + 1), LENGTH) == rows
    read = documents(stage.short.log_dir)["general"]
    assert not list(trace.document("data/general", min(read)))
    later = min(documents(unbroken.log_dir)["general"])
    found = {one.iteration for one in trace.document("data/general", later)}
    assert found and found <= set(rows)


def test_killed_and_resumed(stage: Stage, unbroken: Run) -> None:
    """In the sixth step; the checkpoint before it is that of the third, and the base is not.

    What was typed is what its own checkpoint says, so --use-checkpoint-args is no trap there.
    """
    killed = stage.train("killed", env={"KILL_IN_STEP": "6"}, expect=None)
    assert killed.returncode != 0
    resumed = stage.train("killed", "--use-checkpoint-args")
    assert read_events(resumed.log_dir) == [Event("start", 0), Event("resume", 3)]
    assert fed(resumed.log_dir) == fed(unbroken.log_dir)
    assert counted(resumed.log_dir) == counted(unbroken.log_dir)
    # The host's own second line of a process is a mean of two.
    assert resumed.host_losses()[2:] == unbroken.host_losses()[5:]


def test_in_two_ranks_of_a_sequence(stage: Stage, unbroken: Run) -> None:
    """With context parallelism the same rows are fed, and every domain has the same loss."""
    split = stage.train("cp2", "--context-parallel-size", "2", nproc=2)
    assert fed(split.log_dir, "rows0") == fed(unbroken.log_dir)
    for ours, theirs in zip(split.metrics(), unbroken.metrics(), strict=True):
        assert ours["domains"].keys() == theirs["domains"].keys()
        for name, domain in ours["domains"].items():
            assert domain["tokens"] == theirs["domains"][name]["tokens"]
            assert domain["loss"] == pytest.approx(theirs["domains"][name]["loss"], rel=1e-3)


def test_a_third_stage_goes_on_behind_both(stage: Stage, unbroken: Run) -> None:
    """What the short run has read counts for the next one, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stage.folder)
        text = LONG.replace("short/checkpoints", "unbroken/checkpoints")
        text = text.replace("run: short", "run: unbroken").replace("tokens: 8192", "tokens: 1024")
        Path("third.yaml").write_text(text, "utf-8")
        assert main(["plan", "third.yaml"]) == 0
        files = [Path(f"{name}.plan", "already_read.json") for name in ("long", "third")]
        long, third = (json.loads(file.read_text("utf-8"))["prefixes"] for file in files)
    both = documents(stage.short.log_dir), documents(unbroken.log_dir)
    for name in DOCUMENTS:
        key = str(stage.folder / "data" / name)
        assert numbers(long[key]) == both[0][name]
        assert numbers(third[key]) == both[0][name] | both[1][name]


def test_what_a_stage_leaves_out_is_told_on(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage of general alone says nothing of finance: the short run has read it all the same."""
    third = LONG.replace("short/checkpoints", "middle/checkpoints")
    third = third.replace("run: short", "run: middle").replace("tokens: 8192", "tokens: 1024")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stage.folder)
        middle = LONG.replace("tokens: 8192", "tokens: 2048").replace(", finance: 1", "")
        Path("middle.yaml").write_text(middle, "utf-8")
        assert main(["plan", "middle.yaml"]) == 0
        run = stage.train("middle", *flags_of("middle.plan/plan.json"))
        Path("fourth.yaml").write_text(third, "utf-8")
        capsys.readouterr()
        assert main(["plan", "fourth.yaml"]) == 0
        told = json.loads(Path("fourth.plan/already_read.json").read_text("utf-8"))["prefixes"]
    short = documents(stage.short.log_dir)
    own = {span.index for one in open_trace(run.log_dir).iterations(1, 3) for span in one.documents}
    general, finance = (str(stage.folder / "data" / name) for name in DOCUMENTS)
    assert numbers(told[general]) == short["general"] | own
    assert numbers(told[finance]) == short["finance"]
    read = len(short["finance"])
    printed = "".join(capsys.readouterr())
    assert f"{finance}: {read} of 300 documents were read before that run" in printed


def numbers(told: Mapping[str, Any]) -> set[int]:
    """Of the documents that a file says were read."""
    packed = np.frombuffer(base64.b64decode(told["read"]), np.uint8)
    found = np.flatnonzero(np.unpackbits(packed, count=told["documents"]))
    return set(found.tolist())


def test_another_file_of_what_was_read_is_refused(stage: Stage, unbroken: Run) -> None:
    """At a resume it would make other samples of a prefix; a trace would tell other ones."""
    path = stage.folder / "long.plan" / "already_read.json"
    kept = path.read_bytes()
    content = json.loads(kept)
    one = next(iter(content["prefixes"].values()))
    one["read"] = "AAAA" + one["read"][4:]
    longer = ["--train-iters", "10", "--override-opt_param-scheduler"]
    try:
        path.write_text(json.dumps(content), "utf-8")
        run = stage.train("unbroken", *longer, expect=2)
        assert "mix.already_read" in run.output and " → " in run.output
        with pytest.raises(ConfigError, match="says something else than when the run read it"):
            list(open_trace(unbroken.log_dir).iterations(1, 2))
    finally:
        path.write_bytes(kept)


def test_a_run_of_before_what_was_read_was_told_by_prefix(stage: Stage, unbroken: Run) -> None:
    """Its journal tells the file by a digest without names; it is traced as ever."""
    journal = unbroken.log_dir / "domain_journal.jsonl"
    kept = journal.read_text("utf-8")
    digest = json.loads(kept.splitlines()[0])["reads"]["already_read"]["digest"]
    rows = traced(open_trace(unbroken.log_dir).iterations(1, 3), LENGTH)
    try:
        journal.write_text(kept.replace(digest, digest.partition("-")[0]), "utf-8")
        assert traced(open_trace(unbroken.log_dir).iterations(1, 3), LENGTH) == rows
    finally:
        journal.write_text(kept, "utf-8")


TRAP = "--rotary-base: 100000 has become 10000"


def test_the_trap_stops(stage: Stage) -> None:
    """--use-checkpoint-args would train with the old rotary base, and say nothing."""
    flags = ["--use-checkpoint-args", "--load", "short/checkpoints", "--finetune"]
    run = stage.train("trap", *flags, expect=2)
    assert TRAP in run.output and "Leave --use-checkpoint-args out" in run.output
    assert "Traceback" not in run.output
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stage.folder)
        words = [*MODEL, *ROPE, *stage.flags, *flags, "--channel-loss"]
        answer = ask(words, 1, 1)
    assert answer.outcome == "refused by the plugin" and TRAP in answer.text


def test_the_pages_commands(tmp_path: Path) -> None:
    """All that docs/long-context.md trains; and its preset, without a device, on sparse files."""
    clone = make_clone(tmp_path / "clone")
    shown = [one for one in commands("docs/long-context.md") if "llama" not in one]
    (plan,) = [one for one in blocks("docs/long-context.md", "yaml") if "stages:" in one]
    assert plan == text("configs/recipes/long-context/tiny/stage.yaml")
    done = shell(clone, "set -e\n" + "\n".join(shown), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout[-8000:]
    assert "Goes on from iteration 20 of long/short/checkpoints" in done.stdout
    lines = windows(clone / "long" / "stage")
    assert lines[-1]["iteration"] == 20
    assert lines[-1]["domains"].keys() == {"code", "pages"}


def test_the_preset_fits(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    for name in ("books", "general", "finance"):
        write_prefix(clone / "data" / f"{name}_text_document", [10**8] * 100)
    before = {"seq_length": 8192, "global_batch_size": 128, "max_position_embeddings": 131072}
    rope = {"position_embedding_type": "rope", "rotary_base": 500000, "context_parallel_size": 2}
    run = clone / "runs" / "llama3.1-8b"
    write_checkpoint(run / "checkpoints", "iter_0019073", **before, **rope)
    # That run has read none of these files; a journal of it would take a run.
    preset = text("configs/recipes/long-context/llama3.1-8b.yaml").replace("  run:", "  # run:")
    (clone / "llama3.1-8b.yaml").write_text(preset, "utf-8")
    shown = [one for one in commands("docs/long-context.md") if "llama" in one]
    script = shown[1].replace("pretrain_gpu.sh", "pretrain_gpu.sh --dry-run")
    done = shell(clone, f"domain-pretrain plan llama3.1-8b.yaml && MASTER_ADDR=a {script}")
    assert done.returncode == 0, done.stdout[-8000:]
    command = done.stdout[done.stdout.index("domain_pretrain.launch") :]
    flags = Flags.parse(shlex.split(command)[1:])
    assert list(layout_problems(flags, 32)) == []
    assert (flags.seq_length, flags.global_batch_size, flags.train_iters) == (65536, 16, 1907)
    assert flags.context_parallel_size == 4
    assert flags.pretrained_checkpoint == Path("runs/llama3.1-8b/checkpoints")
    rows = 128256
    assert padded(rows, flags) == rows
