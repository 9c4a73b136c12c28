"""What a command is going to read, from its flags alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from domain_pretrain.config import DomainConfig
from domain_pretrain.data.blend import Blend, blend_of_words, data_path_arguments
from domain_pretrain.data.catalog import Catalog
from domain_pretrain.data.channels import read_channels
from domain_pretrain.data.content import check_content
from domain_pretrain.data.domain import Domain
from domain_pretrain.data.mix.blocks import Blocks
from domain_pretrain.data.mix.plan import Plan, make_plan
from domain_pretrain.data.plan import Corpus, training_corpora
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.splits import DEFAULT
from domain_pretrain.hosts.command_line import read_data_flags
from domain_pretrain.hosts.evaluations import check_evaluations
from domain_pretrain.hosts.rollback import leave_out
from domain_pretrain.launch.flags import Flags
from domain_pretrain.watch.decision import decisions_of


def blends_of_flags(
    flags: Flags,
) -> tuple[Blend, Sequence[Blend] | None, Mapping[str, Domain]]:
    """The blend of all splits or of each, which may come from the config; the config's domains.

    Raises:
        ConfigError: a flag, a file of words or the config is wrong.
    """
    domains = DomainConfig.load(flags.domain_config).domains if flags.domain_config else {}
    blend, per_split = read_data_flags(flags)
    if blend is None and per_split is None and domains and flags.reads_prefixes:
        blend = blend_of_words(data_path_arguments(domains)[1:])
    return blend, per_split, domains


def prefixes_of_flags(flags: Flags) -> list[str]:
    """All data prefixes of a command; see :func:`blends_of_flags`."""
    blend, per_split, _ = blends_of_flags(flags)
    return [prefix for one in (blend, *(per_split or ())) if one for prefix in one[0]]


def mix_of_flags(
    flags: Flags, reading: Reading, catalog: Catalog, samples: int | None
) -> Plan | None:
    """The stream that the config asks for; None where the host blends by itself.

    Raises:
        ConfigError: the stages do not fit the run, or the data that it may read is not enough.
    """
    if flags.domain_config is None or flags.skip_train:
        return None
    config = DomainConfig.load(flags.domain_config)
    length, plan = flags.seq_length or 1, None
    if config.mix.asked_for:
        plan = make_plan(config.mix, reading, catalog.prefixes, samples=samples, seq_length=length)
    plan = leave_out(plan, decisions_of(flags))
    dynamic = config.mix.dynamic
    if plan is not None and dynamic is not None and dynamic.epochs is not None:
        pinned = [name for name, domain in config.domains.items() if domain.pinned]
        check_epochs(plan, dynamic.epochs, catalog, pinned, training_corpora(reading, length))
    return plan


def check_epochs(
    plan: Plan,
    epochs: int,
    catalog: Catalog,
    pinned: Collection[str],
    corpora: Mapping[str, Corpus],
) -> None:
    """What a run checks of ``mix.dynamic`` once its data is built, by the sizes alone.

    Args:
        plan: of the stream.
        epochs: that a prefix may be read at most.
        catalog: whose the prefixes are.
        pinned: names of the domains that keep their share.
        corpora: of every prefix; nothing is checked where one is not on this disk.

    Raises:
        ConfigError: the epochs cannot be enough.
    """
    if not all(prefix in corpora for prefix in plan.prefixes):
        return
    owners = [catalog.names.index(catalog.prefixes[normalise(one)]) for one in plan.prefixes]
    fixed = np.array([name in pinned for name in catalog.names])
    limits = np.array([corpora[prefix].samples * epochs for prefix in plan.prefixes])
    Blocks(plan, catalog.names, np.array(owners), fixed, limits, epochs).check_room()


def data_of_flags(flags: Flags) -> tuple[Reading, Catalog] | None:
    """What the command is going to read, and whose it is; None where no flag names prefixes.

    Raises:
        ConfigError: something is missing, wrong, or cannot be read as it is asked for.
    """
    if not flags.reads_prefixes:
        return None
    blend, per_split, domains = blends_of_flags(flags)
    if blend is None and per_split is None:
        return None
    split = flags.split
    if blend is not None and flags.data_args_path is None:
        split = split or DEFAULT
    catalog = Catalog.build(
        blend,
        per_split,
        domains,
        multiple_validation_sets=flags.multiple_validation_sets,
        validation_set_names=flags.validation_set_names,
    )
    reading = Reading.check(
        blend,
        per_split,
        split,
        flags.seq_length or 1,
        catalog.prefixes,
        files=True,
    )
    if flags.domain_config is not None:
        reading = reading.after(DomainConfig.load(flags.domain_config).mix.already_read)
    for channels in read_channels(domains, catalog.prefixes, reading.indices).values():
        channels.check_numbers()
    check_content(reading, flags)
    check_evaluations(flags, reading)
    return reading, catalog
