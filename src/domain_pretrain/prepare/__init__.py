"""Text files → one Megatron dataset (``.bin``, ``.idx``) and a manifest of what went into it.

The way of a document: ``readers`` cuts the files into chunks of raw records (``encodings`` brings
them to UTF-8 before, ``json_array`` and ``tables`` find elements and cells), ``encode`` decodes
them and, by ``tokenize``, makes token ids of them in several processes, in the order of the files;
``output`` writes them with Megatron's own builder, and everything appears at once or not at all;
``manifest`` says what was read, left out and written, and what ``quality`` has measured.
``corpus.prepare`` is the one way in.

Imported by ``commands.prepare`` and ``demo``. Training knows nothing of it.
"""
