"""The YAML file: the sections that the rooms own, in one mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from domain_pretrain.adapt.section import Adapting
from domain_pretrain.data.domain import Domain, check_names, check_weights
from domain_pretrain.data.mix.section import Mix
from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.section import Evaluating
from domain_pretrain.kernels.section import ChannelLoss
from domain_pretrain.section import Section, read_section
from domain_pretrain.strategies.section import Reweight, parse_reweight
from domain_pretrain.watch.section import Watching


class DomainConfig(Section):
    """The file given by ``--domain-config``."""

    domains: Annotated[
        dict[str, Domain], AfterValidator(check_names), AfterValidator(check_weights)
    ] = Field(
        default_factory=dict,
        description="The domains, by name. Empty: every data prefix is a domain of its own.",
    )
    channel_loss: ChannelLoss = Field(
        default=ChannelLoss(), description="How a domain's loss is summed and averaged."
    )
    reweight: Reweight | None = Field(
        default=None, description="Dynamic reweighting of the domains; absent: none."
    )
    mix: Mix = Field(
        default=Mix(),
        description="Which training sample comes when; absent: as Megatron blends them.",
    )
    evaluate: Evaluating = Field(
        default=Evaluating(), description="What is measured of the model while it trains."
    )
    watch: Watching = Field(default=Watching(), description="What is looked for while training.")
    adapt: Adapting = Field(
        default=Adapting(),
        description="What training does besides plain continued pretraining: adapters, experts.",
    )
    exporters: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Exporters of other packages by name, each with its options.",
    )

    @model_validator(mode="after")
    def _channels_are_of_tokens(self) -> DomainConfig:
        name = next((name for name, domain in self.domains.items() if domain.channels), None)
        reason = None
        if name is None:
            return self
        if self.channel_loss.average == "sample":
            reason = "channel_loss.average: sample, since a sample may have several of them"
        elif self.mix.dynamic is not None:
            reason = "mix.dynamic, which decides how many samples a domain gives"
        elif self.evaluate.samples is not None:
            reason = "evaluate.samples, which takes so many samples of each domain"
        elif self.reweight is not None and self.reweight.scope == "microbatch":
            reason = "reweight.scope: microbatch, which weighs whole samples"
        if reason is not None:
            raise PydanticCustomError(
                "channels",
                "domain {name} has channels, which do not go with {reason}: leave one of them out",
                {"name": repr(name), "reason": reason},
            )
        return self

    @classmethod
    def load(cls, path: str | Path) -> DomainConfig:
        """Read and check a config file.

        Args:
            path: a YAML file.

        Raises:
            ConfigError: the file cannot be read, is not a YAML mapping, or breaks the schema; the
                message lists every offending key by its path.
        """
        return read_section(cls, path, "domain config")

    def reweighting(self, strategy: str | None) -> Reweight | None:
        """The ``reweight`` section as it holds with ``--domain-reweight``; None: no reweighting.

        Raises:
            ConfigError: the file and the flag name different strategies.
        """
        if strategy == "none" or (strategy is None and self.reweight is None):
            return None
        given = {} if self.reweight is None else self.reweight.model_dump(exclude_unset=True)
        if strategy is not None and given.setdefault("strategy", strategy) != strategy:
            raise ConfigError(
                f"--domain-reweight {strategy} and reweight.strategy: {given['strategy']} of the "
                "config disagree: take one out"
            )
        return parse_reweight(given)

    def settings(self, strategy: str | None = None) -> dict[str, Any]:
        """What the file says, by dotted key, as it holds with ``--domain-reweight``; JSON values.

        It does not depend on formatting, the order of keys, or keys set to their default (so a key
        that a later version adds does not change it).
        """
        content = self.model_dump(mode="json", exclude_defaults=True, exclude={"reweight"})
        rule = self.reweighting(strategy)
        if rule is not None:  # that there is one is told even where all of it is default
            said = rule.model_dump(mode="json", exclude_defaults=True)
            content["reweight"] = {"strategy": rule.strategy, **said}
        return dict(sorted(_flat(content)))


def _flat(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield path + key, value
