"""The comparisons of ``benchmark speed``; each case checks that contestants compute the same before they are timed."""

from __future__ import annotations

import contextlib
import copy
import importlib
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mmcv.transforms import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.structures import PixelData
from PIL import Image
from pycocotools import mask as run_lengths
from torch import Tensor, nn

from benchmarks.families import families
from benchmarks.reference import PublishedTracing
from benchmarks.speed import Comparison
from benchmarks.steps import Options, evaluation_step, require_close, set_mode, training_step
from mixtransfer.backbones import SwinTransformer
from mixtransfer.checkpoints.rename import convert_state_dict
from mixtransfer.compat.ops import regions
from mixtransfer.datasets.resizing import resize_quickly
from mixtransfer.engine.config import read_config
from mixtransfer.errors import UserError
from mixtransfer.pretrain.classifier import MixingClassifier

__all__ = ["Options", "coco", "families", "loader", "mask_rcnn", "optimizer", "swin", "tlalign", "upernet"]

DROP_PATH_RATES = (0.0, 0.3)
#: The same segmentor by us and by mmseg, from the root of the checkout and in the installed mmseg.
OUR_UPERNET = "configs/seg/upernet_swin.py"
MMSEG_UPERNET = ".mim/configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
#: The same detector by us and by mmdet.
OUR_MASK_RCNN = "configs/det/mask_rcnn_swin.py"
MMDET_MASK_RCNN = ".mim/configs/swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"


def swin(options: Options, arch: str = "swin_tiny") -> Iterator[Comparison]:
    """Our Swin against mmseg's, mmdet's and timm's as dense backbones, in evaluation and in training."""
    for batch, size in options.shapes((1, 512), (2, 224)):
        images = torch.randn(batch, 3, size, size, device=options.device)
        for rate in DROP_PATH_RATES:
            nets = {name: net.to(options.device) for name, net in swin_networks(arch, size, rate).items()}
            if rate == 0:
                # timm rolls before it pads: where windows do not divide the maps of all stages, its maps are others.
                window = SwinTransformer.archs[arch].window
                others = {"timm"} if size % (32 * window) else set()
                require_equal({name: net for name, net in nets.items() if name not in others}, images)
            title = f"{arch}, {batch} × {size}²"
            calls = {name: options.compiled(net) for name, net in nets.items()}
            if rate == 0:
                set_mode(nets, training=False)
                steps = {name: evaluation_step(call, images, options) for name, call in calls.items()}
                yield Comparison(f"{title}, evaluation", steps, options.max_ratio(mmseg=0.67))
            set_mode(nets, training=True)
            steps = {name: training_step(net, calls[name], images, options) for name, net in nets.items()}
            yield Comparison(f"{title}, training, drop path {rate:g}", steps, options.max_ratio(mmseg=0.79))


def tlalign(options: Options, arch: str = "deit_small") -> Iterator[Comparison]:
    """A training step with TL-Align against plain CutMix and against the published way of tracing labels."""
    for batch, size in options.shapes((8, 224)):
        nets = {name: net.to(options.device) for name, net in tlalign_networks(arch, size).items()}
        images = torch.randn(batch, 3, size, size, device=options.device)
        labels = torch.randint(1000, (batch,), device=options.device)

        if options.compile:
            # Block by block: drawing and mixing is plain Python and stays outside the graphs.
            for net in nets.values():
                for block in net.backbone.blocks:
                    block.compile()
        steps = {name: _classification(net, images, labels, options) for name, net in nets.items()}
        losses = {name: step() for name, step in steps.items()}
        require_close("published tracing", "loss", losses["published tracing"], losses["ours, TL-Align"], options.dtype)
        max_ratio = options.max_ratio(**{"plain CutMix": 1.05})
        yield Comparison(f"{arch}, {batch} × {size}², training", steps, max_ratio)


