"""Channel loss for domain continued pretraining on Megatron-LM.

Importing this package changes nothing. :func:`enable` installs the plugin in this process.
"""

__version__ = "0.1.0"
