"""A user's script: the built-in entry; every rank writes what the host itself counts of experts.

``tokens`` is what the host balances by, of each step: over all ranks, of this rank's ``layers``.
PyTorch's norms, which the CPU has to do with, know nothing of sequence parallelism: here they are
told what it needs of them.
"""

import copy
import os
import sys
from pathlib import Path

import numpy as np
import torch
from megatron.core.transformer import torch_norm
from megatron.core.transformer.moe.router import TopKRouter

from domain_pretrain.hosts.gpt import entry as gpt

FOLDER = Path(os.environ["RECORD_DIR"])
finalize = sys.modules["megatron.core.distributed.finalize_model_grads"]
steps: dict[str, list] = {"tokens": [], "gap": [], "layers": []}
update, route = finalize.get_updated_expert_bias, TopKRouter.routing
make_norm, number = torch_norm.WrappedTorchNorm.__new__, TopKRouter.set_layer_number


def recording_update(tokens_per_expert, *args, **kwargs):
    result = update(tokens_per_expert, *args, **kwargs)  # which adds over all ranks, in place
    steps["tokens"].append(tokens_per_expert.long().numpy())
    np.savez(FOLDER / f"rank{os.environ['RANK']}.npz", **steps)
    return result


def recording_routing(self, logits, *args, **kwargs):
    """How far the closest token is from another choice: rounding must not bridge it."""
    if self.expert_bias is not None:
        ranked = (logits.sigmoid() + self.expert_bias).sort(dim=-1, descending=True).values
        gap = ranked[..., self.topk - 1] - ranked[..., self.topk]
        steps["gap"].append(gap.min().item())
    return route(self, logits, *args, **kwargs)


def recording_number(self, layer_number):
    steps["layers"].append(layer_number)
    number(self, layer_number)


def norm(cls, config, *args, **kwargs):
    config, parallel = copy.copy(config), config.sequence_parallel
    config.sequence_parallel = False
    made = make_norm(cls, config, *args, **kwargs)
    for parameter in made.parameters():
        parameter.sequence_parallel = parallel
    return made


finalize.get_updated_expert_bias = recording_update
torch_norm.WrappedTorchNorm.__new__ = norm
TopKRouter.routing, TopKRouter.set_layer_number = recording_routing, recording_number

if __name__ == "__main__":
    torch.set_num_threads(1)
    gpt.main()
