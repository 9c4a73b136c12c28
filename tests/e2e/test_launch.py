"""The launch scripts start real runs: by the words of docs/launch.md, on SLURM, and to the end."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.clone import make_clone, shell, write_command
from support.launch import start_many
from support.metrics import windows
from support.pages import text

pytestmark = pytest.mark.megatron

PAGE = text("docs/launch.md")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return make_clone(tmp_path / "clone")


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of a language under a heading of the page."""
    _, _, rest = PAGE.partition(f"\n## {heading}\n")
    section = rest.partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def test_two_nodes_word_for_word(clone: Path) -> None:
    """What a newcomer copies from the page: the data, the env file, the two commands."""
    (env_file,) = blocks("Two nodes on one machine", "bash\n# configs/launch/loopback.env")
    assert f"# configs/launch/loopback.env\n{env_file}" == text("configs/launch/loopback.env")
    commands = [
        block
        for block in blocks("Two nodes on one machine", "bash")
        if not block.startswith("# configs/launch/loopback.env")
    ]
    done = shell(clone, "set -e\n" + "\n".join(commands))
    assert done.returncode == 0, done.stdout[-8000:]
    assert "2 x 1 = 2 = TP 1 x PP 1 x CP 1 x DP 2" in done.stdout
    run = clone / "loopback" / "run"
    lines = windows(run)
    assert [line["iteration"] for line in lines] == [5, 10, 15, 20]
    assert lines[-1]["domains"].keys() == {"code", "pages"}
    assert lines[-1]["lm_loss"] < lines[0]["lm_loss"]
    # Each node has its logs, each rank its folder.
    for node in ("127.0.0.1", "127.0.0.2"):
        (log,) = (run / "logs" / node).glob("*/attempt_0/0/stdout.log")
        assert log.stat().st_size
    # And again, as the page says: the checkpoint goes on.
    (more,) = re.findall(r"Start them\s+again with `([^`]+)`", PAGE)
    again = commands[-1].replace("loopback.env", f"loopback.env {more}")
    done = shell(clone, "set -e\n" + again)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "iteration 20 of loopback/run/checkpoints" in done.stdout
    lines = windows(run)
    assert [line["iteration"] for line in lines] == [5, 10, 15, 20, 25, 30, 35, 40]


# The stand-ins do what SLURM does that the scripts rely on: a copy of the batch file, the
# variables, a task a node; the nodes are loopback addresses.
SBATCH = """
spool=$(mktemp)
[[ $1 == --nodes=* ]] && nodes=${1#--nodes=} && shift
cp "$1" "$spool" && shift
export SLURM_JOB_ID=4242 SLURM_SUBMIT_DIR=$PWD SLURM_JOB_NUM_NODES=$nodes
export SLURM_JOB_NODELIST="127.0.0.[1-$nodes]"
cd / && exec bash "$spool" "$@"
"""
SCONTROL = (
    '[[ "$1 $2" == "show hostnames" ]]; eval "printf \'127.0.0.%s\\n\' {1..$SLURM_JOB_NUM_NODES}"'
)
SRUN = """
[[ $1 == --kill-on-bad-exit=1 ]] && shift
for ((i = 0; i < SLURM_JOB_NUM_NODES; i++)); do
  SLURM_NODEID=$i NODE_ADDR=127.0.0.$((i + 1)) "$@" &
  tasks[i]=$!
done
code=0
for task in "${tasks[@]}"; do wait "$task" || { new=$?; ((new > code)) && code=$new; }; done
exit $code
"""
# Stands for training: all ranks meet, and one of them ends as it is told.
ENDING = """
import os, signal, torch
torch.distributed.init_process_group("gloo")
total = torch.ones(())
torch.distributed.all_reduce(total)
print("met", int(total), flush=True)
attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), torch.distributed.get_rank()
torch.distributed.barrier()
if attempt == 0 and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if "CODE" in os.environ:
    raise SystemExit(int(os.environ["CODE"]))
torch.distributed.barrier()
"""
ENV_FILE = """
RUN_DIR=run NODES=${NODES:-1} DEVICES_PER_NODE=1 SCRIPT=ending.py
export GLOO_SOCKET_IFNAME=lo
FLAGS=(--mock-data --seq-length 8 --global-batch-size 2 --micro-batch-size 1 --train-iters 1)
"""


@pytest.fixture
def ending(clone: Path) -> Path:
    (clone / "ending.py").write_text(ENDING)
    (clone / "my.env").write_text(ENV_FILE)
    return clone


def test_slurm(ending: Path) -> None:
    """Two nodes; one loses its process, both start it again, and the job ends well."""
    for name, body in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("srun", SRUN)):
        write_command(ending / "bin" / name, body)
    done = shell(ending, "sbatch --nodes=2 scripts/slurm.sbatch my.env --seed 7")
    assert done.returncode == 0, done.stdout[-8000:]
    logs = {
        log.relative_to(ending / "run" / "logs").parts[0::2]: log.read_text()
        for log in ending.glob("run/logs/*/4242_*/attempt_*/0/stdout.log")
    }
    assert all("met 2" in log for log in logs.values())
    starts = {(node, attempt) for node, attempt, *_ in logs}
    # Where the other node was quicker to ask for a restart, torchrun counts it as the same attempt.
    assert {node for node, _ in starts} == {"127.0.0.1", "127.0.0.2"}
    assert {attempt for _, attempt in starts} == {"attempt_0", "attempt_1"}
    assert done.stdout.count("met 2") == 4


def test_the_exit_code_is_that_of_the_training(ending: Path) -> None:
    done = shell(ending, "scripts/pretrain_gpu.sh my.env", CODE="7", MAX_RESTARTS="0")
    assert done.returncode == 7, done.stdout[-4000:]
    assert "launch: rank 0 failed: exit code 7, no restart left. Logs: run/logs/" in done.stdout
    # A preflight that fails is an end before any process, with its own code.
    refused = shell(ending, "scripts/pretrain_gpu.sh my.env --train-iters -1")
    assert refused.returncode == 2
    assert "--train-iters: Input should be greater than or equal to 0" in refused.stdout
    assert "launch:" not in refused.stdout


PRESETS = ("qwen2.5-1.5b", "llama3.1-8b", "llama3.1-70b", "qwen3-30b-a3b")


def test_megatron_takes_every_preset(clone: Path) -> None:
    """All of its own checks of flags pass, for every preset and its numbers of nodes."""
    cases = []
    for name in PRESETS:
        for nodes in (1, 8, 64):
            script = f"scripts/pretrain_gpu.sh --dry-run configs/launch/{name}.env"
            said = shell(clone, script, NODES=str(nodes)).stdout.replace("\\\n", " ")
            words = shlex.split(said)
            words = words[words.index("domain_pretrain.launch") + 1 :]
            at = words.index("--domain-config")  # its data is not here
            words[at : at + 2] = ["--data-path", "1", "a", "5", "b"]
            # It asks the GPU for its compute capability.
            words = [word for word in words if word != "--moe-grouped-gemm"]
            cases.append({"words": words, "env": {"WORLD_SIZE": str(8 * nodes)}})
    outcomes = start_many(cases)
    assert [outcome["code"] for outcome in outcomes] == [None] * len(cases), outcomes
