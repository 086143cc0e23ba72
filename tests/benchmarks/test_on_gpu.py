"""The script for machines with a GPU: its record, its counts of waits, its way around what cannot be measured."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import cases, on_gpu
from benchmarks.speed import Comparison
from benchmarks.steps import Options
from mixtransfer.cli import run_main

CPU = torch.device("cpu")


def steps():
    x = torch.ones(3)
    return {"ours": lambda: float(x.sum()), "theirs": lambda: x.tolist() and float(x[0]) + float(x[1])}


def test_reads_of_a_step_are_counted():
    found = on_gpu.memory_and_waits(Comparison("reads", steps()), CPU)
    assert found["peak_bytes"] == {"ours": None, "theirs": None}
    assert {name: waits["aten::_local_scalar_dense"] for name, waits in found["waits"].items()} == {
        "ours": 1,
        "theirs": 2,
    }


def test_a_record_holds_what_was_measured_and_what_was_not(tmp_path, monkeypatch, capsys):
    def toy(options, arch):
        yield Comparison(f"{arch}, {options.batch}", steps())

    def broken(options, arch):
        raise RuntimeError("out of memory\nof a device")

    monkeypatch.setattr(cases, "toy", toy, raising=False)
    monkeypatch.setattr(cases, "broken", broken, raising=False)
    chosen = [on_gpu.Plan(name, Options(batch=2), "swin_micro") for name in ("broken", "toy")]
    monkeypatch.setattr(on_gpu, "plans", lambda device: chosen)
    file = tmp_path / "record.json"
    argv = ["--device", "cpu", "--rounds", "2", "--skip-tests", "--json", str(file)]
    assert run_main("on_gpu", on_gpu.parser(), on_gpu.run, argv) == 0
    record = json.loads(file.read_text())
    assert record["environment"]["device"] == "cpu" and record["tests"] is None
    assert [result["contest"] for result in record["results"]] == ["swin_micro, 2"]
    assert set(record["results"][0]) >= {"ratios", "seconds", "waits", "peak_bytes"}
    assert record["left_out"] == [{"what": chosen[0].title, "why": "out of memory"}]
    assert "ours / theirs" in capsys.readouterr().out


def test_plans_cover_both_kinds_of_steps_and_fit_a_machine_without_gpu():
    on_device = list(on_gpu.plans(torch.device("cuda")))
    assert {(p.case, p.options.batch, p.options.compile) for p in on_device} >= {
        (case, batch, compiled) for case in ("upernet", "mask_rcnn") for batch in (2, 8) for compiled in (False, True)
    }
    assert all(p.options.dtype == torch.bfloat16 for p in on_device)
    assert {p.options.size for p in on_gpu.plans(CPU)} <= {32, 64}
    assert all(hasattr(cases, p.case) for p in on_device)


@pytest.mark.parametrize("script", [Path(on_gpu.__file__).with_suffix(".sh")])
def test_the_shell_script_is_sound(script):
    assert script.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", str(script)], check=True)