def optimizer(options: Options, arch: str = "swin_tiny") -> Iterator[Comparison]:
    """The step of merged groups with the fused AdamW against that of mmengine's group for each parameter."""
    if options.size or options.batch or options.compile or options.dtype != torch.float32:
        raise UserError("case optimizer: --size, --batch, --dtype and --compile have no effect on it; leave them out")
    no_decay = {name: {"decay_mult": 0.0} for name in ("absolute_pos_embed", "relative_position_bias_table", "norm")}
    recipes = {
        "ours, merged and fused": {"constructor": "mixtransfer.TransferOptimWrapperConstructor"},
        "mmengine, a group a parameter": {"paramwise_cfg": {"custom_keys": no_decay}},
    }
    models, steps = {}, {}
    for name, recipe in recipes.items():
        torch.manual_seed(0)
        model = models[name] = nn.Module()
        model.backbone = SwinTransformer(arch).to(options.device)
        wrapper = build_optim_wrapper(
            model, {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 6e-5, "weight_decay": 0.01}, **recipe}
        )
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        steps[name] = wrapper.optimizer.step
    for step in steps.values():
        step()
    ours, theirs = models.values()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        require_close("mmengine", name, b.detach(), a.detach(), options.dtype)
    yield Comparison(f"{arch}, optimizer step", steps, options.max_ratio())


def coco(options: Options, images: int = 300, found: int = 100) -> Iterator[Comparison]:
    """COCO's metric of boxes and masks, ours in memory and mmdet's through JSON and pycocotools."""
    from mmdet.evaluation import CocoMetric

    from mixtransfer.evaluation.metrics import ClassAP

    if options != Options(device=options.device):
        raise UserError("case coco: --size, --batch, --dtype and --compile have no effect on it; leave them out")
    truth, results = random_detections(images, found)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "truth.json")
        file.write_text(json.dumps(truth), encoding="utf-8")
        for kinds in (["bbox"], ["bbox", "segm"]):
            steps = {}
            for name, cls in (("ours", ClassAP), ("mmdet", CocoMetric)):
                with contextlib.redirect_stdout(None):
                    metric = cls(str(file), metric=kinds)
                metric.dataset_meta = {"classes": [category["name"] for category in truth["categories"]]}
                steps[name] = _quietly(metric, results)
            found_by = [step() for step in steps.values()]
            if found_by[0] != found_by[1]:
                raise RuntimeError(f"mmdet's numbers are others: {found_by}")
            yield Comparison(f"COCO, {images} images of {found} detections, {' and '.join(kinds)}", steps)


def _quietly(metric: Any, results: list[Any]) -> Callable[[], dict[str, float]]:
    def step() -> dict[str, float]:
        with contextlib.redirect_stdout(None):
            return metric.compute_metrics(copy.deepcopy(results))

    return step


def random_detections(images: int, found: int, objects: int = 7, side: int = 200) -> tuple[dict[str, Any], list[Any]]:
    """Return the content of a COCO file with 80 classes, and results near its objects as mmdet's metric keeps them."""
    rng = np.random.default_rng(0)

    def ellipses(boxes: np.ndarray) -> list[dict[str, Any]]:
        rows, columns = np.ogrid[:side, :side]
        shapes = [
            ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1 for x, y, w, h in boxes
        ]
        packed = run_lengths.encode(np.asfortranarray(np.stack(shapes, axis=2).astype(np.uint8)))
        return [{"size": item["size"], "counts": item["counts"].decode()} for item in packed]

    annotations, results = [], []
    for image in range(images):
        sides = rng.uniform(8, 90, (objects, 2))
        real = np.concatenate([rng.uniform(0, side - sides), sides], axis=1)
        classes = rng.integers(80, size=objects)
        for box, label, mask in zip(real.tolist(), classes.tolist(), ellipses(real), strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": label, "bbox": box, "iscrowd": 0}
                | {"area": float(run_lengths.area(mask)), "segmentation": mask}
            )
        near = rng.integers(objects, size=found)
        boxes = real[near] + rng.normal(0, 4, (found, 4))
        boxes[:, 2:] = boxes[:, 2:].clip(min=2)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)
        scores = rng.random(found).astype(np.float32)
        answer = {"img_id": image, "bboxes": corners, "scores": scores, "labels": classes[near]}
        results.append(({"img_id": image, "width": side, "height": side}, {**answer, "masks": ellipses(boxes)}))
    listed = [{"id": image, "width": side, "height": side} for image in range(images)]
    names = [{"id": label, "name": f"class {label}"} for label in range(80)]
    return {"images": listed, "categories": names, "annotations": annotations}, results


