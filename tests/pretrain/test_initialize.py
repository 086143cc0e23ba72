"""Classifiers that start from a classifier's file, head included: the same answers, or some of its classes."""

import pytest
import torch
from mmengine.config import Config
from recipes import CONFIGS

from mixtransfer import build_classifier
from mixtransfer.engine.config import load_config
from mixtransfer.errors import UserError


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return a classifier of 6 classes, with rates of its head that tell them apart, and its file."""
    net = build_classifier("swin_micro", 6).eval()
    net.head.weight.data.normal_()
    file = tmp_path_factory.mktemp("published") / "published.pth"
    names = {key.removeprefix("backbone."): value for key, value in net.state_dict().items()}
    torch.save({"model": names}, file)
    return net, str(file)


def started(classes, **options):
    net = build_classifier("swin_micro", classes, init_cfg=dict(type="mixtransfer.PretrainedClassifier", **options))
    net.init_weights()
    return net.eval()


def test_the_head_comes_along_and_takes_the_rows_that_are_listed(published, tmp_path):
    net, file = published
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = net(images, mode="tensor")
        torch.testing.assert_close(started(6, checkpoint=file)(images, mode="tensor"), logits, rtol=0, atol=0)
        (tmp_path / "rows.txt").write_text("4\n0\n2\n")
        chosen = started(3, checkpoint=file, rows=str(tmp_path / "rows.txt"))(images, mode="tensor")
    torch.testing.assert_close(chosen, logits[:, [4, 0, 2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4\n0\n", "give 3 numbers from 0, one a line for each class; it has 2"),
        ("4\n0\nx\n", "give 3 numbers from 0, one a line for each class; it has 3"),
        ("4\n0\n6\n", "row 6, but head.weight of .* has 6 rows"),
        (None, "cannot be read"),
    ],
)
def test_rows_that_are_none_are_refused(published, tmp_path, text, message):
    rows = tmp_path / "rows.txt"
    if text is not None:
        rows.write_text(text)
    with pytest.raises(UserError, match=message):
        started(3, checkpoint=published[1], rows=str(rows))


def test_other_classes_without_rows_are_misshapen(published):
    with pytest.raises(UserError, match=r"head.weight \(6, 256\) instead of \(3, 256\)"):
        started(3, checkpoint=published[1])


def test_classifiers_take_weights_and_sizes_by_options(tmp_path):
    start = "dict(type='mixtransfer.Pretrained', checkpoint='x.pth')"
    options = ["model.backbone.img_size=384", f"model.backbone.init_cfg={start}"]
    cfg = load_config(CONFIGS / "pretrain/deit.py", (), options=options, work_dir=tmp_path)
    assert cfg.model.backbone.img_size == 384
    assert cfg.model.backbone.init_cfg == Config(dict(x=dict(type="mixtransfer.Pretrained", checkpoint="x.pth"))).x
    cfg = load_config(
        CONFIGS / "pretrain/hire_mlp.py", (), options=["model.backbone.drop_path_rate=0.2"], work_dir=tmp_path
    )
    assert cfg.model.backbone == dict(drop_path_rate=0.2)
