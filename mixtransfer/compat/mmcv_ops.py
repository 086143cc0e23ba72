"""``mmcv.ops`` for detectors and segmentors where mmcv came without compiled ops.

mmcv looks for its compiled ops in the extension module ``mmcv._ext``, and its packages on the index have none. Without
that module ``mmcv.ops`` cannot be imported, and so neither can the detectors. :func:`install` supplies one that serves
every op which mmdet and mmseg call, from :mod:`mixtransfer.compat.ops`; any other op (rotated and 3-D boxes, point
clouds) raises an error once it is called.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import NoReturn

import torch

from mixtransfer.errors import UserError

__all__ = ["install", "is_installed"]

EXTENSION = "mmcv._ext"
#: Op -> the module that computes it.
SERVED = {
    **{
        name: f"mixtransfer.compat.ops.{module}"
        for module, names in {
            "suppression": "nms softnms nms_match bbox_overlaps",
            "regions": "roi_align_forward roi_align_backward roi_pool_forward roi_pool_backward"
            " deform_roi_pool_forward deform_roi_pool_backward",
            "focal_loss": "sigmoid_focal_loss_forward sigmoid_focal_loss_backward softmax_focal_loss_forward"
            " softmax_focal_loss_backward",
            "convolutions": "deform_conv_forward deform_conv_backward_input deform_conv_backward_parameters"
            " modulated_deform_conv_forward modulated_deform_conv_backward masked_im2col_forward"
            " masked_col2im_forward carafe_forward carafe_backward carafe_naive_forward carafe_naive_backward"
            " psamask_forward psamask_backward ms_deform_attn_forward ms_deform_attn_backward",
        }.items()
        for name in names.split()
    },
    "get_compiler_version": __name__,
    "get_compiling_cuda_version": __name__,
}
# the build compiles the ops only if it sees torch, hence without isolation, and pip would reuse a wheel without them
REMEDY = (
    "build mmcv with its compiled ops: pip install --no-build-isolation --no-binary onedl-mmcv --no-cache-dir "
    "--no-deps --force-reinstall onedl-mmcv"
)


def install() -> None:
    """Make ``mmcv.ops`` importable; a compiled mmcv, or an extension that is already there, stays as it is.

    torchvision is imported when mmcv looks up the first op, which raises a UserError if its kernels cannot be loaded
    next to the installed torch.
    """
    if EXTENSION in sys.modules or _has_compiled_ops():
        return
    spec = ModuleSpec(EXTENSION, _ExtensionLoader(), origin=__name__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[EXTENSION] = module


def is_installed() -> bool:
    """Return whether ``mmcv.ops`` is served from here; False beside a compiled mmcv."""
    extension = sys.modules.get(EXTENSION)
    return extension is not None and getattr(extension.__spec__, "origin", None) == __name__


def _has_compiled_ops() -> bool:
    # importlib.util.find_spec(EXTENSION) would import mmcv, hence the search by hand
    mmcv = importlib.util.find_spec("mmcv")
    return mmcv is not None and PathFinder.find_spec(EXTENSION, mmcv.submodule_search_locations) is not None


@functools.cache
def _check_kernels() -> None:
    try:
        # registers the kernels; with a torch that does not fit, either this fails or the kernels are missing after it
        import torchvision  # noqa: F401

        torch.ops.torchvision.nms(torch.zeros(1, 4, device="cpu"), torch.zeros(1, device="cpu"), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"torchvision {_version('torchvision')} does not work with torch {torch.__version__} "
            f"({reason}); install a pair that belongs together, both from one index: "
            "pip install --force-reinstall torch torchvision"
        ) from error


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


class _ExtensionLoader(Loader):
    """Fills the extension module; mmcv's ``check_ops_exist`` asks the module's spec for a loader."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def find(name: str) -> Callable[..., object]:
            # Kept as an attribute, so that the next look-up is a plain one.
            module.__dict__[name] = op = _op(name)
            return op

        module.__getattr__ = find


def _op(name: str) -> Callable[..., object]:
    """Return the op ``name``, or a function that refuses it: mmcv looks up all ops at import and calls few of them."""
    if name.startswith("_"):
        raise AttributeError(f"module {EXTENSION!r} has no attribute {name!r}")
    _check_kernels()
    if name in SERVED:
        return getattr(importlib.import_module(SERVED[name]), name)

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise UserError(f"the op {name!r} is missing, since mmcv is installed without compiled ops; {REMEDY}")

    return refuse


def get_compiler_version() -> str:
    """Return what environment reports print as the compiler of mmcv's ops."""
    return "none, ops by torchvision"


def get_compiling_cuda_version() -> str:
    """Return what environment reports print as the CUDA version of mmcv's ops."""
    return "none, ops by torchvision"
