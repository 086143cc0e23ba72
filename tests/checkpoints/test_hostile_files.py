"""Files as nobody saves them, at every door: one line or a right answer, in bounded memory and time."""

from __future__ import annotations

import contextlib
import copy
import gc
import resource
import subprocess
import sys
import time
from pathlib import Path

import hostile_files
import pytest
import torch

from mixtransfer import build_backbone
from mixtransfer.checkpoints import pickle_outline, stand_ins
from mixtransfer.checkpoints.convert import ConvertOptions, convert_file
from mixtransfer.checkpoints.describe import describe
from mixtransfer.checkpoints.headers import read_header
from mixtransfer.checkpoints.load import load_checkpoint, load_strictly
from mixtransfer.checkpoints.read import find_weights, read_checkpoint
from mixtransfer.engine.resume import Place
from mixtransfer.errors import UserError, visible


def inspected(path, net):
    text = str(describe(path))
    assert all(line.isprintable() for line in text.split("\n"))
    # A name with a line end must not make a row of its own.
    assert len([line for line in text.split("\n") if line.startswith("network ")]) == 1


def converted(path, net):
    report = convert_file(path, path.with_name("out.safetensors"), ConvertOptions(force=True, arch="swin_micro"))
    assert all(line.isprintable() for line in str(report).split("\n"))


def initialized(path, net):
    load_checkpoint(net, path)


def measured(path, net):
    load_strictly(net, find_weights(read_checkpoint(path), str(path)), str(path))


def resumed(path, net):
    Place.of(path)


DOORS = (inspected, converted, initialized, measured, resumed)
SOUND = hostile_files.weights()
FILES = hostile_files.files()
#: What is read right, beside the weights.
READ = (
    "sound bytearray", "deep dicts", "tuple keys", "keys that are no text", "large int", "sound arrays", "sound log",
    "dict with attributes", "escapes", "surrogate value", "log with methods",
)  # fmt: skip


def is_read(name: str) -> bool:
    return name.startswith("sound") or (name.startswith("beside") and name.partition(": ")[2] in READ)


def memory(kind: str) -> int:
    """Return the bytes that this process holds (VmRSS), after which its peak (VmHWM) begins anew."""
    if not Path("/proc/self/clear_refs").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    if kind == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    return int(text.partition(f"{kind}:")[2].split()[0]) * 1024


@pytest.mark.long
@pytest.mark.parametrize("door", DOORS)
def test_a_large_sound_file_is_read_within_twice_its_size(door, tmp_path):
    # 200 MB of weights and the two moments of Adam.
    large = {f"blocks.{number}.attn.qkv.weight": torch.ones(1000, 1000) for number in range(17)}
    state = {number: {"step": torch.tensor(2.0), "exp_avg": value + 1, "exp_avg_sq": value + 2}
             for number, value in enumerate(large.values())}  # fmt: skip
    path = tmp_path / "large.pth"
    content = {"state_dict": large, "optimizer": {"state": state, "param_groups": []}, "message_hub": {}}
    torch.save({**content, "meta": {"epoch": 0, "iter": 2, "seed": 0}, "param_schedulers": []}, path)
    del large, state, content
    gc.collect()
    net, held = build_backbone("swin_micro"), memory("VmRSS")
    with contextlib.suppress(UserError):  # weights of another network
        door(path, net)
    assert memory("VmHWM") - held < 2 * path.stat().st_size + 2**29


@pytest.fixture(scope="module")
def threes():
    """A network of threes, which takes a while to build."""
    net = build_backbone("swin_micro")
    net.load_state_dict({key: torch.full_like(value, 3) for key, value in net.state_dict().items()})
    return net


