"""Devices and collectives that may not compute int64 exactly, like those of Ascend NPUs.

``device_check`` finds out what they do, at the start of a run. ``transport`` carries sums between
ranks that cannot add int64.

Imported by ``flow``, ``hosts`` and ``backends``; imports only ``kernels``, ``errors``, ``stats``.
"""
