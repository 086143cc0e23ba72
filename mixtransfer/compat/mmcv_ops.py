"""The part of ``mmcv.ops`` that detectors need, on torchvision's kernels where mmcv came without compiled ops.

mmcv looks for its compiled ops in the extension module ``mmcv._ext``, and its packages on the index have none. Without
that module ``mmcv.ops`` cannot be imported, and so neither can the detectors. :func:`install` supplies one: ``nms``
and average ``roi_align`` compute what mmcv's own kernels compute, every other op raises an error once it is called.
The functions below keep mmcv's calling conventions (argument names, results written into given tensors).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import NoReturn

import torch
from torch import Tensor

from mixtransfer.errors import UserError

__all__ = ["install"]

EXTENSION = "mmcv._ext"
# the build compiles the ops only if it sees torch, hence without isolation, and pip would reuse a wheel without them
REMEDY = (
    "build mmcv with its compiled ops: pip install --no-build-isolation --no-binary onedl-mmcv --no-cache-dir "
    "--no-deps --force-reinstall onedl-mmcv"
)


def install() -> None:
    """Make ``mmcv.ops`` importable; a compiled mmcv, or an extension that is already there, stays as it is.

    torchvision is imported when mmcv asks for the first op, which raises a UserError if its kernels cannot be loaded
    next to the installed torch.
    """
    if EXTENSION in sys.modules or _has_compiled_ops():
        return
    spec = ModuleSpec(EXTENSION, _ExtensionLoader(), origin=__name__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[EXTENSION] = module


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
    """Return the op ``name``, or a function that refuses it: mmcv asks for all ops at import, calls few of them."""
    if name.startswith("_"):
        raise AttributeError(f"module {EXTENSION!r} has no attribute {name!r}")
    _check_kernels()
    for function in (nms, roi_align_forward, roi_align_backward, get_compiler_version, get_compiling_cuda_version):
        if function.__name__ == name:
            return function

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise UserError(f"the op {name!r} is missing, since mmcv is installed without compiled ops; {REMEDY}")

    return refuse


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the (K,) indices, best score first, of the (N, 4) ``boxes`` x1, y1, x2, y2 that survive suppression.

    With ``offset`` 1 the coordinates are those of pixels: a box is x2 - x1 + 1 wide.
    """
    # the kernel wants one type, and has none of 16 bits on CPU
    dtype = _at_least_float32(boxes, scores)
    corners = boxes.to(dtype)
    if offset:
        corners = corners + corners.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(corners, scores.to(dtype), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the means of ``input`` (B, C, H, W) over the bins of ``rois`` (R, 5) into ``output``.

    ``output`` is (R, C, aligned_height, aligned_width). A region of interest is a batch index and x1, y1, x2, y2 in
    pixels of the image; ``spatial_scale`` turns these into pixels of the map. Each bin is the mean of
    ``sampling_ratio`` squared bilinear samples, or of about one a pixel if that is 0 (RoIAlign of Mask R-CNN,
    arXiv 1703.06870, section 3). ``aligned`` puts the centre of pixel (0, 0) at (0.5, 0.5) instead of (0, 0), as
    detectron2 does.

    Raises:
        UserError: ``pool_mode`` is 0 (maximum), which torchvision lacks.
    """
    if pool_mode != 1:
        raise UserError(f"RoIAlign with pool_mode='max' needs mmcv's compiled ops; use pool_mode='avg' or {REMEDY}")
    # the kernel wants one type; 16 bits would round the fractions of coordinates away
    dtype = _at_least_float32(input, rois)
    pooled = torch.ops.torchvision.roi_align(
        input.to(dtype), rois.to(dtype), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write into ``grad_input`` (B, C, H, W) the gradient of :func:`roi_align_forward` for ``grad_output``."""
    dtype = _at_least_float32(grad_output, rois)
    # a GPU adds the gradients up in no fixed order, and torchvision's kernel does not say so
    device = torch.device("cpu") if torch.are_deterministic_algorithms_enabled() else grad_output.device
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output.to(device, dtype),
        rois.to(device, dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(grad)


def _at_least_float32(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)


def get_compiler_version() -> str:
    """Return what environment reports print as the compiler of mmcv's ops."""
    return "none, ops by torchvision"


def get_compiling_cuda_version() -> str:
    """Return what environment reports print as the CUDA version of mmcv's ops."""
    return "none, ops by torchvision"
