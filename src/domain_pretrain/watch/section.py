"""The config's ``watch`` section."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from domain_pretrain.section import Section


class Watching(Section):
    """What is looked for while training."""

    alarms: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Further alarms by name, each with its options; `nonfinite` is always on.",
    )
