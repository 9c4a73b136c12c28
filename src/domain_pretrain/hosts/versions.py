"""The versions of Megatron that the plugin is made for, and what each needs to run.

The only such list: the supported range, ``doctor``, ``docs/hosts.md`` and ``make hosts`` are all
derived from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version


@dataclass(frozen=True)
class HostVersion:
    """One minor version of ``megatron.core``.

    Attributes:
        series: its number, ``0.12``; the highest is the development branch.
        python: what it says it runs on.
        torch: PyTorch that it was made with, and that ``make hosts`` tests it with.
        packages: what it imports besides PyTorch without declaring it, or not in every file.
        tested_python: the Python that ``make hosts`` tests it with.
        looked_up: releases in whose sources every seam was looked up.
        wheel: whether its wheel on PyPI contains the training loop.
        oldest_torch: the oldest PyTorch that the package admits, ``2.4``, where ``make hosts``
            tests the checkout with it, too; else empty.
    """

    series: str
    python: str
    torch: str
    packages: tuple[str, ...]
    tested_python: str
    looked_up: tuple[str, ...]
    wheel: bool = False
    oldest_torch: str = ""

    @property
    def requirements(self) -> tuple[str, ...]:
        """For pip, in the environment of ``make hosts``."""
        return (self.torch, *self.packages)

    def holds(self, version: Version) -> bool:
        """Whether ``version`` is of this series."""
        return version.release[:2] == Version(self.series).release


# Every checkout compiles its dataset helper with pybind11; psutil is for torch_dist checkpoints.
_ALL = ("pybind11", "psutil")
_OLDEST = ("torch>=2.6,<2.8", ("numpy<2", "six", "regex", "einops", *_ALL), "3.10")
_OLDER = ("torch>=2.6", ("six", "regex", *_ALL), "3.11")
_NEWER = ("torch>=2.6", _ALL, "3.12")

VERSIONS: tuple[HostVersion, ...] = (
    HostVersion("0.12", ">=3.10", *_OLDEST, ("0.12.3",), oldest_torch="2.4"),
    HostVersion("0.13", ">=3.10", *_OLDEST, ("0.13.1",)),
    HostVersion("0.14", ">=3.10", *_OLDEST, ("0.14.0",)),
    HostVersion("0.15", ">=3.10", *_OLDER, ("0.15.3",)),
    HostVersion("0.16", ">=3.10", *_OLDER, ("0.16.1",)),
    HostVersion("0.17", ">=3.12", *_NEWER, ("0.17.1",), wheel=True),
    HostVersion("0.18", ">=3.12", *_NEWER, ("0.18.2",), wheel=True),
    HostVersion("0.19", ">=3.12", *_NEWER, ("0.19.1", "0.19.2"), wheel=True),
    HostVersion("0.20", ">=3.12", *_NEWER, ("0.20.0",)),
)


def _range() -> SpecifierSet:
    major, minor = Version(VERSIONS[-1].series).release
    return SpecifierSet(f">={VERSIONS[0].series},<{major}.{minor + 1}", prereleases=True)


HOST_VERSIONS = _range()

# The first whose wheel contains the training loop, which the built-in GPT entry needs.
OLDEST_BUILT_IN = Version(next(row.series for row in VERSIONS if row.wheel)).release


def find(version: Version) -> HostVersion | None:
    """The row of a version; None where the table does not have it."""
    return next((row for row in VERSIONS if row.holds(version)), None)


def host_version(root: Path) -> Version:
    """``megatron.core``'s version as its source says; nothing is imported.

    Args:
        root: the ``megatron`` folder.

    Raises:
        OSError: there is no ``core/package_info.py`` in it.
    """
    source = (root / "core" / "package_info.py").read_text(encoding="utf-8")
    pattern = r"^(MAJOR|MINOR|PATCH|PRE_RELEASE) = ['\"]?(\w*)"
    found = dict(re.findall(pattern, source, re.MULTILINE))
    return Version("{MAJOR}.{MINOR}.{PATCH}{PRE_RELEASE}".format(**found))
