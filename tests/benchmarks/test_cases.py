"""Benchmarks: fair rounds, right arithmetic, contestants that compute the same, counts equal to the published ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from benchmarks import cases, command
from benchmarks.speed import Comparison, Ratio, Result, measure, table
from mixtransfer.cli import run_command
from mixtransfer.compat.ops import regions
from mixtransfer.evaluation.complexity import complexity

CPU = torch.device("cpu")


def test_every_round_runs_all_and_starts_with_another(monkeypatch):
    monkeypatch.setattr("benchmarks.speed.MIN_SECONDS", 0)
    monkeypatch.setattr("benchmarks.speed.math.ceil", lambda x: 1)
    order = []
    comparison = Comparison("letters", {name: lambda name=name: order.append(name) for name in "abc"})
    result = measure(comparison, rounds=3, device=CPU)
    assert "".join(order) == "abcabc" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in result.seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_taken_within_rounds():
    # The machine is ten times slower in the second round; each round says one half.
    assert Ratio.of([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == Ratio(0.5, 0.5, 0.5)
    assert Ratio.of([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) == Ratio(2.0, 1.5, 2.5)


def test_table_puts_the_bar_beside_the_ratio():
    seconds, cpu_seconds = {"ours": [0.001, 0.001], "theirs": [0.002, 0.002]}, {"ours": [0.001], "theirs": [0.004]}
    lines = table([Result("step", seconds, cpu_seconds, {"theirs": 0.67})]).splitlines()
    assert lines[2:] == ["| step | ours | 1.0 | | | | |", "| | theirs | 2.0 | 0.50 | 0.50–0.50 | 0.25 | 0.67 |"]


@pytest.mark.parametrize("size", [128, 80], ids=["timm agrees", "timm pads elsewhere"])
def test_swin_contestants_are_equal_and_all_of_them_run(size):
    options = cases.Options(batch=1, size=size)
    titles = []
    for comparison in cases.swin(options, arch="swin_micro"):
        titles.append(comparison.title)
        for step in comparison.steps.values():
            step()
    assert list(comparison.steps) == ["ours", "mmseg", "mmdet", "timm"]
    assert titles == [
        f"swin_micro, 1 × {size}², {what}"
        for what in ("evaluation", "training, drop path 0", "training, drop path 0.3")
    ]


def test_other_weights_stop_the_comparison():
    nets = cases.swin_networks("swin_micro", 64, 0.0)
    with torch.no_grad():
        nets["mmdet"].stages[2].blocks[1].attn.w_msa.relative_position_bias_table[3] += 0.1
    with pytest.raises(RuntimeError, match="mmdet differs from ours in map 2"):
        cases.require_equal(nets, torch.randn(1, 3, 128, 128))


def test_published_tracing_learns_what_ours_learns():
    nets = cases.tlalign_networks("deit_tiny", 64)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([1, 7, 7, 999])
    gradients, losses = {}, {}
    for name, net in nets.items():
        for parameter in net.backbone.blocks[0].attn.qkv.parameters():
            # Peaked attention: labels then move enough to tell aligned targets from areas.
            parameter.data *= 5
        for _ in range(3):
            losses[name] = net.loss(images, labels)["loss"]
        losses[name].backward()
        gradients[name] = net.head.weight.grad
    torch.testing.assert_close(losses["ours, TL-Align"], losses["published tracing"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients["ours, TL-Align"], gradients["published tracing"], rtol=1e-4, atol=1e-6)
    assert abs(losses["plain CutMix"] - losses["ours, TL-Align"]) > 1e-4


@pytest.mark.parametrize("change", [{}, {"dtype": torch.bfloat16}], ids=["float32", "bfloat16"])
def test_tlalign_case_runs(change):
    (comparison,) = cases.tlalign(cases.Options(batch=2, size=32, **change), arch="deit_tiny")
    assert comparison.max_ratio == ({"plain CutMix": 1.05} if not change else {})
    for step in comparison.steps.values():
        assert step().isfinite()


def test_upernet_contestants_are_equal_and_all_of_them_run():
    titles = []
    for contest in cases.upernet(cases.Options(batch=1, size=64), arch="swin_micro"):
        titles.append(contest.title)
        for step in contest.steps.values():
            step()
    assert list(contest.steps) == ["ours", "mmseg"]
    assert titles == [
        f"UPerNet swin_micro, 1 × 64², {what}" for what in ("training step", "head, forward and backward", "test")
    ]


def test_coco_contestants_find_the_same_numbers():
    contests = list(cases.coco(cases.Options(), images=4, found=6))
    assert [contest.title.rpartition(", ")[2] for contest in contests] == ["bbox", "bbox and segm"]


def test_loader_contestants_load_the_same_crops():
    contests = cases.loader(cases.Options())
    steps = next(contests).steps
    assert list(steps) == ["ours", "mmpretrain"]
    ours, theirs = (step()["inputs"].float() for step in steps.values())
    assert ours.shape == theirs.shape == (3, 224, 224)
    # RandAugment's drawn operations follow; the same draws, nearly the same pixels.
    assert (ours - theirs).abs().mean() < 2


@pytest.mark.long
def test_mask_rcnn_contestants_are_equal_and_all_of_them_run():
    few = regions.FEW_CHANNELS
    contests = list(cases.mask_rcnn(cases.Options(batch=1, size=64), arch="swin_micro"))
    assert [contest.title.split(", ")[2] for contest in contests] == ["5 objects", "30 objects"]
    for contest in contests:
        losses = [step() for step in contest.steps.values()]
        assert losses[0].isfinite()
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    assert few == regions.FEW_CHANNELS


@pytest.mark.parametrize(
    ("arch", "millions", "gmacs"),
    [
        ("deit_tiny", 5.72, 1.26),
        ("swin_tiny", 28.29, 4.49),
        ("swin_tiny_c24", 28.31, 5.92),
        ("cait_xxs24", 11.96, 2.53),
    ],
)
def test_counts_equal_those_of_the_published_code(arch, millions, gmacs):
    """The attention's products are in the published figures; fused kernels would hide them from the counter."""
    found = complexity(arch)
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.005)
    assert found.macs / 1e9 == pytest.approx(gmacs, abs=0.01)


