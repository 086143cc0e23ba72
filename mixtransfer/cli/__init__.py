"""The command line: one module a command, each with ``parser()`` and ``run(args)``.

``tools/NAME.py`` and the console script ``mixtransfer NAME`` both end in :func:`main`. Commands import torch and the
OpenMMLab libraries inside ``run``, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from mixtransfer import __version__
from mixtransfer.errors import UserError, unknown_name, visible

COMMANDS = {
    "train": "train a classifier, segmentor or detector from a config",
    "test": "measure a trained checkpoint",
    "predict": "write what a trained model sees in images",
    "probe": "measure frozen backbones with linear heads on their maps",
    "export": "write a trained network as ONNX, TorchScript or torch.export's program",
    "convert": "convert a checkpoint between published formats and ours",
    "inspect": "say what a checkpoint file is and what is in it",
    "benchmark": "measure complexity and speed, or run a benchmark table",
    "visualize": "draw mixed batches, aligned labels and predictions",
    "study": "run a study of backbones, pretraining and mixing, and write its page",
    "data": "write the built-in scenes, or check a dataset folder",
    "configs": "list the configs that come with the package",
    "weights": "list the papers' official files",
    "demo": "pretrain, convert and transfer a small network, in minutes",
    "doctor": "say what is installed and whether each task runs, for a bug report",
}

#: ``convert --container ''``: a file whose entries are in none.
MAY_BE_EMPTY = "container"
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


def run_command(name: str, argv: Sequence[str]) -> int:
    """Run one command and return its exit status: 0, or 2 after a one-line message about the user's input."""
    try:
        command = importlib.import_module(f"mixtransfer.cli.{name}")
    except ModuleNotFoundError as error:
        return _refuse_missing(f"mixtransfer {name}", error)
    return run_main(f"mixtransfer {name}", command.parser(), command.run, argv)


def run_main(
    name: str, parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int | None], argv: Sequence[str]
) -> int:
    """Run ``run`` on parsed arguments and return its exit status; messages begin with ``name``."""
    args = parser.parse_args(argv)
    try:
        _refuse_nothing(args)
        status = run(args) or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        return _refuse_missing(name, error)
    except OSError as error:
        # A file that we made and lost is a bug; what the system denies is not. Without a name it is the output.
        if isinstance(error, FileNotFoundError | FileExistsError):
            raise
        what = "" if error.filename is None else f"{visible(error.filename)}: "
        print(f"{name}: error: {what}{error.strerror}", file=sys.stderr)
        _leave_output()
        return 2
    except (MemoryError, RuntimeError) as error:
        # torch says so in words, on GPUs and without.
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        reason = visible((str(error).strip().splitlines() or ["no more"])[0])
        print(
            f"{name}: error: memory does not suffice: {reason}; give smaller batches, images or sizes", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _leave_output() -> None:
    """Give an output up that takes nothing more: Python would try again when it ends, and end with another status."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _refuse_nothing(args: argparse.Namespace) -> None:
    """Refuse an empty value, mostly a variable of the shell that is not set: else it reads as an option left out."""
    for key, value in vars(args).items():
        if key != MAY_BE_EMPTY and "" in (value if isinstance(value, list) else [value]):
            raise UserError(f"{key.replace('_', '-')}: an empty value; give one, or leave it out")


def _refuse_missing(name: str, error: ModuleNotFoundError) -> int:
    """Say which package an incomplete installation lacks, and return 2; a module of ours that is missing is a bug."""
    if error.name is None or error.name.partition(".")[0] == "mixtransfer":
        raise error
    print(
        f"{name}: error: the package {visible(error.name)} is not installed for {sys.executable}; install mixtransfer"
        " with what it needs: 'make install' in a checkout, elsewhere 'pip install .' in its folder",
        file=sys.stderr,
    )
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch ``mixtransfer COMMAND ...``."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: mixtransfer COMMAND ...\n\ncommands:")
        print("\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items()))
        print("\n'mixtransfer COMMAND --help' lists a command's options.")
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"mixtransfer {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"mixtransfer: error: {unknown_name('command', argv[0], COMMANDS)}", file=sys.stderr)
        return 2
    return run_command(argv[0], argv[1:])
