"""Masks and images are judged as they are stored, by the check and by training in the same words."""

import re
import warnings
import zlib

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from PIL import Image
from small_sets import H, W, masks, picture, turned

from mixtransfer.datasets import stored
from mixtransfer.datasets.check import check_folder
from mixtransfer.datasets.label_maps import LoadLabels
from mixtransfer.datasets.stored import Unusable, count_labels, image_size, read_mask
from mixtransfer.datasets.transforms import CheckImage, add_checks
from mixtransfer.errors import UserError

LABELS = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4


def load(path, image=(3, 4), classes=3, **results):
    """What training makes of a mask."""
    given = dict(seg_map_path=str(path), ori_shape=image, reduce_zero_label=True, label_map=None, seg_fields=[])
    return LoadLabels(num_classes=classes).transform({**given, **results})["gt_seg_map"]


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def gray_png(path, labels, bits):
    """A gray PNG of 1, 2 or 4 bits a pixel, which Pillow reads and does not write."""
    rows = np.unpackbits(labels[..., None].astype(np.uint8), axis=-1)[..., -bits:].reshape(len(labels), -1)
    data = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    size = labels.shape[1].to_bytes(4, "big") + labels.shape[0].to_bytes(4, "big")
    header = size + bytes([bits, 0, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def palette_png(path, labels):
    image = Image.fromarray(labels, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(path)


SOUND = {
    "gray": lambda path: Image.fromarray(LABELS).save(path),
    "palette": lambda path: palette_png(path, LABELS),
    "gray of 2 bits": lambda path: gray_png(path, LABELS, 2),
    "gray of 4 bits": lambda path: gray_png(path, LABELS, 4),
    "16 bits": lambda path: Image.fromarray(LABELS.astype(np.uint16)).save(path),
    "32 bits": lambda path: Image.fromarray(LABELS.astype(np.int32)).save(path, "TIFF"),
    "whole floats": lambda path: Image.fromarray(LABELS.astype(np.float32)).save(path, "TIFF"),
}


@pytest.mark.parametrize("kind", SOUND)
def test_labels_are_what_the_file_stores(tmp_path, kind):
    SOUND[kind](tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), LABELS)
    expected = np.where(LABELS == 0, 255, LABELS.astype(int) - 1)
    assert np.array_equal(load(tmp_path / "mask.png"), expected)


def test_one_bit_is_labels_0_and_1(tmp_path):
    Image.fromarray(LABELS > 1).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), LABELS > 1)
    gray_png(tmp_path / "gray.png", (LABELS > 1).astype(np.uint8), 1)
    assert np.array_equal(read_mask(tmp_path / "gray.png"), LABELS > 1)


def layers(count):
    return np.dstack([LABELS] * count)


