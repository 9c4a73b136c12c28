"""What becomes of every domain, from nothing but a run's files: after it, and while it trains.

``history`` reads the file once, line by line, into ``series``: curves in bounded memory. ``table``
sums them up, a row for each domain; ``curves`` puts runs on one axis of tokens or iterations, and
``picture`` draws them (with ``palette``, ``fonts``, and ``spread`` for labels that would cover each
other). ``page`` makes one HTML file of it all, with what ``planned`` says the run was to read and
what ``practice`` reads off the curves.

``compare`` puts the scores of several models beside each other, with a verdict that
``significance`` bounds; ``worst`` finds the documents that are their noise; ``evaluations`` prints
it.

``live`` follows the files as they grow, and ``frame`` shows them as one screen.

Imported by ``commands`` and ``demo``. What happens during a run does not import it: the format of
the file belongs to ``records``.
"""
