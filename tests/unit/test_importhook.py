"""The import hook, on throw-away modules in a temporary folder."""

import importlib
import sys

import pytest

from domain_pretrain.seams.importhook import after_import


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package ``hooked`` whose module ``inner`` defines ``answer`` as 1."""
    folder = tmp_path / "hooked"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "inner.py").write_text("answer = 1\n")
    (folder / "user.py").write_text("from hooked.inner import answer\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "hooked"
    for name in [n for n in sys.modules if n.split(".")[0] == "hooked"]:
        del sys.modules[name]


def test_fires_before_a_from_import_binds_the_name(package):
    after_import("hooked.inner", lambda module: setattr(module, "answer", 2))
    assert importlib.import_module("hooked.user").answer == 2


def test_fires_at_once_when_already_imported(package):
    inner = importlib.import_module("hooked.inner")
    seen = []
    after_import("hooked.inner", seen.append)
    assert seen == [inner]


def test_callbacks_run_in_order_and_only_once(package):
    seen = []
    after_import("hooked.inner", lambda module: seen.append("a"))
    after_import("hooked.inner", lambda module: seen.append("b"))
    module = importlib.import_module("hooked.inner")
    importlib.reload(module)
    assert seen == ["a", "b"]


def test_module_keeps_its_own_loader(package):
    after_import("hooked.inner", lambda module: None)
    module = importlib.import_module("hooked.inner")
    assert type(module.__spec__.loader).__name__ == "SourceFileLoader"


def test_error_reaches_the_import_statement(package):
    def refuse(module):
        raise RuntimeError("refused")

    after_import("hooked.inner", refuse)
    with pytest.raises(RuntimeError, match="refused"):
        importlib.import_module("hooked.inner")