def tagged(path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(LABELS).save(path, exif=exif)


UNUSABLE = {
    "16 bits beyond 8": (lambda p: Image.fromarray(LABELS.astype(np.uint16) + 257).save(p), r"whole.*257, 258, 259"),
    "16 bits, multiples of 256": (lambda p: Image.fromarray(LABELS.astype(np.uint16) * 256).save(p), "whole.*256, 512"),
    "negative": (lambda p: Image.fromarray(LABELS.astype(np.int32) - 1).save(p, "TIFF"), "whole.*-1"),
    "fractions": (lambda p: Image.fromarray(LABELS + np.float32(0.5)).save(p, "TIFF"), "whole.*0.5, 1.5"),
    "not-a-number": (lambda p: Image.fromarray(np.full((3, 4), np.nan, np.float32)).save(p, "TIFF"), "whole.*nan"),
    "RGB": (lambda p: Image.fromarray(layers(3)).save(p), "several channels.*3 channels, RGB"),
    "RGBA": (lambda p: Image.fromarray(layers(4)).save(p), "several channels.*4 channels, RGBA"),
    "gray and alpha": (lambda p: Image.fromarray(layers(2)).save(p), "several channels.*2 channels, LA"),
    "CMYK": (lambda p: Image.fromarray(layers(3)).convert("CMYK").save(p, "TIFF"), "several channels.*4 channels"),
    "JPEG under another name": (lambda p: Image.fromarray(LABELS).save(p, "JPEG"), "losses.*JPEG"),
    "lossy TIFF": (lambda p: Image.fromarray(LABELS).save(p, "TIFF", compression="jpeg"), "losses"),
    "pages": (
        lambda p: Image.fromarray(LABELS).save(p, "TIFF", save_all=True, append_images=[Image.fromarray(LABELS)]),
        "2 pages",
    ),
    "orientation": (tagged, "orientation tag"),
    "damaged": (lambda p: p.write_bytes(b"no image"), "unreadable mask"),
    "empty": (lambda p: p.write_bytes(b""), "unreadable mask"),
    "label of no class": (lambda p: Image.fromarray(LABELS * 5).save(p), "outside the classes.*5, 10, 15"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_mask_that_is_no_labels_is_refused_by_its_name(tmp_path, kind):
    write, words = UNUSABLE[kind]
    write(tmp_path / "mask.png")
    with pytest.raises(UserError, match=rf"mask\.png: .*{words}") as error:
        load(tmp_path / "mask.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [kind for kind in UNUSABLE if kind != "label of no class"])
def test_the_check_says_the_same(tmp_path, kind):
    root = masks(tmp_path)
    UNUSABLE[kind][0](root / "annotations/training/1.png")
    with pytest.raises(Unusable) as error:
        read_mask(root / "annotations/training/1.png")
    assert check_folder(root)[0].problems == {error.value.kind: [f"annotations/training/1.png: {error.value.detail}"]}


def test_a_missing_mask_and_one_of_another_size(tmp_path):
    with pytest.raises(UserError, match=r"mask\.png: no such mask"):
        load(tmp_path / "mask.png")
    Image.fromarray(LABELS[:1]).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask\.png: the mask has 1x4 pixels, its image 3x4"):
        load(tmp_path / "mask.png")


def test_a_mask_of_one_row_keeps_its_shape(tmp_path):
    """mmseg makes (1, 4) of it (4,)."""
    Image.fromarray(LABELS[:1]).save(tmp_path / "mask.png")
    assert load(tmp_path / "mask.png", image=(1, 4)).shape == (1, 4)


def test_classes_in_another_order_than_labels(tmp_path):
    Image.fromarray(LABELS).save(tmp_path / "mask.png")
    found = load(tmp_path / "mask.png", label_map={0: 2, 1: 0, 2: 1})
    assert np.array_equal(found, np.array([255, 2, 0, 1])[LABELS])


def test_labels_that_are_not_reduced(tmp_path):
    Image.fromarray(LABELS).save(tmp_path / "mask.png")
    found = load(tmp_path / "mask.png", classes=4, reduce_zero_label=False)
    assert np.array_equal(found, LABELS)
    with pytest.raises(UserError, match=r"label outside the classes .3; 3 classes are labels 0 to 2"):
        load(tmp_path / "mask.png", classes=3, reduce_zero_label=False)


def test_labels_are_counted_in_parts():
    labels = np.random.default_rng(0).integers(0, 256, (2100, 2100), np.uint8)
    assert np.array_equal(count_labels(labels), np.bincount(labels.ravel(), minlength=256))


@pytest.mark.parametrize("tag", range(2, 9))
def test_the_size_of_an_image_is_that_after_turning(tmp_path, tag):
    turned(picture(np.random.default_rng(0)), tag, tmp_path / "image.png")
    assert image_size(tmp_path / "image.png") == (H, W)


IMAGES = {
    "float": (lambda p: Image.fromarray(np.ones((9, 9), np.float32)).save(p, "TIFF"), "unreadable image"),
    "one row": (lambda p: Image.fromarray(np.ones((1, 9, 3), np.uint8)).save(p), "side of one pixel .1x9"),
    "one column": (lambda p: Image.fromarray(np.ones((9, 1, 3), np.uint8)).save(p), "side of one pixel .9x1"),
    "no image": (lambda p: p.write_bytes(b"GIF89a"), "unreadable image"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_that_cannot_be_used(tmp_path, kind, capfd):
    write, words = IMAGES[kind]
    write(tmp_path / "image.png")
    with pytest.raises(Unusable, match=words):
        image_size(tmp_path / "image.png")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_images_that_training_reads(tmp_path, mode):
    pixels = picture(np.random.default_rng(0))
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 if mode == "I;16" else pixels)
    image = image if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path)
    assert image_size(path) == (H, W)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "MOST_PIXELS", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    for size in ((10, 9), (11, 10)):
        Image.fromarray(np.ones(size, np.uint8)).save(tmp_path / f"{size[0]}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(tmp_path / "10.png") == read_mask(tmp_path / "10.png").shape == (10, 9)
    with pytest.raises(Unusable, match="image of too many pixels"):
        image_size(tmp_path / "11.png")
    with pytest.raises(Unusable, match="mask of too many pixels"):
        read_mask(tmp_path / "11.png")
    with pytest.raises(UserError, match=r"a\.png: image of too many pixels"):
        CheckImage().transform(dict(img_path="a.png", ori_shape=(11, 10, 3)))


def test_training_stops_at_an_image_of_another_size_than_stated():
    sound = dict(img_path="a.png", ori_shape=(11, 10, 3), height=11, width=10)
    assert CheckImage().transform(sound) is sound
    with pytest.raises(
        UserError, match=re.escape("a.png: the image has 11x10 pixels as it is loaded, its annotations")
    ):
        CheckImage().transform({**sound, "height": 10, "width": 11})


def test_every_pipeline_looks_at_what_it_loads():
    load, other = dict(type="LoadImageFromFile"), dict(type="Resize", scale=(4, 4))
    labels = dict(type="mmseg.LoadAnnotations", reduce_zero_label=True)
    shared = [ConfigDict(load), ConfigDict(labels), ConfigDict(other)]
    inner = dict(type="RandomChoice", transforms=[[load, other], [load]])
    datasets = [dict(pipeline=[inner]), dict(pipeline=shared)]
    cfg = Config(
        dict(
            model=dict(decode_head=[dict(num_classes=5), dict(num_classes=7)]),
            train_dataloader=dict(dataset=dict(type="ConcatDataset", datasets=datasets)),
            val_dataloader=dict(dataset=dict(pipeline=shared)),
        )
    )
    add_checks(cfg)
    check = dict(type="mixtransfer.CheckImage")
    read = dict(type="mixtransfer.LoadLabels", reduce_zero_label=True, num_classes=7)
    first, second = cfg.train_dataloader.dataset.datasets
    assert first.pipeline == [dict(type="RandomChoice", transforms=[[load, check, other], [load, check]])]
    assert second.pipeline == cfg.val_dataloader.dataset.pipeline == [load, check, read, other]
    detector = Config(dict(model={}, test_dataloader=dict(dataset=dict(pipeline=[load, dict(type="LoadAnnotations")]))))
    add_checks(detector)
    assert detector.test_dataloader.dataset.pipeline == [load, check, dict(type="LoadAnnotations")]
