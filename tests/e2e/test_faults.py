"""What is broken on purpose while a run trains: it ends or goes on, says so, and resumes exactly.

docs/faults.md lists the faults. Those that take minutes of waiting run with SLOW=1.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.fork_server import free_port
from support.launch import MODEL, SCRIPTS, environment, train
from support.metrics import counted

pytestmark = pytest.mark.megatron
slow = pytest.mark.skipif("SLOW" not in os.environ, reason="takes minutes: set SLOW=1")
psutil = pytest.importorskip("psutil")

ROOT = Path(__file__).parents[2]
# Of launch.train's model; checkpoints fall into open windows of the console.
FLAGS = "--log-interval 3 --save-interval 4 --eval-interval 10 --eval-iters 1 --global-batch-size 4"
ITERATIONS = 24
ENV_FILE = """
RUN_DIR={folder}/run NODES=2 DEVICES_PER_NODE=1 PYTHON={python} SCRIPT={script}
FLAGS=({flags} --distributed-timeout-minutes ${{TIMEOUT_MINUTES:-10}})
"""
PATIENCE_S = 600  # for what has to come, however busy the machine is


@pytest.fixture(scope="module")
def flags(blend: list[str]) -> list[str]:
    return [*blend, *FLAGS.split()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> bytes:
    """The metrics of two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")
    return counted(train(folder, *flags, nproc=2, iterations=ITERATIONS).log_dir)


class Node:
    """scripts/pretrain_gpu.sh on an address of its own, as a node of a cluster would run it."""

    def __init__(self, env_file: Path, rank: int, *command: str, **variables: str) -> None:
        self.log = env_file.with_name(f"node{rank}-{time.monotonic_ns()}.log")
        address = {"NODE_ADDR": f"127.0.0.{rank + 1}", "MASTER_ADDR": "127.0.0.1"}
        address["GLOO_SOCKET_IFNAME"] = "lo"
        env = environment(NODE_RANK=str(rank), PYTHONPATH=str(ROOT / "src"), **address)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, ROOT / "scripts" / "pretrain_gpu.sh", env_file],
                env={**env, **variables},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def family(self) -> list[psutil.Process]:
        """The script's process and all below it; it is the first."""
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def worker(self) -> psutil.Process:
        """The process that trains."""
        agent = self.family()[0]
        return next(p for p in agent.children() if "domain_pretrain.launch" in p.cmdline())

    def kill(self) -> None:
        """The whole node at once, as a power cut."""
        for process in self.family():
            process.kill()
        self.process.wait()

    def ends(self) -> tuple[int, str]:
        """Exit code, and all that was said."""
        code = self.process.wait(PATIENCE_S)
        return code, self.log.read_text(errors="replace")


