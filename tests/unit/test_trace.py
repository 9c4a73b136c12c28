"""``domain-pretrain trace``: its parts, and what it answers to wrong questions."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.traces import BATCH, SEQUENCE, line_of, note, write_documents, write_metrics

from domain_pretrain.commands.main import main
from domain_pretrain.data.mix.locate import Locator
from domain_pretrain.data.mix.permutation import permuted, restored
from domain_pretrain.data.mix.plan import Plan, Stage
from domain_pretrain.data.trace.timeline import Mark, Step, Stretch, stretches
from domain_pretrain.data.trace.windows import Windows
from domain_pretrain.errors import ConfigError, UnsupportedError
from domain_pretrain.hosts.reads import Reads
from domain_pretrain.records.journal import JOURNAL_FILE, Start
from domain_pretrain.records.reader import METRICS_FILE


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 1000])
def test_a_permutation_is_undone(size: int) -> None:
    for key in ((0, 1), (1234, 7)):
        there = [permuted(index, size, *key) for index in range(size)]
        assert sorted(there) == list(range(size))
        assert [restored(index, size, *key) for index in there] == list(range(size))


PLANS = {
    "one blend": Plan(("a", "b", "c"), (Stage(None, (5.0, 0.0, 1.0)),), 70, ((3, 8), (20, 21))),
    "by size": Plan(("a", "b", "c"), (Stage(None, None),), 40),
    "one prefix": Plan(("a", "b", "c"), (Stage(None, (0.0, 1.0, 0.0)),), 20, ((0, 4),)),
    "stages": Plan(
        ("a", "b", "c"),
        (
            Stage(20, (1.0, 2.0, 0.0)),
            Stage(5000, (0.0, 1.0, 3.0), "linear"),
            Stage(None, (1.0, 0.0, 5.0)),
        ),
        9000,
        ((15, 30), (4090, 4100), (8000, 9500)),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_place_is_found_again(name: str) -> None:
    """What ``locate`` says of every sample, backwards."""
    plan = PLANS[name]
    locator = Locator(plan, [7, 11, 400], 5)
    expected: dict[tuple[int, int], list[int]] = {}
    for consumed in range(plan.samples):
        place = locator.locate(consumed)
        position = plan.position(consumed)
        assert plan.consumed(position) == consumed
        expected.setdefault((place.prefix, place.window), []).append(position)
    for prefix, length in enumerate(locator.lengths):
        for window in range(length):
            found = list(locator.positions(prefix, window))
            assert found == expected.get((prefix, window), [])


def test_a_cut_position_counts_what_is_before_it() -> None:
    plan = PLANS["one blend"]
    assert [plan.consumed(position) for position in (0, 3, 5, 8, 9, 21)] == [0, 3, 3, 3, 4, 15]


def windows_of(lengths: list[int], documents: list[int], size: int, extra: int = 1) -> Windows:
    """As the host cuts them: a window begins where the one before it ends, without its label."""
    row = [(place, token) for place, one in enumerate(documents) for token in range(lengths[one])]
    count = (len(row) - extra) // size
    cuts = np.array([row[number * size] for number in range(count)] + [row[count * size]])
    shuffle = np.random.default_rng(0).permutation(count)
    return Windows(np.array(documents), cuts, shuffle, np.array(lengths), extra)


@pytest.mark.parametrize(
    "lengths", [[4, 1, 9, 30, 2], [8, 8, 8], [100], [1, 1, 1, 1, 1, 1, 1, 1, 20, 1, 1]]
)
def test_the_documents_of_a_window(lengths: list[int]) -> None:
    """Token by token, in two epochs; and the windows of a document."""
    documents = [*range(len(lengths)), *reversed(range(len(lengths)))]
    windows = windows_of(lengths, documents, 8)
    row = [(one, token) for one in documents for token in range(lengths[one])]
    holding: dict[int, list[int]] = {}
    for number, window in enumerate(windows.shuffle):
        spans = windows.spans(number)
        tokens = [(s.index, s.first + i) for s in spans for i in range(s.tokens)]
        assert tokens == row[window * 8 : window * 8 + 9]
        for index in {span.index for span in spans}:
            holding.setdefault(index, []).append(number)
    assert {one: windows.holding([one]) for one in holding} == holding
    assert windows.holding([len(lengths)]) == []


def test_a_document_without_tokens_is_in_no_window() -> None:
    windows = windows_of([4, 0, 30], [0, 1, 2], 8)
    assert 1 not in {span.index for number in range(4) for span in windows.spans(number)}
    assert windows.holding([1]) == []


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("lengths", [[4, 1, 9, 0, 30, 2], [8, 8, 8, 8, 9], [1] * 41, [100]])
def test_what_is_covered(lengths: list[int], extra: int) -> None:
    """Token by token, whatever windows were read."""
    windows = windows_of(lengths, list(range(len(lengths))), 8, extra)
    assert windows.size == 8
    count, random = len(windows.shuffle), np.random.default_rng(1)
    for times in (np.zeros(count), np.ones(count), *random.integers(0, 3, (20, count))):
        read = set()
        for number in np.flatnonzero(times):
            read |= {
                (span.index, token)
                for span in windows.spans(number)
                for token in range(span.first, span.first + span.tokens)
            }
        expected = [sum(index == one for index, _ in read) for one in range(len(lengths))]
        assert windows.covered(times).tolist() == expected


def start_at(iteration: int, consumed: int, samples: Any = 1000) -> Start:
    return Start(iteration=iteration, consumed_samples=consumed, order={"samples": samples})


def parts(starts: list[Start], logged: list[Mark], size: int = 4) -> list[Stretch]:
    return stretches(starts, logged, lambda start: lambda consumed: size)


def test_the_steps_of_a_run() -> None:
    (stretch,) = parts([start_at(0, 0, 22)], [])
    steps = list(stretch.steps())
    assert steps == [Step(number + 1, 4 * number, 4) for number in range(5)], "whole ones only"
    assert list(stretch.steps(iteration=4)) == steps[3:]
    assert list(stretch.steps(consumed=11)) == steps[2:]
    assert list(stretch.steps(consumed=12)) == steps[3:]
    assert stretch.end == Mark(5, 20)


def test_an_iteration_is_of_the_start_that_trained_it_last() -> None:
    starts = [start_at(0, 0), start_at(3, 12), start_at(5, 20, 40)]
    marks = [Mark(number, 4 * number) for number in range(1, 8)]
    found = parts(starts, marks)
    own = [[step.iteration for step in stretch.steps()] for stretch in found]
    assert own == [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10]]
    assert [stretch.end for stretch in found] == [Mark(3, 12), Mark(5, 20), Mark(10, 40)]


def test_what_was_logged_is_a_check() -> None:
    (stretch,) = parts([start_at(0, 0)], [Mark(2, 8), Mark(4, 17)])
    with pytest.raises(ConfigError, match="after iteration 4 the metrics file counts 17 samples"):
        list(stretch.steps(iteration=3))


def test_a_run_of_no_known_length() -> None:
    with pytest.raises(ConfigError, match="--train-samples"):
        parts([start_at(4, 16, None)], [])


# The command, on data that Megatron builds, without a training.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 12 iterations, of which 5 are done: web and maths, by Megatron's own blend."""
    pytest.importorskip("megatron.core")
    for name in ("web", "maths"):
        text = [f"{name} {number} says {'much ' * (number % 7)}".encode() for number in range(20)]
        write_documents(tmp_path / name, [[*line, 256] for line in text])
    folder = tmp_path / "run"
    folder.mkdir()
    begin(folder)
    write_metrics(folder, ["web", "sums"], 5)
    return folder


