"""Where the datasets of a run lie: at one prefix, or in a folder, one prefix per value."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.prepare.encode import Target
from domain_pretrain.prepare.encodings import UTF_8
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.manifest import Dataset, Manifest
from domain_pretrain.prepare.output import SUFFIXES
from domain_pretrain.yaml_file import as_yaml

HELD_OUT = "holdout"
_HELD_OUT_FILES = tuple(f"{HELD_OUT}.{suffix}" for suffix in SUFFIXES)
_INDEX_CACHES = "cache/GPT*Dataset*_indices"
"""Below a prefix: Megatron's shuffled indices, keyed by prefix, not by content; a folder for each
kind of data set, and for each choice of documents that a run before had read (hosts/stream.py)."""


class Layout(Protocol):
    """Places of what a run writes, while it is staged and at the end; see ``publish``."""

    @property
    def stage(self) -> Path:
        """Folder of the run while it lasts."""

    @property
    def final(self) -> dict[str, Path]:
        """Final places, by the names in the stage."""

    def check(self) -> Sequence[str]:
        """Those names that the run replaces.

        Raises:
            PrepareError: they are there, and may not be replaced; or they have no name.
        """

    def staged(self, target: Target) -> str:
        """Path of a dataset's staged files up to their suffixes."""

    def prefix(self, target: Target) -> str:
        """A dataset's prefix as Megatron will take it."""

    def finish(self, manifest: Manifest) -> None:
        """Stage what belongs to the run as a whole."""

    def forget(self, names: Sequence[str]) -> None:
        """Remove what others have derived from the old data at ``names``."""


class OnePrefix:
    """``PREFIX.bin``, ``.idx``, ``.manifest.json``, and the same of ``PREFIX.holdout``.

    Args:
        prefix: path of the files without their suffixes.
        force: replace what is there.
        holdout: whether the run holds documents out.
    """

    def __init__(self, prefix: Path, *, force: bool, holdout: bool) -> None:
        self._prefix = prefix
        self._force = force
        self._holdout = holdout
        self.stage = Path(f"{prefix}.tmp")
        names = ("bin", *_HELD_OUT_FILES, *SUFFIXES[1:])
        self.final = {name: Path(f"{prefix}.{name}") for name in names}

    def check(self) -> Sequence[str]:
        """All of the corpus; somebody's own dataset of the name ``PREFIX.holdout`` is not of it."""
        if self._prefix.name in ("", ".."):
            raise PrepareError(
                f"{self._prefix}: names a folder, and no files in it; give them a name, as in "
                f"{self._prefix / 'corpus'}"
            )
        holdout = self._holdout or self._held_out_before()
        names = [name for name in self.final if holdout or name not in _HELD_OUT_FILES]
        existing = [str(self.final[name]) for name in names if self.final[name].exists()]
        if existing and not self._force:
            raise PrepareError(
                f"{', '.join(existing)}: exists already; choose another prefix, or --force"
            )
        return names

    def _held_out_before(self) -> bool:
        try:
            return any(d.held_out for d in Manifest.load(self._prefix).datasets)
        except DomainPretrainError:
            return False  # none there

    def staged(self, target: Target) -> str:
        """``STAGE/``, or ``STAGE/holdout.``."""
        return f"{self.stage}/{HELD_OUT}." if target.held_out else f"{self.stage}/"

    def prefix(self, target: Target) -> str:
        """``PREFIX`` or ``PREFIX.holdout``."""
        return f"{self._prefix}.{HELD_OUT}" if target.held_out else str(self._prefix)

    def finish(self, manifest: Manifest) -> None:
        """The run's manifest is that of what there is to train on."""
        (self.stage / "manifest.json").write_text(manifest.to_json(), UTF_8)

    def forget(self, names: Sequence[str]) -> None:
        """Megatron's caches."""
        for held_out in {name in _HELD_OUT_FILES for name in names}:
            prefix = self.prefix(Target(held_out=held_out))
            for cache in _caches(prefix):
                shutil.rmtree(cache, ignore_errors=True)


