"""Megatron's checkpoint folders, read without Megatron.

Which iteration a folder's tracker names (``tracker``), and whether all of a checkpoint is there
(``whole``); what the index of a ``torch_dist`` checkpoint says lies where (``index``), and the
files of a ``torch`` one (``ranks``); the arguments that a run saved (``arguments``), and which
checkpoint a run starts from (``start``). The pickles in them could have any function called when
they are read, so nothing that they name is imported: stand-ins take its place (``pickles``).
Imports only the ground floor.
"""
