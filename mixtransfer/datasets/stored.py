"""Images and masks as they lie in files: what training reads of them, and one line for what cannot be used.

``data check``, the checks before training and the transforms that load samples all ask here, so that they agree.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

__all__ = [
    "MOST_PIXELS",
    "VOID",
    "Unusable",
    "count_labels",
    "image_size",
    "opened",
    "read_mask",
    "require_labels",
    "require_size",
]

#: Labels of a mask in ADE20K's layout that belong to no class.
VOID = (0, 255)
#: Pixels of the largest image that is read: Pillow's limit, which masks have too.
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
#: What Pillow and OpenCV raise for files that are truncated, damaged or no images; Pillow's plugins raise many kinds.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    struct.error,
    cv2.error,
)
#: Formats that change pixels when they are written, by Pillow's names, and such compressions inside TIFF.
LOSSY_FORMATS, LOSSY_COMPRESSIONS = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"), ("jpeg", "tiff_jpeg", "webp")
#: Tags of EXIF and TIFF, and the level at which OpenCV warns of errors only.
ORIENTATION, BITS_OF_TIFF, OPENCV_ERRORS = 0x0112, 258, 2

#: The kinds of problems of :func:`label_problem`; the last one can have another reason, and training only says it.
EMPTY, ALONE = "every mask is void", "masks with one class only"
SHIFTED, LAST_UNUSED = "masks that count classes from 0", "the last class never occurs"
#: Percent of pixels from which on label 0 may be a class.
LEAST_ZERO = 1


class Unusable(ValueError):
    """A file cannot be used.

    Attributes:
        kind: what is wrong, the same words for every file with this problem.
        detail: what the file has.
    """

    def __init__(self, kind: str, detail: str):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


@contextmanager
def opened(path: str | Path, content: bytes | None = None, kind: str = "image") -> Iterator[Image.Image]:
    """Open an image or mask with Pillow while entered.

    Raises:
        Unusable: the file is no ``kind`` that Pillow reads; also of what is read inside.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns from half of its limit on, and of tags that nobody reads.
            warnings.simplefilter("ignore")
            with Image.open(path if content is None else io.BytesIO(content)) as image:
                yield image
    except Unusable:
        raise
    except Image.DecompressionBombError:
        raise Unusable(f"{kind} of too many pixels", f"more than {MOST_PIXELS / 1e6:.0f} megapixels; cut it") from None
    except UNREADABLE as error:
        text = str(error).strip().splitlines()
        raise Unusable(f"unreadable {kind}", text[-1][:120] if text else type(error).__name__) from error


def image_size(path: Path) -> tuple[int, int]:
    """Decode an image completely, as training does, and return its (height, width), turned as its EXIF says.

    Raises:
        Unusable: OpenCV, which training reads images with, or Pillow, which notices truncation, cannot decode the
            file, or :func:`require_size` refuses it.
    """
    with opened(path, None, "image") as image:
        image.load()
        level = cv2.getLogLevel()
        # What it warns of is said in one line below.
        cv2.setLogLevel(OPENCV_ERRORS)
        try:
            decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        finally:
            cv2.setLogLevel(level)
        if decoded is None:
            raise Unusable("unreadable image", f"OpenCV reads no {image.format} of mode {image.mode}; convert it")
    size = decoded.shape[:2]
    require_size(size)
    return size


def require_size(size: tuple[int, int]) -> None:
    """Refuse an image of (height, width) that no network can learn from.

    Raises:
        Unusable: a side of one pixel, or too many pixels.
    """
    if min(size) < 2:
        raise Unusable("image with a side of one pixel", f"{size[0]}x{size[1]}")
    if size[0] * size[1] > MOST_PIXELS:
        raise Unusable("image of too many pixels", f"{size[0]}x{size[1]}, more than {MOST_PIXELS / 1e6:.0f} megapixels")


