"""A user's script: the built-in entry; every rank writes the gradients of its second step.

A single process also writes what they should be: autograd of the formulas in float64, on the same
weights and rows. It wants one row a microbatch, and a learning rate of 0.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state as mpu
from megatron.training import training
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from domain_pretrain.hosts.gpt import entry as gpt

FOLDER = Path(os.environ["RECORD_DIR"])
WEIGHTS = torch.tensor(json.loads(os.environ["WEIGHTS"]), dtype=torch.float64)
steps: list[list[dict[str, torch.Tensor]]] = [[]]
get_batch, train_step = gpt.get_batch, training.train_step


def recording_get_batch(*args):
    batch, packed = get_batch(*args)
    steps[-1].append(batch)
    return batch, packed


def recording_train_step(forward_step, data_iterator, model, *args, **kwargs):
    result = train_step(forward_step, data_iterator, model, *args, **kwargs)
    if len(steps) == 2:
        (module,) = model
        while hasattr(module, "module"):
            module = module.module
        parameters = module.named_parameters()
        gradients = {placed(module, name, p): p.main_grad.numpy() for name, p in parameters}
        np.savez(FOLDER / f"rank{os.environ['RANK']}.npz", **gradients)
        if os.environ["WORLD_SIZE"] == "1":
            for name, factors in formulas(module).items():
                np.savez(FOLDER / f"{name}.npz", **autograd(module, factors))
    steps.append([])
    return result


def placed(module, name, parameter):
    """``NAME@DIM``: the name it has in the undivided model, and where TP cuts it (-1: nowhere)."""
    name = re.sub(
        r"(?<=layers\.)\d+", lambda m: str(module.decoder.layers[int(m[0])].layer_number - 1), name
    )
    name = name.replace("output_layer.weight", "embedding.word_embeddings.weight")  # they are tied
    cut = getattr(parameter, "tensor_model_parallel", False)
    return f"{name}@{parameter.partition_dim if cut else -1}@{mpu.get_tensor_model_parallel_rank()}"


def domain(batch):
    (row,) = batch["tokens"]
    return int(row[row < 250][0]) // 50


def losses(module, parameters, batch):
    inputs = (batch["tokens"], batch["position_ids"], batch["attention_mask"])
    logits = functional_call(module, parameters, inputs)
    assert logits.dtype == torch.float64
    per_token = cross_entropy(logits[0], batch["labels"][0], reduction="none")
    return (per_token * batch["loss_mask"][0]).sum()


def doubles(module):
    return {n: p.detach().double().requires_grad_() for n, p in module.named_parameters()}


def formulas(module):
    """By name, the factor of each row's Σ mask·loss in the loss that is differentiated."""
    tokens = torch.zeros(len(WEIGHTS), dtype=torch.float64)
    for batch in steps[0]:
        tokens[domain(batch)] += batch["loss_mask"].sum()
    seen = tokens > 0  # a domain not seen yet has multiplier 1
    multipliers = torch.where(seen, WEIGHTS / (tokens @ WEIGHTS) * tokens.sum(), 1.0)

    rows = [domain(batch) for batch in steps[1]]
    n = torch.stack([batch["loss_mask"].sum() for batch in steps[1]]).double()
    m = multipliers[rows]
    sums = torch.stack([losses(module, doubles(module), batch).detach() for batch in steps[1]])
    within = torch.cat([recipe(sums[at], n[at], rows[at]) for at in (slice(0, 4), slice(4, 8))])
    assert len(set(n.tolist())) > 1, "some tokens should be masked"
    assert not seen[rows].all() or len(set(rows)) > 2
    return {
        "plain": torch.ones(8) / n.sum(),
        "global_batch": m / n.sum(),
        "averaged": m / (n * 8),  # by Megatron, within each microbatch
        "microbatch": within / n.sum(),
    }


def recipe(sums, tokens, rows):
    """Factors that make Σ factor·sum equal N·Σ w_d·L_d, over the domains of one microbatch."""
    ids = torch.tensor(rows)
    loss_sum = torch.zeros(5, dtype=torch.float64).index_add(0, ids, sums)
    count = torch.zeros(5, dtype=torch.float64).index_add(0, ids, tokens)
    here = count > 0
    mean = loss_sum[here] / count[here]
    h = (2 * mean - (mean.max() + mean.min())) / (mean.max() - mean.min()).clamp(min=1e-6)
    w = torch.zeros(5, dtype=torch.float64)
    w[here] = torch.softmax((h + 1).clamp(max=1), dim=0)
    return (w / count)[ids] * tokens.sum()


def autograd(module, factors):
    parameters = doubles(module)
    terms = [losses(module, parameters, batch) for batch in steps[1]]
    loss = sum(factor * term for factor, term in zip(factors, terms, strict=True))
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return {n: g.numpy() for n, g in zip(parameters, gradients, strict=True)}


gpt.get_batch, training.train_step = recording_get_batch, recording_train_step
gpt.main()
