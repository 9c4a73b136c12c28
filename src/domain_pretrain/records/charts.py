"""TensorBoard's *Custom Scalars* page: one chart for each metric, all domains in it."""

from __future__ import annotations

from typing import Any


def charts(*, weights: bool, mix: bool = False) -> dict[str, dict[str, list[Any]]]:
    """The layout as ``SummaryWriter.add_custom_scalars`` takes it.

    Tags are given as patterns (TensorBoard matches them as regular expressions, from the start
    of a tag): names need no escaping, and 1,000 domains are still one request for each chart.

    Args:
        weights: whether multipliers are in force; without them their chart would stay empty.
        mix: the same, of shares that follow the losses.
    """
    layout = {
        "channel loss": {"train": "channel-loss", "validation": "channel-loss-valid"},
        "perplexity": {"train": "channel-ppl", "validation": "channel-ppl-valid"},
        "data": {
            "share of the window's tokens": "channel-tokens",
            "tokens consumed so far": "channel-consumed",
        },
    }
    if weights:
        layout["reweighting"] = {
            "multiplier": "channel-weight",
            "share of the weighted tokens": "channel-share",
        }
    if mix:
        layout["data"] = {**layout["data"], "share of the stream": "channel-mix"}
    return {
        category: {title: ["Multiline", [f"{tag}/.*"]] for title, tag in content.items()}
        for category, content in layout.items()
    }


def add_layout(writer: Any, *, weights: bool, mix: bool = False) -> str | None:
    """Write the layout into the event file of ``writer``; TensorBoard reads the first one only.

    Args:
        writer: the host's writer: ``torch.utils.tensorboard`` or ``tensorboardX``.
        weights, mix: see :func:`charts`.

    Returns:
        None, or a note for the console where the writer cannot carry a layout.
    """
    if not hasattr(writer, "add_custom_scalars"):
        return (
            f"channel loss | note: {type(writer).__module__}.{type(writer).__name__} has no "
            "add_custom_scalars, so TensorBoard's Custom Scalars page stays empty; every domain's "
            "curves are under Scalars"
        )
    writer.add_custom_scalars(charts(weights=weights, mix=mix))
    return None
