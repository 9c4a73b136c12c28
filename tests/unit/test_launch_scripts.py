"""The launch scripts: their shell, and every preset's command, without starting anything."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from domain_pretrain.data.vocabulary import vocabulary
from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.layout import layout_problems
from domain_pretrain.launch.size import parameters

ROOT = Path(__file__).parents[2]
SHELL = sorted(
    str(path.relative_to(ROOT))
    for pattern in (
        "scripts/*.sh",
        "scripts/*.sbatch",
        "configs/launch/*.env",
        "configs/recipes/*.env",
    )
    for path in ROOT.glob(pattern)
)
# Preset, its billions of parameters, the numbers of nodes it has a layout for.
PRESETS = [
    ("qwen2.5-1.5b", 1.54, (1, 8, 64)),
    ("llama3.1-8b", 8.03, (1, 8, 64)),
    ("llama3.1-70b", 70.6, (1, 8, 64)),
    ("qwen3-30b-a3b", 30.5, (1, 8, 64)),
    ("npu-qwen3-8b", 8.19, (1, 8, 64)),
    ("npu-qwen3-30b-a3b", 30.5, (2, 8, 64)),
]
LAYOUTS = [(name, size, nodes) for name, size, all_nodes in PRESETS for nodes in all_nodes]


def dry_run(env_file: str, *words: str, code: int = 0, **variables: str) -> tuple[list[str], str]:
    """The words of the command, and what was said on standard error."""
    script = "pretrain_npu.sh" if "npu-" in env_file else "pretrain_gpu.sh"
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    done = subprocess.run(
        [ROOT / "scripts" / script, "--dry-run", env_file, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**kept, "MINDSPEED_LLM_PATH": "/mindspeed", **variables},
    )
    assert done.returncode == code, done.stderr
    return shlex.split(done.stdout.replace("\\\n", " ")), done.stderr


@pytest.mark.parametrize("name", SHELL)
def test_bash_parses_it(name: str) -> None:
    subprocess.run(["bash", "-n", ROOT / name], check=True)


def test_shellcheck_is_content() -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        [found, "--external-sources", *SHELL], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_every_preset_is_tested_here() -> None:
    assert {f"{name}.env" for name, *_ in PRESETS} | {"loopback.env"} == {
        path.name for path in (ROOT / "configs" / "launch").iterdir()
    }


@pytest.mark.parametrize(("name", "billions", "nodes"), LAYOUTS)
def test_presets_fit_their_nodes(name: str, billions: float, nodes: int) -> None:
    words, _ = dry_run(f"configs/launch/{name}.env", NODES=str(nodes), MASTER_ADDR="first")
    assert f"--nnodes={nodes}" in words
    (endpoint,) = [word for word in words if word.startswith("--rdzv-endpoint=")]
    assert endpoint.startswith("--rdzv-endpoint=first:") == (nodes > 1)
    flags = Flags.parse(words)
    assert list(layout_problems(flags, 8 * nodes)) == []
    assert (parameters(flags, vocabulary(flags)) or 0) / 1e9 == pytest.approx(billions, rel=0.005)
    assert flags.save == flags.load == Path("runs") / name / "checkpoints"
    # Of 20 billion tokens, in steps that a continued pretraining can take.
    assert flags.train_iters and flags.global_batch_size and flags.seq_length
    per_step = flags.global_batch_size * flags.seq_length
    assert 2**18 <= per_step <= 2**25
    assert 20e9 - per_step < per_step * flags.train_iters <= 20e9


def test_nodes_without_a_preset_are_refused() -> None:
    _, said = dry_run("configs/launch/llama3.1-70b.env", NODES="3", code=2)
    assert "3 nodes have no preset" in said


def test_the_file_can_be_overridden() -> None:
    env = "configs/launch/llama3.1-8b.env"
    words, _ = dry_run(env, "--lr", "3e-5", RUN_DIR="here and there", BASE_CHECKPOINT="")
    assert words[-2:] == ["--lr", "3e-5"]
    assert "--domain-log-dir" in words
    assert words[words.index("--domain-log-dir") + 1] == "here and there"
    assert "--pretrained-checkpoint" not in words


def test_a_plan_wins_over_the_file_and_loses_to_flags(tmp_path: Path) -> None:
    """Its words stay apart, whatever is in them; and what is no plan starts nothing."""
    plan = tmp_path / "plan of mine.json"
    planned = ["--train-iters", "76", "--data-path", "3", "data/with space", "--lr", "7"]
    plan.write_text(json.dumps({"flags": planned}))
    python = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "src")}
    env = "configs/launch/llama3.1-8b.env"
    words, _ = dry_run(env, "--lr", "3e-5", PLAN=str(plan), **python)
    at = words.index("data/with space") - 4
    assert words[at : at + len(planned)] == planned
    assert words.index("--train-iters") < at < words.index("--save")
    assert words[-2:] == ["--lr", "3e-5"]
    plan.write_text("{}")
    _, said = dry_run(env, PLAN=str(plan), code=2, **python)
    assert "is no plan.json" in said


def test_which_script_runs() -> None:
    env = "configs/launch/llama3.1-8b.env"

    def after_module(words: list[str]) -> str:
        return words[words.index("domain_pretrain.launch") + 1]

    assert after_module(dry_run(env)[0]) == "--num-layers"
    assert after_module(dry_run(env, MEGATRON_LM_PATH="/meg")[0]) == "/meg/pretrain_gpt.py"
    assert after_module(dry_run(env, SCRIPT="mine.py", MEGATRON_LM_PATH="/meg")[0]) == "mine.py"
    npu = dry_run("configs/launch/npu-qwen3-8b.env")[0]
    assert after_module(npu) == "/mindspeed/pretrain_gpt.py"


def test_where_a_node_learns_who_it_is() -> None:
    def rendezvous(**variables: str) -> tuple[str, str, str]:
        words, _ = dry_run("configs/launch/llama3.1-8b.env", NODES="8", **variables)
        (conf,) = [word for word in words if word.startswith("--rdzv-conf=")]
        (endpoint,) = [word for word in words if word.startswith("--rdzv-endpoint=")]
        (job,) = [word for word in words if word.startswith("--rdzv-id=")]
        return endpoint.split("=")[1], conf.partition("=")[2], job.split("=")[1]

    plain = "join_timeout=600"
    endpoint, conf, job = rendezvous(MASTER_ADDR="a")
    address, port = endpoint.split(":")
    assert (address, conf, job) == ("a", plain, "llama3.1-8b")
    # By the job: all its nodes find it, and two jobs may share a first node.
    assert 20_000 <= int(port) < 30_000
    assert rendezvous(MASTER_ADDR="a", NODE_RANK="3")[0] == endpoint
    assert rendezvous(MASTER_ADDR="a", JOB_ID="another")[0] != endpoint
    assert rendezvous(MASTER_ADDR="a", NODE_RANK="0")[1] == f"{plain},is_host=1"
    slurm = rendezvous(MASTER_ADDR="a", MASTER_PORT="7", SLURM_NODEID="3", SLURM_JOB_ID="42")
    assert slurm == ("a:7", f"{plain},is_host=0", "42")
    kubeflow = rendezvous(PET_MASTER_ADDR="b", PET_MASTER_PORT="8", PET_NODE_RANK="0")
    assert kubeflow == ("b:8", f"{plain},is_host=1", "llama3.1-8b")


@pytest.mark.parametrize(
    "around",
    [
        {"NODE_RANK": "1"},
        {"SLURM_NODEID": "3", "SLURMD_NODENAME": "n4", "SLURM_JOB_ID": "42"},
        {"PET_NODE_RANK": "1", "PET_MASTER_ADDR": "a", "PET_MASTER_PORT": "29400"},
        {"SLURM_NODEID": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"},
    ],
)
def test_a_single_node_waits_for_nobody(around: dict[str, str]) -> None:
    """Nor for a port that may be taken: what is told of a job is not of this run."""
    words, _ = dry_run("configs/launch/llama3.1-8b.env", NODES="1", **around)
    assert "--rdzv-endpoint=127.0.0.1:0" in words
    assert "--rdzv-conf=join_timeout=600,is_host=1" in words


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"NODE_RANK": "abc"}, "NODE_RANK must be a whole number from 0 to 7, got abc"),
        ({"NODE_RANK": "09"}, "NODE_RANK must be a whole number from 0 to 7, got 09"),
        ({"NODE_RANK": "8"}, "NODE_RANK must be a whole number from 0 to 7, got 8"),
        ({"SLURM_NODEID": "8"}, "SLURM_NODEID must be a whole number from 0 to 7, got 8; set NODE"),
        ({"JOIN_TIMEOUT": "x"}, "JOIN_TIMEOUT must be a whole number from 1 on, got x"),
        ({"JOIN_TIMEOUT": "0"}, "JOIN_TIMEOUT must be a whole number from 1 on, got 0"),
        ({"MAX_RESTARTS": "-1"}, "MAX_RESTARTS must be a whole number from 0 on, got -1"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT must be a whole number from 1 to 65535, got abc"),
        ({"PET_MASTER_PORT": "65536"}, "PET_MASTER_PORT must be a whole number from 1 to 65535"),
    ],
)
def test_numbers_are_checked(variables: dict[str, str], said: str) -> None:
    words = {"NODES": "8", "MASTER_ADDR": "a", **variables}
    assert said in dry_run("configs/launch/llama3.1-8b.env", code=2, **words)[1]


def test_a_rank_that_is_given_comes_before_that_of_the_job_around_it() -> None:
    """Such as of two nodes of four."""
    given = {"NODES": "8", "NODE_RANK": "0", "SLURM_NODEID": "17"}
    words, _ = dry_run("configs/launch/llama3.1-8b.env", **given)
    assert "--rdzv-conf=join_timeout=600,is_host=1" in words


def test_names_of_jobs_and_folders() -> None:
    """torchrun makes a folder by the job's; and no folder is a flag."""
    env = "configs/launch/llama3.1-8b.env"
    assert "--rdzv-id=a_b" in dry_run(env, JOB_ID="a/b")[0]
    words, said = dry_run(env, RUN_DIR="-x")
    assert said == ""
    assert "--rdzv-id=-x" in words
    assert words[words.index("--save") + 1] == "./-x/checkpoints"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no env file"),
        ("RUN_DIR=x NODES=1 DEVICES_PER_NODE=1", "does not set FLAGS"),
        ("FLAGS=(--x) NODES=1 DEVICES_PER_NODE=1", "does not set RUN_DIR"),
        ("RUN_DIR=x NODES=1 DEVICES_PER_NODE=eight FLAGS=(--x)", "DEVICES_PER_NODE must be"),
        ("RUN_DIR=x NODES=0 DEVICES_PER_NODE=8 FLAGS=(--x)", "NODES must be a whole"),
        (f"RUN_DIR=x NODES={'9' * 20} DEVICES_PER_NODE=8 FLAGS=(--x)", "NODES must be a whole"),
        ("FLAGS=($UNKNOWN)", "UNKNOWN"),
        ("false", "a command in the env file failed"),
        ("false || [[ -n ${DEBUG:-} ]] && DEBUG=2", "or its last one is false"),
    ],
)
def test_a_wrong_env_file(content: str | None, said: str, tmp_path: Path) -> None:
    env = tmp_path / "my.env"
    if content is not None:
        env.write_text(content)
    code = 1 if content and content.startswith(("false", "FLAGS=($")) else 2
    assert said in dry_run(str(env), code=code)[1]


