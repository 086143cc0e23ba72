"""Every network computes what its paper's code computes, from that code's own key names."""

import re

import pytest
import torch
from parity_records import FOLDER, assert_matches, load_official, names, published_state, record, record_input

import mixtransfer
from mixtransfer.backbones import Backbone, backbone_class
from mixtransfer.checkpoints.rename import rename

SYSTEMS = sorted(path.name for path in FOLDER.iterdir())


def records(task: str) -> list[tuple[str, str]]:
    return [(s, n) for s in SYSTEMS for n in names(s) if record(s, n)["task"] == task]


def img_size(expected: dict) -> dict:
    """Return the size that the published network was built for, where its tables depend on it."""
    arguments = expected["source"]["kwargs"]
    size = arguments.get("img_size", arguments.get("image_size"))
    return {} if size is None else {"img_size": size}


def replay_orders(net: Backbone, expected: dict) -> None:
    """Give a network that orders its tokens at random (SReT) the recorded orders."""
    for number, order in enumerate(expected.get("given", {}).get("permutations", [])):
        net.orders[len(order), number] = torch.tensor(order)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["f64", "f32"])
@pytest.mark.parametrize(("system", "name"), records("classify"))
def test_classifier_equals_published(system, name, dtype, tolerance):
    expected = record(system, name)
    state = published_state(expected, dtype)
    classes = expected["outputs"]["logits"]["shape"][1]
    net = mixtransfer.build_classifier(expected["arch"], num_classes=classes).to(dtype).eval()
    replay_orders(net.backbone, expected)
    converted = rename(state, expected["arch"])
    net.load_state_dict(converted.state)
    # SMMix's second head, which only its training reads, is counted there and dropped here.
    dropped = [state[key].numel() for key in converted.derived if expected["state"][key]["kind"] == "parameter"]
    assert sum(p.numel() for p in net.parameters()) + sum(dropped) == expected["param_count"]
    with torch.no_grad():
        images = record_input(expected).to(dtype)
        logits, features = net(images, mode="tensor"), net.backbone.embed(images)
    assert_matches(logits, expected["outputs"]["logits"], tolerance, "logits")
    # Where a record has both, `features` is the map before pooling; the token labeler's has logits alone.
    key = next((key for key in ("pooled", "features") if key in expected["outputs"]), None)
    if key is not None:
        assert_matches(features, expected["outputs"][key], tolerance, key)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["f64", "f32"])
@pytest.mark.parametrize(("system", "name"), records("dense"))
def test_dense_maps_equal_published(system, name, dtype, tolerance):
    expected = record(system, name)
    net = mixtransfer.build_backbone(expected["arch"], **img_size(expected)).to(dtype).eval()
    replay_orders(net, expected)
    load_official(net, published_state(expected, dtype), name)
    with torch.no_grad():
        maps = net(record_input(expected).to(dtype))
    stages = [key for key in sorted(expected["outputs"]) if re.fullmatch(r"stage\d", key)]
    assert len(stages) == len(maps)
    for key, features in zip(stages, maps, strict=True):
        assert_matches(features, expected["outputs"][key], tolerance, key)


def test_relative_table_resize_equals_published():
    expected = record("swin", "swin_tiny_w7_to_w12_relpos_resize")
    net = backbone_class("swin_tiny_w12")(arch="swin_tiny_w12").double()
    resized = net.resize_loaded(published_state(expected))
    for key, output in expected["outputs"].items():
        assert_matches(resized[key], output, 1e-6, key)
