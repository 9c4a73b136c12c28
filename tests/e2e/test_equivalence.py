"""Channel loss is the same in every layout, equals a brute-force oracle, and adds up to lm loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.corpora import DOMAINS
from support.launch import Run, train
from support.losses import assert_close, mean

pytestmark = pytest.mark.megatron

LAYOUTS = {
    "dp2": (2, ""),
    "tp2": (2, "--tensor-model-parallel-size 2"),
    "pp2": (2, "--pipeline-model-parallel-size 2"),
    "pp2-vpp2": (2, "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2"),
    "pp2-uneven": (
        2,
        "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Et|tttL",
    ),
    "cp2": (2, "--context-parallel-size 2"),
    "tp2-pp2": (4, "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"),
    "cp2-dp2": (4, "--context-parallel-size 2"),
    "distributed-optimizer": (2, "--use-distributed-optimizer"),
}


# Started as users start them, by torchrun; the others are forked.
BY_TORCHRUN = ("dp2",)


@pytest.fixture(scope="module")
def start(base_checkpoint: Path, blend: list[str]) -> list[str]:
    """The same weights and data in every layout; --calculate-per-token-loss, so that gradients
    do not depend on how the batch is cut either."""
    load = ["--load", str(base_checkpoint), "--finetune", "--no-load-rng"]
    return [*blend, *load, "--calculate-per-token-loss"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, start: list[str]) -> tuple[Run, Path]:
    """One process, with every microbatch's losses recorded."""
    folder = tmp_path_factory.mktemp("reference")
    cache = ["--data-cache-path", folder / "cache"]
    run = train(folder, *start, *cache, script="recording_gpt.py", env={"RECORD_DIR": str(folder)})
    return run, folder


def test_brute_force_oracle(reference: tuple[Run, Path]) -> None:
    """Float64 sums over recorded losses; a sample's domain is read from Megatron's blend index."""
    run, folder = reference
    record = np.load(folder / "rank0.npz")
    (index,) = folder.glob("cache/*-BlendedDataset-train-dataset_index.npy")
    dataset_of_sample = np.load(index)
    entries = run.metrics()
    assert len(entries) == 4
    for step, entry in enumerate(entries):
        sums = np.zeros((5, 3))
        for sample in range(8 * step, 8 * step + 8):
            losses, mask = record[f"losses{sample}"], record[f"mask{sample}"]
            row = sums[dataset_of_sample[sample]]
            row += (np.sum(losses.astype(np.float64) * mask), mask.sum(), 1)
        present = {n: s for n, s in zip(DOMAINS, sums, strict=True) if s[1]}
        assert set(entry["domains"]) == set(present)
        assert len(present) < 5, "some domain should be absent, or absence is not tested"
        for name, (loss_sum, tokens, samples) in present.items():
            domain = entry["domains"][name]
            assert (domain["tokens"], domain["samples"]) == (tokens, samples)
            assert abs(domain["loss_sum"] - loss_sum) <= tokens * 2**-25
            assert domain["loss"] == pytest.approx(loss_sum / tokens, rel=1e-7)


def test_domains_add_up_to_the_hosts_loss(reference: tuple[Run, Path]) -> None:
    run, _ = reference
    totals = []
    for entry in run.metrics():
        totals.append(mean(entry))
        assert entry["lm_loss"] == pytest.approx(totals[-1], rel=1e-12)
    # Megatron prints iteration 1 without restarting its average, so the second line has both.
    expected = [totals[0], (totals[0] + totals[1]) / 2, *totals[2:]]
    printed = [float(loss) for loss in run.host_losses()]
    assert printed == pytest.approx(expected, rel=1e-6)  # seven digits are printed


def test_our_sums_in_the_place_of_the_loss_function(
    reference: tuple[Run, Path], start: list[str], tmp_path: Path
) -> None:
    """As on a GPU: the same gradients, hence the same run; the printed loss is rounded apart."""
    run = train(tmp_path, *start, script="fused_gpt.py")
    expected = reference[0]
    for split in ("train", "valid", "test"):
        assert run.metrics(split) == expected.metrics(split)
    assert run.host_grad_norms() == expected.host_grad_norms()
    printed = [[float(x) for x in r.host_losses()] for r in (run, expected)]
    assert printed[0] == pytest.approx(printed[1], rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str, reference: tuple[Run, Path], start: list[str], tmp_path: Path) -> None:
    nproc, flags = LAYOUTS[layout]
    run = train(tmp_path, *start, *flags.split(), nproc=nproc, real=layout in BY_TORCHRUN)
    for split in ("train", "valid", "test"):
        assert_close(run.metrics(split), reference[0].metrics(split))
