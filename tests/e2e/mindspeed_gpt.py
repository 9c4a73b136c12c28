"""MindSpeed-LLM's own, unmodified pretrain_gpt.py, and what the losses in it were.

With ``RECORD_DIR`` every rank writes the per-token losses of its training microbatches, and what
the plugin's seams were put around. With ``REPATCH`` MindSpeed takes its patches out before training
and applies them anew, one more among them. With ``ALONE`` there is only the CPU backend.
"""

import json
import os
import runpy
from pathlib import Path

if "ALONE" in os.environ:
    from domain_pretrain.backends import cpu

    cpu.install()

import numpy as np
import torch
from mindspeed_llm import megatron_adaptor
from mindspeed_llm.training import training

SCRIPT = Path(os.environ["MINDSPEED_LLM_PATH"], "pretrain_gpt.py")
records: list[dict[str, np.ndarray]] = []
pretrain = training.pretrain


def recording_pretrain(datasets, model_provider, model_type, forward_step):
    if "REPATCH" in os.environ:
        # What it stacks over the schedule does nothing: the flag of the run itself is off.
        megatron_adaptor.repatch({"moe_fb_overlap": True, "moe_token_dispatcher_type": "alltoall"})
    pretrain(datasets, model_provider, model_type, recording(forward_step))
    if "RECORD_DIR" in os.environ:
        path = Path(os.environ["RECORD_DIR"], f"rank{os.environ['RANK']}")
        np.savez(f"{path}.npz", **{f"{key}{i}": r[key] for i, r in enumerate(records) for key in r})
        Path(f"{path}.json").write_text(json.dumps(seams()), encoding="utf-8")


def recording(forward_step):
    def recorded(data_iterator, model):
        calls = []
        hook = model.register_forward_pre_hook(lambda *call: calls.append(call), with_kwargs=True)
        losses, loss_func = forward_step(data_iterator, model)
        hook.remove()
        labels = calls[0][2]["labels"]
        if torch.is_grad_enabled() and labels is not None:
            named = {"losses": losses.detach().float(), "mask": loss_func.args[0], "labels": labels}
            named["positions"] = calls[0][1][1]
            records.append({name: tensor.numpy().copy() for name, tensor in named.items()})
        return losses, loss_func

    return recorded


def seams():
    """For what the loop calls, the modules of the function that stands there and of those below."""
    from megatron.training import training as of_megatron

    found = {}
    for module in (training, of_megatron):
        for name in ("train_step", "evaluate_and_print_results", "get_forward_backward_func"):
            chain = [getattr(module, name, None)]
            while hasattr(chain[-1], "__wrapped__"):
                chain.append(chain[-1].__wrapped__)
            files = [f.__code__.co_filename for f in chain if f is not None]
            found[f"{module.__name__}:{name}"] = files
    return found


if __name__ == "__main__":
    training.pretrain = recording_pretrain
    runpy.run_path(str(SCRIPT), run_name="__main__")
