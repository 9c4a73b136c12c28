"""The plan's counts against Megatron's own data sets and blend."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prefixes import write_prefix

from domain_pretrain.data.blend import blend_of_words
from domain_pretrain.planning.make import make_plan
from domain_pretrain.planning.output import flags
from domain_pretrain.planning.section import PlanFile

pytest.importorskip("megatron.core.datasets", reason="megatron-core is not installed")

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.helpers import build_blending_indices
from megatron.core.datasets.utils import normalize

LENGTH = 16


class Tokenizer:
    vocab_size, eod, pad, unique_identifiers = 100, 0, 99, {"class": "test"}


def train_data(blend: tuple[list[str], list[float] | None], samples: int | None) -> Any:
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        blend=blend,
        split="80,20",
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 8, 8], lambda: True, config).build()[
        0
    ]


def test_a_planned_run_is_what_megatron_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch has as many samples, and each prefix gives as many as planned, and none twice."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"p{n}" for n in range(7)]
    for name in names:
        write_prefix(name, rng.integers(1, 60, size=rng.integers(20, 90)).tolist())
    domains = "{" + ", ".join(f"{name}: {name}" for name in names) + "}"
    mix = "{" + ", ".join(f"{name}: {1 + 0.37 * n}" for n, name in enumerate(names)) + "}"
    Path("plan.yaml").write_text(
        f"seq_length: {LENGTH}\nglobal_batch_size: 4\nsplit: '80,20'\nepochs: 3\n"
        f"domains: {domains}\nstages: [{{samples: 250, mix: {mix}}}]\n",
        "utf-8",
    )
    plan = make_plan(PlanFile.load("plan.yaml"))
    assert plan.samples == 248 and len(plan.prefixes) == 7
    for one in plan.prefixes:
        whole = train_data(([one.source.prefix], None), None)
        assert len(whole) == one.source.corpus.samples

    words = flags(plan, Path("domains.yaml"))
    blend = blend_of_words(words[words.index("--data-path") + 1 : words.index("--domain-config")])
    data = train_data(blend, plan.samples)
    served = Counter(int(number) for number in data.dataset_index[: plan.samples])
    assert [served[n] for n in range(7)] == [one.samples for one in plan.prefixes]
    once = [n for n, one in enumerate(plan.prefixes) if one.epochs <= 1]
    assert once and len(once) < 7
    for n in once:
        order = data.datasets[n].shuffle_index[: served[n]]
        assert len(set(order.tolist())) == served[n]
        assert max(order) < plan.prefixes[n].source.corpus.samples


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_samples_as_weights_give_these_samples(counts: list[int]) -> None:
    """Exactly, but for a tie that rounding decides otherwise."""
    size = sum(counts)
    index, sample = np.zeros(size, np.int16), np.zeros(size, np.int64)
    weights = normalize([float(count) for count in counts])
    build_blending_indices(index, sample, weights, len(counts), size, False)
    served = np.bincount(index, minlength=len(counts))
    assert np.abs(served - counts).max() <= 1
