"""Files of tokenizers, for ``prepare`` and for the size of the vocabulary."""

from __future__ import annotations

import functools
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from domain_pretrain.data.tokenizer import Tokenizer
from domain_pretrain.data.vocabulary import size_of_tokenizer, vocabulary
from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.manifest import Manifest
from domain_pretrain.prepare.tokenize import load_tokenizer
from fuzz.case import Case
from fuzz.damage import NASTY, damaged, nested, with_nasty

TEXTS = ("the quick brown fox", "", "süß 数学", "<s> </s>")


def case(rng: random.Random) -> Case:
    """A folder of a tokenizer that is whole, broken in a known way, or damaged anywhere."""
    kind, what, seed = rng.choice(("json", "json", "model")), rng.random(), rng.getrandbits(32)
    if what < 0.2:
        return Case(f"valid {kind}", True, _Check(seed, kind, lambda rng: None))
    if what < 0.6:
        broken = rng.choice(BROKEN_JSON if kind == "json" else BROKEN_MODEL)
        return Case(broken.__name__, False, _Check(seed, kind, broken))
    loose = rng.choice((_damage, _nasty, _nasty_beside, _huge_id))
    return Case(loose.__name__, None, _Check(seed, kind, loose))


class _Check:
    """Write the folder, change something in it, and let all that reads tokenizers read it."""

    def __init__(self, seed: int, kind: str, change: Callable[[random.Random], None]) -> None:
        self._seed, self._kind, self._change = seed, kind, change

    def __call__(self, folder: Path) -> bool:
        rng = random.Random(self._seed)
        Path("tok").mkdir()
        name = "tok/tokenizer.json" if self._kind == "json" else "tok/tokenizer.model"
        if self._kind == "json":
            _write("tokenizer.json", _json_tokenizer(rng.choice(("bpe", "unigram"))))
            _write("tokenizer_config.json", '{"eos_token": "</s>"}')
        else:
            _path("tokenizer.model").write_bytes(_model())
        self._change(rng)
        given = rng.choice(("tok", name))
        sizes = [size_of_tokenizer(Path("tok")), size_of_tokenizer(Path(name))]
        assert all(size is None or size > 0 for size in sizes)
        Tokenizer.of(SimpleNamespace(tokenizer_model=given))
        lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
        Path("in.jsonl").write_text(lines, "utf-8")
        try:
            tokenizer = load_tokenizer(given)
            manifest = prepare(["in.jsonl"], "out", given, workers=1, max_bad=1)
        except DomainPretrainError:
            assert not list(Path().glob("out*")), "an error left something behind"
            raise
        assert manifest.vocab_size == tokenizer.vocab_size
        assert all(
            0 <= i < tokenizer.vocab_size for text in TEXTS[:1] for i in tokenizer.encode(text)
        )
        assert Manifest.load("out") == manifest
        _manifest_beside(rng)
        if self._change.__name__ == "<lambda>":
            assert set(sizes) == {tokenizer.vocab_size}
        return manifest.bad_lines > 0


def _manifest_beside(rng: random.Random) -> None:
    """The size of the vocabulary is asked of a manifest, too, which may be damaged."""
    path = Path("out.manifest.json")
    change = rng.randrange(4)
    if change == 0:
        path.write_bytes(damaged(rng, path.read_bytes()))
    elif change == 1:
        path.write_text(nested(rng, '{"vocab_size": ', "}"), "utf-8")
    elif change == 2:
        path.write_text(json.dumps({"vocab_size": rng.choice(NASTY)}), "utf-8")
    size = vocabulary(SimpleNamespace(data_path=["1", "out"]))
    assert size is None or change or size > 0


def _path(name: str) -> Path:
    return Path("tok", name)


def _write(name: str, text: str) -> None:
    _path(name).write_text(text, "utf-8")


@functools.cache
def _json_tokenizer(kind: str) -> str:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    texts = ["the quick brown fox jumps over the lazy dog"] * 20
    special = ["<s>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "bpe":
        tokenizer = tokenizers.Tokenizer(models.BPE())
        trainer: Any = trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = tokenizers.Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=300,
            special_tokens=special,
            initial_alphabet=alphabet,
            unk_token="<unk>",
            show_progress=False,
        )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


