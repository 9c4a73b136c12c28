"""From budgets, as people tell them, to what a host takes: the command ``plan``.

``section`` is the file that a user writes (its numbers: ``numbers``) → ``corpora``, what there is
of each part to train on → ``shares``, how a stage's numbers divide it over the prefixes → ``make``
the ``plan``: whole steps and samples of each stage, with its ``doubts`` → ``output``, the flags and
files of a run, and ``table``. ``python -m domain_pretrain.planning PLAN.json`` prints the flags.
No torch, no Megatron; ``commands`` imports it.
"""
