"""What an ordinary user gets wrong, at every command: one line that names it, and status 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from small_sets import masks

from mixtransfer.cli import run_command

CONFIG = Path(__file__).parents[2] / "configs/seg/upernet_swin_micro_scenes.py"
#: A config's text -> what is said of it.
CONFIGS = {
    "syntax": ("model = dict(\n", "line 1: '(' was never closed"),
    "empty": ("", "has no 'model'"),
    "raises": ("raise RuntimeError('no')\n", "not a config: RuntimeError: no"),
    "divides": ("model = 1 / 0\n", "not a config: ZeroDivisionError"),
    "imports": ("import nonexistent\nmodel = dict()\n", "nonexistent"),
    "exits": ("import sys\nsys.exit(3)\n", "not a config: SystemExit: 3"),
    "asserts": ("assert False, 'never'\n", "not a config: AssertionError: never"),
    "itself": ("_base_ = './itself.py'\n", "not a config: RecursionError"),
    "without_base": ("_base_ = './nowhere.py'\n", "nowhere.py"),
    "of_another_task": ("model = dict(type='A')\ndefault_scope = 'b'\n", "give mmseg, mmdet, mmpretrain"),
    "word": (f"_base_ = {str(CONFIG)!r}\nmodel = dict(_delete_=True, type='NoSuch')\n", "NoSuch is not in the"),
}
#: Weights that are none -> what is said of them.
WEIGHTS = {
    "nowhere.pth": "no such",
    "empty.pth": "empty.pth",
    "text.pth": "not a checkpoint, or damaged",
    "picture.png": "not a checkpoint, or damaged",
    "folder": "folder",
    "loop.pth": "loop.pth",
    "pipe.pth": "pipe.pth",
    "x" * 300: "File name too long",
    "": "an empty value",
}
READERS = {
    "inspect": "{}",
    "convert": "{} OUT/a.safetensors",
    "predict": "{} picture.png --out OUT",
    "export": "{} --to torchscript --out OUT/a.pt",
    "test": f"{CONFIG} {{}} --data data --work-dir OUT",
    "probe": f"{CONFIG} {{}} --data data --work-dir OUT",
    "visualize": f"predict {CONFIG} {{}} picture.png --data data --work-dir OUT",
    "train": f"{CONFIG} --data data --work-dir OUT --resume {{}}",
}
ON_CONFIGS = {
    "train": "{} --data data --work-dir OUT",
    "visualize": "mix {} --data data --work-dir OUT",
    "benchmark": "complexity {}",
}
#: Places that cannot be written to.
PLACES = ("text.pth/a", "/proc/a", "loop.pth/a", "/dev/full/a")
WRITERS = {
    "train": f"{CONFIG} --data data --work-dir {{}}",
    "data": "scenes {} --train 1 --val 1 --classify-train 12 --classify-val 12",
    "benchmark": "complexity swin_micro --json {}",
}
OTHERS = {
    f"train {CONFIG} --data data --seed -1": "from 0 to 4294967295",
    f"train {CONFIG} --data data --iters 0": "give a number from 1",
    f"train {CONFIG} --data data --fraction 2": "give a share above 0 up to 1",
    f"train {CONFIG} --data data --ema 2": "give a number from 0 to 1",
    f"train {CONFIG} --data data --arch nosuch --work-dir OUT": "nosuch",
    f"train {CONFIG} --data data --cfg-options x=1 --work-dir OUT": "unknown",
    f"train {CONFIG} --data data --cfg-options =1 --work-dir OUT": "unknown",
    f"train {CONFIG} --data loop.pth --work-dir OUT": "no segmentation dataset in loop.pth",
    f"train {CONFIG} --data text.pth --work-dir OUT": "no segmentation dataset in text.pth",
    "data check nowhere": "no dataset in nowhere",
    "data check folder": "no dataset in folder",
    "data split data OUT --val 0": "give a number above 0 and below 1",
    "data split data OUT --val 1": "give a number above 0 and below 1",
    "data convert data data": "data: is there already",
    "data convert data data/inside": "data/inside: lies in the dataset itself",
    "data scenes scenes --train 1 --size 999999999 999999999": "memory does not suffice: Unable to allocate",
    "predict text.pth nowhere.png --out OUT": "nowhere.png: no such image or folder",
    "predict text.pth folder --out OUT": "folder: holds no images",
    "export text.pth --to nonsense": "invalid choice: 'nonsense'",
    "convert text.pth OUT/a.pth --drop (": "is no regular expression",
    "convert text.pth OUT/a.xyz": ".xyz",
    "benchmark complexity nosuch": "unknown",
    "benchmark speed": "in a checkout only",
    "study nowhere.py status": "nowhere.py",
    "study text.pth run": "text.pth",
    "doctor nonsense": "unrecognized arguments: nonsense",
}


def commands():
    for command, rest in READERS.items():
        for weights, said in WEIGHTS.items():
            yield pytest.param([command, *(weights if part == "{}" else part for part in rest.split())], said,
                               id=f"{command} {weights[:20]}")  # fmt: skip
    for command, rest in ON_CONFIGS.items():
        for name, (_, said) in CONFIGS.items():
            # The first is slow, and read by all in one place.
            if (name != "itself" or command == "train") and (command, name) != ("benchmark", "of_another_task"):
                yield pytest.param([command, *rest.format(f"{name}.py").split()], said, id=f"{command} {name}")
    for command, rest in WRITERS.items():
        for place in PLACES:
            yield pytest.param([command, *rest.format(place).split()], place, id=f"{command} to {place}")
    for line, said in OTHERS.items():
        yield pytest.param(line.split(), said, id=line.replace(str(CONFIG), "CONFIG"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder, with a space and letters of others in its name, that holds everything that is no checkpoint."""
    folder = tmp_path_factory.mktemp("bad input ü 中")
    masks(folder / "data", names=None)
    (folder / "folder").mkdir()
    for name, (text, _) in CONFIGS.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    (folder / "empty.pth").touch()
    (folder / "text.pth").write_text("hello\n" * 9, encoding="utf-8")
    (folder / "loop.pth").symlink_to("loop.pth")
    os.mkfifo(folder / "pipe.pth")
    Image.new("RGB", (32, 32)).save(folder / "picture.png")
    return folder


@pytest.mark.skipif(os.name == "nt", reason="pipes and places of other systems")
@pytest.mark.parametrize(("argv", "said"), commands())
def test_bad_input_is_one_line(argv, said, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    try:
        status = run_command(argv[0], argv[1:])
    except SystemExit as stop:  # argparse prints its usage first
        status = stop.code
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if ": error: " in line]
    assert status == 2 and errors == lines[-1:] and errors[0].startswith(f"mixtransfer {argv[0]}")
    assert said in errors[0]
