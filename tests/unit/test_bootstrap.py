"""``make setup``: which PyTorch it takes, and what it says meanwhile; nothing is installed."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = (".[test]", "megatron-bridge==0.6.2")

# A Python 3.12 that makes an environment of itself. Its pip lists what the real pip is offered, and
# writes down what it is asked to install; SLOW and FAIL are requirements that take long, or fail.
PYTHON = f"""#!/bin/bash
case "$*" in
  --version) echo Python 3.12.0;;
  -c*) ;;
  "-m venv --clear "*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python";;
  "-m pip --version") ;;
  "-m pip show "*) grep -q ^torch installed;;
  "-m pip index "*) exec {sys.executable} "$@";;
  "-m pip install "*)
    if [[ $* == *"$SLOW"* ]]; then sleep 2; fi
    if [[ $* == *"$FAIL"* ]]; then exit 1; fi
    [[ $* == *--quiet* ]] || echo "pip shows its progress"
    echo "${{@: -1}}" >>installed;;
  *) echo "unexpected: $*" >&2; exit 2;;
esac
"""


def wheel(folder: Path, version: str) -> None:
    """A wheel of PyTorch, as far as pip reads it to list it."""
    name = f"torch-{version}"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as file:
        metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        file.writestr(f"{name}.dist-info/METADATA", metadata)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of this repository as the script reads, and a machine without a GPU."""
    for name in ("scripts", "tools"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "scripts" / "bootstrap.sh", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text('dependencies = [\n  "torch>=2.4",\n]\n')
    tool(tmp_path, "python", PYTHON)
    for name in ("nvidia-smi", "npu-smi"):
        tool(tmp_path, name, "#!/bin/sh\nexit 1\n")
    return tmp_path


def tool(clone: Path, name: str, text: str) -> None:
    (clone / "tools" / name).write_text(text)
    (clone / "tools" / name).chmod(0o755)


def variables(clone: Path, **more: str) -> dict[str, str]:
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "offered"}
    path = f"{clone / 'tools'}{os.pathsep}{os.environ['PATH']}"
    python = str(clone / "tools" / "python")
    unset = {"TORCH": "", "SLOW": "nothing", "FAIL": "nothing"}
    return {**os.environ, **pip, **unset, "PATH": path, "PYTHON": python, **more}


def bootstrap(clone: Path, code: int = 0, **more: str) -> str:
    """What was said."""
    (clone / "offered").mkdir(exist_ok=True)
    done = subprocess.run(
        [clone / "scripts" / "bootstrap.sh"],
        env=variables(clone, **more),
        cwd=clone,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert not (clone / ".venv" / "tmp").exists()
    return " ".join(done.stdout.split())


def installed(clone: Path) -> list[str]:
    return (clone / "installed").read_text().split("\n")[:-1]


no_gpu = pytest.mark.skipif(
    any(Path("/dev", name).exists() for name in ("nvidia0", "davinci0")), reason="there is a GPU"
)


@no_gpu
def test_a_cpu_build_is_taken_where_the_index_offers_one(clone: Path) -> None:
    for version in ("2.3.0+cpu", "2.9.0+cpu", "2.13.0+cpu", "2.13.0+cu130", "2.14.1"):
        wheel(clone / "offered", version)
    said = bootstrap(clone)
    assert "no GPU or NPU here, and the package index offers the CPU build 2.13.0+cpu" in said
    assert installed(clone) == ["torch==2.13.0+cpu", *PACKAGE]
    assert re.search(r"1 of 3: making \.venv .* 2 of 3: .* 3 of 3: .* ready after", said)
    assert bootstrap(clone) == "", "it is up to date"
    later = time.time() + 10
    os.utime(clone / "pyproject.toml", (later, later))
    assert "2 of 3: PyTorch is there" in bootstrap(clone)
    assert installed(clone) == ["torch==2.13.0+cpu", *PACKAGE, *PACKAGE]


@no_gpu
@pytest.mark.parametrize("offered", [("2.14.1",), ("2.14.1", "2.3.0+cpu"), ()])
def test_the_default_build_where_no_cpu_build_fits(offered: tuple[str, ...], clone: Path) -> None:
    for version in offered:
        wheel(clone / "offered", version)
    said = bootstrap(clone)
    assert "the package index offers no CPU build" in said
    assert "5 GB on disk" in said
    assert installed(clone) == ["torch>=2.4", *PACKAGE]


@no_gpu
def test_a_cpu_build_that_cannot_be_installed(clone: Path) -> None:
    wheel(clone / "offered", "2.13.0+cpu")
    assert "2.13.0+cpu could not be installed" in bootstrap(clone, FAIL="+cpu")
    assert installed(clone) == ["torch>=2.4", *PACKAGE]


@pytest.mark.parametrize(
    ("name", "device"), [("nvidia-smi", "an NVIDIA GPU"), ("npu-smi", "an Ascend NPU")]
)
def test_an_accelerator_gets_the_default_build(name: str, device: str, clone: Path) -> None:
    wheel(clone / "offered", "2.13.0+cpu")
    tool(clone, name, "#!/bin/sh\n")
    said = bootstrap(clone)
    assert f"this machine has {device}" in said or Path("/dev/nvidia0").exists()
    assert installed(clone) == ["torch>=2.4", *PACKAGE]


def test_another_pytorch(clone: Path) -> None:
    assert "torch==2.6.*, as TORCH says" in bootstrap(clone, TORCH="torch==2.6.*")
    assert installed(clone) == ["torch==2.6.*", *PACKAGE]


def test_a_failure_is_made_up_for(clone: Path) -> None:
    bootstrap(clone, code=1, FAIL="[test]")
    assert not (clone / ".venv" / ".up-to-date").exists()
    assert "PyTorch is there" in bootstrap(clone)


def test_signs_of_life_in_a_log(clone: Path) -> None:
    said = bootstrap(clone, SLOW="[test]", HEARTBEAT="0.5")
    assert len(re.findall(r"still installing, \d+ s so far; \.venv holds \S+", said)) >= 2
    assert "progress" not in said


def test_pips_own_progress_on_a_terminal(clone: Path) -> None:
    (clone / "offered").mkdir()
    ours, theirs = pty.openpty()
    script = [clone / "scripts" / "bootstrap.sh"]
    subprocess.run(script, env=variables(clone), cwd=clone, stdout=theirs, check=True, timeout=60)
    assert os.read(ours, 10000).count(b"pip shows its progress") == 3
    os.close(ours)
    os.close(theirs)


@no_gpu
def test_interrupted(clone: Path) -> None:
    """Not taken for a build that cannot be installed: nothing more is started."""
    wheel(clone / "offered", "2.13.0+cpu")
    with subprocess.Popen(
        [clone / "scripts" / "bootstrap.sh"],
        env=variables(clone, SLOW="+cpu", FAIL="+cpu"),
        cwd=clone,
        stdout=subprocess.PIPE,
        text=True,
        # Whoever started the tests in the background may have them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        while "CPU build" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stdout.read() == ""
    assert not (clone / "installed").exists()
    assert not (clone / ".venv" / "tmp").exists()
