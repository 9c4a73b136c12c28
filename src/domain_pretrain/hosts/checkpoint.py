"""The plugin's state inside Megatron's checkpoints: one text in the state of the LR scheduler.

One leaf, because some formats store every leaf of a nested state by itself. Those formats also load
into a template: they bring only what the process already has, and before its first step it has
nothing of ours. So what was not asked for is looked up in the checkpoint itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STATE_KEY = "domain_pretrain"  # also in the train state of Megatron-Bridge
SCHEDULER = "opt_param_scheduler"  # what the host calls that part of a checkpoint


def pack(state: dict[str, Any]) -> str:
    """Python primitives → the leaf."""
    return json.dumps(state)


def unpack(leaf: Any) -> dict[str, Any]:
    """The inverse; version 0.1 wrote the state itself."""
    state: dict[str, Any] = json.loads(leaf) if isinstance(leaf, str) else leaf
    return state


def find_missed(folder: str) -> Any:
    """The plugin's leaf of a checkpoint in a format that loads into a template.

    Called by every rank together: ``torch.distributed.checkpoint`` plans its reading on all.

    Args:
        folder: of the checkpoint's iteration.

    Returns:
        None where the checkpoint is of another format, or holds nothing of ours.
    """
    from torch.distributed import checkpoint

    if not Path(folder, ".metadata").is_file():
        return None
    metadata = checkpoint.FileSystemReader(folder).read_metadata()
    paths = (metadata.planner_data or {}).values()
    ours = [path for path in paths if path[:2] == (SCHEDULER, STATE_KEY)]
    if not ours:
        return None
    template: dict[str, Any] = {}
    for *parents, last in ours:  # version 0.1 left a leaf for every number
        place = template
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = ""
    checkpoint.load(template, checkpoint_id=folder)
    return template[SCHEDULER][STATE_KEY]