#: What takes up to half a minute at each door before a bound is reached; test_bounds_are_kept has the same in little.
LONG = ("5 million steps", "a million dicts", "70 000 views", "70 000 tensors", "module names", "one list copied often")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name.endswith(LONG) else []) for name in FILES]
)
def test_a_hostile_file_is_one_line_or_read_right_at_every_door(name, threes, tmp_path):
    path, before = hostile_files.write(tmp_path, FILES[name]), set()
    for door in DOORS:
        net = copy.deepcopy(threes)
        held, start = memory("VmRSS"), time.process_time()
        error = None
        try:
            door(path, net)
        except UserError as raised:
            error = raised
            assert str(error).isprintable() and str(path) in str(error)
            assert not before, "half a result"
        assert time.process_time() - start < 30, door
        assert memory("VmHWM") - held < 2 * path.stat().st_size + 2**29, door
        if is_read(name) and door is not resumed:
            assert error is None, door
        if error is None and door in (initialized, measured) and not name.startswith("weights"):
            assert all(torch.equal(value, SOUND[key]) for key, value in net.state_dict().items())
        if error is not None:
            assert all(bool((value == 3).all()) for value in net.state_dict().values())


@pytest.mark.parametrize(
    ("bound", "content", "text"),
    [
        ("STEPS", [1, 2, 3], "holds more than 5 steps to read"),
        ("OBJECTS", [[], [], [], []], "holds more than 3 objects"),
        ("TENSORS", [torch.ones(2), torch.ones(2)], "holds more than 1 tensors"),
        ("NAMES", [torch.ones(2)], "holds more than 1 classes"),
        ("TUPLES", {(1,): 1, (2,): 2}, "an entry's name is a tuple"),
        ("VALUES", [1, 2, 3], "holds more than 2 values"),
        ("LEVELS", [[[]]], "nests its values more than 1 deep"),
        ("NAME", {"abc": 1}, "the name of an entry has 3 characters"),
        ("SPARE", [torch.ones(1).expand(200 + n) for n in range(40)], "its tensors overlap and claim"),
    ],
)
def test_bounds_are_kept(bound, content, text, tmp_path, monkeypatch):
    small = {"STEPS": 5, "OBJECTS": 3, "TENSORS": 1, "NAMES": 1, "TUPLES": 1, "VALUES": 2, "LEVELS": 1, "NAME": 2}
    path = tmp_path / "a.pth"
    path.write_bytes(hostile_files.saved(content))
    read_header(path)
    monkeypatch.setattr(stand_ins if hasattr(stand_ins, bound) else pickle_outline, bound, small.get(bound, 0))
    with pytest.raises(UserError, match=text):
        read_header(path)


def test_plain_values_are_read_as_they_were(tmp_path):
    for name in ("sound bytearray", "sound arrays", "sound log", "dict with attributes", "keys that are no text"):
        path = hostile_files.write(tmp_path, FILES[f"beside: {name}"])
        value = read_checkpoint(path)["x"]
        if name == "sound arrays":
            assert (
                value["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
                and value["b"] == 3
                and value["c"].tolist() == ["x", "yz"]
            )
        elif name == "sound log":
            assert value.mean() == 1.5
        else:
            assert value == {"sound bytearray": b"abc", "dict with attributes": {"a": 1}}.get(
                name, {1: 2, None: 3, 2.5: 4, b"x": 5}
            )


def test_a_log_of_a_file_changes_no_statistics_of_others(tmp_path):
    from mmengine.logging import HistoryBuffer

    read_checkpoint(hostile_files.write(tmp_path, FILES["beside: log with methods"]))
    assert HistoryBuffer([1.0, 3.0], [1, 1]).statistics("mean") == 2.0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 中", "plain ü 中"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("a\ud800", r"a\ud800"),
        ("\u2028\x7f\x9b", r"\u2028\x7f\x9b"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_acts_on_is_shown(text, shown):
    assert visible(text) == shown == str(UserError(text))
    assert visible(text, keep="\n") == shown.replace(r"\n", "\n")


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_a_path_with_a_line_end_is_one_line(tmp_path, command):
    path = tmp_path / "a\n\x1b[2Jb.pth"
    path.write_bytes(b"nothing")
    more = [str(tmp_path / "out.pth")] if command == "convert" else []
    code = "import sys; from mixtransfer.cli import run_command; sys.exit(run_command(sys.argv[1], sys.argv[2:]))"
    done = subprocess.run([sys.executable, "-c", code, command, str(path), *more], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and r"a\n\x1b[2Jb.pth: not a checkpoint, or damaged" in done.stderr
