"""Five small corpora whose text tells the domain, whatever the dataset ids say."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DOMAINS = ("finance", "general", "code", "maths", "rare")
END_OF_DOCUMENT = 256
# One domain is frequent, and some are in few of the microbatches.
SHARES = (1, 5, 0.5, 1, 0.2)


def write_corpora(folder: Path) -> None:
    """A corpus for each of :data:`DOMAINS`, with an alphabet of its own: token // 50."""
    import torch
    from megatron.core.datasets import indexed_dataset

    rng = np.random.default_rng(0)
    for number, name in enumerate(DOMAINS):
        prefix = str(folder / name)
        probabilities = rng.dirichlet(np.full(50, 0.1 + 0.4 * number))
        builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        for _ in range(60):
            tokens = 50 * number + rng.choice(50, size=rng.integers(10, 120), p=probabilities)
            ended = np.append(tokens, END_OF_DOCUMENT).astype(np.int64)
            builder.add_document(torch.from_numpy(ended), [len(ended)])
        builder.finalize(f"{prefix}.idx")


def blend_flags(folder: Path) -> list[str]:
    """``--data-path`` with all of them."""
    pairs = zip(SHARES, DOMAINS, strict=True)
    words = [word for share, name in pairs for word in (str(share), str(folder / name))]
    return ["--split", "80,10,10", "--data-path", *words]


def domain_of(tokens: np.ndarray) -> str:
    """The one domain that these tokens are of; a ``[s]`` with ends of documents in it."""
    (number,) = set((tokens[tokens < 50 * len(DOMAINS)] // 50).tolist())
    return DOMAINS[number]
