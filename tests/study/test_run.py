"""Running a study: cells in files, taken once, failed ones visible, and kills that change no record."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_sets import class_folders, masks
from small_study import write_study

from mixtransfer.cli import run_command
from mixtransfer.errors import UserError
from mixtransfer.study import estimate
from mixtransfer.study import run as running
from mixtransfer.study.cells import DONE, FAILED, NEW, RUNNING, STOPPED, WAITING, Taken, folders
from mixtransfer.study.plan import read_study
from mixtransfer.study.report import check, write
from mixtransfer.study.run import Runner

STAND_IN = str(Path(__file__).parents[1] / "small_study.py")
ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
sys.path[:0] = [{root!r}]
from mixtransfer.study import run
run.command_of = lambda step, processes=1: [sys.executable, {stand_in!r}, *step.argv]
run.LOOK = 0.05
from mixtransfer.study.plan import read_study
print(run.Runner(read_study({file!r})).run([None, None]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return masks(tmp_path_factory.mktemp("data"))


@pytest.fixture
def study(data, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "command_of", lambda step, processes=1: [sys.executable, STAND_IN, *step.argv])
    monkeypatch.setattr(running, "LOOK", 0.05)
    return write_study(tmp_path, data)


def states(file):
    return [folder.state()[0] for folder in folders(read_study(file))]


def run(file, **options):
    return Runner(read_study(file), say=lambda text: None, **options).run([None])


def records(folder):
    return {path.parent.name: path.read_bytes() for path in sorted((folder / "work/cells").glob("*/record.json"))}


def driver(file) -> subprocess.Popen:
    code = DRIVER.format(root=str(ROOT), stand_in=STAND_IN, file=str(file))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_study_starts_goes_on_and_is_done(study, tmp_path):
    assert states(study) == [NEW] * 4
    assert run(study, only=["off"]) and states(study) == [DONE, NEW, DONE, NEW]
    before = records(tmp_path)
    assert run(study) and states(study) == [DONE] * 4
    after = records(tmp_path)
    assert {name: after[name] for name in before} == before and len(after) == 4
    record = json.loads(after[min(after)])
    assert record["schema"] == 1 and record["factors"]["hooks"] == "off" and record["identity"]["seed"] == 0


def test_a_failed_cell_stays_visible_and_is_run_again_when_asked(study, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/fails").touch()
    assert not run(study) and states(study) == [FAILED] * 4
    state = folders(read_study(study))[0].state()
    assert state[1].startswith("mixtransfer train: error: nothing is right here (")
    (tmp_path / "work/fails").unlink()
    assert not run(study) and states(study) == [FAILED] * 4
    assert run(study, retry=True) and states(study) == [DONE] * 4


def test_a_metric_that_was_not_measured_is_an_error(data, study, tmp_path):
    write_study(tmp_path, data, "tasks['seg']['metrics'] = ['mIoU', 'mDice']\n")
    assert not run(study, only=["1-off-s0"])
    assert "the metric mDice was not measured; there are aAcc, mIoU" in folders(read_study(study))[0].state()[1]


@pytest.mark.parametrize(
    "change, words",
    [
        ("tasks['seg']['options'] = ['train_cfg.max_iters=900']\n", "config.train_cfg.max_iters: 1000 -> 900"),
        (
            "tasks['seg']['options'] = ['model.decode_head.channels=16']\n",
            "model.decode_head.channels: 48 -> 16",
        ),
    ],
)
def test_a_changed_config_stops_until_redo(data, study, tmp_path, change, words):
    assert run(study)
    first = records(tmp_path)
    write_study(tmp_path, data, change)
    with pytest.raises(UserError, match=words):
        run(study)
    assert records(tmp_path) == first
    assert run(study, redo=True)
    assert len(records(tmp_path)) == 4 and set(records(tmp_path)).isdisjoint(first)
    assert len(list((tmp_path / "work/former").iterdir())) == 4


def test_what_changes_no_number_changes_no_identity(data, study, tmp_path):
    names = [folder.path for folder in folders(read_study(study))]
    same = "['train_dataloader.num_workers=3', 'default_hooks.logger.interval=7', 'train_cfg.val_interval=11']"
    write_study(tmp_path, data, f"tasks['seg']['options'] = {same}\n")
    assert [folder.path for folder in folders(read_study(study))] == names
    # The same files elsewhere are the same data, other bytes in one of them are not.
    moved = masks(tmp_path / "moved")
    write_study(tmp_path, moved)
    assert [folder.path for folder in folders(read_study(study))] == names
    picture = next((moved / "images/training").iterdir())
    picture.write_bytes(picture.read_bytes() + b" ")
    assert [folder.path for folder in folders(read_study(study))] != names


def test_other_packages_stop(study, tmp_path, monkeypatch):
    from mixtransfer.study import cells

    assert run(study)
    monkeypatch.setattr(cells, "versions", lambda: {"torch": "9.9"})
    with pytest.raises(UserError, match=r"package torch: '.+' -> '9.9'"):
        run(study)


def test_a_cell_has_one_runner(study):
    first, same = folders(read_study(study))[0], folders(read_study(study))[0]
    with first.claimed() as tell:
        tell("half way")
        assert same.state()[0] == RUNNING
        with pytest.raises(Taken), same.claimed():
            pass
    assert same.state()[0] == NEW


def test_the_sign_of_life_of_another_machine_keeps_a_cell(study):
    folder = folders(read_study(study))[0]
    folder.path.mkdir(parents=True)
    sign = folder.path / "alive.json"
    sign.write_text(json.dumps({"host": "elsewhere", "pid": 1, "at": time.time(), "progress": "train"}))
    assert folder.state()[0] == RUNNING
    with pytest.raises(Taken), folder.claimed():
        pass
    sign.write_text(json.dumps({"host": "elsewhere", "pid": 1, "at": time.time() - 1000}))
    assert folder.state()[0] == NEW


def test_two_processes_share_a_study_and_take_no_cell_twice(study, tmp_path):
    both = [driver(study), driver(study)]
    assert [process.communicate(timeout=60)[0].splitlines()[-1] for process in both] == ["True", "True"]
    starts = [path.read_text().splitlines() for path in (tmp_path / "work/cells").glob("*/attempts.jsonl")]
    assert [len(lines) for lines in starts] == [2] * 4


def test_kills_at_any_moment_change_no_record(data, study, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    uninterrupted = driver(write_study(whole, data))
    assert uninterrupted.stdout.readline()
    begun = time.monotonic()
    assert uninterrupted.communicate()[0].splitlines()[-1] == "True"
    length = time.monotonic() - begun
    moments, kills = random.Random(0), 0
    for number in range(10):
        process = driver(study)
        assert process.stdout.readline()
        time.sleep(moments.uniform(0, length / 2))
        if process.poll() is None:
            kills += 1
            # A cell, or the driver and with it its cells.
            for pid in (number % 2 and children(process.pid)) or [process.pid]:
                os.kill(pid, signal.SIGKILL)
        process.communicate()
    assert kills  # the study is done before the last of them
    assert run(study) and states(study) == [DONE] * 4
    assert list(records(tmp_path).values()) == list(records(whole).values())
    assert write(read_study(study), tmp_path / "out") == write(read_study(whole / "small.py"), whole / "out") == 0
    for name in ("records.jsonl", "records.csv", "images.jsonl", "table.md", "table.csv", "table.tex"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / "out" / name).read_bytes()


def children(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except FileNotFoundError:
        return []


def test_a_partial_study_says_so_and_its_page_follows_from_the_records(study, tmp_path):
    assert run(study, only=["s0"])
    out = tmp_path / "out"
    assert write(read_study(study), out) == 2
    text = (out / "table.md").read_text()
    assert "This study is partial: 2 of its 4 cells have no result yet." in text
    assert "partial" in (out / "index.html").read_text()
    assert check(read_study(study), out) == []
    (out / "records.jsonl").write_text((out / "records.jsonl").read_text().replace('"mIoU":50.0', '"mIoU":52.0'))
    assert set(check(read_study(study), out)) == {"records.csv", "table.md", "table.csv", "table.tex", "index.html"}
    assert run_command("study", [str(study), "report", "--out", str(out), "--check"]) == 1


def test_cells_wait_for_the_weights_that_another_makes(data, study, tmp_path):
    pretrain = str(ROOT / "configs/pretrain/swin_micro_scenes.py")
    cells = tmp_path / "cls"
    class_folders(cells)
    more = f"pretraining = dict(scratch=None, cut=dict(config={pretrain!r}, data={str(cells)!r}, seed=0))\n"
    write_study(tmp_path, data, more + "seeds = [0]\n")
    found = folders(read_study(study))
    assert found[0].cell.name == "pretraining-swin_micro-cut-s0"
    assert [folder.state()[0] for folder in found] == [NEW, NEW, NEW, WAITING, WAITING]
    assert f"checkpoint='{found[0].path}/weights.safetensors'" in " ".join(found[-1].steps()[0].argv)
    # What the weights come from is part of what starts from them.
    write_study(tmp_path, data, more.replace("seed=0", "seed=0, options=['train_cfg.max_epochs=5']") + "seeds = [0]\n")
    assert folders(read_study(study))[-1].hash != found[-1].hash
    assert folders(read_study(study))[1].hash == found[1].hash


def test_a_teacher_is_waited_for_and_is_part_of_what_it_teaches(data, study, tmp_path, monkeypatch):
    pretrain = str(ROOT / "configs/pretrain/swin_micro_scenes.py")
    cells = tmp_path / "cls"
    class_folders(cells)
    given = f"config={pretrain!r}, data={str(cells)!r}"
    mixing = "model.mixing=dict(_delete_=True,type='mixtransfer.TokenMix')"
    more = f"pretraining = dict(plain=dict({given}), taught=dict({given}, teacher='plain', options=[{mixing!r}]))\n"
    write_study(tmp_path, data, more + "seeds = [0]\n")
    plain, taught = folders(read_study(study))[:2]
    assert (plain.state()[0], taught.state()) == (NEW, (WAITING, f"for {plain.cell.name}"))
    (plain.path / "train").mkdir(parents=True)
    (plain.path / "train/epoch_8.pth").touch()
    assert f"arch='swin_micro',checkpoint='{plain.path}/train/epoch_8.pth'" in " ".join(taught.steps()[0].argv)
    assert taught.identity["config"]["model"]["teacher"] == {"arch": "swin_micro", "checkpoint": f"cell:{plain.hash}"}
    # A dry run has no teacher yet.
    timed = []
    monkeypatch.setattr(
        estimate, "time_cell", lambda cell: timed.append(cell) or estimate.Timing(1, 1, 1, 9, 0, 0, True)
    )
    assert run_command("study", [str(study), "run", "--dry-run", "--only", "pretraining-swin_micro-taught"]) == 0
    assert [folder.cell.name for folder in timed] == [plain.cell.name]


def test_the_recipe_of_a_probe_is_part_of_its_cell(data, study, tmp_path):
    task = "tasks['seg'] |= dict(kind='probe', metrics=['mIoU']{})\nseeds = [3]\ncompare = {{}}\n"
    write_study(tmp_path, data, task.format(""))
    usual = folders(read_study(study))[0]
    assert usual.identity["recipe"]["seeds"] == [3] and len(usual.identity["recipe"]["rates"]) == 9
    # It is read back from a file when a cell is gone on with.
    assert json.loads(json.dumps(usual.identity)) == usual.identity
    write_study(tmp_path, data, task.format(", recipe=dict(iterations=20)"))
    shorter = folders(read_study(study))[0]
    assert shorter.hash != usual.hash and "--iterations 20" in " ".join(shorter.steps()[0].argv)


def test_a_stopped_cell_can_go_on(study, tmp_path):
    process = driver(study)
    while not list((tmp_path / "work/cells").glob("*/train/state")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert STOPPED in states(study)
    assert run(study)


@pytest.mark.long
def test_submitit_runs_a_study(study, tmp_path, monkeypatch):
    # Its import configures logging, which is what submit() keeps it from.
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed")
    from mixtransfer.study.launch import Worker, submit

    # The job is another process: its commands are stand-ins by way of the interpreter's start.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfrom mixtransfer.study import run\n"
        f"run.command_of = lambda step, processes=1: [sys.executable, {STAND_IN!r}, *step.argv]\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    log = logging.FileHandler(tmp_path / "log")
    jobs = submit(Worker(study, 1, False, False, []), jobs=2, cluster="local")
    assert log.stream is not None, "the logs of this process stay open"
    log.close()
    assert [job.result() for job in jobs] == [True, True]
    assert states(study) == [DONE] * 4
