"""The stream in the place of a host's training data: what must be there for it."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.prefixes import write_prefix

from domain_pretrain.data.already_read import AlreadyRead
from domain_pretrain.data.mix.plan import Plan, Stage
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.trace.windows import Windows
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.hosts import stream
from domain_pretrain.hosts.runtime import Runtime

PLAN = Plan(("a", "b"), (Stage(None, (1.0, 1.0)),), 80)


def builder(prefixes: list[str], samples: int | None) -> Any:
    config = SimpleNamespace(
        blend=(prefixes, [1.0] * len(prefixes)),
        blend_per_split=None,
        split_matrix=[(0, 0.9), (0.9, 1), None],
    )
    return SimpleNamespace(config=config, sizes=[samples, 8, 8])


@pytest.mark.parametrize(
    ("prefixes", "samples"), [(["a", "c"], 80), (["a"], 80), (["a", "b"], 79), (["a", "b"], None)]
)
def test_a_script_that_builds_other_data_is_stopped(
    prefixes: list[str], samples: int | None
) -> None:
    with pytest.raises(UnsupportedError, match=f"builds {samples} training samples of .* tell 80"):
        stream.build(lambda one: [None, None, None], builder(prefixes, samples), PLAN)


def test_what_is_asked_of_the_host() -> None:
    """First all but the training data, then one pass of that; the builder stays as it was."""
    asked: list[Any] = []

    def original(one: Any) -> list[Any]:
        asked.append((one.config.blend, one.config.split_matrix, one.sizes))
        return [None, "valid", "test"]

    given = builder(["a", "b"], 80)
    config = given.config
    assert stream.build(original, given, PLAN) == [None, "valid", "test"]
    assert asked == [
        ((["a", "b"], [1.0, 1.0]), [None, (0.9, 1), None], [80, 8, 8]),
        ((["a", "b"], None), [(0, 0.9), None, None], [1, 8, 8]),
    ]
    assert given.config is config
    assert (config.split_matrix[0], given.sizes) == ((0, 0.9), [80, 8, 8])

    def broken(one: Any) -> list[Any]:
        raise OSError

    with pytest.raises(OSError):
        stream.build(broken, given, PLAN)
    assert given.config is config


@pytest.mark.parametrize("samples", [10, 100])
def test_what_the_hosts_own_data_say_of_each_prefix(samples: int, tmp_path: Path) -> None:
    """As Megatron builds them; with more than one epoch, it shuffles them together."""
    pytest.importorskip("megatron.core")
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    from domain_pretrain.hosts.consumption import samples_by_prefix

    prefixes = [str(tmp_path / name) for name in ("a", "b")]
    for prefix, documents in zip(prefixes, (20, 100), strict=True):
        write_prefix(prefix, [33] * documents)  # 41 and 206 samples

    def build(blend: tuple[list[str], list[float] | None]) -> Any:
        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=16,
            blend=blend,
            split="1",
            tokenizer=SimpleNamespace(unique_identifiers={}, eod=None, pad=None, vocab_size=300),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        sizes = [samples, 1, 1]
        return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]

    whole = 41 if samples == 10 else None
    assert samples_by_prefix(build((prefixes, [3, 1])), 8) == ([6, 2], [whole, 206])
    assert samples_by_prefix(build((prefixes[:1], None)), 8) == ([8], [whole])
    assert samples_by_prefix(build((prefixes, None)), 0) == ([0, 0], [41, 206]), "by size"
    assert samples_by_prefix([1, 2], 1) == ([1], [None])


def test_windows_outlive_the_hosts_data_set(tmp_path: Path) -> None:
    """Megatron closes the file below the lengths of its documents with the data set."""
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    write_prefix(tmp_path / "a", [33, 5])
    data = SimpleNamespace(
        dataset=indexed.IndexedDataset(str(tmp_path / "a")),
        config=SimpleNamespace(),
        document_index=np.arange(2),
        sample_index=np.zeros((2, 2)),
        shuffle_index=np.arange(1),
    )
    mapped = data.dataset.index.bin_buffer_mmap._mmap
    windows = Windows.of(data)
    del data
    gc.collect()
    assert not mapped.closed
    assert windows.lengths.tolist() == [33, 5]


class Host:
    """What a data set of the host is made of."""

    def __init__(self, low: str, path: str, documents: Any, *rest: Any) -> None:
        self.path, self.documents, self.rest = path, documents, rest
        self.name = type(self).__name__  # by which it finds its index files


def test_documents_that_were_read_are_no_part_of_the_training_data() -> None:
    """But of the other splits; index files have another name; and workers may be spawned."""
    read = AlreadyRead(Path("read.json"), "f00d", {normalise("a"): np.array([1, 3])}, {})
    made: list[Any] = []

    def original(one: Any) -> list[Any]:
        made.append(one.cls("low", one.config.blend[0][0], np.arange(5), "size", "config"))
        return [None, "valid", "test"]

    given = builder(["a", "b"], 80)
    given.cls = Host
    stream.build(original, given, PLAN, already_read=read)
    rest, training = made
    assert rest.documents.tolist() == [0, 1, 2, 3, 4] and type(rest) is Host
    assert training.documents.tolist() == [0, 2, 4]
    assert training.name.startswith("HostWithout") and training.rest == ("size", "config")
    assert isinstance(training, Host) and given.cls is Host
    again = pickle.loads(pickle.dumps(training))
    assert type(again).__name__ == type(training).__name__
    assert again.documents.tolist() == [0, 2, 4]


def test_index_files_are_named_by_the_documents_of_their_prefix() -> None:
    """Not by a digest of all of them: it is the same where two prefixes have each other's."""

    def names(**documents: list[int]) -> list[str]:
        own = {normalise(name): np.array(numbers) for name, numbers in documents.items()}
        made: list[Any] = []

        def original(one: Any) -> list[Any]:
            made.extend(one.cls("low", name, np.arange(5)) for name in one.config.blend[0])
            return [None] * 3

        given = builder(["a", "b"], 80)
        given.cls = Host
        read = AlreadyRead(Path("read.json"), "f00d", own, {})
        stream.build(original, given, PLAN, already_read=read)
        assert len({type(one) for one in made[-2:]}) == 1, "a blend takes one kind"
        return [one.name for one in made[-2:]]

    (first, none), (also_none, second) = names(a=[1, 3]), names(b=[1, 3])
    assert first == second != none == also_none == "Host"
    assert names(a=[1, 3], b=[1, 4])[1] != names(a=[1, 4], b=[1, 3])[1]


def test_data_that_does_not_come_from_the_hosts_builder() -> None:
    """A schedule must not be ignored in silence; ranks that read nothing have nothing to show."""
    own = SimpleNamespace(plan=PLAN, board=None, omissions=print, epochs=1, resume=lambda *_: PLAN)
    reading = SimpleNamespace(already_read=None)
    session = SimpleNamespace(plan=PLAN, stream=own, reading=reading)
    runtime = Runtime(SimpleNamespace(consumed_train_samples=0), session)  # type: ignore[arg-type]
    runtime.check_stream(None)
    with pytest.raises(UnsupportedError, match="training data, a list, does not come from Megatro"):
        runtime.check_stream([1])
    runtime.build_stream(lambda one: [None, None, None], builder(["a", "b"], 80))
    runtime.check_stream([1])
    Runtime(None, SimpleNamespace(plan=None)).check_stream([1])  # type: ignore[arg-type]
