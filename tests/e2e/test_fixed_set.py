"""``evaluate.samples``: the same samples of every domain at every evaluation, in any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.launch import Run, train
from support.losses import points

pytestmark = pytest.mark.megatron

SAMPLES = 5
FLAGS = [
    "--eval-interval",
    "2",
    "--eval-iters",
    "1",
    "--hidden-dropout",
    "0.1",
    "--attention-dropout",
    "0.1",
]
LAYOUTS: dict[str, tuple[int, str]] = {
    "DP2": (2, ""),
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "PP2 with virtual stages": (
        2,
        "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2",
    ),
    "CP2": (2, "--context-parallel-size 2"),
}


def run(
    folder: Path, blend: list[str], *flags: str | Path, samples: int = SAMPLES, **how: Any
) -> Run:
    (folder / "config.yaml").write_text(f"evaluate: {{samples: {samples}}}", encoding="utf-8")
    config = ["--domain-config", folder / "config.yaml"]
    return train(folder, *blend, *FLAGS, *config, *flags, **how)


def evaluations(of: Run) -> list[dict[str, Any]]:
    return of.metrics("valid")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Run:
    return run(tmp_path_factory.mktemp("single"), blend)


def test_every_evaluation_reads_the_same(single: Run) -> None:
    found = evaluations(single)
    assert points(found) == [
        ("valid", 0, False),
        ("valid", 2, False),
        ("valid", 4, False),
        ("valid", 4, True),
    ]
    for entry in found:
        assert entry["domains"].keys() == {"finance", "general", "code", "maths", "rare"}
        counted = {(d["samples"], d["tokens"]) for d in entry["domains"].values()}
        assert counted == {(SAMPLES, 32 * SAMPLES)}
    # The same weights on the same samples.
    assert found[-1]["domains"] == found[-2]["domains"]
    assert found[0]["lm_loss"] != found[1]["lm_loss"]


def test_the_run_goes_on_as_without(single: Run, blend: list[str], tmp_path: Path) -> None:
    """Losses, dropout, and what the host itself evaluates on."""
    plain = train(tmp_path, *blend, *FLAGS)
    assert single.host_losses() == plain.host_losses()
    assert single.host_grad_norms() == plain.host_grad_norms()
    assert single.host_evaluations() == plain.host_evaluations()
    for key in ("domains", "consumed_samples"):
        assert [e[key] for e in single.metrics()] == [e[key] for e in plain.metrics()]


def test_the_blend_has_no_part_in_it(single: Run, corpora: Path, tmp_path: Path) -> None:
    names = ("finance", "general", "code", "maths", "rare")
    even = [word for name in names for word in ("1", str(corpora / name))]
    other = run(tmp_path, ["--split", "80,10,10", "--data-path", *even], iterations=2)
    assert evaluations(other)[0]["domains"] == evaluations(single)[0]["domains"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, single: Run, blend: list[str], tmp_path: Path) -> None:
    """The model of step 0, before dropout has drawn other numbers in each layout."""
    nproc, flags = LAYOUTS[layout]
    first, *rest = evaluations(run(tmp_path, blend, *flags.split(), nproc=nproc))
    expected = evaluations(single)[0]
    assert len(rest) == 3
    for name, domain in expected["domains"].items():
        have = first["domains"][name]
        assert (have["samples"], have["tokens"]) == (domain["samples"], domain["tokens"])
        assert have["loss_sum"] == pytest.approx(domain["loss_sum"], rel=1e-5)


def test_a_domain_with_less(blend: list[str], corpora: Path, tmp_path: Path) -> None:
    """All that it has, of both its prefixes, and of sets that each split has of its own."""
    data = [
        *("--train-data-path", "1", corpora / "finance", "1", corpora / "code"),
        *("--valid-data-path", corpora / "finance", corpora / "code"),
    ]
    one = run(tmp_path, [], *data, samples=10_000, iterations=2)
    for entry in evaluations(one):
        tokens = {d["tokens"] for d in entry["domains"].values()}
        assert all(10 * 32 < count < 10_000 * 32 for count in tokens)
        assert all(count % 32 == 0 for count in tokens)


def test_an_evaluation_alone(single: Run, blend: list[str], tmp_path: Path) -> None:
    """``--skip-train``: on the model of a checkpoint."""
    saved = ["--save", tmp_path / "checkpoints", "--save-interval", "4", "--ckpt-format", "torch"]
    trained = run(tmp_path, blend, *saved)
    alone = tmp_path / "alone"
    alone.mkdir()
    load = ["--load", tmp_path / "checkpoints", "--ckpt-format", "torch", "--skip-train"]
    found = evaluations(run(alone, blend, *load))
    assert found[0]["domains"] == evaluations(trained)[-1]["domains"]