@functools.cache
def _model() -> bytes:
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 20),
        model_writer=written,
        vocab_size=60,
        hard_vocab_limit=False,
        byte_fallback=False,
        minloglevel=2,
    )
    return written.getvalue()


# --- damage anywhere ------------------------------------------------------------------------------


def _any_file(rng: random.Random) -> Path:
    return rng.choice(sorted(Path("tok").iterdir()))


def _damage(rng: random.Random) -> None:
    path = _any_file(rng)
    path.write_bytes(damaged(rng, path.read_bytes()))


def _nasty(rng: random.Random) -> None:
    path = _any_file(rng)
    if path.suffix == ".json":
        _write(path.name, json.dumps(with_nasty(rng, json.loads(path.read_text("utf-8")))))
    else:
        _damage(rng)


def _nasty_beside(rng: random.Random) -> None:
    name = rng.choice(("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"))
    tokens = {"added_tokens_decoder": {"0": {"content": "<x>"}}, "eos_token": {"content": "</s>"}}
    content = rng.choice((nested(rng), json.dumps(with_nasty(rng, tokens)), "", "[1]", "\x00"))
    _path(name).write_bytes(content.encode("utf-8", "surrogatepass"))


def _huge_id(rng: random.Random) -> None:
    if not _path("tokenizer.json").exists():
        _damage(rng)
        return
    token = {"id": rng.choice((2**31, 2**32 - 1, 2**40, -1)), "content": "<huge>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    _edit(lambda content: content["added_tokens"].append({**token, **flags}))


# --- what is broken, by construction --------------------------------------------------------------


def _edit(change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(_path("tokenizer.json").read_text("utf-8"))
    change(content)
    _write("tokenizer.json", json.dumps(content))


def json_cut(rng: random.Random) -> None:
    raw = _path("tokenizer.json").read_bytes()
    _path("tokenizer.json").write_bytes(raw[: rng.randrange(len(raw))])


def json_that_is_none(rng: random.Random) -> None:
    texts = ("", "{}", "[]", "null", "1", "\0", nested(rng), nested(rng, '{"a": ', "}"))
    _write("tokenizer.json", rng.choice((*texts, "x" * 10**6)))


def json_without_model(rng: random.Random) -> None:
    _edit(lambda content: content.pop("model"))


def json_model_of_a_wrong_kind(rng: random.Random) -> None:
    wrong = rng.choice((None, 1, [], {}, "BPE", {"type": "nothing"}, {"type": "BPE", "vocab": []}))
    _edit(lambda content: content.update(model=wrong))


def json_without_the_end(rng: random.Random) -> None:
    _write("tokenizer_config.json", '{"eos_token": "<none of it>"}')


def json_that_names_no_end(rng: random.Random) -> None:
    wrong = rng.choice(({}, {"eos_token": None}, {"eos_token": 3}, {"eos_token": {}}))
    _write("tokenizer_config.json", json.dumps(wrong))


def config_that_is_none(rng: random.Random) -> None:
    texts = ("", "[]", "null", "{", nested(rng), '{"eos_token": "</s>", "eos_token": "<s>"}', "\0")
    _write("tokenizer_config.json", rng.choice(texts))


def nothing_there(rng: random.Random) -> None:
    for path in Path("tok").glob("tokenizer.*"):
        path.unlink()


def a_folder_there(rng: random.Random) -> None:
    for path in Path("tok").glob("tokenizer.*"):
        path.unlink()
        path.mkdir()


def model_cut(rng: random.Random) -> None:
    raw = _path("tokenizer.model").read_bytes()
    _path("tokenizer.model").write_bytes(raw[: rng.randrange(len(raw) // 2)])


def model_that_is_none(rng: random.Random) -> None:
    raw = (b"", b"\0", b"IQ== 0\nIg== 1\n", b"\xff" * 10**6, b"\x0a\xff\xff\xff\xff\x0f")
    _path("tokenizer.model").write_bytes(rng.choice(raw))


BROKEN_JSON = (
    *(json_cut, json_that_is_none, json_without_model, json_model_of_a_wrong_kind, a_folder_there),
    *(json_without_the_end, json_that_names_no_end, config_that_is_none, nothing_there),
)
BROKEN_MODEL = (model_cut, model_that_is_none, nothing_there, a_folder_there)
