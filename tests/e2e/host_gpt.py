"""A checkout's own pretrain_gpt.py, or the built-in entry where there is none, and what it did.

Started by itself it is the host alone on the CPU. With ``RECORD_DIR`` every rank writes the
per-token losses of its training microbatches and the gradients of its second step; a single process
also what these should be: autograd of the formula in float64. That wants one row a microbatch, and
a first step that leaves the weights alone.
"""

import json
import os
import re
import runpy
from pathlib import Path

from domain_pretrain.backends import cpu

cpu.install()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from forward_hook import recording  # noqa: E402
from megatron.core import parallel_state as mpu  # noqa: E402
from megatron.training import arguments, training  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

SCRIPT = Path(os.environ["MEGATRON_LM_PATH"], "pretrain_gpt.py")
FOLDER = Path(os.environ.get("RECORD_DIR", "."))
ALONE = os.environ["WORLD_SIZE"] == "1"
add_arguments, train_step = arguments.add_megatron_arguments, training.train_step
get_schedule = training.get_forward_backward_func

step = 0
records: list[dict[str, np.ndarray]] = []
rows: list[dict] = []  # of a single process: what the model was called with, and the mask
weights: list[dict[str, torch.Tensor]] = []  # by step, before it


def add_cpu_flags(parser):
    """The host alone is given what the plugin supplies, too; given twice is given once."""
    result = add_arguments(parser)
    cpu.add_default_flags(parser)
    return result


def see(output, loss_func, inputs, keywords):
    if output.dim() == 2:  # losses [b, s]: the last stage
        record(output, loss_func.args[0], inputs, keywords)


def record(losses, mask, inputs, keywords):
    mask, labels = mask.view(losses.shape), keywords["labels"]
    entry = {"losses": losses.detach().float(), "mask": mask, "labels": labels}
    records.append({**{k: v.numpy().copy() for k, v in entry.items()}, "step": np.array(step)})
    if ALONE:
        keywords = {k: v for k, v in keywords.items() if k not in ("labels", "loss_mask")}
        kept = {"labels": labels, "mask": mask, "inputs": inputs, "keywords": keywords}
        rows.append({**kept, "step": step})


def recording_train_step(forward_step, data_iterator, model, *args, **kwargs):
    global step
    step += 1
    chunks = [unwrapped(chunk) for chunk in model]
    weights.append({n: p.detach().double() for n, p in chunks[0].named_parameters()})
    result = train_step(forward_step, data_iterator, model, *args, **kwargs)
    if step == 2:
        gradients = {
            placed(chunk, name, p): p.main_grad.numpy().copy()
            for chunk in chunks
            for name, p in chunk.named_parameters()
        }
        np.savez(FOLDER / f"gradients{os.environ['RANK']}.npz", **gradients)
        if ALONE:
            for name, factors in formulas().items():
                np.savez(FOLDER / f"{name}.npz", **autograd(chunks[0], factors))
    return result


def unwrapped(module):
    while hasattr(module, "module"):
        module = module.module
    return module


def placed(chunk, name, parameter):
    """``NAME@DIM@RANK``: its name in the undivided model, and where TP cuts it (-1: nowhere)."""
    name = re.sub(
        r"(?<=layers\.)\d+", lambda m: str(chunk.decoder.layers[int(m[0])].layer_number - 1), name
    )
    name = name.replace("output_layer.weight", "embedding.word_embeddings.weight")  # they are tied
    cut = getattr(parameter, "tensor_model_parallel", False)
    return f"{name}@{parameter.partition_dim if cut else -1}@{mpu.get_tensor_model_parallel_rank()}"


def formulas():
    """By name, the factor of each row's Σ mask·loss in the loss that is differentiated.

    ``weighted`` is ``strategy: static`` of docs/reweighting.md; ``plain`` is the host's own.
    """
    wanted = torch.tensor(json.loads(os.environ["WEIGHTS"]), dtype=torch.float64)
    tokens = torch.zeros(len(wanted), dtype=torch.float64)
    for row in rows:
        if row["step"] == 1:
            tokens[domain(row)] += row["mask"].sum()
    multipliers = torch.where(tokens > 0, wanted / (tokens @ wanted) * tokens.sum(), 1.0)
    second = [row for row in rows if row["step"] == 2]
    total = sum(row["mask"].sum().double() for row in second)
    plain = torch.ones(len(second), dtype=torch.float64) / total
    return {"plain": plain, "weighted": plain * multipliers[[domain(row) for row in second]]}


def domain(row):
    """A corpus has an alphabet of 50 tokens; from 250 on they end a document of any."""
    return int(row["labels"][row["labels"] < 250][0]) // 50


def autograd(module, factors):
    parameters = {name: value.clone().requires_grad_() for name, value in weights[1].items()}
    loss = 0
    for factor, row in zip(factors, (r for r in rows if r["step"] == 2), strict=True):
        logits = functional_call(module, parameters, row["inputs"], row["keywords"])
        assert logits.dtype == torch.float64
        losses = cross_entropy(logits[0], row["labels"][0], reduction="none")
        loss = loss + factor * (losses * row["mask"][0]).sum()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return {n: g.numpy() for n, g in zip(parameters, gradients, strict=True)}


def main():
    arguments.add_megatron_arguments = add_cpu_flags
    if "RECORD_DIR" in os.environ:
        training.get_forward_backward_func = recording(get_schedule, see)
        training.train_step = recording_train_step
    if SCRIPT.is_file():
        runpy.run_path(str(SCRIPT), run_name="__main__")
    else:
        from domain_pretrain.hosts.gpt import entry as gpt

        gpt.main()
    if records:
        stacked = {key: np.stack([r[key] for r in records]) for key in records[0]}
        np.savez(FOLDER / f"records{os.environ['RANK']}.npz", **stacked)


if __name__ == "__main__":
    main()
