"""The config's ``adapt.lora`` section."""

from __future__ import annotations

from domain_pretrain.section import Section


class Lora(Section):
    """Adapters of low rank beside linear layers."""
