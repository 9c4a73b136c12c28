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
                kill = {"rank": rng.randrange(LAYOUT), "at": rng.randint(1, 9)}
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
    assert {event.detail for event in events} == {str(one) for one in decisions}
    last = read_starts(folder)[-1].reads
    assert last is not None
    assert last["plan"]["cuts"] == [[24, 56]]


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
