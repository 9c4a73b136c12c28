"""One stream of training samples, whose blend may change on the way, and which may be cut.

The config's ``section`` → ``plan`` (stages by prefix, in samples, and cuts) → ``apportion`` (how
many samples of each prefix a chunk of the stream takes, and in which order) → ``locate`` (position
→ prefix and sample of it; by ``turns``, the window that this is: ``permutation`` shuffles a
prefix's later epochs, and the documents that ``omit`` knows have no turn) → ``change`` (what a
resumed run may do to it), or else ``carry`` (each prefix goes on where it stood). Where the losses
decide, ``decide`` stands for ``apportion``, and ``blocks`` says when, and keeps what was decided.
All of it is a pure function of the plan, the lengths of the prefixes, the seed and the decisions:
numpy alone. ``hosts`` puts it in the place of Megatron's blend; ``flow`` brings the losses.
"""
