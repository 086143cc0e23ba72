"""Parameters and multiply-accumulates of a whole segmentor, detector or classifier, as papers print them, part by part.

Papers count mmseg's and mmdet's networks on an image of a fixed size with mmcv's ``get_flops``: segmentors without the
auxiliary head, detectors with two stages on 1000 regions, 100 of which have masks (``forward_dummy`` of mmdet 2). So
does this. Maps have a shape and no values, so that the largest networks take seconds: an operation on what follows from
the image is not computed; tables that follow from sizes alone are, and are kept as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mixtransfer.backbones import backbone_class
from mixtransfer.engine.config import task_of
from mixtransfer.engine.recipes import Recipe
from mixtransfer.errors import UserError
from mixtransfer.evaluation.complexity import DEFAULT_SIZE, counted
from mixtransfer.registry import import_quietly

__all__ = ["SIZES", "ModelComplexity", "Part", "as_dict", "model_complexity", "published_size", "table"]

#: Task -> height and width in pixels at which papers count.
SIZES = {"seg": (512, 2048), "det": (800, 1280)}
#: Regions of the heads of a detector with two stages: those that boxes are found in, and those that have masks.
BOXES, MASKS = 1000, 100
#: Heads of ours -> those that papers count, which compute the same with more multiplications.
COUNTED = {"mixtransfer.UPerHead": "mmseg.UPerHead"}


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        name: its attribute in the model, such as ``backbone``.
        parameters: number of parameters.
        macs: multiply-accumulates of convolutions and matrix products for one image, as papers count.
        macs_here: those that are computed here; fewer where a head of ours saves some.
    """

    name: str
    parameters: int
    macs: int
    macs_here: int


@dataclass(frozen=True)
class ModelComplexity:
    """The cost of one image.

    Attributes:
        config: the config's file.
        size: (H, W) of the image in pixels.
        parts: in the order of the computation.
        published: what authors print: ``parameters`` in millions, ``MACs`` in units of 10⁹.
        source: where they print it.
    """

    config: str
    size: tuple[int, int]
    parts: tuple[Part, ...]
    published: Mapping[str, float]
    source: str

    @property
    def total(self) -> Part:
        """The whole model."""
        sums = (sum(getattr(part, key) for part in self.parts) for key in ("parameters", "macs", "macs_here"))
        return Part("total", *sums)


def model_complexity(
    cfg: Config, name: str, recipe: Recipe | None = None, size: tuple[int, int] | None = None
) -> ModelComplexity:
    """Count the model of a config that is prepared for ``"predict"``.

    Args:
        cfg: the config.
        name: its file, for the table.
        recipe: what is published of it.
        size: (H, W) in pixels; by default what papers count at.

    Raises:
        UserError: a detector that has none of the known forms, or a size that the network does not take.
    """
    task = task_of(cfg)
    size = size or published_size(cfg)
    here = _macs(_built(cfg.model, cfg), task, size)
    model = _built(_as_counted(cfg.model), cfg)
    macs = _macs(model, task, size)
    parts = []
    for key, child in model.named_children():
        count = sum(parameter.numel() for parameter in child.parameters())
        if count or key in macs:
            parts.append(Part(key, count, macs.get(key, 0), here.get(key, 0)))
    own = sum(parameter.numel() for parameter in model.parameters(recurse=False))
    if own:
        parts.append(Part("own", own, 0, 0))
    costs = recipe.costs if recipe else {}
    return ModelComplexity(name, size, tuple(parts), costs, recipe.source if recipe and costs else "")


def published_size(cfg: Config) -> tuple[int, int]:
    """Return (H, W) in pixels at which papers count the model of a config."""
    if task_of(cfg) in SIZES:
        return SIZES[task_of(cfg)]
    named = cfg.model if "arch" in cfg.model else cfg.model.backbone
    size = named.get("img_size") or cfg.model.get("backbone", {}).get("img_size")
    spec = backbone_class(named.arch).archs[named.arch]
    return (size or getattr(spec, "img_size", DEFAULT_SIZE),) * 2


