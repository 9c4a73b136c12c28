"""Channel loss for domain continued pretraining on Megatron-LM.

Importing this package changes nothing. :func:`enable` installs the plugin in this process,
:func:`disable` takes it out. :class:`DomainStep` is for training loops other than Megatron's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from domain_pretrain.version import __version__

if TYPE_CHECKING:
    from domain_pretrain.flow.domain_step import DomainStep

__all__ = ["DomainStep", "__version__", "disable", "enable"]


def enable(backend: str | None = None) -> None:
    """Install the plugin; see :func:`domain_pretrain.hosts.install.enable`."""
    from domain_pretrain.hosts.install import enable

    enable(backend)


def disable() -> None:
    """Take the plugin out; see :func:`domain_pretrain.hosts.install.disable`."""
    from domain_pretrain.hosts.install import disable

    disable()


def __getattr__(name: str) -> Any:
    # Imported when asked for: it needs torch, which must not be imported before enable().
    if name == "DomainStep":
        from domain_pretrain.flow.domain_step import DomainStep

        return DomainStep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
