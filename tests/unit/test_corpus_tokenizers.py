"""Token ids are those that Megatron and the tokenizers' own libraries give."""

import argparse
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.bpe import write_bpe
from support.prepared import (
    TEXTS,
    json_lines,
    read_back,
    write,
)

from domain_pretrain.commands.main import main
from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.encode import Encoder
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.manifest import Found, Manifest
from domain_pretrain.prepare.readers import Chunk
from domain_pretrain.prepare.record import select
from domain_pretrain.prepare.tokenize import ByteTokenizer, HuggingFaceTokenizer, load_tokenizer
from domain_pretrain.prepare.traces import TraceFinder, Traces

indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A small byte-level BPE as a model hub folder holds it, with <s> put in front of a text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    end = {"content": "</s>", "__type": "AddedToken"}
    write_bpe(folder, 400, truncation=4, eos_token=end)  # cut short, as some models' files ask for
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_hugging_face_as_transformers_reads_it(tmp_path, tokenizer_folder, workers):
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    source = write(tmp_path / "a.jsonl", json_lines([*TEXTS, "", "the end </s>"]))
    manifest = prepare([source], tmp_path / "out", str(tokenizer_folder), workers=workers)
    expected = [[*reference(text).input_ids, reference.eos_token_id] for text in TEXTS]
    # A text that ends with the end token is not ended twice.
    assert read_back(tmp_path / "out") == [*expected, reference("the end </s>").input_ids]
    assert min(map(len, expected)) > 5
    assert manifest.vocab_size == len(reference)
    assert manifest.empty_documents == 1
    content = (tokenizer_folder / "tokenizer.json").read_bytes()
    assert manifest.tokenizer_sha256 == hashlib.sha256(content).hexdigest()
    flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer_folder)]
    assert manifest.megatron_flags == flags


def test_a_lone_tokenizer_file_needs_its_end_named(tmp_path, tokenizer_folder):
    file = write(tmp_path / "tokenizer.json", (tokenizer_folder / "tokenizer.json").read_bytes())
    source = write(tmp_path / "a.jsonl", json_lines(["fox"]))
    with pytest.raises(PrepareError, match="name it with --eod-token"):
        prepare([source], tmp_path / "out", str(file))
    with pytest.raises(PrepareError, match="'<end>' is not in it"):
        prepare([source], tmp_path / "out", str(file), eod_token="<end>")
    prepare([source], tmp_path / "out", str(file), eod_token="</s>")
    assert read_back(tmp_path / "out")[0][-1] == load_tokenizer(str(file), "</s>").eod
    prepare([source], tmp_path / "open", str(file), append_eod=False)
    assert read_back(tmp_path / "open")[0] == read_back(tmp_path / "out")[0][:-1]


SPELLED = "old price <s>100</s> now <s> 80"


def test_special_tokens_in_texts_are_counted(tmp_path, tokenizer_folder):
    """They become those tokens, as in Megatron's preprocessing, unless they are to be text."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    source = write(tmp_path / "a.jsonl", json_lines([SPELLED, "plain", "<s>"]))
    for name, literal in [("ids", False), ("text", True)]:
        # Two workers: what is to be text has to arrive there.
        options = {"literal_special_tokens": literal, "workers": 2}
        manifest = prepare([source], tmp_path / name, str(tokenizer_folder), **options)
        ids = reference(SPELLED, split_special_tokens=literal).input_ids
        assert read_back(tmp_path / name)[0] == [*ids, reference.eos_token_id]
        assert ids.count(reference.bos_token_id) == (1 if literal else 3)  # 1: put before a text
        assert manifest.literal_special_tokens is literal
        assert manifest.quality.special_tokens == Found(documents=2, occurrences=4)
        assert manifest.quality.special_token_counts == {"<s>": 3, "</s>": 1}
        assert Manifest.load(tmp_path / name) == manifest


def test_the_command_shows_special_tokens(tmp_path, tokenizer_folder, capsys):
    source = write(tmp_path / "a.jsonl", json_lines([SPELLED, "plain"]))
    words = [str(source), "--tokenizer", str(tokenizer_folder), "--literal-special-tokens"]
    assert main(["prepare", *words, "--output", str(tmp_path / "out")]) == 0
    out = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["special", "tokens", "in", "texts", "3", "in", "1", "documents"] in out
    assert ["<s>", "2"] in out and ["</s>", "1"] in out


def test_special_tokens_are_found_as_they_are_spelled():
    """The longest first, and none is a pattern."""
    finder, traces = TraceFinder(["<e>", "<e>x", "[.]", ""]), Traces()
    for text in ("<e>x<e>", "[.] [!]", ""):
        finder.look(text, traces)
    assert traces.special_token_counts == {"<e>x": 1, "<e>": 1, "[.]": 1}
    assert traces.special_tokens == Found(documents=2, occurrences=3)


def test_a_tokenizer_of_a_users_own_has_to_do_it_itself(tmp_path):
    source = write(tmp_path / "a.jsonl", json_lines(["x"]))
    with pytest.raises(PrepareError, match="literal_special_tokens"):
        prepare([source], tmp_path / "out", ByteTokenizer(), literal_special_tokens=True)


# --- sentencepiece --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    """A small model with byte fallback, as Llama 2's, in a folder without a tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        user_defined_symbols=["<sep>"],
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return folder


