"""Every network computes what its paper's code computes, from that code's own key names."""

import re

import pytest
import torch
from parity_records import (
    assert_matches,
    both_precisions,
    img_size,
    load_official,
    published_state,
    record,
    record_input,
    records,
)

import mixtransfer
from mixtransfer.backbones import Backbone, backbone_class
from mixtransfer.checkpoints.rename import rename


def replay_orders(net: Backbone, expected: dict) -> None:
    """Give a network that orders its tokens at random (SReT) the recorded orders."""
    for number, order in enumerate(expected.get("given", {}).get("permutations", [])):
        net.orders[len(order), number] = torch.tensor(order)


def in_turn(found):
    """Return records of classifiers, the large ones for ``-m long``."""
    heavy = [entry for entry in found if record(*entry)["param_count"] > 100e6]
    return [pytest.param(*entry, marks=pytest.mark.long) if entry in heavy else entry for entry in found]


@both_precisions
@pytest.mark.parametrize(("system", "name"), in_turn(records("classify")))
def test_classifier_equals_published(system, name, dtype, tolerance):
    expected = record(system, name)
    state = published_state(expected, dtype)
    classes = expected["outputs"]["logits"]["shape"][1]
    net = mixtransfer.build_classifier(expected["arch"], classes, backbone=img_size(expected)).to(dtype).eval()
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


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("dense"))
def test_dense_maps_equal_published(system, name, dtype, tolerance):
    expected = record(system, name)
    check_maps(expected, dtype, tolerance)


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("levels"))
def test_maps_of_levels_equal_published(system, name, dtype, tolerance):
    """RaftMLP's levels; its dense code returns the embedding of the first one, before its blocks."""
    check_maps(record(system, name), dtype, tolerance, first_output="blocks")


def check_maps(expected, dtype, tolerance, **options):
    net = mixtransfer.build_backbone(expected["arch"], **img_size(expected), **options).to(dtype).eval()
    replay_orders(net, expected)
    load_official(net, published_state(expected, dtype), "record")
    with torch.no_grad():
        maps = net(record_input(expected).to(dtype))
    stages = [key for key in sorted(expected["outputs"]) if re.fullmatch(r"(stage|level)\d", key)]
    assert len(stages) == len(maps)
    for key, features in zip(stages, maps, strict=True):
        assert_matches(features, expected["outputs"][key], tolerance, key)


@pytest.mark.parametrize(("system", "name"), records("relpos_resize"))
def test_relative_table_resize_equals_published(system, name):
    expected = record(system, name)
    before, after = (expected["source"]["kwargs"][end]["window_size"] for end in ("from", "to"))
    arch = expected["arch"].replace(f"_w{before}_to_w{after}", f"_w{after}")
    net = backbone_class(arch)(arch=arch).double()
    resized = net.resize_loaded(published_state(expected))
    for key, output in expected["outputs"].items():
        assert_matches(resized[key], output, 1e-6, key)
