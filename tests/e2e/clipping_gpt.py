"""A user's script: the built-in entry; every rank writes down what ``--qk-clip`` saw and did.

Of its one step, by layer: what its attention was given, its queries and keys, the largest logits
that the host took of it, and where it clips, the weights before and after.
"""

import os
from pathlib import Path

import numpy as np
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.training import training

from domain_pretrain.hosts.gpt import entry as gpt

found: dict[str, list[np.ndarray]] = {}
forward, clip_qk = DotProductAttention.forward, SelfAttention.clip_qk
project, take_logits = SelfAttention.get_query_key_value_tensors, training.clip_qk


def note(name, layer, tensor):
    found.setdefault(f"{name}{layer.layer_number}", []).append(tensor.detach().float().numpy())


def recording_project(self, hidden, *args, **kwargs):
    note("hidden", self, hidden)
    return project(self, hidden, *args, **kwargs)


def recording_forward(self, query, key, *args, **kwargs):
    note("query", self, query)
    note("key", self, key)
    return forward(self, query, key, *args, **kwargs)


def recording_take(model, **kwargs):
    attentions = [m for chunk in model for m in chunk.modules() if isinstance(m, SelfAttention)]
    logits = [one.core_attention.current_max_attn_logits for one in attentions]
    result = take_logits(model, **kwargs)  # which reduces them in place
    for one, tensor in zip(attentions, logits, strict=True):
        note("logits", one, tensor)
    return result


def recording_clip(self):
    weight = self.linear_qkv.weight
    note("before", self, weight.main_param.clone())
    clip_qk(self)
    note("after", self, weight.main_param)
    note("model", self, weight)


SelfAttention.get_query_key_value_tensors = recording_project
DotProductAttention.forward, SelfAttention.clip_qk = recording_forward, recording_clip
training.clip_qk = recording_take
gpt.main()
path = Path(os.environ["RECORD_DIR"], f"rank{os.environ['RANK']}.npz")
np.savez(path, **{name: np.stack(one) for name, one in found.items()})
