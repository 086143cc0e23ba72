"""Start a command of the package, or say in one line why that cannot be: the way from each file in tools/ to it."""

from __future__ import annotations

import importlib
import sys


def launch(name: str, module: str = "mixtransfer.cli") -> int:
    """Call ``main`` of a module with a command and the arguments of this process, and return its exit status."""
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        if error.name != "mixtransfer":
            raise
        print(
            f"{sys.argv[0]}: error: mixtransfer is not installed for {sys.executable}; in a checkout run 'make install'"
            " once, then '. .venv/bin/activate', or install it with 'pip install .'",
            file=sys.stderr,
        )
        return 2
    return main([name, *sys.argv[1:]])