@pytest.mark.parametrize("name", ["", "tokenizer.model"])
def test_sentencepiece_as_megatron_reads_it(tmp_path, sentencepiece_folder, name):
    library = pytest.importorskip("megatron.core.tokenizers.text.libraries.sentencepiece_tokenizer")
    model = str(sentencepiece_folder / "tokenizer.model")
    theirs = library.SentencePieceTokenizer(model)
    texts = [*TEXTS, "the  fox\n", "<s> a <sep> b</s>", "\u200b"]
    source = write(tmp_path / "a.jsonl", json_lines([*texts, ""]))
    tokenizer = str(sentencepiece_folder / name)
    manifest = prepare([source], tmp_path / "out", tokenizer, workers=2)
    expected = [theirs.text_to_ids(text) for text in texts]
    assert read_back(tmp_path / "out") == [[*ids, theirs.eos_id] for ids in expected if ids]
    assert (manifest.vocab_size, manifest.eod) == (theirs.vocab_size, theirs.eos_id)
    assert manifest.quality.special_token_counts == {"<s>": 1, "</s>": 1}
    content = Path(model).read_bytes()
    assert manifest.tokenizer_sha256 == hashlib.sha256(content).hexdigest()
    flags = ["--tokenizer-type", "GPTSentencePieceTokenizer", "--tokenizer-model", model]
    assert manifest.megatron_flags == flags


def test_megatron_builds_the_sentencepiece_tokenizer_of_the_flags(sentencepiece_folder):
    build = pytest.importorskip("megatron.core.tokenizers.utils.build_tokenizer")
    ours = load_tokenizer(str(sentencepiece_folder))
    flags = ours.megatron_flags("0.19.0")
    args = argparse.Namespace(
        tokenizer_type=flags[1],
        tokenizer_model=flags[3],
        chat_template=None,
        metadata_path=None,
        tokenizer_sentencepiece_ignore_extra_whitespaces=True,
        tokenizer_sentencepiece_legacy=False,
        special_tokens=None,
        padded_vocab_size=None,
        pad_vocab_size=True,
        make_vocab_size_divisible_by=128,
        tensor_model_parallel_size=1,
        rank=0,
    )
    theirs = build.build_tokenizer(args)
    assert (theirs.eod, theirs.vocab_size) == (ours.eod, ours.vocab_size)
    assert theirs.tokenize("the fox <s>") == ours.encode("the fox <s>")


def test_the_end_of_a_sentencepiece_document_may_be_named(sentencepiece_folder):
    tokenizer = load_tokenizer(str(sentencepiece_folder), "<sep>")
    assert tokenizer.eod == tokenizer.encode("<sep>")[-1]
    with pytest.raises(PrepareError, match="'<end>' is not in it"):
        load_tokenizer(str(sentencepiece_folder), "<end>")


