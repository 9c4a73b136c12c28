"""Data by bytes, and a probe of another package, for runs that are asked what they know."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.records.evaluated import Evaluated

# English, Chinese and code; a row has at most 33 bytes.
TEXTS = {
    "english": ["The bond market fell on Monday.", "Rain in the north, sun later."],
    "chinese": ["中国的首都是北京。", "今天天气很好。"],
    "code": ["for i in range(10): print(i)", "return a + b  # sum"],
}
ALL = [text for own in TEXTS.values() for text in own]
ITEMS = {
    name: [{"prompt": text[: len(text) // 2], "completion": text[len(text) // 2 :]} for text in own]
    for name, own in TEXTS.items()
}
PREDICTED, VALUES = ("predicted", "all"), ("spy", "all")  # what the probe below calls its scores

SPY = '''
"""Asks for everything, draws and seeds as careless libraries do, and fails where it is told to."""

import random

import numpy as np
import torch

from domain_pretrain.evaluate import Part, ProbeOptions, Row, Score, register, text_row


class SpyOptions(ProbeOptions):
    """Options of ``spy``."""

    texts: list[str]
    predict: bool = True
    fail: bool = False


@register("spy", SpyOptions)
def spy(model, options):
    random.seed(0), np.random.seed(0), torch.manual_seed(0), torch.rand(3)
    rows = [text_row(model, text) for text in options.texts]
    values = model.log_likelihoods(rows)
    if options.fail:
        return [Score("spy", "all", values[0] / 0, 1, True)]
    parts = [Part(text, value, 1) for text, value in zip(options.texts, values)]
    found = [Score.of("spy", "all", parts, higher_is_better=True)]
    if options.predict:
        asked = [Row(row.tokens[: model.context], min(3, len(row.tokens) - 1)) for row in rows]
        parts = [
            Part(f"{text} {place}", token, 1)
            for text, tokens in zip(options.texts, model.predict(asked))
            for place, token in enumerate(tokens)
        ]
        found.append(Score.of("predicted", "all", parts, higher_is_better=True))
    return found
'''


def write_spy(folder: Path) -> dict[str, str]:
    """Install the probe ``spy`` there; the environment of a run that finds it."""
    (folder / "spying.py").write_text(SPY, encoding="utf-8")
    info = folder / "spying-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spying\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[domain_pretrain.probes]\nspy = spying\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def write_data(folder: Path) -> list[str]:
    """Three prepared corpora; the flags of their blend."""
    words = []
    for name, own in TEXTS.items():
        source = folder / f"{name}.jsonl"
        lines = [json.dumps({"text": f"{number}: {own[number % 2]}"}) for number in range(60)]
        source.write_text("\n".join(lines), encoding="utf-8")
        prepare([source], folder / name, "bytes", workers=1)
        words += ["1", str(folder / name)]
    return ["--split", "80,20,0", "--data-path", *words]


def parts(found: Evaluated, score: tuple[str, str]) -> dict[str, float]:
    """What a score consists of, by the name of the part."""
    (one,) = (one for one in found.scores if (one.name, one.domain) == score)
    return {part.name: part.sum for part in one.parts}


def config(path: Path, probes: dict[str, Any], **more: Any) -> list[str]:
    """A config with these probes; the flag that gives it."""
    path.write_text(yaml.safe_dump({"evaluate": {"probes": probes, **more}}), encoding="utf-8")
    return ["--domain-config", str(path)]