def test_speed_command_writes_what_it_prints(tmp_path, capsys):
    file = tmp_path / "speed.json"
    assert command.main(["benchmark", "speed", "--case", "optimizer", "--rounds", "2", "--json", str(file)]) == 0
    written, printed = json.loads(file.read_text()), capsys.readouterr().out
    (result,) = written["results"]
    ratio = result["ratios"]["mmengine, a group a parameter"]
    assert f"| {ratio['median']:.2f} |" in printed
    assert f"processor {written['environment']['processor']}" in printed
    assert [len(times) for times in result["seconds"].values()] == [2, 2]
    assert list(tmp_path.iterdir()) == [file]


def test_complexity_command(tmp_path, capsys):
    file = tmp_path / "cost.json"
    assert run_command("benchmark", ["complexity", "swin_micro", "--size", "64", "96", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    assert row["size"] == [64, 96]
    assert f"| swin_micro | 64 × 96 | {row['parameters'] / 1e6:.2f} |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["complexity", "swin_tinny"], "unknown architecture 'swin_tinny'; did you mean swin_tiny"),
        (["speed", "--case", "optimizer", "--size", "64"], "case optimizer: --size, .* leave them out"),
        (["speed", "--device", "cuda:99"], "--device cuda:99: this machine has .* CUDA devices"),
        (["speed", "--device", "gpu"], "--device gpu: give cpu, cuda or cuda:N"),
        (["speed", "--json", "no/such/folder/speed.json"], "speed.json: cannot be written"),
        (["complexity", "swin_micro", "--json", "/proc/counts.json"], "counts.json: cannot be written"),
    ],
)
def test_mistakes_are_one_line(argv, message, capsys):
    run = command.main if argv[0] == "speed" else lambda argv: run_command("benchmark", argv[1:])
    assert run(["benchmark", *argv]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert re.search(message, error)


def test_no_number_of_rounds_is_refused_before_anything_runs(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["benchmark", "speed", "--rounds", "0"])
    assert "argument --rounds: '0': give a number from 1" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--case", "swin"], ["--help"]])
def test_without_a_checkout_speed_says_where_it_is(options, capsys):
    assert run_command("benchmark", ["speed", *options]) == 2
    assert "in a checkout only; run tools/benchmark.py speed in one" in capsys.readouterr().err


def test_cases_are_those_that_exist_and_help_needs_no_torch():
    assert set(command.CASES) <= set(cases.__all__)
    code = "import sys, benchmarks.command as b; b.parser().format_help(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
