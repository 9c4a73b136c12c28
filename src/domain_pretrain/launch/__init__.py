"""Before and around a run.

``preflight`` tells what can be told before it takes a device, from the command's ``flags``:
``layout``, ``size``, ``start`` (from ``checkpoints``); and it has ``host`` ask the host itself, in
a process that is the run up to there (``rehearsal``). ``agent`` is torchrun with meaningful exit
codes (``elastic`` knows when not to restart, ``reaper`` leaves no process behind), ``lifeline``
ends a node that was cut off, and ``python -m domain_pretrain.launch`` resumes from the newest good
checkpoint. ``models`` finds the checkpoints that ``domain-pretrain eval`` means, ``evaluate`` makes
the command of each, with the flags that are saved in it (``saved_flags``). The scripts in scripts/
start these; nothing imports them but ``commands``.
"""
