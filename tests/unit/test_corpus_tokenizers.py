"""Token ids are those that Megatron and the tokenizers' own libraries give."""

import argparse
import hashlib
import json
import struct

import numpy as np
import pytest
from support.prepared import (
    TEXTS,
    json_lines,
    read_back,
    write,
)

from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.encode import Encoder
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.readers import Chunk
from domain_pretrain.prepare.record import select
from domain_pretrain.prepare.tokenize import ByteTokenizer, HuggingFaceTokenizer, load_tokenizer

indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A small byte-level BPE as a model hub folder holds it, with <s> put in front of a text."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.enable_truncation(4)  # as some models' files do
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "eos_token": {"content": "</s>", "__type": "AddedToken"}})
    )
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
        def encode(self, text):
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
