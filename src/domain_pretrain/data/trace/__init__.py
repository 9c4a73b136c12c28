"""Iteration → samples → documents, from the index files and the run's journal alone.

The journal's starts and the metrics file's lines make the ``timeline`` (iteration ↔ samples
consumed) → a ``source`` tells which window of which prefix a sample is → ``windows`` tells the
documents in it → ``trace`` puts them together, in both directions. Pure: numpy alone. ``hosts``
builds the data again, ``commands`` asks.
"""
