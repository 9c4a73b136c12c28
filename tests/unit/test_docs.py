"""The pages name what exists: files, headings, commands, flags; the hosts page is up to date."""

from __future__ import annotations

import argparse
import re
import shlex
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO

import pytest
from support import features
from support.flags import FLAG, parser_of
from support.pages import FENCE, PAGES, ROOT, commands, prose, text

from domain_pretrain.commands import main as cli
from domain_pretrain.flags import add_arguments
from domain_pretrain.hosts import page
from domain_pretrain.hosts.support import EVERY_REFUSAL

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
# A path with a folder, as it would be typed; <name>, *, $ and … stand for something else.
FILE = re.compile(r"(?:[\w.-]+/)+[\w.-]+\.(?:py|md|sh|cu|cuh|h|toml|png)")


def anchors(name: str) -> set[str]:
    """The fragments of a page's headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text(name)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_pages() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/concepts.md"} <= set(PAGES)


def test_the_hosts_page_is_what_the_tables_say() -> None:
    assert text("docs/hosts.md") == page.render(), (
        "run: python -m domain_pretrain.hosts.page > docs/hosts.md"
    )


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for link in LINK.findall(prose(name)):
        if re.match(r"https?:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (ROOT / name).parent.joinpath(path) if path else ROOT / name
        leads = target.exists()
        if leads and fragment:
            leads = fragment in anchors(str(target.resolve().relative_to(ROOT)))
        if not leads:
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("name", PAGES)
def test_files_exist(name: str) -> None:
    """As seen from the repository, the package, or the page."""
    places = [ROOT, ROOT / "src" / "domain_pretrain", (ROOT / name).parent]
    named = [code for code in CODE.findall(prose(name)) if FILE.fullmatch(code)]
    assert not [path for path in named if not any((place / path).exists() for place in places)]


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in LINK.findall(prose("README.md"))}
    assert {name for name in PAGES if name != "README.md"} <= linked


@cache
def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", text("Makefile"), re.MULTILINE))


@cache
def help_of(command: str) -> str:
    """What ``domain-pretrain COMMAND --help`` prints."""
    with redirect_stdout(StringIO()) as printed, pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    return printed.getvalue()


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_exist(name: str) -> None:
    shown = [command for command in commands(name) if "make " in command]
    shown += re.findall(r"`(make [^`]+)`", prose(name))
    targets = [re.search(r"\bmake ([\w-]+)", command)[1] for command in shown]  # type: ignore[index]
    assert set(targets) <= makefile_targets()


def subcommands() -> list[tuple[str, str, frozenset[str]]]:
    """(page, command, its flags) of each ``domain-pretrain COMMAND …`` on the pages."""
    found = []
    for name in PAGES:
        shown = [*commands(name), *CODE.findall(prose(name))]
        for line in shown:
            if match := re.match(r"domain-pretrain ([a-z]+)\b(.*)", line):
                own = match[2].partition(" -- ")[0]  # behind it are Megatron's
                found.append((name, match[1], frozenset(FLAG.findall(own))))
    return found


@pytest.mark.parametrize(("name", "command", "flags"), sorted(set(subcommands()), key=str))
def test_commands_take_the_flags_shown(name: str, command: str, flags: frozenset[str]) -> None:
    assert flags <= set(FLAG.findall(help_of(command)))


@cache
def plugin_flags() -> set[str]:
    parser = add_arguments(argparse.ArgumentParser(add_help=False))
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("name", PAGES)
def test_the_plugins_flags_exist(name: str) -> None:
    """Spelled like ours: the others are Megatron's, and differ from version to version."""
    ours = re.compile(r"--(domain-|(channel-loss|cp-attention|allow)\b)")  # trace has --domain
    mentioned = {flag for flag in FLAG.findall(text(name)) if ours.match(flag)}
    assert mentioned <= plugin_flags()


@pytest.mark.megatron
def test_launch_commands_take_the_flags_shown() -> None:
    """Megatron's own flags among them, by the parser of the Megatron that is installed."""
    if not (find_spec("megatron") and find_spec("megatron.training")):
        pytest.skip("megatron-core is not installed")
    _, known = parser_of()
    launches = [line for name in PAGES for line in commands(name) if "-m domain_pretrain " in line]
    assert launches
    for line in launches:
        words = shlex.split(line.split("-m domain_pretrain ", 1)[1])
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_status_page_holds_the_table_of_features() -> None:
    assert features.table() in text("docs/status.md"), "run: python tests/support/features.py"


@pytest.mark.parametrize("feature", features.FEATURES, ids=lambda feature: feature.name)
def test_features_are_proven_by_what_is_there(feature: features.Feature) -> None:
    if "::" in feature.proof or feature.state == "right, ran":
        file, test = feature.proof.split("::")
        assert f"\ndef {test}(" in text(f"tests/{file}")
    elif feature.state == "refused":
        assert any(feature.proof in refusal.flags for refusal in EVERY_REFUSAL)
    else:
        assert feature.note, "what is not proven says why"
