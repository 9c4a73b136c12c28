"""The blend: prefixes and weights, as the command line gives them and as a config means them."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

from domain_pretrain.data.domain import Domain
from domain_pretrain.data.prefixes import count_tokens, did_you_mean_prefix, expand, normalise
from domain_pretrain.errors import ConfigError

# What Megatron makes of a data flag: prefixes, and weights or None.
Blend = tuple[list[str], list[float] | None] | None


def check_data_path(tokens: Sequence[str], flag: str = "--data-path") -> None:
    """Check the values of a data flag, before Megatron reads them.

    Megatron takes an odd number of values as prefixes, whatever they look like. In an even number
    it takes the first of every two as a weight if all of them are numbers; if none is, all are
    prefixes; if some are, it stops at a bare assert.

    Args:
        tokens: the values as given, of ``--data-path`` or of a data file split at white space.
        flag: their source, for the message.

    Raises:
        ConfigError: names the offending value and its position, counted from 1.
    """
    if not tokens:
        raise ConfigError(f"{flag} is empty: give prefixes, or weights and prefixes in turn")
    numeric = [_is_number(token) for token in tokens]
    if len(tokens) % 2 or not any(numeric[::2]):
        check_blend((list(tokens), None), flag)
    elif all(numeric[::2]):
        for position, token in list(enumerate(tokens, start=1))[::2]:
            what = f"{flag}: weight {token!r} (value {position})"
            _check_weight(token, what)
            if os.path.isfile(f"{token}.idx"):
                raise ConfigError(
                    f"{what} is also a dataset here: write ./{token} for the dataset, or "
                    f"{_other_spelling(token)} for the weight"
                )
        check_blend((list(tokens[1::2]), None), flag)
    else:
        position = 2 * numeric[::2].index(False)
        raise ConfigError(
            f"{flag}: {tokens[position]!r} (value {position + 1}) stands where a weight is "
            "expected: give every prefix a weight before it, or none"
        )


def check_blend(blend: Blend, source: str) -> None:
    """Check what Megatron made of a data flag; see :func:`check_data_path`.

    Raises:
        ConfigError: a number taken for a prefix, or a weight that is not positive and finite.
    """
    prefixes, weights = blend or ([], None)
    for position, prefix in enumerate(prefixes, start=1):
        on_disk = os.path.exists(prefix) or os.path.exists(f"{prefix}.idx")
        if _is_number(prefix) and not on_disk:
            raise ConfigError(
                f"{source}: {prefix!r} is taken for prefix {position} of {len(prefixes)}, but "
                "looks like a weight: weights go before their prefixes, and every prefix has "
                "one, or none has"
            )
    for prefix, weight in zip(prefixes, weights or (), strict=False):
        _check_weight(weight, f"{source}: weight {weight!r} of {prefix!r}")


def blend_of_words(words: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Prefixes and weights of a data flag, as Megatron separates them.

    Args:
        words: that :func:`check_data_path` has passed.
    """
    try:
        weights = [float(word) for word in words[::2]]
    except ValueError:
        return list(words), None
    return (list(words), None) if len(words) % 2 else (list(words[1::2]), weights)


def domain_prefixes(domains: Mapping[str, Domain]) -> dict[str, list[str]]:
    """The prefixes of every domain, globs expanded, each once, in order.

    Raises:
        ConfigError: a glob matches nothing, or a prefix belongs to two domains.
    """
    owner: dict[str, tuple[str, str]] = {}
    members: dict[str, list[str]] = {}
    problems: list[str] = []
    for name, domain in domains.items():
        own: dict[str, str] = {}
        for pattern in domain.data:
            try:
                prefixes = expand(pattern)
            except ConfigError as error:
                problems.append(str(error))
                continue
            if not prefixes:
                problems.append(
                    f"domain {name!r} has no data: {pattern!r} matches no .idx file"
                    f"{did_you_mean_prefix(pattern)}"
                )
            for prefix in prefixes:
                key = normalise(prefix)
                other, other_pattern = owner.setdefault(key, (name, pattern))
                if other != name:
                    problems.append(
                        f"prefix {prefix!r} belongs to two domains: {other!r} "
                        f"(by {other_pattern!r}) and {name!r} (by {pattern!r})"
                    )
                own[key] = prefix
        members[name] = list(own.values())
    if problems:
        raise ConfigError("\n".join(problems))
    return members


