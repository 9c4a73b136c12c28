"""The arithmetic of the channel loss, one folder per operation; knows tensors, not training.

``section`` is the config's ``channel_loss``, which chooses the average and the backend.
``domain_reduce`` sums per-token losses by domain, exactly, and makes the weighted loss.

Imported by ``flow``, ``hosts``, ``backends`` and ``config``; imports only ``errors``, ``stats`` and
``section``.
"""
