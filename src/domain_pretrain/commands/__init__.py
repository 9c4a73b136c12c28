"""``domain-pretrain COMMAND``: one thin module for each subcommand, and ``main`` over them.

A command parses its words, calls the room that does the work, and prints; ``arguments`` and
``terminal`` are what they share for that. Every error that has a message ends with exit code 2;
``doctor`` ends with 1 where the answer is no. Nothing imports this.
"""
