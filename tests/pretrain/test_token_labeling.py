"""STL: its published training step, both of its phases, the labeler beside the student, the clean view."""

import copy
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.structures import DataSample
from parity_records import assert_matches, both_precisions, published_state, record, record_input, records, uniform
from published_steps import check_gradients, pixel_box
from toys import build_toy

import mixtransfer
from mixtransfer.engine.config import read_config
from mixtransfer.errors import UserError
from mixtransfer.pretrain import TokenLabelingClassifier
from mixtransfer.pretrain.token_labeling import CleanView, Labeler
from mixtransfer.registry import TRANSFORMS

CONFIGS = Path(__file__).parents[2] / "configs"
ARCH = "fan_hybrid_tiny_token"
every_record = pytest.mark.parametrize(("system", "name"), records("token_label"))


def published(expected, role):
    return published_state({**expected, "fill_prefix": expected["fill_prefix"][role]})


def recorded_step(expected, dtype, **options):
    """Return the student's network in training mode with the recorded draw, its images and their labels."""
    given, arch = expected["given"], expected["arch"]
    options = {"mixing": dict(type="CutMix"), "label_smoothing": given["smoothing"], **options}
    net = TokenLabelingClassifier(arch, given["num_classes"], **options).to(dtype).train()
    state = published(expected, "student")
    heads = {key: value for key, value in state.items() if key.startswith("aux_head.")}
    net.load_state_dict(mixtransfer.convert_state_dict(state, arch) | heads)
    images = record_input(expected).to(dtype)
    draw = pixel_box(images, net.cell_grid(images), tuple(given["cutmix_box_yl_yh_xl_xh"]))
    net.mixing.draw = lambda shape, grid, step: draw
    return net, images, torch.tensor(given["labels"])


@both_precisions
@every_record
def test_a_students_step_equals_published(system, name, dtype, tolerance, tmp_path):
    expected = record(system, name)
    given, outputs = expected["given"], expected["outputs"]
    classes, smoothing = given["num_classes"], given["smoothing"]
    file = str(tmp_path / "labeler.pth")
    # As timm writes it: the average, which counts, beside the weights.
    torch.save({"state_dict": published(expected, "student"), "state_dict_ema": published(expected, "teacher")}, file)
    net, images, labels = recorded_step(expected, dtype, teacher=dict(arch=expected["arch"], checkpoint=file))
    net.init_weights()
    (key,) = re.findall(r"'(.+?)'", given["gumbel_noise"])
    noise = torch.from_numpy(-np.log(-np.log1p(-uniform(key, given["gumbel_shape"]))))
    assert_matches(noise, given["gumbel_noise_summary"], 1e-12, "noise")
    net.noise = lambda logits: noise.view(logits.shape).to(logits)
    seen = []
    net.head.register_forward_hook(lambda module, args, out: seen.append(out))
    net.aux_head.register_forward_hook(lambda module, args, out: seen.append(out.flatten(1, 2)))
    mixed, targets = [], []
    apply, relabel = net.mixing.apply, net.mixing.relabel
    net.mixing.apply = lambda *args: mixed.append(apply(*args)) or mixed[-1]
    net.mixing.relabel = lambda *args: targets.append(relabel(*args)) or targets[-1]
    losses = net.loss(images, labels)
    labeler = net.teacher.net
    with torch.no_grad():
        shown = labeler.backbone.embed_with_evidence(images, ("tokens",))["tokens"]
        teacher = labeler.classify_tokens(shown).flatten(1, 2)
    token_labels = net.token_labels(images).flatten(1)
    one_hot = torch.nn.functional.one_hot(token_labels, classes).to(dtype)
    found = dict(
        mixed=mixed[0],
        cls_target=targets[0],
        teacher_token_logits=teacher,
        token_labels=token_labels,
        aux_target=(1 - smoothing) * one_hot + smoothing / classes,
        student_logits=seen[0],
        student_token_logits=seen[1],
        loss_cls=losses["loss_class"][None],
        loss_aux=losses["loss_tokens"][None],
        loss=sum(losses.values())[None],
    )
    sum(losses.values()).backward()
    assert set(found) == {key for key in outputs if not key.startswith("grad:")} - {"labeler_loss"}
    for key, value in found.items():
        assert_matches(value, outputs[key], tolerance, key)
    check_gradients(net, outputs, tolerance)


@both_precisions
@every_record
def test_a_labelers_step_equals_published(system, name, dtype, tolerance):
    expected = record(system, name)
    net, images, labels = recorded_step(expected, dtype)
    assert_matches(sum(net.loss(images, labels).values())[None], expected["outputs"]["labeler_loss"], tolerance)


def tiny(monkeypatch, family="fan", **options):
    """Return a classifier of three classes on a toy of a family, and its arguments."""
    cls = type(build_toy(family)).__mro__[1]
    (toy,) = build_toy(family).archs.values()
    monkeypatch.setattr(cls, "archs", {**cls.archs, "toy": toy})
    return TokenLabelingClassifier("toy", 3, **options)


