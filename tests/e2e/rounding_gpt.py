"""A user's script: the built-in entry on a node whose exponential rounds differently."""

import os

import numpy as np

from domain_pretrain.hosts.gpt import entry as gpt
from domain_pretrain.strategies import loss_shape


class OtherNumpy:
    """numpy, but for one bit in fp32 of one exponential."""

    def __getattr__(self, name):
        return getattr(np, name)

    def exp(self, values):
        found = np.exp(values)
        found[0] = np.nextafter(np.float32(found[0]), np.float32(2))
        return found


if os.environ["RANK"] == "1":
    loss_shape.np = OtherNumpy()

if __name__ == "__main__":  # saving a checkpoint may import the script in another process
    gpt.main()
