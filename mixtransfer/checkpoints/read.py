"""Reading a checkpoint file without running code from it, and finding the weights inside."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mixtransfer.errors import UserError

__all__ = ["find_weights", "read_checkpoint", "strip_prefix"]

#: Names under which published files keep their weights; an average comes after the raw weights.
CONTAINERS = ("model", "state_dict", "module", "model_state_dict", "state_dict_ema", "model_ema", "ema_state_dict")


def read_checkpoint(path: str | Path, trust: bool = False) -> dict[str, Any]:
    """Read a ``.safetensors`` or ``torch.save`` file into host memory.

    Args:
        path: the file.
        trust: unpickle arbitrary objects, which runs code from the file.

    Raises:
        UserError: the file is missing, damaged, no checkpoint, or wants code and ``trust`` is not set.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged safetensors file ({error}); fetch it again") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            name = _wanted_global(str(error))
            raise UserError(
                f"{path}: wants to run code{name}; pass --trust (trust=True) only if you know its author"
            ) from None
        raise UserError(f"{path}: not a checkpoint or damaged; fetch it again") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile, AttributeError):
        raise UserError(f"{path}: not a checkpoint or damaged; fetch it again") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not named weights")
    return dict(content)


def find_weights(content: Mapping[str, Any], name: str = "the checkpoint") -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint: its container's, or its own.

    Raises:
        UserError: nothing in ``content`` looks like weights.
    """
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{name}: no weights under {', '.join(CONTAINERS)} or at the top level")
    return strip_prefix(weights, "module.")


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove ``prefix`` from all keys if every key has it, else return the entries as they are."""
    if not all(key.startswith(prefix) for key in state):
        return dict(state)
    return {key[len(prefix) :]: value for key, value in state.items()}


def _wanted_global(message: str) -> str:
    marker = "GLOBAL "
    start = message.find(marker)
    return f" ({message[start + len(marker) :].split()[0]})" if start >= 0 else ""
