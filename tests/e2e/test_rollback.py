"""A spike: the run goes back, and what comes then is as if it had never held the samples."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.clone import make_clone, shell
from support.launch import MODEL, SCRIPTS, Run, train
from support.metrics import counted, windows
from support.streams import fed, recorded_run

from domain_pretrain.records.journal import read_starts
from domain_pretrain.records.reader import read_events
from domain_pretrain.watch.decision import EXIT_CODE, read_decisions

pytestmark = pytest.mark.megatron

STEPS = 10
# With 8 samples a step, the garbage is in two of them: positions 44 to 55. The alarm trusts no step
# from the one before on.
GARBAGE = [
    {"samples": 44, "weights": {"general": 5, "finance": 1, "code": 1}},
    {"samples": 12, "weights": {"rare": 1}},
    {"weights": {"general": 5, "finance": 1, "maths": 1}},
]
# Found in step 6: back to the checkpoint of step 3, and steps 5 and 6 are cut out. So step 5 reads
# the rest of it, and the way back from there is to step 3, too.
CUTS = [(32, 48), (24, 56)]
FLAGS = shlex.split("--save-interval 3 --pipeline-model-parallel-size 2 --num-workers 1")
LAYOUT = 4  # DP2 x PP2
KILLS = 5


def run(folder: Path, blend: list[str], mix: dict[str, Any], watch: dict[str, Any], **how) -> Run:
    folder.mkdir(exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(json.dumps({"mix": mix, "watch": watch}))
    words = [*blend, *FLAGS, "--domain-config", config]
    words += ["--save", folder / "checkpoints", "--load", folder / "checkpoints"]
    return train(folder, *words, script="spiking_gpt.py", iterations=STEPS, nproc=LAYOUT, **how)


def test_killed_again_and_again(blend: list[str], tmp_path: Path) -> None:
    """DP2 x PP2, started by hand: three kills while training, two while it decides."""
    expected = tmp_path / "never held them"
    mix = {"schedule": GARBAGE, "skip": [{"samples": [24, 56]}]}
    run(expected, blend, mix, {"alarms": {"garbage": {}}})
    assert len(windows(expected, "train")) == STEPS

    folder, seed = tmp_path / "rolled back", random.randrange(10**6)
    rng = random.Random(seed)
    watch = {"alarms": {"garbage": {}}, "on_spike": "rollback"}
    points = ("latest_checkpointed_iteration.txt", "domain_decisions.json", "domain_journal.jsonl")
    ends = []
    for number in range(KILLS + len(CUTS) + 1):
        kill: dict[str, Any] = {}
        if number < KILLS:
            kill = {"rank": LAYOUT - 1, "at": rng.choice(points)}  # the rank that writes
            if number % 2 == 0:
                # Of 4 passes a step: the second way back, of two steps, begins at the end of 8.
                kill = {"rank": rng.randrange(LAYOUT), "at": rng.randint(1, 8)}
        env = {"KILL": json.dumps(kill)}
        done = run(folder, blend, {"schedule": GARBAGE}, watch, expect=None, env=env)
        ends.append((kill, done.returncode))
        if done.returncode == 0:
            break
    else:
        pytest.fail(f"seed {seed}: {ends}\n{done.output[-6000:]}")
    assert len(ends) > KILLS, f"seed {seed}: {ends}"

    assert counted(folder) == counted(expected), f"seed {seed}: {ends}"
    decisions = read_decisions(folder / "checkpoints")
    told = [(one.action, one.resume, one.samples) for one in decisions]
    assert told == [("rollback", 3, cut) for cut in CUTS], f"seed {seed}: {ends}"
    events = [event for event in read_events(folder) if event.name == "rollback"]
    assert {event.iteration for event in events} == {3}
    assert sorted(event.detail for event in events) == sorted(map(str, decisions))
    last = read_starts(folder)[-1].reads
    assert last is not None
    assert last["plan"]["cuts"] == [[24, 56]]


def test_what_the_losses_decided_is_cut_as_it_was(blend: list[str], tmp_path: Path) -> None:
    """The checkpoint is from before two blocks of the cut were decided, and the next decisions come
    from other losses: all the same, nothing of it is read again, nor anything twice."""
    at_once = {
        "ema_tokens": 1,
        "temperature": 0.3,
        "warmup_steps": 0,
        "clip": [0.1, 3],
        "block": 16,
    }
    config = {
        "mix": {"dynamic": {"strategy": "linupper", **at_once}},
        "watch": {"alarms": {"told": {}}, "on_spike": "rollback"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    data = ["1" if word.replace(".", "").isdigit() else word for word in blend]  # equal weights
    words = [*data, "--domain-config", tmp_path / "config.yaml", "--num-workers", "1"]
    words += ["--save", tmp_path / "checkpoints", "--load", tmp_path / "checkpoints"]
    how: dict[str, Any] = {"iterations": 20, "expect": EXIT_CODE, "env": {"SPIKE": "9 14"}}
    recorded_run(tmp_path, words, None, "--save-interval", "6", **how)
    gone = [row for step, rows in fed(tmp_path).items() if 9 < step <= 14 for row in rows]
    recorded_run(tmp_path, words, None, "--save-interval", "6", **{**how, "env": {}, "expect": 0})
    (decision,) = read_decisions(tmp_path / "checkpoints")
    assert (decision.resume, decision.samples) == (6, (72, 112))
    assert {5, 6} <= decision.blocks.keys()
    read = [row for rows in fed(tmp_path).values() for row in rows]
    assert (len(read), len(gone)) == (160, 40)
    assert len({*read, *gone}) == 200


ENV_FILE = """
RUN_DIR=run NODES=1 DEVICES_PER_NODE=1
export GLOO_SOCKET_IFNAME=lo
FLAGS=({flags})
"""


def test_the_launcher_goes_back_and_stops(blend: list[str], tmp_path: Path) -> None:
    """Once, as it is allowed to, which is no restart; then it ends with the code that says so."""
    clone = make_clone(tmp_path / "clone")
    mix = {"schedule": [{"samples": 44, "weights": {"general": 1}}, *GARBAGE[1:]]}
    watch = {"alarms": {"garbage": {}}, "on_spike": "rollback", "rollbacks": 1}
    (clone / "config.yaml").write_text(json.dumps({"mix": mix, "watch": watch}))
    flags = [*MODEL, *blend, "--train-iters", str(STEPS), "--save-interval", "3"]
    flags += ["--channel-loss", "--domain-config", "config.yaml"]
    (clone / "my.env").write_text(ENV_FILE.format(flags=shlex.join(map(str, flags))))
    command = "scripts/pretrain_gpu.sh my.env"
    script = str(SCRIPTS / "spiking_gpt.py")
    done = shell(clone, command, SCRIPT=script, MAX_RESTARTS="0")
    assert done.returncode == EXIT_CODE, done.stdout[-6000:]
    assert "domain_pretrain: from iteration 6 back to 3, and samples 32 to 48" in done.stdout
    assert "domain_pretrain: resuming from iteration 3" in done.stdout
    assert (
        "launch: stopped at iteration 5: rare at iteration 5; no rollback: 1 of at most 1 were made"
    ) in done.stdout
    actions = [one.action for one in read_decisions(clone / "run" / "checkpoints")]
    assert actions == ["rollback", "stop"]
    assert [line["iteration"] for line in windows(clone / "run", "train")] == [1, 2, 3, 4, 5]
