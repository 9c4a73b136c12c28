"""Runs of a mixed stream, each sample of which is written down; see ``e2e/stream_gpt.py``."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from support.launch import Run, train

from domain_pretrain.data.trace.trace import Sample

Rows = dict[int, list[tuple[int, str]]]  # of every iteration: prefix, and a hash of the tokens


def recorded_run(
    folder: Path, blend: list[str], mix: dict[str, Any] | None, *flags: str | Path, **how: Any
) -> Run:
    """Train in a folder, which takes the rows; ``how`` is that of :func:`.train`.

    Args:
        folder: of the run; made where it is not there.
        blend: ``--data-path`` and so on.
        mix: the section of the config; None: without a config.
        flags: further ones.
        how: may bring an ``env`` besides.
    """
    folder.mkdir(exist_ok=True)
    words: list[str | Path] = [*blend, *flags]
    if mix is not None:
        (folder / "mix.yaml").write_text(json.dumps({"mix": mix}), encoding="utf-8")
        words += ["--domain-config", folder / "mix.yaml"]
    env = {"RECORD_DIR": str(folder), **how.pop("env", {})}
    return train(folder, *words, env=env, **{"script": "stream_gpt.py", **how})


def fed(folder: Path, ranks: str = "rows*") -> Rows:
    """What the script was fed; what a resume fed last.

    Args:
        folder: of the run.
        ranks: names of the files of those that read rows of their own.
    """
    found: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for file in sorted(folder.glob(f"{ranks}.jsonl")):
        own: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
        before = 0
        for line in file.read_text(encoding="utf-8").splitlines():
            step, *rows = json.loads(line)
            if step < before:
                own = defaultdict(list, {key: own[key] for key in own if key < step})
            before = step
            own[step] += [(number, text) for number, text in rows]
        for step, rows in own.items():
            found[step] += rows
    return {step: sorted(rows) for step, rows in found.items()}


def traced(samples: Iterable[Sample], length: int, *, blended: bool = True) -> Rows:
    """The same, by the trace.

    Args:
        samples: of it.
        length: of a sample, in tokens.
        blended: whether the script knows the prefixes.
    """
    found: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for sample in samples:
        spans = [sample.part.data.tokens(sample.prefix, span) for span in sample.documents]
        tokens = np.concatenate(spans).astype(np.int64)
        assert len(tokens) == length + 1
        text = hashlib.sha256(tokens[:-1].tobytes()).hexdigest()[:12]
        found[sample.iteration].append((sample.prefix if blended else -1, text))
    return {step: sorted(rows) for step, rows in found.items()}
