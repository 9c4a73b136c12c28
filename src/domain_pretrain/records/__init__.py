"""What is published, and where it goes.

A ``record`` is a logging window or an evaluation (``samples``: of a fixed set), a ``Finding`` what
an alarm found in one, an ``evaluated`` what probes did: each a ``score``. They go through the
``publisher`` to exporters:
``scalars`` (W&B, with its ``panels``), ``tensorboard`` (with its ``charts``), the
``metrics_file``, the ``events_file`` and the ``evaluations_file`` (written by ``writer``, read back
by ``reader``, and while they grow by ``tail``), the ``console``, and those of other packages
(``exporter``). The ``journal`` tells which sample comes when. Filled by ``flow`` and ``hosts``;
read by ``strategies``, ``report``, ``launch``, ``commands`` and ``demo``.
"""
