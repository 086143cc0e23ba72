"""Preparations that run before a module of a library is imported, whoever imports it; they cost nothing until then."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["install"]

#: Module -> ours whose ``install`` runs before it is imported.
BEFORE = {
    "mmcv.ops": "mixtransfer.compat.mmcv_ops",
    "mmpretrain.models": "mixtransfer.compat.transformers5",
}
#: Libraries that mmseg imports whole for one backbone of its many: loaded at the first attribute that anyone reads.
LAZY = ("timm",)
#: Modules of mmengine that are loaded when their class is used, with the registry that names it. They import torch's
#: sharded tensors and with them sympy, a second of every start, and are seldom used.
LATE = {
    "mmengine.optim.optimizer.zero_optimizer": ("ZeroRedundancyOptimizer", "OPTIMIZERS"),
    "mmengine.model.wrappers.fully_sharded_distributed": ("MMFullyShardedDataParallel", "MODEL_WRAPPERS"),
    "mmengine._strategy.fsdp": ("FSDPStrategy", "STRATEGIES"),
}


def install() -> None:
    """Make ``mmcv.ops`` and ``mmpretrain.models``, and so mmdet and mmseg, importable from here on, mmengine sooner."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Is asked before a module is imported."""

    def find_spec(self, name: str, path: Any, target: object = None) -> ModuleSpec | None:
        if name in BEFORE:
            importlib.import_module(BEFORE[name]).install()
        if name in LAZY:
            spec = PathFinder.find_spec(name, path)
            if spec is not None and spec.loader is not None:
                spec.loader = importlib.util.LazyLoader(spec.loader)
            return spec
        return ModuleSpec(name, _LateLoader(path)) if name in LATE else None


class _LateLoader(Loader):
    """Makes a module with a stand-in for its class, until one of the two is used."""

    def __init__(self, path: Any):
        self.path = path

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module, and register the stand-in as the library registers the class."""
        name, registry = LATE[module.__name__]
        stand_in = _StandIn(name, (), {"__module__": module.__name__, "_loader": self})
        setattr(module, name, stand_in)
        self._registry(registry).register_module(module=stand_in)

        def attribute(wanted: str) -> Any:
            # Python itself asks for such names, of any module and any class.
            if _is_special(wanted):
                raise AttributeError(wanted)
            return getattr(self.load(module.__name__), wanted)

        module.__dict__["__getattr__"] = attribute

    def load(self, module: str) -> ModuleType:
        """Return the library's own module, which takes the place of the one with the stand-in."""
        loaded = sys.modules[module]
        if getattr(loaded.__spec__, "loader", None) is not self:
            return loaded
        spec = PathFinder.find_spec(module, self.path)
        assert spec is not None and spec.loader is not None, f"{module} was there when its package was imported"
        name, registry = LATE[module]
        self._registry(registry)._module_dict.pop(name, None)
        loaded = sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    def _registry(self, name: str) -> Any:
        return getattr(importlib.import_module("mmengine.registry"), name)


class _StandIn(type):
    """The type of a stand-in for a class of :data:`LATE`: calls, attributes, subclasses and checks are that class's."""

    _loader: _LateLoader

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        if not bases:
            return super().__new__(cls, name, bases, namespace)
        real = tuple(base._class() if isinstance(base, _StandIn) else base for base in bases)
        return type(real[0])(name, real, namespace, **options)

    def _class(cls) -> type:
        return getattr(cls._loader.load(cls.__module__), cls.__name__)

    def __call__(cls, *args: Any, **options: Any) -> Any:
        return cls._class()(*args, **options)

    def __getattr__(cls, name: str) -> Any:
        if _is_special(name):
            raise AttributeError(name)
        return getattr(cls._class(), name)

    def __instancecheck__(cls, instance: object) -> bool:
        # What is not loaded has no instances.
        return not cls._waits() and isinstance(instance, cls._class())

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls or (not cls._waits() and issubclass(subclass, cls._class()))

    def _waits(cls) -> bool:
        return getattr(sys.modules[cls.__module__].__spec__, "loader", None) is cls._loader


def _is_special(name: str) -> bool:
    return name.startswith("__")
