"""Corpora and a checkpoint that the end-to-end tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from launch import train

DOMAINS = ("finance", "general", "code", "maths", "rare")


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five small corpora with an alphabet each: token // 50 is the domain.

    So that a test can tell a domain by the text itself, whatever the dataset ids say. 256 ends a
    document of any domain.
    """
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    folder = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(0)
    for number, name in enumerate(DOMAINS):
        prefix = str(folder / name)
        probabilities = rng.dirichlet(np.full(50, 0.1 + 0.4 * number))
        builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        for _ in range(60):
            tokens = 50 * number + rng.choice(50, size=rng.integers(10, 120), p=probabilities)
            document = torch.from_numpy(np.append(tokens, 256).astype(np.int64))
            builder.add_document(document, [len(document)])
        builder.finalize(f"{prefix}.idx")
    return folder


@pytest.fixture(scope="session")
def blend(corpora: Path) -> list[str]:
    """``--data-path`` with one frequent domain and some that most microbatches do not hold."""
    weights = (1, 5, 0.5, 1, 0.2)
    words = [w for pair in zip(weights, DOMAINS, strict=True) for w in (pair[0], corpora / pair[1])]
    return ["--split", "80,10,10", "--data-path", *map(str, words)]


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Path:
    """A torch_dist checkpoint that every layout can load."""
    folder = tmp_path_factory.mktemp("base")
    save = ["--save", folder / "checkpoint", "--save-interval", "2", "--no-save-optim"]
    train(folder / "log", *blend, *save, iterations=2)
    return folder / "checkpoint"
