"""The case ``families``: each family against its published code's way of computing it, with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.originals import as_published
from benchmarks.speed import Comparison
from benchmarks.steps import Options, evaluation_step, require_close, training_step
from mixtransfer.backbones import Backbone, backbone_class
from mixtransfer.errors import UserError, unknown_name

__all__ = ["RECIPES", "families"]

BATCH = 2


@dataclass(frozen=True)
class Recipe:
    """What a family is timed with.

    Attributes:
        arch: its smallest published variant.
        drop_path: stochastic depth of its published training on ImageNet.
        size: side of the images in pixels: that of the usual crops of ADE20K, or the nearest that the published code
            runs at.
        multiple: the published code runs at multiples of this many pixels only.
        made_for: side that the network is made for, where the published dense code runs it at others; None: ``size``.
    """

    arch: str
    drop_path: float
    size: int = 512
    multiple: int = 1
    made_for: int | None = None


#: family -> recipe; rates from the papers' and repositories' training commands.
RECIPES = {
    "deit": Recipe("deit_tiny", 0.1, multiple=16),
    "cait": Recipe("cait_xxs24", 0.05, multiple=16),
    "pvt": Recipe("pvt_tiny", 0.1),
    "pvt_v2": Recipe("pvt_v2_b0", 0.1),
    "tnt": Recipe("tnt_small", 0.1, multiple=16),
    "pyramid_tnt": Recipe("pyramid_tnt_tiny", 0.1, multiple=64),
    "cmt": Recipe("cmt_ti", 0.1, multiple=32),
    "fan": Recipe("fan_vit_tiny", 0.0),
    "fan_swin": Recipe("fan_swin_tiny", 0.3),
    "sret": Recipe("sret_tiny", 0.1, multiple=32),
    "swin": Recipe("swin_tiny", 0.2),
    "mixmim": Recipe("mixmim_base_384", 0.1, 384, multiple=32),  # no windows are published for 512
    "msg_transformer": Recipe("msg_transformer_tiny", 0.1, 448, multiple=224),
    "regionvit": Recipe("regionvit_tiny", 0.1),
    "swin_mlp": Recipe("swin_mlp_tiny_c24_w8_256", 0.2, multiple=256),
    "posmlp": Recipe("posmlp_t", 0.1, 448, multiple=224),
    "raft_mlp": Recipe("raft_mlp_s", 0.1, made_for=224),
    "hire_mlp": Recipe("hire_mlp_tiny", 0.0),
    "hornet": Recipe("hornet_tiny_7x7", 0.2),
    "fcvit": Recipe("fcvit_tiny", 0.1),
    "sequencer2d": Recipe("sequencer2d_s", 0.1),
    "mlp_mixer": Recipe("mixer_s16", 0.1, multiple=16),
    # OAMixer's are smaller, but share one kernel: their published code is several times slower than a ConvMixer's.
    "convmixer": Recipe("convmixer_1024_20_ks9_p14", 0.0, 504, multiple=14),
    # Compared in evaluation, as all; that training draws and masks the same is in the tests. 14 × 14 tokens are written
    # into the code of DynamicViT.
    "dynamicvit": Recipe("dynamicvit_deit_256_07", 0.0, 224, multiple=224),
    "dynamicvit_swin": Recipe("dynamicvit_swin_t_07", 0.2, 448, multiple=224),
    "dynamicvit_convnext": Recipe("dynamicvit_convnext_t_07", 0.2),
}


def families(options: Options) -> Iterator[Comparison]:
    """Our forward pass, and forward and backward, against the published way, family by family.

    Raises:
        UserError: a family of ``options`` is unknown, or its published code does not run at the size that was chosen.
    """
    chosen = {name: _recipe(name, options.size) for name in options.families or RECIPES}
    for name, recipe in chosen.items():
        for batch, size in options.shapes((BATCH, recipe.size)):
            nets = {"ours": _network(recipe, size)}
            nets["published"] = as_published(nets["ours"])
            nets = {contestant: net.to(options.device) for contestant, net in nets.items()}
            images = torch.randn(batch, 3, size, size, device=options.device)
            require_same(nets["ours"], nets["published"], images)
            calls = {contestant: options.compiled(net) for contestant, net in nets.items()}
            title = f"{recipe.arch}, {batch} × {size}²"
            max_ratio = {"published": 1.0}
            steps = {contestant: evaluation_step(call, images, options) for contestant, call in calls.items()}
            yield Comparison(f"{title}, forward", steps, max_ratio, name)
            steps = {}
            for contestant, net in nets.items():
                steps[contestant] = training_step(net.train(), calls[contestant], images, options)
            yield Comparison(f"{title}, drop path {recipe.drop_path:g}, forward and backward", steps, max_ratio, name)


def require_same(ours: Backbone, published: Backbone, images: Tensor) -> None:
    """Stop unless both give the same maps and the same gradients of all parameters; leaves them in evaluation mode.

    Raises:
        RuntimeError: they do not.
    """
    found = []
    # Convolutions of cuDNN would compute in TF32.
    with torch.backends.cudnn.flags(enabled=False):
        for net in (ours, published):
            net.eval()
            with torch.no_grad():
                maps = [x.detach() for x in net(images)]
            traced = net(images)
            torch.autograd.backward(traced, [torch.linspace(-1, 1, x.numel()).to(x).view_as(x) for x in traced])
            gradients = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
            found.append([*maps, *(x.detach() for x in traced), torch.cat(gradients)])
            net.zero_grad()
    for index, (want, got) in enumerate(zip(*found, strict=True)):
        require_close("the published way", f"map or gradient {index}", got, want, torch.float32)


def _recipe(name: str, size: int | None) -> Recipe:
    if name not in RECIPES:
        raise unknown_name("family", name, RECIPES)
    multiple = RECIPES[name].multiple
    if size is not None and size % multiple:
        raise UserError(
            f"--size {size}: {name} as published runs at multiples of {multiple}; give one, or leave it out"
        )
    return RECIPES[name]


def _network(recipe: Recipe, size: int) -> Backbone:
    """Return a dense backbone for a size, with random weights that all change its maps."""
    torch.manual_seed(0)
    cls = backbone_class(recipe.arch)
    sized = cls.at_size(recipe.made_for or size)
    net = cls(recipe.arch, drop_path_rate=recipe.drop_path, **sized)
    for name, parameter in net.named_parameters():
        # At their initial values layer scales, biases and positions hardly change an output: the check would be blind.
        if parameter.dim() < 2 or "pos" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif "score_predictor" in name:
            # Their scores all but agree at first: which tokens are dropped would hang on rounding.
            nn.init.kaiming_normal_(parameter)
    return net
