"""What the model read at a step, and when it reads a document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.data.already_read import AlreadyRead
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.splits import documents
from domain_pretrain.data.trace.consumption import Reads, Told
from domain_pretrain.data.trace.source import Source
from domain_pretrain.data.trace.timeline import Step, Stretch
from domain_pretrain.data.trace.windows import Span, Windows
from domain_pretrain.errors import ConfigError
from domain_pretrain.process import notice
from domain_pretrain.suggest import did_you_mean


class Data(Protocol):
    """A run's training data, built again."""

    @property
    def source(self) -> Source:
        """The order of its samples."""

    def windows(self, prefix: int) -> Windows:
        """Of a prefix, by its number in the blend."""

    @property
    def already_read(self) -> AlreadyRead | None:
        """What the run leaves out, since one before had read it."""

    def earlier(self, prefix: int) -> NDArray[np.int64]:
        """The documents of a prefix that a run before had read, and this one leaves out."""

    def tokens(self, prefix: int, span: Span) -> NDArray[Any]:
        """Ids of a part of a document, ``[tokens]``."""

    def channel(self, prefix: int, document: int) -> str | None:
        """The domain of a document, where a file holds those of several."""

    def content(self, prefix: int, document: int) -> str:
        """What a document holds; see :func:`.content_of`."""


@dataclass(frozen=True)
class Part:
    """What one start of a run has read, or will.

    Attributes:
        stretch: its iterations.
        prefixes: of its training blend, as the data flag spells them.
        domains: whose each of them is.
        channels: the domains within each, where there are some.
        load: builds its data again.
    """

    stretch: Stretch
    prefixes: tuple[str, ...]
    domains: tuple[str, ...]
    channels: tuple[tuple[str, ...], ...]
    load: Callable[[], Data]

    @cached_property
    def data(self) -> Data:
        """Built when it is first asked for."""
        return self.load()


@dataclass(frozen=True)
class Sample:
    """One row of a batch.

    Attributes:
        iteration: that reads it.
        position: in the stream; where nothing is cut, the samples consumed before it.
        part: of the run.
        prefix: its number in the blend.
        documents: that it is made of, in order.
    """

    iteration: int
    position: int
    part: Part
    prefix: int
    documents: tuple[Span, ...]

    @property
    def domain(self) -> str:
        """Whose it is, by its prefix."""
        return self.part.domains[self.prefix]

    @property
    def domains(self) -> list[str]:
        """Whose its documents are: several where the prefix has channels."""
        return list(dict.fromkeys(map(self.domain_of, self.documents)))

    def domain_of(self, span: Span) -> str:
        """Whose a document of it is."""
        return self._channel(span) or self.domain

    def only(self, name: str) -> Sample:
        """With those of its documents that are of a domain, or of one below it."""
        own = (span for span in self.documents if is_below(self.domain_of(span), name))
        return replace(self, documents=tuple(own))

    def is_of(self, name: str) -> bool:
        """Whether a document of it is of a domain, or of one below it."""
        own = (self.domain, *self.domains)
        return any(is_below(one, name) for one in own)

    def _channel(self, span: Span) -> str | None:
        return self.part.data.channel(self.prefix, span.index)

    def dump(self) -> dict[str, Any]:
        """As a JSON object; reads the documents."""
        return {
            "iteration": self.iteration,
            "sample": self.position,
            "domain": self.domain,
            "prefix": self.part.prefixes[self.prefix],
            "documents": [
                {
                    **asdict(span),
                    "content": self.part.data.content(self.prefix, span.index),
                    **({"domain": channel} if (channel := self._channel(span)) else {}),
                }
                for span in self.documents
            ],
        }


def is_below(domain: str, name: str) -> bool:
    """Whether a domain has that name, or is part of it, as ``finance/news`` is of ``finance``."""
    return domain == name or domain.startswith(f"{name}/")