def begin(folder: Path, iteration: int = 0, **how: Any) -> None:
    domains = {str(folder.parent / "web"): "web", str(folder.parent / "maths"): "sums"}
    note(folder, domains, 12, iteration, cache=str(folder.parent / "cache"), **how)


@pytest.fixture
def ask(run: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Exit code, output and errors of the command."""

    def asked(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["trace", str(run), *words])
        return code, *capsys.readouterr()

    return asked


def test_one_object_per_sample(ask: Any) -> None:
    code, out, err = ask("--iteration", "9", "--json")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["sample"] for row in rows] == [32, 33, 34, 35]
    for row in rows:
        assert list(row) == ["iteration", "sample", "domain", "prefix", "documents"]
        assert row["domain"] == {"web": "web", "maths": "sums"}[Path(row["prefix"]).name]
        assert sum(span["tokens"] for span in row["documents"]) == 17
        assert all(
            list(span) == ["index", "first", "tokens", "content"] for span in row["documents"]
        )


def test_the_text_is_the_documents(ask: Any, run: Path) -> None:
    """Whole documents: their texts are those of the corpus."""
    _, out, _ = ask("--iteration", "1:13", "--json", "--text", "1000", "--tokenizer", "bytes")
    whole = 0
    for line in out.splitlines():
        row = json.loads(line)
        name = Path(row["prefix"]).name
        text = "".join(
            f"{name} {span['index']} says {'much ' * (span['index'] % 7)}\n"[
                span["first"] : span["first"] + span["tokens"]
            ]
            for span in row["documents"]
        )
        assert row["text"] == text.replace("\n", "")
        whole += len(row["documents"]) > 1
    assert whole > 5


def test_the_table(ask: Any) -> None:
    code, out, _ = ask("--iteration", "1", "--text", "5", "--tokenizer", "bytes")
    assert code == 0
    assert "documents: number[tokens]" in out
    assert "…" in out
    assert "prefixes in" in out


def test_a_document_is_where_the_iterations_say(ask: Any, run: Path) -> None:
    _, out, _ = ask("--iteration", "1:13", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    prefix = str(run.parent / "web")
    for document in (0, 5, 17):
        expected = [
            row
            for row in rows
            if row["prefix"] == prefix and document in [one["index"] for one in row["documents"]]
        ]
        _, out, _ = ask("--document", str(document), "--prefix", prefix, "--json")
        assert [json.loads(line) for line in out.splitlines()] == expected


@pytest.mark.parametrize("after", [None, 2, 9])
def test_what_has_been_read(after: int | None, ask: Any, run: Path) -> None:
    """As the samples of the iterations say; begun anew in between."""
    begin(run, 3)
    last = after or 5
    _, out, _ = ask("--iteration", f"1:{last + 1}", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    code, out, err = ask("--consumed", *([str(after)] if after else []), "--json")
    assert (code, err) == (0, "")
    found = {one["domain"]: one for one in map(json.loads, out.splitlines())}
    assert found.keys() == {"web", "sums"}
    for domain, one in found.items():
        own = [row for row in rows if row["domain"] == domain]
        assert (one["iteration"], one["samples"]) == (last, len(own))
        lengths = np.fromfile(f"{one['prefix']}.idx", "<i4", 18, offset=34)  # of 20, by --split
        assert one["epochs"] == pytest.approx(len(own) * SEQUENCE / lengths.sum())
        read = {
            (span["index"], span["first"] + token)
            for row in own
            for span in row["documents"]
            for token in range(span["tokens"])
        }
        tokens = Counter(index for index, _ in read)
        assert one["documents"] == {
            "whole": sum(tokens[number] == length for number, length in enumerate(lengths)),
            "part": sum(0 < tokens[number] < length for number, length in enumerate(lengths)),
            "never": 18 - len(tokens),
        }


def test_what_has_been_read_as_a_table(ask: Any) -> None:
    code, out, _ = ask("--consumed", "--domain", "sums")
    assert code == 0
    assert "read after iteration 5" in out
    assert "sums" in out and "web" not in out


def test_what_has_been_read_of_what_is_below_a_name(ask: Any, run: Path) -> None:
    (run / JOURNAL_FILE).unlink()
    web, maths = str(run.parent / "web"), str(run.parent / "maths")
    domains = {web: "text/web", maths: "sums"}
    np.save(f"{maths}.channels.npy", np.zeros(20, np.int16))
    Path(f"{maths}.manifest.json").write_text('{"channels": [{"name": "short"}]}', "utf-8")
    note(run, domains, 12, 0, cache=str(run.parent / "cache"), channels={maths: ["sums/short"]})
    code, out, _ = ask("--consumed", "--domain", "text", "--json")
    assert (code, [json.loads(line)["domain"] for line in out.splitlines()]) == (0, ["text/web"])
    code, _, err = ask("--consumed", "--domain", "sums/short")
    assert (code, err) == (
        1,
        "domain-pretrain trace: no prefix that has been read is sums/short's alone\n",
    )


def test_nothing_has_been_read(ask: Any, run: Path) -> None:
    assert ask("--consumed", "0") == (1, "", "domain-pretrain trace: nothing has been read\n")
    write_metrics(run, ["web", "sums"], 0)
    assert ask("--consumed")[0] == 1
    (run / JOURNAL_FILE).unlink()
    begin(run, 4)
    code, _, err = ask("--consumed")
    assert code == 2
    assert "the journal begins after iteration 4" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--consumed 13", "iteration 13 is beyond the run: it ends with iteration 12, after 48"),
        ("--consumed -1", "--consumed -1: give an iteration"),
        ("--consumed --text", "has no --text"),
        ("--consumed --worst odd", "has no --text and no --worst"),
        ("--iteration 13", "iteration 13 is beyond the run: it ends with iteration 12, after 48"),
        ("--iteration 0", "they count from 1"),
        ("--iteration 5:5", "the second number is not read any more"),
        ("--samples 48", "it ends at position 48 of the stream"),
        ("--iteration 1 --domain sum", "no domain of the training data; did you mean 'sums'?"),
        ("--document 3", "go together"),
        ("--document 18 --prefix RUN/../web", "not for training: --split gives that documents 0"),
        ("--document 20 --prefix RUN/../web", "has documents 0 to 19"),
        ("--document 2 --prefix RUN/../wib", "did you mean"),
        ("--iteration 1 --text", "give --tokenizer"),
        ("--iteration 1 --text 0", "at least 1 character"),
        ("--iteration 1 --text --tokenizer gone", "'gone'"),
    ],
)
def test_what_cannot_be_answered(words: str, said: str, ask: Any, run: Path) -> None:
    prefix = os.path.abspath(run)
    code, out, err = ask(*words.replace("RUN", prefix).split())
    assert code == 2
    assert said in err
    assert not out


def test_a_range_that_ends_beyond_the_run(ask: Any) -> None:
    code, out, err = ask("--iteration", "12:20", "--json")
    assert (code, len(out.splitlines())) == (0, BATCH)
    assert "the iterations from 13 on are beyond the run" in err


def test_a_journal_that_begins_later(ask: Any, run: Path) -> None:
    """The run logged elsewhere before."""
    (run / JOURNAL_FILE).unlink()
    begin(run, 4)
    assert "iteration 4 is not in the journal, whose first start is" in ask("--iteration", "4")[2]
    assert "the journal begins at position 16" in ask("--samples", "0:16")[2]
    assert ask("--samples", "15:17", "--json")[1].count("\n") == 1
    assert ask("--iteration", "5", "--json")[1].count("\n") == BATCH


def test_no_sample_of_a_domain(ask: Any) -> None:
    found = [ask("--iteration", str(number), "--domain", "sums") for number in range(1, 13)]
    assert {code for code, _, _ in found} <= {0, 1}
    code, out, err = ask("--samples", "0", "--domain", "sums")
    if code:
        assert (code, out) == (1, "")
        assert "none of the samples is of sums" in err


def test_domains_within_a_file(ask: Any, run: Path) -> None:
    """A sample is of the channels whose documents it holds, and of all that they are part of."""
    web = str(run.parent / "web")
    numbers = np.arange(20, dtype=np.int16) // 7
    names = ["news/daily", "chats", "news/weekly"]
    np.save(f"{web}.channels.npy", numbers)
    manifest = {"channels": [{"name": name} for name in names]}
    Path(f"{web}.manifest.json").write_text(json.dumps(manifest), "utf-8")
    (run / JOURNAL_FILE).unlink()
    begin(run, channels={web: [f"web/{name}" for name in names]})

    def asked(*words: str) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for line in ask("--iteration", "1:13", "--json", *words)[1].splitlines()
        ]

    whole = asked()
    asked_for = ("web", "web/news", "web/chats", "web/news/daily", "sums")
    own: dict[str, list[Any]] = {name: [] for name in asked_for}
    mixed = 0
    for row in whole:
        found = {"sums"}
        if row["prefix"] == web:
            leaves = {f"web/{names[numbers[one['index']]]}" for one in row["documents"]}
            assert [one["domain"] for one in row["documents"]] == [
                f"web/{names[numbers[one['index']]]}" for one in row["documents"]
            ]
            found = {"web", *leaves, *(leaf.rpartition("/")[0] for leaf in leaves)}
            mixed += len(leaves) > 1
        else:
            assert all("domain" not in one for one in row["documents"])
        for name in own.keys() & found:
            own[name].append(row)
    assert mixed, "a sample of several"
    for name, rows in own.items():
        assert rows
        assert asked("--domain", name) == rows
    _, out, _ = ask("--iteration", "1:13")
    assert "web/chats, web/news" in out or "web/news/daily, web/chats" in out
    assert "did you mean 'web/chats'" in ask("--iteration", "1", "--domain", "web/chat")[2]
    manifest["channels"][1]["name"] = "talks"
    Path(f"{web}.manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert "has other channels than the run read" in ask("--iteration", "1")[2]


def test_missing_files(ask: Any, run: Path) -> None:
    (run.parent / "web.bin").rename(run.parent / "moved.bin")
    code, _, err = ask("--iteration", "1")
    assert code == 2
    assert "web.bin' does not exist" in err
    (run / JOURNAL_FILE).unlink()
    assert "domain_journal.jsonl: No such file" in ask("--iteration", "1")[2]
    (run / METRICS_FILE).unlink()
    assert "no domain_metrics.jsonl in" in ask("--iteration", "1")[2]


def test_changed_data(ask: Any, run: Path) -> None:
    os.utime(run.parent / "web.bin", (1, 1))
    code, out, err = ask("--iteration", "1", "--json")
    assert code == 0
    assert len(out.splitlines()) == BATCH
    assert "web' was written again since the run began" in err
    write_documents(run.parent / "web", [[1] * 40] * 20)
    code, _, err = ask("--iteration", "1")
    assert code == 2
    assert "web' has changed since the run read it: " in err
    assert "→ 800 tokens in 20 → 20 documents; put the old files back" in err


def test_a_torn_line(ask: Any, run: Path) -> None:
    """A last line is torn by a kill; others by a crash of the machine, and are told of."""
    path = run / METRICS_FILE
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"iteration": 6, "cons', encoding="utf-8")
    assert ask("--iteration", "6", "--json")[0::2] == (0, "")
    lines = whole.splitlines()
    lines[2] = lines[2][:30]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    code, _, err = ask("--iteration", "6", "--json")
    assert code == 0
    assert "1 of 6 lines left out" in err


def test_another_runs_lines(ask: Any, run: Path) -> None:
    with (run / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line_of(6, "web"), "consumed_samples": 30}) + "\n")
    code, _, err = ask("--iteration", "6")
    assert code == 2
    assert "after iteration 6 the metrics file counts 30 samples" in err


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"settings": {"--dataloader-type": "cyclic"}}, "--dataloader-type cyclic"),
        ({"phases": True}, "--phase-transition-iterations"),
        ({"data": None}, "does not build its data with Megatron's"),
        ({"data": {"kind": "SFTDataset", "sizes": [], "config": {}, "tokenizer": {}}}, "SFTData"),
        ({"batch": {"global_batch_size": "x"}}, "reads.batch.global_batch_size: "),
    ],
)
def test_what_is_not_traced(how: Any, said: str, ask: Any, run: Path) -> None:
    """From where it holds on; what came before is."""
    begin(run, 4, **how)
    assert ask("--iteration", "4", "--json")[0] == 0
    code, out, err = ask("--iteration", "5", "--json")
    assert code == 2
    assert "the journal's start at iteration 4" in err
    assert said in err
    assert not out


def test_a_start_of_an_older_version(ask: Any, run: Path) -> None:
    path = run / JOURNAL_FILE
    line = json.loads(path.read_text(encoding="utf-8"))
    del line["reads"]
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert "lacks `reads`" in ask("--iteration", "1")[2]
    begin(run, 4)
    assert ask("--iteration", "5")[0] == 0
    assert "lacks `reads`" in ask("--iteration", "4")[2]
    assert "lacks `reads`" in ask("--document", "1", "--prefix", str(run.parent / "web"))[2]


def test_the_cache_may_be_elsewhere(ask: Any, run: Path) -> None:
    """Where the index files are gone, they are made again: the same."""
    first = ask("--iteration", "1:13", "--json")[1]
    assert list((run.parent / "cache").iterdir())
    other = run.parent / "other"
    again = ask("--iteration", "1:13", "--json", "--data-cache-path", str(other))[1]
    assert again == first
    assert list(other.iterdir())


@pytest.mark.parametrize("words", ["", "--iteration x", "--iteration 1 --samples 2"])
def test_wrong_words(words: str, ask: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        ask(*words.split())
    assert stopped.value.code == 2


# The worst documents.


@pytest.fixture
def odd_run(tmp_path: Path) -> Path:
    """Ten tokens in the text; document 5 has others, 7 has one alone, and 11 is document 10."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 10, 40).tolist() for _ in range(60)]
    texts[5] = list(range(200, 240))
    texts[7] = [3] * 40
    texts[11] = texts[10]
    prefix, folder = tmp_path / "texts", tmp_path / "log"
    folder.mkdir()
    write_documents(prefix, texts)
    note(folder, {str(prefix): "text"}, 30, cache=str(tmp_path / "cache"))
    write_metrics(folder, ["text"], 30)
    return folder


@pytest.mark.parametrize(("order", "expected"), [("odd", 5), ("monotonous", 7), ("copied", 10)])
def test_the_worst_document_comes_first(
    order: str, expected: int, odd_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        str(odd_run),
        "--iteration",
        "1:31",
        "--worst",
        order,
        "--text",
        "--tokenizer",
        "bytes",
    ]
    assert main(["trace", *words, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 5
    assert len({one["document"] for one in found}) == 5
    first = found[0]
    if order == "copied":
        assert {one["document"] for one in found[:2]} == {10, 11}
        assert first["copies"] == found[1]["copies"] == 2 > found[2]["copies"]
    else:
        assert first["document"] == expected
        assert first["copies"] == 1
    assert first["domain"] == "text"
    assert first["text"]
    assert main(["trace", *words]) == 0
    table = capsys.readouterr().out
    assert f" {first['document']}[{first['first']}:" in table
    assert "surprise" in table


def test_documents_without_a_tokenizer_have_no_text(
    odd_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trace", str(odd_run), "--iteration", "1:31", "--text", "--json"]
    assert main([*words, "--worst", "odd"]) == 0
    out, err = capsys.readouterr()
    first = json.loads(out.splitlines()[0])
    assert first["document"] == 5
    assert "text" not in first
    assert "the tokenizer of" in err
    assert main(words) == 2


# --- batches that grow ----------------------------------------------------------------------------


def batch_at(core_version: str = "0.19.2", **given: Any) -> Any:
    """Of a run with these flags."""
    batch = {"global_batch_size": 8, "micro_batch_size": 1, "data_parallel_size": 2, **given}
    told = {"core_version": core_version, "folder": "", "prefixes": [], "domains": []}
    data = {"kind": "GPTDataset", "sizes": [], "config": {}, "tokenizer": {}}
    more = {"written": [], "phases": False, "batch": batch, "plan": None, "data": data}
    start = Start(iteration=0, consumed_samples=0, order={}, reads={**told, **more})
    return Reads.of(start).batch_at()


def test_growing_batches_are_those_of_the_hosts_calculator() -> None:
    """Of two starts by turns, though a process has one calculator."""
    host = pytest.importorskip("megatron.core.num_microbatches_calculator")
    if (
        "step_batch_size_schedule"
        not in signature(host.init_num_microbatches_calculator).parameters
    ):
        with pytest.raises(UnsupportedError, match="know yet: trace it with the run's own"):
            batch_at(step_batch_size_schedule="0:4 320:8", seq_length=16)(0)
        return
    schedules = ["0:4 320:8 640:16", "0:2 64:6 6400:8"]
    both = [batch_at(step_batch_size_schedule=one, seq_length=16) for one in schedules]
    found = [[one(consumed) for one in both] for consumed in range(0, 600, 2)]
    for schedule, own in zip(schedules, zip(*found, strict=True), strict=True):
        host.unset_num_microbatches_calculator()
        host.init_num_microbatches_calculator(
            rank=1,
            global_batch_size=8,
            micro_batch_size=1,
            data_parallel_size=2,
            step_batch_size_schedule=schedule,
            seq_length=16,
        )
        expected = []
        for consumed in range(0, 600, 2):
            host.update_num_microbatches(consumed, consistency_check=True)
            expected.append(2 * host.get_num_microbatches())
        assert list(own) == expected
        assert len(set(expected)) == 3
    host.unset_num_microbatches_calculator()


def test_a_ramp_by_the_megatron_that_has_it() -> None:
    """Megatron takes the flag from 0.18 on, and does not heed it: nor does the trace."""
    host = pytest.importorskip("megatron.core.num_microbatches_calculator")
    ramp = {"rampup_batch_size": ["4", "4", "16"]}  # as a start tells it
    assert [batch_at("0.18.0", **ramp)(consumed) for consumed in (0, 100)] == [8, 8]
    if hasattr(host, "RampupBatchsizeNumMicroBatchesCalculator"):
        assert [batch_at("0.16.1", **ramp)(n) for n in (0, 12, 16, 20)] == [4, 4, 8, 8]
    else:
        with pytest.raises(
            UnsupportedError, match=r"under megatron-core 0\.16\.1, which that inst"
        ):
            batch_at("0.16.1", **ramp)(0)
