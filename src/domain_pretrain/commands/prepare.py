"""``domain-pretrain prepare``: text files to Megatron datasets."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.prepare.corpus import MAX_BAD, prepare
from domain_pretrain.prepare.encodings import UTF_8
from domain_pretrain.prepare.errors import BadLine
from domain_pretrain.prepare.layout import HELD_OUT, Folder
from domain_pretrain.prepare.manifest import (
    Channel,
    Dataset,
    Found,
    Manifest,
    Quality,
    manifest_path,
)
from domain_pretrain.prepare.readers import COMPRESSIONS, KINDS
from domain_pretrain.prepare.record import TEXT_KEY

BAD_LINES_SHOWN = 20
TOKENS_SHOWN = 5
CHANNELS_SHOWN = 20
DATASETS_TOLD = 5

MANY_DUPLICATES = 0.03
"""Share of a dataset's documents above which its duplicates are worth a warning."""


def add_parser(subparsers: Any) -> None:
    """Add the ``prepare`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "prepare",
        description="Make Megatron datasets, PREFIX.bin and PREFIX.idx, from text files.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE",
        help=f"files, folders or quoted patterns ({', '.join(KINDS)}; but for Parquet, also with "
        f"{' or '.join(COMPRESSIONS)}); a .txt is one document",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="PREFIX",
        help="files to write; with --by, the folder of them",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="NAME",
        help="'bytes', a Hugging Face tokenizer.json, a sentencepiece tokenizer.model, or the "
        "folder that holds one",
    )
    parser.add_argument(
        "--text-key",
        metavar="FIELD",
        help=f"the text: a JSON key or a column; meta.text is a key within another ({TEXT_KEY})",
    )
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help=r"the text of several fields, such as 'Question: {question}\nAnswer: {answer}'",
    )
    parser.add_argument(
        "--by",
        metavar="FIELD",
        help="one dataset for each value of this field: PREFIX/VALUE; and the config of the "
        "domains, PREFIX/domains.yaml",
    )
    parser.add_argument(
        "--channel-key",
        metavar="FIELD",
        help="the value of this field is a document's channel within its dataset: in "
        "PREFIX.channels.npy, with the names in the manifest",
    )
    parser.add_argument(
        "--holdout",
        metavar="HOW_MANY",
        help="keep so many documents of each dataset from training, in PREFIX.holdout: a share, "
        "such as 1%%, or a number",
    )
    parser.add_argument(
        "--append-eod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end every document with the end-of-document token (on)",
    )
    parser.add_argument(
        "--eod-token", metavar="TOKEN", help="that token (the tokenizer's eos_token)"
    )
    parser.add_argument(
        "--literal-special-tokens",
        action="store_true",
        help="a special token that a text spells, such as <s>, is text and not that token",
    )
    parser.add_argument(
        "--kind",
        choices=[suffix[1:] for suffix in KINDS],
        help="what files are whose suffix does not tell it",
    )
    parser.add_argument(
        "--encoding",
        default=UTF_8,
        metavar="NAME",
        help="of the text, as Python names it: gb18030, utf-16, ... (%(default)s)",
    )
    parser.add_argument(
        "--max-bad",
        type=_share,
        default=MAX_BAD,
        metavar="PERCENT",
        help=f"bad lines up to which an input is used without them ({MAX_BAD:.0%}); one input with "
        "more of them, and nothing is written".replace("%", "%%"),
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")
    parser.add_argument("--strict", action="store_true", help="the first bad line is an error")
    parser.add_argument("--force", action="store_true", help="replace an existing dataset")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; an error, or an interruption, leaves nothing written."""
    console = plain_console(stderr=True, soft_wrap=True)
    prefix = str(Path(args.output))  # a shell completes a folder's name with a slash
    bad_lines = 0

    def on_bad_line(bad: BadLine) -> None:
        nonlocal bad_lines
        bad_lines += 1
        if bad_lines <= BAD_LINES_SHOWN:
            console.print(f"bad line: {bad}")
        elif bad_lines == BAD_LINES_SHOWN + 1:
            console.print("bad line: more of them, which are counted but not shown")

    with _Bar(console) as bar:
        manifest = prepare(
            args.inputs,
            prefix,
            args.tokenizer,
            text_key=args.text_key,
            template=args.template,
            by=args.by,
            channel_key=args.channel_key,
            holdout=args.holdout,
            append_eod=args.append_eod,
            eod_token=args.eod_token,
            literal_special_tokens=args.literal_special_tokens,
            encoding=args.encoding,
            kind=args.kind,
            workers=args.workers,
            max_bad=args.max_bad,
            strict=args.strict,
            force=args.force,
            on_progress=bar.show,
            on_bad_line=on_bad_line,
        )
    out = plain_console(soft_wrap=True)
    out.print(_summary(manifest, prefix))
    if manifest.by is not None:
        out.print(_datasets_table(manifest.datasets))
    if manifest.channels:
        out.print(_channels_table(manifest.channels))
    if manifest.quality is not None:
        out.print(_quality_table(manifest.quality))
    if warning := _many_duplicates(manifest):
        console.print(warning)
    return 0


def _share(text: str) -> float:
    """``1%`` → 0.01."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1
    if not text.endswith("%") or not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a percentage, such as 1%")
    return share


class _Bar:
    """Bytes of the inputs read, documents, tokens and bad lines; silent when not on a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("prepare"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, read: int, manifest: Manifest) -> None:
        """Draw the state."""
        self._progress.update(
            self._task,
            completed=read,
            total=sum(source.bytes for source in manifest.inputs),
            description=f"{manifest.documents:,} documents, {manifest.tokens:,} tokens, "
            f"{manifest.bad_lines:,} bad lines",
        )


