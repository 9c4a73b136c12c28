"""What ``--use-checkpoint-args`` makes of flags that were typed.

Megatron takes a list of arguments from the checkpoint that it loads, and some of them whatever the
command line says: the rotary base, the rate of dropout, how many experts a token goes to. A run
that was told ``--rotary-base 1000000`` then trains with the old one, and nothing says that this is
not what was asked for. Which arguments those are differs from version to version, so the command
line is read once more, and held against what has become of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from domain_pretrain.errors import ConfigError
from domain_pretrain.flags import names_of
from domain_pretrain.process import notice

# How the same thing is computed, and nothing of what is.
_HARMLESS = ("moe_token_dispatcher_type",)
_HINTS = {
    "tokenizer_model": " (--no-use-tokenizer-model-from-checkpoint-args lets it be)",
    "tokenizer_type": " (--no-use-tokenizer-model-from-checkpoint-args lets it be since 0.16)",
}


def check_typed(args: Any, parser: argparse.ArgumentParser | None) -> None:
    """Compare the host's args, before it validates them, with the command line.

    Args:
        args: as the checkpoint has left them.
        parser: that has read the command line; None: the plugin has not seen it.

    Raises:
        ConfigError: names each flag that was typed in vain, and what has become of it.
    """
    if parser is None or not getattr(args, "use_checkpoint_args", False):
        return
    wrong = []
    for option, name, typed in _typed(parser):
        found = getattr(args, name, typed)
        if _plain(found) == _plain(typed):
            continue
        told = f"{option}: {typed} has become {found}{_HINTS.get(name, '')}"
        if name in _HARMLESS:
            notice(f"WARNING: --use-checkpoint-args: {told}")
        else:
            wrong.append(told)
    if wrong:
        raise ConfigError(
            "--use-checkpoint-args takes some arguments from the checkpoint whatever the command "
            f"line says: {'; '.join(wrong)}. Leave --use-checkpoint-args out and give all flags of "
            "the model (as the run before had them, or those of an import's model.env), or leave "
            "out those that are in vain"
        )


def _typed(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, Any]]:
    """Option, name and value of each flag that is on the command line."""
    words = names_of(sys.argv[1:])
    said = parser.parse_known_args()[0]
    for option, action in parser._option_string_actions.items():
        if option in words and hasattr(said, action.dest):
            yield option, action.dest, getattr(said, action.dest)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
