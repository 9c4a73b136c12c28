"""What the command line says, read before the host parses it or where the host drops it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from domain_pretrain.config import DomainConfig
from domain_pretrain.data.blend import (
    Blend,
    blend_of_words,
    check_data_path,
    data_path_arguments,
)
from domain_pretrain.errors import ConfigError, shorten
from domain_pretrain.flags import PluginArgs, add_arguments, names_of, plugin_args
from domain_pretrain.json_file import parse_json
from domain_pretrain.paths import is_remote
from domain_pretrain.stats import SPLITS

DATA_FLAGS = (
    "--data-path",
    "--data-args-path",
    "--train-data-path",
    "--valid-data-path",
    "--test-data-path",
    "--per-split-data-args-path",
    "--mock-data",
)


def flags_of_command_line() -> PluginArgs:
    """The plugin's flags straight from ``sys.argv``.

    Needed before the host parses (which backend, which data) and where it drops them
    (``--yaml-cfg`` replaces the namespace).
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    return plugin_args(add_arguments(parser).parse_known_args()[0])


def data_from_config() -> list[str] | None:
    """The ``--data-path`` that the config gives where the command line names no data."""
    path = flags_of_command_line().domain_config
    if path is None or names_of(sys.argv[1:]) & set(DATA_FLAGS):
        return None
    domains = DomainConfig.load(path).domains
    return data_path_arguments(domains)[1:] if domains else None


def read_data_flags(args: Any) -> tuple[Blend, list[Blend] | None]:
    """Check the words of every data flag, and of the files that some of them name.

    Args:
        args: Megatron's, or an object with its data flags.

    Returns:
        One blend for all splits, or one for each; as Megatron's ``get_blend_and_blend_per_split``.

    Raises:
        ConfigError: names the flag and the word; Megatron would stop at a bare assert, or continue.
    """
    own = [f"{split}_data_path" for split in SPLITS]
    blend = _blend("--data-path", getattr(args, "data_path", None))
    per_split = [_blend(_flag(name), getattr(args, name, None)) for name in own]
    path = getattr(args, "data_args_path", None)
    if path:
        blend = _blend("--data-args-path", _read("--data-args-path", path).split())
    path = getattr(args, "per_split_data_args_path", None)
    if path:
        flag = "--per-split-data-args-path"
        words = _words_of_splits(flag, path)
        per_split = [_blend(f"{flag}, {split}", words[split]) for split in SPLITS]
    return blend, per_split if any(per_split) else None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _blend(flag: str, words: Sequence[str] | None) -> Blend:
    if words is None:
        return None
    check_data_path(words, flag)
    return blend_of_words(words)


def _words_of_splits(flag: str, path: str) -> dict[str, list[str] | None]:
    found = parse_json(_read(flag, path), f"{flag} {path}")
    if not isinstance(found, dict) or not found.keys() >= set(SPLITS):
        raise ConfigError(
            f"{flag} {path} must hold an object with the keys {', '.join(SPLITS)}; a split "
            "without data is null"
        )
    return {split: _words(found[split], f"{flag} {path}: {split}") for split in SPLITS}


def _words(value: Any, name: str) -> list[str] | None:
    """Of one split; a weight may also be a number of JSON's."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.split()
    if isinstance(value, list) and all(
        isinstance(word, (str, int, float)) and not isinstance(word, bool) for word in value
    ):
        return [str(word) for word in value]
    raise ConfigError(
        f"{name} must be null, a text, or a list of texts, as in "
        f'["0.3", "data/a", "0.7", "data/b"]; it is {shorten(repr(value), 80)}'
    )


def _read(flag: str, path: str) -> str:
    client = _multi_storage_client()
    try:
        with open(path, encoding="utf-8") if client is None else client.open(path, "r") as file:
            return str(file.read())
    except Exception as error:  # the client's own kinds among them
        hint = _NO_CLIENT if client is None and is_remote(path) else ""
        raise ConfigError(f"{flag} {path} cannot be read: {error}{hint}") from None


_NO_CLIENT = (
    "; Megatron reads an object store with the package multi-storage-client and, since 0.18, "
    "--enable-msc"
)


def _multi_storage_client() -> Any:
    """What the host opens every file with, in place of Python, where it is installed and on."""
    if "megatron.core" not in sys.modules and find_spec("multistorageclient") is None:
        return None  # a preflight: importing Megatron takes seconds
    try:
        from megatron.core.msc_utils import MultiStorageClientFeature
    except ImportError:  # before 0.14
        return None
    enabled = MultiStorageClientFeature.is_enabled()
    return MultiStorageClientFeature.import_package() if enabled else None
