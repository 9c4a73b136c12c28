"""Call back right after a module is executed, before anybody can copy names out of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

Callback = Callable[[ModuleType], None]


def after_import(name: str, callback: Callback) -> None:
    """Run ``callback(module)`` once module ``name`` is executed, or now if it already is.

    The callback runs before the statement that imports the module binds any of its names, so a
    replaced function is what ``from module import function`` sees. Callbacks run in the order
    they were registered; what they raise reaches the import statement.
    """
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        callback(module)
        return
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.callbacks.setdefault(name, []).append(callback)


class _Finder(MetaPathFinder):
    """Finds nothing itself: lets the other finders find the module and wraps its loader."""

    def __init__(self) -> None:
        self.callbacks: dict[str, list[Callback]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.callbacks:
            return None
        # Step aside for the nested look-up, or it would land here again.
        callbacks = self.callbacks.pop(name)
        try:
            spec = find_spec(name)
        finally:
            self.callbacks[name] = callbacks
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, lambda: self.callbacks.pop(name, []))
        return spec


class _Loader(Loader):
    """The module's own loader, and the callbacks after ``exec_module``."""

    def __init__(self, loader: Loader, callbacks: Callable[[], list[Callback]]) -> None:
        self._loader = loader
        self._callbacks = callbacks

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # What inspects the module later (pickle, importlib.resources) sees the loader it expects.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        for callback in self._callbacks():
            callback(module)


_FINDER = _Finder()
