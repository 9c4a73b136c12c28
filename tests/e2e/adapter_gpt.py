"""A user's script: the built-in entry; each rank writes its adapters' first gradients."""

import copy
import os
import re
from pathlib import Path

import numpy as np
from megatron.core import parallel_state as mpu
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.training import training

from domain_pretrain.hosts.gpt import entry as gpt

train_step, make_norm = training.train_step, WrappedTorchNorm.__new__


def norm(cls, config, *args, **kwargs):
    """PyTorch's norm computes rows of its own under sequence parallelism; what it lacks is the sum
    of its weight's gradient over TP, and a frozen weight has none."""
    config = copy.copy(config)
    config.sequence_parallel = False
    return make_norm(cls, config, *args, **kwargs)


def recording_train_step(forward_step, data_iterator, model, *args, **kwargs):
    result = train_step(forward_step, data_iterator, model, *args, **kwargs)
    gradients = {}
    for module in model:
        while hasattr(module, "module"):
            module = module.module
        for name, p in module.named_parameters():
            if p.requires_grad:
                gradients[placed(module, name, p)] = p.main_grad.float().numpy()
    np.savez(Path(os.environ["RECORD_DIR"], f"rank{os.environ['RANK']}.npz"), **gradients)
    return result


def placed(module, name, parameter):
    """``NAME@DIM@RANK``: the name it has in the undivided model, and where TP cuts it (-1: not)."""
    name = re.sub(
        r"(?<=layers\.)\d+", lambda m: str(module.decoder.layers[int(m[0])].layer_number - 1), name
    )
    expert = re.search(r"local_experts\.(\d+)", name)
    if expert:
        first = mpu.get_expert_model_parallel_rank() * module.config.num_moe_experts
        first //= mpu.get_expert_model_parallel_world_size()
        name = name.replace(expert[0], f"local_experts.{int(expert[1]) + first}")
    cut = getattr(parameter, "tensor_model_parallel", False)
    return f"{name}@{parameter.partition_dim if cut else -1}@{mpu.get_tensor_model_parallel_rank()}"


training.train_step, WrappedTorchNorm.__new__ = recording_train_step, norm
gpt.main()
