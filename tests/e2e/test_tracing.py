"""A trace says what the model was fed, row by row, and when a document is read."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from support.corpora import DOMAINS, write_corpora
from support.launch import MODEL, SCRIPTS
from support.launch import start as launch
from support.ramps import ramped
from support.streams import fed, traced
from support.streams import recorded_run as start

from domain_pretrain.commands.main import main
from domain_pretrain.commands.trace import open_trace
from domain_pretrain.data.index import Index
from domain_pretrain.data.trace.trace import Sample, Trace
from domain_pretrain.errors import ConfigError

pytestmark = pytest.mark.megatron

BATCH, SEQUENCE = 8, 32
# The rare domain has fewer windows than it gives samples.
SCHEDULE = [
    {"samples": 60, "weights": {"general": 3, "code": 1}},
    {"share": 0.3, "weights": {"rare": 5, "maths": 2}, "shape": "linear"},
    {"weights": {"rare": 5, "finance": 1}},
]
CUTS = [{"samples": [10, 15]}, {"samples": [58, 71]}]


def check(folder: Path, iterations: int, *, blended: bool = True) -> Trace:
    trace = open_trace(folder)
    rows = fed(folder)
    assert sorted(rows) == list(range(1, iterations + 1))
    assert traced(trace.iterations(1, iterations + 1), SEQUENCE, blended=blended) == rows
    return trace


def check_documents(trace: Trace, iterations: int, prefixes: Iterable[str]) -> None:
    """Backwards it says what forwards it said, of every document."""
    forwards = defaultdict(list)
    for sample in trace.iterations(1, iterations + 1):
        for index in dict.fromkeys(span.index for span in sample.documents):
            forwards[sample.part.prefixes[sample.prefix], index].append(sample.dump())
    for prefix in prefixes:
        for document in range(48):  # of 60, by --split 80,10,10
            found = [sample.dump() for sample in trace.document(prefix, document)]
            assert found == forwards[prefix, document]


def cached(*folders: Path) -> set[Path]:
    return {file for folder in folders for file in folder.rglob("*.npy")}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Corpora that no other run has an index of."""
    folder = tmp_path_factory.mktemp("trace")
    write_corpora(folder)
    pairs = zip((1, 5, 0.5, 1, 0.2), DOMAINS, strict=True)
    words = [word for share, name in pairs for word in (str(share), str(folder / name))]
    return folder, ["--split", "80,10,10", "--data-path", *words]


def test_the_hosts_blend(own: tuple[Path, list[str]], tmp_path: Path) -> None:
    """With epochs, of which Megatron shuffles all but the last together; in two ranks."""
    corpora, blend = own
    cache = tmp_path / "cache"
    start(tmp_path, blend, None, "--data-cache-path", cache, iterations=30, nproc=2)
    kept = cached(cache, corpora)
    trace = check(tmp_path, 30)
    general = [s for s in trace.iterations(1, 31) if s.domain == "general"]
    tokens = Index.read(str(corpora / "general")).tokens
    assert len(general) * SEQUENCE > tokens, "read more than once"
    check_documents(trace, 30, [str(corpora / "general"), str(corpora / "rare")])
    assert cached(cache, corpora) == kept, "the run's own index files are read"


def test_shares_that_the_losses_decide(own: tuple[Path, list[str]], tmp_path: Path) -> None:
    """By the blocks that the journal tells; what has not been decided yet is not known."""
    corpora, blend = own
    dynamic = {"strategy": "linupper", "temperature": 0.5, "warmup_steps": 1, "block": 16}
    mix = {"dynamic": {**dynamic, "clip": [0.1, 8.0]}, "skip": CUTS}
    save = ["--save", tmp_path / "checkpoints", "--save-interval", "5", "--ckpt-format", "torch"]
    start(tmp_path, blend, mix, *save, "--exit-interval", "7", iterations=30)
    trace = open_trace(tmp_path)
    assert traced(trace.iterations(1, 8), SEQUENCE) == fed(tmp_path)
    with pytest.raises(ConfigError, match=r"does not tell of block \d+ of mix\.dynamic"):
        list(trace.iterations(20, 21))
    with pytest.raises(ConfigError, match="ask for iterations instead"):
        list(trace.document(str(corpora / "general"), 3))
    general = str(corpora / "general")
    without = {**mix, "skip": [*CUTS, {"documents": [3, 20], "prefix": general}]}
    load = ["--load", tmp_path / "checkpoints"]
    run = start(tmp_path, blend, without, *save, *load, iterations=30, nproc=2)
    assert f"samples of {general} hold a token of 2 documents, and are left out" in run.output
    trace = check(tmp_path, 30)
    assert documents(trace.iterations(1, 6), general) & {3, 20}, "read before"
    assert not documents(trace.iterations(6, 31), general) & {3, 20}


