"""A study's file: its cells, and what is wrong in it in one line."""

from __future__ import annotations

from fractions import Fraction

import pytest
from small_study import write_study

from mixtransfer.errors import UserError
from mixtransfer.study.plan import read_study


def cells(tmp_path, more=""):
    return read_study(write_study(tmp_path, tmp_path / "data", more)).cells


def test_cells_are_the_product_of_their_factors(tmp_path):
    found = cells(
        tmp_path, "fractions = ['1/8', 1]\npretraining = dict(scratch=None, file=dict(weights='{backbone}.pth'))\n"
    )
    assert len(found) == 2 * 2 * 2 * 2 and len({cell.name for cell in found}) == 16
    assert found[0].name == "seg-swin_micro-scratch-1of8-off-s0" and found[0].fraction == Fraction(1, 8)
    assert {cell.weights for cell in found} == {None, "swin_micro.pth"}


def test_each_seed_has_its_own_pretraining_unless_a_seed_is_given(tmp_path):
    method = "pretraining = dict(cut=dict(config='c.py'{}))\n"
    own = cells(tmp_path, method.format(""))
    assert [cell.name for cell in own if cell.kind == "pretrain"] == [
        f"pretraining-swin_micro-cut-s{k}" for k in (0, 1)
    ]
    assert all(cell.source.seed == cell.seed for cell in own if cell.source)
    shared = cells(tmp_path, method.format(", seed=7"))
    assert len([cell for cell in shared if cell.kind == "pretrain"]) == 1
    assert all(cell.source.seed == 7 for cell in shared if cell.source)


def test_a_seed_is_whole_before_the_next_one_begins(tmp_path):
    found = cells(tmp_path, "pretraining = dict(scratch=None, cut=dict(config='c.py'))\nhooks = dict(off=[])\n")
    assert [cell.name for cell in found] == [
        f"{name}-s{seed}"
        for seed in (0, 1)
        for name in ("pretraining-swin_micro-cut", "seg-swin_micro-scratch-1-off", "seg-swin_micro-cut-1-off")
    ]


def test_a_pretraining_has_another_one_as_its_teacher(tmp_path):
    more = "pretraining = dict(taught=dict(config='c.py', teacher='plain'), plain=dict(config='c.py', seed=4))\n"
    found = {cell.name: cell for cell in cells(tmp_path, more)}
    first, second = list(found)[:2]
    assert (first, second) == ("pretraining-swin_micro-plain-s4", "pretraining-swin_micro-taught-s0")
    assert found[second].source is found[first] and found[first].source is None
    assert found["seg-swin_micro-taught-1-on-s1"].source.source is found[first]


def test_a_probe_has_numbers_of_its_own(tmp_path):
    more = "tasks['frozen'] = dict(kind='probe', config='a.py', recipe=dict(iterations=40))\n"
    recipes = {cell.kind: cell.recipe for cell in cells(tmp_path, more)}
    assert recipes == {"train": {}, "probe": {"iterations": 40}}


def test_a_task_chooses_levels_and_variables_of_the_file_are_its_own(tmp_path):
    more = "LENGTH = 3\ntasks['other'] = dict(config='o.py', hooks=['on'], fractions=['1/4'], metrics=['mIoU'])\n"
    other = [cell for cell in cells(tmp_path, more) if cell.factors["task"] == "other"]
    assert {(cell.factors["hooks"], cell.factors["fraction"]) for cell in other} == {("on", "1/4")}


@pytest.mark.parametrize(
    "more, words",
    [
        ("seed = 3\n", "small.py: 'seed'; did you mean seeds?"),
        ("seeds = [1, 1]\n", "give a number, or a list of different whole numbers"),
        ("seeds = 0\n", "give a number, or a list of different whole numbers"),
        ("tasks = dict()\n", "it has no tasks"),
        ("tasks = dict(a=dict(kind='tune', config='a.py'))\n", "tasks.a: 'tune'; known: probe, train"),
        ("tasks = dict(a=dict())\n", "tasks.a: it has no config"),
        ("tasks['seg']['hooks'] = ['of']\n", "tasks.seg.hooks: 'of'; did you mean o"),
        ("tasks['seg']['options'] = 'a=1'\n", "give a list of 'KEY=VALUE'"),
        ("fractions = [2]\n", "fractions: 2: give shares above 0 up to 1"),
        ("fractions = ['a']\n", "fractions: 'a': give shares"),
        ("pretraining = dict(a=dict())\n", None),
        ("tasks['seg']['recipe'] = dict(batch=2)\n", "tasks.seg.recipe: only a probe has one"),
        ("tasks = dict(a=dict(kind='probe', config='a.py', recipe=dict(batch=0)))\n", "recipe: batch=0: give a whole"),
        ("pretraining = dict(a=dict(config='c', teacher='b'), b=None)\n", "teacher of"),
        (
            "pretraining = dict(a=dict(config='c', teacher='b'), b=dict(config='c', teacher='a'))\n",
            "its teacher b has a teacher itself",
        ),
        ("pretraining = dict(a=dict(weights='a', config='b'))\n", "give weights (a file) or config"),
        ("hooks = {'a/b': []}\n", "the name 'a/b' is part of file names"),
        ("compare = dict(hook='off')\n", "compare: 'hook'; did you mean hooks"),
        ("compare = dict(hooks='of')\n", "compare.hooks: 'of'; did you mean o"),
        ("published = [dict(number=3)]\n", "published: 'number'"),
        ("processes = 0\n", "processes=0: give the number of processes"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, more, words):
    if words is None:
        assert cells(tmp_path, more)
        return
    with pytest.raises(UserError) as error:
        cells(tmp_path, more)
    assert words in str(error.value) and "\n" not in str(error.value)
