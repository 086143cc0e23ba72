"""Pages of the recipes: the table in configs/README.md, a metafile for each family, and the zoo's links.

Nothing of it is typed: a recipe's docstring says what it is and what its authors print, see
``mixtransfer.engine.recipes``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import yaml

from mixtransfer.backbones import FAMILIES, FOREIGN, Backbone, backbone_class
from mixtransfer.backbones.reported import Reported
from mixtransfer.engine.recipes import CONFIGS, Recipe, find_config, list_recipes
from mixtransfer.errors import UserError

__all__ = ["by_family", "configs_page", "links", "metafiles"]

#: Task of a recipe -> OpenMMLab's name for it, and what its scores are called.
TASKS = {
    "classification": ("Image Classification", {"top-1": "Top 1 Accuracy"}),
    "segmentation": ("Semantic Segmentation", {"mIoU": "mIoU"}),
    "detection": ("Object Detection", {"box AP": "box AP", "mask AP": "mask AP"}),
}
#: Column of the zoo -> task of the recipes that give it, and the data that a source names it by.
COLUMNS = {"top1": "classification", "box_ap": "detection", "miou": "segmentation"}
SCORE = {"top1": "top-1", "box_ap": "AP", "miou": "mIoU"}
DATA = {"box_ap": "COCO", "miou": "ADE20K"}
HEADS = (
    "Cascade Mask R-CNN", "Mask R-CNN", "Faster R-CNN", "RetinaNet", "DETR", "UPerNet", "Semantic FPN", "Segmenter",
    "SegFormer's head", "Trans2Seg",
)  # fmt: skip
#: Folder -> what names of recipes in it begin with.
HEAD_NAMES = {
    "seg": ("upernet", "semantic_fpn", "segformer", "segmenter"),
    "det": ("mask_rcnn", "cascade_mask_rcnn", "faster_rcnn", "retinanet", "detr"),
}
#: Lengths of training that are the same on COCO, with 16 images a step.
SAME = {"36 epochs": "270k iterations", "12 epochs": "90k iterations"}
#: Words of a score's source -> why none of the recipes gives it.
WITHOUT = {
    "distilled": "distilled from a teacher, which no recipe is",
    "ImageNet-22k": "pre-trained on ImageNet-22k, which no recipe is",
    "ImageNet-21k": "pre-trained on ImageNet-21k, which no recipe is",
}
#: Family -> largest side in pixels that its recipe trains all sizes at, where that is not 224.
SIDES = {"pyramid_tnt": 256, "cmt": 256, "swin_mlp": 256}
DASH = "–"

INTRODUCTION = """\
# Recipes

Written by `python docs/make_zoo.py` from the recipes' docstrings; `--check` says whether it is up to date. Do not edit
it.

A recipe is named `HEAD_BACKBONE_METHOD_SCHEDULE.py`:

- `HEAD`: {seg} in `seg`, {det} in `det`, none in `pretrain`, where classifiers are trained on ImageNet-1k;
- `BACKBONE`: the family, as [the zoo](../docs/zoo.md) names it; the size is in the table, another one is
  `--arch NAME`, which takes the published values of that size where the recipe has them;
