"""From the words of a data flag to the domain of every sample.

``prefixes`` on disk, each an ``index`` → ``blend`` (with weights; what a config's ``domain``
sections say of it) → ``catalog`` (dataset id → domain, by split; ``origin`` says how samples tell
their domain) → ``reading`` (what each split, cut by ``splits``, finds in the files, whose
``content`` fits the run's ``tokenizer`` and ``vocabulary``) → ``plan`` (tokens and epochs of a run)
and ``order`` (which sample comes when; a resumed run compares, and by its ``resumption`` settles
where its stream goes on). ``mix`` is the plugin's own stream,
``trace`` finds the documents of an iteration. No torch, no Megatron: ``hosts``
asks before a device is touched, ``launch`` before a job is queued.
"""
