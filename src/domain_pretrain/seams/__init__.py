"""The mechanism by which the plugin hooks into a host, without any host's names.

``seam``: one place in a host, as data; checked by reading its source, applied, undone.
``importhook`` calls back right after a module is executed, before anybody can copy names out of
it: that is when seams are applied. Which places there are is told in ``hosts`` and ``backends``,
which import this; it imports nothing but the ground floor.
"""
