"""``domain-pretrain trace``: what the model read at a step, and when it reads a document."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from domain_pretrain.commands.report import find_metrics
from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.data.trace.consumption import Told
from domain_pretrain.data.trace.timeline import Mark, stretches
from domain_pretrain.data.trace.trace import Part, Sample, Trace, is_below
from domain_pretrain.data.trace.worst import ORDERS, Worst, worst
from domain_pretrain.errors import ConfigError
from domain_pretrain.hosts.built import Built
from domain_pretrain.hosts.reads import Reads
from domain_pretrain.prepare.manifest import Manifest, manifest_path
from domain_pretrain.prepare.tokenize import Tokenizer, load_tokenizer
from domain_pretrain.process import notice
from domain_pretrain.records.journal import Start, read_starts
from domain_pretrain.records.reader import stream_lines

CHARACTERS = 300
WORST = 5  # documents
LAST = math.inf  # iteration; 0 is one, after which nothing has been read


def add_parser(subparsers: Any) -> None:
    """Add the ``trace`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "trace",
        usage="domain-pretrain trace RUN (--iteration N | --samples A:B | --document D --prefix P "
        "| --consumed [N]) [options]",
        description=(
            "Show which documents the model read, or will read, at an iteration: from the run's "
            "journal and the index of its data alone. Ranges A:B are without B."
        ),
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run's --domain-log-dir")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--iteration", type=as_range, metavar="N|A:B", help="of the run, from 1")
    what.add_argument(
        "--samples",
        type=as_range,
        metavar="N|A:B",
        help="positions in the stream, from 0, as mix.skip counts them",
    )
    what.add_argument(
        "--document", type=int, metavar="D", help="when it is read: its number in --prefix, from 0"
    )
    what.add_argument(
        "--consumed",
        type=int,
        nargs="?",
        const=LAST,
        metavar="N",
        help="what has been read of each prefix after iteration N (the last that was logged)",
    )
    parser.add_argument("--prefix", metavar="P", help="data prefix of --document")
    parser.add_argument(
        "--domain", metavar="NAME", help="only the samples of this domain, or of those below it"
    )
    parser.add_argument(
        "--text",
        type=int,
        nargs="?",
        const=CHARACTERS,
        metavar="CHARACTERS",
        help="show the text, of each sample so much (%(const)s)",
    )
    parser.add_argument(
        "--worst",
        choices=ORDERS,
        help="in place of the samples, the five documents that are most out of the ordinary: odd "
        "(tokens that are rare in the domain), monotonous (that repeat), or copied",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="for --text: 'bytes', a tokenizer.json, a sentencepiece .model, or their folder (what "
        "the run or the data's manifest names)",
    )
    parser.add_argument(
        "--data-cache-path",
        type=Path,
        metavar="DIR",
        help="where the data's index files are, and missing ones go (where the run has them)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per sample and line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the samples; 1 where there is none.

    Raises:
        ConfigError: the run, its files or what is asked of it is wrong.
    """
    if (args.document is None) != (args.prefix is None):
        raise ConfigError("--document and --prefix go together: a document's number is of a prefix")
    if args.text is not None and args.text < 1:
        raise ConfigError(f"--text {args.text}: give at least 1 character")
    if args.consumed is not None:
        if args.consumed < 0:
            raise ConfigError(f"--consumed {args.consumed}: give an iteration, or nothing")
        if args.text is not None or args.worst is not None:
            raise ConfigError("--consumed has no --text and no --worst: it counts documents")
    # What others print goes where it does not spoil the answer.
    with contextlib.redirect_stdout(sys.stderr):
        trace = open_trace(args.run_dir, args.data_cache_path)
        if args.domain is not None:
            trace.check_domain(args.domain)
        if args.consumed is not None:
            after, consumed = trace.consumed(None if args.consumed == LAST else args.consumed)
            if args.domain is not None:
                consumed = [one for one in consumed if is_below(one.domain, args.domain)]
            samples = []
        else:
            samples = list(_asked_for(trace, args))
        if args.worst is not None:
            if args.domain is not None:  # a sample may hold others' documents, too
                samples = [one.only(args.domain) for one in samples]
            found = worst(samples, args.worst, WORST)
            told = [one for one, *_ in found]
            samples = [replace(sample, documents=(span,)) for _, sample, span in found]
        try:
            texts = None if args.text is None else list(_texts(samples, args.tokenizer, args.text))
        except ConfigError as error:
            if args.worst is None or args.tokenizer is not None:
                raise
            notice(str(error))  # which documents it is can be told all the same
            texts = None
    if args.consumed is not None:
        return _print_consumed(after, consumed, args)
    if not samples:
        print(f"domain-pretrain trace: {_nothing(args)}", file=sys.stderr)
        return 1
    if args.worst is not None and not args.json:
        _print(_worst_table(told, texts))
    elif args.json:
        for number, sample in enumerate(samples):
            text = {} if texts is None else {"text": texts[number]}
            dump = sample.dump() if args.worst is None else told[number].dump()
            print(json.dumps({**dump, **text}, ensure_ascii=False))
    else:
        _print(_table(samples, texts))
    return 0


def _print(table: Table) -> None:
    plain_console(soft_wrap=True).print(table)


def open_trace(folder: Path, cache: Path | None = None) -> Trace:
    """Of the run in a folder.

    Args:
        folder: its ``--domain-log-dir``, or one above it.
        cache: of the data's index files, in place of the run's own.

    Raises:
        ConfigError: something is missing there.
        UnsupportedError: the order of its samples cannot be told.
    """
    if megatron := os.environ.get("MEGATRON_LM_PATH"):
        sys.path.insert(0, megatron)
    metrics = find_metrics(folder)
    cache = None if cache is None else cache.resolve()
    starts = read_starts(metrics.parent)
    parts = []
    for stretch in stretches(starts, _logged(metrics), _batches):
        start = stretch.start
        told = start.reads or {}  # an older start is an error where its samples are asked for
        prefixes, domains = (tuple(told.get(name, ())) for name in ("prefixes", "domains"))
        channels = tuple(map(tuple, told.get("channels", ())))
        load = partial(_build, start, cache)
        parts.append(Part(stretch, prefixes, domains, channels, load))
    return Trace(parts)


def _build(start: Start, cache: Path | None) -> Built:
    return Built(Reads.of(start), start, cache)


def _batches(start: Start) -> Callable[[int], int]:
    """Not read before it is called: of several starts, some may be untraceable."""
    batch_at = lru_cache(1)(lambda: Reads.of(start).batch_at())
    return lambda consumed: batch_at()(consumed)


def _logged(metrics: Path) -> Iterator[Mark]:
    for line in stream_lines(metrics):
        consumed = line.get("consumed_samples")
        if line.get("split") == "train" and isinstance(consumed, int):
            yield Mark(line["iteration"], consumed)


def _asked_for(trace: Trace, args: argparse.Namespace) -> Iterator[Sample]:
    if args.iteration is not None:
        samples = trace.iterations(*args.iteration)
    elif args.samples is not None:
        samples = trace.positions(*args.samples)
    else:
        samples = trace.document(args.prefix, args.document)
    return (one for one in samples if args.domain is None or one.is_of(args.domain))


def _nothing(args: argparse.Namespace) -> str:
    if args.document is not None:
        return f"the run does not read document {args.document} of {args.prefix}"
    return f"none of the samples is of {args.domain}"


def as_range(text: str) -> tuple[int, int]:
    """``N`` or ``A:B`` → first and stop."""
    first, colon, stop = text.partition(":")
    try:
        return int(first), int(stop) if colon else int(first) + 1
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number nor a range of two, as in 100 or 100:120"
        ) from None


def _table(samples: Sequence[Sample], texts: Sequence[str] | None) -> Table:
    table = Table()
    for name in ("iteration", "sample"):
        table.add_column(name, justify="right")
    for name in ("domain", "prefix"):
        table.add_column(name, overflow="fold")
    table.add_column("documents: number[tokens]", overflow="fold")
    if texts is not None:
        table.add_column("text", overflow="fold")
    folder = _common(sample.part.prefixes[sample.prefix] for sample in samples)
    if folder:
        table.caption, table.caption_justify = f"prefixes in {folder}", "left"
    for number, sample in enumerate(samples):
        spans = (f"{one.index}[{one.first}:{one.first + one.tokens}]" for one in sample.documents)
        cells = [
            f"{sample.iteration:,}",
            f"{sample.position:,}",
            ", ".join(sample.domains),
            sample.part.prefixes[sample.prefix].removeprefix(folder),
            " ".join(spans),
            *([] if texts is None else [texts[number]]),
        ]
        table.add_row(*map(Text, cells))
    return table


def _worst_table(found: Sequence[Worst], texts: Sequence[str] | None) -> Table:
    table = Table(caption="surprise, entropy: nats a token", caption_justify="left")
    for name in ("prefix", "document[tokens]"):
        table.add_column(name, overflow="fold")
    for name in ("iteration", "surprise", "entropy", "copies"):
        table.add_column(name, justify="right")
    if texts is not None:
        table.add_column("text", overflow="fold")
    for number, one in enumerate(found):
        cells = [
            one.prefix,
            f"{one.document}[{one.first}:{one.first + one.tokens}]",
            f"{one.iteration:,}",
            f"{one.surprise:.2f}",
            f"{one.entropy:.2f}",
            f"{one.copies:,}",
            *([] if texts is None else [texts[number]]),
        ]
        table.add_row(*map(Text, cells))
    return table


def _print_consumed(iteration: int, consumed: Sequence[Told], args: argparse.Namespace) -> int:
    """What has been read of each prefix; 1 where nothing has."""
    if not consumed:
        nothing = "nothing has been read"
        if args.domain is not None:  # perhaps a part of a file
            nothing = f"no prefix that has been read is {args.domain}'s alone"
        print(f"domain-pretrain trace: {nothing}", file=sys.stderr)
        return 1
    if args.json:
        for one in consumed:
            print(json.dumps({"iteration": iteration, **one.dump()}, ensure_ascii=False))
        return 0
    table = Table(title=f"read after iteration {iteration:,}", title_justify="left")
    for name in ("domain", "prefix"):
        table.add_column(name, overflow="fold")
    for name in ("samples", "epochs", "documents: whole", "in part", "never"):
        table.add_column(name, justify="right")
    folder = _common(one.prefix for one in consumed)
    if folder:
        table.caption, table.caption_justify = f"prefixes in {folder}", "left"
    for one in consumed:
        numbers = (one.samples, *(one.documents[how] for how in ("whole", "part", "never")))
        samples, *documents = (f"{number:,}" for number in numbers)
        cells = [one.domain, one.prefix.removeprefix(folder), samples, f"{one.epochs:.3f}"]
        table.add_row(*map(Text, [*cells, *documents]))
    _print(table)
    return 0


def _common(prefixes: Iterable[str]) -> str:
    """The folder that all of them are in, with its last ``/``; "" where there is none."""
    folders = {os.path.dirname(prefix) for prefix in prefixes}
    return f"{folders.pop().rstrip('/')}/" if len(folders) == 1 and folders != {""} else ""


def _texts(samples: Sequence[Sample], name: str | None, characters: int) -> Iterator[str]:
    """The text of each sample, of its first tokens so many characters."""
    tokenizers: dict[str, Tokenizer] = {}
    for sample in samples:
        prefix = sample.part.prefixes[sample.prefix]
        if prefix not in tokenizers:
            tokenizers[prefix] = _tokenizer(sample, prefix, name)
        text = ""
        for span in sample.documents:
            if len(text) <= characters:
                ids = sample.part.data.tokens(sample.prefix, span).tolist()
                text += tokenizers[prefix].decode(ids)
        yield text if len(text) <= characters else f"{text[:characters]}…"


def _tokenizer(sample: Sample, prefix: str, name: str | None) -> Tokenizer:
    """The one that is given; else that of the run, by its place; else that of the data."""
    if name is not None:
        return load_tokenizer(name)
    start = sample.part.stretch.start
    known = start.order["data"][0][sample.prefix][0]
    places = [start.order["tokenizer"].get("name")]
    if manifest_path(known).is_file():
        places.append(Manifest.load(known).tokenizer)
    folder = (start.reads or {}).get("folder", "")
    for place in filter(None, places):
        path = os.path.join(folder, place)  # which may have been told relative to it
        if place == "bytes" or os.path.exists(path):
            return load_tokenizer(place if place == "bytes" else path)
    raise ConfigError(
        f"--text: the tokenizer of {prefix!r} is not known here; give --tokenizer, which may be "
        "'bytes'"
    )
