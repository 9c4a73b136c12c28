"""``harness``: tasks of EleutherAI's lm-evaluation-harness, asked of any model.

``probe`` has the options and the probe, ``tasks`` loads what they name, ``model`` is what lm-eval
asks, ``scores`` makes scores of what it found, and ``apart`` keeps it from the network. lm-eval
takes seconds to import: only running the probe does, or importing ``tasks``, ``model`` or
``scores``.
"""

from domain_pretrain.evaluate.harness.probe import HarnessOptions, harness

__all__ = ["HarnessOptions", "harness"]
