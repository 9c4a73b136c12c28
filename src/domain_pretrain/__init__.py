"""Channel loss for domain continued pretraining on Megatron-LM.

Importing this package changes nothing. :func:`enable` installs the plugin in this process,
:func:`disable` takes it out.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["disable", "enable"]


def enable(backend: str | None = None) -> None:
    """Install the plugin; see :func:`domain_pretrain.hosts.install.enable`."""
    from domain_pretrain.hosts.install import enable

    enable(backend)


def disable() -> None:
    """Take the plugin out; see :func:`domain_pretrain.hosts.install.disable`."""
    from domain_pretrain.hosts.install import disable

    disable()
