"""The config's ``adapt.experts`` section."""

from __future__ import annotations

from pydantic import Field

from domain_pretrain.rules.options import NonNegative
from domain_pretrain.section import Section


class Experts(Section):
    """A mixture of experts."""

    load: bool = Field(
        default=False,
        description="Count at logged steps which experts each domain's tokens go to.",
    )
    entropy_loss: NonNegative = Field(
        default=0.0,
        description="Coefficient of a loss against routers that are too sure of their choice; 0: "
        "none. With it, experts are counted, too.",
    )

    @property
    def counts(self) -> bool:
        """Whether experts are counted."""
        return self.load or self.entropy_loss > 0