class Cluster:
    """Two nodes and the folder that they share; node 1 stops before steps 7 and 13 until it is
    let through, so that what happens to it happens there."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.port = free_port()
        self.folder = folder
        self.run = folder / "run"
        self.env_file = folder / "my.env"
        quoted = " ".join(f"'{word}'" for word in words)
        how = {"folder": folder, "python": sys.executable, "flags": quoted}
        script = SCRIPTS / "gated_gpt.py"
        self.env_file.write_text(ENV_FILE.format(script=script, **how))
        self.nodes: dict[int, Node] = {}

    def start(self, *ranks: int, command: tuple[str, ...] = (), **variables: str) -> None:
        for rank in ranks:
            settings = {"MASTER_PORT": str(self.port), "JOIN_TIMEOUT": str(PATIENCE_S)}
            settings |= {"GATES": str(self.folder)} if rank == 1 else {}
            self.nodes[rank] = Node(self.env_file, rank, *command, **{**settings, **variables})

    def let_through(self, step: int) -> None:
        (self.folder / f"open{step}").touch()

    def wait_for_iteration(self, iteration: int) -> None:
        """Until the metrics file has a line of it."""
        end = time.monotonic() + PATIENCE_S
        while f'{{"iteration": {iteration},'.encode() not in counted(self.run):
            for rank, node in self.nodes.items():
                said = node.log.read_text(errors="replace")[-4000:]
                assert node.process.poll() is None, f"node {rank} has ended:\n{said}"
                assert time.monotonic() < end, f"node {rank} says:\n{said}"
            time.sleep(0.05)

    def close(self) -> None:
        for node in self.nodes.values():
            if node.process.poll() is None:
                node.kill()


@pytest.fixture
def cluster(tmp_path: Path, flags: list[str]) -> Iterator[Cluster]:
    words = [*MODEL, "--train-iters", str(ITERATIONS), "--channel-loss", *flags]
    cluster = Cluster(tmp_path, words)
    yield cluster
    cluster.close()


def test_a_rank_and_then_a_node(cluster: Cluster, unbroken: bytes) -> None:
    """A killed process is started again by itself; a lost node is waited for."""
    cluster.start(0, 1)
    cluster.wait_for_iteration(6)
    cluster.nodes[1].worker().kill()
    cluster.let_through(7)
    cluster.wait_for_iteration(12)
    lost = cluster.nodes.pop(1)
    lost.kill()
    cluster.let_through(13)
    cluster.start(1)
    (code, said), (other, _) = cluster.nodes[0].ends(), cluster.nodes[1].ends()
    assert (code, other) == (0, 0), said[-4000:]
    assert said.count("domain_pretrain: resuming from iteration") >= 2
    assert "exitcode: -9" in lost.log.read_text(errors="replace")
    assert counted(cluster.run) == unbroken


@slow
def test_a_rank_that_hangs(cluster: Cluster, unbroken: bytes) -> None:
    """The others give it --distributed-timeout-minutes; then all are started again."""
    cluster.start(0, 1, TIMEOUT_MINUTES="1")
    cluster.wait_for_iteration(6)
    stopped = cluster.nodes[1].worker()
    stopped.send_signal(signal.SIGSTOP)
    for step in (7, 13):
        cluster.let_through(step)
    began, log = time.monotonic(), cluster.nodes[0].log
    while "Timed out waiting 60000ms" not in log.read_text(errors="replace"):
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.5)
    (code, said), (other, _) = cluster.nodes[0].ends(), cluster.nodes[1].ends()
    assert (code, other) == (0, 0), said[-4000:]
    assert counted(cluster.run) == unbroken


@pytest.fixture
def network() -> Iterator[tuple[str, str]]:
    """Two network namespaces, joined by a cable; their names are also those of its ends."""
    names = (f"dp{os.getpid()}a", f"dp{os.getpid()}b")
    if shutil.which("ip") is None or os.geteuid():
        pytest.skip("network namespaces need root and iproute2")

    def ip(words: str) -> None:
        subprocess.run(["ip", *words.split()], check=True)

    for name in names:
        ip(f"netns add {name}")
    try:
        ip(f"link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}")
        for number, name in enumerate(names, start=1):
            ip(f"-n {name} addr add 10.77.0.{number}/24 dev {name}")
            ip(f"-n {name} link set {name} up")
            ip(f"-n {name} link set lo up")
        yield names
    finally:
        for name in names:
            ip(f"netns del {name}")


@slow
def test_a_network_that_is_cut(cluster: Cluster, network: tuple[str, str], unbroken: bytes) -> None:
    """Each side gives up, says so and ends; started again with the network back, they resume."""

    def start() -> None:
        for rank, name in enumerate(network):
            address = {"NODE_ADDR": f"10.77.0.{rank + 1}", "MASTER_ADDR": "10.77.0.1"}
            command = ("ip", "netns", "exec", name)
            limits = {"JOIN_TIMEOUT": "20", "TIMEOUT_MINUTES": "1"}
            cluster.start(rank, command=command, GLOO_SOCKET_IFNAME=name, **limits, **address)

    start()
    cluster.wait_for_iteration(6)
    cable = ["ip", "-n", network[0], "link", "set", network[0]]
    subprocess.run([*cable, "down"], check=True)
    for step in (7, 13):
        cluster.let_through(step)
    for node in cluster.nodes.values():
        code, said = node.ends()
        assert code == 1, said[-4000:]
        assert "launch: this node lost the others" in said
    subprocess.run([*cable, "up"], check=True)
    start()
    for node in cluster.nodes.values():
        code, said = node.ends()
        assert code == 0, said[-4000:]
    assert "resuming from iteration" in cluster.nodes[0].log.read_text(errors="replace")
    assert counted(cluster.run) == unbroken


# --- One process ---


def launch_one(folder: Path, words: list[str | Path]) -> str:
    """Train by the command that torchrun starts for each rank; the output."""
    done = subprocess.run(
        [sys.executable, "-m", "domain_pretrain.launch", *MODEL, *words, "--channel-loss"],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT / "src")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_a_crash_of_the_machine(tmp_path: Path, blend: list[str], base_checkpoint: Path) -> None:
    """The first start takes the base model; after a crash the same command resumes."""
    words: list[str | Path] = [*blend, "--pretrained-checkpoint", base_checkpoint]
    words += ["--save", "run", "--load", "run", "--save-interval", "2", "--domain-log-dir", "."]
    words += ["--global-batch-size", "4", "--train-iters"]
    first = launch_one(tmp_path, [*words, "5"])
    assert "resuming from" not in first
    lines = counted(tmp_path).splitlines()
    assert b'{"iteration": 1, "consumed_samples": 4,' in lines[0]

    os.truncate(tmp_path / "run" / "latest_checkpointed_iteration.txt", 0)
    for name in ("iter_0000004", "iter_0000005"):
        (data,) = (tmp_path / "run" / name).glob("*.distcp")
        os.truncate(data, data.stat().st_size // 2)
    second = launch_one(tmp_path, [*words, "5"])
    for said in ("latest_checkpointed_iteration.txt is torn", "iter_0000005 is not good"):
        assert said in second
    assert "domain_pretrain: resuming from iteration 2" in second
    assert counted(tmp_path).splitlines() == lines


# --- A full disk ---------------------------------------------------------------------------------

# Runs as root of a namespace of its own, where it may mount. $1: size, $2: the larger size,
# then the command. Prints the two exit codes.
FULL_DISK = """
set -euo pipefail
mount -t tmpfs -o "size=$1" tmpfs small
"${@:3}" > first.log 2>&1 && code=0 || code=$?
echo "$code"
mount -o "remount,size=$2" small
"${@:3}" > second.log 2>&1 && code=0 || code=$?
echo "$code"
cp -r small kept
"""


def full_disk(folder: Path, size: str, words: list[str | Path]) -> tuple[list[int], str, str]:
    """Train on a small disk, then again on a larger one: exit codes and outputs of both."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c"]
    probe = subprocess.run([*unshare, "mount -t tmpfs tmpfs /mnt"], capture_output=True)
    if shutil.which("unshare") is None or probe.returncode:
        pytest.skip("no namespace to mount a small disk in")
    (folder / "small").mkdir()
    command = [sys.executable, "-m", "domain_pretrain.launch", *words]
    done = subprocess.run(
        [*unshare, FULL_DISK, "bash", size, "64m", *command],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT / "src")),
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    first, second = ((folder / f"{name}.log").read_text() for name in ("first", "second"))
    return [int(code) for code in done.stdout.split()], first, second


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> bytes:
    """The metrics of one rank that nothing happened to."""
    folder = tmp_path_factory.mktemp("single")
    return counted(train(folder, *flags, iterations=ITERATIONS).log_dir)