def _as_counted(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {key: COUNTED.get(v, v) if key == "type" else _as_counted(v) for key, v in part.items()}
    return [_as_counted(item) for item in part] if isinstance(part, list) else part


def _built(settings: Mapping, cfg: Config) -> Any:
    """Build a model for evaluation, with random weights."""
    import_quietly(f"{cfg.default_scope}.models")
    init_default_scope(cfg.default_scope)
    preprocessor = {"data_preprocessor": cfg.data_preprocessor} if "data_preprocessor" in cfg else {}
    model = MODELS.build(ConfigDict({**preprocessor, **settings, "_scope_": cfg.default_scope}))
    return model.eval().requires_grad_(False)


def _macs(model: Any, task: str, size: tuple[int, int]) -> dict[str, int]:
    """Return the multiply-accumulates of each part that takes part in a test."""
    found: dict[str, int] = {}

    def count(name: str, call: Callable[[], Any]) -> Any:
        answer, operations = counted(call)
        found[name] = found.get(name, 0) + operations // 2
        return answer

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad():
        image = fake.from_tensor(torch.zeros(1, 3, *size))
        if task == "cls":
            count("backbone", lambda: model(image))
            return found
        maps = count("backbone", lambda: model.backbone(image))
        if model.with_neck:
            maps = count("neck", lambda: model.neck(maps))
        if task == "seg":
            heads = model.decode_head
            for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
                count("decode_head", lambda head=head: head(maps))
        elif hasattr(model, "roi_head"):
            count("rpn_head", lambda: model.rpn_head(maps))
            for call in _regions(model.roi_head, fake):
                count("roi_head", call)
        elif hasattr(model, "bbox_head") and not hasattr(model, "encoder"):
            count("bbox_head", lambda: model.bbox_head(maps))
        else:
            raise UserError(
                f"{type(model).__name__}: only detectors with one or two stages are counted; no transformer"
            )
    return found


def _regions(head: Any, fake: FakeTensorMode) -> Iterable[Callable[[], Any]]:
    """Yield what the heads of regions compute; all stages of a cascade see all regions."""
    listed = lambda part: list(part) if isinstance(part, nn.ModuleList) else [part]  # noqa: E731

    def pooled(extractor: Any, regions: int) -> Tensor:
        return fake.from_tensor(torch.zeros(regions, extractor.out_channels, *extractor.roi_layers[0].output_size))

    for box_head in listed(head.bbox_head):
        yield lambda h=box_head: h(pooled(listed(head.bbox_roi_extractor)[0], BOXES))
    if head.with_mask:
        extractor = head.bbox_roi_extractor if head.share_roi_extractor else head.mask_roi_extractor
        for mask_head in listed(head.mask_head):
            yield lambda h=mask_head: h(pooled(listed(extractor)[0], MASKS))


def as_dict(row: ModelComplexity) -> dict[str, Any]:
    """Return everything as plain data for JSON."""
    return {**asdict(row), "total": asdict(row.total)}


def table(rows: Sequence[ModelComplexity]) -> str:
    """Return a Markdown table: a row for each model, and one for each of its parts."""
    saves = any(row.total.macs != row.total.macs_here for row in rows)
    names = ["model", "size", "parameters, M", "published", "MACs, G", "published", *["here, G"] * saves]
    lines = [f"| {' | '.join(names)} |", "|---|---|" + "---:|" * (len(names) - 2)]
    for row in rows:
        size = f"{row.size[0]} × {row.size[1]}"
        for part in (row.total, *row.parts):
            whole = part.name == "total"
            printed = row.published if whole else {}
            cells = [row.config if whole else f"· {part.name}", size if whole else ""]
            cells += [f"{part.parameters / 1e6:.2f}", _printed(printed.get("parameters"))]
            cells += [f"{part.macs / 1e9:.1f}", _printed(printed.get("MACs"))]
            cells += [f"{part.macs_here / 1e9:.1f}"] * saves
            lines.append(f"| {' | '.join(cells)} |")
    sources = [f"{row.config}: {row.source}" for row in rows if row.source]
    return "\n".join([*lines, *(["", "Published: " + "; ".join(sources) + "."] if sources else [])])


def _printed(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
