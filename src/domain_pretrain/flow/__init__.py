"""What happens in a training step, in this order:

``tap`` takes the dataset ids out of a batch → ``microbatch`` puts losses, mask and samples in
shape → ``steer`` (and ``within``) gives the multipliers → ``loss`` counts and weighs →
``forward`` joins these around the host's forward step → ``ledger`` sums over ranks (``groups``),
with the proof that they agree (``agreement``) and that nothing was lost (``conservation``) →
``mixing`` decides what is read next, and tells the data loader's workers by the ``board`` →
``windows`` add up steps → ``step`` closes it, publishes, and keeps the state. ``domain_step`` is
the same for a custom training loop. Imported by ``hosts``; knows no host.
"""
