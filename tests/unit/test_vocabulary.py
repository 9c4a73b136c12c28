"""How many ids a tokenizer has, from its files: as the libraries that load it count."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from domain_pretrain.data.vocabulary import _pieces, padded, size_of_tokenizer, vocabulary
from domain_pretrain.prepare.manifest import Manifest

WORDS = {f"w{i}": i for i in range(300)}


def count(prefixes: tuple[str, ...] = (), **flags: Any) -> int | None:
    return vocabulary(SimpleNamespace(**flags), prefixes)


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_tokenizer_json_counts_as_hugging_face_does(tmp_path: Path) -> None:
    """Added tokens too, whichever of the files adds them, each once."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    model = WordLevel(WORDS | {"<unk>": 300}, unk_token="<unk>")
    own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")
    own.add_tokens(["<extra>", "w7"])
    own.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    flags = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(tmp_path)}
    assert count(**flags) == len(loaded) == 302
    assert count(**flags, vocab_size=5) == 302  # the host takes the tokenizer's, too
    assert count(tokenizer_name_or_path=str(tmp_path)) == 302


def test_unigram_pairs_and_files_beside(tmp_path: Path) -> None:
    pairs = [[word, -1.0] for word in WORDS]
    write(tmp_path / "tokenizer.json", {"model": {"type": "Unigram", "vocab": pairs}})
    assert size_of_tokenizer(tmp_path) == 300
    write(tmp_path / "added_tokens.json", {"<mask>": 300, "w1": 1})
    write(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": {"301": {"content": "<e>"}}})
    assert size_of_tokenizer(tmp_path) == 302


def test_vocab_json_even_with_a_word_model(tmp_path: Path) -> None:
    file = write(tmp_path / "vocab.json", WORDS | {"model": 300})
    assert size_of_tokenizer(tmp_path) == 301
    assert count(tokenizer_type="GPT2BPETokenizer", vocab_file=str(file)) == 301


def test_sentence_piece(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{word} is a word, {word}!" for word in WORDS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=60
    )
    model = str(tmp_path / "tokenizer.model")
    size = sentencepiece.SentencePieceProcessor(model_file=model).get_piece_size()
    assert count(tokenizer_type="Llama2Tokenizer", tokenizer_model=model) == size == 60
    assert size_of_tokenizer(tmp_path) == 60


@pytest.mark.parametrize(
    "content",
    [b"", b"IQ== 0\nIg== 1\nIw== 2\n", b"\x0a\xff\xff\x03cut off", bytes(range(256))],
    ids=["empty", "tiktoken", "cut off", "any bytes"],
)
@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "vocab.json"])
def test_a_file_of_another_kind_tells_nothing(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert size_of_tokenizer(tmp_path) is None
    assert count(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(tmp_path)) is None


def test_what_has_no_file() -> None:
    assert count(tokenizer_type="NullTokenizer", vocab_size=257) == 257
    assert count(tokenizer_type="TikTokenizer", tokenizer_model="t.json") == 2**17
    assert count(tokenizer_type="TikTokenizer", vocab_size=1000) == 1000
    assert count(tokenizer_type="HuggingFaceTokenizer", tokenizer_model="org/name") is None
    assert count(tokenizer_type="HuggingFaceTokenizer", tokenizer_model="s3://a/b") is None
    # To these the host adds tokens that differ by version.
    assert count(tokenizer_type="SentencePieceTokenizer", vocab_size=7) is None
    assert count(special_tokens=["<x>"], vocab_size=7) is None
    assert count() is None


@pytest.mark.parametrize("torn", ["{", "[" * 100_000, '{"vocab_size": 1e999}'], ids=len)
def test_a_corpus_says_what_it_was_made_with(torn: str, tmp_path: Path) -> None:
    manifest = Manifest(
        tool="domain-pretrain",
        megatron_core="0.19.0",
        tokenizer="org/name",
        tokenizer_sha256=None,
        megatron_flags=[],
        vocab_size=32_000,
        eod=None,
        append_eod=False,
        dtype="uint16",
    )
    (tmp_path / "news.manifest.json").write_text(manifest.to_json())
    (tmp_path / "torn.manifest.json").write_text(torn)
    torn, news = str(tmp_path / "torn"), str(tmp_path / "news")
    hub = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "org/name"}
    assert count(**hub, data_path=["1", torn, "5", news]) == 32_000
    assert count(("s3://bucket/a", news), **hub) == 32_000
    assert count(**hub, data_path=None) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_a_deeply_nested_file_tells_nothing(name: str, tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.json", {"model": {"vocab": WORDS}})
    assert size_of_tokenizer(tmp_path) == 300
    (tmp_path / name).write_text("[" * 100_000)
    assert size_of_tokenizer(tmp_path) is None


def test_a_number_without_end_is_no_model() -> None:
    """Ten bytes are all that a number has: more of them would take hours to add up."""
    content = b"\xff" * 10 + b"\0" * 2  # taken for one long number, it would be whole
    with pytest.raises(ValueError, match="no number of more than 64 bits"):
        list(_pieces(content))


def test_padding() -> None:
    assert padded(257, SimpleNamespace()) == 384
    assert padded(384, SimpleNamespace(tensor_model_parallel_size=3)) == 384
    assert padded(385, SimpleNamespace(tensor_model_parallel_size=3)) == 768
    assert padded(257, SimpleNamespace(make_vocab_size_divisible_by=1)) == 257
    assert padded(257, SimpleNamespace(padded_vocab_size=1000)) == 1000
