"""``-m domain_pretrain``: the built-in GPT entry against Megatron's script, and the launcher."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.launch import MODEL, environment, start, train

from domain_pretrain import __main__ as launcher
from domain_pretrain.errors import UnsupportedError

CHECKOUT = os.environ.get("MEGATRON_LM_PATH")

LAYOUTS = {
    "DP2": ("", 2),
    "TP2": ("--tensor-model-parallel-size 2", 2),
    "PP2": ("--pipeline-model-parallel-size 2", 2),
    "PP2xVPP2": (
        "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
        2,
    ),
    "CP2": ("--context-parallel-size 2 --mock-data", 2),  # upstream cannot: a blend with CP
    "MTP, PP2": (
        "--mtp-num-layers 1 --pipeline-model-parallel-size 2 --position-embedding-type rope",
        2,
    ),
    "MoE": ("--num-experts 4 --moe-router-topk 2 --disable-bias-linear", 1),
}


def launch(nproc: int, *words: str | Path, real: bool = False, **env: str) -> tuple[int, str]:
    """``-m domain_pretrain WORDS``, with the interpreter that a checkout's ``make`` needs first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return start(nproc, *words, env={"PATH": path, **env}, real=real)


def checkout_version() -> tuple[int, int]:
    text = Path(str(CHECKOUT), "megatron/core/package_info.py").read_text(encoding="utf-8")
    major, minor = (re.search(rf"^{name} = (\d+)", text, re.M) for name in ("MAJOR", "MINOR"))
    assert major and minor
    return int(major[1]), int(minor[1])


def tensors(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by their place in it."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, (list, tuple)):
        items = enumerate(value)
    return {k: v for key, item in items for k, v in tensors(item, f"{path}/{key}").items()}


@pytest.mark.checkout
@pytest.mark.megatron
@pytest.mark.skipif(not CHECKOUT, reason="no checkout: set MEGATRON_LM_PATH")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_megatrons_own_script(layout: str, blend: list[str], tmp_path: Path) -> None:
    """Same losses as printed, same weights and optimizer states bit for bit."""
    if checkout_version() < launcher.OLDEST_BUILT_IN:
        pytest.skip("the built-in entry needs megatron-core >= 0.17")
    flags, nproc = LAYOUTS[layout]
    data = [] if "--mock-data" in flags else blend
    seen = []
    for name, script in (("own", []), ("host", [Path(str(CHECKOUT), "pretrain_gpt.py")])):
        save = ["--save", tmp_path / name, "--save-interval", "3"]
        save += ["--ckpt-format", "torch", "--train-iters", "3"]
        code, output = launch(nproc, *script, *MODEL, *data, *save, *flags.split())
        assert code == 0, output[-8000:]
        printed = re.findall(r"(?:lm loss|grad norm|mtp_1 loss|lm loss value): (\S+)", output)
        states = {
            f"{file.parent.name}{key}": tensor
            for file in sorted((tmp_path / name).glob("iter_*/*/model_optim_rng.pt"))
            for key, tensor in tensors(torch.load(file, weights_only=False)).items()
            if "rng" not in key
        }
        seen.append((printed, states))
    (own_printed, own), (host_printed, host) = seen
    assert len(host_printed) >= 6
    assert own_printed == host_printed
    assert own.keys() == host.keys()
    assert any("optimizer" in key for key in host)
    assert [key for key in host if not torch.equal(own[key], host[key])] == []


@pytest.mark.checkout
@pytest.mark.megatron
@pytest.mark.skipif(not CHECKOUT, reason="no checkout: set MEGATRON_LM_PATH")
def test_older_checkout_is_told_to_bring_its_script() -> None:
    if checkout_version() >= launcher.OLDEST_BUILT_IN:
        pytest.skip("this checkout is new enough for the built-in entry")
    code, output = launch(1, *MODEL, "--mock-data", "--train-iters", "1")
    assert code == 2
    assert "needs megatron-core >= 0.17" in output


@pytest.mark.megatron
def test_blend_with_context_parallelism_runs_without_channel_loss(
    blend: list[str], tmp_path: Path
) -> None:
    """The row's ``dataset_id``, which no CP slicer can cut, is not the tap's to remove here."""
    run = train(
        tmp_path, *blend, "--context-parallel-size", "2", nproc=2, iterations=2, plugin=False
    )
    assert len(run.host_losses()) == 2


@pytest.mark.megatron
def test_thin_script_is_the_entry(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "pretrain_gpt.py"
    words = [sys.executable, str(script), *MODEL, "--mock-data", "--train-iters", "1"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "lm loss:" in done.stdout


@pytest.mark.megatron
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--hybrid-context-parallel", "does not support --hybrid-context-parallel"),
        (
            "--sft --micro-batch-size 2 --pipeline-model-parallel-size 2",
            "use --micro-batch-size 1",
        ),
    ],
)
def test_unsupported_flags_stop_the_run_at_start_up(flags: str, message: str) -> None:
    code, output = launch(1, *MODEL, "--mock-data", "--train-iters", "1", *flags.split())
    assert code == 2, output[-4000:]
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [
        (["no_such.py", "--lr", "1"], {}, "no script 'no_such.py'"),
        (["pretrain"], {}, "expected a script (*.py) or a flag (--...) first, got 'pretrain'"),
        (["--lr", "1"], {"MEGATRON_LM_PATH": "/nowhere"}, "no folder megatron/training in it"),
    ],
)
def test_wrong_command_line(words: list[str], env: dict[str, str], message: str) -> None:
    code, output = launch(1, *words, real=True, **env)
    assert code == 2
    assert message in output
    assert "Traceback" not in output


def test_missing_megatron_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEGATRON_LM_PATH", raising=False)
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="pip install 'domain-pretrain") as error:
        launcher.find_host(None)
    assert "MEGATRON_LM_PATH" in str(error.value)
    assert "Python >= 3.12" in str(error.value)


def test_script_sees_what_plain_python_would_show_it(tmp_path: Path) -> None:
    script = tmp_path / "user_script.py"
    (tmp_path / "beside.py").write_text("HERE = True\n")
    script.write_text(
        "import sys, beside\n"
        "print('SEEN', __name__, __file__, sys.argv, sys.path[0], sys.modules['__main__'].beside)\n"
    )
    words = [str(script), "--flag", "value with space"]
    plain = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    environ = {k: v for k, v in os.environ.items() if k != "MEGATRON_LM_PATH"}
    ours = subprocess.run(
        [sys.executable, "-m", "domain_pretrain", *words],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [x for x in ours.stdout.splitlines() if x.startswith("SEEN")] == plain.stdout.split(
        "\n"
    )[:1]
