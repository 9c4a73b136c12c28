"""The config's ``adapt.experts`` section."""

from __future__ import annotations

from domain_pretrain.section import Section


class Experts(Section):
    """A mixture of experts."""
