"""What cannot be learned is refused before training, and what a config knows of its classes stays."""

import json

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from small_sets import class_folders, coco, masks
from torch.utils.data import DataLoader

import mixtransfer.registry  # noqa: F401  makes mmcv.ops importable
from mixtransfer.datasets import stored
from mixtransfer.datasets.before import prepare_data
from mixtransfer.datasets.check import check_folder
from mixtransfer.datasets.classes import in_order, match_classes, trained_classes
from mixtransfer.datasets.configure import apply_dataset
from mixtransfer.datasets.folders import open_dataset
from mixtransfer.datasets.learnable import FIRST_STEPS, ZeroLosses, build_dataset, require_learnable, require_steps
from mixtransfer.errors import UserError

ENTROPY = dict(type="CrossEntropyLoss")


def segmentor(root, written_for=None, **head):
    """A config on the data, as read before ``prepare``."""
    head = dict(num_classes=150, loss_decode=ENTROPY) | head
    dataset = dict(type="BaseSegDataset", pipeline=[]) | (dict(metainfo=written_for) if written_for else {})
    loader = dict(dataset=dataset)
    cfg = Config(
        dict(model=dict(decode_head=head), train_dataloader=loader, val_dataloader=loader, default_scope="mmseg")
    )
    apply_dataset(cfg, open_dataset(root, "seg"))
    return cfg


ONE_CLASS = {
    "0 and 1": dict(names=["object"], background=0, labels=lambda k: 1),
    "0 and 1 for two names": dict(names=["ground", "object"], background=0, labels=lambda k: 1),
    "0 and 255": dict(names=["object"], background=0, labels=lambda k: 255),
    "0 and 255 for two names": dict(names=["ground", "object"], background=0, labels=lambda k: 255),
    "one bit": dict(
        names=["ground", "object"],
        background=0,
        save=lambda mask, path: Image.fromarray(mask > 0).save(path),
    ),
    "1 only": dict(names=["ground", "object"], background=1, labels=lambda k: 1),
}


@pytest.mark.parametrize("kind", ONE_CLASS)
def test_masks_of_one_class_are_refused_by_check_and_training(tmp_path, kind):
    root = masks(tmp_path, **ONE_CLASS[kind])
    (report,) = check_folder(root)
    assert {stored.ALONE, stored.EMPTY} & set(report.problems)
    with pytest.raises(UserError, match=r"nothing to tell apart|every mask is void"):
        require_learnable(segmentor(root))


@pytest.mark.parametrize("kind", ["0 and 1", "one bit"])
def test_without_names_0_and_1_are_two_classes_for_check_and_training(tmp_path, kind):
    root = masks(tmp_path, **ONE_CLASS[kind] | dict(names=None))
    cfg = segmentor(root)
    require_learnable(cfg)
    assert cfg.model.decode_head.num_classes == 2
    (report,) = check_folder(root)
    assert not report.problems and [row[0] for row in report.classes[1:]] == ["0 class_0", "1 class_1"]
    assert {row[-1] for row in report.splits[1:]} == {"0.00%"}
    (void,) = check_folder(root, zero_is_class=False)
    assert stored.ALONE in void.problems


def test_one_class_that_counts_void_first_is_told_how_to_label(tmp_path):
    root = masks(tmp_path, names=["ground", "object"], background=0, labels=lambda k: 1)
    with pytest.raises(UserError) as error:
        require_learnable(segmentor(root))
    for part in (str(root / "annotations/training"), "only label 1 (ground) occurs", "% of pixels, is void"):
        assert part in str(error.value)


def test_labels_from_0_are_refused_by_check_and_training(tmp_path):
    root = masks(tmp_path, background=0, labels=lambda k: k)
    share = np.mean([np.asarray(Image.open(path)) == 0 for path in root.rglob("annotations/*/*.png")])
    problem = check_folder(root)[0].problems[stored.SHIFTED]
    assert problem[0].startswith(
        f"annotations: label 3 (cat) never occurs and 0, {100 * share:.1f}% of pixels, is void"
    )
    with pytest.raises(UserError, match=r"count classes from 0: label 3 \(cat\) never occurs and 0,.* --zero-is-class"):
        require_learnable(segmentor(root))