def read_mask(path: str | Path, content: bytes | None = None) -> np.ndarray:
    """Return the labels of a mask, (H, W) uint8, exactly as they are stored.

    Args:
        path: the file.
        content: its bytes, if they were read already.

    Raises:
        Unusable: damaged, several channels or pages, labels that are not whole numbers from 0 to 255, a format with
            losses, or an orientation tag, which a mask's reader does not follow.
    """
    with opened(path, content, "mask") as image:
        if image.format in LOSSY_FORMATS or image.info.get("compression") in LOSSY_COMPRESSIONS:
            raise Unusable("mask in a format with losses", f"{image.format} changes labels; write PNG")
        channels = len(image.getbands())
        if channels > 1:
            raise Unusable(
                "mask with several channels instead of labels",
                f"{channels} channels, {image.mode}; write one channel with the label of each pixel",
            )
        if getattr(image, "n_frames", 1) > 1:
            raise Unusable("mask with several pages", f"{image.n_frames} pages; write one")
        if image.getexif().get(ORIENTATION, 1) != 1:
            raise Unusable("mask with an orientation tag", "write it upright, without the tag")
        labels = np.asarray(image)
        bits = _bits(image, path, content)
    if labels.dtype == np.uint8:
        # Pillow stretches grays of 2 and 4 bits to 0…255; a palette's indices stay.
        return labels // (255 // (2**bits - 1)) if image.mode == "L" and bits in (2, 4) else labels
    if labels.dtype == bool:
        return labels.astype(np.uint8)
    with np.errstate(invalid="ignore"):
        odd = labels[~((labels >= 0) & (labels <= 255) & (labels == np.floor(labels)))]
    if odd.size:
        shown = ", ".join(f"{value:g}" for value in np.unique(odd)[:3])
        raise Unusable("mask with labels that are not whole numbers from 0 to 255", f"it has {shown}")
    return labels.astype(np.uint8)


def _bits(image: Image.Image, path: str | Path, content: bytes | None) -> int:
    """Bits that a gray PNG or TIFF stores for a pixel."""
    if image.format == "PNG":
        if content is None:
            with open(path, "rb") as file:
                content = file.read(25)
        return content[24]
    if image.format == "TIFF":
        return int(image.tag_v2.get(BITS_OF_TIFF, (1,))[0])
    return 8


def count_labels(labels: np.ndarray) -> np.ndarray:
    """Return the number of pixels of each label 0 … 255, (256,) int64."""
    flat, part = labels.reshape(-1), 1 << 22
    # In parts: bincount widens what it counts eightfold.
    return sum(
        (np.bincount(flat[i : i + part], minlength=256) for i in range(0, flat.size, part)), np.zeros(256, np.int64)
    )


def require_labels(counts: np.ndarray, classes: int, void: tuple[int, ...] = VOID) -> None:
    """Refuse a mask with labels outside its classes.

    Args:
        counts: pixels of each stored label, (256,).
        classes: number of classes; they follow each other from the first label that is not void.
        void: labels that belong to no class.

    Raises:
        Unusable: naming some of the labels.
    """
    first = 1 if 0 in void else 0
    outside = [int(v) for v in np.flatnonzero(counts) if v not in void and not first <= v < first + classes]
    if outside:
        shown = ", ".join(map(str, outside[:5]))
        raise Unusable(
            "label outside the classes", f"{shown}; {classes} classes are labels {first} to {first + classes - 1}"
        )


def are_binary(counts: np.ndarray) -> bool:
    """Return whether 0 and 1 are all the labels, beside void 255, so that 0 is a class: the background's.

    ``counts`` are pixels of each stored label, (256,), of all masks whose classes no list names.
    """
    return bool(counts[0] and counts[1] and not counts[2:255].any())


def label_problem(counts: np.ndarray, names: Sequence[str], void: tuple[int, ...]) -> tuple[str, str] | None:
    """Judge the labels of all masks together.

    Args:
        counts: pixels of each stored label, (256,).
        names: the classes in the order of their labels.
        void: labels that belong to no class, (0, 255) in ADE20K's layout.

    Returns:
        The kind of problem and what was found; None where classes can be told apart and count as they should.
    """
    first = 1 if 0 in void else 0
    used, share = [k for k in range(len(names)) if counts[first + k]], 100 * counts[0] / max(counts.sum(), 1)
    zero = f"0, {share:.1f}% of pixels, is void" if first else "labels start at 0"
    remedy = f"; labels of classes start at {first}" + (", also the background's" if first else "")
    if not used:
        return EMPTY, f"no pixel has a class; {zero}{remedy}"
    if len(used) == 1:
        label, name = first + used[0], names[used[0]]
        return ALONE, f"only label {label} ({name}) occurs, there is nothing to tell apart; {zero}{remedy}"
    if first and share >= LEAST_ZERO and used[-1] != len(names) - 1:
        last = f"label {len(names)} ({names[-1]})"
        # Of many classes some may be rare; that of all labels from 0 to the last but one none is missing is no chance.
        kind = SHIFTED if len(used) == len(names) - 1 else LAST_UNUSED
        return kind, (
            f"{last} never occurs and {zero}: if masks count classes from 0, say --zero-is-class, else take the"
            " name from the end of the list of classes"
        )
    return None
