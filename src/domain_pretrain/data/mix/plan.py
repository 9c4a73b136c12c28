"""What a run's stream is to be: stages by prefix, in samples; cuts; documents left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from domain_pretrain.data.index import Index
from domain_pretrain.data.mix import section
from domain_pretrain.data.mix.apportion import Shape
from domain_pretrain.data.mix.omit import Omission, documents_of
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading
from domain_pretrain.errors import ConfigError
from domain_pretrain.suggest import did_you_mean

MOST_CUT = 100  # times the samples of the run: what is cut is laid out all the same


@dataclass(frozen=True)
class Stage:
    """A part of the stream.

    Attributes:
        samples: its length; None: it goes on for as long as the run does.
        weights: of every prefix, relative; None: the samples that one epoch of it has.
        shape: how they are reached from those of the stage before.
    """

    samples: int | None
    weights: tuple[float, ...] | None
    shape: Shape = "constant"


@dataclass(frozen=True)
class Plan:
    """The stream of a run.

    Attributes:
        prefixes: of the training blend, as it spells them, in its order.
        stages: one after the other.
        samples: that the run trains on.
        cuts: half-open ranges of positions that are not read; ascending and apart.
        block: where the losses decide, samples for which they do at a time; the one stage then
            has the weights that they start from.
        omissions: documents that are not read, one after the other.
        begin: position from which on it holds, where a run goes on from another plan. It is laid
            out from 0 on all the same, so that stages and cuts are at the positions of the run.
        taken: where it does, samples of every prefix that have come before; empty: none have.
    """

    prefixes: tuple[str, ...]
    stages: tuple[Stage, ...]
    samples: int
    cuts: tuple[tuple[int, int], ...] = ()
    block: int | None = None
    omissions: tuple[Omission, ...] = ()
    begin: int = 0
    taken: tuple[int, ...] = ()

    @property
    def is_hosts_blend(self) -> bool:
        """Whether one blend holds all along: then the host's own order does."""
        return len(self.stages) == 1 and self.block is None

    def position(self, consumed: int) -> int:
        """Where in the stream the sample lies that comes after ``consumed`` others."""
        for first, stop in self.cuts:
            if consumed < first:
                break
            consumed += stop - first
        return consumed

    def passed(self, consumed: int) -> int:
        """The positions below it are behind a run that has consumed so many samples."""
        return self.position(consumed - 1) + 1 if consumed else 0

    def consumed(self, position: int) -> int:
        """Samples that the run consumes before a position of the stream."""
        return position - sum(
            min(stop, position) - first for first, stop in self.cuts if first < position
        )

    @property
    def idle_cuts(self) -> list[tuple[int, int]]:
        """Those that the run ends before."""
        return [cut for cut in self.cuts if cut[0] >= self.passed(self.samples)]

    def without(self, cuts: Iterable[tuple[int, int]]) -> Plan:
        """The same stream with further cuts."""
        return replace(self, cuts=union([*self.cuts, *cuts]))

    def reads(self, first: int, stop: int) -> bool:
        """Whether anything of these positions is read: one cut may hold all of them."""
        return not any(start <= first and stop <= end for start, end in self.cuts)

    def starts(self) -> list[int]:
        """Where each stage begins in the stream."""
        places = [0]
        for stage in self.stages[:-1]:
            assert stage.samples is not None
            places.append(places[-1] + stage.samples)
        return places

    def dump(self) -> dict[str, Any]:
        """For a checkpoint, JSON values: stages as ``[samples, shares, shape]``; cuts; block;
        omissions as ``[since, documents]``; where it goes on from another."""
        stages = [
            [one.samples, None if one.weights is None else _shares(one.weights), one.shape]
            for one in self.stages
        ]
        block = {} if self.block is None else {"block": self.block}
        found = {"stages": stages, "cuts": [list(cut) for cut in self.cuts], **block}
        omissions = [one.dump() for one in self.omissions]
        before = {"begin": self.begin, "taken": list(self.taken)} if self.taken else {}
        return found | ({"omissions": omissions} if omissions else {}) | before