def test_an_env_file_here_comes_before_a_program_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "date").write_text((ROOT / "configs/launch/loopback.env").read_text())
    done = subprocess.run(
        [ROOT / "scripts" / "pretrain_gpu.sh", "--dry-run", "date"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "--rdzv-endpoint" in done.stdout


def test_usage() -> None:
    for words in ([], ["--dry-run"], ["--help"]):
        done = subprocess.run(
            [ROOT / "scripts" / "pretrain_gpu.sh", *words], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "usage:" in done.stderr


def test_several_nodes_need_the_address_of_the_first() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "pretrain_gpu.sh", "configs/launch/llama3.1-8b.env"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "NODES": "8"},
    )
    assert done.returncode == 2
    assert "MASTER_ADDR=its name or address" in done.stderr


def slurm(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The batch script on two nodes, n1 and n2; what it starts prints where the nodes meet."""
    for name, body in (
        ("scontrol", "printf '%s\\n' n1 n2"),
        ("srun", 'echo "meet at $MASTER_ADDR: $*"'),
    ):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    job = {
        "JOB_ID": "42",
        "SUBMIT_DIR": str(folder),
        "JOB_NUM_NODES": "2",
        "JOB_NODELIST": "n[1-2]",
    }
    return subprocess.run(
        ["bash", ROOT / "scripts" / "slurm.sbatch", "my.env"],
        capture_output=True,
        text=True,
        env={
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            **{f"SLURM_{name}": value for name, value in job.items()},
            **variables,
        },
    )


def test_slurm_keeps_an_address_that_is_given(tmp_path: Path) -> None:
    assert slurm(tmp_path).stdout.startswith("meet at n1: --kill-on-bad-exit=1 ")
    assert slurm(tmp_path, MASTER_ADDR="n1-ib").stdout.startswith("meet at n1-ib: ")


def test_slurm_starts_one_task_a_node(tmp_path: Path) -> None:
    assert slurm(tmp_path, SLURM_NTASKS_PER_NODE="1").returncode == 0
    refused = slurm(tmp_path, SLURM_NTASKS_PER_NODE="8")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--ntasks-per-node=8: one task a node" in refused.stderr
