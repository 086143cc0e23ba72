"""Views, windows and files for a server: each equals what is computed without the code under test."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from random_models import DET, SEG, made, mean_iou, normalized
from small_sets import NAMES, H, W, coco, masks

from mixtransfer.cli import run_command
from mixtransfer.errors import UserError
from mixtransfer.evaluation.augmented import DetTTAModel, SegTTAModel
from mixtransfer.evaluation.protocols import use_views, use_windows
from mixtransfer.registry import import_quietly

RATIOS = (0.75, 1.0, 1.5)


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentor")
    return made("seg", masks(folder / "data"), folder, SEG)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    return made("det", coco(folder / "data"), folder, DET)


def views_of(found, ratios=RATIOS):
    """Return the batch of views that a config's test pipeline makes of the first validation image."""
    cfg = Config(found.cfg.to_dict())
    import_quietly(f"{cfg.default_scope}.datasets")
    init_default_scope(cfg.default_scope)
    use_views(cfg, ratios)
    folder = "val2017" if cfg.default_scope == "mmdet" else "images/validation"
    steps = [step for step in cfg.test_dataloader.dataset.pipeline if "CheckImage" not in step.type]
    steps[-1].transforms = [group for group in steps[-1].transforms if "Load" not in str(group[0].type)]
    with torch.no_grad():
        return pseudo_collate([Compose(steps)(dict(img_path=str(found.data / folder / "0.png"), img_id=1))])


def averaged_by_hand(found, image):
    """The mean over sizes and flips of the softmax of logits, resized to the picture."""
    total = 0
    for ratio in RATIOS:
        size = round(72 * ratio), round(96 * ratio)
        for flip in (False, True):
            x = normalized(found, image[:, ::-1] if flip else image, size)
            logits = found.model.decode_head(found.model.backbone(x))
            logits = F.interpolate(logits, size, mode="bilinear")
            logits = logits.flip(-1) if flip else logits
            total = total + F.interpolate(logits, (H, W), mode="bilinear").softmax(1)
    return total[0] / 6


@torch.no_grad()
def test_the_answer_to_views_is_the_mean_of_their_probabilities(segmentor):
    image = cv2.imread(str(segmentor.data / "images/validation/0.png"))
    expected = averaged_by_hand(segmentor, image)
    (found,) = SegTTAModel(module=segmentor.model).test_step(views_of(segmentor))
    torch.testing.assert_close(found.seg_logits.data, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.pred_sem_seg.data[0], expected.argmax(0))
    # The views do change what is found.
    one = segmentor.model.test_step({key: value[2] for key, value in views_of(segmentor).items()})[0]
    assert not torch.equal(found.pred_sem_seg.data, one.pred_sem_seg.data)


def test_one_class_keeps_its_probability():
    """mmseg's test takes the sigmoid; taking it again would put every probability above a half."""
    logits = [torch.tensor([[[-3.0, 2.0]]]), torch.tensor([[[-1.0, -4.0]]])]

    class Segmentor(torch.nn.Module):
        decode_head = SimpleNamespace(threshold=0.3)

        def test_step(self, data):
            sample = SegDataSample()
            sample.set_data({"seg_logits": PixelData(data=data["inputs"][0].sigmoid())})
            return [sample]

    views = {"inputs": [[value] for value in logits], "data_samples": [[None], [None]]}
    (found,) = SegTTAModel(module=Segmentor()).test_step(views)
    expected = (logits[0].sigmoid() + logits[1].sigmoid()) / 2
    torch.testing.assert_close(found.seg_logits.data, expected)
    assert torch.equal(found.pred_sem_seg.data, (expected > 0.3).float())


@torch.no_grad()
def windows_by_hand(model, x, crop, stride):
    """The mean of the logits of all windows that hold a pixel; the last ones end at the border."""
    total, count = torch.zeros(1, len(NAMES), *x.shape[2:]), torch.zeros(x.shape[2:])
    starts = [sorted({min(a, max(n - crop, 0)) for a in range(0, n - crop + stride, stride)}) for n in x.shape[2:]]
    for top in starts[0]:
        for left in starts[1]:
            window = x[:, :, top : top + crop, left : left + crop]
            logits = F.interpolate(model.decode_head(model.backbone(window)), window.shape[2:], mode="bilinear")
            total[:, :, top : top + crop, left : left + crop] += logits
            count[top : top + crop, left : left + crop] += 1
    assert count.min() > 0
    return F.interpolate(total / count, (H, W), mode="bilinear")[0]


