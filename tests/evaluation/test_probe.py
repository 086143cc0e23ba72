"""The frozen probe: every head of the batched module is the head that the ordinary runner trains; maps are kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModel
from tiny_runs import small_scenes, tiny_config
from torch import nn

from mixtransfer.cli import run_command
from mixtransfer.engine.runner import TransferRunner
from mixtransfer.errors import UserError
from mixtransfer.evaluation.maps import Maps
from mixtransfer.evaluation.probe import Heads, Recipe, best_class, chosen_rates, count, enlarged, train_heads
from mixtransfer.evaluation.records import percentages
from mixtransfer.registry import DATASETS, MODELS

CHANNELS, CLASSES, IMAGES = (6, 4), 3, 12
RECIPE = Recipe(rates=(1e-3, 3e-2), seeds=(0, 5), iterations=7, batch=4)


def write_maps(folder, shapes=((8, 6), (4, 3))):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for k, (channels, (h, w)) in enumerate(zip(CHANNELS, shapes, strict=True)):
        rng.normal(k, 1 + k, (IMAGES, channels, h, w)).astype(np.float16).tofile(folder / f"map{k}.f16")
    labels = rng.integers(0, CLASSES, (IMAGES, 16, 12)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 255
    labels.tofile(folder / "labels.u8")
    index = {
        "names": [f"{number}.jpg" for number in range(IMAGES)],
        "channels": CHANNELS,
        "label_shapes": [[16, 12]] * IMAGES,
        "shapes": [[list(shape)] * IMAGES for shape in shapes],
    }
    (folder / "index.json").write_text(json.dumps(index))
    return Maps(folder)


@DATASETS.register_module()
class KeptMaps(torch.utils.data.Dataset):
    metainfo = {"classes": ("a", "b", "c")}

    def __init__(self, folder):
        self.maps = Maps(Path(folder))

    def __getitem__(self, index):
        inputs, labels = self.maps.batch([index])
        return {"maps": [x[0] for x in inputs], "labels": labels[0]}

    def __len__(self):
        return len(self.maps)


@MODELS.register_module()
class OrdinaryHead(BaseModel):
    """BatchNorm and a linear layer on some maps, enlarged to the finest, as anyone would write it."""

    def __init__(self, selection, weights):
        super().__init__()
        self.selection = selection
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS[k]) for k in selection)
        self.lines = nn.ModuleList(nn.Conv2d(CHANNELS[k], CLASSES, 1, bias=k == selection[0]) for k in selection)
        for line, weight in zip(self.lines, weights, strict=True):
            line.weight.data.copy_(weight[..., None, None])
        nn.init.zeros_(self.lines[0].bias)

    def forward(self, maps, labels, mode="loss"):
        size = maps[0].shape[-2:]
        parts = zip(self.norms, self.lines, self.selection, strict=True)
        answers = [line(norm(maps[k])) for norm, line, k in parts]
        logits = sum(F.interpolate(x, size, mode="bilinear", align_corners=False) for x in answers)
        return {"loss": F.cross_entropy(logits, labels, ignore_index=255)} if mode == "loss" else logits


def ordinary(folder, work, selection, weights, rate, seed):
    cfg = Config(
        dict(
            model=dict(type="mixtransfer.OrdinaryHead", selection=selection, weights=weights),
            work_dir=str(work),
            train_dataloader=dict(
                batch_size=RECIPE.batch,
                num_workers=0,
                drop_last=True,
                dataset=dict(type="mixtransfer.KeptMaps", folder=str(folder)),
                sampler=dict(type="DefaultSampler", shuffle=True),
                collate_fn=dict(type="default_collate"),
            ),
            train_cfg=dict(by_epoch=False, max_iters=RECIPE.iterations),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=rate, weight_decay=RECIPE.decay)),
            # mmengine counts the steps between values, so the rate is 0 after the last step and not at it.
            param_scheduler=[
                dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=RECIPE.iterations + 1)
            ],
            default_hooks=dict(checkpoint=dict(type="mixtransfer.CheckpointHook", interval=100, by_epoch=False)),
            randomness=dict(seed=seed),
        )
    )
    cfg.experiment_name = f"probe_{rate}_{seed}_{len(selection)}_{selection[0]}"
    return TransferRunner.from_cfg(cfg).train()


def test_every_head_is_the_one_that_the_ordinary_runner_trains(tmp_path):
    maps = write_maps(tmp_path / "maps")
    heads = Heads(CHANNELS, CLASSES, RECIPE)
    first = {name: value.clone() for name, value in heads.state_dict().items()}
    losses = train_heads(heads, maps, range(IMAGES))
    assert losses[-1] < losses[0]
    heads.eval()
    inputs, labels = maps.batch(range(IMAGES))
    for r, s in ((0, 0), (1, 1)):
        answers = list(heads(inputs, s))
        for number, selection in enumerate(heads.selections):
            start = [first[f"groups.{r}.{number}_{k}_weight"][s] for k in selection]
            work = tmp_path / f"work_{r}_{s}_{number}"
            model = ordinary(tmp_path / "maps", work, selection, start, RECIPE.rates[r], RECIPE.seeds[s])
            with torch.no_grad():
                expected = model.eval()(inputs, labels, mode="tensor")
            answer = F.interpolate(answers[number][:, r], (8, 6), mode="bilinear", align_corners=False)
            assert (answer - expected).abs().max() < 1e-4 * expected.abs().max()


def test_pixels_are_counted_at_the_resolution_of_the_labels(tmp_path):
    maps = write_maps(tmp_path / "maps")
    heads = Heads(CHANNELS, CLASSES, RECIPE).eval()
    found = count(heads, maps, range(3), kept=1)
    expected = np.zeros((CLASSES, 3), np.int64)
    for place in range(3):
        inputs, _ = maps.batch([place])
        with torch.no_grad():
            logits = list(heads(inputs, 0))[-1][0, 1]
        answer = F.interpolate(logits[None], (16, 12), mode="bilinear", align_corners=False)[0].argmax(0).numpy()
        labels = maps.labels(place)
        for k in range(CLASSES):
            real, seen = labels == k, (answer == k) & (labels != 255)
            expected[k] += [(real & seen).sum(), seen.sum(), real.sum()]
    assert np.array_equal(found.total[-1, 1, 0], expected)
    assert np.array_equal(np.sum(found.images, 0), expected)
    assert chosen_rates(found).shape == (3, 2)


@pytest.mark.parametrize("sizes", [((3, 5), (24, 9)), ((4, 4), (4, 11)), ((7, 6), (5, 3))])
def test_maps_are_enlarged_as_by_interpolation(sizes):
    x = torch.randn(2, 3, *sizes[0], dtype=torch.float64, requires_grad=True)
    same = F.interpolate(x, sizes[1], mode="bilinear", align_corners=False)
    pull = torch.randn_like(same)
    ours = enlarged(x, sizes[1])
    assert (ours - same).abs().max() < 1e-6
    assert (torch.autograd.grad(ours, x, pull)[0] - torch.autograd.grad(same, x, pull)[0]).abs().max() < 1e-5


def test_the_best_class_is_the_first_of_the_highest():
    logits = torch.randint(0, 3, (9, 40, 30)).float()
    assert np.array_equal(best_class(logits).numpy(), logits.numpy().argmax(0))


def test_images_of_different_sizes_are_not_one_batch(tmp_path):
    maps = write_maps(tmp_path / "maps")
    maps.index["shapes"][0][1] = [6, 8]
    with pytest.raises(UserError, match="--batch 2: images have maps of different sizes"):
        maps.batch([0, 1])


def test_the_command_keeps_maps_and_writes_a_record(tmp_path):
    scenes, config = small_scenes(tmp_path), tiny_config("seg", tmp_path)
    command = ["probe", str(config), "random", "--data", str(scenes), "--work-dir", str(tmp_path / "work")]
    options = ["--iterations", "3", "--batch", "4"]
    assert run_command(command[0], [*command[1:], *options]) == 0
    record = json.loads((tmp_path / "work/random.json").read_text())
    assert record["schema"] == 1 and len(record["heads"]) == 9 * 3
    assert {row["maps"] for row in record["heads"]} == {"map 0", "map 1", "all"}
    images = json.loads((tmp_path / "work/random.images.json").read_text())
    total = np.zeros((12, 3), np.int64)
    for image in images:
        for k, row in image["pixels"].items():
            total[int(k)] += row
    assert percentages(total)["mIoU"] == pytest.approx(record["metrics"]["mIoU"])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work/maps").glob("*/map0.f16")}
    assert len(kept) == 2
    before = (tmp_path / "work/random.json").read_bytes()
    assert run_command(command[0], [*command[1:], *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work/maps").glob("*/map0.f16")} == kept
    assert (tmp_path / "work/random.json").read_bytes() == before


def test_what_cannot_be_probed_is_said_in_one_line(tmp_path, capsys):
    config = tiny_config("seg", tmp_path)
    for more, words in (
        (["none.pth"], "none.pth: no such checkpoint file; 'random' stands for random weights"),
        (["random", str(config), "--out", "a.json"], "--out: names one file"),
        (["random", "--seeds", "1", "1"], "--seeds 1 1: one stands twice"),
    ):
        assert run_command("probe", [str(config), *more]) == 2
        assert words in capsys.readouterr().err
