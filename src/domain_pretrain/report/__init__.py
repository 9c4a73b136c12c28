"""After a run: what became of every domain, from nothing but its metrics file.

``history`` reads the file once, line by line, into ``series``: curves in bounded memory. ``table``
sums them up, a row for each domain; ``curves`` puts runs on one axis of tokens or iterations, and
``picture`` draws them (with ``palette``, ``fonts``, and ``spread`` for labels that would cover each
other). ``page`` makes one HTML file of it all, with what ``planned`` says the run was to read and
what ``practice`` reads off the curves.

Imported by ``commands.report`` and ``demo``. What happens during a run does not import it: the
format of the file belongs to ``records``.
"""
