"""The commands' front door: quick where nothing heavy is needed, and complete."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from domain_pretrain.commands import main as front

# Runs one command line, then says which of the heavy packages it has imported.
SCRIPT = """
import sys
from domain_pretrain.commands.main import main
try:
    code = main()
except SystemExit as error:
    code = error.code or 0
heavy = "megatron torch transformers tokenizers sentencepiece pyarrow numpy rich"
print("imported", *(name for name in heavy.split() if name in sys.modules))
sys.exit(code)
"""


def run(*words: str, cwd: Path) -> tuple[int, str, set[str]]:
    """Exit code, output and the heavy packages that were imported."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], cwd=cwd, capture_output=True, text=True
    )
    *output, imported = done.stdout.splitlines()
    assert imported.startswith("imported"), done.stderr
    return done.returncode, "\n".join(output) + done.stderr, set(imported.split()[1:])


def test_help_and_version_import_nothing_heavy(tmp_path: Path) -> None:
    for words in (["-h"], ["-h", "prepare"], ["--version"], []):
        code, output, imported = run(*words, cwd=tmp_path)
        assert code == (0 if words else 2)
        assert not imported
        if "-h" in words:
            told = " ".join(output.split())  # however wide the terminal is
            assert all(text in told for text in front.COMMANDS.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-h"], "usage: domain-pretrain prepare"),
        (["a.txt", "--tokenizer", "bytes"], "required: --output"),
        (["none.txt", "--output", "new", "--tokenizer", "bytes"], "none.txt: no such file"),
        (["a.txt", "--output", "old", "--tokenizer", "bytes"], "old.idx: exists already"),
        (["a.txt", "--output", "old", "--tokenizer", "broken"], "old.idx: exists already"),
        (["a.txt", "--output", "new", "--tokenizer", "gpt2"], "only local files"),
        (["a.txt", "--output", "new", "--tokenizer", "bytes", "--max-bad", "1"], "such as 1%"),
        (["a.txt", "--output", "new", "--tokenizer", "bytes", "--encoding", "x"], "--encoding 'x'"),
        (["a.txt", "--output", "new", "--tokenizer", "bytes", "--workers", "0"], "--workers 0"),
        (["a.doc", "--output", "new", "--tokenizer", "bytes"], "unknown kind of file"),
        (["a.txt", "--output", "new", "--tokenizer", "bytes", "--template", "{"], "--template '{'"),
        (["a.txt", "--output", "new", "--tokenizer", "bytes", "--holdout", "2x"], "such as 500"),
        (["a.txt", "--output", "new", "--tokenizer", "bytes", "--by", "x"], "has no fields"),
        (["a.txt", "--output", "full", "--tokenizer", "bytes", "--by", "x"], "full: exists"),
    ],
)
def test_prepare_imports_megatron_for_nothing_that_it_refuses(
    tmp_path: Path, words: list[str], message: str
) -> None:
    for name in ("a.txt", "a.doc", "old.idx"):
        (tmp_path / name).write_text("x", "utf-8")
    (tmp_path / "full" / "of").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}", "utf-8")
    code, output, imported = run("prepare", *words, cwd=tmp_path)
    assert code == (0 if words == ["-h"] else 2)
    assert message in output and "Traceback" not in output
    assert not imported & {
        "megatron",
        "torch",
        "transformers",
        "tokenizers",
        "sentencepiece",
        "pyarrow",
    }
    assert not list(tmp_path.glob("new*"))


def test_every_command_is_in_the_list() -> None:
    folder = Path(front.__file__).parent
    found = {
        path.stem
        for path in folder.glob("*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "add_parser"
    }
    assert found == set(front.COMMANDS)


@pytest.mark.parametrize("name", front.COMMANDS)
def test_every_command_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        front.main([name, "-h"])
    assert f"usage: domain-pretrain {name}" in capsys.readouterr().out
