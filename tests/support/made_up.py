"""Made-up hosts, for what reads a host's source and does not run it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from domain_pretrain.seams.seam import Seam


def write_host(folder: Path, seams: Iterable[Seam], version: str) -> None:
    """A checkout in which every seam fits, of ``megatron.core`` ``version``."""
    sources: defaultdict[str, str] = defaultdict(str)
    classes: set[tuple[str, str]] = set()
    for seam in seams:
        *owner, name = seam.attribute.split(".")
        if owner and (seam.module, *owner) not in classes:
            classes.add((seam.module, *owner))
            sources[seam.module] += f"class {owner[0]}:\n"
        parameters = ", ".join([*(["self"] if owner else []), *seam.parameters])
        sources[seam.module] += f"{'    ' if owner else ''}def {name}({parameters}): ...\n"
    major, minor, patch = version.split(".")
    sources["megatron.core.package_info"] = (
        f"MAJOR = {major}\nMINOR = {minor}\nPATCH = {patch}\nPRE_RELEASE = ''\n"
    )
    for module, text in sources.items():
        path = folder.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
