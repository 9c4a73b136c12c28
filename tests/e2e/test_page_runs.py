"""The commands on the pages that train, as shown, with a tiny model for the reader's own flags."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from support.clone import make_clone, shell
from support.launch import MODEL
from support.metrics import windows
from support.pages import PAGES, blocks, commands

pytestmark = pytest.mark.megatron

RUNS = sorted({line for page in PAGES for line in commands(page) if line.startswith("torchrun ")})
DATA = ("--data-path", "1", "data/finance_text_document", "5", "data/general_text_document")


@pytest.fixture
def clone(tmp_path: Path, corpora: Path) -> Path:
    """With the data that the pages name."""
    folder = make_clone(tmp_path / "clone")
    for name in ("finance", "general"):
        (folder / "data" / name).mkdir(parents=True)
        for suffix in ("bin", "idx"):
            source = corpora / f"{name}.{suffix}"
            shutil.copy(source, folder / "data" / f"{name}_text_document.{suffix}")
            shutil.copy(source, folder / "data" / name / f"part.{suffix}")
    (config,) = [b for b in blocks("docs/getting-started.md", "yaml") if "data/finance/*" in b]
    (folder / "finance.yaml").write_text(config, encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", RUNS)
def test_a_shown_run_trains(command: str, clone: Path) -> None:
    """On one process; where no checkout is named, with the script that stands for its."""
    own = [*MODEL, "--split", "100,0,0", "--train-iters", "2", "--eval-iters", "0"]
    if not re.search("--data-path|--domain-config", command):
        own += DATA
    checkout = os.environ.get("MEGATRON_LM_PATH")
    script = f"{checkout}/pretrain_gpt.py" if checkout else "scripts/pretrain_gpt.py"
    words = command.replace("--nproc-per-node 8", "--standalone --nproc-per-node 1")
    words = words.replace("/path/to/Megatron-LM/pretrain_gpt.py", script)
    assert words.endswith(" ...")
    done = shell(clone, f"{words.removesuffix(' ...')} {' '.join(own)} --domain-log-dir log")
    assert done.returncode == 0, done.stdout[-6000:]
    lines = windows(clone / "log")
    assert [line["iteration"] for line in lines] == [1, 2]
    assert {name.partition("_")[0] for name in lines[1]["domains"]} <= {
        "finance",
        "general",
    }


def test_the_demos_page(clone: Path) -> None:
    """A short demo in the layout that the page shows, then what the page does with its folder."""
    pytest.importorskip("matplotlib")
    shown = list(commands("docs/demo.md"))
    (demo,) = [line for line in shown if line.startswith("domain-pretrain demo --")]
    after = [line for line in shown if "demo-run" in line]
    assert len(after) == 2
    script = [f"{demo} --iterations 5", *after]
    for line in script:
        inspect = " --inspect" if line.startswith("tensorboard") else ""  # instead of serving
        done = shell(clone, line + inspect, CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stdout[-6000:]
    assert (clone / "all.png").stat().st_size and (clone / "all.html").stat().st_size
