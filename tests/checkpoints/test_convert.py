"""Conversion: every entry accounted for, there and back with the same bytes, equal to the other library's network."""

import dataclasses
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity_records import published_state, record
from safetensors.torch import save_file
from toys import TOYS, build_toy

import mixtransfer
from mixtransfer.backbones import FAMILIES, backbone_class
from mixtransfer.backbones.formats.key_map import Fused, KeyMap
from mixtransfer.checkpoints.adapt_input import resize_input, resize_kernel
from mixtransfer.checkpoints.convert import ConvertOptions, convert_file
from mixtransfer.checkpoints.fit import HEAD
from mixtransfer.checkpoints.headers import read_header
from mixtransfer.checkpoints.index import make_index
from mixtransfer.checkpoints.load import load_checkpoint
from mixtransfer.checkpoints.read import read_checkpoint
from mixtransfer.checkpoints.recognize import INDEX, identify, recognize
from mixtransfer.checkpoints.rename import rename
from mixtransfer.checkpoints.select import select_weights
from mixtransfer.checkpoints.verify import build_without_values, differing
from mixtransfer.cli import run_command
from mixtransfer.errors import UserError
from mixtransfer.layers.compiling import constant_in_graphs

ARCH = "swin_micro"
#: Not beside the other packages, since mmdet imports it wherever it is, which takes seconds.
TRANSFORMERS = Path(sys.prefix) / "transformers"


@cache
def small_classifier():
    """Entries of a small classifier whose norms and tables are not at their initial values."""
    torch.manual_seed(1)
    net = mixtransfer.build_classifier(ARCH, num_classes=7)
    state = {key.removeprefix("backbone."): value for key, value in net.state_dict().items()}
    return {key: value + 0.1 * torch.randn_like(value) for key, value in state.items()}


@pytest.fixture
def classifier():
    return small_classifier()


@pytest.fixture(scope="module")
def dense():
    """Entries of a small dense backbone."""
    torch.manual_seed(2)
    state = mixtransfer.build_backbone(ARCH, with_embedding=False).state_dict()
    return {key: value + 0.1 * torch.randn_like(value) for key, value in state.items()}


def save(content, path):
    torch.save(content, path)
    return path


def converted(path, result, **options):
    report = convert_file(path, result, ConvertOptions(force=True, **options))
    content = read_checkpoint(result)
    return report, next((content[key] for key in ("model", "state_dict") if key in content), content)


def same(first, second):
    return first.keys() == second.keys() and not differing(first, second)


def make_importable(monkeypatch):
    """Let a test import transformers."""
    if not TRANSFORMERS.is_dir():
        pytest.skip(f"pip install --no-deps --target {TRANSFORMERS} -r requirements/transformers.txt")
    monkeypatch.syspath_prepend(TRANSFORMERS)


def formats():
    return [(cls.family, name) for cls in FAMILIES for name in cls.formats()]


@pytest.mark.parametrize(("family", "name"), formats())
def test_a_format_goes_there_and_back_with_the_same_bytes(family, name):
    net = build_toy(family, with_embedding=True)
    state = {**net.state_dict(), HEAD[0]: torch.randn(3, net.embed_channels), HEAD[1]: torch.randn(3)}
    state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}
    theirs, left_out = net.formats()[name].to_theirs(state)
    ours, dropped = net.formats()[name].to_ours(theirs)
    kept = {key: value for key, value in state.items() if key not in left_out}
    assert same(ours, kept) and not dropped
    assert same(net.formats()[name].to_theirs(ours)[0], theirs)


def libraries():
    return [(cls.family, name) for cls in FAMILIES for name, key_map in cls.formats().items() if key_map.network]


def test_there_is_a_network_for_every_format_of_an_installed_library():
    """There is nothing to run the others against: official code is no library, detectron2 is not on the index."""
    unchecked = {(family, name) for family, name in formats() if name in ("official", "detectron2")}
    assert set(libraries()) == set(formats()) - unchecked


