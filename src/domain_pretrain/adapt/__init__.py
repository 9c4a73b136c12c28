"""What training asks for besides plain continued pretraining: adapters, optimizers, experts.

The config's ``section`` says what is on: ``lora``, and what is counted of ``experts`` and asked of
them. A ``recipe`` is data about a way to train that the host's own flags turn on: when it applies,
what it needs, what cannot be right and what is doubtful; ``recipes`` lists them, for the checks at
the start, for ``doctor`` and for the docs. Nothing here touches the host: that is ``hosts``.
``long_context`` asks the checkpoint that a run starts from. Imports the ground floor,
``checkpoints``, ``section``, and of ``rules`` and ``records`` what options and results look like.
"""
