"""Another training script of a checkout than pretrain_gpt.py, which ``SCRIPT`` names, on the CPU.

Writes down every training microbatch, as recording_gpt.py does. Where a script's layers are only
those of Transformer Engine, its norm is replaced by Megatron's own.
"""

import os
import runpy
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from forward_hook import recording
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.training import training

END_OF_DOCUMENT = 256
SCRIPT = Path(os.environ["SCRIPT"])
WITH_NORM = {
    "pretrain_t5.py": "megatron.core.models.T5.t5_spec",
    "pretrain_hybrid.py": "megatron.core.models.hybrid.hybrid_block",
}

records: list[dict[str, np.ndarray]] = []


def see(output, loss_func, inputs, keywords):
    record(output.detach().float(), loss_func.args[0], keywords)


def record(losses, mask, keywords):
    labels = keywords.get("labels", keywords.get("lm_labels"))
    mask = mask.view(labels.shape)
    # What does not count is padding, and of no domain.
    tokens = torch.where(mask > 0, labels, END_OF_DOCUMENT)
    named = {"losses": losses, "mask": mask, "tokens": tokens}
    records.append({name: tensor.numpy().copy() for name, tensor in named.items()})


def hybrid_stack():
    """Attention and MLP layers of Megatron's own modules, for --spec."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
    from megatron.core.ssm.mlp_layer import MLPLayer
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_layer import (
        TransformerLayer,
        TransformerLayerSubmodules,
    )

    whole = get_gpt_layer_local_spec().submodules

    def part(module, *names):
        submodules = {name: getattr(whole, name) for name in names}
        return ModuleSpec(module=module, submodules=TransformerLayerSubmodules(**submodules))

    attention = part(TransformerLayer, "input_layernorm", "self_attention", "self_attn_bda")
    mlp = part(MLPLayer, "pre_mlp_layernorm", "mlp", "mlp_bda")
    submodules = HybridStackSubmodules(attention_layer=attention, mlp_layer=mlp)
    return ModuleSpec(module=HybridStack, submodules=submodules)


def main():
    if SCRIPT.name in WITH_NORM:
        import_module(WITH_NORM[SCRIPT.name]).TENorm = WrappedTorchNorm
    if SCRIPT.name == "pretrain_hybrid.py":
        sys.modules["hybrid_spec"] = type(sys)("hybrid_spec")
        sys.modules["hybrid_spec"].stack = hybrid_stack()
    training.get_forward_backward_func = recording(training.get_forward_backward_func, see)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    path = Path(os.environ["RECORD_DIR"], f"rank{os.environ['RANK']}.npz")
    np.savez(path, **{f"{key}{i}": r[key] for i, r in enumerate(records) for key in r})


if __name__ == "__main__":
    main()
