"""What is published, and where it goes.

A ``record`` is a logging window or an evaluation, a ``Finding`` what an alarm found in one. They
go through the ``publisher`` to exporters: ``scalars`` (W&B, with its ``panels``), ``tensorboard``
(with its ``charts``), the ``metrics_file`` (written by ``writer``, read back by ``reader``, and
while it grows by ``tail``), the ``console``, and those of other packages (``exporter``). Filled by
``flow``; read by ``strategies``, ``report``, ``launch`` and ``demo``.
"""