@pytest.mark.parametrize("use", ["classifier", "dense"])
@pytest.mark.parametrize(("family", "library"), libraries())
def test_equals_the_librarys_network_both_ways(tmp_path, monkeypatch, family, library, use):
    cls = next(cls for cls in FAMILIES if cls.family == family)
    monkeypatch.setattr(cls, "archs", {**cls.archs, "toy": TOYS[family]})
    torch.manual_seed(0)
    net = (
        mixtransfer.build_classifier("toy", 3)
        if use == "classifier"
        else mixtransfer.build_backbone("toy", with_embedding=False)
    )
    state = {key.removeprefix("backbone."): value for key, value in net.state_dict().items()}
    trained = {key for key, value in net.named_parameters() if value.requires_grad}
    state = {
        key: value + 0.1 * torch.randn_like(value) if {key, f"backbone.{key}"} & trained else value
        for key, value in state.items()
    }
    source = save({"model": state}, tmp_path / "a.pth")
    if library == "transformers":
        make_importable(monkeypatch)
    there, _ = converted(source, tmp_path / "b.pth", arch="toy", source="official", target=library)
    back, ours = converted(tmp_path / "b.pth", tmp_path / "c.safetensors", arch="toy", source=library)
    for report in (there, back):
        text = report.proof[f"against {library}"]
        compared = use == "classifier" or "dense maps" in text
        assert not compared or re.search(r"differ by \d\.\de[-+]\d\d", text)
    kept = {key: value for key, value in state.items() if key not in there.left_out}
    assert same({key: value for key, value in ours.items() if key not in back.filled}, kept)
    if not compared:
        pytest.skip(f"{library} has no dense {family}")


@pytest.mark.parametrize("library", ["timm", "mmpretrain", "mmdet", "mmseg"])
def test_a_detectors_backbone_becomes_the_librarys(tmp_path, dense, library):
    """From a whole detector; norms that the library has no place for are left out and named."""
    detector = {f"backbone.{key}": value for key, value in dense.items()}
    detector |= {"neck.fpn_convs.0.conv.weight": torch.ones(2), "roi_head.bbox_head.fc_cls.weight": torch.ones(2)}
    source = save({"state_dict": detector, "meta": {"epoch": 12}}, tmp_path / "det.pth")
    report, theirs = converted(source, tmp_path / "b.pth", target=library)
    assert report.arch == ARCH and "dense maps" in report.proof[f"against {library}"]
    assert len(report.dropped["neck and dense heads"]) == 2
    norms = {f"norm{i}.{leaf}" for i in range(4) for leaf in ("weight", "bias")}
    assert set(report.left_out) == (norms if library in ("timm", "mmpretrain") else set())
    assert all(key.startswith("backbone.") for key in theirs) == (library == "mmpretrain")


def test_a_library_that_is_not_there_is_said_and_nothing_else_is_left_out(tmp_path, monkeypatch, classifier):
    monkeypatch.setitem(sys.modules, "transformers", None)
    report, _ = converted(save(classifier, tmp_path / "a.pth"), tmp_path / "b.pth", target="transformers")
    assert report.proof["against transformers"] == "not compared: transformers is not installed"
    assert "121 entries with the same bytes" in report.proof["goes back"]


def test_the_comparison_would_notice_a_wrong_permutation(tmp_path, classifier, monkeypatch):
    good = backbone_class(ARCH).formats()
    unordered = KeyMap(
        good["mmdet"].renames, good["mmdet"].derived, good["mmdet"].absent, network=good["mmdet"].network
    )
    monkeypatch.setattr(backbone_class(ARCH), "formats", lambda: {**good, "mmdet": unordered})
    source = save({"model": classifier}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"mmdet's swin_micro answers otherwise: dense maps at 160x160 differ by"):
        converted(source, tmp_path / "b.pth", arch=ARCH, target="mmdet")
    assert list(tmp_path.iterdir()) == [source]


def test_entries_are_renamed_once_and_what_was_proven_is_written(tmp_path, monkeypatch, classifier):
    """To the target's names once, for the proof, the library's network and the file; back to ours for the proof."""
    ways = []
    for way in ("to_ours", "to_theirs"):
        own = getattr(KeyMap, way)
        monkeypatch.setattr(
            KeyMap, way, lambda key_map, state, own=own, way=way: ways.append((way, key_map)) or own(key_map, state)
        )
    path = save({"model": classifier}, tmp_path / "a.pth")
    report, _ = converted(path, tmp_path / "b.pth", arch=ARCH, source="official", target="timm")
    assert "differ by" in report.proof["against timm"]
    known = {id(backbone_class(ARCH).formats()[name]): name for name in ("official", "timm")}
    assert [(way, known.get(id(key_map))) for way, key_map in ways] == [
        ("to_ours", "official"),
        ("to_theirs", "timm"),
        ("to_ours", "timm"),
        ("to_theirs", "official"),
    ]


