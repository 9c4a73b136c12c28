"""A tiny GPT in the real Megatron-Bridge, on the CPU, by its own ``pretrain`` and ``forward_step``.

The first argument is a JSON file of what to do: ``HOW`` below says what it may hold. Packages that
Megatron-Bridge imports but that need a GPU or bring other models are absent: of use to nobody.
"""

# ruff: noqa: E402 -- imports are in the order in which the host must find things

import itertools
import json
import multiprocessing
import os
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from domain_pretrain.backends import cpu
from domain_pretrain.process import SINGLE_PROCESS

if "RANK" not in os.environ:
    os.environ.update(SINGLE_PROCESS)
cpu.install()

import numpy as np
import torch
from megatron.core.dist_checkpointing.strategies.async_utils import (
    AsyncCallsQueue,
    PersistentAsyncCaller,
)

# Before the stand-ins: megatron.core must see that there is no Transformer Engine.
import megatron.training.training  # noqa: F401  # isort: skip
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

HOW = {
    "folder": ".",
    "data": [],
    "plugin": True,
    "config": None,
    "exit": None,  # after how many steps
    "load": False,
    "skip_train": False,
    "parallel": {},
    "rerun": {},  # of RerunStateMachineConfig
    "checkpoint": {},  # of CheckpointConfig
    "complete_at": None,  # asynchronous saves: at every so many looks of the host
    "kill_after": None,  # so many steps, in the next one
    "poison_after": None,  # so many steps: a domain's losses are NaN
    **json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")),
}
FOLDER = Path(HOW["folder"])
RANK = int(os.environ["RANK"])
ABSENT = [
    *("transformer_engine", "transformer_engine_torch", "modelopt", "nvidia_resiliency_ext"),
    *("megatron.energon", "flash_attn", "fla", "causal_conv1d", "mlflow", "comet_ml"),
    *("diffusers", "timm", "open_clip", "qwen_vl_utils", "mamba_ssm", "flashinfer", "webdataset"),
]


class Nothing(type):
    def __getattr__(cls, name):
        return missing(name)


class Absent(metaclass=Nothing):
    """Stands for any class or function."""

    def __init__(self, *args, **kwargs):
        pass