def tiny_student(monkeypatch, folder, **options):
    """Return a student and the labeler that was written for it."""
    labeler = tiny(monkeypatch).eval()
    torch.save({"state_dict": labeler.state_dict(), "meta": {}}, folder / "labeler.pth")
    teacher = dict(arch="toy", checkpoint=str(folder / "labeler.pth"))
    net = TokenLabelingClassifier("toy", 3, teacher=teacher, **options)
    net.init_weights()
    return net, labeler


def soft_loss(logits, target):
    return -sum(t * p for t, p in zip(target, logits.log_softmax(0), strict=True))


def smoothed(label):
    return [0.9 + 0.1 / 3 if k == label else 0.1 / 3 for k in range(3)]


def test_a_labeler_learns_by_its_class_token_and_by_the_mean_of_its_tokens(monkeypatch):
    """Written plainly, one image after the other."""
    net = tiny(monkeypatch).eval()
    images, labels = torch.randn(3, 3, 64, 96), torch.tensor([0, 2, 1])
    losses, expected = net.loss(images, labels), {"loss_class": 0, "loss_tokens": 0}
    for picture, label in zip(images, labels, strict=True):
        seen = net.backbone.embed_with_evidence(picture[None], ("tokens",))
        every = [net.aux_head(token) for token in seen["tokens"][0].flatten(1).T]
        expected["loss_class"] += soft_loss(net.head(seen["vector"][0]), smoothed(label)) / 3
        expected["loss_tokens"] += soft_loss(sum(every) / len(every), smoothed(label)) / 3
        torch.testing.assert_close(net(picture[None])[0], net.head(seen["vector"][0]))
    assert len(every) == 4 * 6 and list(losses) == list(expected)
    torch.testing.assert_close(losses, expected)


def test_a_student_learns_the_labels_of_the_unmixed_tokens(monkeypatch, tmp_path):
    """Written plainly, token after token."""
    net, labeler = tiny_student(monkeypatch, tmp_path, mixing=dict(type="CutMix"))
    net.eval()
    images, clean, labels = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64), torch.tensor([2, 0])
    losses = net.loss(images, labels, dict(clean=clean))
    net.step = 0
    noise, draw = net.noise(torch.empty(2, 4, 4, 3)), net.draw(images)
    mixed, share = net.mixing.apply(images, draw), float(draw.ratio[0])
    expected, drawn = {"loss_class": 0, "loss_tokens": 0}, set()
    for i, j in ((0, 1), (1, 0)):
        seen = net.backbone.embed_with_evidence(mixed[i : i + 1], ("tokens",))
        target = [share * a + (1 - share) * b for a, b in zip(smoothed(labels[i]), smoothed(labels[j]), strict=True)]
        expected["loss_class"] += soft_loss(net.head(seen["vector"][0]), target) / 2
        shown = labeler.backbone.embed_with_evidence(clean[i : i + 1], ("tokens",))["tokens"][0]
        for row in range(4):
            for column in range(4):
                says = labeler.aux_head(shown[:, row, column])
                label = int((says + noise[i, row, column]).argmax())
                drawn.add(label)
                token = net.aux_head(seen["tokens"][0, :, row, column])
                expected["loss_tokens"] += soft_loss(token, smoothed(label)) / 32
    assert not torch.equal(mixed, images) and len(drawn) > 1
    torch.testing.assert_close(losses, expected)


def test_a_labeler_is_neither_trained_nor_saved(monkeypatch, tmp_path):
    net, labeler = tiny_student(monkeypatch, tmp_path)
    sum(net.train().loss(torch.randn(2, 3, 64, 64), torch.tensor([0, 1])).values()).backward()
    loaded = net.teacher.net
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert not any(p.requires_grad or p.grad is not None for p in loaded.parameters()) and not loaded.training
    assert set(net.state_dict()) == set(labeler.state_dict())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in labeler.state_dict().items())
    assert net.to(torch.float64).teacher.net.aux_head.weight.dtype == torch.float64


@pytest.mark.parametrize("family", ["fan", "fan/vit", "deit", "cait", "pvt", "pvt_v2"])
def test_a_step_reaches_every_parameter(family, monkeypatch):
    net = tiny(monkeypatch, family, mixing=dict(type="MixupOrCutMix"), backbone=dict(drop_path_rate=0.2)).train()
    sum(net.loss(torch.randn(3, 3, 75, 96), torch.tensor([0, 2, 1])).values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_a_step_runs_in_half_precision(monkeypatch, tmp_path):
    net, _ = tiny_student(monkeypatch, tmp_path)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        losses = net.train().loss(images, labels)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())


def test_a_step_draws_the_same_on_every_resume(monkeypatch):
    net, again = tiny(monkeypatch), tiny(monkeypatch)
    logits, drawn = torch.zeros(2, 3, 4, 3), []
    for other, step in ((net, 4), (net, 5), (again, 5)):
        other.step = step
        drawn.append(other.noise(logits))
    assert torch.equal(drawn[1], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def test_labels_are_drawn_as_often_as_the_labeler_says(monkeypatch):
    logits = torch.tensor([0.5, -1.0, 1.5])
    labels = (logits + tiny(monkeypatch).noise(logits.expand(1, 200, 200, 3))).argmax(-1)
    shares = labels.flatten().bincount(minlength=3) / labels.numel()
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.01, rtol=0)


