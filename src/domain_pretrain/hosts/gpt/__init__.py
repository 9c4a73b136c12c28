"""The built-in GPT entry, for Megatron's wheel, which has no ``pretrain_gpt.py``.

``entry`` is the script; ``data`` gives datasets, ``batch`` a rank's part of a batch, ``model``
the model. Everything comes from megatron.core's own builders. Imported by ``-m domain_pretrain``
where no script is named.
"""
