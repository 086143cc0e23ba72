"""What a newcomer types first: tools before anything is installed, the package by its names, the doctor."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mixtransfer
from mixtransfer import cli
from mixtransfer.cli import doctor, run_command
from mixtransfer.compat import mmcv_ops
from mixtransfer.engine import recipes
from mixtransfer.errors import UserError

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path for path in (ROOT / "tools").glob("*.py") if path.name != "launch.py")


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_a_tool_is_a_program_and_safe_to_import_again(tool):
    text = tool.read_text(encoding="utf-8")
    assert os.access(tool, os.X_OK) and text.startswith("#!/usr/bin/env python3\n")
    # A spawned data worker imports the main module: all that starts something stands behind the guard.
    assert "launch(" not in text.partition('if __name__ == "__main__":')[0]


@pytest.mark.parametrize("tool", ["train.py", "benchmark.py"])
def test_before_anything_is_installed_a_tool_says_in_one_line_what_to_do(tool):
    bare = [sys.executable, "-I", "-S", str(ROOT / "tools" / tool), *(["speed"] if tool == "benchmark.py" else [])]
    # -I leaves the folder of the file out of the path; python tools/train.py has it.
    code = f"import runpy, sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); sys.argv = sys.argv[1:];"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([*bare[:3], "-c", code, *bare[3:]], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "make install" in done.stderr


def test_a_module_of_ours_that_is_missing_is_a_bug(monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(cli.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        run_command("train", [])
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: missing("timm.layers"))
    assert run_command("train", []) == 2
    assert "the package timm.layers is not installed" in capsys.readouterr().err


def test_the_package_tells_its_names_and_its_version(capsys):
    assert dir(mixtransfer) == sorted([*mixtransfer.__all__, "__version__"])
    assert all(getattr(mixtransfer, name) for name in mixtransfer.__all__)
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out == f"mixtransfer {mixtransfer.__version__}\n"


def test_a_backbone_is_built_without_detectors_and_segmentors():
    code = "import sys, mixtransfer; mixtransfer.build_backbone('swin_micro');"
    code += "print([name for name in ('mmdet', 'mmseg', 'mmpretrain') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["upernet_swin", "seg/upernet_swin", "upernet_swin.py", "configs/seg/upernet_swin.py"])
def test_a_config_has_short_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes.find_config(name) == recipes.CONFIGS / "seg/upernet_swin.py"
    with pytest.raises(UserError, match="did you mean upernet_swin"):
        recipes.find_config("upernet_swim")


def test_names_of_configs_are_unique_and_each_is_described():
    listed = recipes.list_recipes()
    assert len({recipe.name for recipe in listed}) == len(listed) == len(recipes.recipe_files()) > 100
    assert [recipe.name for recipe in listed if not (recipe.arch and recipe.schedule and recipe.title)] == []
    [found] = [recipe for recipe in listed if recipe.name == "mask_rcnn_swin"]
    assert (found.task, found.arch, found.schedule) == ("detection", "swin_tiny", "12 epochs")
    assert found.published == "43.7 box AP, 39.8 mask AP"


def test_a_wheel_brings_the_configs(tmp_path):
    """Built from a copy: setuptools leaves folders beside what it builds."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in", "LICENSE", "mixtransfer", "configs"):
        (copy / name).symlink_to(ROOT / name)
    build = (
        "import os, sys; os.chdir(sys.argv[1]); import setuptools.build_meta as b; print(b.build_wheel(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", build, copy, tmp_path], capture_output=True, text=True, check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.py")}
    assert {f"mixtransfer/.mim/{name}" for name in expected} <= names and "mixtransfer/py.typed" in names


def test_the_doctor_finds_what_is_there_and_names_the_task_that_fails(tmp_path, monkeypatch, capsys):
    (tmp_path / "fruit/train2017").mkdir(parents=True)

    def step(task, data, work):
        if task == "seg":
            raise RuntimeError("no kernel")
        return "forward and backward"

    monkeypatch.setattr(doctor, "_step", step)
    assert run_command("doctor", ["--data", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "segmentation             FAILED: RuntimeError: no kernel" in output
    assert f"{tmp_path / 'fruit'}" in output and "mmcv ops" in output and "onedl-mmengine" in output


def test_the_doctor_tells_whose_ops_are_served_before_anything_needs_them():
    """Asked in a process of its own: others import mmcv.ops, which installs them."""
    program = "from mixtransfer.cli import doctor; print(dict(doctor._ops())['mmcv ops'])"
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert ("mixtransfer serves" in told.stdout) == (not mmcv_ops._has_compiled_ops())


def test_a_step_of_the_doctor_trains(tmp_path):
    from mixtransfer.datasets.scenes import write_scenes

    data = write_scenes(tmp_path / "scenes", train=2, val=1, classify_train=12, classify_val=12, size=(64, 64))
    assert "all finite" in doctor._step("cls", data, tmp_path / "work")