class Trace:
    """A run, sample by sample.

    Args:
        parts: of the run, ascending.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def iterations(self, first: int, stop: int) -> Iterator[Sample]:
        """The samples of the iterations from ``first`` up to, without, ``stop``; from 1.

        Raises:
            ConfigError: the run has no such iterations.
        """
        if not 1 <= first < stop:
            raise ConfigError(
                f"iterations {first} to {stop} are none: they count from 1, and the second number "
                "is not read any more"
            )
        begin = self._parts[0].stretch.start.iteration
        if first <= begin:
            raise ConfigError(
                f"iteration {first:,} is not in the journal, whose first start is after iteration "
                f"{begin:,}: what the run read before is told where it logged before"
            )
        done = 0
        for part in self._parts:
            if part.stretch.start.iteration >= stop - 1:
                return
            for step in part.stretch.steps(iteration=first):
                if step.iteration >= stop:
                    return
                done = step.iteration
                yield from self._samples(part, step)
        if done < stop - 1:
            if not done:
                raise ConfigError(f"iteration {first:,} is beyond {self._end}")
            notice(f"the iterations from {done + 1:,} on are beyond {self._end}")

    @property
    def _end(self) -> str:
        last = self._parts[-1].stretch.end
        return (
            f"the run: it ends with iteration {last.iteration:,}, after {last.consumed:,} samples"
        )

    def positions(self, first: int, stop: int) -> Iterator[Sample]:
        """The samples at the positions from ``first`` up to, without, ``stop``; from 0.

        Raises:
            ConfigError: the run reads none of them.
        """
        if not 0 <= first < stop:
            raise ConfigError(
                f"samples {first} to {stop} are none: they count from 0, and the second number is "
                "not read any more"
            )
        found = False
        for part in self._parts:
            if part.stretch.start.consumed_samples >= stop:
                break  # positions never lag behind
            source = part.data.source
            low, high = source.consumed(first), source.consumed(stop)
            if low == high:
                continue
            for step in part.stretch.steps(consumed=low):
                if step.consumed >= high:
                    break
                found = True
                yield from self._samples(part, step, range(low, high))
        if not found:
            raise ConfigError(
                f"the run reads none of the samples {first:,} to {stop:,}: {self._why(first)}"
            )

    def document(self, prefix: str, document: int) -> Iterator[Sample]:
        """The samples that hold a token of a document.

        Raises:
            ConfigError: no training data of the run holds it.
        """
        self.check_prefix(prefix)
        for part in self._parts:
            known = [normalise(one) for one in part.prefixes]
            numbers = [
                number
                for number, (spelled, key) in enumerate(zip(part.prefixes, known, strict=True))
                if prefix in (spelled, key) or normalise(prefix) == key
            ]
            consumed: list[int] = []
            data = part.data  # an error where it is not known what this start has read
            for number in numbers:
                self._check_document(part, number, document)
                for window in data.windows(number).holding([document]):
                    consumed += data.source.find(number, window)
            yield from self._taken(part, sorted(consumed))

    def consumed(self, iteration: int | None = None) -> tuple[int, list[Told]]:
        """What has been read of each prefix, in numbers; see :meth:`reads`."""
        last, found = self.reads(iteration)
        return last, [reads.told() for reads in found.values()]

    def reads(self, iteration: int | None = None) -> tuple[int, dict[str, Reads]]:
        """What has been read of each prefix.

        Args:
            iteration: after which; None: the last that the run has logged.

        Returns:
            The iteration, and by prefix, normalised, what was read of it; also of those that the
            run does not read any more.

        Raises:
            ConfigError: the run has no such iteration, or did not write its journal from the start.
        """
        first = self._parts[0].stretch.start
        if first.consumed_samples:
            raise ConfigError(
                f"the journal begins after iteration {first.iteration:,}: what the run read before "
                "is told where it logged before"
            )
        last = self._parts[-1].stretch.marks[-1].iteration if iteration is None else iteration
        found: dict[str, Reads] = {}
        for part, after in zip_longest(self._parts, self._parts[1:]):
            start = part.stretch.start
            if last <= start.iteration:
                break
            if after is not None and after.stretch.start.iteration <= last:
                end = after.stretch.start.consumed_samples
            else:
                step = next(part.stretch.steps(iteration=last), None)
                if step is None:
                    raise ConfigError(f"iteration {last:,} is beyond {self._end}")
                end = step.consumed + step.samples
            self._add(found, part, start.consumed_samples, end)
        return last, found

    def already_read(self, iteration: int) -> AlreadyRead | None:
        """What the run left out when it came to an iteration, since one before had read it."""
        behind = [one for one in self._parts if one.stretch.start.iteration < iteration]
        return (behind or self._parts[:1])[-1].data.already_read

    def _add(self, found: dict[str, Reads], part: Part, first: int, stop: int) -> None:
        """What a part of the run has read, from one sample up to, without, another."""
        windows = [part.data.windows(number) for number in range(len(part.prefixes))]
        times = part.data.source.reads(first, stop, [len(one.shuffle) for one in windows])
        places = [place for place, *_ in part.stretch.start.order["data"][0]]  # by the run's folder
        for number, (place, prefix, domain, own, counts) in enumerate(
            zip(places, part.prefixes, part.domains, windows, times, strict=True)
        ):
            reads = found.setdefault(place, Reads(prefix, domain))
            reads.prefix, reads.domain = prefix, domain
            reads.earlier = part.data.earlier(number)
            reads.add(own, counts)

    def check_domain(self, name: str) -> None:
        """Refuse one that the run does not have.

        Raises:
            ConfigError: with the nearest that it has.
        """
        known = list(
            dict.fromkeys(
                name
                for part in self._parts
                for name in (*part.domains, *(one for own in part.channels for one in own))
            )
        )
        is_above = any(one.startswith(f"{name}/") for one in known)
        if name not in known and not is_above and self._is_known:
            raise ConfigError(
                f"--domain {name!r} is no domain of the training data{did_you_mean(name, known)} "
                f"(domains: {', '.join(known)})"
            )

    def check_prefix(self, prefix: str) -> None:
        """Refuse one that the run does not read.

        Raises:
            ConfigError: with the nearest that it reads.
        """
        known = list(dict.fromkeys(one for part in self._parts for one in part.prefixes))
        keys = [normalise(one) for one in known]
        if prefix not in known and normalise(prefix) not in keys and self._is_known:
            raise ConfigError(
                f"--prefix {prefix!r} is none of the training data{did_you_mean(prefix, known)} "
                f"(prefixes: {', '.join(known)})"
            )

    @property
    def _is_known(self) -> bool:
        """Whether every start says what it reads; the others are an error when they are asked."""
        return all(part.prefixes for part in self._parts)

    def _why(self, position: int) -> str:
        """Why nothing is read there."""
        start, last = self._parts[0], self._parts[-1]
        begin = start.data.source.position(start.stretch.start.consumed_samples)
        end = last.data.source.position(last.stretch.end.consumed)
        if position < begin:
            return f"the journal begins at position {begin:,} of the stream"
        if position < end:
            return "mix.skip has cut them out"
        return f"it ends at position {end:,} of the stream"

    def _check_document(self, part: Part, number: int, document: int) -> None:
        order = part.stretch.start.order
        sequences, share = order["data"][0][number][2], order["parts"][0]
        prefix = part.prefixes[number]
        if not 0 <= document < sequences:
            raise ConfigError(
                f"--document {document}: {prefix!r} has documents 0 to {sequences - 1:,}"
            )
        training = documents(tuple(share), sequences)
        if document not in training:
            raise ConfigError(
                f"--document {document} of {prefix!r} is not for training: --split gives that "
                f"documents {training.start:,} to {training.stop - 1:,}"
            )

    def _taken(self, part: Part, consumed: Sequence[int]) -> Iterator[Sample]:
        """The samples after so many others, as far as this part of the run takes them."""
        wanted = list(consumed)
        for step in part.stretch.steps(consumed=wanted[0]) if wanted else ():
            while wanted and wanted[0] < step.consumed + step.samples:
                yield from self._samples(part, step, (wanted.pop(0),))
            if not wanted:
                return

    def _samples(
        self, part: Part, step: Step, wanted: Iterable[int] | None = None
    ) -> Iterator[Sample]:
        """Of a step, all or some."""
        own = range(step.consumed, step.consumed + step.samples)
        if isinstance(wanted, range):
            own = range(max(own.start, wanted.start), min(own.stop, wanted.stop))
        for consumed in own if wanted is None or isinstance(wanted, range) else wanted:
            if consumed < step.consumed:
                continue  # an earlier start has read it
            source = part.data.source
            prefix, window = source.locate(consumed)
            spans = tuple(part.data.windows(prefix).spans(window))
            yield Sample(step.iteration, source.position(consumed), part, prefix, spans)
