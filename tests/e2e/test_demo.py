"""The demo in small: both phases for real, and all that a user is shown at the end."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from support.launch import environment

from domain_pretrain.demo.launch import PhaseFailed, PhaseProgress, run, torchrun
from domain_pretrain.demo.layout import Layout, cores
from domain_pretrain.demo.recipe import phases
from domain_pretrain.errors import ConfigError
from domain_pretrain.records.reader import METRICS_FILE, read_metrics
from domain_pretrain.report.history import read_history

DOMAINS = ["general", "code", "maths", "dirty"]


def run_demo(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "domain_pretrain.commands",
        "demo",
        "--out",
        str(out),
        *flags,
    ]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=900,
        env=environment(COLUMNS="100", CUDA_VISIBLE_DEVICES=""),
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a demo of 20 iterations after 12 of the base model."""
    pytest.importorskip("megatron.training")
    out = tmp_path_factory.mktemp("demo") / "run"
    done = run_demo(out, "--iterations", "20", "--nproc", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


@pytest.mark.megatron
def test_says_where_it_runs_and_what_to_look_at(demo: tuple[Path, str]) -> None:
    out, printed = demo
    assert re.search(r"device +CPU \(no GPU found\): .*1 process", printed)
    assert re.search(rf"charts +\S*tensorboard --logdir {re.escape(str(out))}/tensorboard", printed)
    assert list((out / "tensorboard" / "continued").glob("events.*"))
    assert re.search(rf"picture +{re.escape(str(out))}/losses.png", printed)


@pytest.mark.megatron
def test_ends_with_the_documents_of_the_dirty_domain(demo: tuple[Path, str]) -> None:
    out, printed = demo
    last = re.search(
        r"documents dirty, last read in iteration (\d+): domain-pretrain trace", printed
    )
    assert last is not None, printed
    iteration = int(last[1])
    entries = [e for e in read_metrics(out / "continued") if e["split"] == "train"]
    read = [entry["iteration"] for entry in entries if "dirty" in entry["domains"]]
    assert read[-1] == iteration <= 18, "none of the last stage's"
    samples = re.findall(r"sample (\d+), document (\d+) from token (\d+)", printed)
    dirty = next(e["domains"]["dirty"] for e in entries if e["iteration"] == iteration)
    assert len(samples) == dirty["samples"]
    consumed = 16 * (iteration - 1)
    assert all(consumed <= int(sample) < consumed + 16 for sample, *_ in samples)


@pytest.mark.megatron
def test_shows_progress_with_losses(demo: tuple[Path, str]) -> None:
    _, printed = demo
    assert re.search(r"base +12/12  general \d\.\d\d", printed)
    assert re.search(r"continued +20/20  general \d\.\d\d", printed)


@pytest.mark.megatron
def test_table_has_every_domain_with_tokens_epochs_losses_and_perplexity(
    demo: tuple[Path, str],
) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    out, printed = demo
    table = printed[printed.index("continued pretraining:") :]
    size = read_history(out / "continued").corpus_tokens
    for domain in DOMAINS:
        dataset = IndexedDataset(str(out / "corpora" / domain))  # which unmaps them when it goes
        lengths = dataset.sequence_lengths
        assert size[domain] == lengths[: round(0.9 * len(lengths))].sum()  # --split 90,10,0
        row = re.search(rf"│ {domain} +│(.*)│", table)
        assert row, table
        tokens, epochs, start_end, _, ppl = (cell.strip() for cell in row[1].split("│"))
        assert float(epochs) == pytest.approx(int(tokens.replace(",", "")) / size[domain], abs=5e-3)
        mean = r"\d+\.\d+( ± \d+\.\d+)?"
        assert re.fullmatch(f"{mean} [→≈] {mean}", start_end)
        assert float(ppl.replace(",", "")) > 1


@pytest.mark.megatron
def test_writes_a_picture(demo: tuple[Path, str]) -> None:
    picture = (demo[0] / "losses.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


@pytest.mark.megatron
def test_writes_a_page_with_both_phases_and_the_planned_shares(demo: tuple[Path, str]) -> None:
    page = (demo[0] / "report.html").read_text("utf-8")
    told = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert [run["name"] for run in told["runs"]] == ["base", "continued"]
    assert "plan" in told["runs"][1]["curves"]


@pytest.mark.megatron
def test_base_sees_the_general_domain_alone_and_the_blend_is_five_to_one_then_two_to_one(
    demo: tuple[Path, str],
) -> None:
    base, continued = (read_metrics(demo[0] / name) for name in ("base", "continued"))
    assert {name for entry in base for name in entry["domains"]} == {"general"}
    last = [entry for entry in continued if entry["split"] == "train"][-1]
    consumed = {}
    for entry in continued:
        for name, values in entry["domains"].items():
            if entry["split"] == "train":
                consumed[name] = values["consumed_samples"]
    assert sum(consumed.values()) == last["consumed_samples"] == 20 * 16
    served = {name: 0 for name in DOMAINS}
    for entry in continued:
        if entry["split"] == "train" and entry["iteration"] > 18:
            for name, values in entry["domains"].items():
                served[name] += values["samples"]
    at_the_end = served.pop("dirty"), *served.values()
    assert at_the_end == (0, 21, 5, 6) or at_the_end == (0, 21, 6, 5), "2 steps of 16 at 4 : 1 : 1"
    before = consumed["general"] - served["general"]
    assert before / (18 * 16) == pytest.approx(5 / 6, abs=0.01)


@pytest.mark.megatron
def test_continues_from_the_base_checkpoint(demo: tuple[Path, str]) -> None:
    out, _ = demo
    log = (out / "continued" / "train.log").read_text()
    assert f"successfully loaded checkpoint from {out / 'base' / 'checkpoint'}" in log
    base_end = read_metrics(out / "base")[-1]["domains"]["general"]["loss"]
    first = read_metrics(out / "continued")[0]["domains"]["general"]["loss"]
    assert first < base_end + 0.5  # an untrained model starts at ln 288 = 5.66
    assert base_end < 4.5


@pytest.mark.megatron
def test_the_dirty_domain_stays_above_what_no_model_can_beat(demo: tuple[Path, str]) -> None:
    entries = read_metrics(demo[0] / "continued")
    dirty = [e["domains"]["dirty"]["loss"] for e in entries if "dirty" in e["domains"]]
    assert min(dirty) > math.log(128)
    last = entries[-1]["domains"]
    assert last["dirty"]["loss"] > 1.2 * max(last[name]["loss"] for name in DOMAINS[:3])


def test_a_failed_phase_shows_the_end_of_its_log_and_the_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import sys\nprint('started')\nprint('the reason')\nsys.exit(3)\n")
    command = [*torchrun(1, [])[:-2], str(script)]  # without -m domain_pretrain
    log = tmp_path / "train.log"
    lines = []
    with pytest.raises(PhaseFailed) as failure:
        for line in run(command, environment(), log):
            lines.append(line)
    message = str(failure.value)
    assert f"exit code 1; the end of {log}:" in message  # torchrun's own code
    # What torchrun reports about itself is in the log, but does not push out the reason.
    assert message.endswith("  started\n  the reason")
    assert "ChildFailedError" in log.read_text()
    assert log.read_text().splitlines()[1:] == lines


def test_progress_follows_the_metrics_file(tmp_path: Path) -> None:
    """From before it exists, over a line that is written in two parts, to what came last."""

    def line(iteration: int, split: str, loss: float | None) -> str:
        sums = {"loss_sum": 64.0, "tokens": 32, "samples": 1}
        domains = {"general": {"loss": loss, **sums}, "dirty": {"loss": 5.0, **sums}}
        whole = {"iteration": iteration, "consumed_samples": 8 * iteration, "split": split}
        return json.dumps({**whole, "lm_loss": 5.0, "domains": domains}) + "\n"

    out = io.StringIO()
    file = tmp_path / METRICS_FILE
    with PhaseProgress(Console(file=out, width=100), "base", 10, tmp_path) as progress:
        progress.update()
        for text in (line(1, "train", 4.5) + line(1, "valid", 9.0) + '{"itera', 'tion": 2'):
            with file.open("a") as growing:
                growing.write(text)
            progress.update()
        with file.open("a") as growing:
            growing.write(line(2, "train", None)[len('{"iteration": 2') :])
            growing.write(line(10, "train", 3.0))
    assert out.getvalue().splitlines() == [
        "base          1/10  general 4.50  dirty 5.00",
        "base          2/10  general NaN  dirty 5.00",
        "base         10/10  general 3.00  dirty 5.00",
    ]


def test_says_that_there_is_no_megatron(tmp_path: Path) -> None:
    code = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "megatron":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from domain_pretrain.commands.main import main

sys.exit(main(["demo", "--out", sys.argv[1], "--nproc", "1"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(CUDA_VISIBLE_DEVICES=""),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (message,) = done.stderr.splitlines()
    assert message.startswith("domain-pretrain demo: error: the demo needs Megatron")
    assert "pip install" in message


def test_refuses_to_replace_what_no_demo_wrote(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = run_demo(tmp_path)
    assert done.returncode == 2
    assert "not empty, and no demo wrote it" in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"nproc": 3, "tp": 2}, "not a multiple of tp·pp·cp = 2·1·1"),
        ({"nproc": 3}, "global batch, 16, is not a multiple of 3"),
        ({"nproc": 8, "tp": 8}, "attention heads, 4, is not a multiple of 8"),
        ({"nproc": 2, "pp": 2, "vpp": 4}, "layers, 4, is not a multiple of 8"),
        ({"nproc": 1, "vpp": 2}, "virtual stages need --pp"),
        ({"nproc": 2, "cp": 0}, "--cp 0: give at least 1"),
    ],
)
def test_refuses_a_layout_that_does_not_fit(sizes: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        Layout("cpu", **sizes)


def test_the_layout_takes_what_is_left_for_data_parallelism() -> None:
    layout = Layout("cpu", 8, tp=2, pp=2)
    assert layout.dp == 2
    flags = layout.flags()
    assert flags[flags.index("--micro-batch-size") + 1] == "2"  # 16 / dp 2 / 4 microbatches
    assert layout.threads == max(1, cores() // 8)
    assert str(layout) == "8 processes, dp 2 × tp 2 × pp 2"


def test_every_layout_has_the_same_padded_vocabulary() -> None:
    base, _ = phases(60)
    for tp in (1, 2, 4):
        flags = base.flags(Path("run"), tp)
        divisible_by = int(flags[flags.index("--make-vocab-size-divisible-by") + 1])
        padded = -(-257 // (divisible_by * tp)) * divisible_by * tp
        assert padded == 288
