#!/usr/bin/env python3
"""How fast ``domain-pretrain prepare`` is beside Megatron's own ``tools/preprocess_data.py``.

    MEGATRON_LM_PATH=/path/to/Megatron-LM python benchmarks/prepare/run.py --out FILE.json

Both make a dataset of the same JSON lines with the same tokenizer and as many workers, in turns,
each in a process of its own. First the ``.bin`` and ``.idx`` of both have to be the same, byte for
byte. Wall time is that of a user who waits; CPU time, of the process and all its children, is what
a core is kept busy: Megatron's one worker has a process beside it that reads and writes, ours does
that itself. What it takes to start, on an input of a few lines, is measured alike and taken off for
the megabytes a second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from material import END, train_tokenizer, write_input

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks")]

from provenance import provenance  # noqa: E402

FEW_LINES = 20
COMMAND = "import sys; from domain_pretrain.commands.main import main; sys.exit(main())"


class Took(NamedTuple):
    """Seconds of one run."""

    wall: float
    cpu: float


class Side(NamedTuple):
    """One of the two: its command, up to what changes, and the files that it makes."""

    command: list[str]
    workers: str
    source: str
    output: str
    suffix: str

    def run(self, source: Path, prefix: Path, workers: int) -> Took:
        """Prepare ``source``.

        Raises:
            RuntimeError: it failed; with what it said.
        """
        command = [*self.command, self.source, str(source), self.output, str(prefix)]
        log = prefix.with_suffix(".log")
        begun = time.perf_counter()
        with log.open("wb") as said:
            words = [word for word in (*command, self.workers, str(workers)) if word]
            process = subprocess.Popen(words, stdout=said, stderr=said, env=_environment())
            _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        if status:
            raise RuntimeError(f"{' '.join(words)}:\n{log.read_text(errors='replace')[-2000:]}")
        return Took(wall, usage.ru_utime + usage.ru_stime)

    def written(self, prefix: Path) -> list[bytes]:
        """The dataset's files, which are removed."""
        paths = [Path(f"{prefix}{self.suffix}.{end}") for end in ("bin", "idx")]
        content = [path.read_bytes() for path in paths]
        for path in paths:
            path.unlink()
        return content


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ["MEGATRON_LM_PATH"]])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def sides(tokenizer: Path) -> dict[str, Side]:
    """Megatron's and ours, with one tokenizer."""
    python = sys.executable
    script = str(Path(os.environ["MEGATRON_LM_PATH"], "tools", "preprocess_data.py"))
    theirs = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer)]
    ours = [python, "-c", COMMAND, "prepare", "--force"]
    return {
        "megatron": Side(
            [python, script, *theirs, "--append-eod"],
            "--workers",
            "--input",
            "--output-prefix",
            "_text_document",
        ),
        "prepare": Side(
            [*ours, "--tokenizer", str(tokenizer), "--eod-token", END],
            "--workers",
            "",
            "--output",
            "",
        ),
    }


def measure(folder: Path, megabytes: int, workers: int, turns: int) -> dict[str, object]:
    """Run both ``turns`` times.

    Raises:
        RuntimeError: they do not write the same.
    """
    source = folder / "input.jsonl"
    few = folder / "few.jsonl"
    few.write_text("".join(_head(source, FEW_LINES)), encoding="utf-8")
    both = sides(folder / "tokenizer")
    took: dict[str, list[tuple[Took, Took]]] = {name: [] for name in both}
    for turn in range(turns):
        names = list(both) if turn % 2 else list(both)[::-1]
        files = {}
        for name in names:
            start = both[name].run(few, folder / "few", workers)
            whole = both[name].run(source, folder / "out", workers)
            took[name].append((start, whole))
            files[name] = both[name].written(folder / "out")
            print(f"{workers} workers, {name}: {whole}, of which to start {start}", flush=True)
        if files["megatron"] != files["prepare"]:
            raise RuntimeError("the two datasets are not the same; the times mean nothing")
    size = source.stat().st_size / 2**20
    result: dict[str, object] = {"workers": workers, "input_MiB": round(size, 1)}
    for name, runs in took.items():
        result[name] = {
            "wall_s": [round(whole.wall, 2) for _, whole in runs],
            "cpu_s": [round(whole.cpu, 2) for _, whole in runs],
            "start_wall_s": [round(start.wall, 2) for start, _ in runs],
            "start_cpu_s": [round(start.cpu, 2) for start, _ in runs],
            "MiB_per_s": _median([size / (w.wall - s.wall) for s, w in runs]),
            "MiB_per_cpu_s": _median([size / (w.cpu - s.cpu) for s, w in runs]),
        }
    pairs = list(zip(took["prepare"], took["megatron"], strict=True))
    result["ratio"] = {
        "wall": _median([ours.wall / theirs.wall for (_, ours), (_, theirs) in pairs]),
        "cpu": _median([ours.cpu / theirs.cpu for (_, ours), (_, theirs) in pairs]),
    }
    return result


def _head(path: Path, lines: int) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [next(file) for _ in range(lines)]


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def table(results: list[dict[str, object]]) -> str:
    """Markdown."""
    lines = [
        "| workers | | MiB a second | MiB a CPU second | wall s | CPU s | to start, CPU s |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        for name in ("megatron", "prepare"):
            side = result[name]
            assert isinstance(side, dict)
            seconds = [_median(side[key]) for key in ("wall_s", "cpu_s", "start_cpu_s")]
            cells = [side["MiB_per_s"], side["MiB_per_cpu_s"], *seconds]
            lines.append(f"| {result['workers']} | {name} | {' | '.join(map(str, cells))} |")
        ratio = result["ratio"]
        assert isinstance(ratio, dict)
        lines.append(
            f"| {result['workers']} | **prepare / megatron, time** | | | **{ratio['wall']}** "
            f"| **{ratio['cpu']}** | |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--megabytes", type=int, default=64, help="of JSON lines")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write JSON here, and a table beside it, .md")
    given = parser.parse_args()
    script = Path(os.environ.get("MEGATRON_LM_PATH", ""), "tools", "preprocess_data.py")
    if not os.environ.get("MEGATRON_LM_PATH") or not script.is_file():
        print(f"skipped: {script} is not there; set MEGATRON_LM_PATH to a Megatron-LM checkout")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_input(folder, given.megabytes)
        train_tokenizer(folder / "tokenizer", source)
        results = [
            measure(folder, given.megabytes, workers, given.turns) for workers in given.workers
        ]
    print(table(results))
    if given.out:
        content = {**provenance(__file__), "megatron": _version(), "results": results}
        given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        given.out.with_suffix(".md").write_text(table(results) + "\n", encoding="utf-8")


def _version() -> str:
    """Of the checkout's megatron.core."""
    found: dict[str, object] = {}
    path = Path(os.environ["MEGATRON_LM_PATH"], "megatron", "core", "package_info.py")
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        key, _, value = line.partition(" = ")
        found[key] = value
    return ".".join(str(found[key]) for key in ("MAJOR", "MINOR", "PATCH"))


if __name__ == "__main__":
    main()
