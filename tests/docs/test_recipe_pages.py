"""Pages of the recipes: each is in the index once, and each score of the zoo has a recipe or a reason."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import modelindex
import pytest
import recipe_pages as pages

from mixtransfer.backbones import FAMILIES
from mixtransfer.backbones.swin import SwinTransformer
from mixtransfer.engine.recipes import list_recipes
from mixtransfer.errors import UserError

ROOT = Path(__file__).parents[2]


def test_the_index_is_valid_and_has_every_recipe_once(monkeypatch):
    monkeypatch.chdir(ROOT)
    index = modelindex.load("model-index.yml")
    assert index.check(silent=True) == []
    index.build_models_with_collections()
    names = [model.name for model in index.models]
    assert sorted(names) == sorted(recipe.name for recipe in list_recipes())
    assert [model.config for model in index.models if not (ROOT / model.config).is_file()] == []
    assert {model.in_collection for model in index.models} == {*(cls.family for cls in FAMILIES), "timm"}
    (model,) = (model for model in index.models if model.name == "mask_rcnn_swin")
    assert model.metadata.data["Reproduced"] is False
    assert model.results[0].metrics == {"box AP": 43.7, "mask AP": 39.8}


def test_the_table_links_every_recipe():
    text = (ROOT / "configs/README.md").read_text(encoding="utf-8")
    links = re.findall(r"^\| \[(\w+)\]\(([\w/]+\.py)\)", text, re.MULTILINE)
    assert {name for name, _ in links} == {recipe.name for recipe in list_recipes()}
    assert all((ROOT / "configs" / path).is_file() for _, path in links)


@pytest.mark.parametrize("folder", pages.HEAD_NAMES)
def test_names_begin_as_the_grammar_says(folder):
    heads = {name: False for name in pages.HEAD_NAMES[folder]}
    for path in (ROOT / "configs" / folder).glob("*.py"):
        named = [head for head in heads if path.stem.startswith(f"{head}_")]
        assert len(named) == 1, path
        heads[named[0]] = True
    assert all(heads.values())


@pytest.mark.parametrize("cls", FAMILIES, ids=lambda cls: cls.family)
def test_every_score_has_a_recipe_or_a_reason(cls):
    found = pages.links(cls, pages.by_family()[cls.family])
    for arch, row in cls.reported.items():
        scores = [column for column in pages.COLUMNS if getattr(row, column) is not None]
        links, reasons = found[arch]
        assert links.count("](") + len(reasons) == len(scores)


def test_a_recipe_gives_what_its_head_and_length_give():
    recipes = pages.by_family()["swin"]
    assert "mask_rcnn_swin_3x.py" in pages.links(SwinTransformer, recipes)["swin_tiny"][0]
    assert "cascade_mask_rcnn_swin.py" in pages.links(SwinTransformer, recipes)["swin_base"][0]
    short = [recipe for recipe in recipes if recipe.name != "mask_rcnn_swin_3x"]
    links, reasons = pages.links(SwinTransformer, short)["swin_tiny"]
    assert "mask_rcnn" not in links and reasons == ["AP: Mask R-CNN after 36 epochs; the recipe trains for 12 epochs"]
    heads = [recipe for recipe in recipes if recipe.task != "segmentation"]
    assert pages.links(SwinTransformer, heads)["swin_tiny"][1] == ["mIoU: UPerNet, of which there is no recipe"]
    assert pages.links(SwinTransformer, recipes)["swin_large"][1] == [
        "top-1: pre-trained on ImageNet-22k, which no recipe is"
    ]


def test_a_score_without_its_head_stops_the_page(monkeypatch):
    row = replace(SwinTransformer.reported["swin_tiny"], sources=("somewhere",))
    monkeypatch.setitem(SwinTransformer.reported, "swin_tiny", row)
    with pytest.raises(UserError, match="swin_tiny: the source of its AP names no head"):
        pages.links(SwinTransformer, pages.by_family()["swin"])
