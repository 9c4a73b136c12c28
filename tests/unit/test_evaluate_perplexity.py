"""Perplexity and bits per byte: rolling windows, held-out texts, their number and their errors."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.bpe import write_bpe
from support.pages import blocks
from support.pages import text as text_of
from support.prepared import TEXTS, json_lines, write

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate import LogitsModel, Row, Score, run_probes
from domain_pretrain.evaluate.perplexity import PerplexityOptions, perplexity
from domain_pretrain.evaluate.rows import ROWS
from domain_pretrain.evaluate.texts import read_texts
from domain_pretrain.evaluate.windows import rolling_windows

END = 0


def bytes_model(logits: Any, context: int = 64) -> LogitsModel:
    return LogitsModel(
        logits,
        lambda text: list(text.encode()),
        lambda ids: bytes(ids).decode("utf-8", "replace"),
        context=context,
        end=END,
    )


def uniform(ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1, ids.shape[1], 256, dtype=torch.float64)


TABLE = torch.randn(256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def looking_back(ids: torch.Tensor) -> torch.Tensor:
    """Logits that depend on every token before; float64."""
    return TABLE[ids].cumsum(1)


def measured(model: LogitsModel, places: Any, **options: Any) -> dict[str, Score]:
    """The scores of one domain, by their names."""
    texts = {"a": places if isinstance(places, list) else str(places)}
    scores = run_probes({"perplexity": {"texts": texts, **options}}, model)
    return {score.name: score for score in scores}


# --- windows -------------------------------------------------------------------------------------

LENGTHS = st.integers(0, 60)
SHAPES = st.integers(1, 20).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w)))


@given(LENGTHS, SHAPES)
def test_each_token_is_asked_about_once_with_the_context_promised(
    length: int, shape: tuple[int, int]
) -> None:
    window, stride = shape
    text = list(range(1, length + 1))
    asked = []
    for row in rolling_windows(text, END, window=window, stride=stride):
        assert 1 <= row.first < len(row.tokens) <= window + 1
        for at in range(row.first, len(row.tokens)):
            token = row.tokens[at]
            asked.append(token)
            # Tokens count from 1, so a token is also how many, with END, stand before it.
            assert min(token, window - stride + 1) <= at <= window
            assert list(row.tokens[:at]) == [END, *text][token - at : token]
    assert asked == text


@given(LENGTHS, SHAPES)
def test_windows_are_those_of_lm_eval(length: int, shape: tuple[int, int]) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    window, stride = shape
    text = list(range(1, length + 1))
    theirs = utils.get_rolling_token_windows(
        token_list=text, prefix_token=END, max_seq_len=window, context_len=window - stride + 1
    )
    rows = [Row([*context, asked[-1]], len(context) + 1 - len(asked)) for context, asked in theirs]
    assert list(rolling_windows(text, END, window=window, stride=stride)) == rows


@given(LENGTHS, SHAPES, st.integers(0, 19))
def test_no_token_sees_less_in_a_longer_window_of_the_same_stride(
    length: int, shape: tuple[int, int], more: int
) -> None:
    window, stride = shape

    def seen(window: int) -> list[int]:
        rows = rolling_windows(list(range(length)), END, window=window, stride=stride)
        return [at for row in rows for at in range(row.first, len(row.tokens))]

    assert all(a <= b for a, b in zip(seen(window), seen(window + more), strict=True))


def test_a_window_has_a_stride_that_leaves_nothing_out() -> None:
    with pytest.raises(ValueError, match="a stride of 5 in windows of 4"):
        list(rolling_windows([1, 2], END, window=4, stride=5))


# --- the numbers ---------------------------------------------------------------------------------


def test_a_uniform_model_of_bytes_has_eight_bits_per_byte(tmp_path: Path) -> None:
    """Of any text, in any window: also where a character is several bytes."""
    source = write(tmp_path / "a.jsonl", json_lines([*TEXTS, "国家统计局公布的数据" * 30]))
    for window in (1, 7, 64):
        found = measured(bytes_model(uniform), source, window=window)
        assert found["bits_per_byte"].mean == pytest.approx(8, rel=1e-12)
        assert found["bits_per_byte"].error == pytest.approx(0, abs=1e-12)
        assert math.exp(found["loss"].mean) == pytest.approx(256, rel=1e-12)
        assert found["loss"].count == sum(len(text.encode()) for text in TEXTS) + 900
        assert not any(score.higher_is_better for score in found.values())


def test_bits_are_of_the_texts_bytes_whatever_the_tokenizer_keeps(tmp_path: Path) -> None:
    """Three tokens of four letters each, an unknown one for each character of other scripts."""

    def encode(text: str) -> list[int]:
        return [min(ord(text[at]), 255) for at in range(0, len(text), 4)]

    model = LogitsModel(uniform, encode, lambda ids: "", context=64, end=END)
    found = measured(model, write(tmp_path / "a.txt", "abcdefgh你好"))
    assert (found["loss"].count, found["bits_per_byte"].count) == (3, 8 + 6)
    assert found["bits_per_byte"].sum == pytest.approx(3 * 8, rel=1e-12)


def test_windows_as_long_as_the_text_agree(tmp_path: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    source = write(tmp_path / "a.txt", text)
    model = bytes_model(looking_back)
    whole = measured(model, source)["loss"]
    (expected,) = model.log_likelihoods([Row([END, *text.encode()])])
    assert whole.sum == pytest.approx(-expected, rel=1e-12)
    for window, stride in ((len(text), 1), (len(text), len(text)), (len(text) + 1, 20), (64, 64)):
        found = measured(model, source, window=window, stride=stride)["loss"]
        assert found.mean == pytest.approx(whole.mean, rel=1e-12)
    shorter = measured(model, source, window=len(text) - 1)["loss"]
    assert shorter.mean != pytest.approx(whole.mean, rel=1e-6)


def test_the_default_is_the_models_context_in_steps_of_half_of_it(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "the quick brown fox jumps over the lazy dog")
    model = bytes_model(looking_back, context=12)
    means = [
        measured(model, source, **options)["loss"].mean
        for options in ({}, {"window": 12, "stride": 6}, {"stride": 12}, {"window": 6})
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-12)
    assert len({round(mean, 6) for mean in means}) == 3


def hard_tokens(needs: Sequence[int], window: int, stride: int) -> int:
    """The loss of a model that context helps: a token is a nat, until it sees as many as it needs.

    Whatever else more context never hurts is a sum of such.
    """
    rows = rolling_windows(range(len(needs)), END, window=window, stride=stride)
    seen = [at for row in rows for at in range(row.first, len(row.tokens))]
    return sum(at < need for at, need in zip(seen, needs, strict=True))


@given(
    st.lists(st.integers(1, 70), max_size=140),
    st.sampled_from([(64, 32, 16, 8, 4, 2, 1), (60, 30, 15, 7, 3, 1)]),
)
def test_shorter_windows_are_never_lower_for_whom_context_helps(
    needs: list[int], windows: Sequence[int]
) -> None:
    """With the default stride, windows of half the length or less; with one stride, any."""
    halved = [hard_tokens(needs, window, (window + 1) // 2) for window in windows]
    same = [hard_tokens(needs, window, 5) for window in (64, 47, 23, 22, 9, 6, 5)]
    for found in (halved, same):
        assert all(a <= b for a, b in itertools.pairwise(found))


def test_a_longer_window_may_begin_at_a_worse_place() -> None:
    """So that the page promises no more than what is tested above."""
    needs = [1, 1, 1, 1, 2, 1, 1, 1]  # the 2 begins a window of 4, and is second in one of 3
    assert (hard_tokens(needs, 4, 4), hard_tokens(needs, 3, 3)) == (1, 0)
    assert (hard_tokens([64] * 70, 64, 64), hard_tokens([64] * 70, 32, 32)) == (68, 70)


def test_the_error_is_what_the_mean_spreads_by_over_drawn_documents(tmp_path: Path) -> None:
    """Against the bootstrap: documents drawn with replacement, their ratio each time."""
    draw = np.random.default_rng(3)
    texts = ["".join(draw.choice(list("abcdefgh"), draw.integers(5, 90))) for _ in range(150)]
    source = write(tmp_path / "a.jsonl", json_lines(texts))
    for score in measured(bytes_model(looking_back), source).values():
        sums = np.array([part.sum for part in score.parts])
        counts = np.array([part.count for part in score.parts])
        rows = draw.integers(0, len(sums), (4000, len(sums)))
        spread = float(np.std(sums[rows].sum(1) / counts[rows].sum(1)))
        # 4000 draws know it to about 1 %, and the linear form is off by about 1/150.
        assert score.error == pytest.approx(spread, rel=0.1)


def test_the_model_is_asked_about_many_rows_at_once_but_not_all(tmp_path: Path) -> None:
    class Counting(LogitsModel):
        calls: list[int]

        def log_likelihoods(self, rows: Sequence[Row]) -> list[float]:
            self.calls.append(len(rows))
            return [-float(len(row.tokens) - row.first) for row in rows]

    model = Counting(uniform, lambda text: list(text.encode()), lambda ids: "", context=8, end=END)
    model.calls = []
    texts = {
        name: str(write(tmp_path / f"{name}.jsonl", json_lines([name * size] * 20)))
        for name, size in (("a", 10), ("b", 400))
    }
    scores = run_probes({"perplexity": {"texts": texts, "stride": 4}}, model)
    rows = 20 * (2 + 99)
    assert model.calls == [ROWS, rows - ROWS]
    assert [(score.domain, score.name, score.sum, score.count) for score in scores[::2]] == [
        ("a", "loss", 200.0, 200),
        ("b", "loss", 8000.0, 8000),
    ]


# --- which texts ---------------------------------------------------------------------------------


def test_files_are_read_as_prepare_reads_them(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = json_lines(TEXTS)
    table = pyarrow.table({"text": TEXTS})
    parquet.write_table(table, tmp_path / "a.parquet")
    compressed = pyarrow.compress(lines.encode(), "zstd", asbytes=True)
    for name, content in (
        ("a.jsonl", lines),
        ("a.jsonl.gz", lines),
        ("a.jsonl.zst", compressed),
        ("a.json", json.dumps([*TEXTS, ""])),  # all in one line
        ("b.jsonl", lines.replace("\n", "\n\n", 1)),  # an empty line is a line
    ):
        write(tmp_path / name, content)
        found = read_texts([str(tmp_path / name)], 9)
        assert [text.content for text in found] == TEXTS
        numbers = (1, 3, 4, 5) if name == "b.jsonl" else (1, 2, 3, 4)
        assert [text.name for text in found] == [f"{tmp_path / name}:{n}" for n in numbers]
        assert [text.size for text in found] == [len(text.encode()) for text in TEXTS]
    rows = read_texts([str(tmp_path / "a.parquet")], 9)
    assert [text.content for text in rows] == TEXTS
    write(tmp_path / "c.txt", "\n".join(TEXTS))
    assert [t.content for t in read_texts([str(tmp_path / "c.txt")], 9)] == ["\n".join(TEXTS)]
    nested = write(tmp_path / "n.jsonl", json.dumps({"data": {"body": "x"}}))
    assert [text.content for text in read_texts([str(nested)], 9, "data.body")] == ["x"]
    pattern = str(tmp_path / "[ab].jsonl*")
    assert len({text.name for text in read_texts([pattern], 99)}) == 16


def test_a_fixed_number_of_documents_whatever_is_around_them(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(1000)]
    one = str(write(tmp_path / "one.jsonl", json_lines(texts)))
    two = str(write(tmp_path / "two.jsonl", json_lines(["another"] * 50)))
    chosen = [text.name for text in read_texts([one], 100)]
    numbers = [int(name.rpartition(":")[2]) for name in chosen]
    assert len(set(numbers)) == 100 and numbers == sorted(numbers)
    # From everywhere: of 100 random places, so many in each quarter.
    assert all(10 <= count <= 40 for count in np.histogram(numbers, 4, (1, 1001))[0])

    # Fewer are some of them, and texts behind them push out only a few.
    assert set(text.name for text in read_texts([one], 30)) < set(chosen)
    both = [text.name for text in read_texts([one, two], 100)]
    assert 80 <= len(set(both) & set(chosen)) < 100
    assert {name for name in both if name.startswith(one)} < set(chosen)

    # Other domains, in another order, and another model.
    def names(model: LogitsModel, texts: dict[str, str]) -> list[str]:
        scores = run_probes({"perplexity": {"texts": texts, "documents": 100}}, model)
        (score,) = (s for s in scores if (s.domain, s.name) == ("a", "loss"))
        return [part.name for part in score.parts]

    assert names(bytes_model(uniform), {"a": one, "b": two}) == chosen
    assert names(bytes_model(looking_back, context=9), {"c": two, "b": two, "a": one}) == chosen


def test_texts_are_read_once(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", json_lines(TEXTS))
    options = PerplexityOptions.model_validate({"texts": {"a": [str(source)]}})
    options.check()
    source.unlink()
    model = bytes_model(looking_back)
    assert perplexity(model, options) == perplexity(model, options)


# --- data prefixes -------------------------------------------------------------------------------


def test_a_prefix_is_the_file_that_it_was_made_of(tmp_path: Path) -> None:
    pytest.importorskip("megatron.core")
    from domain_pretrain.prepare.corpus import prepare

    texts = [f"{text} {number}" for number in range(10) for text in TEXTS]
    source = write(tmp_path / "a.jsonl", json_lines(texts))
    prepare([source], tmp_path / "out", "bytes", holdout="5")
    whole = prepare([source], tmp_path / "all", "bytes")
    assert whole.documents == len(texts)
    (tmp_path / "all").mkdir()  # as Megatron does, for its caches

    model = bytes_model(looking_back, context=20)
    for count in (7, 99):
        ours, theirs = (
            measured(model, place, documents=count) for place in (source, tmp_path / "all")
        )
        for name in ("loss", "bits_per_byte"):
            assert theirs[name].mean == pytest.approx(ours[name].mean, rel=1e-12)
            assert theirs[name].error == pytest.approx(ours[name].error, rel=1e-9)
            numbers = [
                [int(part.name.rpartition(":")[2]) for part in found[name].parts]
                for found in (ours, theirs)
            ]
            assert numbers[0] == [number + 1 for number in numbers[1]]  # lines are from 1

    # What was cut off: 5 texts; with a pattern, as `data` of a domain takes it.
    for place in (tmp_path / "out.holdout", tmp_path / "out.holdout.idx", tmp_path / "o*.holdout"):
        found = read_texts([str(place)], 99)
        assert len(found) == 5
        assert {text.content for text in found} < set(texts)
        assert found[0].name == f"{tmp_path / 'out.holdout'}:0"


def test_what_was_held_out_of_every_domain(tmp_path: Path) -> None:
    pytest.importorskip("megatron.core")
    from domain_pretrain.prepare.corpus import prepare

    names = {"law": "law", "finance/news": "finance.news", "[zh]": "_zh_"}
    lines = [{"text": f"{by} {n}", "by": by} for by in names for n in range(9)]
    source = write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    prepare([source], tmp_path / "web", "bytes", by="by", holdout="3")
    options: dict[str, Any] = {"holdout": str(tmp_path / "web"), "texts": {"all": str(source)}}
    scores = run_probes({"perplexity": options}, bytes_model(uniform))
    found = {s.domain: [part.name for part in s.parts] for s in scores if s.name == "loss"}
    assert found.keys() == {*names.values(), "all"}
    assert len(found.pop("all")) == 27
    for value, domain in names.items():
        assert found[domain] == [f"{tmp_path / 'web' / value}.holdout:{n}" for n in range(3)]

    options["texts"] = {"all": str(tmp_path / "web")}
    with pytest.raises(ConfigError, match=r"'all': .*web: a folder with data prefixes.* holdout: "):
        run_probes({"perplexity": options}, silent())
    options["texts"] = {"law": str(source)}
    with pytest.raises(ConfigError, match=r"the domain 'law' is among texts and in .*web"):
        run_probes({"perplexity": options}, silent())
    prepare([source], tmp_path / "none", "bytes", by="by")
    with pytest.raises(ConfigError, match=r"none: .* no domain of which documents were held out"):
        run_probes({"perplexity": {"holdout": str(tmp_path / "none")}}, silent())


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE that puts <s> before a text, in a folder as a hub's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_bpe(folder, 300, clean_up_tokenization_spaces=False)
    return folder


def test_a_prefix_is_text_to_any_model(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Neither the tokens that its tokenizer puts around a text nor that tokenizer are the model's:
    one that knows bytes alone is asked about the bytes."""
    pytest.importorskip("megatron.core")
    from domain_pretrain.prepare.corpus import prepare

    source = write(tmp_path / "a.jsonl", json_lines(TEXTS))
    prepare([source], tmp_path / "out", str(tokenizer_folder))
    assert [text.content for text in read_texts([str(tmp_path / "out")], 9)] == TEXTS
    prepare([source], tmp_path / "bare", str(tokenizer_folder), append_eod=False)
    assert [text.content for text in read_texts([str(tmp_path / "bare")], 9)] == TEXTS
    (tmp_path / "bare.manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"bare: no manifest of .* name it, as tokenizer"):
        read_texts([str(tmp_path / "bare")], 9)
    named = read_texts([str(tmp_path / "bare")], 9, tokenizer=str(tokenizer_folder))
    assert [text.content for text in named] == TEXTS


def test_a_prefix_of_another_tokenizer_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    pytest.importorskip("megatron.core")
    from domain_pretrain.prepare.corpus import prepare

    source = write(tmp_path / "a.jsonl", json_lines(TEXTS))
    prepare([source], tmp_path / "out", str(tokenizer_folder))
    with pytest.raises(ConfigError, match=r"out: was made by .*, and bytes is not what"):
        read_texts([str(tmp_path / "out")], 9, tokenizer="bytes")
    with pytest.raises(ConfigError, match=r"out: .*none does not exist; .*its place, as tokenizer"):
        read_texts([str(tmp_path / "out")], 9, tokenizer=str(tmp_path / "none"))
    (tmp_path / "out.manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"out: document \d has ids from .* bytes has 257"):
        read_texts([str(tmp_path / "out")], 9, tokenizer="bytes")


# --- what is wrong is named before the model is asked --------------------------------------------


def silent(context: int = 8) -> LogitsModel:
    def logits(ids: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model was asked")

    return bytes_model(logits, context)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {}, r"perplexity: texts of 'a': a\.jsonl: no such file"),
        ({"a.jsonl": json_lines(["x"], "body")}, {}, r"jsonl:1: no key 'text' .*text_key"),
        ({"a.jsonl": ""}, {}, r"texts of 'a': no text in a\.jsonl; give it some"),
        ({"a.jsonl": json_lines(["", ""])}, {}, r"texts of 'a': no text in a\.jsonl"),
        ({"a.jsonl": json_lines(["x"]) + "{broken\n"}, {}, r"a\.jsonl:2: not JSON"),
        ({"a.jsonl": '{"text": "\\ud800"}'}, {}, r"a\.jsonl:1: the text is not Unicode"),
        ({"a.jsonl": b"\xff\xfea\0"}, {}, r"of utf-16-le.*make a data prefix by it"),
        ({"a.csv": "body\nx\n"}, {"texts": {"a": "a.csv"}}, "'text'.* with text_key: body"),
        ({"a.doc": "x"}, {"texts": {"a": "a.doc"}}, r"a\.doc: unknown kind of file"),
        ({"a.txt": "x"}, {"texts": {"a": ["a.txt", "./a.txt"]}}, r"a\.txt: given twice"),
        ({}, {"texts": {"a": []}}, r"texts\.a: List should have at least 1"),
        ({}, {"texts": {}}, "no texts: give texts by domain, or the folder of a holdout"),
        ({}, {"holdout": "data"}, r"perplexity: holdout: .*data/manifest\.json"),
        ({}, {"documents": 0}, "documents: Input should be greater than 0"),
        ({}, {"document": 5}, "document: unknown key; did you mean 'documents'"),
        ({}, {"window": 4, "stride": 5}, "stride 5 is more than window 4"),
        ({}, {"stride": 5, "rolling": False}, "stride has no effect with rolling: false"),
        ({"a.jsonl": json_lines(["x"])}, {"window": 9}, "window 9: the model's context is 8"),
        ({"a.jsonl": json_lines(["x"])}, {"stride": 9}, "stride 9 is more than the model's"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_before_the_model_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Any, options: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        write(tmp_path / name, content)
    section = {"perplexity": {"texts": {"a": "a.jsonl"}, **options}}
    with pytest.raises(ConfigError, match=message):
        run_probes(section, silent())


def test_without_rolling_windows_a_long_text_is_refused_before_any_work(tmp_path: Path) -> None:
    good = str(write(tmp_path / "good.jsonl", json_lines(["12345678"])))
    long = str(write(tmp_path / "long.jsonl", json_lines(["1234", "123456789"])))
    section = {"perplexity": {"texts": {"a": good, "b": long}, "rolling": False}}
    with pytest.raises(ConfigError, match=r"long\.jsonl:2 has 9 tokens, more than the window of 8"):
        run_probes(section, silent())
    model = bytes_model(looking_back, context=9)
    whole = run_probes(section, model)
    assert whole == run_probes({"perplexity": {"texts": {"a": good, "b": long}}}, model)


def test_a_domain_without_a_token_is_named(tmp_path: Path) -> None:
    source = str(write(tmp_path / "a.jsonl", json_lines(["x", "y"])))
    dropped = LogitsModel(uniform, lambda text: [], lambda ids: "", context=8, end=END)
    with pytest.raises(ConfigError, match="'a': the model's tokenizer makes no token of any"):
        measured(dropped, source)

    def only_y(text: str) -> list[int]:
        return list(text.replace("x", "").encode())

    some = measured(LogitsModel(uniform, only_y, lambda ids: "", context=8, end=END), source)
    assert [part.name for part in some["bits_per_byte"].parts] == [f"{source}:2"]


# --- the page, on a model of Hugging Face's ------------------------------------------------------

(PAGE_CONFIG,), (PAGE_CODE,) = (blocks("docs/perplexity.md", kind) for kind in ("yaml", "python"))


def test_the_page_lists_the_options() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", text_of("docs/perplexity.md"), re.MULTILINE)
    told = {name: default for name, default in rows if name not in ("loss", "bits_per_byte")}
    assert list(told) == list(PerplexityOptions.model_fields)
    assert told["documents"] == str(PerplexityOptions.model_fields["documents"].default)


@pytest.fixture
def base_model(tmp_path: Path, tokenizer_folder: Path) -> Any:
    """A tiny Llama of random weights in ``models/base``, as a hub has it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,  # so that it is far from a uniform one
    )
    network = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path / "models" / "base"
    network.save_pretrained(folder)
    for file in tokenizer_folder.iterdir():
        shutil.copy(file, folder)
    return network


def test_the_page_runs_as_it_stands_and_gives_the_loss_of_hugging_face(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    base_model: Any,
) -> None:
    pytest.importorskip("megatron.core")
    from domain_pretrain.prepare.corpus import prepare

    monkeypatch.chdir(tmp_path)
    for name in ("heldout/wiki", "data"):
        (tmp_path / name).mkdir(parents=True)
    short = ["the quick brown fox", "你好, the lazy dog"]
    write(tmp_path / "domains.yaml", PAGE_CONFIG)
    write(tmp_path / "heldout" / "finance.jsonl", json_lines(short))
    write(tmp_path / "heldout" / "wiki" / "a.jsonl.gz", json_lines(["over " * 60]))
    source = write(tmp_path / "b.jsonl", json_lines([f"fox {number}" for number in range(9)]))
    prepare([source], "data/general", "models/base", holdout="2")

    space: dict[str, Any] = {}
    exec(PAGE_CODE, space)
    printed = capsys.readouterr().out
    assert "finance perplexity" in printed and "hardest: heldout/finance.jsonl:" in printed
    scores = {(score.domain, score.name): score for score in space["scores"]}
    assert [part.name for part in scores["general", "loss"].parts] == [
        "heldout/wiki/a.jsonl.gz:1",
        "data/general.holdout:0",
        "data/general.holdout:1",
    ]
    assert scores["general", "bits_per_byte"].count == 300 + 2 * len("fox 0")

    # Their own loss, of which the first token is none: so the end of a document stands before.
    tokenizer = space["tokenizer"]
    for text, part in zip(short, scores["finance", "loss"].parts, strict=True):
        ids = [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
        row = torch.tensor([ids])
        with torch.no_grad():
            theirs = float(base_model(row, labels=row).loss)
        assert part.count == len(ids) - 1
        assert part.sum / part.count == pytest.approx(theirs, rel=1e-5)  # fp32
        assert abs(theirs - math.log(300)) > 0.1
