"""Every recipe: what the start checks, ``doctor`` prints, and the docs list."""

from __future__ import annotations

from domain_pretrain.adapt.long_context import LONG_CONTEXT
from domain_pretrain.adapt.muon import MUON, QK_CLIP
from domain_pretrain.adapt.recipe import Recipe

RECIPES: tuple[Recipe, ...] = (MUON, QK_CLIP, LONG_CONTEXT)
