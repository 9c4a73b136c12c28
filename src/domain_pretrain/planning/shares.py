"""How the numbers of a stage divide it over the data prefixes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from domain_pretrain.planning.numbers import Given
from domain_pretrain.suggest import did_you_mean

GROUP = "+"  # no name of a domain has one

# Of each domain, its parts, each with what it is about: patterns, prefixes, or what is there.
Domains = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Taker:
    """A domain that takes something, for its parts in these ratios; None: for all, by size."""

    domain: str
    ratios: Mapping[str, Fraction] | None

    def parts(self, domains: Domains) -> list[tuple[str, str]]:
        """Domain and part of each that takes something."""
        names = domains[self.domain] if self.ratios is None else self.ratios
        return [(self.domain, part) for part in names]


@dataclass(frozen=True)
class Claim:
    """A number of a stage, and who takes it: one domain, or several by their size."""

    number: Fraction
    takers: tuple[Taker, ...]


@dataclass(frozen=True)
class Claims:
    """Of a stage.

    Attributes:
        claims: those that name what there is.
        problems: what is wrong with the others, a sentence each.
    """

    claims: tuple[Claim, ...]
    problems: tuple[str, ...]


def read_claims(
    where: str,
    numbers: Mapping[str, Given],
    domains: Domains,
    ratios: Mapping[str, Mapping[str, Fraction]],
) -> Claims:
    """What a stage's numbers say.

    Args:
        where: of them, for messages.
        numbers: by domain, by group (``logic+dialogue``), or of a domain's parts.
        domains: and their parts.
        ratios: of a domain's parts, where the plan gives some.
    """
    claims: list[Claim] = []
    problems: list[str] = []
    seen: set[str] = set()
    for key, given in numbers.items():
        names = [name.strip() for name in key.split(GROUP)]
        wrong = [f"{where}: {text}" for text in _unknown_domains(names, domains)]
        for name in names:
            if name in seen:
                wrong.append(f"{where}: {name!r} is there twice")
            seen.add(name)
        if isinstance(given, Mapping) and len(names) > 1:
            wrong.append(f"{where}: the group {key!r} needs one number, which its domains share")
        elif isinstance(given, Mapping) and not wrong:
            wrong += unknown_parts(where, key, given, domains)
        problems += wrong
        if wrong:
            continue
        if isinstance(given, Mapping):
            for part, number in given.items():
                claims.append(Claim(number, (Taker(key, {part: Fraction(1)}),)))
        else:
            takers = tuple(Taker(name, ratios.get(name)) for name in names)
            claims.append(Claim(given, takers))
    return Claims(tuple(claims), tuple(problems))


def unknown_parts(
    where: str, domain: str, parts: Mapping[str, object], domains: Domains
) -> Iterator[str]:
    """A sentence about each part that a domain does not have."""
    known = list(domains[domain])
    for part in parts:
        if part not in known:
            yield (
                f"{where}: {domain!r} has no part {part!r}{did_you_mean(part, known)} "
                f"(parts: {', '.join(known)})"
            )


def _unknown_domains(names: Sequence[str], domains: Domains) -> Iterator[str]:
    for name in names:
        if name not in domains:
            yield (
                f"unknown domain {name!r}{did_you_mean(name, list(domains))} "
                f"(domains: {', '.join(domains)})"
            )


def divide(
    claims: Sequence[Claim], domains: Domains, sizes: Mapping[tuple[str, str], Mapping[str, int]]
) -> dict[str, Fraction]:
    """What each prefix takes of a stage, relative to the others.

    Args:
        claims: of the stage.
        domains: and their parts.
        sizes: by domain and part, the samples of one epoch of each prefix; none of them 0.
    """
    found: dict[str, Fraction] = {}

    def give(number: Fraction, parts: Sequence[tuple[str, str]]) -> None:
        own = {prefix: size for part in parts for prefix, size in sizes[part].items()}
        total = sum(own.values())
        for prefix, size in own.items():
            found[prefix] = found.get(prefix, Fraction(0)) + number * size / total

    for claim in claims:
        by_size = [
            sum(sum(sizes[part].values()) for part in taker.parts(domains))
            for taker in claim.takers
        ]
        for taker, size in zip(claim.takers, by_size, strict=True):
            number = claim.number * size / sum(by_size)
            if taker.ratios is None:
                give(number, taker.parts(domains))
                continue
            for part, ratio in taker.ratios.items():
                give(number * ratio / sum(taker.ratios.values()), [(taker.domain, part)])
    return found


def whole(parts: Sequence[Fraction], total: int) -> list[int]:
    """``total`` in these parts, in whole numbers that add up to it: by the largest remainders."""
    # As integers: fractions of a thousand denominators are reduced at every step.
    unit = math.lcm(*(part.denominator for part in parts))
    units = [part.numerator * (unit // part.denominator) for part in parts]
    all_units = sum(units)
    counts, remainders = zip(*(divmod(total * own, all_units) for own in units), strict=True)
    order = sorted(range(len(parts)), key=lambda n: -remainders[n])
    more = set(order[: total - sum(counts)])
    return [count + (n in more) for n, count in enumerate(counts)]