def test_the_command_measures_windows_and_views_as_computed_by_hand(segmentor, tmp_path, capsys):
    files = sorted((segmentor.data / "images/validation").iterdir())
    truths = [cv2.imread(str(segmentor.data / "annotations/validation" / f.name), -1).astype(int) - 1 for f in files]
    images = [cv2.imread(str(file)) for file in files]
    found = {}
    for name, options in {
        "plain": (),
        "tta": ("--tta", "--tta-scales", *map(str, RATIOS)),
        "slide": ("--slide", "64", "40"),
    }.items():
        out = tmp_path / f"{name}.json"
        arguments = [segmentor.path, segmentor.checkpoint, "--data", segmentor.data, "--work-dir", tmp_path / name]
        assert run_command("test", [*map(str, arguments), "--out", str(out), *options]) == 0
        found[name] = json.loads(out.read_text())["metrics"]["mIoU"]
    by_windows = [windows_by_hand(segmentor.model, normalized(segmentor, image, (72, 96)), 64, 40) for image in images]
    with torch.no_grad():
        by_views = [averaged_by_hand(segmentor, image) for image in images]
    expected = {
        name: mean_iou([answer.argmax(0).numpy() for answer in answers], truths)
        for name, answers in {"tta": by_views, "slide": by_windows}.items()
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0.05)
    assert len(set(found.values())) == 3


def instances(sample):
    found = sample.pred_instances
    return {key: found[key] for key in found.keys()}


@torch.no_grad()
def test_boxes_of_views_are_merged_as_mmdet_merges_them(detector):
    """mmdet's own takes no masks, so the detector is run without."""
    theirs = import_quietly("mmdet.models.test_time_augs").DetTTAModel
    views = views_of(detector)
    settings = dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=12)
    found = DetTTAModel(module=detector.model, **settings).test_step(views)[0]
    detector.model.roi_head.mask_head, kept = None, detector.model.roi_head.mask_head
    try:
        theirs = theirs(module=detector.model, tta_cfg=Config(settings)).test_step(views_of(detector))[0]
    finally:
        detector.model.roi_head.mask_head = kept
    assert len(found.pred_instances) == 12
    for key, value in instances(theirs).items():
        torch.testing.assert_close(found.pred_instances[key], value)


@torch.no_grad()
def test_masks_of_views_are_averaged_in_their_boxes(detector):
    """One view alone is what the detector itself finds; the mean is that of the mask head's answers, turned back."""
    settings = dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=12)
    model = detector.model
    one = {key: [value[2]] for key, value in views_of(detector).items()}
    found = DetTTAModel(module=model, **settings).test_step(one)[0].pred_instances
    single = model.test_step({key: value[2] for key, value in views_of(detector).items()})[0].pred_instances
    torch.testing.assert_close(found.bboxes, single.bboxes, rtol=1e-4, atol=1e-3)
    assert (found.masks == single.masks).float().mean() > 0.999

    views = views_of(detector)
    found = DetTTAModel(module=model, **settings).test_step(views_of(detector))[0].pred_instances
    total = 0
    for number in range(len(views["inputs"])):
        batch = model.data_preprocessor({key: value[number] for key, value in views.items()}, False)
        meta = batch["data_samples"][0].metainfo
        boxes = found.bboxes * torch.tensor(meta["scale_factor"]).repeat(2)
        if meta["flip"]:
            width = meta["img_shape"][1]
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        logits = model.roi_head._mask_forward(model.extract_feat(batch["inputs"]), bbox2roi([boxes]))["mask_preds"]
        share = logits.sigmoid()[range(len(boxes)), found.labels]
        total = total + (share.flip(-1) if meta["flip"] else share)
    share = total / len(views["inputs"])
    # Where a pixel's center lies in its box's grid of answers.
    for box, mean, mask in zip(found.bboxes, share, found.masks, strict=True):
        x = (torch.arange(W) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(H) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
        expected = F.grid_sample(mean[None, None], grid, align_corners=False)[0, 0] >= 0.5
        assert (expected == mask).float().mean() > 0.999


def test_masks_without_regions_stay_those_of_their_view():
    """A one-stage detector's mask cannot be predicted again for another view's box; a mirrored one is turned."""
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[0, 1, 0], mask[1, 2, 1] = True, True

    def sample(boxes, scores, flip):
        made = DetDataSample(metainfo=dict(ori_shape=(4, 6), flip=flip, flip_direction="horizontal" if flip else None))
        made.pred_instances = InstanceData(
            bboxes=torch.tensor(boxes),
            scores=torch.tensor(scores),
            labels=torch.zeros(2, dtype=torch.int64),
            masks=mask,
        )
        return made

    plain = sample([[0.0, 0.0, 2.0, 2.0], [3.0, 1.0, 5.0, 3.0]], [0.5, 0.9], False)
    # The mirror image of the first box, seen better.
    mirrored = sample([[4.0, 0.0, 6.0, 2.0], [0.0, 3.0, 1.0, 4.0]], [0.8, 0.3], True)
    module = torch.nn.Module()
    module.test_step = None
    model = DetTTAModel(nms=dict(type="nms", iou_threshold=0.5), max_per_img=3, module=module)
    found = model.merge_preds([(plain, mirrored)])[0].pred_instances
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.3])
    assert found.bboxes.tolist() == [[3, 1, 5, 3], [0, 0, 2, 2], [5, 3, 6, 4]]
    assert torch.equal(found.masks, torch.stack([mask[1], mask[0].flip(-1), mask[1].flip(-1)]))