def loader(options: Options, recipe: str = "configs/pretrain/deit.py") -> Iterator[Comparison]:
    """A classifier's training sample from a JPEG of 640 × 480, as we load it and as the recipe's transforms do."""
    if options != Options(device=options.device):
        raise UserError("case loader: --size, --batch, --dtype and --compile have no effect on it; leave them out")
    cfgs = {name: read_config(Path(__file__).parents[1] / recipe) for name in ("ours", "mmpretrain")}
    resize_quickly(cfgs["ours"])
    with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope("mmpretrain"):
        file = Path(folder, "photograph.jpg")
        rows, columns = np.mgrid[:480, :640]
        waves = [127 + 90 * np.sin(rows / a + columns / b) for a, b in ((40, 70), (23, 90), (61, 37))]
        grain = np.random.default_rng(0).normal(0, 4, (480, 640, 3))
        Image.fromarray((np.stack(waves, axis=2) + grain).clip(0, 255).astype(np.uint8)).save(file, quality=95)
        steps = {}
        for name, cfg in cfgs.items():
            pipeline = Compose([TRANSFORMS.build(step) for step in cfg.train_dataloader.dataset.pipeline])
            steps[name] = _sample(pipeline, str(file))
        yield Comparison(f"{Path(recipe).stem}, a training sample of 640 × 480", steps)


def _sample(pipeline: Callable[[dict], dict], file: str) -> Callable[[], dict]:
    """Return a step that loads samples with other draws each time, the same ones in every contestant's turn."""
    draws = itertools.count()

    def step() -> dict:
        np.random.seed(next(draws))
        return pipeline({"img_path": file, "gt_label": 0, "sample_idx": 0})

    return step


def upernet(options: Options, arch: str = "swin_tiny") -> Iterator[Comparison]:
    """Our UPerNet against mmseg's: its head alone, a training step with the optimizer's, and the test of an image."""
    from mmseg.structures import SegDataSample

    nets, wrappers = upernet_networks(arch)
    _compile_backbones(nets, options)
    set_mode({name: net.to(options.device) for name, net in nets.items()}, training=True)
    for net in nets.values():
        # A norm of one value a channel refuses to train with one image.
        net.decode_head.psp_modules[0].eval()
    for batch, size in options.shapes((1, 512), (2, 256)):
        images = torch.randn(batch, 3, size, size, device=options.device)
        truth = torch.randint(150, (batch, 1, size, size), device=options.device)
        samples = [SegDataSample(gt_sem_seg=PixelData(data=classes)) for classes in truth]
        steps = {name: _segmentation(net, wrappers[name], images, samples, options) for name, net in nets.items()}
        losses = {}
        for name, step in steps.items():
            torch.manual_seed(0)
            losses[name] = step()
        require_close("mmseg", "loss", losses["mmseg"], losses["ours"], options.dtype)
        title = f"UPerNet {arch}, {batch} × {size}²"
        yield Comparison(f"{title}, training step", steps, options.max_ratio(mmseg=0.70))

        with torch.no_grad():
            maps = [x.requires_grad_() for x in nets["mmseg"].backbone(images)]
        heads = {name: net.decode_head for name, net in nets.items()}
        calls = {name: lambda x, head=head: (head(x),) for name, head in heads.items()}
        steps = {name: training_step(head, calls[name], maps, options) for name, head in heads.items()}
        yield Comparison(f"{title}, head, forward and backward", steps)
    set_mode(nets, training=False)
    for size in dict.fromkeys(size for _, size in options.shapes((1, 512))):
        images = torch.randn(1, 3, size, size, device=options.device)
        about = {key: (size, size) for key in ("img_shape", "ori_shape", "pad_shape")}
        calls = {name: _classes_of(net, about) for name, net in nets.items()}
        with torch.no_grad():
            maps = [call(images) for call in calls.values()]
        # Random weights leave pixels between two classes; norms have counted the steps above, in their precision.
        allowed = 1e-3 if options.dtype == torch.float32 else 5e-2
        if torch.ne(*maps).float().mean() > allowed:
            raise RuntimeError("mmseg answers with other classes")
        steps = {name: evaluation_step(call, images, options) for name, call in calls.items()}
        yield Comparison(f"UPerNet {arch}, 1 × {size}², test", steps, options.max_ratio(mmseg=0.70))


