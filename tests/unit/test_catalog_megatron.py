"""The catalog against the datasets that Megatron really builds: every token names its prefix."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain_pretrain.data.blend import Blend, check_data_path, data_path_arguments
from domain_pretrain.data.catalog import Catalog
from domain_pretrain.data.domain import Domain
from domain_pretrain.data.origin import ById, Constant, Sets
from domain_pretrain.data.prefixes import count_tokens
from domain_pretrain.data.splits import documents, parse_split
from domain_pretrain.errors import ConfigError
from domain_pretrain.stats import SPLITS

pytest.importorskip("megatron.core.datasets", reason="megatron-core is not installed")

from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import (
    GPTDataset,
    GPTDatasetConfig,
    MockGPTDataset,
    MockGPTLowLevelDataset,
)
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.core.datasets.utils import get_blend_from_list

PREFIXES = ["a", "b", "c", "d"]
CONFIG = {
    "last": Domain(data=["d"]),
    "rest": Domain(data=["c", "a"]),
    "b": Domain(data=["b"]),
}


class Tokenizer:
    vocab_size, eod, pad, unique_identifiers = 100, 0, 99, {"class": "test"}


def write(prefix: str, token: int, dtype: type = np.uint16, documents: int = 40) -> None:
    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=dtype)
    for _ in range(documents):
        builder.add_document(torch.full((20,), token), [20])
    builder.finalize(prefix + ".idx")


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Prefix ``PREFIXES[i]`` in the current directory holds nothing but the token i + 1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("data"))
        for token, prefix in enumerate(PREFIXES, start=1):
            write(prefix, token)
        yield


def megatron_datasets(
    blend: Blend, per_split: list[Blend] | None, dataset: type = GPTDataset, **options: Any
) -> list[Any]:
    if options.get("multiple_validation_sets"):
        options["full_validation"] = True  # Megatron's training loop insists on it
    split = options.pop("split", "2,1,1")
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=8,
        blend=blend,
        blend_per_split=per_split,
        split=None if per_split else split,
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        **options,
    )
    sizes = [30, None if options.get("full_validation") else 20, 20]
    return BlendedMegatronDatasetBuilder(dataset, sizes, lambda: True, config).build()


def samples(dataset: Any) -> list[tuple[int | None, int]]:
    """(dataset id or None, index of the prefix) of every sample."""
    rows = (dataset[i] for i in range(len(dataset)))
    return [
        (int(row["dataset_id"]) if "dataset_id" in row else None, int(row["tokens"][0]) - 1)
        for row in rows
    ]


def prove(
    blend: Blend,
    per_split: list[Blend] | None = None,
    config: dict[str, Domain] | None = None,
    **options: Any,
) -> Catalog:
    """Every sample that Megatron serves belongs to the domain that the catalog says."""
    datasets = megatron_datasets(blend, per_split, **options)
    options.pop("split", None)
    catalog = Catalog.build(blend, per_split, config or {}, **options)

    def domain(prefix: int) -> int:
        if config is None:
            return catalog.names.index(PREFIXES[prefix])
        (name,) = (n for n, d in config.items() if PREFIXES[prefix] in d.data)
        return catalog.names.index(name)

    for split, dataset in zip(SPLITS, datasets, strict=True):
        expected = catalog.split(split)
        if dataset is None:
            continue
        assert expected is not None
        if isinstance(dataset, list):
            assert isinstance(expected, Sets)
            assert len(expected.domains) == len(dataset)
            for index, one in zip(expected.domains, dataset, strict=True):
                assert {(id_, domain(prefix)) for id_, prefix in samples(one)} == {(None, index)}
        elif isinstance(dataset, BlendedDataset):
            assert isinstance(expected, ById)
            assert len(expected.domains) == len(dataset.datasets)
            seen = samples(dataset)
            assert {id_ for id_, _ in seen} == set(range(len(dataset.datasets)))
            for id_, prefix in seen:
                assert id_ is not None
                assert expected.domains[id_] == domain(prefix)
        else:
            assert isinstance(expected, Constant)
            assert {(id_, domain(prefix)) for id_, prefix in samples(dataset)} == {
                (None, expected.domain)
            }
    return catalog


A, B, C, D = PREFIXES


@pytest.mark.parametrize("config", [None, CONFIG], ids=["no config", "config"])
@pytest.mark.parametrize(
    "blend",
    [
        ([C, A, D, B], [1.0, 2.0, 3.0, 4.0]),
        ([C, A, D, B], None),
        ([A, B, A, C, D, A], [1.0] * 6),
        ([D, B, C, A, A], None),
    ],
    ids=["weights", "sizes", "duplicates", "duplicates by size"],
)
def test_one_blend(blend: Blend, config: dict[str, Domain] | None) -> None:
    catalog = prove(blend, config=config)
    assert catalog.split("train") == catalog.split("valid") == catalog.split("test")


@pytest.mark.parametrize("weights", [None, [3.0]])
def test_one_prefix(weights: list[float] | None) -> None:
    split = prove(([B], weights)).split("train")
    assert split == (Constant(0) if weights is None else ById((0,)))


def test_a_split_without_a_share_has_no_dataset() -> None:
    prove(([A, B], [1.0, 1.0]), split="3,1,0")
    assert megatron_datasets(([A, B], [1.0, 1.0]), None, split="3,1,0")[2] is None


def test_blends_per_split_have_ids_of_their_own() -> None:
    per_split: list[Blend] = [([A, B, C], [1.0, 1.0, 2.0]), ([C, D, A], None), ([B], [2.0])]
    catalog = prove(None, per_split)
    assert catalog.names == ("a", "b", "c", "d")
    assert catalog.splits == (ById((0, 1, 2)), ById((2, 3, 0)), Constant(1))
    prove(None, per_split, CONFIG)
    assert prove(None, [([A], None), None, None]).splits[1:] == (None, None)


has_validation_sets = pytest.mark.skipif(
    "multiple_validation_sets" not in GPTDatasetConfig.__dataclass_fields__,
    reason="this Megatron has no --multiple-validation-sets",
)


@has_validation_sets
@pytest.mark.parametrize("valid", [[C, A, B], [B, B], [B]])
def test_multiple_validation_sets(valid: list[str]) -> None:
    per_split: list[Blend] = [([A, B, C], [1.0, 1.0, 1.0]), (valid, None), None]
    split = prove(None, per_split, multiple_validation_sets=True).split("valid")
    # One prefix is no list, whatever the flag.
    assert isinstance(split, Constant if len(valid) == 1 else Sets)


@has_validation_sets
def test_multiple_validation_sets_do_nothing_without_a_blend_per_split() -> None:
    datasets = megatron_datasets(([A, B], None), None, multiple_validation_sets=True)
    assert isinstance(datasets[1], BlendedDataset)
    prove(([A, B], None), multiple_validation_sets=True)


def test_mock_data_have_no_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MockGPTLowLevelDataset, "size", 100)
    catalog = Catalog.build(None, None, {}, mock_data=True)
    for split, dataset in zip(SPLITS, megatron_datasets(None, None, MockGPTDataset), strict=True):
        assert "dataset_id" not in dataset[0]
        assert catalog.split(split) == Constant(0)
    assert catalog.names == ("mock",)


# Few enough for a split's samples to come from all of them.
weighted = st.lists(
    st.tuples(st.sampled_from(PREFIXES), st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=6
)
blends = st.one_of(
    weighted.map(lambda pairs: tuple(map(list, zip(*pairs, strict=True)))),
    weighted.map(lambda pairs: ([prefix for prefix, _ in pairs], None)),
)


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(blends, st.none() | blends, st.booleans())
def test_any_blend(train: Any, valid: Any, per_split: bool) -> None:
    try:
        prove(*((None, [train, valid, None]) if per_split else (train,)))
    except Exception:
        # Megatron's datasets hold their files in cycles: hundreds of failing examples, while
        # hypothesis looks for the simplest, would leave no file for any other test to open.
        gc.collect()
        raise


tokens = st.lists(st.sampled_from(["1", "0.5", "0", "-1", "nan", "inf", "1e-3", "a", "b", " c"]))


@settings(max_examples=300)
@given(tokens)
def test_check_data_path_refuses_what_megatron_would_misread(tokens: list[str]) -> None:
    try:
        blend = get_blend_from_list(tokens)
    except (AssertionError, ValueError):
        sound = False
    else:
        assert blend is not None
        prefixes, weights = blend
        sound = set(prefixes) <= {"a", "b", "c"} and all(
            weight > 0 and math.isfinite(weight) for weight in weights or []
        )
    try:
        check_data_path(tokens)
    except ConfigError:
        assert not sound
    else:
        assert sound


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_count_tokens_reads_megatron_files(dtype: type, tmp_path: Path) -> None:
    prefix = str(tmp_path / "x")
    write(prefix, 7, dtype, documents=3)
    assert count_tokens(prefix) == IndexedDataset(prefix).sequence_lengths.sum() == 60


def test_supplied_arguments_make_the_blend_of_the_config() -> None:
    config = {"x": Domain(data=["[bc]"], weight=1), "y": Domain(data=[A], weight=3)}
    flag, *values = data_path_arguments(config)
    assert flag == "--data-path"
    check_data_path(values)
    blend = get_blend_from_list(values)
    assert blend == ([B, C, A], [0.5, 0.5, 3.0])
    catalog = Catalog.build(blend, None, config)
    train = megatron_datasets(blend, None)[0]
    split = catalog.split("train")
    assert isinstance(split, ById)
    drawn = [split.domains[id_] for id_, _ in samples(train) if id_ is not None]
    # Blending follows the weights to within one sample per dataset.
    assert abs(drawn.count(0) - len(drawn) / 4) <= 2


@pytest.mark.parametrize(
    "split", ["2,1,1", "969,300,100", "33 33 34", "7,0,3", "1/29/7", "1", ".5,.1"]
)
def test_the_documents_of_a_split_are_megatrons(split: str) -> None:
    built = megatron_datasets((["a"], None), None, split=split)
    for part, dataset in zip(parse_split(split), built, strict=True):
        assert (part is None) == (dataset is None)
        if dataset is not None:
            assert list(documents(part, 40)) == dataset.indices.tolist()
