"""Step time with and without the plugin, in one training run, pair by pair.

    python benchmarks/step_time/run.py [--steps 200] [--reweight linupper] [--against alarms]
        [Megatron flags…]

Every optimizer step of a real Megatron run is timed; of each two neighbours one runs with the
plugin and one without it (the host's own schedule and train_step), in an order that is drawn for
each pair; with ``--against alarms``, both with the plugin, and one without its alarms. So both see
the same machine, the same caches and the same model. The figure is the
median of the pairs' ratios, with a bootstrap interval: of wall time, and of the process's CPU time,
which other load on the machine does not move.

On a GPU the device is synchronised before the clock is read, and the host synchronisations within
each step are counted. Needs megatron-core >= 0.17.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

from written import commit, write_json  # noqa: E402

CPU_MODEL = (
    "--num-layers 4 --hidden-size 256 --num-attention-heads 4 --seq-length 256 "
    "--max-position-embeddings 256 --micro-batch-size 2 --global-batch-size 16"
)
GPU_MODEL = (
    "--num-layers 24 --hidden-size 2048 --num-attention-heads 16 --seq-length 4096 --bf16 "
    "--max-position-embeddings 4096 --micro-batch-size 4 --global-batch-size 32"
)
COMMON = (
    "--tokenizer-type NullTokenizer --vocab-size 300 --lr 1e-4 --attention-dropout 0 "
    "--hidden-dropout 0 --split 100,0,0 --eval-iters 0 --eval-interval 1000000 --log-interval 50 "
    "--rerun-mode disabled"
)
WARM_UP = 10  # pairs that are not counted
SAVED = 10  # pairs after which the file is written anew


class Pairs:
    """Runs neighbouring steps with and without the plugin and keeps their times.

    Args:
        after_pair: called with their number, outside what is timed.
        against: what the other step of a pair goes without: ``host`` (the plugin) or ``alarms``.
    """

    def __init__(self, after_pair: Callable[[int], None], against: str) -> None:
        self._after_pair, self._against = after_pair, against
        self.wall: list[dict[bool, float]] = []
        self.cpu: list[dict[bool, float]] = []
        self.syncs: list[dict[bool, float]] = []
        self._order: list[bool] = []
        self._random = random.Random(0)

    def wrap(self, train_step: Any) -> Any:
        """``train_step`` with our seam on it → one that takes turns."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self._order:
                self._order = self._random.sample([True, False], 2)
                for series in (self.wall, self.cpu, self.syncs):
                    series.append({})
            plugin = self._order.pop()
            step = train_step
            if not plugin and self._against == "host":
                step, args = without_plugin(train_step, args)
            elif not plugin:
                step = partial(without_alarms, train_step)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                _count_syncs(True)
                _synchronise()
                begin, cpu = time.perf_counter(), time.process_time()
                result = step(*args, **kwargs)
                _synchronise()
                self.wall[-1][plugin] = time.perf_counter() - begin
                self.cpu[-1][plugin] = time.process_time() - cpu
                _count_syncs(False)
            self.syncs[-1][plugin] = sum("synchroniz" in str(w.message) for w in caught)
            if not self._order:
                self._after_pair(len(self.wall))
            return result

        return timed


def without_plugin(train_step: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """The host's own ``train_step``, and its arguments with the host's own schedule."""
    # The schedule, which train() fetched through our seam, is one of the arguments.
    own = tuple(getattr(a, "__wrapped__", a) if callable(a) else a for a in args)
    return train_step.__wrapped__, own


def without_alarms(train_step: Any, *args: Any, **kwargs: Any) -> Any:
    """``train_step`` with our seam on it, while nobody looks at the numbers."""
    from domain_pretrain.hosts import megatron

    step = megatron._runtime().step
    watch, step.watch = step.watch, None
    try:
        return train_step(*args, **kwargs)
    finally:
        step.watch = watch


def _synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _count_syncs(on: bool) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("warn" if on else "default")


def ratio(pairs: list[dict[bool, float]]) -> dict[str, Any]:
    """Median of with/without over the pairs, its 95 % bootstrap interval, and the medians."""
    pairs = [pair for pair in pairs[WARM_UP:] if len(pair) == 2]
    ratios = [pair[True] / pair[False] for pair in pairs]
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "pairs": len(pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_interval_95": [medians[50], medians[1949]],
        "step_ms_with": 1e3 * statistics.median(pair[True] for pair in pairs),
        "step_ms_without": 1e3 * statistics.median(pair[False] for pair in pairs),
    }


def machine() -> dict[str, str]:
    """Where and on what the figure was measured."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    return {"device": device, "commit": commit(), "torch": torch.__version__}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), "")
    return f"{os.cpu_count()} x {model or platform.processor()}"


def make_corpora(folder: Path) -> list[str]:
    """Four small random corpora; ``--data-path`` for a blend of them."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    rng, blend = np.random.default_rng(0), []
    for number in range(4):
        prefix = folder / f"domain{number}"
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        for _ in range(100):
            builder.add_document(torch.from_numpy(rng.integers(0, 256, 500)), [500])
        builder.finalize(f"{prefix}.idx")
        blend += [str(1 + number), str(prefix)]
    return ["--data-path", *blend]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=200, help="pairs of steps")
    parser.add_argument("--reweight", default="none", help="strategy to measure with")
    parser.add_argument("--against", choices=("host", "alarms"), default="host")
    parser.add_argument("--out", type=Path, help="JSON file (default: print only)")
    options, flags = parser.parse_known_args()

    def save(number: int) -> None:
        if number > WARM_UP and number % SAVED == 0:
            write_json(options.out, result(pairs, options, flags))

    pairs = Pairs(save, options.against)
    train(pairs.wrap, 2 * (options.steps + WARM_UP), options.reweight, flags)
    if int(os.environ["RANK"]) == 0:
        found = result(pairs, options, flags)
        print(json.dumps(found, indent=2))
        write_json(options.out, found)


def result(pairs: Pairs, options: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """What the pairs so far say."""
    what = "the plugin" if options.against == "host" else "its alarms"
    return {
        "what": f"step time with / without {what}, reweight {options.reweight}",
        **machine(),
        "flags": " ".join([*model(), *flags]),
        "wall": ratio(pairs.wall),
        "cpu": ratio(pairs.cpu),
        "host_syncs": {
            name: statistics.median(pair[plugin] for pair in pairs.syncs if len(pair) == 2)
            for name, plugin in (("with", True), ("without", False))
        },
    }


def model() -> list[str]:
    """Megatron's flags for the model, on this machine."""
    import torch

    from domain_pretrain.backends.local_layers import gpu_flags

    if torch.cuda.is_available():
        return [*GPU_MODEL.split(), *gpu_flags()]
    return CPU_MODEL.split()


def train(wrap: Callable[[Any], Any], iterations: int, reweight: str, flags: list[str]) -> None:
    """Train with real Megatron, its ``train_step``, with our seam on it, replaced by ``wrap``'s."""
    from domain_pretrain import enable
    from domain_pretrain.process import SINGLE_PROCESS

    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    for key, value in SINGLE_PROCESS.items():
        os.environ.setdefault(key, value)
    enable()

    from megatron.training import training

    from domain_pretrain.hosts.gpt import entry as gpt

    training.train_step = wrap(training.train_step)
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = [
            sys.argv[0],
            *model(),
            *COMMON.split(),
            *make_corpora(Path(folder)),
            *("--train-iters", str(iterations)),
            *("--channel-loss", "--domain-log-dir", folder, "--domain-reweight", reweight),
            *flags,
        ]
        gpt.main()


if __name__ == "__main__":
    main()
