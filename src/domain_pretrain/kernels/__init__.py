"""The arithmetic of the channel loss, knows tensors, not training.

``section`` is the config's ``channel_loss``, which chooses the average and the backend.
``domain_reduce`` sums per-token losses by domain, exactly, and makes the weighted loss.
``exactness`` is for devices and collectives that may not compute int64 exactly.
``digest`` is what ranks compare to prove that they agree.

Imported by ``flow``, ``hosts``, ``backends`` and ``config``; imports only ``errors``, ``stats`` and
``section``.
"""