def mask_rcnn(options: Options, arch: str = "swin_tiny") -> Iterator[Comparison]:
    """Our Mask R-CNN against mmdet's: a training step with the optimizer's, on 5 and on 30 objects.

    Both draw the same samples of proposals in every step. mmdet's pools regions by torchvision's kernel, which computes
    what mmcv's compiled one does.
    """
    from mmdet.testing import demo_mm_inputs

    nets, wrappers = mask_rcnn_networks(arch)
    _compile_backbones(nets, options)
    set_mode({name: net.to(options.device) for name, net in nets.items()}, training=True)
    batch = options.batch or 1
    height, width = (options.size, options.size) if options.size else (480, 640)
    images = torch.randn(batch, 3, height, width, device=options.device)
    for count in (5, 30):
        found = demo_mm_inputs(batch, (3, height, width), [count] * batch, 80, with_mask=True)["data_samples"]
        samples = [sample.to(options.device) for sample in found]
        for sample in samples:
            sample.set_metainfo({"batch_input_shape": (height, width), "pad_shape": (height, width)})
        steps = {name: _detection(net, wrappers[name], images, samples, options) for name, net in nets.items()}
        steps["mmdet"] = _with_kernels(steps["mmdet"])
        losses = {name: step() for name, step in steps.items()}
        require_close("mmdet", "loss", losses["mmdet"], losses["ours"], options.dtype)
        title = f"Mask R-CNN {arch}, {batch} × {height}×{width}, {count} objects, training step"
        yield Comparison(title, steps, options.max_ratio(mmdet=0.80))


class TimmMaps(nn.Module):
    """timm's Swin as a dense backbone: its maps with a norm each, channels first, as the others return them."""

    def __init__(self, arch: str, size: int, drop_path_rate: float):
        super().__init__()
        spec = SwinTransformer.archs[arch]
        self.net = timm.create_model(
            "swin_tiny_patch4_window7_224",
            features_only=True,
            img_size=size,
            strict_img_size=False,
            always_partition=True,
            embed_dim=spec.channels,
            depths=spec.depths,
            num_heads=spec.heads,
            window_size=spec.window,
            drop_path_rate=drop_path_rate,
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.net.feature_info.channels())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps (B, C_i, H_i, W_i)."""
        maps = zip(self.norms, self.net(images), strict=True)
        return tuple(norm(x).permute(0, 3, 1, 2).contiguous() for norm, x in maps)

    def load(self, state: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        """Load entries under timm's names, and those of the norms ``norm0`` … ``norm3``."""
        # features_only renames layers.0 to layers_0.
        self.net.load_state_dict({key.replace("layers.", "layers_", 1): value for key, value in state.items()})
        self.norms.load_state_dict({key.removeprefix("norm"): value for key, value in norms.items()})


