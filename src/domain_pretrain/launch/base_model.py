"""A Hugging Face model in the place of a base checkpoint: imported once, before any process starts.

``python -m domain_pretrain.launch.base_model … -- <training flags>`` is what the launch scripts run
between the preflight and torchrun: the first node imports, beside the run's checkpoints, and the
others wait. The processes then read what was made.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from domain_pretrain.checkpoints.tracker import read_tracker
from domain_pretrain.errors import ConfigError
from domain_pretrain.launch.flags import Flags
from domain_pretrain.paths import is_remote
from domain_pretrain.whole_folder import unfinished

FLAG = "--pretrained-checkpoint"


@dataclass(frozen=True)
class Import:
    """What is to be made of a Hugging Face model.

    Attributes:
        source: its folder.
        out: the checkpoint, ``base`` beside the run's own.
        needed: whether the run starts from it, and not from a checkpoint of its own.
    """

    source: Path
    out: Path
    needed: bool

    def in_place(self, words: Sequence[str], folder: Path | None = None) -> list[str]:
        """The command with the import, or another folder, where the Hugging Face model was."""
        return [*words, FLAG, str(folder or self.out)]  # the last one counts

    def done(self) -> bool:
        """Whether it is there.

        Raises:
            ConfigError: another model is.
        """
        from domain_pretrain.huggingface.base import is_imported
        from domain_pretrain.huggingface.importing import import_model

        return is_imported(self.out) and not import_model(self.source, self.out)

    @contextmanager
    def outline(self) -> Iterator[Path]:
        """A folder that stands for the import: all of it but the tensors.

        Raises:
            ConfigError: the model cannot be imported.
        """
        from domain_pretrain.huggingface.importing import write_outline

        with tempfile.TemporaryDirectory(prefix="domain-pretrain-") as folder:
            write_outline(self.source, Path(folder))
            yield Path(folder)

    def bytes(self) -> int:
        """Of the model's weights.

        Raises:
            ConfigError: a file of them is missing.
        """
        from domain_pretrain.huggingface.safetensors_file import weight_files

        return sum(path.stat().st_size for path in weight_files(self.source))


def find_import(words: Sequence[str], flags: Flags) -> Import | None:
    """Where ``--pretrained-checkpoint`` names a Hugging Face model.

    Not for MindSpeed-LLM, which has a format and a tool of its own: the run says so.

    Args:
        words: of the command: a script perhaps, and the flags.
        flags: of them.

    Raises:
        ConfigError: it does, and no ``--save`` tells where the import is to be.
    """
    source = flags.pretrained_checkpoint
    # Of what is none, nothing is imported to find that out.
    if source is None or is_remote(source) or not (source / "config.json").is_file():
        return None
    if words[0].endswith(".py") and (Path(words[0]).parent / "mindspeed_llm").is_dir():
        return None
    from domain_pretrain.huggingface.base import is_huggingface

    if not is_huggingface(source):
        return None
    if flags.save is None or is_remote(flags.save):
        raise ConfigError(
            f"{FLAG} {source} is a Hugging Face model, which is imported into a folder beside that "
            f"of --save; give --save a folder, or import it yourself: domain-pretrain import "
            f"{source} OUT"
        )
    resumes = flags.load is not None and not is_remote(flags.load) and read_tracker(flags.load)
    return Import(source, flags.save.parent / "base", needed=not resumes)


def wait_for(model: Import, patience_s: float, nap: Callable[[], None]) -> None:
    """Until another node has imported it.

    Args:
        model: which.
        patience_s: for a sign of life: the import has begun, or has grown.
        nap: between two looks.

    Raises:
        ConfigError: there was none.
    """
    size, until = -1, time.monotonic() + patience_s
    while not model.done():
        if (now := _written(model)) != size:
            size, until = now, time.monotonic() + patience_s
        elif time.monotonic() > until:
            raise ConfigError(
                f"the first node has not imported {model.source} into {model.out} within "
                f"{patience_s:g} s (JOIN_TIMEOUT): what does it say? Do all nodes share the folder?"
            )
        nap()


def _written(model: Import) -> int:
    part, size = unfinished(model.out), 0
    for path in part.rglob("*"):
        try:
            size += path.stat().st_size
        except FileNotFoundError:  # it is being renamed
            return -2
    return size


def _is_first(node_rank: str, address: str) -> bool:
    """Whether this node is the one that the others meet at, as torchrun finds out."""
    if node_rank:
        return int(node_rank) == 0
    from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname

    return bool(_matches_machine_hostname(address))


def main(argv: Sequence[str]) -> int:
    """Import, or wait for it; 2 where that cannot be."""
    parser = argparse.ArgumentParser(prog="launch.base_model")
    parser.add_argument("--node-rank", default="", help="of this node; empty: by the address")
    parser.add_argument("--address", default="", help="of the first node")
    parser.add_argument(
        "--patience", type=float, default=600, help="seconds without a sign of life"
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- WORDS")
    args = parser.parse_args(argv)
    try:
        words = args.words[1:]
        model = find_import(words, Flags.parse(words))
        if model is None or not model.needed:
            return 0
        if _is_first(args.node_rank, args.address):
            from domain_pretrain.huggingface.importing import import_model

            if import_model(model.source, model.out):
                print(f"launch: imported {model.source} into {model.out}", flush=True)
        else:
            wait_for(model, args.patience, lambda: time.sleep(2))
    except (ConfigError, OSError) as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