def data_path_arguments(domains: Mapping[str, Domain]) -> list[str]:
    """The data flag that a config's domains stand for: ``["--data-path", weight, prefix, …]``.

    A domain's weight is divided over its prefixes in proportion to their tokens. Where no domain
    has a weight, all prefixes are mixed in proportion to their tokens. Same order on every call:
    domains as in the file, prefixes as listed, globs sorted.

    Raises:
        ConfigError: see :func:`domain_prefixes`; or sizes are needed (several prefixes in a
            domain, or no weights) and cannot be read.
    """
    arguments = ["--data-path"]
    for name, prefixes in domain_prefixes(domains).items():
        weight = domains[name].weight
        if weight is not None and len(prefixes) == 1:
            arguments += [repr(weight), prefixes[0]]
            continue
        tokens = {prefix: count_tokens(prefix) for prefix in prefixes}
        total = sum(tokens.values())
        for prefix, count in tokens.items():
            part = float(count) if weight is None else weight * count / total
            arguments += [repr(part), prefix]
    return arguments


def check_agreement(domains: Mapping[str, Domain], blends: Sequence[Blend]) -> dict[str, str]:
    """Check that a config's domains and the blends of the host say the same.

    Args:
        domains: at least one.
        blends: of the train, valid and test split.

    Returns:
        The name of the domain of every prefix of the blends, by its normalised spelling.

    Raises:
        ConfigError: a prefix without a domain, a domain without data, a prefix of the config that
            is in no blend, or weights of the training blend in another ratio than the config's.
    """
    members = domain_prefixes(domains)
    domain_of = {normalise(prefix): name for name, ps in members.items() for prefix in ps}
    blended = {normalise(prefix): prefix for blend in blends if blend for prefix in blend[0]}
    strangers = [prefix for key, prefix in blended.items() if key not in domain_of]
    if strangers:
        more = f" (and {len(strangers) - 1} more)" if len(strangers) > 1 else ""
        raise ConfigError(
            f"prefix {strangers[0]!r} of the data flags{more} belongs to no domain of the config "
            f"({', '.join(members)}): add it to a domain's data, or take it off the command line"
        )
    for name, prefixes in members.items():
        unused = [prefix for prefix in prefixes if normalise(prefix) not in blended]
        if unused:
            what = "has no data" if unused == prefixes else "has data that is not used"
            raise ConfigError(
                f"domain {name!r} {what}: the data flags do not list {unused[0]!r} (from "
                f"{domains[name].data}); make them agree, or leave the data flags out and "
                "let the config supply them"
            )
    if blends[0]:
        _check_weights_agree(domains, domain_of, blends[0])
    return domain_of


def _check_weights_agree(
    domains: Mapping[str, Domain],
    domain_of: dict[str, str],
    blend: tuple[list[str], list[float] | None],
) -> None:
    expected = {name: domain.weight for name, domain in domains.items() if domain.weight}
    if len(expected) < 2:
        return  # no weights in the config, or one domain, which is always the whole
    prefixes, weights = blend
    if weights is None and len(prefixes) > 1:
        raise ConfigError(
            "the config gives weights, but the training data flag gives none, so that Megatron "
            "mixes by size: add the weights there, or take them out of the config"
        )
    given: defaultdict[str, float] = defaultdict(float)
    for prefix, weight in zip(prefixes, weights or [1.0], strict=True):
        given[domain_of[normalise(prefix)]] += weight
    for name, weight in expected.items():
        share, given_share = weight / sum(expected.values()), given[name] / sum(given.values())
        if not math.isclose(share, given_share, rel_tol=1e-6):
            raise ConfigError(
                f"domain {name!r}: the config's weight {weight:g} is {share:.6%} of the training "
                f"blend, the data flags' weight {given[name]:g} is {given_share:.6%}: make them "
                "agree, or take the weights out of the config"
            )


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def _other_spelling(number: str) -> str:
    plain = repr(float(number))
    return plain if plain != number else f"0{plain}"


def _check_weight(weight: float | str, what: str) -> None:
    value = float(weight)
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{what} must be positive and finite; leave out what gets no weight")