def make_plan(
    mix: section.Mix,
    reading: Reading,
    domain_of: Mapping[str, str],
    *,
    samples: int | None,
    seq_length: int,
    look_up: bool = True,
) -> Plan:
    """Work out the stream that a config asks for.

    Args:
        mix: of the config.
        reading: of the run.
        domain_of: data prefix, normalised → name of its domain.
        samples: that the run trains on.
        seq_length: tokens of a sample.
        look_up: whether documents that are told by their content are looked for; one rank does.

    Raises:
        ConfigError: the run has no such data, a name is not known, or the stages do not fit it.
    """
    blend, part = reading.blends[0], reading.parts[0]
    if blend is None or part is None:
        raise ConfigError("mix: the run has no training data that it could mix")
    if not samples:
        raise ConfigError(
            "mix: the flags do not say how many samples the run trains on: give --train-samples, "
            "or --train-iters and --global-batch-size"
        )
    prefixes, weights = blend
    for prefix in reading.indices:
        if prefix in prefixes and not reading.trains_on(prefix, seq_length + 1):
            which = "" if reading.already_read is None else " that no run before has read"
            raise ConfigError(
                f"mix: {prefix!r} has fewer than {seq_length + 1:,} tokens in the training split"
                f"{which}, which one sample of --seq-length {seq_length} takes: give it more "
                "documents, or take it off the training data"
            )
    (most, times), *_ = Counter(map(normalise, prefixes)).most_common(1)
    if times > 1:
        raise ConfigError(
            f"mix: the training data name {most!r} {times} times, so its samples would come as "
            "often: name it once, with the sum of its weights"
        )
    proportions = weights or _sizes(prefixes, reading.indices)
    if mix.schedule:
        lengths = _lengths(mix.schedule, samples, seq_length)
        stages = tuple(
            Stage(length, _by_prefix(number, one, prefixes, proportions, domain_of), one.shape)
            for number, (one, length) in enumerate(zip(mix.schedule, lengths, strict=True), start=1)
        )
    elif mix.dynamic is None:
        stages = (Stage(None, None if weights is None else tuple(weights)),)
    elif proportions is None:
        raise ConfigError(
            "mix.dynamic: the prefixes are not all on this disk, so that their sizes cannot give "
            "the shares to start from: give the data flag weights"
        )
    else:
        stages = (Stage(None, tuple(proportions)),)
    cuts = union(cut.samples for cut in mix.skip if cut.samples is not None)
    block = None if mix.dynamic is None else mix.dynamic.block
    left = documents_of(mix.skip, prefixes, reading, look_up=look_up)
    omissions = (Omission((0,) * len(prefixes), left),) if any(left) else ()
    plan = Plan(tuple(prefixes), stages, samples, cuts, block, omissions)
    left_out = plan.passed(samples) - samples
    if left_out > MOST_CUT * samples:
        raise ConfigError(
            f"mix.skip cuts {left_out:,} samples out of a run of {samples:,}: positions are "
            "counted in samples, not in tokens"
        )
    return plan


def union(cuts: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same positions in ranges that are ascending and apart."""
    found: list[tuple[int, int]] = []
    for first, stop in sorted(cuts):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((first, stop))
    return tuple(found)


def _lengths(stages: Sequence[section.Stage], samples: int, seq_length: int) -> list[int | None]:
    """Samples of every stage: each ends at the sample nearest to where it should."""
    lengths: list[int | None] = []
    end, exact = 0, Fraction(0)
    for number, stage in enumerate(stages, start=1):
        if stage.samples is not None:
            exact += stage.samples
        elif stage.tokens is not None:
            exact += Fraction(stage.tokens, seq_length)
        elif stage.share is not None:
            exact += Fraction(repr(stage.share)) * samples
        elif end >= samples:
            raise ConfigError(
                f"mix.schedule: the stages before the last take {end:,} of the run's {samples:,} "
                "training samples, so that nothing is left for it: make them shorter"
            )
        else:  # weights that change all the way depend on where it ends
            lengths.append(None if stage.shape == "constant" else samples - end)
            return lengths
        length = round(exact) - end
        if length < 1:
            raise ConfigError(
                f"mix.schedule: stage {number} is less than one sample of {seq_length:,} tokens"
            )
        lengths.append(length)
        end += length
    if end != samples:
        raise ConfigError(
            f"mix.schedule: the stages are {' + '.join(f'{one:,}' for one in lengths)} = {end:,} "
            f"samples, and the run trains on {samples:,}: make them agree, or give the last stage "
            "no length, so that it takes the rest"
        )
    return lengths if len(lengths) > 1 else [None]


def _by_prefix(
    number: int,
    stage: section.Stage,
    prefixes: Sequence[str],
    proportions: Sequence[float] | None,
    domain_of: Mapping[str, str],
) -> tuple[float, ...]:
    """A domain's weight is divided over its prefixes as the data flag has them."""
    owners = [domain_of[normalise(prefix)] for prefix in prefixes]
    for name in stage.weights:
        if name not in owners:
            raise ConfigError(
                f"mix.schedule: stage {number} weighs {name!r}, which is no domain of the training "
                f"data{did_you_mean(name, owners)} (domains: {', '.join(dict.fromkeys(owners))})"
            )
    weights = [0.0] * len(prefixes)
    for name, given in stage.weights.items():
        members = [index for index, owner in enumerate(owners) if owner == name]
        if isinstance(given, dict):
            own = {normalise(prefixes[index]): index for index in members}
            for prefix, weight in given.items():
                key = normalise(prefix)
                if key not in own:
                    known = [prefixes[index] for index in members]
                    raise ConfigError(
                        f"mix.schedule: stage {number} weighs {prefix!r}, which is no prefix of "
                        f"the domain {name!r}{did_you_mean(prefix, known)} (prefixes: "
                        f"{', '.join(known)})"
                    )
                weights[own[key]] = float(weight)
        elif len(members) == 1:
            weights[members[0]] = float(given)
        elif given:
            if proportions is None:
                raise ConfigError(
                    f"mix.schedule: the prefixes of {name!r} are not all on this disk, so their "
                    "sizes cannot divide its weight: give the data flag weights, or weigh each "
                    "prefix"
                )
            total = math.fsum(proportions[index] for index in members)
            for index in members:
                weights[index] = given * (proportions[index] / total)
    return tuple(weights)


def _sizes(prefixes: Sequence[str], indices: Mapping[str, Index]) -> list[float] | None:
    if not all(prefix in indices for prefix in prefixes):
        return None
    return [float(indices[prefix].tokens) for prefix in prefixes]


def _shares(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights]
