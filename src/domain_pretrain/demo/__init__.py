"""Continued pretraining on four small domains, from nothing to the picture.

In order: ``corpora`` writes text that every Python holds (``python_code``, ``maths``) and prepares
it; ``recipe`` says what the two phases train, ``layout`` on which processes; ``launch`` runs each
as a child process and follows its metrics file; ``story`` tells all of it from first line to last.

Only ``commands.demo`` imports it. It uses the plugin as a user does: through ``prepare``, the
command line of a run, ``records.reader`` and ``report``.
"""
