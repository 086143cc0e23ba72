"""Robustness of a classifier: ImageNet-C, in folders that hold the corrupted images, ImageNet-A and ImageNet-R.

Paper: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
2019, arXiv 1903.12261, section 4.1, with AlexNet's errors of its code. ImageNet-A (arXiv 1907.07174) and -R
(2006.16241) have images of 200 of the 1000 classes; the answer is the likeliest of the 200. As NVlabs/FAN measures it.
Swapped backgrounds are after Xiao et al., "Noise or Signal: The Role of Image Backgrounds in Object Recognition", ICLR
2021, arXiv 2006.09994 (Mixed-Rand).

Accuracies are top-1 in percent; errors are fractions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from timm.data import ImageNetInfo

from mixtransfer.datasets.classes import WORDNET
from mixtransfer.datasets.folders import IMAGE_SUFFIXES, class_folders
from mixtransfer.datasets.image_maps import map_file, read_foreground
from mixtransfer.datasets.sources import image_files
from mixtransfer.errors import UserError

__all__ = [
    "ALEXNET_ERRORS",
    "CorruptedImages",
    "corruption_errors",
    "for_cropped_images",
    "lacking",
    "mean_corruption_error",
    "mean_top1",
    "open_corrupted",
    "open_subset",
    "outputs_of",
    "summary",
    "table",
    "with_swapped_backgrounds",
    "without_background",
]

SEVERITIES = (1, 2, 3, 4, 5)
#: Times that backgrounds are swapped, each time others.
DRAWS = 3
#: Mean over the severities of AlexNet's top-1 error, of the corruptions that the mean corruption error is over.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}

Top1 = Mapping[str, Sequence[float]]


def mean_top1(top1: Top1) -> dict[str, float]:
    """Return the mean accuracy of each corruption over its severities."""
    return {name: sum(values) / len(values) for name, values in top1.items()}


def corruption_errors(top1: Top1) -> dict[str, float]:
    """Return the errors as multiples of AlexNet's, of the corruptions that have one."""
    means = mean_top1(top1)
    return {name: (1 - means[name] / 100) / error for name, error in ALEXNET_ERRORS.items() if name in means}


def lacking(top1: Top1) -> list[str]:
    """Return the corruptions of the mean corruption error that were not measured."""
    return [name for name in ALEXNET_ERRORS if name not in top1]


def mean_corruption_error(top1: Top1) -> float | None:
    """Return the mean of the 15 corruption errors, 1 for AlexNet, or None if not all of them were measured."""
    errors = corruption_errors(top1)
    return None if lacking(top1) else sum(errors.values()) / len(errors)


@dataclass(frozen=True)
class CorruptedImages:
    """A complete folder in ImageNet-C's layout, corruption/severity/class/image.

    Attributes:
        folders: the severities' folders, 1 to 5, of each corruption.
        classes: names of the class folders, in label order.
        clean: the folder of the images as they were, or None.
    """

    folders: Mapping[str, tuple[Path, ...]]
    classes: tuple[str, ...]
    clean: Path | None


def open_corrupted(root: Path, clean: Path | None = None) -> CorruptedImages:
    """Describe the corrupted images in ``root``.

    Args:
        root: the folder of the corruptions; any name that is not hidden is one, ``clean`` excepted.
        clean: the folder of clean images, class/image; by default ``root``/clean, if there.

    Raises:
        UserError: a folder is missing, or its classes differ from the others'.
    """
    layout = "ImageNet-C's layout is corruption/severity/class/image"
    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder; {layout}")
    if clean is not None and not clean.is_dir():
        raise UserError(f"--clean {clean}: no such folder; give the one of the class folders")
    names = [name for name in class_folders(root) if name != "clean"]
    if not names:
        raise UserError(f"--data {root}: no folder of a corruption in it; {layout}")
    if clean is None and (root / "clean").is_dir():
        clean = root / "clean"
    folders = {name: tuple(root / name / str(severity) for severity in SEVERITIES) for name in names}
    for name, paths in folders.items():
        absent = [path.name for path in paths if not path.is_dir()]
        if absent:
            raise UserError(f"{root / name}: severities {', '.join(absent)} are missing; {layout}, severities 1 to 5")
    every = [*([clean] if clean else []), *(path for paths in folders.values() for path in paths)]
    classes = class_folders(every[0])
    for path in every:
        odd = sorted(set(class_folders(path)) ^ set(classes))
        if odd:
            raise UserError(f"{path}: its class folders differ from those of {every[0]}: {', '.join(odd[:5])}")
        if not any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.glob("*/*")):
            raise UserError(f"{path}: no images ({', '.join(IMAGE_SUFFIXES)}) in class folders; {layout}")
    return CorruptedImages(folders, classes, clean)