def test_sentencepiece_models_that_are_none(tmp_path, monkeypatch):
    sentencepiece = pytest.importorskip("sentencepiece")
    for content in (b"", b"no model", b"\0" * 100, b"IQ== 0\nIg== 1\n"):
        write(tmp_path / "tokenizer.model", content)
        with pytest.raises(PrepareError, match=r"tokenizer\.model: cannot be used") as raised:
            load_tokenizer(str(tmp_path))
        assert str(tmp_path) in str(raised.value)
    endless = tmp_path / "endless"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["fox dog"] * 9),
        model_prefix=str(endless),
        vocab_size=99,
        eos_id=-1,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    source = write(tmp_path / "a.jsonl", json_lines(["fox"]))
    with pytest.raises(PrepareError, match="name it with --eod-token"):
        prepare([source], tmp_path / "out", f"{endless}.model")
    prepare([source], tmp_path / "out", f"{endless}.model", append_eod=False)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(PrepareError, match=r"pip install 'domain-pretrain\[prepare\]'"):
        load_tokenizer(f"{endless}.model")


def test_a_tokenizer_json_goes_before_a_sentencepiece_model(tmp_path, tokenizer_folder):
    """Megatron loads the folder by transformers, as before."""
    folder = tmp_path / "both"
    shutil.copytree(tokenizer_folder, folder)
    write(folder / "tokenizer.model", "anything")
    assert load_tokenizer(str(folder)).megatron_flags("0.19.0")[1] == "HuggingFaceTokenizer"


def test_tokenizers_that_are_none(tmp_path):
    write(tmp_path / "tokenizer.json", "{}")
    write(tmp_path / "other.json", "{}")
    (tmp_path / "empty").mkdir()
    for name, message in [
        (str(tmp_path), "cannot be used as a tokenizer.json"),
        (str(tmp_path / "other.json"), "must be called tokenizer.json"),
        (str(tmp_path / "empty"), r"empty/tokenizer\.json does not exist"),
        ("gpt2", "only local files"),
    ]:
        with pytest.raises(PrepareError, match=message):
            load_tokenizer(name)
    with pytest.raises(PrepareError, match="--eod-token"):
        load_tokenizer("bytes", "</s>")


WORDS = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "a"}
NO_S = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
BROKEN_TOKENIZERS = {  # changes to tokenizer.json, tokenizer_config.json, the error
    "empty": ({"model": {**WORDS, "vocab": {}}}, "{}", "vocabulary is empty"),
    "no-model": ({"model": None}, "{}", "cannot be used"),
    "panics-when-loaded": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
        "{}",
        "panicked",
    ),
    "panics-when-used": (
        {"post_processor": {**NO_S, "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}},
        "{}",
        "panicked",
    ),
    "high": ({"model": {**WORDS, "vocab": {"a": (1 << 32) - 1}}}, "{}", "above int32"),
    "config-list": ({}, "[]", r"tokenizer_config\.json: not a JSON object"),
    "config-deep": ({}, "[" * 200_000, r"tokenizer_config\.json' is nested too deeply"),
    "config-surrogate": ({}, '{"eos_token": "\\ud800"}', "cannot be used"),
    "config-other": ({}, '{"eos_token": "<end>"}', "'<end>' is not in it"),
}


@pytest.mark.parametrize(
    ("changes", "config", "message"), BROKEN_TOKENIZERS.values(), ids=BROKEN_TOKENIZERS
)
def test_broken_tokenizers(tmp_path, changes, config, message):
    pytest.importorskip("tokenizers")
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    content = {**dict.fromkeys(parts), "version": "1.0", "added_tokens": [], "model": WORDS}
    write(tmp_path / "tokenizer.json", json.dumps({**content, **changes}))
    write(tmp_path / "tokenizer_config.json", config)
    with pytest.raises(DomainPretrainError, match=message) as raised:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(raised.value)


def test_a_tokenizer_that_panics_at_a_text_makes_it_a_bad_line(tmp_path):
    class PanicException(BaseException):
        """Named as pyo3 names its own, which cannot be imported."""

    class Panics:
        def encode_batch_fast(self, texts):
            raise PanicException("index out of bounds")

    tokenizer = HuggingFaceTokenizer.__new__(HuggingFaceTokenizer)
    tokenizer._tokenizer, tokenizer.eod, tokenizer._literal = Panics(), None, False
    chunk = Chunk(0, "a.jsonl", "json", [7], [b'{"text": "x"}'], 0)
    (bad,) = Encoder(tokenizer, select(), False, "uint16")(chunk).bad
    assert str(bad) == (
        "a.jsonl:7: tokenizer failed: the tokenizers library panicked: index out of bounds"
    )


@pytest.mark.parametrize("outside", [-1, 70_000])
def test_an_id_outside_the_vocabulary_is_not_written(tmp_path, outside):
    class Outside(ByteTokenizer):
        vocab_size = 70_000

        def encode(self, text):
            return [outside if text == "bad" else 1]

    source = write(tmp_path / "a.jsonl", json_lines(["good", "bad"]))
    bad = []
    prepare([source], tmp_path / "out", Outside(), max_bad=0.5, on_bad_line=bad.append)
    assert read_back(tmp_path / "out") == [[1, 256]]
    assert [(line.line, line.reason) for line in bad] == [
        (2, "tokenizer failed: an id outside 0 ... 69999")
    ]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, np.uint16), (70_000, np.int32)])
