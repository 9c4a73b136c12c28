"""A user's script: the built-in entry; every rank writes down what ``--qk-clip`` saw and did.

Of its one step: what every attention layer was given, in order, its queries and keys, the largest
logits that the host took for it, and the weights before and after.
"""

import os
from pathlib import Path

import numpy as np
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention

from domain_pretrain.hosts.gpt import entry as gpt

found: dict[str, list[np.ndarray]] = {}
forward, clip_qk = DotProductAttention.forward, SelfAttention.clip_qk
project = SelfAttention.get_query_key_value_tensors


def note(name, layer, tensor):
    found.setdefault(f"{name}{layer.layer_number}", []).append(tensor.detach().float().numpy())


def recording_project(self, hidden, *args, **kwargs):
    note("hidden", self, hidden)
    return project(self, hidden, *args, **kwargs)


def recording_forward(self, query, key, *args, **kwargs):
    note("query", self, query)
    note("key", self, key)
    return forward(self, query, key, *args, **kwargs)


def recording_clip(self):
    weight = self.linear_qkv.weight
    note("logits", self, self.core_attention.current_max_attn_logits)
    note("before", self, weight.main_param.clone())
    clip_qk(self)
    note("after", self, weight.main_param)
    note("model", self, weight)


SelfAttention.get_query_key_value_tensors = recording_project
DotProductAttention.forward, SelfAttention.clip_qk = recording_forward, recording_clip
gpt.main()
path = Path(os.environ["RECORD_DIR"], f"rank{os.environ['RANK']}.npz")
np.savez(path, **{name: np.stack(one) for name, one in found.items()})
