"""OAMixer's networks, training step and patch labels equal the published code's, with masks and without."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.structures import DataSample
from parity_records import (
    assert_matches,
    both_precisions,
    evaluate,
    image,
    img_size,
    published_state,
    record,
    record_input,
    records,
)
from toys import TOYS, build_toy

from mixtransfer.backbones import backbone_class, convmixer
from mixtransfer.checkpoints.rename import convert_state_dict
from mixtransfer.errors import UserError
from mixtransfer.mixing import Box, TokenBox
from mixtransfer.mixing.draws import Draw, PixelDraw, flip_partner, own_share
from mixtransfer.pretrain.classifier import smooth_one_hot
from mixtransfer.pretrain.oamixer import OAMixer, patch_distance, patch_labels, resize_label_map

TOLERANCE = 1e-6
TRAIN = pytest.mark.parametrize(("system", "name"), records("oamixer train"))


def build(expected, dtype, **options):
    """Return the network of a record with its published weights, masks and token classifier included."""
    arguments, given = expected["source"]["kwargs"], expected["given"]
    net = OAMixer(
        expected["arch"],
        arguments["num_classes"],
        kind=given["patch_label"],
        distance=arguments["patch_dist"],
        mask=arguments["mask_func"],
        masked_blocks=arguments.get("mask_layer"),
        token_weight=token_weight(expected) if arguments["token_label"] else 0.0,
        patch_classes=arguments["num_patch_classes"],
        backbone=img_size(expected),
        **options,
    ).to(dtype)
    state = published_state(expected, dtype)
    scales = {int(key.split(".")[1]): value for key, value in state.items() if key.endswith("mask_scale")}
    assert set(scales) == set(net.masked_blocks)
    ours = convert_state_dict(state, expected["arch"])
    named = {key if key.startswith(("head.", "tok_head.")) else f"backbone.{key}": ours[key] for key in ours}
    net.load_state_dict({**named, "mask_scale": torch.cat([scales[block] for block in net.masked_blocks])})
    return net


def token_weight(expected):
    """Return the weight of the token loss in a record's loss; without one, the published recipe's."""
    outputs = expected["outputs"]
    if "loss_tok" not in outputs:
        return 0.5
    loss, classes, tokens = (outputs[key]["values"][0] for key in ("loss", "loss_cls", "loss_tok"))
    return round((loss - classes) / tokens, 6)


def label_maps(expected, dtype=torch.float64):
    """Return the recorded patch-label maps (B, K, h, w)."""
    batch, height, width = (expected["input"][key] for key in ("batch", "height", "width"))
    if expected["given"]["patch_label"] == "bigbigan":
        blocks = torch.ones(8, 8, dtype=torch.float64)
        maps = torch.sigmoid(2 * torch.kron(image(height // 8, width // 8, batch, 1), blocks))
    else:
        patch = backbone_class(expected["arch"]).archs[expected["arch"]].patch
        classes = expected["source"]["kwargs"]["num_patch_classes"]
        maps = 3 * image(height // patch, width // patch, batch, classes)
    return maps.to(dtype)


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("oamixer masked"))
def test_masked_classifier_equals_published(system, name, dtype, tolerance):
    expected = record(system, name)
    net = build(expected, dtype).eval()
    assert sum(p.numel() for p in net.parameters()) == expected["param_count"]
    images, maps = record_input(expected).to(dtype), label_maps(expected, dtype)
    with torch.no_grad():
        samples = [DataSample(patch_labels=labels) for labels in maps]
        assert_matches(net(images, samples), expected["outputs"]["logits"], tolerance, "logits")
        assert_matches(net.embed(images, maps)[0], expected["outputs"]["features"], tolerance, "features")


def recorded_draw(expected):
    """Return the recorded box, and the region that pastes it."""
    given, size = expected["given"], expected["input"]
    batch, (top, bottom, left, right) = size["batch"], given["box_yl_yh_xl_xh"]
    patch = backbone_class(expected["arch"]).archs[expected["arch"]].patch
    pixels = given["patch_label"] == "bigbigan"
    height, width = (size[side] // (1 if pixels else patch) for side in ("height", "width"))
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    shared = dict(partner=flip_partner(batch), ratio=own_share(mask, batch))
    if pixels:
        return Box(), PixelDraw(mask=mask, pixel_mask=mask, **shared)
    return TokenBox(), Draw(mask=mask, **shared)


class Replayed:
    """A mixing method that makes the recorded draw."""

    needs = ()

    def __init__(self, expected):
        self.region, self.recorded = recorded_draw(expected)
        self.apply = self.region.apply

    def draw(self, shape, grid, step):
        return self.recorded

    def relabel(self, targets, draw, evidence):
        share = draw.ratio[:, None].to(targets)
        return share * targets + (1 - share) * targets[draw.partner]


@TRAIN
def test_training_step_equals_published(system, name):
    expected = record(system, name)
    given, outputs = expected["given"], expected["outputs"]
    net = build(expected, torch.float64).train()
    net.mixing = Replayed(expected)
    batch, height, width = (expected["input"][key] for key in ("batch", "height", "width"))
    images, maps, labels = image(height, width, batch), label_maps(expected), torch.tensor(given["labels"])

    mixed, mixed_maps = net.mixing.apply(images, net.mixing.recorded), net.mixing.apply(maps, net.mixing.recorded)
    assert_matches(mixed, outputs["mixed_image"], TOLERANCE, "mixed_image")
    assert_matches(mixed_maps, outputs["mixed_seg"], TOLERANCE, "mixed_seg")
    patches = net.patches(mixed_maps, net.patch_grid(images))
    assert_matches(patches, outputs["patch_class"], TOLERANCE, "patch_class")
    distance = patch_distance(patches, net.distance)
    assert_matches(distance, outputs["patch_distance"], TOLERANCE, "patch_distance")
    for key in (key for key in outputs if key.startswith("mask_layer")):
        mask = net.block_mask(int(key.removeprefix("mask_layer")), distance)
        assert_matches(mask[:, None], outputs[key], TOLERANCE, key)
    targets = smooth_one_hot(labels, given["num_classes"], given["label_smoothing"]).double()
    targets = net.mixing.relabel(targets, net.mixing.recorded, {})
    assert_matches(targets, outputs["target"], TOLERANCE, "target")

    losses = net.loss(images, labels, dict(patch_labels=maps))
    sum(losses.values()).backward()
    assert_matches(sum(losses.values())[None], outputs["loss"], TOLERANCE, "loss")
    if "loss_tok" in outputs:
        assert_matches(losses["loss_class"][None], outputs["loss_cls"], TOLERANCE, "loss_cls")
        assert_matches(losses["loss_tokens"][None] / net.token_weight, outputs["loss_tok"], TOLERANCE, "loss_tok")
    assert_matches(net.mask_scale, outputs["mask_scale_after_forward_all_layers"], TOLERANCE, "mask_scale")
    for key in (key for key in outputs if key.startswith("grad.")):
        compare_gradient(net, key.removeprefix("grad."), outputs[key])
    for key in (key for key in outputs if key.startswith("after_step.")):
        ours = published_names(net)[key.removeprefix("after_step.")]
        assert_matches(net.backbone.get_buffer(ours), outputs[key], TOLERANCE, key)

    net.eval()
    with torch.no_grad():
        vector, _ = net.embed(images, maps)
    assert_matches(net.head(vector), outputs["eval_logits_of_unmixed_images"], TOLERANCE, "eval")


@TRAIN
def test_features_and_logits_of_the_mixed_images_equal_published(system, name):
    expected = record(system, name)
    outputs = expected["outputs"]
    net, (region, draw) = build(expected, torch.float64).train(), recorded_draw(expected)
    batch, height, width = (expected["input"][key] for key in ("batch", "height", "width"))
    images, maps = region.apply(image(height, width, batch), draw), region.apply(label_maps(expected), draw)
    vector, tokens = net.embed(images, maps)
    assert_matches(vector, outputs["features"], TOLERANCE, "features")
    assert_matches(net.head(vector), outputs["logits"], TOLERANCE, "logits")
    if "token_logits" in outputs:
        assert_matches(net.tok_head(tokens), outputs["token_logits"], TOLERANCE, "token_logits")


def published_names(net):
    """Return the published name of each entry of the backbone -> ours."""
    official = net.backbone.formats()["official"]
    return {next(iter(official.to_theirs({key: value})[0])): key for key, value in net.backbone.state_dict().items()}


def compare_gradient(net, key, expected):
    heads = {f"{part}.{name}": p for part in ("head", "tok_head") for name, p in _named(getattr(net, part))}
    if key == "mask_scale_all_layers":
        gradient = net.mask_scale.grad
    elif key.endswith("mask_scale"):
        gradient = net.mask_scale.grad[int(key.split(".")[1])][None]
    elif key in heads:
        gradient = heads[key].grad
    else:
        gradient = net.backbone.get_parameter(published_names(net)[key]).grad
    if max(map(abs, expected["values"])) < 1e-15:
        # A bias that a LayerNorm takes out again: its gradient is rounding, here and there.
        assert gradient.abs().max() < 1e-15
    else:
        assert_matches(gradient, expected, TOLERANCE, key)


def _named(module):
    return [] if module is None else module.named_parameters()


@pytest.mark.parametrize(("system", "name"), records("oamixer mix"))
def test_patch_labels_equal_published(system, name):
    expected = record(system, name)
    relabel = expected["given"]["relabel"]
    for key, output in expected["outputs"].items():
        if match := re.fullmatch(r"relabel_(\d+)x(\d+)_to_(\d+)\.(\w+)", key):
            height, width, side = map(int, match.groups()[:3])
            dense = relabel_map(relabel, height, width, (side, side))
            found = {
                "dense_sum_over_classes": lambda x: x.sum(0),
                "argmax": lambda x: x.argmax(0),
                "softmax_of_class_7": lambda x: patch_labels(x[None], x.shape[1:], softmax=True)[0, :, 7].view(
                    *x[0].shape
                ),
                "dense_nonzero_count": lambda x: (x != 0).sum(0),
            }[match[4]](dense)
        elif match := re.fullmatch(r"interpolate_(\d+)x(\d+)_to_(\d+)", key):
            height, width, side = map(int, match.groups())
            batch, channels = output["shape"][:2]
            found = resize_label_map(image(height, width, batch, channels), (side, side))
        else:
            assert key == "process_mask_target_softmax"
            batch, tokens, channels = output["shape"]
            side = round(tokens**0.5)
            # The published map has four times the patches' grid.
            found = patch_labels(image(4 * side, 4 * side, batch, channels), (side, side), softmax=True)
        assert_matches(found, output, TOLERANCE, key)


def relabel_map(formulas, height, width, size):
    """Return ReLabel's map (K, h, w) on a grid of ``size``: scores of the best classes of each cell, 0 elsewhere."""
    values = evaluate(formulas["values"], formula=SimpleNamespace(image=image), abs=torch.abs, H=height, W=width)
    k, i, j = torch.meshgrid(*map(torch.arange, values.shape), indexing="ij")
    numbers = evaluate(formulas["index"], k=k, i=i, j=j)
    # Scores are resized bilinearly, numbers by the nearest cell, so that they may part ways.
    scores = resize_label_map(values[None], size)[0]
    classes = resize_label_map(numbers[None].double(), size, mode="nearest")[0].long()
    return scores.new_zeros(formulas["classes"], *size).scatter_(0, classes, scores)