def test_dtype_is_megatrons_choice(tmp_path, vocab_size, dtype):
    class Highest:
        """Every text is the highest id."""

        name, sha256, eod = "highest", None, vocab_size - 1

        def __init__(self):
            self.vocab_size = vocab_size

        def encode(self, text):
            return [0, vocab_size - 1, 0]

        def megatron_flags(self, core_version):
            return []

    source = write(tmp_path / "a.jsonl", json_lines(["x"]))
    manifest = prepare([source], tmp_path / "out", Highest())
    assert read_back(tmp_path / "out") == [[0, vocab_size - 1, 0, vocab_size - 1]]
    code = struct.unpack_from("<B", (tmp_path / "out.idx").read_bytes(), 17)[0]
    assert indexed_dataset.DType.dtype_from_code(code) is dtype
    assert manifest.dtype == dtype.__name__


def test_megatron_gives_the_bytes_tokenizer_its_ids():
    """The flags of the manifest, through the installed Megatron's own tokenizer builder."""
    build = pytest.importorskip("megatron.core.tokenizers.utils.build_tokenizer")
    from megatron.core.package_info import __version__

    ours = ByteTokenizer()
    flags = ours.megatron_flags(__version__)
    args = argparse.Namespace(
        tokenizer_type=flags[1],
        vocab_size=int(flags[3]),
        padded_vocab_size=None,
        pad_vocab_size=True,
        make_vocab_size_divisible_by=128,
        tensor_model_parallel_size=1,
        rank=0,
    )
    theirs = build.build_tokenizer(args)
    assert (theirs.eod, theirs.vocab_size) == (ours.eod, ours.vocab_size)


def test_the_manifest_holds_the_version_of_megatron(tmp_path, monkeypatch):
    """Megatron puts the commit of whatever repository it is installed within behind its own."""
    from megatron.core import package_info

    monkeypatch.setattr(package_info, "__version__", "0.18.0rc1+abc1234")
    monkeypatch.setattr(package_info, "VERSION", (0, 18, 0, "rc1"))
    source = write(tmp_path / "a.jsonl", json_lines(["x"]))
    assert prepare([source], tmp_path / "out", "bytes").megatron_core == "0.18.0rc1"


def test_flags_by_version():
    sizes = {v: ByteTokenizer().megatron_flags(v)[-1] for v in ("0.12.3", "0.17.1", "0.18.0rc0")}
    assert sizes == {"0.12.3": "256", "0.17.1": "256", "0.18.0rc0": "257"}


def test_one_worker_starts_no_threads(tmp_path, tokenizer_folder):
    """A process that has some may not survive a fork, and one that is asked for is one core."""
    source = write(tmp_path / "a.jsonl", json_lines(["the quick brown fox"] * 9))
    script = """
import os, sys
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.output import MegatronFormat

def threads():
    return len(os.listdir("/proc/self/task"))

source, prefix, tokenizer = sys.argv[1:]
MegatronFormat(300)  # what Megatron's import starts is not ours
before = threads(), os.environ.get("TOKENIZERS_PARALLELISM")
prepare([source], prefix, tokenizer, workers=1)
assert (threads(), os.environ.get("TOKENIZERS_PARALLELISM")) == before
"""
    words = [str(source), str(tmp_path / "out"), str(tokenizer_folder)]
    for value in (None, "true"):
        environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
        environment |= {"TOKENIZERS_PARALLELISM": value} if value else {}
        command = [sys.executable, "-c", script, *words]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        for path in tmp_path.glob("out.*"):
            path.unlink()
