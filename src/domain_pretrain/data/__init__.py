"""From the words of a data flag to the domain of every sample.

``prefixes`` on disk → ``blend`` (with weights; what a config's ``domain`` sections say of it) →
``catalog`` (dataset id → domain, by split; ``origin`` says how samples tell their domain) →
``plan`` (tokens and epochs of a run). No torch, no Megatron: ``hosts`` asks before a device is
touched, ``launch`` before a job is queued.
"""