def test_layers_without_values_draw_nothing_and_can_be_frozen():
    state = torch.get_rng_state()
    with build_without_values():
        layers = torch.nn.Linear(2, 2), torch.nn.Conv2d(3, 4, 2).requires_grad_(False), torch.nn.BatchNorm2d(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [all(value.requires_grad for value in layer.parameters()) for layer in layers] == [True, False, True]
    assert torch.equal(layers[2].running_var, torch.ones(2))


def test_the_report_accounts_for_everything(tmp_path, classifier):
    extra = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
        "head_dist.weight": torch.ones(1),
        "aux_head.bias": torch.ones(1),
        "layers.0.blocks.1.attn_mask": torch.zeros(4),
    }
    path = save({"model": {**classifier, **extra}, "model_ema": classifier, "epoch": 3}, tmp_path / "a.pth")
    report, _ = converted(path, tmp_path / "b.safetensors")
    data = json.loads((tmp_path / "b.json").read_text())
    assert data["arch"] == ARCH and data["formats"] == ["official", "mixtransfer"]
    assert data["counts"] == {"read": 125, "converted": 121, "resized": 0, "dropped": 4}
    assert data["dropped"]["distillation and token heads"] == ["head_dist.weight", "aux_head.bias"]
    assert len(data["dropped"]["derived (recomputed)"]) == 2
    assert data["parameters"] == sum(value.numel() for value in classifier.values())
    assert data["source"]["weights"] == "raw weights in model; model_ema holds the moving average, not taken"
    assert data["file"]["entries"] == 121 and data["file"]["sha256"] in json.dumps(data)
    for text in ("dropped, derived", "against", "goes back", "written", "model_ema"):
        assert text in str(report) or text == "against"


def test_average_or_raw_is_the_users_choice(tmp_path, classifier):
    average = {f"module.{key}": value + 1 for key, value in classifier.items()}
    path = save({"state_dict": classifier, "state_dict_ema": average}, tmp_path / "a.pth")
    _, raw = converted(path, tmp_path / "b.safetensors", verify=False)
    _, ema = converted(path, tmp_path / "b.safetensors", verify=False, average=True)
    assert same(raw, classifier) and torch.equal(ema["head.bias"], classifier["head.bias"] + 1)


def test_what_is_missing_unexpected_or_misshapen_is_listed(tmp_path, classifier):
    broken = dict(classifier)
    del broken["layers.1.blocks.0.attn.qkv.weight"]
    broken["layers.9.extra"] = torch.ones(2)
    broken["layers.0.blocks.0.mlp.fc1.bias"] = torch.ones(3)
    with pytest.raises(UserError, match="does not fit swin_micro") as caught:
        converted(save(broken, tmp_path / "a.pth"), tmp_path / "b.safetensors", arch=ARCH)
    for text in (
        "1 missing: layers.1.blocks.0.attn.qkv.weight",
        "1 unexpected: layers.9.extra",
        "1 misshapen: layers.0.blocks.0.mlp.fc1.bias (3,) instead of (128,)",
    ):
        assert text in str(caught.value)
    half = {key: value for key, value in classifier.items() if key != "head.bias"}
    with pytest.raises(UserError, match=r"half a classifier head: head\.weight alone"):
        converted(save(half, tmp_path / "a.pth"), tmp_path / "b.safetensors", arch=ARCH)


def test_nan_is_refused_unless_allowed(tmp_path, classifier):
    bad = {**classifier, "norm.bias": classifier["norm.bias"].clone()}
    bad["norm.bias"][3] = torch.nan
    path = save(bad, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"1 entries hold NaN or infinite values: norm\.bias.*--allow-nonfinite"):
        converted(path, tmp_path / "b.safetensors", arch=ARCH)
    report, _ = converted(path, tmp_path / "b.safetensors", arch=ARCH, allow_nonfinite=True)
    assert report.nonfinite == ["norm.bias"]


def test_a_destination_that_exists_needs_force(tmp_path, classifier):
    path, target = save(classifier, tmp_path / "a.pth"), tmp_path / "b.safetensors"
    target.write_text("mine")
    with pytest.raises(UserError, match="exists; pass --force"):
        convert_file(path, target, ConvertOptions(arch=ARCH))
    assert target.read_text() == "mine"
    with pytest.raises(UserError, match="give a name that ends in"):
        convert_file(path, tmp_path / "b.onnx", ConvertOptions(arch=ARCH))