def open_subset(root: Path) -> tuple[str, ...] | None:
    """Return the classes of a folder in ImageNet-A's layout, WordNet id/image; None of a folder in another layout."""
    names = class_folders(root) if root.is_dir() else ()
    return names if names and all(WORDNET.fullmatch(name) for name in names) else None


def outputs_of(classes: Sequence[str], trained: Sequence[str] | None, outputs: int, name: str) -> list[int]:
    """Return the numbers of a model's outputs that stand for WordNet ids.

    Args:
        classes: the ids.
        trained: the classes of the checkpoint, if it names them; those of ImageNet-1k in English are in its order.
        outputs: how many the model has.
        name: of the folder with the images, for messages.

    Raises:
        UserError: the model has not all of these classes.
    """
    named = trained if trained and all(WORDNET.fullmatch(item) for item in trained) else None
    known = list(named or ImageNetInfo("imagenet-1k").label_names())
    if len(known) != outputs:
        raise UserError(
            f"--data {name}: ImageNet's classes, and the model has {outputs} outputs; give one of {len(known)}"
        )
    strange = [item for item in classes if item not in known]
    if strange:
        raise UserError(f"--data {name}: the model has no class {', '.join(strange[:5])}; take the folder away")
    return [known.index(item) for item in classes]


def for_cropped_images(pipeline: Sequence[Mapping]) -> list[dict]:
    """Return a test pipeline for images that are cropped already, as ImageNet-C's: resizing aims at the crop's size."""
    steps = [dict(step) for step in pipeline]
    crops = [step["crop_size"] for step in steps if str(step["type"]).endswith("CenterCrop")]
    for step in steps:
        if crops and str(step["type"]).endswith("ResizeEdge"):
            step["scale"] = crops[0] if isinstance(crops[0], int) else max(crops[0])
    return steps


def with_swapped_backgrounds(pipeline: Sequence[Mapping], images: Path, root: Path, folder: str) -> list[list[Mapping]]:
    """Return test pipelines that put another image's background behind each image, :data:`DRAWS` draws of them.

    Args:
        pipeline: a test pipeline that loads images.
        images: folder of the images, which the backgrounds come from too.
        root: the dataset's folder.
        folder: the foreground maps' folder inside it.
    """
    place = next(i for i, step in enumerate(pipeline, 1) if str(step["type"]).endswith("LoadImageFromFile"))
    swap = {"type": "mixtransfer.SwapBackground", "images": str(images), "data_root": str(root), "folder": folder}
    return [[*pipeline[:place], {**swap, "seed": seed}, *pipeline[place:]] for seed in range(DRAWS)]


def without_background(images: Path, root: Path, folder: str) -> int:
    """Return how many of the images are all foreground.

    Raises:
        UserError: an image has no foreground map.
    """
    maps = (read_foreground(map_file(path, root, folder, "foreground")) for path in image_files(images))
    return sum(bool(share.min() == 1) for share in maps)


def table(top1: Top1, clean: float | None = None) -> str:
    """Return a Markdown table of the corruptions, and below it the means, the mean corruption error and the retention.

    Args:
        top1: accuracies by severity, of each corruption.
        clean: accuracy on the clean images.
    """
    means, errors = mean_top1(top1), corruption_errors(top1)
    lines = [
        f"| corruption | {' | '.join(map(str, SEVERITIES))} | mean | CE |",
        f"|---|{'---:|' * (len(SEVERITIES) + 2)}",
    ]
    for name, values in top1.items():
        cells = [f"{value:.2f}" for value in (*values, means[name])]
        cells.append(f"{100 * errors[name]:.2f}" if name in errors else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for key, value in summary(top1, clean).items():
        lines.append(f"{key}: {value:.2f}")
    if lacking(top1):
        lines.append(f"no mCE: it is over 15 corruptions, and these are missing: {', '.join(lacking(top1))}")
    return "\n".join(lines)


def summary(top1: Top1, clean: float | None = None) -> dict[str, float]:
    """Return the summary figures in percent, by name.

    Retention is the share of the clean accuracy that the first mean keeps, which is over the 15 corruptions of the mean
    corruption error if all of them are there, else over all corruptions that are.
    """
    means = mean_top1(top1)
    counted = list(means) if lacking(top1) else list(ALEXNET_ERRORS)
    mean = sum(means[name] for name in counted) / len(counted)
    found = {f"mean top-1 of {len(counted)} corruptions": mean}
    if len(means) > len(counted):
        found[f"mean top-1 of {len(means)} corruptions"] = sum(means.values()) / len(means)
    error = mean_corruption_error(top1)
    if error is not None:
        found["mCE"] = 100 * error
    if clean is not None:
        found["clean top-1"] = clean
    if clean:
        found["retention"] = 100 * mean / clean
    return found
