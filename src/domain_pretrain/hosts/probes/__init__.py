"""Probes on the model that Megatron holds, in any layout.

``text`` reads and writes tokens as the run's tokenizer does; ``scorer`` asks the model, all ranks
together, through the host's own schedule; ``driver`` lets one rank ask and the others serve;
``probing`` says when the probes run, keeps the training as it was, and hands on what they find.
Made by ``runtime``, which is told of the host's evaluations; ``checks`` looks at the start whether
all that can work.
"""