def test_a_full_disk(tmp_path: Path, flags: list[str], single: bytes) -> None:
    """While a checkpoint is saved, and while a metrics line is written; two runs side by side."""
    words: list[str | Path] = [*MODEL, *flags, "--channel-loss", "--train-iters", str(ITERATIONS)]

    def starve(what: str, disk: str, other: str, size: str) -> tuple[list[int], str, str]:
        folder = tmp_path / what
        folder.mkdir()
        paths = ["--save", f"{disk}/checkpoints", "--load", f"{disk}/checkpoints"]
        return full_disk(folder, size, [*words, *paths, "--domain-log-dir", f"{other}/log"])

    with ThreadPoolExecutor() as pool:
        checkpoint = pool.submit(starve, "checkpoint", "small", "large", "1400k")
        lines = pool.submit(starve, "lines", "large", "small", "8k")
    for codes, first, second in (checkpoint.result(), lines.result()):
        assert codes[0] != 0, first[-4000:]
        assert codes[1] == 0, second[-4000:]
        assert "resuming from iteration" in second
    said = r"small/checkpoints has \S+ .?i?B free, and a checkpoint takes about"
    assert re.search(said, checkpoint.result()[1])
    said = "cannot write to small/log/domain_metrics.jsonl: No space left on device"
    assert said in lines.result()[1]
    assert counted(tmp_path / "checkpoint" / "large" / "log") == single
    assert counted(tmp_path / "lines" / "kept" / "log") == single
