"""Which models a user means: folders of checkpoints, single ones, runs, Hugging Face models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domain_pretrain.checkpoints.arguments import read_saved
from domain_pretrain.checkpoints.ranks import rank_files
from domain_pretrain.checkpoints.tracker import RELEASE, TRACKER, checkpoints_of, read_tracker
from domain_pretrain.checkpoints.whole import check_whole
from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.base import BESIDE, is_huggingface, is_imported
from domain_pretrain.huggingface.found import find_checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A model to be evaluated.

    Attributes:
        label: what to call it in a table.
        folder: of its iteration.
        args: that its run saved, by name.
        tokenizer: folder of its tokenizer, where its import left one.
    """

    label: str
    folder: Path
    args: dict[str, Any]
    tokenizer: Path | None = None

    @property
    def step(self) -> int | None:
        """Its iteration; None of a converted model, which has none."""
        return None if self.folder.name == RELEASE else int(self.folder.name.removeprefix("iter_"))

    @property
    def own_layout(self) -> bool:
        """Whether only the layout that saved it can load it: a file for each rank, format torch."""
        return bool(rank_files(self.folder))


def find_models(
    places: Sequence[Path], imported: Callable[[Path], Path], *, every: bool
) -> list[Checkpoint]:
    """All of them, in order; of each, that it is there and whole.

    Args:
        places: each the folder that ``--save`` named, one of an iteration, a run's, or a Hugging
            Face model.
        imported: makes a checkpoint of the last kind; returns its folder.
        every: of a folder with several checkpoints, all; not the one that its tracker names.

    Raises:
        ConfigError: names the place, and what is wrong with it.
    """
    labels = _labels(places)
    found = []
    for label, place in zip(labels, places, strict=True):
        named = imported(place) if is_huggingface(place) else place
        chosen = find_checkpoint(named).folder
        folders = [chosen]
        if every and named.resolve() != chosen.resolve() and chosen.name != RELEASE:
            folders = [folder for _, folder in sorted(checkpoints_of(chosen.parent).items())]
        for folder in folders:
            _check(folder)
            tokenizer = folder.parent / BESIDE if is_imported(folder.parent) else None
            one = Checkpoint(label, folder, read_saved(folder).args, tokenizer)
            found.append(one if one.step is None else replace(one, label=f"{label} @ {one.step:,}"))
    return found


def _check(folder: Path) -> None:
    """That Megatron finds it from the folder above, and all of it is there."""
    if folder.name == RELEASE and read_tracker(folder.parent) != RELEASE:
        raise ConfigError(
            f"{folder}: Megatron finds a converted model only where {folder.parent / TRACKER} says "
            f"{RELEASE!r}"
        )
    if folder.name != RELEASE and folder not in checkpoints_of(folder.parent).values():
        raise ConfigError(
            f"{folder} is called neither iter_ and seven digits nor {RELEASE}: Megatron loads no "
            "other checkpoint"
        )
    check_whole(folder)


def _labels(places: Sequence[Path]) -> list[str]:
    """As short as tells them apart: without the folders that all of their runs are in.

    Raises:
        ConfigError: one is given twice.
    """
    paths = [os.path.abspath(place) for place in places]
    for at, path in enumerate(paths):
        if path in paths[:at]:
            raise ConfigError(f"{places[at]} is given twice: leave one out")
    runs = [_run_of(path) for path in paths]
    shared = os.path.commonpath([os.path.dirname(run) for run in runs])
    return [os.path.relpath(run, shared) for run in runs]


def _run_of(path: str) -> str:
    """The folder that a person names a model by."""
    above, name = os.path.split(path)
    if name.startswith("iter_") or name == RELEASE:
        above, name = os.path.split(above)
    return above if name == "checkpoints" else os.path.join(above, name)


def known(models: Sequence[Checkpoint], name: str) -> Iterator[Any]:
    """What the models' arguments have of a name, as far as they have it."""
    yield from (one.args[name] for one in models if one.args.get(name) is not None)
