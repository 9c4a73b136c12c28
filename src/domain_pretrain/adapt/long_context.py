"""The long-context stage: a run with longer sequences than the model that it starts from has seen.

Only the checkpoint says how long those were, so it is asked, once, by the rank that tells.
"""

from __future__ import annotations

from typing import Any

from domain_pretrain.adapt.recipe import Recipe
from domain_pretrain.checkpoints.start import holds, saved_at_start
from domain_pretrain.process import rank
from domain_pretrain.refusal import Refusal, on


def _positions(args: Any) -> tuple[int, Any] | None:
    """Positions and rotary base of the model that a run starts from; None: it is its own, or not
    known here."""
    load = getattr(args, "load", None)
    resumed = load and not on(args, "finetune") and holds(load)
    if resumed or rank() != 0:
        return None
    known = saved_at_start(args) or {}
    positions = known.get("max_position_embeddings")
    return (positions, known.get("rotary_base")) if isinstance(positions, int) else None


def _is_longer(args: Any) -> bool:
    found, length = _positions(args), getattr(args, "seq_length", None) or 0
    return found is not None and length > found[0]


def _keeps_base(args: Any) -> bool:
    found, now = _positions(args), getattr(args, "rotary_base", None)
    rotary = getattr(args, "position_embedding_type", None) == "rope"
    scaled = on(args, "use_rope_scaling") or on(args, "rotary_seq_len_interpolation_factor")
    if found is None or not rotary or scaled or None in (now, found[1]):
        return False
    return bool(now <= found[1])


LONG_CONTEXT = Recipe(
    name="long-context stage",
    summary="Longer sequences than the model that the run starts from has positions.",
    applies=_is_longer,
    since="0.12",
    doubts=(
        Refusal(
            "a --seq-length beyond the base's --max-position-embeddings, with its --rotary-base",
            _keeps_base,
            "the model has never seen the positions beyond, and published long-context stages "
            "raise the base (docs/long-context.md)",
        ),
    ),
    page="docs/long-context.md",
)
