"""A user's script: the built-in entry, which may have to wait for a file before a step.

``GATES`` names the folder of the files: ``open7`` for step 7. Where it is set for one rank only,
the others go on until they need what that one does not send.
"""

import os
import time
from pathlib import Path

from megatron.training import get_args, training

from domain_pretrain.hosts.gpt import entry as gpt

STEPS = (7, 13)
train_step = training.train_step


def gated_train_step(*args, **kwargs):
    step = get_args().curr_iteration + 1
    while step in STEPS and not Path(os.environ["GATES"], f"open{step}").exists():
        time.sleep(0.05)
    return train_step(*args, **kwargs)


if "GATES" in os.environ:
    training.train_step = gated_train_step

if __name__ == "__main__":  # saving a checkpoint may import the script in another process
    gpt.main()
