"""A user's script: the built-in entry, with every microbatch and the first logits written down."""

import os
from pathlib import Path

import numpy as np
import torch

from domain_pretrain.hosts.gpt import entry as gpt

records: dict[str, np.ndarray] = {}
read: dict[str, torch.Tensor] = {}
get_batch, forward_step = gpt.get_batch, gpt.forward_step
steps = 0


def remembering_get_batch(*args):
    batch, packed = get_batch(*args)
    read.update(batch)
    return batch, packed


def recording_forward_step(data_iterator, model, *args, **kwargs):
    """Microbatch N as ``NAME_N``; ``valid`` says whether it is one of an evaluation."""
    global steps
    output, loss = forward_step(data_iterator, model, *args, **kwargs)
    for name in ("tokens", "labels", "loss_mask"):
        if read[name] is not None:
            records[f"{name}_{steps}"] = read[name].numpy().copy()
    records[f"valid_{steps}"] = np.array(not model.training)
    if model.training and "logits" not in records:
        with torch.no_grad():  # [b, s, vocabulary / TP] on the last stage
            logits = model(read["tokens"], read["position_ids"], read["attention_mask"])
        records["logits"] = logits.float().numpy().copy()
        records["first"] = np.array(steps)
    steps += 1
    return output, loss


gpt.get_batch, gpt.forward_step = remembering_get_batch, recording_forward_step


def main():
    gpt.main()
    np.savez(Path(os.environ["RECORD_DIR"], f"rank{os.environ['RANK']}.npz"), **records)


if __name__ == "__main__":
    main()
