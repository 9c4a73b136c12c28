"""Data of another tokenizer, and ids that no embedding has."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.prefixes import write_prefix

from domain_pretrain.data.content import check_content, check_ids
from domain_pretrain.data.index import Index
from domain_pretrain.data.reading import Reading
from domain_pretrain.errors import ConfigError


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_prefix(name, [10] * 60)


def manifest(prefix: str, **changed: Any) -> None:
    content = {
        "tool": "domain_pretrain 0.2",
        "megatron_core": "0.19.2",
        "tokenizer": "bytes",
        "tokenizer_sha256": None,
        "megatron_flags": ["--tokenizer-type", "NullTokenizer", "--vocab-size", "257"],
        "vocab_size": 257,
        "eod": 256,
        "append_eod": True,
        "dtype": "uint16",
        "documents": 60,
        "tokens": 600,
    }
    Path(f"{prefix}.manifest.json").write_text(json.dumps({**content, **changed}), "utf-8")


def check(**flags: Any) -> None:
    blend = (["a", "b"], [1.0, 1.0])
    reading = Reading.check(blend, None, "1", 8, {}, files=True)
    check_content(reading, SimpleNamespace(**flags))


NULL = {"tokenizer_type": "NullTokenizer", "vocab_size": 257}


def test_data_that_fits() -> None:
    check()
    check(**NULL)
    manifest("a")
    manifest("b")
    check(**NULL)
    check(tokenizer_type="NullTokenizer", vocab_size=256)  # up to 0.17, for the same data


def test_data_of_two_tokenizers() -> None:
    manifest("a")
    manifest("b", tokenizer="models/llama", tokenizer_sha256="ab" * 32, vocab_size=32000)
    with pytest.raises(ConfigError, match=r"'a' was prepared .* bytes \(257 ids\), and 'b' with"):
        check(**NULL)


def test_data_of_another_tokenizer_than_the_runs() -> None:
    Path("t").mkdir()
    content = json.dumps({"model": {"vocab": {"x": 0, "y": 1}}}).encode()
    Path("t/tokenizer.json").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    own = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "t"}
    manifest("a", tokenizer="t", tokenizer_sha256=digest, vocab_size=2)
    check(**own)
    manifest("a", tokenizer="u", tokenizer_sha256="ab" * 32, vocab_size=2)
    with pytest.raises(ConfigError, match=r"with the tokenizer u \(sha256 abab.*the run's is t "):
        check(**own)
    manifest("a")
    with pytest.raises(ConfigError, match=r"with the tokenizer bytes .*the run's is t "):
        check(**own)


def test_a_vocabulary_that_is_too_small() -> None:
    manifest("a", vocab_size=1000)
    check(**{**NULL, "vocab_size": 1000})
    with pytest.raises(ConfigError, match="of 1,000 ids, and the model's is padded to 384"):
        check(**NULL)


def test_a_file_of_that_name_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.manifest.json").write_text('{"name": "web app"}', "utf-8")
    check(**NULL)
    assert "a.manifest.json" in capsys.readouterr().out


@pytest.mark.parametrize("at", [0, 599, 300])
@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_an_id_that_the_embedding_does_not_have(at: int, dtype: str) -> None:
    write_prefix("b", [10] * 60, dtype=dtype)
    ids = np.memmap("b.bin", dtype, "r+")
    ids[at] = 384
    with pytest.raises(ConfigError, match=rf"'b.bin' holds the id 384 \(token {at}\)"):
        check(**NULL)
    ids[at] = 383
    check(**NULL)
    if dtype == "int32":
        ids[at] = -1
        with pytest.raises(ConfigError, match="holds the id -1"):
            check(**NULL)


def test_a_long_file_is_looked_at_everywhere() -> None:
    """A wrong tokenizer leaves its ids all over; the reading stays small whatever the size."""
    write_prefix("long", [10_000] * 2_000)
    ids = np.memmap("long.bin", "uint16", "r+")
    ids[15_000_000:15_050_000:50] = 500
    with pytest.raises(ConfigError, match=r"holds the id 500 \(token 15,0"):
        check_ids({"long": Index.read("long")}, 384)


def test_ids_are_compared_where_the_vocabulary_is_known() -> None:
    np.memmap("a.bin", "uint16", "r+")[0] = 60_000
    check(tokenizer_type="HuggingFaceTokenizer", tokenizer_model="org/name")
