"""A user's script: the built-in entry on a model whose loss on one domain is 5 nats too high from
a step on, the same for every weight: training itself does not notice."""

import torch

from domain_pretrain.hosts.gpt import entry as gpt

DOMAIN = 1  # "general": in every batch
FROM_STEP, MICROBATCHES = 38, 2
labels: list[torch.Tensor] = []
get_batch, forward_step = gpt.get_batch, gpt.forward_step
passes = 0


def recalled_get_batch(*args):
    batch, packed = get_batch(*args)
    labels[:] = [batch["labels"]]
    return batch, packed


def jumping_forward_step(*args, **kwargs):
    global passes
    losses, loss_func = forward_step(*args, **kwargs)
    passes += torch.is_grad_enabled()
    # With data parallelism each rank has half of them; "later" is enough here.
    steps = (passes - 1) * torch.distributed.get_world_size(data_parallel()) // MICROBATCHES + 1
    if steps >= FROM_STEP and labels[0] is not None and losses.shape == labels[0].shape:
        losses = losses + 5.0 * (labels[0] // 50 == DOMAIN)
    return losses, loss_func


def data_parallel():
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_group()


gpt.get_batch, gpt.forward_step = recalled_get_batch, jumping_forward_step

if __name__ == "__main__":  # saving a checkpoint may import the script in another process
    gpt.main()
