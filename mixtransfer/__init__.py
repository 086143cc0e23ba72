"""mixtransfer: vision backbones pretrained with data mixing, transferred to dense prediction.

The public names below are imported at first use, so that ``import mixtransfer`` costs nothing. It is all that a config
of any OpenMMLab tool needs, ``custom_imports = dict(imports=["mixtransfer"])``: mmengine finds the classes of
``type="mixtransfer.NAME"`` by itself, and mmdet and mmseg can then be imported beside an mmcv without compiled ops.
"""

from importlib import import_module

from mixtransfer import on_import

_PUBLIC = {
    "build_backbone": "mixtransfer.zoo",
    "build_classifier": "mixtransfer.zoo",
    "list_archs": "mixtransfer.zoo",
    "convert_state_dict": "mixtransfer.checkpoints.rename",
    "load_checkpoint": "mixtransfer.checkpoints.load",
    "load_model": "mixtransfer.inference.model",
}

__all__ = ["build_backbone", "build_classifier", "convert_state_dict", "list_archs", "load_checkpoint", "load_model"]
__version__ = "0.1.0"

on_import.install()


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mixtransfer' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