def test_the_hash_in_the_name_is_the_contents(tmp_path, classifier):
    path = save(classifier, tmp_path / "a.pth")
    report = convert_file(path, tmp_path / "b.pth", ConvertOptions(arch=ARCH, hashed=True, verify=False))
    assert report.file["file"] == f"b-{report.file['sha256'][:8]}.pth"
    assert (tmp_path / report.file["file"]).exists() and (tmp_path / report.file["file"]).with_suffix(".json").exists()


def test_tables_and_input_are_resized_and_announced(tmp_path):
    torch.manual_seed(0)
    net = mixtransfer.build_classifier("deit_tiny", num_classes=3).eval()
    path = save({k.removeprefix("backbone."): v for k, v in net.state_dict().items()}, tmp_path / "a.pth")
    report, state = converted(path, tmp_path / "b.safetensors", img_size=96, in_channels=4)
    assert report.resized == {
        "pos_embed": ((1, 197, 192), (1, 37, 192)),
        "patch_embed.proj.weight": ((192, 3, 16, 16), (192, 4, 16, 16)),
    }
    assert "pos_embed 1x197x192 -> 1x37x192" in str(report)
    wide = mixtransfer.build_classifier("deit_tiny", num_classes=3, backbone=dict(img_size=96, in_channels=4)).eval()
    wide.load_state_dict(state)
    small = mixtransfer.build_backbone("deit_tiny", img_size=96).eval()
    load_checkpoint(small, path)
    x = torch.randn(1, 4, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(wide.backbone.embed(x), small.embed(x[:, :3]), rtol=0, atol=1e-5)
    other = mixtransfer.build_classifier("pvt_v2_b0", num_classes=3).state_dict()
    path = save({k.removeprefix("backbone."): v for k, v in other.items()}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="pvt_v2_b0 has no option window"):
        converted(path, tmp_path / "b.safetensors", window=5)


def test_a_network_of_other_patches_takes_the_weights(tmp_path, monkeypatch):
    cls, spec = backbone_class("deit_tiny"), TOYS["deit"]
    toys = {"toy": spec, "toy_p8": dataclasses.replace(spec, patch=8)}
    monkeypatch.setattr(cls, "archs", {**cls.archs, **toys})
    state = mixtransfer.build_backbone("toy").state_dict()
    report, _ = converted(save(state, tmp_path / "a.pth"), tmp_path / "b.pth", arch="toy_p8", source="official")
    assert report.resized == {
        "pos_embed": ((1, 17, 16), (1, 65, 16)),
        "patch_embed.proj.weight": ((16, 3, 16, 16), (16, 3, 8, 8)),
    }


@pytest.mark.parametrize(
    ("system", "name"), [("tnt", "tnt_small_dense_96x128"), ("pyramid_tnt", "pyramid_tnt_tiny_dense_128x192")]
)
def test_tables_of_oblong_images_go_both_ways(tmp_path, system, name):
    """Published tables for 96 x 128 and 128 x 192 images, and the square ones resampled to them."""
    expected = record(system, name)
    size = expected["input"]["height"], expected["input"]["width"]
    state = published_state(expected, torch.float32)
    options = dict(arch=expected["arch"], img_size=size)
    report, ours = converted(save(state, tmp_path / "a.pth"), tmp_path / "b.safetensors", source="official", **options)
    assert not report.resized and f"{size[0]}x{size[1]}" in report.proof["answers"]
    _, back = converted(
        tmp_path / "b.safetensors", tmp_path / "c.pth", source="mixtransfer", target="official", **options
    )
    assert same(back, {key: state[key] for key in back}) and len(back) == len(ours)
    square = mixtransfer.build_backbone(expected["arch"], with_embedding=False).state_dict()
    report, resized = converted(
        save(square, tmp_path / "d.pth"), tmp_path / "e.safetensors", source="official", **options
    )
    assert report.resized and all(value.shape == ours[key].shape for key, value in resized.items())
    with pytest.raises(UserError, match=r"misshapen: .*outer_pos.*; .* say --img-size HxW"):
        converted(tmp_path / "a.pth", tmp_path / "f.safetensors", arch=expected["arch"], source="official")


def test_the_head_on_tokens_of_lv_vit_is_kept(tmp_path, monkeypatch):
    cls = backbone_class("dynamicvit_lvvit_s_05")
    monkeypatch.setattr(cls, "archs", {**cls.archs, "toy": TOYS["dynamicvit/lvvit"]})
    net = mixtransfer.build_classifier("toy", 3).eval()
    flat = {key.removeprefix("backbone."): value for key, value in net.state_dict().items()}
    for state in (flat, net.state_dict()):  # as published, and as our training saves it
        path = save({"model": state}, tmp_path / "a.pth")
        report, found = converted(path, tmp_path / "b.pth", arch="toy", target="official")
        assert same(found, flat) and not report.dropped and "logits" in report.proof["answers"]
    mixtransfer.build_classifier("toy", 3).load_state_dict(found)
    del flat["aux_head.bias"]
    with pytest.raises(UserError, match=r"1 missing: aux_head\.bias"):
        converted(save({"model": flat}, tmp_path / "a.pth"), tmp_path / "b.pth", arch="toy")


def test_windows_are_resized(tmp_path, classifier):
    path = save(classifier, tmp_path / "a.pth")
    report, state = converted(path, tmp_path / "b.safetensors", window=6)
    assert len(report.resized) == 8
    assert state["layers.0.blocks.0.attn.relative_position_bias_table"].shape == (121, 1)


@pytest.mark.parametrize("library", ["timm", "torchvision", "mmpretrain"])
def test_images_that_windows_do_not_fit_are_compared_where_they_do(tmp_path, library):
    """Libraries pad such maps each in its own way. The entries are of a classifier and of a detector at once."""
    torch.manual_seed(3)
    path = save(mixtransfer.build_backbone(ARCH, with_embedding=True).state_dict(), tmp_path / "a.pth")
    report, _ = converted(path, tmp_path / "b.pth", target=library, img_size=(90, 130))
    assert report.proof[f"against {library}"].startswith("embedding at 256x256 differ by")


@pytest.mark.parametrize(
    ("family", "library", "size", "compared"),
    [
        ("deit", "timm", 70, "80x80"),
        ("deit", "transformers", (90, 130), "96x144"),
        ("deit", "mmpretrain", (90, 130), "96x144"),
        ("pvt", "transformers", 70, "68x68"),  # ours drops what is no whole patch, too
    ],
)
def test_images_that_patches_do_not_fit_are_compared_where_they_do(
    tmp_path, monkeypatch, family, library, size, compared
):
    if library == "transformers":
        make_importable(monkeypatch)
    cls = next(cls for cls in FAMILIES if cls.family == family)
    monkeypatch.setattr(cls, "archs", {**cls.archs, "toy": TOYS[family]})
    path = save(mixtransfer.build_backbone("toy", with_embedding=True).state_dict(), tmp_path / "a.pth")
    report, _ = converted(path, tmp_path / "b.pth", arch="toy", source="mixtransfer", target=library, img_size=size)
    assert f"at {compared} differ by" in report.proof[f"against {library}"]


def test_images_that_a_library_does_not_take_are_one_line(tmp_path, monkeypatch):
    cls = backbone_class("deit_tiny")
    monkeypatch.setattr(cls, "archs", {**cls.archs, "toy": TOYS["deit"]})
    path = save(mixtransfer.build_backbone("toy", with_embedding=True).state_dict(), tmp_path / "a.pth")
    options = dict(arch="toy", source="official", target="torchvision", img_size=(64, 96))
    with pytest.raises(UserError, match=r"^torchvision's toy does not take images of 64x96 pixels; --no-verify writes"):
        converted(path, tmp_path / "b.pth", **options)
    assert list(tmp_path.iterdir()) == [path]
    _, state = converted(path, tmp_path / "b.pth", verify=False, **options)
    assert state["encoder.pos_embedding"].shape == (1, 25, 16)


@pytest.mark.parametrize("family", sorted(TOYS))
def test_grey_and_deep_images_are_seen_as_color_images_were(tmp_path, monkeypatch, family):
    cls = next(cls for cls in FAMILIES if cls.family == family.split("/")[0])
    monkeypatch.setattr(cls, "archs", {**cls.archs, f"{family}_toy": TOYS[family]})
    torch.manual_seed(0)
    color = build_toy(family).eval()
    path = save(color.state_dict(), tmp_path / "a.pth")
    images = torch.randn(1, 1, 64, 64)
    for channels, same_images in ((1, images), (4, torch.cat([images.expand(-1, 3, -1, -1), images + 1], dim=1))):
        net = build_toy(family, in_channels=channels).eval()
        load_checkpoint(net, path, source="mixtransfer")
        with torch.no_grad():
            for a, b in zip(net(same_images), color(images.expand(-1, 3, -1, -1)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_input_kernels_keep_what_they_see():
    kernel = torch.randn(5, 3, 4, 4)
    own = {"stem.weight": (5, 1, 4, 4)}
    grey = torch.randn(1, 1, 8, 8)
    resized = resize_input({"stem.weight": kernel}, own)["stem.weight"]
    color = torch.nn.functional.conv2d(grey.expand(-1, 3, -1, -1), kernel, stride=4)
    torch.testing.assert_close(torch.nn.functional.conv2d(grey, resized, stride=4), color)
    # A patch and the same patch enlarged give the same embedding (FlexiViT).
    patch = torch.randn(1, 3, 4, 4)
    larger = torch.nn.functional.interpolate(patch, size=(8, 8), mode="bilinear")
    enlarged = resize_kernel(kernel, (8, 8))
    torch.testing.assert_close(
        (larger * enlarged).sum((1, 2, 3)), (patch * kernel).sum((1, 2, 3)), rtol=1e-4, atol=1e-4
    )
    assert (
        resize_input({"conv.weight": torch.randn(5, 8, 3, 3)}, {"conv.weight": (5, 8, 5, 5)})["conv.weight"].size(2)
        == 3
    )


def test_fused_projections_are_split_and_joined():
    parts = tuple(f"blocks.{{i}}.attn.{name}.{{rest}}" for name in ("query", "key", "value"))
    key_map = KeyMap(
        renames=(("layer.{i+1}.attention.{rest}", "blocks.{i}.attn.{rest}"),),
        fused=(Fused("blocks.{i}.attn.qkv.{rest}", parts),),
    )
    state = {"blocks.0.attn.qkv.weight": torch.arange(6.0).view(6, 1), "blocks.0.attn.proj.bias": torch.ones(1)}
    theirs, _ = key_map.to_theirs(state)
    assert theirs["layer.1.attention.key.weight"].flatten().tolist() == [2.0, 3.0]
    assert same(key_map.to_ours(theirs)[0], state)
    del theirs["layer.1.attention.key.weight"]
    assert "blocks.0.attn.qkv.weight" not in key_map.to_ours(theirs)[0]


@pytest.mark.parametrize("library", ["official", "timm", "torchvision", "transformers", "mmpretrain"])
def test_files_are_recognized_by_names_and_shapes(tmp_path, classifier, library):
    theirs = rename(classifier, ARCH, "mixtransfer", library).state
    path = save({"state_dict": {f"module.{key}": value for key, value in theirs.items()}}, tmp_path / "a.pth")
    match = identify(select_weights(read_header(path).content).weights, "a")
    assert (match.arch, match.format, match.certainty) == (ARCH, library, 1.0)


def test_dense_norms_tell_detectors_from_classifiers(dense):
    theirs = rename(dense, ARCH, "mixtransfer", "mmdet").state
    assert identify(theirs, "a").format == "mmdet"
    classifier = {key: value for key, value in theirs.items() if not re.match(r"norm[012]", key)}
    assert identify(classifier, "a").format == "mmpretrain"


def test_other_sizes_are_recognized_and_foreign_files_are_not(classifier):
    table = {k: v.new_zeros(81, v.size(1)) if k.endswith("bias_table") else v for k, v in classifier.items()}
    match = recognize(table)[0]
    assert match.arch == ARCH and 0.9 < match.certainty < 1 and len(match.resized) == 1
    with pytest.raises(UserError, match="a: not recognized; say --arch"):
        identify({"conv1.weight": torch.ones(2), "layer1.0.bn1.weight": torch.ones(2)}, "a")


def test_networks_of_equal_shapes_are_not_guessed():
    with torch.device("meta"):
        state = mixtransfer.build_backbone("sret_tiny").state_dict()
    with pytest.raises(UserError, match=r"a: fits sret_tiny, sret_tiny_wo_slice.* alike: .* --arch sret_tiny"):
        identify(state, "a")


def test_the_index_is_up_to_date():
    """All names, and one network of each family; where it is not, run python -m mixtransfer.checkpoints.index."""
    index = json.loads(INDEX.read_text())
    assert {f.family: list(f.archs) for f in FAMILIES} == {k: list(v["archs"]) for k, v in index["families"].items()}
    for family in FAMILIES:
        arch = next(iter(family.archs))
        fresh = make_index([family], [arch])
        assert signatures(fresh, family.family, arch) == signatures(index, family.family, arch)


def signatures(index, family, arch):
    formats, known = index["families"][family]["formats"], index["families"][family]["archs"][arch]
    found = {}
    for name, format_ in formats.items():
        like = format_.get("like", name)
        pairs = zip(formats[like]["groups"], known[like], strict=True)
        found[name] = {group: index["lines"][i] for group, i in pairs if i >= 0}
    return found


changes = st.lists(
    st.tuples(st.sampled_from(["drop", "rename", "reshape", "retype", "add"]), st.integers(0, 10**6)),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("prefix", "names"), [("", "official"), ("backbone.", "official"), ("", "transformers"), ("", "mmpretrain")]
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=changes)
def test_changed_entries_never_give_success_with_something_missing(tmp_path_factory, prefix, names, suffix, changes):
    classifier = small_classifier()
    folder = tmp_path_factory.mktemp("fuzz")
    entries = rename(classifier, ARCH, "mixtransfer", names).state
    state = {(key if key.startswith("head.") else prefix + key): value for key, value in entries.items()}
    for what, number in changes:
        key = list(state)[number % len(state)]
        if what == "drop":
            del state[key]
        elif what == "rename":
            at = number % len(key)
            state[key[:at] + "x" + key[at + 1 :]] = state.pop(key)
        elif what == "reshape":
            value = classifier[HEAD[1]] if not isinstance(state[key], torch.Tensor) else state[key]
            state[key] = [value.flatten(), value.flatten()[:1].clone(), value.unsqueeze(0), value.sum()][number % 4]
        elif what == "retype" and suffix == ".safetensors":
            state[key] = state[key].to([torch.int64, torch.bool, torch.uint8][number % 3])
        elif what == "retype":
            state[key] = [None, 3, "text", [1.0], torch.ones(3, dtype=torch.long)][number % 5]
        else:
            state[f"{key}.more"] = torch.ones(2)
    path = folder / f"a{suffix}"
    if suffix == ".pth":
        save({"model": state}, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    try:
        _, result = converted(path, folder / "b.safetensors", arch=ARCH, verify=False)
    except UserError as error:
        assert "\n" not in str(error) and not (folder / "b.safetensors").exists()
        return
    # Whole parts may be gone, and nothing else: both entries of the head, of it and the norm before it.
    gone = classifier.keys() - result.keys()
    assert gone in (set(), set(HEAD), {*HEAD, "norm.weight", "norm.bias"})
    assert not differing(result, classifier)
    net = mixtransfer.build_backbone(ARCH, with_embedding=False)
    report = load_checkpoint(net, path)
    assert {key for key in net.state_dict() if not key.startswith("norm")} <= set(report.loaded)


cuts = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "zero", "drop"]), st.floats(0, 1), st.integers(1, 255)),
    min_size=1,
    max_size=2,
)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=cuts)
def test_a_damaged_file_is_one_line_or_converts_completely(tmp_path_factory, suffix, cuts):
    """The whole way with proof; only values may differ, and only in safetensors, which have no checksums."""
    classifier = small_classifier()
    folder = tmp_path_factory.mktemp("damage")
    path = folder / f"a{suffix}"
    if suffix == ".pth":
        save({"model": classifier}, path)
    else:
        save_file(classifier, path)
    data = bytearray(path.read_bytes())
    for what, where, value in cuts:
        # Half of the damage falls into the header, where names, types and shapes are.
        at = int(where * 2 % 1 * (len(data) if where < 0.5 else 20_000))
        if what == "flip":
            data[at] ^= value
        elif what == "cut":
            del data[at:]
        elif what == "zero":
            data[at : at + value] = bytes(min(value, len(data) - at))
        else:
            del data[at : at + value]
        if len(data) < 20_000:
            break
    path.write_bytes(data)
    try:
        _, result = converted(path, folder / "b.safetensors", arch=ARCH)
    except UserError as error:
        assert "\n" not in str(error) and not (folder / "b.safetensors").exists()
        return
    gone = classifier.keys() - result.keys()
    assert gone in (set(), set(HEAD), {*HEAD, "norm.weight", "norm.bias"})
    assert suffix == ".safetensors" or not differing(result, classifier)