def test_a_last_class_that_is_one_of_several_without_a_pixel_is_said(tmp_path, capsys):
    # Some rare classes of many are missing from a part of a dataset.
    root = masks(tmp_path, names=["ant", "bee", "cat", "dog"], background=0, labels=lambda k: k)
    assert stored.LAST_UNUSED in check_folder(root)[0].problems
    require_learnable(segmentor(root))
    assert "the last class never occurs: label 4 (dog) never occurs and 0," in capsys.readouterr().err


def test_sound_labels_are_no_problem(tmp_path, capsys):
    root = masks(tmp_path)
    assert check_folder(root)[0].count == 0
    require_learnable(segmentor(root))
    # A last class in validation only shows that nothing is shifted.
    for path in (root / "annotations/training").iterdir():
        mask = np.array(Image.open(path))
        mask[mask == 3], mask[:5] = 2, 0
        Image.fromarray(mask).save(path)
    assert check_folder(root)[0].count == 0
    require_learnable(segmentor(root))
    assert capsys.readouterr().err == ""


def test_a_bad_mask_is_named_before_the_first_step(tmp_path):
    root = masks(tmp_path)
    (root / "annotations/training/2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"training/2\.png: unreadable mask"):
        require_learnable(segmentor(root))


HEADS = {
    "channel for three classes": (dict(out_channels=1, loss_decode={**ENTROPY, "use_sigmoid": True}), "the data has 3"),
    "other channels": (dict(out_channels=7), "out_channels=7: the data has 3 classes"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_channels_that_do_not_fit_the_classes(tmp_path, kind):
    head, words = HEADS[kind]
    with pytest.raises(UserError, match=words):
        require_learnable(segmentor(masks(tmp_path), **head))


def test_one_channel_tells_two_classes_apart_with_a_sigmoid_only(tmp_path):
    root = masks(tmp_path, names=["ground", "object"], labels=lambda k: 2)
    require_learnable(segmentor(root, out_channels=1, loss_decode=[{**ENTROPY, "use_sigmoid": True}]))
    with pytest.raises(UserError, match="a softmax over one channel has a loss of 0"):
        require_learnable(segmentor(root, out_channels=1))


def test_repeated_numbers_of_channels_follow(tmp_path):
    cfg = segmentor(masks(tmp_path), out_channels=150)
    assert cfg.model.decode_head.out_channels == cfg.model.decode_head.num_classes == 3
    require_learnable(cfg)


def test_a_classifier_needs_two_classes(tmp_path):
    root = class_folders(tmp_path, ["ant"])
    assert "one class only, there is nothing to tell apart" in check_folder(root)[0].problems
    for model in (dict(num_classes=1000), dict(head=dict(num_classes=1000))):
        loader = dict(dataset=dict(type="ImageNet", pipeline=[]))
        cfg = Config(dict(model=model, train_dataloader=loader, default_scope="mmpretrain"))
        apply_dataset(cfg, open_dataset(root, "cls"))
        with pytest.raises(UserError, match="the data has one class"):
            prepare_data(cfg, "train")


def test_a_class_folder_without_images_is_not_trained(tmp_path):
    root = class_folders(tmp_path)
    for path in (root / "train/bee").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"train/bee holds no images of its class"):
        open_dataset(root, "cls")


@pytest.mark.parametrize("wrapper", [dict, lambda **d: dict(type="RepeatDataset", times=2, dataset=d)])
def test_a_dataset_that_filtering_empties_is_refused(tmp_path, wrapper):
    root = masks(tmp_path)
    cfg = segmentor(root)
    assert len(build_dataset(wrapper(**cfg.train_dataloader.dataset))) in (4, 8)
    with pytest.raises(UserError, match=f"{root}: no image is left after filtering; change its indices"):
        build_dataset(wrapper(**cfg.train_dataloader.dataset, indices=0))


class Batches(list):
    """A sampler with epochs, as mmengine's DefaultSampler."""

    epoch = 0


def test_an_epoch_needs_a_step():
    def loader(size, drop):
        return DataLoader(range(5), size, sampler=Batches(range(5)), drop_last=drop)

    require_steps(loader(5, True))
    require_steps(loader(16, False))
    with pytest.raises(UserError, match="5 images do not fill a batch"):
        require_steps(loader(16, True))
    # An endless sampler fills every batch.
    require_steps(DataLoader(range(5), 16, sampler=list(range(5)), drop_last=True))


def test_a_loss_of_0_is_refused_and_a_term_of_0_said(capsys):
    watch = ZeroLosses()
    for _ in range(FIRST_STEPS - 1):
        watch.look({"loss": 0.0, "loss_ce": 0.0})
    with pytest.raises(UserError, match=f"the loss is exactly 0 in the first {FIRST_STEPS} steps"):
        watch.look({"loss": 0.0, "loss_ce": 0.0})
    watch = ZeroLosses()
    for step in range(2 * FIRST_STEPS):
        watch.look({"loss": 1.0, "loss_bbox": 0.0, "loss_cls": 0.0 if step else 1.0})
    assert (
        capsys.readouterr().err
        == f"note: loss_bbox: exactly 0 in the first {FIRST_STEPS} steps, so it trains nothing\n"
    )


# --- class weights -------------------------------------------------------------------------------------------------

WEIGHTS = [1.0, 2.0, 3.0]
ORDERS = {
    "no names": (None, [1.0, 2.0, 3.0], False),
    "the same names": (["ant", "bee", "cat"], [1.0, 2.0, 3.0], False),
    "another order": (["cat", "ant", "bee"], [2.0, 3.0, 1.0], False),
    "other names": (["dog", "ant", "bee"], [1.0, 1.0, 1.0], True),
    "more names than weights": (["dog", "ant", "bee", "cat"], [1.0, 2.0, 3.0], False),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_class_weights_stay_where_they_are_of_these_classes(tmp_path, kind, capsys):
    names, expected, said = ORDERS[kind]
    loss = dict(ENTROPY, class_weight=WEIGHTS)
    cfg = segmentor(masks(tmp_path), names and dict(classes=names), num_classes=3, loss_decode=loss)
    assert cfg.model.decode_head.loss_decode.class_weight == expected
    assert (
        "class_weight is of the config's 3 classes, the data has 3 (ant, bee, cat)" in capsys.readouterr().err
    ) == said


def test_class_weights_of_another_number_go_and_what_is_behind_them_stays(tmp_path, capsys):
    loss = dict(ENTROPY, class_weight=[5.0] * 7 + [0.1])
    cfg = segmentor(masks(tmp_path), num_classes=7, loss_decode=[loss, loss])
    assert [dict(part)["class_weight"] for part in cfg.model.decode_head.loss_decode] == [[1.0, 1.0, 1.0, 0.1]] * 2
    assert capsys.readouterr().err.count("class_weight is of 7 classes") == 1
    segmentor(masks(tmp_path / "b"), num_classes=7, loss_decode=dict(ENTROPY, class_weight=[1.0] * 7 + [0.1]))
    assert capsys.readouterr().err == ""


# --- classes by name -----------------------------------------------------------------------------------------------


def test_classes_that_a_checkpoint_names():
    assert trained_classes({"meta": {"dataset_meta": {"classes": ["a", "b"]}}}) == ("a", "b")
    assert trained_classes({"meta": {"CLASSES": ("a", "b")}}) == ("a", "b")
    for content in ({}, {"meta": 5}, {"meta": {}}, {"meta": {"dataset_meta": {"classes": [1, 2]}}}):
        assert trained_classes(content) is None


def test_other_classes_are_refused_with_both_lists():
    with pytest.raises(UserError) as error:
        in_order(("ant", "bee"), ("bee", "cow"), "a.pth")
    assert "a.pth was trained on 2 classes (bee, cow), the data has 2 (ant, bee)" in str(error.value)
    assert in_order(("ant", "bee"), None, "a.pth") == ("ant", "bee")
    assert in_order(("ant", "bee"), ("bee", "ant"), "a.pth") == ("bee", "ant")
    assert in_order(("n01440764", "n01443537"), ("tench", "goldfish"), "a.pth") == ("n01440764", "n01443537")


def built(cfg, split="val"):
    from mmengine.registry import DATASETS

    return DATASETS.build(cfg[f"{split}_dataloader"].dataset)


def test_a_segmentors_data_takes_the_checkpoints_order(tmp_path):
    root = masks(tmp_path)
    cfg = segmentor(root)
    palette = dict(zip(("ant", "bee", "cat"), cfg.val_dataloader.dataset.metainfo.palette, strict=True))
    match_classes(cfg, ("cat", "ant", "bee"), "a.pth")
    dataset = built(cfg)
    assert dataset.metainfo["classes"] == ("cat", "ant", "bee")
    assert [tuple(color) for color in dataset.metainfo["palette"]] == [palette[k] for k in ("cat", "ant", "bee")]
    info = dataset.get_data_info(1)
    from mixtransfer.datasets.label_maps import LoadLabels

    found = LoadLabels(num_classes=3).transform({**info, "ori_shape": (48, 64)})["gt_seg_map"]
    labels = np.asarray(Image.open(root / "annotations/validation/1.png"))
    assert np.array_equal(found, np.array([255, 1, 2, 0])[labels])


def test_a_classifiers_data_takes_the_checkpoints_order(tmp_path):
    root = class_folders(tmp_path)
    # As Jupyter and macOS leave them.
    for place in ("val/.ipynb_checkpoints/a.png", "val/ant/.ipynb_checkpoints/a.png", "val/ant/._0.png"):
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_bytes((root / "val/ant/0.png").read_bytes())
    loader = dict(dataset=dict(type="ImageNet", pipeline=[]))
    cfg = Config(dict(model=dict(num_classes=9), val_dataloader=loader, default_scope="mmpretrain"))
    apply_dataset(cfg, open_dataset(root, "cls"))
    match_classes(cfg, ("cat", "ant", "bee"), "a.pth")
    dataset = built(cfg)
    found = [(dataset.get_data_info(i)["img_path"], dataset.get_data_info(i)["gt_label"]) for i in range(len(dataset))]
    expected = [(f"val/{name}/{i}.png", k) for name, k in (("ant", 1), ("bee", 2), ("cat", 0)) for i in (0, 1)]
    assert [(str(root / path), k) for path, k in expected] == found


def test_a_detectors_data_takes_the_checkpoints_order(tmp_path):
    root = coco(tmp_path / "data")
    loader = dict(dataset=dict(type="CocoDataset", pipeline=[]))
    model = dict(bbox_head=dict(num_classes=80))
    cfg = Config(dict(model=model, test_dataloader=loader, work_dir=str(tmp_path / "work"), default_scope="mmdet"))
    apply_dataset(cfg, open_dataset(root, "det"))
    match_classes(cfg, ("cat", "ant", "bee"), "a.pth")
    prepare_data(cfg, "test")
    content = json.loads(open(cfg.test_dataloader.dataset.ann_file).read())
    assert [category["name"] for category in content["categories"]] == ["cat", "ant", "bee"]
    assert [a["category_id"] for a in content["annotations"][:3]] == [1, 2, 3]
    assert content["annotations"][0]["bbox"] == [8, 26, 30, 18]


def test_hidden_files_of_a_segmentation_are_left_out(tmp_path):
    root = masks(tmp_path, below="left")
    for kind in ("images", "annotations"):
        source = root / kind / "training/left/0.png"
        for place in (".ipynb_checkpoints/0.png", "._0.png"):
            target = source.parent / place
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(source.read_bytes())
    dataset = built(segmentor(root), "train")
    assert len(dataset) == 4 == open_dataset(root, "seg").train.count
    assert dataset.get_data_info(0)["seg_map_path"] == str(root / "annotations/training/left/0.png")
    assert check_folder(root)[0].splits[1][1] == "4"
