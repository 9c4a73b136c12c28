"""A user's script: the built-in entry; every rank writes down each sample that it trains on.

A line a microbatch: the step, and of each row its dataset's id and a hash of its tokens, whole, as
the data loader gives them. With ``KILL_IN_STEP``, every rank kills itself in that step. With
``SPIKE``, two iterations, its alarm takes the second for a spike, and trusts all up to the first.
"""

import hashlib
import json
import os
import signal
from pathlib import Path

import torch
from megatron.training import get_args

from domain_pretrain.flow.tap import BatchTap
from domain_pretrain.hosts.gpt import entry as gpt
from domain_pretrain.records.record import Finding
from domain_pretrain.watch import register


@register("told")
def told(seen, state, options):
    onset, at = map(int, os.environ.get("SPIKE", "0 0").split())
    if seen.split != "train" or seen.iteration != at:
        return [], state
    return [Finding("spike", None, at, "warning", "as told", evidence={"onset": onset})], state


take = BatchTap.__next__
path = Path(os.environ["RECORD_DIR"], f"rows{os.environ['RANK']}.jsonl")


def recording_take(self):
    batch = take(self)
    step = get_args().curr_iteration + 1
    if torch.is_grad_enabled():
        if str(step) == os.environ.get("KILL_IN_STEP"):
            os.killpg(os.getpid(), signal.SIGKILL)
        ids = [-1] * len(batch["tokens"]) if self.dataset_id is None else self.dataset_id.tolist()
        hashes = [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:12] for row in batch["tokens"]]
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([step, *zip(ids, hashes, strict=True)]) + "\n")
    return batch


BatchTap.__next__ = recording_take

if __name__ == "__main__":  # saving a checkpoint may import the script in another process
    gpt.main()
