"""A user's script: the built-in entry, with the fault that ``FAULT`` names from step ``AT`` on."""

import os

import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from domain_pretrain.hosts.gpt import entry as gpt

FAULT, AT, BATCH = os.environ.get("FAULT", ""), int(os.environ.get("AT", "0")), 16
MARK = 0x1F  # in the logs, and in no other text
seen: list[torch.Tensor] = []
steps = 0  # of training; a step has one microbatch
get_batch, forward_step, get_lr = gpt.get_batch, gpt.forward_step, OptimizerParamScheduler.get_lr


def kept_batch(*args):
    batch, packed = get_batch(*args)
    seen[:] = [batch["tokens"]]
    return batch, packed


def poisoned(*args, **kwargs):
    """The loss of the logs is NaN in one step."""
    global steps
    losses, loss_func = forward_step(*args, **kwargs)
    steps += torch.is_grad_enabled()
    if steps == AT and torch.is_grad_enabled():
        losses = losses.masked_fill((seen[0] == MARK).any(dim=1, keepdim=True), torch.nan)
    return losses, loss_func


def raised(self, *args, **kwargs):
    """The learning rate is 20 times what it should be."""
    rate = get_lr(self, *args, **kwargs)
    return 20 * rate if self.num_steps >= (AT - 1) * BATCH else rate


if FAULT == "nan":
    gpt.get_batch, gpt.forward_step = kept_batch, poisoned
if FAULT == "rate":
    OptimizerParamScheduler.get_lr = raised

if __name__ == "__main__":
    gpt.main()