def swin_networks(arch: str, size: int, drop_path_rate: float) -> dict[str, nn.Module]:
    """Return our Swin, mmseg's, mmdet's and timm's with the same random weights."""
    from mmdet.models.backbones import SwinTransformer as MMDetSwin
    from mmseg.models.backbones import SwinTransformer as MMSegSwin

    torch.manual_seed(0)
    ours = SwinTransformer(arch, drop_path_rate=drop_path_rate)
    for name, parameter in ours.named_parameters():
        # At their initial values these hardly change an output, and the check would not see them.
        if name.endswith(("relative_position_bias_table", "norm.bias")):
            nn.init.normal_(parameter)
    state, spec = ours.state_dict(), ours.archs[arch]
    nets: dict[str, nn.Module] = {"ours": ours}
    for name, cls in (("mmseg", MMSegSwin), ("mmdet", MMDetSwin)):
        nets[name] = cls(
            embed_dims=spec.channels,
            depths=spec.depths,
            num_heads=spec.heads,
            window_size=spec.window,
            drop_path_rate=drop_path_rate,
        )
        load_converted(nets[name], state, arch, name)
    nets["timm"] = TimmMaps(arch, size, drop_path_rate)
    norms = {key: value for key, value in state.items() if key.startswith("norm")}
    nets["timm"].load(convert_state_dict(state, arch, source="mixtransfer", target="timm"), norms)
    return nets


def load_converted(net: nn.Module, state: Mapping[str, Tensor], arch: str, library: str) -> None:
    """Load our Swin's weights into a library's, whose index tables stay its own."""
    theirs = convert_state_dict(state, arch, source="mixtransfer", target=library)
    index = {key: value for key, value in net.state_dict().items() if key.endswith("relative_position_index")}
    net.load_state_dict({**theirs, **index})


def upernet_networks(arch: str) -> tuple[dict[str, nn.Module], dict[str, OptimWrapper]]:
    """Return our segmentor and mmseg's with the same random weights, and their optimizers at a learning rate of 0."""
    nets, wrappers = _models("mmseg", arch, OUR_UPERNET, MMSEG_UPERNET)
    ours, theirs = nets.values()
    for part in ("decode_head", "auxiliary_head"):
        getattr(theirs, part).load_state_dict(getattr(ours, part).state_dict())
    return nets, wrappers


def mask_rcnn_networks(arch: str) -> tuple[dict[str, nn.Module], dict[str, OptimWrapper]]:
    """Return our detector and mmdet's with the same random weights, and their optimizers at a learning rate of 0."""
    nets, wrappers = _models("mmdet", arch, OUR_MASK_RCNN, MMDET_MASK_RCNN)
    ours, theirs = nets.values()
    for part in ("neck", "rpn_head", "roi_head"):
        getattr(theirs, part).load_state_dict(getattr(ours, part).state_dict())
    return nets, wrappers


def _compile_backbones(nets: Mapping[str, nn.Module], options: Options) -> None:
    """Compile what ``train --compile`` compiles of a segmentor or a detector."""
    for net in nets.values() if options.compile else ():
        net.backbone.compile()


def _models(
    library: str, arch: str, our_file: str, their_file: str
) -> tuple[dict[str, nn.Module], dict[str, OptimWrapper]]:
    """Return both models without stochastic depth, their backbones with the same weights, and their optimizers."""
    spec, nets, wrappers = SwinTransformer.archs[arch], {}, {}
    channels = [spec.channels * 2**stage for stage in range(4)]
    sizes = {
        "ours": {"arch": arch},
        library: {
            "embed_dims": spec.channels,
            "depths": spec.depths,
            "num_heads": spec.heads,
            "window_size": spec.window,
        },
    }
    root = Path(str(importlib.import_module(library).__file__)).parent
    for name, file in {"ours": Path(__file__).parents[1] / our_file, library: root / their_file}.items():
        torch.manual_seed(0)
        cfg = read_config(file)
        cfg.model.backbone.update(sizes[name], drop_path_rate=0.0, init_cfg=None)
        if library == "mmseg":
            cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels = channels, channels[2]
        else:
            cfg.model.neck.in_channels = channels
        cfg.optim_wrapper.optimizer.lr = 0.0
        with DefaultScope.overwrite_default_scope(library):
            nets[name] = revert_sync_batchnorm(importlib.import_module(f"{library}.registry").MODELS.build(cfg.model))
            wrappers[name] = build_optim_wrapper(nets[name], cfg.optim_wrapper)
    load_converted(nets[library].backbone, nets["ours"].backbone.state_dict(), arch, library)
    return nets, wrappers


