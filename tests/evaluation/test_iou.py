"""Areas of classes are counted exactly: as mmseg counts small maps, and further where float32 loses pixels."""

import pytest
import torch
from mmseg.evaluation import IoUMetric

from mixtransfer.evaluation.metrics import ClassIoU, areas

NAMES = ("sky", "road", "tree", "car", "sign")


def metric(cls):
    found = cls()
    found.dataset_meta = {"classes": NAMES}
    return found


def sample(predicted, real):
    return {"pred_sem_seg": {"data": predicted[None]}, "gt_sem_seg": {"data": real[None]}}


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_numbers_are_mmsegs(kind):
    generator = torch.Generator().manual_seed(0)
    samples = []
    for size in ((7, 9), (1, 1), (30, 20)):
        real = torch.randint(4, size, generator=generator).to(kind)
        # Void pixels, and the last class nowhere.
        real[torch.rand(size, generator=generator) < 0.2] = 255
        samples.append(sample(torch.randint(4, size, generator=generator), real))
    values = []
    for cls in (IoUMetric, ClassIoU):
        found = metric(cls)
        found.process({}, samples)
        values.append(found.evaluate(len(samples)))
    assert values[1] == pytest.approx(values[0], abs=0.006)
    assert found.per_class["sign"]["IoU"] != found.per_class["sign"]["IoU"]


def test_single_pixels_count_among_many():
    # Images of 2^24 pixels of a class, and one pixel of it in another.
    whole = torch.tensor([2**24, 0, 0, 0, 0])
    found = metric(ClassIoU)
    found.results = [(whole, whole, whole, whole)]
    found.process({}, [sample(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.long))])
    found.evaluate(2)
    assert found.per_class["sky"]["IoU"] / 100 == 2**24 / (2**24 + 1)


def test_the_way_of_a_device_counts_the_same():
    generator = torch.Generator().manual_seed(1)
    predicted, real = (torch.randint(6, (40, 50), generator=generator) for _ in range(2))
    real[:3] = 255
    expected = areas(predicted, real, 5, 255)
    kept = real != 255
    for number in range(5):
        assert expected[0, number] == (kept & (predicted == number) & (real == number)).sum()
        assert expected[1, number] == (kept & (predicted == number)).sum()
        assert expected[2, number] == (kept & (real == number)).sum()
