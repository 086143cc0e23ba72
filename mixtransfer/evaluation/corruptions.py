"""Robustness of segmentors and detectors to common corruptions, made on the fly: COCO-C, Cityscapes-C, any dataset's.

Michaelis et al., "Benchmarking Robustness in Object Detection" (arXiv 1907.07484): mPC is the mean score over
corruptions and severities, rPC its share of the clean score, which FAN (arXiv 2204.12451) calls retention. The
corruptions are those of the package imagecorruptions at the image's own size, before it is resized, of pixels in the
order in which they are loaded (BGR), as mmdet's ``Corrupt`` and FAN's generators of both sets have it.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.config import ConfigDict

from mixtransfer.datasets.configure import type_name
from mixtransfer.errors import UserError
from mixtransfer.registry import TRANSFORMS

__all__ = ["COMMON", "EXTRA", "Corrupt", "corrupted", "require_package", "summary", "table"]

#: Corruptions of the benchmark, and those that Hendrycks and Dietterich hold back for validation.
COMMON = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
#: Those that draw from a generator of their own, which a seed sets; the others draw from numpy's global one.
SEEDED = ("impulse_noise", "glass_blur")
#: Least side in pixels that imagecorruptions takes.
LEAST = 32

Scores = Mapping[str, Sequence[float]]


def require_package() -> None:
    """Make sure that corruptions can be made.

    Raises:
        UserError: the package is not installed.
    """
    if importlib.util.find_spec("imagecorruptions") is None:
        raise UserError("robustness needs the package imagecorruptions: pip install imagecorruptions-imaug")


@TRANSFORMS.register_module()
class Corrupt(BaseTransform):
    """Corrupt an image as it is loaded; the same file is corrupted alike by any worker, in any order and run.

    Args:
        corruption: of :data:`COMMON` or :data:`EXTRA`.
        severity: 1 to 5.

    Raises:
        UserError: an image is too small.
    """

    def __init__(self, corruption: str, severity: int):
        self.corruption, self.severity = corruption, severity

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return ``results`` with the corrupted ``img``, (H, W, 3) uint8."""
        from imagecorruptions import corrupt

        image, name = results["img"], Path(results["img_path"]).name
        if min(image.shape[:2]) < LEAST:
            raise UserError(
                f"{results['img_path']}: a side of less than {LEAST} pixels cannot be corrupted; leave it out"
            )
        seed = zlib.crc32(f"{name} {self.corruption} {self.severity}".encode())
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            own = {"seed": seed} if self.corruption in SEEDED else {}
            results["img"] = corrupt(image, severity=self.severity, corruption_name=self.corruption, **own)
        finally:
            np.random.set_state(state)
        return results


def corrupted(pipeline: Sequence[Mapping], corruption: str, severity: int) -> list[ConfigDict]:
    """Return a test pipeline that corrupts each image behind the steps that load and check it."""
    steps = [ConfigDict(step) for step in pipeline]
    names = [type_name(step) for step in steps]
    if "LoadImageFromFile" not in names:
        raise UserError(f"the test pipeline ({', '.join(names)}) loads no image from a file; there is none to corrupt")
    place = names.index("LoadImageFromFile") + 1
    place += names[place : place + 1] == ["CheckImage"]
    steps.insert(place, ConfigDict(type="mixtransfer.Corrupt", corruption=corruption, severity=severity))
    return steps


def summary(scores: Scores, clean: float) -> dict[str, float]:
    """Return mPC, clean score and retention in percent; of the 15 common corruptions where all were measured.

    Args:
        scores: of each corruption by severity, in percent.
        clean: on the images as they are.
    """
    everything = set(COMMON) <= set(scores)
    counted = COMMON if everything else tuple(scores)
    mean = float(np.mean([np.mean(scores[name]) for name in counted]))
    found = {f"mPC of {len(counted)} corruptions": mean}
    if len(scores) > len(counted):
        found[f"mPC of {len(scores)} corruptions"] = float(np.mean([np.mean(values) for values in scores.values()]))
    found["clean"] = clean
    if clean:
        found["rPC"] = 100 * mean / clean
    return found


def table(metric: str, scores: Scores, severities: Sequence[int], clean: float) -> str:
    """Return a Markdown table of a score's corruptions and severities, and below it the figures of the whole."""
    names = [f"corruption ({metric})", *map(str, severities), "mean"]
    lines = [f"| {' | '.join(names)} |", "|---|" + "---:|" * (len(names) - 1)]
    lines += [
        f"| {name} | {' | '.join(f'{value:.2f}' for value in (*values, np.mean(values)))} |"
        for name, values in scores.items()
    ]
    return "\n".join([*lines, "", *(f"{key}: {value:.2f}" for key, value in summary(scores, clean).items())])