def test_command_line(tmp_path, classifier, capsys):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    save({"model": classifier}, tmp_path / "in" / "a.pth")
    save({"model": {"x.y": torch.ones(1)}}, tmp_path / "in" / "b.pth.tar")
    save(rename(classifier, ARCH, "official", "timm").state, tmp_path / "in" / "sub" / "c.bin")
    out = tmp_path / "out"
    assert run_command("convert", [str(tmp_path / "in"), str(out), "--no-verify"]) == 1
    printed = capsys.readouterr()
    assert "[1/3]" in printed.out and "2 converted" in printed.out and "1 failed" in printed.out
    assert "b.pth.tar: not recognized" in printed.err
    assert sorted(p.name for p in out.rglob("*.safetensors")) == ["a.safetensors", "c.safetensors"]
    (tmp_path / "list.txt").write_text("in/a.pth\n# a note\nin/sub/c.bin\n")
    assert run_command("convert", [str(tmp_path / "list.txt"), str(tmp_path / "two"), "--no-verify"]) == 0
    assert run_command("convert", [str(tmp_path / "in" / "a.pth"), str(out / "a.safetensors")]) == 2
    assert "exists; pass --force" in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    assert run_command("convert", [str(tmp_path / "in" / "a.pth"), str(tmp_path / "there"), "--no-verify"]) == 0
    assert (tmp_path / "there" / "a.safetensors").exists()
    source = str(tmp_path / "in" / "a.pth")
    assert run_command("convert", [source, str(out / "d.pth"), "--to", "tim"]) == 2
    assert "did you mean timm?" in capsys.readouterr().err
    assert run_command("convert", [source, str(out / "d.pth"), "--arch", "swin_micr"]) == 2
    assert "did you mean swin_micro" in capsys.readouterr().err
    assert not list(out.glob("d*"))
    twice = [source, str(tmp_path / "in" / "sub" / ".." / "a.pth"), str(out)]
    assert run_command("convert", twice) == 2 and "would both become" in capsys.readouterr().err


