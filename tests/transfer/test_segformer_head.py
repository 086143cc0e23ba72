"""SegFormer's published head: its entries load, and it computes what they say."""

import mmseg.registry
import pytest
import torch
import torch.nn.functional as F

from mixtransfer import build_backbone
from mixtransfer.checkpoints.load import fitting_weights
from mixtransfer.checkpoints.rename import convert_state_dict
from mixtransfer.engine.guarded_loading import GuardedLoading
from mixtransfer.errors import UserError

WIDTHS, CHANNELS, CLASSES = (8, 16, 12, 12), 24, 5
HEAD = dict(
    type="mixtransfer.SegFormerHead",
    in_channels=WIDTHS,
    in_index=[0, 1, 2, 3],
    channels=CHANNELS,
    num_classes=CLASSES,
    norm_cfg=dict(type="BN"),
    align_corners=False,
)


def published_entries():
    """Return entries with the names and shapes of NVlabs/FAN's segmentors (there ``channels`` is ``embed_dim``)."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "conv_seg.weight": (CLASSES, 6, 1, 1),
        "conv_seg.bias": (CLASSES,),
        **{f"linear_c{level}.proj.weight": (CHANNELS, width) for level, width in enumerate(WIDTHS, 1)},
        **{f"linear_c{level}.proj.bias": (CHANNELS,) for level in range(1, 5)},
        "linear_fuse.conv.weight": (CHANNELS, 4 * CHANNELS, 1, 1),
        **{f"linear_fuse.bn.{name}": (CHANNELS,) for name in ("weight", "bias", "running_mean", "running_var")},
        "linear_pred.weight": (CLASSES, CHANNELS, 1, 1),
        "linear_pred.bias": (CLASSES,),
    }
    state = {key: torch.rand(shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}
    return {**state, "linear_fuse.bn.num_batches_tracked": torch.tensor(7)}


def test_published_entries_load_and_give_the_published_logits():
    torch.set_default_dtype(torch.float64)
    head = mmseg.registry.MODELS.build(HEAD).eval()
    state = published_entries()
    head.load_state_dict(state)
    maps = [
        torch.randn(2, width, *side) for width, side in zip(WIDTHS, [(12, 16), (6, 8), (3, 4), (2, 2)], strict=True)
    ]

    fused = torch.zeros(2, CHANNELS, 12, 16)
    for place, level in enumerate((4, 3, 2, 1)):
        weight, bias = state[f"linear_c{level}.proj.weight"], state[f"linear_c{level}.proj.bias"]
        x = torch.einsum("bchw,ec->behw", maps[level - 1], weight) + bias[:, None, None]
        x = F.interpolate(x, (12, 16), mode="bilinear", align_corners=False)
        block = state["linear_fuse.conv.weight"][:, place * CHANNELS : (place + 1) * CHANNELS, 0, 0]
        fused += torch.einsum("bchw,ec->behw", x, block)
    norm = {
        key: state[f"linear_fuse.bn.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    }
    fused = (fused - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm["weight"] + norm["bias"]
    weight, bias = state["linear_pred.weight"][..., 0, 0], state["linear_pred.bias"]
    expected = torch.einsum("bchw,kc->bkhw", fused.relu(), weight) + bias[:, None, None]
    torch.testing.assert_close(head(maps), expected)


def test_a_config_starts_the_head_from_a_published_segmentor(tmp_path):
    state = published_entries()
    file = tmp_path / "published.pth"
    torch.save({"state_dict": {"backbone.x": torch.ones(2), **{f"decode_head.{k}": v for k, v in state.items()}}}, file)
    head = mmseg.registry.MODELS.build(
        HEAD | {"init_cfg": dict(type="Pretrained", checkpoint=str(file), prefix="decode_head.")}
    )
    with GuardedLoading(trust=False):
        head.init_weights()
    loaded = head.state_dict()
    assert loaded.keys() == {key for key in state if not key.startswith("conv_seg.")}
    for key, value in loaded.items():
        torch.testing.assert_close(value, state[key], check_dtype=False)


def test_every_parameter_learns():
    head = mmseg.registry.MODELS.build(HEAD)
    maps = [torch.randn(2, width, side, side) for width, side in zip(WIDTHS, (8, 4, 2, 1), strict=True)]
    head(maps).square().sum().backward()
    assert [name for name, value in head.named_parameters() if value.grad is None] == []


class Segmentor(torch.nn.Module):
    """Backbone and head under the names of mmseg's ``EncoderDecoder``."""

    def __init__(self):
        super().__init__()
        self.backbone = build_backbone("swin_micro", with_embedding=False)
        self.decode_head = mmseg.registry.MODELS.build({**HEAD, "in_channels": self.backbone.out_channels})


def test_a_whole_published_segmentor_fits_without_what_nothing_reads():
    model = Segmentor()
    own = model.state_dict()
    unread = {
        "backbone.layers.0.blocks.1.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
        "backbone.layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
        "decode_head.conv_seg.weight": torch.zeros(CLASSES, CHANNELS, 1, 1),
        "decode_head.conv_seg.bias": torch.zeros(CLASSES),
    }
    fitted = fitting_weights(model, {**own, **unread}, "published.pth")
    assert fitted.keys() == own.keys() and all(torch.equal(fitted[key], own[key]) for key in own)
    for name in ("decode_head.conv_segs.weight", "auxiliary_head.conv_seg.weight", "backbone.layers.9.weight"):
        with pytest.raises(UserError, match=f"published.pth does not fit the model: 1 unexpected: {name}"):
            fitting_weights(model, {**own, **unread, name: torch.zeros(1)}, "published.pth")


def test_a_segmentors_backbone_may_have_a_librarys_names():
    model = Segmentor()
    own = model.state_dict()
    inside = {key.removeprefix("backbone."): value for key, value in own.items() if key.startswith("backbone.")}
    theirs = {f"backbone.{k}": v for k, v in convert_state_dict(inside, "swin_micro", "mixtransfer", "mmseg").items()}
    assert theirs.keys() - own.keys()
    head = {key: value for key, value in own.items() if not key.startswith("backbone.")}
    fitted = fitting_weights(model, {**theirs, **head}, "theirs.pth")
    assert fitted.keys() == own.keys() and all(torch.equal(fitted[key], own[key]) for key in own)