def missing(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Absent


class Finder(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        known = any(name == absent or name.startswith(f"{absent}.") for absent in ABSENT)
        return ModuleSpec(name, self, is_package=True) if known else None

    def exec_module(self, module):
        module.__getattr__, module.__version__ = missing, "2.9.0"


sys.meta_path.append(Finder())

from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.training import config as bridge
from megatron.bridge.training import eval as evaluation
from megatron.bridge.training import initialize, setup, train
from megatron.bridge.training.gpt_step import forward_step
from megatron.bridge.training.pretrain import pretrain
from megatron.bridge.training.tokenizers.config import TokenizerConfig
from megatron.core.datasets import utils as datasets
from megatron.training import global_vars

from domain_pretrain.hosts.bridge import BridgeDomains


def without_gpu():
    """What of the host asks for CUDA, a compiler, or an absent package."""
    start = initialize.initialize_megatron
    setup.initialize_megatron = lambda *a, **kw: start(*a, **{**kw, "allow_no_cuda": True})
    initialize._warmup_jit_function = lambda *args, **kwargs: None
    datasets.compile_helpers = initialize.compile_helpers = lambda: None
    for module in (train, evaluation):
        module.get_tensor_shapes_adjust_fn_for_distillation = lambda *args, **kwargs: None
    # By which the CPU backend seeds the layers.
    global_vars._GLOBAL_ARGS = SimpleNamespace(seed=1234)


def write_at_once():
    """Asynchronous saves are written before training goes on, and complete when the host looks.

    Of tensors on a CPU no copy is made: the host's worker would write what they have become.
    """
    schedule = AsyncCallsQueue.schedule_async_request

    def schedule_and_wait(self, request):
        index = schedule(self, request)
        while PersistentAsyncCaller._persistent_comp_q.qsize() < len(self.async_calls):
            assert PersistentAsyncCaller._persistent_process.is_alive()
            time.sleep(0.01)
        return index

    AsyncCallsQueue.schedule_async_request = schedule_and_wait


def complete_late(every):
    """Of the host's looks at asynchronous saves, only every so many find them complete."""
    complete, looks = AsyncCallsQueue.maybe_finalize_async_calls, itertools.count(1)

    def maybe_complete(self, blocking=False, no_dist=False):
        due = blocking or next(looks) % every == 0
        return complete(self, True, no_dist) if due else []

    AsyncCallsQueue.maybe_finalize_async_calls = maybe_complete


def configuration():
    off = (
        "gradient_accumulation",
        "masked_softmax",
        "bias_activation",
        "bias_dropout",
        "apply_rope",
    )
    model = GPTModelProvider(
        **{f"{name}_fusion": False for name in off},
        **HOW["parallel"],
        num_layers=4,
        hidden_size=32,
        num_attention_heads=4,
        ffn_hidden_size=64,
        seq_length=32,
        vocab_size=300,
        make_vocab_size_divisible_by=608 // HOW["parallel"].get("tensor_model_parallel_size", 1),
        transformer_layer_spec=get_gpt_layer_local_spec(),
        attention_dropout=0.0,
        hidden_dropout=0.0,
        persist_layer_norm=False,
        use_cpu_initialization=True,
        pipeline_dtype=torch.float32,
        calculate_per_token_loss=True,
    )
    decay = {"start_weight_decay": 0.01, "end_weight_decay": 0.01}
    ddp = {"overlap_grad_reduce": False, "overlap_param_gather": False}
    saves = HOW["exit"] or HOW["load"] or HOW["checkpoint"]
    save = str(FOLDER / "checkpoint") if saves else None
    return bridge.ConfigContainer(
        model=model,
        train=bridge.TrainingConfig(
            micro_batch_size=1, global_batch_size=8, train_iters=4, exit_interval=HOW["exit"]
        ),
        validation=bridge.ValidationConfig(
            eval_interval=2, eval_iters=2, skip_train=HOW["skip_train"]
        ),
        optimizer=bridge.OptimizerConfig(
            optimizer="adam", lr=1e-2, min_lr=1e-3, use_distributed_optimizer=False
        ),
        scheduler=bridge.SchedulerConfig(
            lr_decay_style="cosine", lr_warmup_iters=0, weight_decay_incr_style="constant", **decay
        ),
        ddp=bridge.DistributedDataParallelConfig(
            use_distributed_optimizer=False, average_in_collective=False, **ddp
        ),
        dist=bridge.DistributedInitConfig(distributed_backend="gloo"),
        dataset=bridge.GPTDatasetConfig(
            seq_length=32,
            random_seed=1234,
            data_path=HOW["data"],
            split="80,10,10",
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            dataloader_type="single",
            num_workers=0,
        ),
        logger=bridge.LoggerConfig(log_interval=1),
        tokenizer=TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=300),
        checkpoint=bridge.CheckpointConfig(
            save=save,
            load=save if HOW["load"] else None,
            ckpt_format="torch_dist",
            **{"save_interval": 2, **HOW["checkpoint"]},
        ),
        rng=bridge.RNGConfig(),
        rerun_state_machine=bridge.RerunStateMachineConfig(**HOW["rerun"]),
    )


records = []
KILLED = 9
POISONED = 1  # the second corpus, "general": in every batch


def recorded_forward_step(state, data_iterator, model, return_schedule_plan=False):
    """Megatron-Bridge's, and the losses of training written down."""
    calls = []
    hook = model.register_forward_pre_hook(lambda *call: calls.append(call), with_kwargs=True)
    losses, loss_func = forward_step(state, data_iterator, model, return_schedule_plan)
    hook.remove()
    labels = calls[0][2]["labels"]
    if not torch.is_grad_enabled():
        return losses, loss_func
    step = state.train_state.step
    if step == HOW["kill_after"]:
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(KILLED)
    if step == HOW["poison_after"] and labels is not None:
        losses = losses.masked_fill(labels // 50 == POISONED, torch.nan)
    if labels is not None:
        named = {"losses": losses.detach().float(), "mask": loss_func.args[0], "labels": labels}
        records.append({name: tensor.numpy().copy() for name, tensor in named.items()})
    return losses, loss_func


def main():
    assert find_spec("transformer_engine").loader is not None
    without_gpu()
    write_at_once()
    if HOW["complete_at"]:
        complete_late(HOW["complete_at"])
    step, callbacks = recorded_forward_step, None
    if HOW["plugin"]:
        domains = BridgeDomains(HOW["config"], log_dir=FOLDER, backend="cpu")
        step, callbacks = domains.watch(step), [domains]
    try:
        pretrain(configuration(), step, callbacks=callbacks)
    finally:
        columns = {f"{key}{i}": r[key] for i, r in enumerate(records) for key in r}
        np.savez(FOLDER / f"rank{RANK}.npz", **columns)


if __name__ == "__main__":
    main()