def documents(samples: Iterable[Sample], prefix: str) -> set[int]:
    """That the samples hold of a prefix."""
    own = (one for one in samples if one.part.prefixes[one.prefix] == prefix)
    return {span.index for one in own for span in one.documents}


def test_a_schedule_with_cuts(
    own: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped, and resumed before its end with one cut more, in another layout."""
    corpora, blend = own
    rare = str(corpora / "rare")
    without = {"documents": [7], "prefix": rare}  # in every epoch
    save = ["--save", tmp_path / "checkpoints", "--save-interval", "10", "--ckpt-format", "torch"]
    stop = ["--exit-interval", "14"]
    start(
        tmp_path,
        blend,
        {"schedule": SCHEDULE, "skip": [*CUTS, without]},
        *save,
        *stop,
        iterations=30,
    )
    before = [sample.dump() for sample in open_trace(tmp_path).iterations(1, 31)]
    assert len(before) == 30 * BATCH, "those to come, too"
    assert traced(open_trace(tmp_path).iterations(1, 15), SEQUENCE) == fed(tmp_path)

    cuts = [*CUTS, without, {"samples": [150, 160]}]
    load = ["--load", tmp_path / "checkpoints", "--ckpt-step", "10", "--num-workers", "2"]
    start(tmp_path, blend, {"schedule": SCHEDULE, "skip": cuts}, *load, iterations=30, nproc=2)
    trace = check(tmp_path, 30)
    found = [sample.dump() for sample in trace.iterations(1, 31)]
    positions = [sample["sample"] for sample in found]
    cut = {*range(10, 15), *range(58, 71), *range(150, 160)}
    assert positions == [number for number in range(240 + len(cut)) if number not in cut]
    place = next(number for number, sample in enumerate(found) if sample["sample"] >= 150)
    assert found[:place] == before[:place]
    moved = [sample | {"iteration": 0} for sample in before[place + 10 :]]
    assert [sample | {"iteration": 0} for sample in found[place : place + len(moved)]] == moved
    own_of_rare = [sample for sample in found if sample["domain"] == "rare"]
    texts = {json.dumps(sample["documents"]) for sample in own_of_rare}
    assert len(texts) < len(own_of_rare), "read more than once"
    check_documents(trace, 30, [rare, str(corpora / "general")])
    read = documents(trace.iterations(1, 31), rare)
    assert 7 not in read
    assert len(read) > 40, "of 48: those that share all of their samples with it are gone, too"

    def asked(*words: str) -> list[dict[str, Any]]:
        assert main(["trace", str(tmp_path), "--json", *words]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert asked("--iteration", "11:13") == found[80:96]
    assert asked("--samples", "5:17") == found[5:12]
    assert asked("--iteration", "20", "--domain", "rare") == [
        sample for sample in found[152:160] if sample["domain"] == "rare"
    ]
    assert main(["trace", str(tmp_path), "--samples", "151:155"]) == 2
    assert "mix.skip has cut them out" in capsys.readouterr().err
    assert main(["trace", str(tmp_path), "--iteration", "31"]) == 2
    assert "beyond the run: it ends with iteration 30, after 240 samples" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["one prefix", "TP2", "PP2"])
def test_other_readers(layout: str, own: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The rank that writes the journal may be one that reads no data."""
    corpora, blend = own
    flags = {
        "TP2": "--tensor-model-parallel-size 2 --make-vocab-size-divisible-by 75",
        "PP2": "--pipeline-model-parallel-size 2",
    }
    if layout == "one prefix":
        blend = ["--split", "80,10,10", "--data-path", str(corpora / "finance")]
    words = shlex.split(flags.get(layout, ""))
    start(tmp_path, blend, None, *words, iterations=3, nproc=1 + (layout in flags))
    if layout == "PP2":  # the first and the last stage read the same
        for file in tmp_path.glob("rows1.jsonl"):
            file.unlink()
    check(tmp_path, 3, blended=layout != "one prefix")


def test_growing_batches(own: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Logged once: the batches between are those of the host's own calculator."""
    from megatron.core import __version__ as version

    _, blend = own
    words = ramped([SCRIPTS / "stream_gpt.py", *MODEL, *blend], Version(version))
    words += ["--log-interval", "3", "--channel-loss", "--domain-log-dir", tmp_path]
    code, output = launch(1, *words, env={"RECORD_DIR": str(tmp_path)})
    assert code == 0, output[-4000:]
    trace = check(tmp_path, 5)
    sizes = [len(list(trace.iterations(number, number + 1))) for number in range(1, 6)]
    assert sizes == [4, 4, 8, 8, 8]
    with pytest.raises(ConfigError, match="beyond the run: it ends with iteration 5"):
        list(trace.iterations(6, 7))
