"""Networks of timm and transformers under the contract: the checks of every family, on small random ones."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toys import NETWORKS, build_toy

from mixtransfer.backbones import TimmBackbone, backbone_class
from mixtransfer.backbones.foreign.wrapped import maximal_parts
from mixtransfer.checkpoints.load import load_checkpoint
from mixtransfer.engine.optim import TransferOptimWrapperConstructor
from mixtransfer.errors import UserError

# The tests of a folder are no package.
contract = SourceFileLoader("test_contract", str(Path(__file__).with_name("test_contract.py"))).load_module()
TRANSFORMERS = Path(sys.prefix) / "transformers"
networks = pytest.mark.parametrize("name", NETWORKS)
#: Everything that the contract asks of networks whose layers are a library's. Theirs may write over what a hook saw,
#: and which layers come behind the blocks is up to them.
OF_EACH_KIND = ("timm/convnext_tiny", "timm/vit_tiny_patch16_224", "hf/dinov2")
CHECKS = (
    contract.test_out_indices_choose_outputs,
    contract.test_embedding_is_declared_and_optional,
    contract.test_samples_of_a_batch_do_not_influence_each_other,
    contract.test_freezing_lasts_and_train_returns_self,
    contract.test_activation_checkpointing_changes_nothing,
    contract.test_state_dict_survives_a_round_trip,
    contract.test_token_labels_leave_the_maps_alone_and_keep_their_mass,
    contract.test_a_constant_label_map_stays_constant,
    contract.test_bfloat16_autocast_runs_close_to_float32,
    contract.test_the_token_classifier_reads_the_chosen_outputs,
    contract.test_trains_after_inference_mode_at_the_same_size,
)


@pytest.fixture(autouse=True)
def importable(request, monkeypatch):
    name = request.node.callspec.params.get("name", "") if hasattr(request.node, "callspec") else ""
    if name.startswith("hf/") or "transformers" in request.node.name:
        if not TRANSFORMERS.is_dir():
            pytest.skip(f"pip install --no-deps --target {TRANSFORMERS} -r requirements/transformers.txt")
        monkeypatch.syspath_prepend(TRANSFORMERS)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[] if x in OF_EACH_KIND else pytest.mark.long) for x in NETWORKS]
)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("test_"))
def test_the_contract_holds(check, name):
    check(name)


@networks
@pytest.mark.parametrize(("height", "width"), contract.SIZES)
def test_declared_channels_and_strides_are_true_at_any_size(name, height, width):
    contract.test_declared_channels_and_strides_are_true_at_any_size(name, height, width)


@networks
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_norms_of_outputs_can_be_chosen(name, norm):
    net = build_toy(name, output_norm=norm).eval()
    with torch.no_grad():
        maps = net(contract.images())
    assert bool(net.norm_names) == (norm == "layer")
    if norm == "layer":
        assert all(features.mean(dim=1).abs().max() < 1e-4 for features in maps)


@networks
def test_layers_and_gradients_cover_every_parameter(name):
    net = build_toy(name)
    layers = {key: net.layer_of(key) for key, _ in net.named_parameters()}
    assert set(range(net.depth + 1)) <= set(layers.values()) <= set(range(net.depth + 2))
    assert net.no_weight_decay() <= set(layers)
    # What no output reads is not trained, so that distributed training does not wait for it.
    sum(features.square().mean() for features in net(contract.images())).backward()
    assert contract.without_gradient(net) == []
    config = dict(optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1))
    model = torch.nn.Module()
    model.backbone = net
    groups = TransferOptimWrapperConstructor(config, dict(layer_decay_rate=0.5)).groups(model, 1.0, 0.1)
    assert len({group["lr"] for group in groups}) == len(set(layers.values()))


def keep(tmp_path, state, name="net.safetensors"):
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
    return tmp_path / name


@networks
def test_files_of_the_library_load_completely_or_not_at_all(name, tmp_path):
    """Of the classifier, its head and what the chosen outputs do not read is left behind; nothing else is."""
    whole = build_toy(name, with_embedding=True).body.state_dict()
    front = "layernorm" if name.startswith("hf/") else "head"
    whole |= {"classifier.weight": torch.ones(3, 4)} if front == "layernorm" else {}
    net = build_toy(name)
    report = load_checkpoint(net, keep(tmp_path, whole))
    assert report.format == type(net).family
    loaded = net.state_dict()
    for key, value in whole.items():
        if f"body.{key}" in loaded:
            torch.testing.assert_close(loaded[f"body.{key}"], value, rtol=0, atol=0)
        else:
            assert f"body.{key}" in report.dropped
    first = next(key for key in whole if f"body.{key}" in loaded)
    lacking = {key: value for key, value in whole.items() if key != first}
    with pytest.raises(UserError, match=f"1 missing: body.{first}"):
        load_checkpoint(build_toy(name), keep(tmp_path, lacking))
    with pytest.raises(UserError, match=r"1 unexpected: body\.strange"):
        load_checkpoint(build_toy(name), keep(tmp_path, {**whole, "strange": torch.ones(2)}))
    # Our own files hold the same under our names.
    assert load_checkpoint(build_toy(name), keep(tmp_path, loaded)).loaded == report.loaded


def test_a_head_of_timm_is_left_behind_and_positions_are_resampled(tmp_path):
    import timm

    settings = NETWORKS["timm/vit_tiny_patch16_224"]
    file = keep(tmp_path, timm.create_model("vit_tiny_patch16_224", num_classes=7, **settings).state_dict())
    net = TimmBackbone("timm/vit_tiny_patch16_224", network={**settings, "img_size": 96}, out_indices=(1,))
    report = load_checkpoint(net, file)
    assert set(report.resized) == {"body.pos_embed"}
    assert {"head.weight", "body.norm.weight", "body.blocks.3.mlp.fc1.weight"} <= set(report.dropped)


def test_names_of_the_original_authors_go_through_timms_filter(tmp_path):
    """ConvNeXt's published names, as facebookresearch/ConvNeXt has them."""
    net = build_toy("timm/convnext_tiny")
    renamed = {}
    for key, value in build_toy("timm/convnext_tiny").body.state_dict().items():
        for theirs, ours in (("stem.", "downsample_layers.0."), (".blocks.", "."), (".conv_dw.", ".dwconv.")):
            key = key.replace(theirs, ours)
        key = key.replace(".mlp.fc1.", ".pwconv1.").replace(".mlp.fc2.", ".pwconv2.")
        stage = key.partition(".downsample.")
        key = f"downsample_layers.{stage[0].partition('.')[2]}.{stage[2]}" if stage[1] else key
        renamed[key] = value
    heads = {"norm.weight": torch.ones(32), "norm.bias": torch.ones(32)}
    heads |= {"head.weight": torch.ones(5, 32), "head.bias": torch.ones(5)}
    report = load_checkpoint(net, keep(tmp_path, {**renamed, **heads}))
    torch.testing.assert_close(net.body.stem[0].weight, renamed["downsample_layers.0.0.weight"], rtol=0, atol=0)
    assert len(report.loaded) == len(net.state_dict())


