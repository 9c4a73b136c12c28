"""Everything that waits for a GPU, in one command: ``scripts/gpu_day.sh``.

``steps`` says what is run, ``runner`` runs a step as a process of its own with a time limit, and
``page`` makes one Markdown page of what the steps have written, whatever is missing. ``run`` is the
command line. The other files are steps that no benchmark or test does by itself.
"""
