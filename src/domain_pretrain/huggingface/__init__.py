"""Hugging Face ⇄ Megatron, without either: folders of safetensors in, checkpoints out, and back.

A family is a table of names and shapes (``families``); ``config`` reads its ``config.json`` into a
``Model`` and writes it, ``flags`` does so with Megatron's arguments. ``safetensors_file`` and
``torch_dist`` read and write the two formats a tensor at a time, ``torch_ranks`` reads the older
one; ``importing`` and ``exporting`` put them together. ``base`` is what an import leaves beside
the weights, by which ``check`` holds a run when it starts, ``identity`` tells whether it is of this
model, ``found`` which checkpoint a user means, and ``card`` the page about an exported model.
Imported by the hosts and the commands.
"""
