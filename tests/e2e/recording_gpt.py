"""A user's script: the built-in entry, with every training microbatch's losses written down."""

import os
from pathlib import Path

import numpy as np
import torch

from domain_pretrain.hosts import gpt

records: list[dict[str, np.ndarray]] = []
original = gpt.loss_func


def recording_loss_func(loss_mask, losses, model=None):
    if torch.is_grad_enabled():
        records.append({"losses": losses.detach().numpy(), "mask": loss_mask.numpy()})
    return original(loss_mask, losses, model=model)


gpt.loss_func = recording_loss_func
gpt.main()
path = Path(os.environ["RECORD_DIR"], f"rank{os.environ['RANK']}.npz")
np.savez(path, **{f"{key}{i}": r[key].copy() for i, r in enumerate(records) for key in r})
