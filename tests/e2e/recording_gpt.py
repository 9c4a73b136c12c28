"""A user's script: the built-in entry, with every training microbatch written down."""

import os
from pathlib import Path

import numpy as np
import torch

from domain_pretrain.hosts.gpt import entry as gpt

records: list[dict[str, np.ndarray]] = []
read: list[torch.Tensor] = []
get_batch, loss_func = gpt.get_batch, gpt.loss_func


def recording_get_batch(*args):
    batch, packed = get_batch(*args)
    read[:] = [batch["tokens"], batch["labels"]]
    return batch, packed


def recording_loss_func(loss_mask, losses, model=None):
    if torch.is_grad_enabled():
        named = {"losses": losses.detach().float(), "mask": loss_mask}
        named |= {"tokens": read[0], "labels": read[1]}
        named = {name: tensor for name, tensor in named.items() if tensor is not None}
        records.append({name: tensor.numpy().copy() for name, tensor in named.items()})
    return loss_func(loss_mask, losses, model=model)


gpt.get_batch, gpt.loss_func = recording_get_batch, recording_loss_func


def main():
    gpt.main()
    path = Path(os.environ["RECORD_DIR"], f"rank{os.environ['RANK']}.npz")
    np.savez(path, **{f"{key}{i}": r[key] for i, r in enumerate(records) for key in r})


if __name__ == "__main__":
    main()
