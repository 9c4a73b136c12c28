"""Correctness first, then the table: the per-domain sums against the usual ways.

    python benchmarks/domain_reduce/run.py [--device cpu|cuda] [--quick] [--out FILE.json]
    python benchmarks/domain_reduce/step.py    # a whole step of several ranks, with its collectives

Needs only this repository, torch and numpy (on a GPU also cuda-bindings, which CUDA builds of
torch install). Ratios are times of the other divided by ours: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "unit"), str(ROOT / "benchmarks")]
sys.path.insert(0, str(Path(__file__).parent))

import timing  # noqa: E402
import torch  # noqa: E402
from baselines import Bincount, Copy, EmptyKernel, IndexAdd, Ours  # noqa: E402
from domain_reduce_cases import Case, make_case, oracle, oracle_loss  # noqa: E402
from written import commit, write_json  # noqa: E402

from domain_pretrain.kernels.domain_reduce import select  # noqa: E402

ROTATED = 8  # inputs of one graph, so that a replay does not find them all in cache


def main() -> None:
    options = parse()
    device = options.device
    ours = "cuda" if device == "cuda" else "reference"
    check(ours, device)
    print(f"correctness: {ours} equals the oracle on {len(CHECKED)} inputs\n")
    result: dict[str, Any] = {"machine": machine(device), "rows": []}
    print(json.dumps(result["machine"]))
    for shape in shapes(options.quick):
        row = measure_cuda(*shape) if device == "cuda" else measure_cpu(*shape)
        row = {"b": shape[0], "s": shape[1], "D": shape[2], "ids": shape[3], **row}
        print_row(row, header=not result["rows"])
        result["rows"].append(row)
        write_json(options.out, result)
    if device == "cuda":
        result["bandwidth"] = bandwidth()
        print(result["bandwidth"])
        write_json(options.out, result)


CHECKED = list(product((False, True), (False, True), (1, 130, 4096), (1, 8, 300)))


def check(backend: str, device: str) -> None:
    """Stop unless sums, loss and gradient equal the oracle; no number is printed before."""
    for seed, (per_token, special, columns, domains) in enumerate(CHECKED):
        host = make_case(seed, 3, columns, domains, per_token=per_token, special=special)
        case = host.to(device)
        sums, losses = case.accumulator(), case.losses.requires_grad_()
        given = case.inputs(losses, accumulator=sums, multipliers=case.multipliers)
        got = select(backend).domain_loss(given)  # type: ignore[arg-type]
        got.loss.backward()
        ids = case.ids if per_token else case.ids[:, None]
        padded = torch.cat([case.multipliers, torch.zeros(1, device=device)])
        weights = padded[torch.where((ids >= 0) & (ids < domains), ids, domains)]
        expected = oracle_loss(host)[0]
        right = (
            torch.equal(sums.cpu(), oracle(host))
            and (got.loss.item() == expected or (special and got.loss.isnan().item()))
            and torch.equal(losses.grad, weights * case.mask)  # type: ignore[arg-type]
        )
        if not right:
            sys.exit(f"{backend} is wrong on input {seed} {CHECKED[seed]}: nothing is timed")


def shapes(quick: bool) -> list[tuple[int, int, int, str]]:
    """(b, s, D, ids): ids are ``row``, or documents of that many tokens."""
    if quick:
        return [
            (1, 4096, 8, "row"),
            (4, 4096, 8, "row"),
            (4, 4096, 8, "512"),
            (4, 4096, 1000, "1"),
            (32, 4096, 64, "row"),
            (4, 32768, 64, "50"),
        ]
    return list(product((1, 4, 32), (4096, 32768), (8, 64, 1000), ("row", "1", "50", "512", "one")))


def inputs(b: int, s: int, domains: int, ids: str, device: str, seed: int = 0) -> tuple[Any, ...]:
    """Arguments of the baselines."""
    documents = s if ids in ("row", "one") else int(ids)
    case: Case = make_case(seed, b, s, domains, per_token=ids != "row", documents=documents)
    if ids == "one":  # all tokens of one domain: every atomic meets the same cell
        case.ids.zero_()
    case = case.to(device)
    return case.losses, case.mask, case.ids, case.inputs()


def measure_cpu(b: int, s: int, domains: int, ids: str) -> dict[str, float]:
    arguments = inputs(b, s, domains, ids, "cpu")
    ours = Ours(domains, "cpu", "reference")
    others = [Bincount(domains, "cpu"), IndexAdd(domains, "cpu")]
    calls = [partial(f, *arguments) for f in (ours, *others)]
    times = timing.cpu(calls)
    return {ours.name: times[0], **{o.name: t for o, t in zip(others, times[1:], strict=True)}}


def measure_cuda(b: int, s: int, domains: int, ids: str) -> dict[str, float]:
    rotated = [inputs(b, s, domains, ids, "cuda", seed) for seed in range(ROTATED)]
    torch.compiler.reset()
    row: dict[str, float] = {}
    for function in (
        Ours(domains, "cuda", "cuda"),
        Bincount(domains, "cuda"),
        IndexAdd(domains, "cuda"),
        Ours(domains, "cuda", "reference"),
        Ours(domains, "cuda", "reference", inductor=True),
        EmptyKernel(domains, "cuda"),
        Copy(),
    ):
        calls = [partial(function, *a) for a in rotated]
        row[function.name] = timing.device(calls[0])
        row[f"{function.name}, with launch"] = timing.with_launch(calls[0])
        if function.graphable:
            row[f"{function.name}, graph"] = timing.graph(calls)
        if isinstance(function, (Ours, Bincount)):
            row[f"{function.name}, between matmuls"] = timing.between_matmuls(calls[0], repeats=5)
    return row


def bandwidth(b: int = 512, s: int = 32768) -> dict[str, float]:
    """16M tokens: share of the measured copy bandwidth, for row ids and for token ids."""
    copy = timing.copy_bandwidth()
    result = {"copy_bytes_per_s": copy}
    for ids, per_token in (("row", 8), ("512", 16)):  # bytes: loss, mask; id, inverse
        arguments = inputs(b, s, 64, ids, "cuda")
        seconds = 1e-6 * timing.graph([partial(Ours(64, "cuda", "cuda"), *arguments)])
        result[f"{ids} ids, share of copy"] = per_token * b * s / seconds / copy
    return result


def print_row(row: dict[str, Any], *, header: bool) -> None:
    """One line of the table: our time, and how many times as long the others take."""
    ours = "cuda" if "cuda" in row else "reference"
    others = [key for key in row if key not in ("b", "s", "D", "ids", ours)]
    if header:
        print("\n| b | s | D | documents | " + f"{ours}, µs | " + " | ".join(others) + " |")
        print("|" + "---:|" * (5 + len(others)))
    ratios = []
    for key in others:
        ratios.append(f"{row[key] / row[base_of(key, ours, row)]:.2f}x")
    shape = " | ".join(str(row[key]) for key in ("b", "s", "D", "ids"))
    print(f"| {shape} | {row[ours]:.1f} | " + " | ".join(ratios) + " |", flush=True)


def base_of(key: str, ours: str, row: dict[str, Any]) -> str:
    """What a column is divided by: ours, timed the same way."""
    for way in ("with launch", "graph", "between matmuls"):
        if key.endswith(f", {way}") and f"{ours}, {way}" in row and key != f"{ours}, {way}":
            return f"{ours}, {way}"
    return ours


def machine(device: str) -> dict[str, Any]:
    """Where the numbers come from."""
    info: dict[str, Any] = {
        "command": " ".join(
            ["python", "benchmarks/domain_reduce/" + Path(sys.argv[0]).name, *sys.argv[1:]]
        ),
        "commit": commit(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        return {**info, "device": properties.name, "driver": driver.splitlines()[:1]}
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {**info, "device": f"{names[0]}, {len(names)} cores"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=found)
    parser.add_argument("--quick", action="store_true", help="six shapes instead of ninety")
    parser.add_argument("--out", type=Path, help="also write all times as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
