"""A user's script: the built-in entry on a model that gives NaN for the tokens of one domain.

``VALUE`` is given instead of NaN; with ``FUSED`` our sums stand in for the loss function's, as on a
GPU.
"""

import os

import torch

from domain_pretrain.hosts.gpt import entry as gpt
from domain_pretrain.kernels.domain_reduce import Backend

DOMAIN = 1  # "general": in every batch
FROM_STEP, MICROBATCHES = 2, 8
tokens: list[torch.Tensor] = []
get_batch, forward_step = gpt.get_batch, gpt.forward_step
passes = 0


def recalled_get_batch(*args):
    batch, packed = get_batch(*args)
    tokens[:] = [batch["tokens"]]
    return batch, packed


def poisoned_forward_step(*args, **kwargs):
    global passes
    losses, loss_func = forward_step(*args, **kwargs)
    training = torch.is_grad_enabled()
    passes += training
    due = passes > (FROM_STEP - 1) * MICROBATCHES if training else True
    if due and os.environ["POISON"] in ("both", "training" if training else "evaluation"):
        value = float(os.environ.get("VALUE", "nan"))
        losses = losses.masked_fill(tokens[0] // 50 == DOMAIN, value)
    return losses, loss_func


gpt.get_batch, gpt.forward_step = recalled_get_batch, poisoned_forward_step
if "FUSED" in os.environ:
    Backend.fused = property(lambda self: True)

if __name__ == "__main__":  # saving a checkpoint may import the script in another process
    gpt.main()