def test_our_names_need_no_library_of_networks(tmp_path, classifier):
    """timm brings torchvision, which brings torch's compiler: 0.2 GB that a conversion to our names has no use for."""
    path = save({"model": classifier}, tmp_path / "a.pth")
    code = (
        "import sys; from mixtransfer.cli import run_command; code = run_command('convert', sys.argv[1:]);"
        "print(sorted({'timm', 'torchvision', 'mmcv', 'torch._dynamo'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "b.safetensors")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]" and "goes back" in done.stdout


def test_a_report_that_cannot_be_printed_is_one_line(tmp_path, classifier):
    path = save({"model": classifier}, tmp_path / "a.pth")
    tool = Path(__file__).parents[2] / "tools" / "convert.py"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, tool, path, tmp_path / "b.safetensors"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (2, "mixtransfer convert: error: No space left on device\n")


def test_the_mark_for_compiled_graphs_is_torchs():
    ours, theirs = constant_in_graphs(lambda: None), torch.compiler.assume_constant_result(lambda: None)
    assert vars(ours) == vars(theirs) and vars(ours)


def test_a_config_converts_on_load_and_strictly(tmp_path, classifier):
    from mixtransfer.registry import MODELS

    theirs = rename(classifier, ARCH, "mixtransfer", "mmdet").state
    path = save({"state_dict": {f"backbone.{key}": value for key, value in theirs.items()}}, tmp_path / "det.pth")
    init = dict(type="mixtransfer.Pretrained", checkpoint=str(path), source="auto")
    net = MODELS.build(dict(type="mixtransfer.SwinTransformer", arch=ARCH, init_cfg=init))
    net.init_weights()
    assert torch.equal(net.layers[0].downsample.reduction.weight, classifier["layers.0.downsample.reduction.weight"])
    short = {key: value for key, value in theirs.items() if "stages.2.blocks.0" not in key}
    save(short, path)
    with pytest.raises(UserError, match=r"det\.pth does not fit swin_micro \(mmdet names\): 13 missing"):
        MODELS.build(dict(type="mixtransfer.SwinTransformer", arch=ARCH, init_cfg=init)).init_weights()
