"""The model card: what a run trained on, and what became of every domain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_pretrain.huggingface.found import Found
from domain_pretrain.records.reader import is_event, read_evaluations, stream_lines
from domain_pretrain.version import __version__

if TYPE_CHECKING:
    from domain_pretrain.huggingface.exporting import Exported

CARD = "README.md"


def write_card(out: Path, done: Exported, found: Found) -> None:
    """``README.md`` of an exported model.

    Args:
        out: its folder.
        done: what was exported.
        found: from where; without a run's metrics, the card has no tables.
    """
    text = "\n".join([*_head(done), *_training(done, found.run), *_evaluation(done, found.run)])
    (out / CARD).write_text(text + "\n", encoding="utf-8")


def _head(done: Exported) -> Iterator[str]:
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    yield "tags: [continued-pretraining, domain-pretrain]"
    yield "---"
    yield ""
    yield f"# {done.family.architecture} after {done.iteration:,} steps of continued pretraining"
    yield ""
    # Without a base, nothing is known: a resumed run names only itself.
    start = "" if done.base is None else f" from `{Path(done.base.source).name}`"
    yield (
        f"Trained{start} with Megatron-LM; converted to Hugging Face by domain_pretrain "
        f"{__version__}, weights in {str(done.dtype).removeprefix('torch.')}."
    )
    if done.base is not None and any(done.base.folder.glob("LICEN[SC]E*")):
        yield "The base model's licence is beside this file, and holds for this model, too."


def _training(done: Exported, run: Path | None) -> Iterator[str]:
    """Tokens of each domain, its loss in the last window, and in the last evaluation."""
    if run is None:
        return
    tokens: dict[str, float] = {}
    last: dict[str, dict[str, Any]] = {}
    for entry in stream_lines(run):
        if is_event(entry) or entry["iteration"] > done.iteration:
            continue
        last[entry["split"]] = entry
        if entry["split"] == "train":
            for name, domain in entry["domains"].items():
                tokens[name] = tokens.get(name, 0) + domain["tokens"]
    if not tokens:
        return
    columns = {"train": "training loss", "valid": "validation loss", "test": "test loss"}
    splits = [split for split in columns if split in last]
    yield ""
    yield "## Training data and losses"
    yield ""
    yield f"{sum(tokens.values()):,.0f} tokens. Losses are means per token in nats,"
    yield (
        ", ".join(
            f"{columns[split].removesuffix(' loss')} at step {last[split]['iteration']:,}"
            for split in splits
        )
        + "."
    )
    yield ""
    yield _row("domain", "tokens", *(columns[split] for split in splits))
    yield _row("---", *("---:" for _ in ("tokens", *splits)))
    for name in tokens:
        losses = (_loss(last[split], name) for split in splits)
        yield _row(name, f"{tokens[name]:,.0f}", *losses)
    wholes = (_mean(last[split]) for split in splits)
    yield _row("**all**", f"{sum(tokens.values()):,.0f}", *wholes)


def _evaluation(done: Exported, run: Path | None) -> Iterator[str]:
    """The last scores of each probe, with their errors, beside those of the base."""
    evaluations = [] if run is None else read_evaluations(run)
    found = [each for each in evaluations if each.iteration <= done.iteration]
    if not found:
        return
    scores = {(s.name, s.domain): s for s in found[-1].scores}
    before = {(s.name, s.domain): s for s in found[0].scores} if found[0].iteration == 0 else {}
    yield ""
    yield f"## Evaluation at step {found[-1].iteration:,}"
    yield ""
    yield _row("probe", "domain", "score", *(["of the base"] if before else []))
    yield _row("---", "---", "---:", *(["---:"] if before else []))
    for key, score in scores.items():
        error = "" if score.error is None else f" ± {score.error:.4f}"
        old = [f"{before[key].mean:.4f}" if key in before else ""] if before else []
        yield _row(*key, f"{score.mean:.4f}{error}", *old)


def _loss(entry: Mapping[str, Any], name: str) -> str:
    domain = entry["domains"].get(name)
    return "" if domain is None or domain["loss"] is None else f"{domain['loss']:.4f}"


def _mean(entry: Mapping[str, Any]) -> str:
    domains = entry["domains"].values()
    tokens = sum(domain["tokens"] for domain in domains)
    return f"{math.fsum(d['loss_sum'] for d in domains) / tokens:.4f}" if tokens else ""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
