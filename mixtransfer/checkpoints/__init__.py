"""Checkpoints: read safely, map keys, resize, load strictly, prove, write.

The names below are imported at first use: reading a file's outline needs no torch.
"""

from importlib import import_module

_PUBLIC = {
    "Pretrained": "load",
    "convert_file": "convert",
    "convert_state_dict": "rename",
    "load_checkpoint": "load",
    "read_checkpoint": "read",
    "read_header": "headers",
}

__all__ = [
    "Pretrained",
    "convert_file",
    "convert_state_dict",
    "load_checkpoint",
    "read_checkpoint",
    "read_header",
]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mixtransfer.checkpoints' has no attribute {name!r}")
    return getattr(import_module(f"mixtransfer.checkpoints.{_PUBLIC[name]}"), name)
