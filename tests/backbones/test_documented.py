"""A method of a family without a docstring fills in one that a class below it documents."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import mixtransfer.backbones

MODULES = [info.name for info in pkgutil.iter_modules(mixtransfer.backbones.__path__) if not info.ispkg]


def undocumented(cls: type) -> list[str]:
    """Return the public methods of a class that neither it nor a class of ours that it derives from documents."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith(("mixtransfer.", __name__))]
    methods = [name for name, value in vars(cls).items() if inspect.isfunction(value) and not name.startswith("_")]
    return [name for name in methods if not any(name in vars(base) and vars(base)[name].__doc__ for base in ours)]


@pytest.mark.parametrize("name", MODULES)
def test_every_method_is_documented(name):
    module = importlib.import_module(f"mixtransfer.backbones.{name}")
    own = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    assert {cls.__name__: found for cls in own if (found := undocumented(cls))} == {}


def test_a_method_that_nothing_documents_is_found():
    class Base:
        def known(self):
            """Return nothing."""

    class Family(Base):
        def known(self): ...

        def new(self): ...

    assert undocumented(Family) == ["new"]
