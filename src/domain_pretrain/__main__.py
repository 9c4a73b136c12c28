"""Launch a training run with the plugin.

``torchrun [torchrun flags] -m domain_pretrain [SCRIPT.py] [megatron flags] [plugin flags]``

With a script: runs the user's own, unmodified, as ``__main__``. Without: the built-in GPT entry.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from domain_pretrain import enable
from domain_pretrain.errors import ConfigError, DomainPretrainError, UnsupportedError
from domain_pretrain.flags import add_arguments
from domain_pretrain.hosts.versions import OLDEST_BUILT_IN
from domain_pretrain.process import SINGLE_PROCESS, rank, started_by_launcher


def main() -> None:
    """Enable the plugin, then run the script that the command line names, or the built-in one.

    Exits with 2 and a message where the command line or the installation is wrong.
    """
    try:
        script = script_of(sys.argv[1:])
        if script is None and {"-h", "--help"} & set(sys.argv[1:]):
            print(_help(), end="")
            return
        find_host(script)
        if not started_by_launcher():
            os.environ.update(SINGLE_PROCESS)
        enable()
        run(script)
    except DomainPretrainError as error:
        # On every rank: some checks run on one rank only, and a silent exit helps nobody.
        print(f"domain_pretrain [rank {rank()}]: {error}", file=sys.stderr)
        sys.exit(2)


def _help() -> str:
    """Ours alone: Megatron's ends in a traceback, at a bare per cent sign in one of its texts."""
    parser = argparse.ArgumentParser(
        usage="torchrun [torchrun flags] -m domain_pretrain [SCRIPT.py] [megatron flags] "
        "[plugin flags]",
        description="Train with the plugin: the script, or the built-in GPT entry without one.",
        epilog="Megatron's flags are those of its megatron/training/arguments.py.",
    )
    return add_arguments(parser).format_help()


def script_of(arguments: list[str]) -> Path | None:
    """The script that the first argument names; None where it is a flag, or there is none.

    Raises:
        ConfigError: it is neither, or there is no such script.
    """
    if not arguments or arguments[0].startswith("-"):
        return None
    given = arguments[0]
    if not given.endswith(".py"):
        raise ConfigError(f"expected a script (*.py) or a flag (--...) first, got {given!r}")
    if not Path(given).is_file():
        raise ConfigError(f"no script {given!r} in {Path.cwd()}")
    return Path(given)


def find_host(script: Path | None) -> None:
    """Let Megatron be imported as the script would; nothing is imported.

    Raises:
        ConfigError: ``MEGATRON_LM_PATH`` names no checkout.
        UnsupportedError: there is no Megatron.
    """
    _set_import_path(script)
    _require_megatron()


def run(script: Path | None) -> None:
    """Run the script as ``__main__``, with the arguments after it, or the built-in entry."""
    if script is None:
        _run_built_in()
    else:
        del sys.argv[0]
        runpy.run_path(str(script), run_name="__main__")


def _set_import_path(script: Path | None) -> None:
    """Put the script's folder where plain python would have, and the chosen checkout before it."""
    if script is not None and not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(script.resolve().parent)
    checkout = os.environ.get("MEGATRON_LM_PATH")
    if not checkout:
        return
    if not Path(checkout, "megatron", "training").is_dir():
        raise ConfigError(f"MEGATRON_LM_PATH={checkout}: no folder megatron/training in it")
    sys.path.insert(0, str(Path(checkout).resolve()))


def _require_megatron() -> None:
    # Looks up the folder only: nothing of Megatron may be imported before enable().
    if find_spec("megatron") and find_spec("megatron.training"):
        return
    python = ".".join(map(str, sys.version_info[:3]))
    raise UnsupportedError(
        "cannot find megatron.training. Install it with\n"
        f"  pip install 'domain-pretrain[megatron]'   (Python >= 3.12; this is {python})\n"
        "or name a Megatron-LM checkout: MEGATRON_LM_PATH=/path/to/Megatron-LM"
    )


def _run_built_in() -> None:
    version = import_module("megatron.core.package_info").VERSION
    if tuple(version[:2]) < OLDEST_BUILT_IN:
        raise UnsupportedError(
            f"the built-in GPT entry needs megatron-core >= 0.17, found {version[0]}.{version[1]}; "
            "give the checkout's own script first: -m domain_pretrain path/to/pretrain_gpt.py ..."
        )
    from domain_pretrain.hosts.gpt import entry as gpt

    gpt.main()


if __name__ == "__main__":
    main()
