"""Before and around a run.

``preflight`` tells what can be told before it takes a device, from the command's ``flags``:
``layout``, ``size``, ``checkpoints``. ``agent`` is torchrun with meaningful exit codes,
``lifeline`` ends a node that was cut off, and ``python -m domain_pretrain.launch`` resumes from
the newest good checkpoint. The scripts in scripts/ start these; nothing imports them but
``commands``.
"""