def test_maps_are_those_of_the_library_inside_the_image():
    import timm

    net = build_toy("timm/resnet50").eval()
    plain = timm.create_model("resnet50", features_only=True, out_indices=(1, 2, 3, 4), **NETWORKS["timm/resnet50"])
    plain.load_state_dict(net.body.state_dict(), strict=False)
    x = contract.images(2, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(net(x), plain.eval()(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_the_maps_of_transformers_are_the_librarys():
    net = build_toy("hf/convnext").eval()
    x = contract.images(2, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(net(x), net.body(x).feature_maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("timm/convnext_tinny", {}, r"unknown network of timm 'convnext_tinny'; did you mean convnext_tiny"),
        ("timm/nope", {}, r"unknown network of timm 'nope'; known: timm.list_models\(\) has them$"),
        ("timm/resnet50.nope", {}, r"unknown pretrained tag of resnet50 'nope'; .*a1_in1k"),
        (
            "timm/resnet50",
            dict(network=dict(pretrained=True)),
            r"network of timm/resnet50: pretrained is not taken here",
        ),
        ("timm/resnet50", dict(network=dict(sides=3)), r"timm/resnet50: .*unexpected keyword argument 'sides'"),
        ("timm/vgg11", dict(drop_path_rate=0.1), r"timm/vgg11: .*unexpected keyword argument 'drop_path_rate'"),
        ("timm/inception_v3", {}, r"timm/inception_v3: makes maps of .* no whole stride"),
        (
            "timm/resnet50",
            dict(network=NETWORKS["timm/resnet50"], frozen_stages=9),
            r"frozen_stages=9 of timm/resnet50: give -1 \(none\) to 4",
        ),
        ("hf/nope", {}, r"hf/nope: unknown model type of transformers 'nope'.*hf download nope"),
        ("hf/convnext", dict(network=dict(sides=3)), r"unknown setting in network of hf/convnext, 'sides'"),
        ("hf/convnext", dict(network=dict(_attn_implementation="org/kernel")), r"unknown setting .*_attn_impl"),
        ("hf/resnet", dict(drop_path_rate=0.1), r"hf/resnet: has no drop_path_rate; leave it out"),
    ],
)
def test_what_cannot_be_built_is_one_line(arch, options, message, monkeypatch):
    if arch.startswith("hf/"):
        if not TRANSFORMERS.is_dir():
            pytest.skip("transformers is not there")
        monkeypatch.syspath_prepend(TRANSFORMERS)
    with pytest.raises(UserError, match=message):
        backbone_class(arch)(arch, **options)


def test_a_network_of_one_size_says_so():
    net = TimmBackbone("timm/beit_base_patch16_224", network=dict(depth=2, embed_dim=16, num_heads=2)).eval()
    assert net(torch.randn(1, 3, 224, 224))[-1].shape == (1, 16, 14, 14)
    with pytest.raises(UserError, match=r"timm/beit_base_patch16_224 takes images of 224×224 pixels only, not 64×96"):
        net(torch.randn(1, 3, 64, 96))


def test_without_transformers_its_networks_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"transformers is not installed .*mixtransfer\[transformers\]"):
        backbone_class("hf/convnext").archs["hf/convnext"]


def test_parts_of_stages_do_not_overlap():
    net = build_toy("timm/vit_tiny_patch16_224")
    parts = maximal_parts(net.body, net.sketch.stages)
    found = [item for stage in parts.values() for item in stage]
    inside = [p for item in found for p in ([item] if isinstance(item, torch.nn.Parameter) else item.parameters())]
    assert len(inside) == len({id(p) for p in inside}) == len(list(net.body.parameters()))
