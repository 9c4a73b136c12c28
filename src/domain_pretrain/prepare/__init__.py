"""Text files → Megatron datasets (``.bin``, ``.idx``) and manifests of what went into them.

The way of a document: ``readers`` cuts the ``inputs`` into chunks of raw records (``encodings``
brings them to UTF-8 before, ``json_array``, ``tables`` and ``parquet`` find elements and cells);
``encode``, in several ``workers``, decodes them, takes out of them what ``record`` says, makes
token ids by ``tokenize``, looks for ``traces`` of junk, sorts them by ``values`` and ``holdout``.
``datasets`` writes them with Megatron's own builder (``output``) where the ``layout`` says;
``publish`` lets everything appear at once or not at all; ``manifest`` tells what was read, left out
and written, and what ``quality`` has measured. ``corpus.prepare`` is the one way in.

Imported by ``commands.prepare`` and ``demo``. Training knows nothing of it.
"""