FAMILIES = ("deit", "mlp_mixer", "convmixer/shared")


def toy(family, monkeypatch, **options):
    """Return a small OAMixer of a family, for label maps of three classes."""
    cls = type(build_toy(family)).__mro__[1]
    monkeypatch.setattr(cls, "archs", {**cls.archs, "toy": TOYS[family]})
    return OAMixer("toy", 3, **{"backbone": {"drop_path_rate": 0.2}, "patch_classes": 3, **options}).double()


def samples(maps):
    return [DataSample(patch_labels=labels).set_gt_label(i % 3) for i, labels in enumerate(maps)]


@pytest.mark.parametrize("size", [(64, 64), (75, 101), (1, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_no_scale_it_is_the_network_without_masks_at_any_size(family, size, monkeypatch):
    net = toy(family, monkeypatch).eval()
    images, maps = torch.randn(2, 3, *size).double(), torch.randn(2, 3, 5, 7).double()
    with torch.no_grad():
        plain = net(images)
        torch.testing.assert_close(net(images, samples(maps)), plain, rtol=0, atol=1e-10)
        net.mask_scale.fill_(2.0)
        changed = (net(images, samples(maps)) - plain).abs().max()
    assert changed > 1e-6 or size == (1, 1)


@pytest.mark.parametrize("mask", ["exp", "minus"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_trains_every_parameter_from_the_start(family, mask, monkeypatch):
    mixing = dict(type="Mixing", region=dict(type="TokenBox"), target=dict(type="Area"))
    net = toy(family, monkeypatch, mask=mask, token_weight=0.5, mixing=mixing).train()
    maps = torch.randn(5, 3, 4, 4).double()
    losses = net(torch.randn(5, 3, 64, 64).double(), samples(maps), mode="loss")
    assert set(losses) == {"loss_class", "loss_tokens"}
    sum(losses.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    predicted = net.eval()(torch.randn(2, 3, 64, 64).double(), samples(maps[:2]), mode="predict")
    assert [sample.pred_score.argmax() == sample.pred_label for sample in predicted] == [True, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_nothing(family, monkeypatch):
    nets = [toy(family, monkeypatch, backbone=dict(with_cp=flag, drop_path_rate=0.3)) for flag in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    images, maps = torch.randn(4, 3, 64, 64).double(), torch.randn(4, 3, 4, 4).double()
    results = []
    for net in nets:
        torch.manual_seed(1)
        loss = net(images, samples(maps), mode="loss")["loss_class"]
        loss.backward()
        results.append((loss, *(p.grad for p in net.parameters()), *net.buffers()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_scale_below_zero_counts_as_zero_and_can_return(monkeypatch):
    net = toy("mlp_mixer", monkeypatch)
    distance = torch.rand(2, 16, 16).double()
    with torch.no_grad():
        net.mask_scale.fill_(-0.3)
    mask = net.block_mask(0, distance)
    assert torch.equal(mask, torch.ones_like(mask))
    mask.sum().backward()
    assert net.mask_scale.grad[0] < 0
    maps = torch.randn(2, 3, 4, 4).double()
    net.loss(torch.randn(2, 3, 64, 64).double(), torch.tensor([0, 1]), dict(patch_labels=maps))
    assert torch.equal(net.mask_scale, torch.zeros_like(net.mask_scale))


def test_only_chosen_blocks_are_masked(monkeypatch):
    net = toy("deit", monkeypatch, masked_blocks=[1, 3])
    distance = torch.rand(1, 16, 16).double()
    assert [net.block_mask(block, distance) is None for block in range(4)] == [True, False, True, False]
    assert net.mask_scale.shape == (2,)


@pytest.mark.parametrize(
    ("arch", "options", "text"),
    [
        ("swin_micro", {}, "no masks for swin_micro"),
        ("oamixer_convmixer_s32_depthwise", {}, "shared kernel"),
        ("deit_tiny", dict(kind="gt"), "unknown kind of patch labels"),
        ("deit_tiny", dict(distance="l2"), "unknown distance"),
        ("deit_tiny", dict(mask="log"), "unknown mask"),
        ("deit_tiny", dict(kind="bigbigan", token_weight=0.5), "token_weight=0.5"),
        ("deit_tiny", dict(mixing=dict(type="TLAlign")), "cannot collect token_labels"),
        ("deit_tiny", dict(mixing=dict(type="CutMix")), "TokenBox"),
        ("deit_tiny", dict(masked_blocks=[12]), "masked_blocks"),
    ],
)
def test_what_cannot_be_trained_is_refused_when_built(arch, options, text):
    with torch.device("meta"), pytest.raises(UserError, match=text):
        OAMixer(arch, 3, **options)


def test_samples_without_patch_labels_are_refused(monkeypatch):
    net = toy("deit", monkeypatch)
    with pytest.raises(UserError, match="algorithm_keys"):
        net(torch.randn(1, 3, 64, 64).double(), [DataSample()], mode="predict")
    with pytest.raises(UserError, match="algorithm_keys"):
        net(torch.randn(1, 3, 64, 64).double(), [DataSample().set_gt_label(0)], mode="loss")


@pytest.mark.parametrize("size", [(5, 9), (3, 4), (24, 24)])
def test_a_shared_kernel_is_a_convolution_of_every_channel(size):
    """Matrix, depthwise convolution and a gate of ones, values and gradients, on both sides of the limit."""
    conv = convmixer.Mixer(3, 9, shared=True).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    inputs = (x, *conv.parameters())
    plain = F.conv2d(x.flatten(0, 1)[:, None], *conv.parameters(), padding=4).view(x.shape)
    probe = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * probe).sum(), inputs)
    positions = size[0] * size[1]
    for out in (conv(x), conv(x, torch.ones(2, positions, positions, dtype=torch.float64))):
        torch.testing.assert_close(out, plain, rtol=0, atol=1e-10)
        for a, b in zip(torch.autograd.grad((out * probe).sum(), inputs), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_weights_of_another_size_keep_their_function():
    """A network built for larger images holds the resampling of the smaller one's token mixers in its weights."""
    small = build_toy("mlp_mixer", img_size=64, with_embedding=True).double().eval()
    large = build_toy("mlp_mixer", img_size=(96, 160), with_embedding=True).double().eval()
    state = small.state_dict()
    large.load_state_dict(large.resize_loaded(state))
    x = torch.randn(2, 3, 96, 160).double()
    with torch.no_grad():
        torch.testing.assert_close(large.embed(x), small.embed(x), rtol=0, atol=1e-10)
    assert state["blocks.0.mlp_tokens.fc1.weight"].shape == (8, 16)
