"""A user's script: the built-in entry; it writes the gradients of its first step, and what they
should be: autograd of the formula in float64. It wants one process, and rows without padding.
"""

import os
from pathlib import Path

import numpy as np
import torch
from megatron.training import training
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from domain_pretrain.hosts import experts
from domain_pretrain.hosts.gpt import entry as gpt

FOLDER, COEFFICIENT = Path(os.environ["RECORD_DIR"]), float(os.environ["COEFFICIENT"])
batches: list[dict[str, torch.Tensor]] = []
logits: list[torch.Tensor] = []
get_batch, train_step = gpt.get_batch, training.train_step


def recording_get_batch(*args):
    batch, packed = get_batch(*args)
    assert batch["loss_mask"].all()
    batches.append(batch)
    return batch, packed


def recording_train_step(forward_step, data_iterator, model, *args, **kwargs):
    (module,) = model
    while hasattr(module, "module"):
        module = module.module
    before = {n: p.detach().double().requires_grad_() for n, p in module.named_parameters()}
    train_step(forward_step, data_iterator, model, *args, **kwargs)
    gradients = {n: p.main_grad.numpy() for n, p in module.named_parameters()}
    np.savez(FOLDER / "gradients.npz", **gradients)
    for name, coefficient in (("expected", COEFFICIENT), ("plain", 0.0)):
        np.savez(FOLDER / f"{name}.npz", **autograd(module, before, coefficient))
    raise SystemExit


def keep(router, found, coefficient, padding):
    logits.append(found)
    return found


def autograd(module, parameters, coefficient):
    experts.add_entropy_loss = keep
    total = 0.0
    for batch in batches:
        logits.clear()
        inputs = (batch["tokens"], batch["position_ids"], batch["attention_mask"])
        out = functional_call(module, parameters, inputs)
        loss = cross_entropy(out.flatten(0, 1), batch["labels"].flatten())
        for one in logits:
            assert one.dtype == torch.float64
            ranked = one.sigmoid().sort(dim=-1, descending=True).values
            assert (ranked[:, 1] - ranked[:, 2]).min() > 1e-6, "too close a choice for this test"
            sigmoid = module.config.moe_router_score_function == "sigmoid"
            scores = one.sigmoid() if sigmoid else one.exp()
            parts = scores / scores.sum(dim=-1, keepdim=True)
            loss = loss + coefficient * (parts * parts.log()).sum(dim=-1).mean()
        total = total + loss / len(batches)
    gradients = torch.autograd.grad(total, list(parameters.values()))
    return {n: g.numpy() for n, g in zip(parameters, gradients, strict=True)}


gpt.get_batch, training.train_step = recording_get_batch, recording_train_step
gpt.main()