class Folder:
    """``FOLDER/VALUE.bin`` and so on; the run's manifest, its config and its splits beside them.

    The folder appears, and is replaced, as a whole.

    Args:
        folder: its path.
        force: replace a folder of an earlier run.
    """

    _NAME = "folder"
    MANIFEST, CONFIG, SPLITS = "manifest.json", "domains.yaml", "splits.json"

    def __init__(self, folder: Path, *, force: bool) -> None:
        self._folder = folder
        self._force = force
        self.stage = Path(f"{folder}.by.tmp")
        self.final = {self._NAME: folder}

    def check(self) -> Sequence[str]:
        """The folder; not one with files that no earlier run has written."""
        folder = self._folder
        if folder.name in ("", "..") or folder.is_symlink() or os.path.ismount(folder):
            raise PrepareError(
                f"{folder}: with --by this folder appears as a whole, which a link, a mount or the "
                "current folder cannot; give the name of a new folder"
            )
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return [self._NAME]
        if not self._force:
            raise PrepareError(
                f"{folder}: exists already; with --by it becomes a folder of datasets; choose "
                "another name, or --force to replace what an earlier --by has written"
            )
        strange = self._strange()
        if strange:
            raise PrepareError(
                f"{folder}: is not replaced, since no earlier --by has written "
                f"{', '.join(strange[:3])}{' and more' if len(strange) > 3 else ''}; choose "
                "another folder"
            )
        return [self._NAME]

    def _strange(self) -> list[str]:
        folder = self._folder
        if not folder.is_dir():
            return [str(folder)]
        known = {folder / name for name in (self.MANIFEST, self.CONFIG, self.SPLITS)}
        caches: list[Path] = []
        try:
            datasets = Manifest.read(folder / self.MANIFEST).datasets
        except DomainPretrainError:
            datasets, known = [], set()
        for dataset in datasets:
            stem = self._stem(folder, _target(dataset))
            known |= {Path(stem + suffix) for suffix in SUFFIXES}
            caches += _caches(stem[:-1])
        files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
        return sorted(
            str(path)
            for path in files
            if path not in known and not any(cache in path.parents for cache in caches)
        )

    def staged(self, target: Target) -> str:
        """``STAGE/folder/VALUE.``."""
        return self._stem(self.stage / self._NAME, target)

    def prefix(self, target: Target) -> str:
        """``FOLDER/VALUE`` or ``FOLDER/VALUE.holdout``."""
        return self._stem(self._folder, target)[:-1]

    @staticmethod
    def _stem(folder: Path, target: Target) -> str:
        return f"{folder}/{target.value}." + (f"{HELD_OUT}." if target.held_out else "")

    def finish(self, manifest: Manifest) -> None:
        """The run's manifest, the config for ``--domain-config`` and the blends of the splits."""
        staged = self.stage / self._NAME
        (staged / self.MANIFEST).write_text(manifest.to_json(), UTF_8)
        prefixed = [(self.prefix(_target(dataset)), dataset) for dataset in manifest.datasets]
        (staged / self.CONFIG).write_text(domain_config(prefixed), UTF_8)
        if manifest.holdout is not None:
            (staged / self.SPLITS).write_text(splits(prefixed), UTF_8)

    def forget(self, names: Sequence[str]) -> None:
        """Megatron's caches are in the folder."""


def _target(dataset: Dataset) -> Target:
    return Target(dataset.value or "", dataset.held_out)


def _caches(prefix: str) -> list[Path]:
    return list(Path(prefix).glob(_INDEX_CACHES))


def domain_config(datasets: Sequence[tuple[str, Dataset]]) -> str:
    """The ``domains`` section of a config, as YAML, for datasets with their prefixes."""
    domains: dict[str, dict[str, list[str]]] = {}
    for prefix, dataset in datasets:
        # An entry of a config may be a glob; this one is its prefix.
        domains.setdefault(str(dataset.domain), {"data": []})["data"].append(glob.escape(prefix))
    text = as_yaml({"domains": domains})
    return f"# By domain-pretrain prepare, which replaces it with --force: change a copy.\n{text}"


def splits(datasets: Sequence[tuple[str, Dataset]]) -> str:
    """What ``--per-split-data-args-path`` takes: every prefix with its tokens as its weight."""
    train: list[str] = []
    valid: list[str] = []
    for prefix, dataset in datasets:
        blend = valid if dataset.held_out else train
        blend += [str(dataset.tokens), prefix]
    blends = {"train": train, "valid": valid, "test": None}
    return json.dumps(blends, indent=2, ensure_ascii=False) + "\n"