- `METHOD`: the data mixing of the pretraining and, with `tlalign` in `seg` and `det`, of the fine-tuning; or what is
  different in the network: `horfpn` (HorNet's neck and head), `vitdet` (a simple pyramid on a plain transformer),
  `token` (FAN with token labeling); none for the paper's own;
- `SCHEDULE`: `1x` and `3x` for 12 and 36 epochs on COCO, where a recipe of the other length is there too; `lsj` for
  large-scale jitter;
- ends such as `_camvid`, `_nuts` and `_scenes`: sets that need two CPU cores and minutes.

Files in [`_base_`](_base_) are what recipes share. `mixtransfer configs WORD` lists recipes in a terminal, and every
command takes the file or its name alone. How papers test, and the command for it: [protocols](../docs/protocols.md).

*Published* is what the authors print for this network and schedule; *(unconfirmed)* marks scores that we know from
others' tables or from memory only. {dash} stands for none: the recipe is ours then, or its authors print no score.
**We have reproduced none of them yet**; a reproduced one would say so in the last column.
"""


@cache
def by_family() -> dict[str, list[Recipe]]:
    """Return the recipes of each family of backbones, and of each library whose networks are wrapped."""
    found: dict[str, list[Recipe]] = {cls.family: [] for cls in (*FAMILIES, *FOREIGN)}
    for recipe in list_recipes():
        found[backbone_class(recipe.arch).family].append(recipe)
    return found


def path_of(recipe: Recipe) -> str:
    """Return a recipe's file relative to the configs."""
    return find_config(recipe.name).relative_to(CONFIGS).as_posix()


def configs_page() -> str:
    """Return configs/README.md."""
    listed = {folder: ", ".join(f"`{name}`" for name in names) for folder, names in HEAD_NAMES.items()}
    lines = [INTRODUCTION.format(dash=DASH, **listed)]
    for task in TASKS:
        lines += [
            f"## {task.capitalize()}",
            "",
            "| recipe | model | architecture | data | schedule | published | source | reproduced |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for recipe in (recipe for recipe in list_recipes() if recipe.task == task):
            doubt = "" if recipe.confirmed or not recipe.published else " (unconfirmed)"
            cells = [
                f"[{recipe.name}]({path_of(recipe)})",
                recipe.model or recipe.title,
                recipe.arch,
                recipe.data or DASH,
            ]
            cells += [recipe.schedule, (recipe.published or DASH) + doubt, recipe.source if recipe.published else DASH]
            lines.append(f"| {' | '.join([*cells, 'yes' if recipe.reproduced else 'no'])} |")
        lines.append("")
    return "\n".join(lines)


def metafiles(complexity: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the text of ``model-index.yml`` and of each family's metafile, by path relative to the checkout.

    Args:
        complexity: the counts in zoo.json.
    """
    texts = {}
    for cls in (*FAMILIES, *FOREIGN):
        recipes = by_family()[cls.family]
        if not recipes:
            continue
        content = {
            "Collections": [{"Name": cls.family, "Code": {"URL": f"{cls.__module__.replace('.', '/')}.py"}}],
            "Models": [_model(recipe, cls, complexity) for recipe in recipes],
        }
        texts[f"configs/metafiles/{cls.family}.yml"] = _dumped(content)
    return {**texts, "model-index.yml": _dumped({"Import": list(texts)})}


def _model(recipe: Recipe, cls: type[Backbone], complexity: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    task, names = TASKS[recipe.task]
    about: dict[str, Any] = {"Training Data": recipe.data or recipe.title, "Schedule": recipe.schedule}
    if recipe.task == "classification" and recipe.arch in complexity:
        count = complexity[recipe.arch]
        about |= {"Parameters": count["parameters"], "FLOPs": count["macs"]}
    model: dict[str, Any] = {
        "Name": recipe.name,
        "In Collection": cls.family,
        "Config": f"configs/{path_of(recipe)}",
        "Metadata": about,
    }
    if recipe.published:
        about |= {"Scores": "published", "Source": recipe.source, "Reproduced": recipe.reproduced}
        metrics = {names[key]: value for key, value in recipe.scores.items() if key in names}
        model["Results"] = [{"Task": task, "Dataset": recipe.data, "Metrics": metrics}]
    return model


def _dumped(content: Any) -> str:
    head = "# Written by docs/make_zoo.py. Scores are those that the authors print.\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def links(cls: type[Backbone], recipes: Sequence[Recipe]) -> dict[str, tuple[str, list[str]]]:
    """Return, for each variant of a family with scores, the links to the recipes that give them, and why one does not.

    A recipe gives a score if it has the task, the head and the length that the score's source names. Another size of
    the same recipe is an option of the command.

    Raises:
        UserError: a score's source does not say by which head it was reached.
    """
    found = {}
    for arch, row in cls.reported.items():
        shown, reasons = [], []
        for column, task in COLUMNS.items():
            if getattr(row, column) is None:
                continue
            choices = [recipe for recipe in recipes if recipe.task == task]
            giving = _giving(cls, arch, row, column, choices)
            if isinstance(giving, str):
                reasons.append(f"{SCORE[column]}: {giving}")
            else:
                shown.append(f"[{SCORE[column]}](../configs/{path_of(giving)})")
        found[arch] = (", ".join(shown) or DASH, reasons)
    return found


def _giving(cls: type[Backbone], arch: str, row: Reported, column: str, choices: Sequence[Recipe]) -> Recipe | str:
    """Return the recipe that gives a score, or why none does."""
    sources = "; ".join(row.sources)
    if column == "top1":
        return _classifier(cls, arch, sources, choices)
    named = re.search(rf"{DATA[column]}(?:, |: )([^;)]*)", sources)
    head = next((head for head in HEADS if named and named[1].startswith(head)), None)
    if named is None or head is None:
        raise UserError(f"{arch}: the source of its {SCORE[column]} names no head; say '{DATA[column]}: HEAD, LENGTH'")
    length = re.search(r"\d+k? (?:epochs|iterations)", named[1])
    fitting = [r for r in choices if r.model.startswith(f"{head},") and "pretrained with" not in r.model]
    if not fitting:
        return f"{head}, of which there is no recipe"
    same = [r for r in fitting if length is None or r.schedule in (length[0], SAME.get(length[0]))]
    if not same:
        return f"{head} after {length and length[0]}; the recipe trains for {fitting[0].schedule}"
    if "pre-trained on ImageNet-22k" in sources:
        return WITHOUT["ImageNet-22k"]
    key = {"box_ap": "box AP", "miou": "mIoU"}[column]
    own = [recipe for recipe in same if recipe.arch == arch]
    # A recipe of this network with another score is another protocol.
    agreeing = [recipe for recipe in own if recipe.scores.get(key, getattr(row, column)) == getattr(row, column)]
    found = agreeing or [recipe for recipe in same if recipe.arch != arch]
    return found[0] if found else f"the recipe's source ({own[0].source}) prints {own[0].scores[key]}"


def _classifier(cls: type[Backbone], arch: str, sources: str, choices: Sequence[Recipe]) -> Recipe | str:
    for word, why in WITHOUT.items():
        if word in sources and "dense ones" not in sources:
            return why
    whole = [recipe for recipe in choices if path_of(recipe).startswith("pretrain/")]
    own = [recipe for recipe in whole if recipe.arch == arch]
    if arch.endswith("_token"):
        return next((recipe for recipe in choices if "student" in recipe.title), "no recipe has a token labeler")
    plain = [recipe for recipe in [*own, *whole] if not re.search(r" with | student | labeler", recipe.title)]
    side = getattr(cls.archs[arch], "img_size", None)
    if not own and side and side > SIDES.get(cls.family, 224):
        sized = [recipe for recipe in choices if f"{side} pixels" in recipe.title]
        return sized[0] if sized else f"at {side} pixels, of which there is no recipe"
    return plain[0]
