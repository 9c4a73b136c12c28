import json
import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from domain_pretrain.demo import corpora as demo
from domain_pretrain.demo.corpora import SHARES, build
from domain_pretrain.demo.maths import TEMPLATES, maths_documents
from domain_pretrain.demo.python_code import split_source, standard_library

MAX_BYTES = 200_000
PACKAGES = ("asyncio", "email", "json", "logging", "unittest")


@pytest.fixture(scope="module", autouse=True)
def a_few_packages_of_the_library():
    some = {k: v for k, v in standard_library().items() if k.split(".")[0] in PACKAGES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "standard_library", lambda: some)
        yield


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    pytest.importorskip("megatron.core")
    root = tmp_path_factory.mktemp("demo")
    return root, build(root, max_bytes=MAX_BYTES)


def texts(root: Path, domain: str) -> list[str]:
    lines = (root / f"{domain}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_every_domain_is_prepared_whole(corpora):
    root, built = corpora
    assert list(built) == ["general", "code", "maths", "dirty"]
    for name, corpus in built.items():
        documents = [text for text in texts(root, name) if text]
        size = sum(len(text.encode()) for text in documents)
        assert corpus.manifest.documents == len(documents)
        assert corpus.manifest.tokens == size + len(documents)
        assert corpus.manifest.bad_lines == 0
        # Cut at a character, so a few bytes may be missing.
        assert 0 <= MAX_BYTES * SHARES[name] - size < 4
        assert corpus.prefix == root / name


def test_a_second_build_is_the_same_and_another_seed_is_not(corpora, tmp_path):
    root, built = corpora
    build(tmp_path, max_bytes=MAX_BYTES)
    for name in built:
        assert (tmp_path / f"{name}.bin").read_bytes() == (root / f"{name}.bin").read_bytes()
    build(tmp_path, seed=1, max_bytes=MAX_BYTES)
    for name in built:
        assert (tmp_path / f"{name}.bin").read_bytes() != (root / f"{name}.bin").read_bytes()


def test_only_the_dirty_domain_is_noise(corpora):
    """Entropy of a byte given the one before it, in nats: what a tiny model can learn at once."""
    root, built = corpora
    entropy = {name: bigram_entropy("".join(texts(root, name))) for name in built}
    # 50,000 pairs are few for 128² cells: the estimate for the dirty domain is below ln 128 = 4.85.
    assert entropy.pop("dirty") > 4
    assert max(entropy.values()) < 2.7


def bigram_entropy(text: str) -> float:
    data = text.encode()
    pairs, firsts = Counter(pairwise(data)), Counter(data[:-1])
    total = pairs.total()
    return -sum(n / total * math.log(n / firsts[a]) for (a, _), n in pairs.items())


def test_general_and_code_share_no_docstring(corpora):
    root, _ = corpora
    code = "".join(texts(root, "code"))
    bodies = [text.split("\n\n", 1)[-1].strip() for text in texts(root, "general")]
    assert not [body for body in bodies if len(body) > 200 and body in code]


def test_standard_library_is_found_without_tests_and_installed_packages():
    files = standard_library()
    assert {"json.decoder", "argparse", "os"} <= set(files)
    assert not [name for name in files if {"site-packages", "test"} & set(name.split("."))]


def test_split_source_parts_docstrings_from_code():
    source = (
        'class A:\n    """' + "About A. " * 10 + '\n\n    More.\n    """\n\n    x = 1\n\n'
        '    def f(self):\n        """Short."""\n        return "kept"\n'
    )
    code, docstrings = split_source("pkg.mod", source)
    assert code == 'class A:\n\n    x = 1\n\n    def f(self):\n        return "kept"\n'
    assert docstrings == ["pkg.mod.A\n\n" + "About A. " * 10 + "\n\nMore.\n"]
    assert split_source("m", "def (:") == ("def (:", [])


EXPRESSION = r"[\d()+*/. -]*\d[\d()+*/. -]*"
STATEMENT = re.compile(rf"(?<![\w%])({EXPRESSION})=({EXPRESSION})")


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_arithmetic_is_right(template):
    """Every statement ``expression = expression`` in a problem holds."""
    random, checked = Random(0), 0
    for _ in range(200):
        problem = template(random).replace(" carried", "").replace(" : ", " // ")
        if solution := re.search(r": x = (-?\d+)", problem):
            problem = re.sub(r"(\d)x", rf"\1 * ({solution[1]})", problem)
        for left, right in STATEMENT.findall(problem):
            left, right = left.strip(" ."), right.strip(" .")
            assert eval(left) == pytest.approx(eval(right)), problem
            checked += 1
    assert checked >= 200


def test_maths_documents_vary():
    documents = maths_documents(Random(0))
    assert len({next(documents) for _ in range(500)}) == 500
