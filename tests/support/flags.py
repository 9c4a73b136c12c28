"""The flags that the plugin's own texts name, beside those that a version of Megatron has."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

import domain_pretrain
from domain_pretrain.adapt.recipes import RECIPES
from domain_pretrain.flags import add_arguments

PACKAGE = Path(domain_pretrain.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][a-zA-Z0-9-]*")

# Whose texts are about command lines that are not Megatron's, as a test of theirs checks.
_OTHERS = ("commands", "demo", "kernels", "prepare", "hosts/mindspeed_support.py")
_OTHERS += ("report/page",)  # style sheets have names like that
_OF_TORCHRUN = {"--max-restarts", "--log-dir"}
_OF_COMMANDS = {
    "--no-deps",  # of pip
    *("--by", "--channel-key", "--document", "--domain", "--host", "--output", "--prefix"),
    *("--holdout", "--text-key"),  # of `prepare`
    *("--iteration", "--json", "--text", "--worst"),  # of `trace`
    *("--address", "--node-rank", "--patience"),  # of the import at a launch
}

# Flags of single scripts, by the file of a checkout that adds them; no wheel holds it.
OF_SCRIPTS = {
    "--export-kd-teacher-load": "megatron/post_training/arguments.py",
    "--flextron": "megatron/elastification/arguments.py",
    "--freeze-LM": "pretrain_vlm.py",
}

# The versions that have a flag; all have those that are not listed. Read from the parsers of
# 0.12.3, 0.13.1, 0.14.0, 0.15.3, 0.16.1, 0.17.1, 0.18.2, 0.19.1 and 0.20.0.
VERSIONS_WITH: Mapping[str, SpecifierSet] = {
    flag: SpecifierSet(versions, prereleases=True)
    for flag, versions in {
        "--moe-apply-probs-on-input": ">=0.13",
        "--no-rope-freq": ">=0.13",
        "--qk-l2-norm": ">=0.13",
        "--sft": ">=0.13",
        "--inprocess-restart": ">=0.13",
        "--full-validation": ">=0.14",
        "--multiple-validation-sets": ">=0.14",
        "--save-retain-interval": ">=0.14",
        "--perform-rl-step": ">=0.15",
        "--activation-func-clamp-value": ">=0.15",
        "--glu-linear-offset": ">=0.15",
        "--softmax-type": ">=0.15",
        "--window-attn-skip-freq": ">=0.15",
        "--window-size": ">=0.15",
        "--attention-output-gate": ">=0.16",
        "--hybrid-context-parallel": ">=0.16",
        "--dataloader-defer-npy-index-mmap": ">=0.16",
        "--dataloader-fast-cache-load": ">=0.16",
        "--phase-transition-iterations": ">=0.16",
        "--tokenizer-special-tokens": ">=0.16",
        "--use-mup": ">=0.17",
        "--enable-msc": ">=0.18",
        "--step-batch-size-schedule": ">=0.18",
        "--validation-set-names": ">=0.18",
        "--dataloader-inter-document-masking": ">=0.19",
        "--freeze-all-layers": ">=0.19",
        "--logits-load-dir": ">=0.19",
        "--tensor-parallel-num-weight-shards": ">=0.19",
        **{flag.name: flag.versions for recipe in RECIPES for flag in recipe.flags},
    }.items()
}


@cache
def named() -> frozenset[str]:
    """Flags of Megatron's parser in the texts of the package: every string but the docstrings."""
    ours = add_arguments(argparse.ArgumentParser(add_help=False))._option_string_actions
    flags: set[str] = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.relative_to(PACKAGE).as_posix().startswith(_OTHERS):
            for text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
                flags.update(FLAG.findall(text))
    return frozenset(flags - ours.keys() - _OF_TORCHRUN - _OF_COMMANDS - OF_SCRIPTS.keys())


def _texts(tree: ast.Module) -> Iterator[str]:
    # A string that is a statement is a docstring.
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in silent:
            yield str(node.value)


# Not by --help: the help of some versions of Megatron ends in an error of its own.
_PRINT_FLAGS = """
import argparse, domain_pretrain
domain_pretrain.enable("cpu")
from megatron.core import __version__
from megatron.training.arguments import add_megatron_arguments
actions = add_megatron_arguments(argparse.ArgumentParser())._option_string_actions
print(__version__, *(f"{flag}={action.dest}" for flag, action in actions.items()))
"""


def parser_of(env: Mapping[str, str] | None = None) -> tuple[Version, frozenset[str]]:
    """Version and flags of the Megatron that Python finds; the plugin's flags are among them."""
    version, arguments = arguments_of(env)
    return version, frozenset(arguments)


def arguments_of(env: Mapping[str, str] | None = None) -> tuple[Version, dict[str, str]]:
    """The same, each flag with the name of its argument."""
    done = subprocess.run(
        [sys.executable, "-c", _PRINT_FLAGS],
        env=None if env is None else dict(env),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    version, *flags = done.stdout.splitlines()[-1].split()
    return Version(version), dict(flag.split("=") for flag in flags)


def assert_exist(version: Version, flags: frozenset[str]) -> None:
    """Each flag that is named can be typed with this version, or with another that is known."""
    wrong = {
        flag: flag in flags
        for flag in named()
        if (flag in flags) != (version in VERSIONS_WITH.get(flag, SpecifierSet(prereleases=True)))
    }
    assert not wrong, f"whether megatron.core {version} has them: {wrong}"
