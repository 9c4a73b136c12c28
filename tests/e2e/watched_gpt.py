"""A user's script: the built-in entry, with its forward passes and collectives counted.

Started by itself it is the host alone on the CPU; by ``-m domain_pretrain``, with the plugin.
``DISABLE=1`` takes the plugin out again before training.
"""

import json
import os
from collections import Counter
from functools import wraps
from pathlib import Path

import torch

from domain_pretrain import disable
from domain_pretrain.backends import cpu

cpu.install()

from megatron.training import training  # noqa: E402

from domain_pretrain.hosts.gpt import entry as gpt  # noqa: E402

counts: Counter[str] = Counter()
steps: list[Counter[str]] = []


def counted(function, name):
    @wraps(function)
    def count_and_call(*args, **kwargs):
        counts[name if name != "forward" or torch.is_grad_enabled() else "eval_forward"] += 1
        return function(*args, **kwargs)

    return count_and_call


def end_of_step(function):
    @wraps(function)
    def training_log(*args, **kwargs):
        steps.append(Counter(counts))
        counts.clear()
        return function(*args, **kwargs)

    return training_log


def main():
    if os.environ.get("DISABLE"):
        disable()
    for name in ("all_reduce", "broadcast", "all_gather", "all_gather_into_tensor", "barrier"):
        setattr(torch.distributed, name, counted(getattr(torch.distributed, name), name))
    gpt.forward_step = counted(gpt.forward_step, "forward")
    training.training_log = end_of_step(training.training_log)
    gpt.main()
    path = Path(os.environ["RECORD_DIR"], f"rank{os.environ['RANK']}.json")
    path.write_text(json.dumps([*steps, counts]), encoding="utf-8")


if __name__ == "__main__":
    main()