def test_files_for_the_server_have_the_numbers_of_the_annotation_file(detector, tmp_path, capsys):
    """A test set's file has no annotations; images and categories have any numbers."""
    data = coco(tmp_path / "data")
    file = data / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    images = {f"{number}.png": 900 - 7 * number for number in range(3)}
    numbers = dict(zip(NAMES, (44, 3, 90), strict=True))
    content["images"] = [{**image, "id": images[image["file_name"]]} for image in content["images"]]
    content["categories"] = [dict(id=number, name=name) for name, number in numbers.items()]
    del content["annotations"]
    (data / "annotations/image_info_test-dev2017.json").write_text(json.dumps(content))
    tested = {
        "data_root": f"'{data}/'",
        "ann_file": "'annotations/image_info_test-dev2017.json'",
        "data_prefix.img": "'val2017/'",
        "metainfo": f"dict(classes={NAMES})",
    }
    options = [f"test_dataloader.dataset.{key}={value}" for key, value in tested.items()]
    options += [f"model.roi_head.{head}.num_classes=3" for head in ("bbox_head", "mask_head")]
    command = [str(detector.path), str(detector.checkpoint), "--work-dir", str(tmp_path / "run")]
    command += ["--format-only", str(tmp_path / "answers"), "--cfg-options", *options]
    assert run_command("test", command) == 0
    assert not (tmp_path / "run/metrics.json").exists() and "mAP" not in capsys.readouterr().out
    single = {}
    init_default_scope("mmdet")
    for name, number in images.items():
        steps = [
            step
            for step in detector.cfg.test_dataloader.dataset.pipeline
            if "Load" not in step.type or "Image" in step.type
        ]
        sample = Compose(steps)(dict(img_path=str(data / "val2017" / name), img_id=number))
        with torch.no_grad():
            single[number] = detector.model.test_step(pseudo_collate([sample]))[0].pred_instances
    for kind in ("bbox", "segm"):
        answers = json.loads((tmp_path / f"answers/results.{kind}.json").read_text())
        assert {answer["image_id"] for answer in answers} == set(single)
        for number, found in single.items():
            rows = [answer for answer in answers if answer["image_id"] == number]
            assert [row["category_id"] for row in rows] == [numbers[NAMES[k]] for k in found.labels]
            assert [row["score"] for row in rows] == pytest.approx(found.scores.tolist(), abs=1e-5)
            assert all(("segmentation" in row) == (kind == "segm") for row in rows)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("seg", ["--slide", "64", "65"], "--slide 64 65: windows of 64 pixels leave some out; give a stride up to 64"),
        ("det", ["--slide", "64", "32"], "--slide: windows are for segmentors"),
        ("seg", ["--format-only", "answers"], "--format-only: writes COCO's files"),
        ("seg", ["--tta-scales", "0.5"], "--tta-scales: gives the sizes of --tta; add --tta"),
        (
            "seg",
            ["--tta", "--cfg-options", "test_dataloader.dataset.pipeline.1=dict(type='RandomFlip', prob=0.0)"],
            "has no Resize with a scale to multiply",
        ),
    ],
)
def test_mistakes_are_one_line(task, options, message, request, tmp_path, monkeypatch, capsys):
    made = request.getfixturevalue({"seg": "segmentor", "det": "detector"}[task])
    monkeypatch.chdir(tmp_path)
    command = [str(made.path), str(made.checkpoint), "--data", str(made.data), "--work-dir", str(tmp_path / "run")]
    assert run_command("test", [*command, *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


def test_classifiers_have_one_view():
    with pytest.raises(UserError, match="--tta: classifiers are tested on one view"):
        use_views(Config(dict(default_scope="mmpretrain")))


def test_scales_are_those_of_the_papers():
    """mmseg 0.x multiplies (2048, 512), as Swin's --aug-test does; mmdet's RetinaNet has 666 × 400 to 2000 × 1200."""
    scales = {}
    for scope, scale in {"mmseg": (2048, 512), "mmdet": (1333, 800)}.items():
        steps = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=scale, keep_ratio=True), dict(type="Pack")]
        test_cfg = dict(nms=dict(type="nms"), max_per_img=100)
        cfg = Config(dict(default_scope=scope, model=dict(test_cfg=test_cfg)))
        cfg.test_dataloader = dict(dataset=dict(pipeline=steps))
        use_views(cfg)
        choices = cfg.test_dataloader.dataset.pipeline[-1].transforms
        scales[scope] = [step.scale for step in choices[0]]
        assert [step.prob for step in choices[1]] == [0, 1]
    assert scales["mmseg"] == [(1024, 256), (1536, 384), (2048, 512), (2560, 640), (3072, 768), (3584, 896)]
    assert scales["mmdet"] == [(666, 400), (1333, 800), (2000, 1200)]


def test_windows_replace_the_way_of_testing():
    cfg = Config(dict(default_scope="mmseg", model=dict(test_cfg=dict(mode="whole"))))
    use_windows(cfg, 512, 341)
    assert cfg.model.test_cfg == dict(mode="slide", crop_size=(512, 512), stride=(341, 341))
