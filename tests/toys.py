"""Small members of every family, one row each, for tests of the contract."""

from __future__ import annotations

from mixtransfer.backbones import (
    FAMILIES,
    Backbone,
    backbone_class,
    cait,
    cmt,
    convmixer,
    deit,
    dynamicvit,
    dynamicvit_convnext,
    dynamicvit_swin,
    fan,
    fcvit,
    hire_mlp,
    hornet,
    mixmim,
    mlp_mixer,
    msg_transformer,
    posmlp,
    pvt,
    pyramid_tnt,
    raft_mlp,
    regionvit,
    sequencer,
    sret,
    swin,
    swin_mlp,
    tnt,
)

#: family, or family/variant where one toy would leave layers out -> the toy's size.
TOYS = {
    "deit": deit.Spec(16, 4, 2, img_size=64),
    "swin": swin.Spec(8, (1, 2, 2, 1), (1, 2, 2, 4), window=4, img_size=64),
    "tnt": tnt.Spec(16, 2, 8, inner_heads=2, depth=4, img_size=64),
    "hornet": hornet.Spec(8, global_filter=True, img_size=64, depths=(1, 1, 2, 1)),
    "pyramid_tnt": pyramid_tnt.Spec(8, 2, 3, 1, (1, 7, 1, 1), img_size=64),
    "hire_mlp": hire_mlp.Spec((2, 1, 3, 1), (8, 8, 16, 16)),
    "raft_mlp": raft_mlp.Spec((8, 8, 16, 16), (1, 1, 2, 1), img_size=64),
    "mixmim": mixmim.Spec(8, (1, 2, 2, 4), (1, 1, 2, 1), img_size=64),
    "pvt": pvt.Spec((1, 2, 1, 1), (8, 8, 16, 16), (1, 1, 2, 2), (2, 2, 2, 2), img_size=64),
    "pvt_v2": pvt.Spec((1, 2, 1, 1), (8, 8, 16, 16), (1, 1, 2, 2), (2, 2, 2, 2)),
    "cait": cait.Spec(16, 4, 2, layer_scale=0.5, img_size=64),
    "regionvit": regionvit.Spec(32, (1, 2, 1, 1), window=4),
    "swin_mlp": swin_mlp.Spec(8, (1, 2, 2, 1), (1, 2, 2, 4), window=4, img_size=64),
    "msg_transformer": msg_transformer.Spec(16, (1, 2, 1, 1), (1, 2, 2, 4), shuffles=(2, 2, 1, 1), window=2),
    "sret": sret.Spec(4, (2, 2, 4), 3.0, 1, (4, 2, 1), (2, 1, 1), blocks=(1, 2, 1), img_size=64),
    "cmt": cmt.Spec((8, 16, 32, 64), (1, 2, 1, 1), 2, stem=4, img_size=64),
    "posmlp": posmlp.Spec((8, 8, 16, 16), (1, 1, 2, 1), windows=(4, 4, 4, 2), groups=(2, 2, 4, 4)),
    "posmlp/lrpe": posmlp.Spec((8, 16), (1, 2), (4, 2), (4, 2), (2, 4), position="lrpe_full"),
    "fan": fan.Spec(16, 3, 2, (1,), stem=(1, 1), coarse=True),
    "fan/vit": fan.Spec(16, 4, 2, (0, 1, 2)),
    "fan/xlarge": fan.Spec(16, 3, 2, (1,), stem=(1, 1), late=(2, 24, 3)),
    "fan_swin": swin.Spec(8, (1, 2, 2, 1), (1, 2, 2, 4), window=4, img_size=64),
    "fcvit": fcvit.Spec((1, 1, 2, 1), (16, 16, 24, 32), layer_scale=0.5),
    "sequencer2d": sequencer.Spec((1, 2, 1, 1), (8, 16, 16, 16)),
    "mlp_mixer": mlp_mixer.Spec(16, 4, 16, img_size=64),
    "convmixer": convmixer.Spec(8, 4, 16, kernel=5),
    "convmixer/shared": convmixer.Spec(8, 4, 16, shared=True),
    "dynamicvit": dynamicvit.Spec(16, 4, 2, (1, 2, 3), 0.7, img_size=64),
    "dynamicvit/lvvit": dynamicvit.Spec(16, 4, 2, (1, 2, 3), 0.7, lvvit=True, img_size=64),
    "dynamicvit_swin": dynamicvit_swin.Spec(8, (1, 2, 4, 1), (1, 2, 2, 4), (1, 2, 3), 0.7, window=4),
    "dynamicvit_convnext": dynamicvit_convnext.Spec(8, (1, 1, 4, 1), (1, 2, 3), 0.7),
}


#: Networks of libraries -> the settings that make them small.
NETWORKS = {
    "timm/convnext_tiny": dict(depths=(1, 1, 2, 1), dims=(8, 16, 16, 32)),
    "timm/resnet50": dict(layers=(1, 1, 2, 1), channels=(4, 4, 8, 8), stem_width=4, zero_init_last=False),
    "timm/swin_tiny_patch4_window7_224": dict(embed_dim=8, depths=(1, 2, 2, 1), num_heads=(1, 1, 2, 2)),
    "timm/mobilenetv3_small_050": {},
    "timm/vit_tiny_patch16_224": dict(embed_dim=16, depth=4, num_heads=2),
    "timm/vit_base_patch16_dinov3": dict(embed_dim=32, depth=4, num_heads=2),
    "hf/convnext": dict(depths=[1, 1, 2, 1], hidden_sizes=[8, 8, 16, 16]),
    "hf/dinov2": dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2),
}


def build_toy(family: str, **kwargs) -> Backbone:
    if family in NETWORKS:
        return backbone_class(family)(arch=family, network=NETWORKS[family], **kwargs)
    cls = next(cls for cls in FAMILIES if cls.family == family.split("/")[0])
    toy = type(cls.__name__, (cls,), {"archs": {f"{family}_toy": TOYS[family]}})
    return toy(arch=f"{family}_toy", **kwargs)
