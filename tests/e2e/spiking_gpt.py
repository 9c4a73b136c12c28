"""A user's script: the built-in entry, with an alarm that takes all text of a domain for a spike.

Its finding says that all was well until two iterations before. With ``KILL``, a JSON object with
``rank`` and ``at``, that rank kills itself, and torchrun, or what stands for it, the others: at the
n-th forward pass of training where ``at`` is a number, else as it decides, as one of ``POINTS``.
"""

import json
import os
import signal
import sys

import torch

from domain_pretrain.hosts.gpt import entry as gpt
from domain_pretrain.records.record import Finding
from domain_pretrain.watch import register

GARBAGE = "rare"
# What a decision writes, in this order.
POINTS = ("latest_checkpointed_iteration.txt", "domain_decisions.json", "domain_journal.jsonl")


@register("garbage")
def garbage(seen, state, options):
    if seen.split != "train" or GARBAGE not in dict(seen.stats):
        return [], state
    onset = {"onset": max(0, seen.iteration - 2)}
    message = f"{GARBAGE} at iteration {seen.iteration}"
    return [Finding("spike", GARBAGE, seen.iteration, "warning", message, evidence=onset)], state


kill = json.loads(os.environ.get("KILL", "{}"))
forward_step = gpt.forward_step
passes = 0
begun = False


def mortal_forward_step(*args, **kwargs):
    global passes
    passes += torch.is_grad_enabled()
    if passes == kill["at"]:
        end()
    return forward_step(*args, **kwargs)


def see(event, arguments):
    global begun
    if event not in ("os.rename", "open"):
        return
    # Written whole, hence renamed; or, the journal, appended to. The host also writes the tracker.
    path = str(arguments[event == "os.rename"])
    begun = begun or (event == "os.rename" and path.endswith(POINTS[0]))
    if begun and path.endswith(kill["at"]):
        end()


def end():
    # torchrun gives each rank a process group, which also has Megatron's checkpoint writers.
    os.killpg(os.getpid(), signal.SIGKILL)


if kill.get("rank") == int(os.environ.get("RANK", "0")):
    if kill["at"] in POINTS:
        sys.addaudithook(see)
    gpt.forward_step = mortal_forward_step

if __name__ == "__main__":  # saving a checkpoint may import the script in another process
    gpt.main()
