"""The console of a run says how far it is, and nothing that its reader cannot act on; the log file has all of it."""

from __future__ import annotations

import logging
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from mixtransfer.engine import console

USELESS = (
    "The prefix is not set in metric class IoUMetric.",
    '"FileClient" will be deprecated in future. Please use io functions in ...',
    '"HardDiskBackend" is the alias of "LocalBackend" and the former will be deprecated in future.',
)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("mmengine", logging.WARNING, "a.py", 1, text, (), None)


def test_records_about_the_libraries_own_future_are_left_out():
    passed = console.ConsoleFilter()
    assert not any(passed.filter(record(text)) for text in USELESS)
    assert passed.filter(record("a.pth was trained on other classes than those of this dataset"))


def test_warnings_of_packages_go_into_the_log_and_others_stay(tmp_path, capsys, monkeypatch):
    # In place of pytest's own, which keeps warnings.
    monkeypatch.setattr(warnings, "showwarning", lambda message, *args: print(message, file=sys.stderr))
    logger = logging.Logger("run")
    logger.addHandler(logging.FileHandler(tmp_path / "log"))
    with console.quiet_libraries(lambda: logger):
        warnings.warn_explicit("of a package\nin two lines", UserWarning, torch.__file__, 7)
        warnings.warn_explicit("of a script", UserWarning, str(tmp_path / "mine.py"), 7)
    assert "of a script" in (said := capsys.readouterr().err) and "of a package" not in said
    assert (tmp_path / "log").read_text() == "UserWarning: of a package\\nin two lines\n"


class Clock:
    """A time that passes when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.now = 100.0
        patch.setattr(console.time, "monotonic", lambda: self.now)


def test_progress_is_shown_where_the_log_is_silent(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    filtered = console.ConsoleFilter()
    hook = console.ProgressHook(filtered)
    runner = SimpleNamespace(iter=0, max_iters=100, val_dataloader=range(8))
    for runner.iter in range(5):
        clock.now += 2
        hook.after_train_iter(runner, runner.iter)
    # Two seconds a step: the first line after more than three, the next one three later.
    assert capsys.readouterr().err == "training 3/100, 0:03:14 left\ntraining 5/100, 0:03:10 left\n"
    hook.before_val_epoch(runner)
    for step in range(8):
        clock.now += 4
        hook.after_val_iter(runner, step)
    assert capsys.readouterr().err.splitlines()[:2] == ["validation 1/8", "validation 2/8, 0:00:24 left"]
    # A validation takes nothing from the training's time, and the log's own line is enough.
    clock.now += 2
    filtered.filter(record("Iter(train) [6/100]"))
    runner.iter = 5
    hook.after_train_iter(runner, 5)
    assert capsys.readouterr().err == ""
    for runner.iter in range(6, 30):
        clock.now += 2
        hook.after_train_iter(runner, runner.iter)
    # Later a line every half a minute is enough.
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["training 22/100"]


def test_other_processes_show_none(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    clock = Clock(monkeypatch)
    hook = console.ProgressHook(console.ConsoleFilter())
    for step in range(8):
        clock.now += 9
        hook.after_test_iter(SimpleNamespace(test_dataloader=range(9)), step)
    assert capsys.readouterr().err == ""