def test_a_labeler_is_loaded_completely_or_not_at_all(monkeypatch, tmp_path):
    net = tiny(monkeypatch)
    state, file = net.state_dict(), str(tmp_path / "labeler.pth")

    def refused(changed, match):
        torch.save(changed, file)
        with pytest.raises(UserError, match=match):
            Labeler(dict(arch="toy", checkpoint=file), lambda arch: net).load()

    refused({k: v for k, v in state.items() if k != "aux_head.bias"}, "labeler.pth lacks aux_head.bias; give a token")
    refused(state | {"aux_head.weight": torch.zeros(4, 16)}, r"aux_head.weight \(4, 16\) instead of \(3, 16\)")
    refused({k: v for k, v in state.items() if k != "backbone.norm.bias"}, "1 missing: norm.bias")
    refused(state | {"backbone.extra": torch.zeros(1)}, "1 unexpected: extra")


def test_what_cannot_be_built_is_refused(monkeypatch, tmp_path):
    with torch.device("meta"):
        with pytest.raises(UserError, match="give arch and checkpoint"):
            TokenLabelingClassifier(ARCH, teacher=dict(arch=ARCH))
        with pytest.raises(UserError, match="TLAlign: needs token_labels, which TokenLabelingClassifier cannot"):
            TokenLabelingClassifier(ARCH, mixing=dict(type="TLAlign"))
    net, _ = tiny_student(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="its tokens form a 2×4 grid, the student's 4×4"):
        net.loss(torch.randn(1, 3, 64, 64), torch.tensor([0]), dict(clean=torch.randn(1, 3, 32, 64)))


def view(*policies, number=2):
    augment = dict(type="mmpretrain.RandAugment", policies=list(policies), num_policies=number, magnitude_level=9)
    return CleanView(augment)


def test_a_clean_view_shares_geometry_and_no_colors():
    picture = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    rotate, invert = dict(type="Rotate", magnitude_range=(0, 30), prob=1.0), dict(type="Invert", prob=1.0)
    as_image = lambda results: results["clean"].numpy().transpose(1, 2, 0)  # noqa: E731
    turned = view(rotate, number=1)({"img": picture})
    assert np.array_equal(turned["img"], as_image(turned)) and not np.array_equal(turned["img"], picture)
    inverted = view(invert, number=1)({"img": picture})
    assert np.array_equal(as_image(inverted), picture) and np.array_equal(inverted["img"], 255 - picture)
    # The two draw apart from each other: only what the draws of both views share is the same.
    both = view(rotate, number=2)({"img": picture})
    assert np.array_equal(both["img"], as_image(both))


def test_the_students_labeler_sees_the_clean_view(monkeypatch, tmp_path):
    """Through the recipe's own pipeline and preprocessor."""
    init_default_scope("mmpretrain")
    cfg = read_config(CONFIGS / "pretrain/fan_token.py")
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), picture)
    steps = copy.deepcopy(cfg.train_dataloader.dataset.pipeline)
    for [crop] in steps[1].transforms:
        crop.scale = 64
    steps[4].erase_prob = 1.0
    steps[3].augment.policies = [dict(type="Invert", prob=1.0)]
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    packed = [pipeline({"img_path": str(tmp_path / "image.png"), "gt_label": label}) for label in (0, 1)]
    net, _ = tiny_student(monkeypatch, tmp_path, data_preprocessor=dict(cfg.data_preprocessor))
    assert isinstance(net.data_preprocessor, ClsDataPreprocessor)
    batch = {"inputs": [p["inputs"] for p in packed], "data_samples": [p["data_samples"] for p in packed]}
    seen = {}
    net.token_labels = lambda images: seen.update(clean=images) or torch.zeros(2, 4, 4, dtype=torch.long)
    net(**net.data_preprocessor(batch, True), mode="loss")
    mean, std = (torch.tensor(cfg.data_preprocessor[name]).view(3, 1, 1) for name in ("mean", "std"))
    for number, sample in enumerate(batch["data_samples"]):
        assert sample.clean.shape == (3, 64, 64)
        torch.testing.assert_close(seen["clean"][number], (sample.clean.flip(0) - mean) / std)
        # Two inversions leave the picture as it was, where nothing was erased.
        erased = (sample.clean != packed[number]["inputs"]).any(dim=0).float().mean()
        assert 0 < erased < 0.5
    plain = [DataSample().set_gt_label(label) for label in (0, 1)]
    images = torch.randn(2, 3, 64, 64)
    net(images, plain, mode="loss")
    assert seen["clean"] is images
    with pytest.raises(UserError, match="1 of 2 samples have no clean view; give all or none"):
        net(images, [plain[0], batch["data_samples"][1]], mode="loss")
