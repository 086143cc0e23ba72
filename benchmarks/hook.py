"""Time and memory of what TokenMixHook does to a batch before the model sees it, on the training thread.

``python -m benchmarks.hook`` prints a row for each kind of batch: median and quartiles of its CPU time, and what
is allocated, by torch in all and by NumPy at its peak. Instances are ellipses; label maps are made of rectangles.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import torch

import mixtransfer.registry  # noqa: F401  before mmdet, whose masks look for mmcv.ops when they are imported

# isort: split
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from mixtransfer.transfer import TokenMixHook
from mixtransfer.transfer.token_mix_hook import _Step

STEPS = 16


def detection(size: tuple[int, int], count: int, rng: np.random.Generator) -> DetDataSample:
    """Return a sample with ellipses of all sizes up to half of the image's sides."""
    y, x = np.ogrid[: size[0], : size[1]]
    masks, boxes = np.zeros((count, *size), np.uint8), []
    for mask in masks:
        height, width = (rng.uniform(0.02, 0.25) * side for side in size)
        top, left = rng.uniform(height, size[0] - height), rng.uniform(width, size[1] - width)
        mask[((y - top) / height) ** 2 + ((x - left) / width) ** 2 < 1] = 1
        boxes.append([left - width, top - height, left + width, top + height])
    sample = DetDataSample(metainfo=dict(img_shape=size))
    labels = torch.from_numpy(rng.integers(0, 80, count))
    sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes), labels=labels, masks=BitmapMasks(masks, *size))
    sample.ignored_instances = sample.gt_instances[:0]
    return sample


def segmentation(size: tuple[int, int], classes: int, rng: np.random.Generator) -> SegDataSample:
    """Return a sample whose map is made of rectangles of so many classes."""
    labels = np.zeros(size, np.int64)
    for label in range(classes):
        top, left = (int(rng.integers(0, side * 7 // 8)) for side in size)
        labels[top : top + size[0] // 4, left : left + size[1] // 4] = label
    labels[:4] = 255
    sample = SegDataSample(metainfo=dict(img_shape=size))
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(labels)[None])
    return sample


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    large, small = (800, 1344), (512, 512)
    batches = {
        "2 × 800 × 1344, 7 instances": (81, [detection(large, 7, rng) for _ in range(2)], large),
        "2 × 800 × 1344, 30 instances": (81, [detection(large, 30, rng) for _ in range(2)], large),
        "2 × 512 × 512 maps, 20 classes": (150, [segmentation(small, 20, rng) for _ in range(2)], small),
        "2 × 512 × 512 maps, 150 classes": (150, [segmentation(small, 150, rng) for _ in range(2)], small),
    }
    print("| batch | ms | torch allocates, MB | NumPy's peak, MB |\n|---|---|---|---|")
    for name, (classes, samples, size) in batches.items():
        images = torch.randn(2, 3, *size)
        hook = TokenMixHook(dict(type="TokenBox"), prob=1.0)
        hook._classifier, hook._stride, hook._ignore_index = SimpleNamespace(num_classes=classes), 4, 255
        hook._step = _Step()
        spent = []
        for step in range(STEPS + 2):
            hook._iteration = step
            start = time.thread_time()
            hook._mixed(images, samples)
            spent.append(1000 * (time.thread_time() - start))
        low, middle, high = statistics.quantiles(spent[2:], n=4)
        with torch.profiler.profile(profile_memory=True) as profile:
            hook._mixed(images, samples)
        made = sum(event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0)
        tracemalloc.start()
        hook._mixed(images, samples)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(
            f"| {name} | {middle:.1f} [{low:.1f}, {high:.1f}] | {made / 2**20:.0f} | {peak / 2**20:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