def _datasets_table(datasets: list[Dataset]) -> Table:
    held_out = {dataset.domain: dataset.documents for dataset in datasets if dataset.held_out}
    names = ["documents", "bytes of text", "tokens", "nats a token", "duplicates"]
    table = _numbers_table("domain", [*names, *(["held out"] if held_out else [])])
    for dataset in datasets:
        if not dataset.held_out:
            numbers = [dataset.documents, dataset.text_bytes, dataset.tokens]
            cells = [f"{number:,}" for number in numbers]
            cells.append(f"{dataset.unigram_entropy_nats:.3f}")
            cells.append(f"{dataset.exact_duplicates:,}")
            if held_out:
                cells.append(f"{held_out.get(dataset.domain, 0):,}")
            table.add_row(dataset.domain, *cells)
    return table


def _channels_table(channels: list[Channel]) -> Table:
    table = _numbers_table("channel", ["documents", "bytes of text", "tokens"])
    for channel in channels[:CHANNELS_SHOWN]:
        numbers = (channel.documents, channel.text_bytes, channel.tokens)
        table.add_row(channel.name, *(f"{number:,}" for number in numbers))
    if len(channels) > CHANNELS_SHOWN:
        table.add_row(f"and {len(channels) - CHANNELS_SHOWN:,} others")
    return table


def _numbers_table(first: str, names: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first)
    for name in names:
        table.add_column(name, justify="right")
    return table


def _many_duplicates(manifest: Manifest) -> str | None:
    """A warning that names the datasets of which a large part is there twice."""
    counts = {}
    for dataset in manifest.datasets:
        name = dataset.domain or "the dataset"
        name += f".{HELD_OUT}" * dataset.held_out
        counts[name] = (dataset.exact_duplicates or 0, dataset.documents)
    if manifest.quality is not None and len(manifest.datasets) > 1:
        counts["all together"] = (manifest.quality.exact_duplicates, manifest.documents)
    many = [
        f"{name} {repeated / documents:.1%} ({repeated:,} of {documents:,})"
        for name, (repeated, documents) in counts.items()
        if repeated > MANY_DUPLICATES * documents
    ]
    if not many:
        return None
    more = f" and {len(many) - DATASETS_TOLD} more" if len(many) > DATASETS_TOLD else ""
    return (
        f"WARNING: documents with the text of an earlier one: {', '.join(many[:DATASETS_TOLD])}"
        f"{more}. The model reads them again in every epoch; leave them out, unless that is meant"
    )


def _quality_table(quality: Quality) -> Table:
    percentiles = "  ".join(f"p{name} {value:,}" for name, value in quality.percentiles.items())
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row(
        "tokens of a document",
        f"{quality.shortest:,} to {quality.longest:,}: {percentiles}",
    )
    table.add_row(
        "unigram entropy",
        f"{quality.unigram_entropy_nats:.3f} nats "
        f"({quality.unigram_entropy_nats / math.log(2):.3f} bits) a token over "
        f"{quality.ids_used:,} ids",
    )
    # What may be junk, where there is any.
    if quality.exact_duplicates:
        table.add_row("exact duplicates", f"{quality.exact_duplicates:,}")
    for document, earlier in quality.first_duplicates:
        table.add_row(f"  document {document:,}", f"has the text of {earlier:,}")
    if quality.replacement_characters:
        table.add_row("replacement characters (U+FFFD)", f"{quality.replacement_characters:,}")
    for name, found in (
        ("wrongly decoded (锟斤拷, Ã©)", quality.mojibake),
        ("HTML entities (&nbsp;)", quality.html_entities),
        ("special tokens in texts", quality.special_tokens),
    ):
        if found.documents:
            table.add_row(name, _found(found))
    tokens = list(quality.special_token_counts.items())
    for token, count in tokens[:TOKENS_SHOWN]:
        table.add_row(f"  {token}", f"{count:,}")
    if len(tokens) > TOKENS_SHOWN:
        table.add_row(f"  and {len(tokens) - TOKENS_SHOWN} others", "")
    return table


def _found(found: Found) -> str:
    return f"{found.occurrences:,} in {found.documents:,} documents"


def _summary(manifest: Manifest, prefix: str) -> str:
    left_out = []
    if manifest.bad_lines:
        left_out.append(f"{manifest.bad_lines:,} bad lines")
    if manifest.empty_documents:
        left_out.append(f"{manifest.empty_documents:,} empty documents")
    held_out = [dataset for dataset in manifest.datasets if dataset.held_out]
    lines = [
        f"{prefix}: {manifest.documents:,} documents, {manifest.tokens:,} tokens "
        f"({manifest.dtype}), {manifest.text_bytes:,} bytes of text from "
        f"{len(manifest.inputs):,} files"
        + (f"; left out: {', '.join(left_out)}" if left_out else "")
    ]
    if held_out:
        lines.append(
            f"held out: {sum(dataset.documents for dataset in held_out):,} documents, "
            f"{sum(dataset.text_bytes for dataset in held_out):,} bytes of text"
        )
    if manifest.by is None:
        path = str(manifest_path(prefix))
        data = ["--data-path", prefix]
        if held_out:
            data = ["--train-data-path", prefix, "--valid-data-path", f"{prefix}.{HELD_OUT}"]
    else:
        folder = Path(prefix)
        path = str(folder / Folder.MANIFEST)
        data = ["--domain-config", str(folder / Folder.CONFIG)]
        if held_out:
            data += ["--per-split-data-args-path", str(folder / Folder.SPLITS)]
    lines += [
        f"manifest: {path}",
        f"train with: {shlex.join([*data, *manifest.megatron_flags])}",
    ]
    return "\n".join(lines)