def tlalign_networks(arch: str, size: int) -> dict[str, MixingClassifier]:
    """Return the three classifiers with the same weights and the same draws."""
    plain = {"type": "Mixing", "region": {"type": "TokenBox"}, "target": {"type": "Area"}}
    settings = {"backbone": {"img_size": size}}
    nets = {
        "ours, TL-Align": MixingClassifier(arch, mixing={"type": "TLAlign"}, **settings),
        "plain CutMix": MixingClassifier(arch, mixing=plain, **settings),
        "published tracing": PublishedTracing(arch, **settings),
    }
    state = nets["ours, TL-Align"].state_dict()
    for net in nets.values():
        net.load_state_dict(state)
        net.train()
    return nets


def require_equal(nets: Mapping[str, nn.Module], images: Tensor) -> None:
    """Stop unless all networks return the first one's maps, with and without gradient, and get its gradient.

    Raises:
        RuntimeError: one of them computes something else.
    """
    set_mode(nets, training=False)
    expected = None
    for name, net in nets.items():
        with torch.no_grad():
            evaluated = net(images)
        maps = net(images)
        torch.autograd.backward(maps, [torch.linspace(-1, 1, x.numel(), device=x.device).view_as(x) for x in maps])
        kernel = next(parameter for parameter in net.parameters() if parameter.dim() == 4)
        found = {f"map {i}": x for i, x in enumerate(evaluated)}
        found |= {f"map {i} of training": x.detach() for i, x in enumerate(maps)}
        found["the gradient of the patch embedding"] = kernel.grad
        net.zero_grad()
        expected = expected or found
        for what, value in found.items():
            require_close(name, what, value, expected[what], torch.float32)


def _classification(net: MixingClassifier, images: Tensor, labels: Tensor, options: Options) -> Callable[[], Tensor]:
    def step() -> Tensor:
        net.zero_grad()
        with options.autocast():
            value = net.loss(images, labels)["loss"]
        value.backward()
        return value.detach()

    return step


def _classes_of(net: nn.Module, about: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Return a call that tests an image and returns its classes (1, H, W)."""
    from mmseg.structures import SegDataSample

    return lambda images: net.predict(images, [SegDataSample(metainfo=about)])[0].pred_sem_seg.data


def _detection(
    net: nn.Module, wrapper: OptimWrapper, images: Tensor, samples: list[Any], options: Options
) -> Callable[[], Tensor]:
    step = _segmentation(net, wrapper, images, samples, options)

    def seeded() -> Tensor:
        torch.manual_seed(0)
        return step()

    return seeded


def _with_kernels(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a step in which regions are pooled by torchvision's kernels."""

    def run() -> Tensor:
        few, regions.FEW_CHANNELS = regions.FEW_CHANNELS, sys.maxsize
        try:
            return step()
        finally:
            regions.FEW_CHANNELS = few

    return run


def _segmentation(
    net: nn.Module, wrapper: OptimWrapper, images: Tensor, samples: list[Any], options: Options
) -> Callable[[], Tensor]:
    def step() -> Tensor:
        with options.autocast():
            value, _ = net.parse_losses(net.loss(images, samples))
        wrapper.update_params(value)
        return value.detach()

    return step
