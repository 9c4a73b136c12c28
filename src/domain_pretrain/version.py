"""The version, in one place: the package's metadata, ``--version`` and the manifests take it."""

__version__ = "0.2.0"
