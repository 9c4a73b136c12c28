"""One process of a run that scripts/pretrain_*.sh started.

``torchrun … -m domain_pretrain.launch [SCRIPT.py] <flags>`` is ``-m domain_pretrain`` that first
finds out, at every start and restart, from which checkpoint it can resume.
"""

from __future__ import annotations

import sys

from domain_pretrain.__main__ import main as train
from domain_pretrain.data.vocabulary import vocabulary
from domain_pretrain.errors import ConfigError
from domain_pretrain.launch.base_model import find_import
from domain_pretrain.launch.checkpoints import repair_tracker
from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.size import checkpoint_bytes, human
from domain_pretrain.paths import free_bytes, is_remote
from domain_pretrain.process import rank


def main() -> None:
    """Rank 0 makes the tracker right, then every rank trains.

    No other rank can read the tracker too early: Megatron reads it after the process group has
    formed, for which rank 0 is needed. (With ``--use-checkpoint-args`` it reads before; a start
    that fails because of that is repeated, and then the tracker is right.)
    """
    try:
        flags = Flags.parse(sys.argv[1:])
        if (base := find_import(sys.argv[1:], flags)) is not None:
            sys.argv[1:] = base.in_place(sys.argv[1:])
        if rank() == 0:
            _prepare_resume(flags)
    except ConfigError as error:
        print(f"domain_pretrain: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        train()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:  # PyTorch's CheckpointException is not an Exception
        _tell_of_a_full_disk(flags)
        raise


def _tell_of_a_full_disk(flags: Flags) -> None:
    """PyTorch's checkpoint writer says "unexpected pos 704 vs 598" where the disk is full."""
    size = checkpoint_bytes(flags, vocabulary(flags))
    if flags.save is None or size is None or is_remote(flags.save):
        return
    free = free_bytes(flags.save)
    if free < 2 * size:  # an estimate, and what was written of the broken one counts as used
        print(
            f"domain_pretrain: {flags.save} has {human(free)} free, and a checkpoint takes about "
            f"{human(size)}: if one could not be saved, make room and start again; the run resumes "
            "from the newest good one",
            file=sys.stderr,
            flush=True,
        )


def _prepare_resume(flags: Flags) -> None:
    if flags.load is None or flags.ckpt_step is not None or is_remote(flags.load):
        return
    resume = repair_tracker(flags.load)
    for problem in resume.broken:
        print(f"domain_pretrain: {problem}", flush=True)
    if resume.iteration is not None:
        print(f"domain_pretrain: resuming from iteration {resume.iteration}", flush=True)


if __name__ == "__main__":
    main()
