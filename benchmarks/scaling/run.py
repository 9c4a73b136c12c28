"""What the plugin adds to a step at 8 to 16,384 ranks and 2 to 1,000 domains.

    python benchmarks/scaling/run.py [--out FILE.json] [--picture FILE.png] [--quick]

Pieces are measured on this machine: the host's time for a microbatch, for the end of a step and
for a logged step, memory, bytes, gloo among many processes. The rest is a model, in ``model.py``,
whose assumptions are flags. Prints the tables of results/cpu.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from collectives import all_reduce_us  # noqa: E402
from measure import pieces  # noqa: E402
from model import LAYOUTS, Network, lock_step, step_us  # noqa: E402
from written import commit  # noqa: E402

DOMAINS = (2, 8, 64, 1000)
GLOO_RANKS = (2, 4, 8, 16, 32)
STEP_SECONDS = 5.0
MICROBATCHES = 32
JITTERS = (0.005, 0.01, 0.02)


def measure(quick: bool) -> dict[str, Any]:
    """All pieces, and where they come from."""
    gloo_ranks = GLOO_RANKS[:2] if quick else GLOO_RANKS
    domains = DOMAINS[:2] if quick else DOMAINS
    # Forked processes must not inherit the threads that later measurements start.
    sizes = tuple(8 * ((d + 1) * 5 + 10) for d in (8, 1000))
    gloo = {ranks: all_reduce_us(ranks, sizes) for ranks in gloo_ranks}
    torch.set_num_threads(1)
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread",
        "commit": commit(),
        "torch": torch.__version__,
        "gloo_bytes": sizes,
        "gloo_us": gloo,
        "pieces": [pieces(d, weighted) for weighted in (False, True) for d in domains],
        "lock_step": {
            ranks: [
                lock_step(ranks, MICROBATCHES, jitter, 5 if quick else 100) for jitter in JITTERS
            ]
            for ranks in (8, 64, 1024)
        },
    }


def table(head: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def tables(found: dict[str, Any], network: Network) -> str:
    """The tables of results/cpu.md."""
    rank = table(
        ["domains", "reweighting", "µs per microbatch", "µs per step", "bytes sent per step",
         "device memory", "in a checkpoint"],
        [
            [p["domains"], "yes" if p["weighted"] else "no", round(p["microbatch_us"]),
             round(p["step_us"]), f"{p['payload_bytes']:,}", f"{p['device_bytes']:,} B",
             f"{p['state_bytes']:,} B"]
            for p in found["pieces"]
        ],
    )  # fmt: skip
    logged = table(
        ["domains", "reweighting", "ms, TensorBoard", "ms, metrics line", "TensorBoard bytes",
         "metrics bytes", "MB in 10,000 points"],
        [
            [p["domains"], "yes" if p["weighted"] else "no", f"{p['tensorboard_us'] / 1e3:.2f}",
             f"{p['line_us'] / 1e3:.2f}", f"{p['tensorboard_bytes']:,.0f}",
             f"{p['line_bytes']:,.0f}",
             f"{(p['tensorboard_bytes'] + p['line_bytes']) / 100:,.1f}"]
            for p in found["pieces"]
        ],
    )  # fmt: skip
    cluster = table(
        ["ranks", "TP × PP", "DP × CP", *(f"D = {d}" for d in DOMAINS),
         *(f"D = {d}, reweighting" for d in (8, 1000))],
        [
            [f"{layout.ranks:,}", f"{layout.tensor} × {layout.pipeline}", layout.dp_cp,
             *(share(found, layout, d, False, network) for d in DOMAINS),
             *(share(found, layout, d, True, network) for d in (8, 1000))]
            for layout in LAYOUTS
        ],
    )  # fmt: skip
    gloo = table(
        ["processes", *(f"{size:,} bytes, µs" for size in found["gloo_bytes"])],
        [[ranks, *(round(us) for us in times)] for ranks, times in found["gloo_us"].items()],
    )
    waiting = table(
        ["ranks", *(f"jitter {100 * jitter:g} %" for jitter in JITTERS)],
        [[ranks, *(f"+{100 * x:.1f} %" for x in found["lock_step"][ranks])]
         for ranks in found["lock_step"]],
    )  # fmt: skip
    return "\n\n".join([rank, logged, cluster, gloo, waiting])


def of(found: dict[str, Any], domains: int, weighted: bool) -> dict[str, float]:
    """The pieces of one number of domains."""
    return next(p for p in found["pieces"] if (p["domains"], p["weighted"]) == (domains, weighted))


def share(found: dict[str, Any], layout: Any, domains: int, weighted: bool, net: Network) -> str:
    """Of a step, as a percentage."""
    parts = step_us(layout, of(found, domains, weighted), net, MICROBATCHES)
    return f"{sum(parts.values()) / 1e6 / STEP_SECONDS:.3%}"


def picture(found: dict[str, Any], network: Network, path: Path) -> None:
    """What a step takes more by ranks, in its parts; and what a logged point takes by domains."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for domains, style in ((8, "-"), (1000, "--")):
        parts = [
            step_us(layout, of(found, domains, False), network, MICROBATCHES) for layout in LAYOUTS
        ]
        ranks = [layout.ranks for layout in LAYOUTS]
        for number, name in enumerate(parts[0]):
            values = [part[name] or float("nan") for part in parts]  # none among one rank
            left.plot(ranks, values, style, color=f"C{number}", label=f"{name}, D = {domains}")
    left.set(xscale="log", yscale="log", xlabel="ranks", ylabel="µs a step", title="Cost of a step")
    left.legend(fontsize=6, ncols=2)
    for weighted in (False, True):
        chosen = [p for p in found["pieces"] if p["weighted"] == weighted]
        total = [p["tensorboard_bytes"] + p["line_bytes"] for p in chosen]
        label = "with reweighting" if weighted else "channel loss"
        right.plot([p["domains"] for p in chosen], total, "o-", label=label)
    right.set(xscale="log", yscale="log", xlabel="domains", ylabel="bytes", title="A logged point")
    right.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--quick", action="store_true", help="two numbers of domains, no tables")
    parser.add_argument("--latency-us", type=float, default=Network.latency_us)
    parser.add_argument("--gigabytes-per-second", type=float, default=Network.bytes_per_us / 1e3)
    options = parser.parse_args()
    network = Network(options.latency_us, options.gigabytes_per_second * 1e3)
    found = measure(options.quick)
    text = json.dumps(found, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    if options.quick:
        print(text)
        return
    print(tables(found, network))
    if options.picture:
        picture(found, network, options.picture)


if __name__ == "__main__":
    main()
