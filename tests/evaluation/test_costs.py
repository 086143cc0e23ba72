"""Cost of whole models: counts as papers print them, throughput of steps that are the config's."""

from __future__ import annotations

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from small_sets import coco, masks
from tiny_runs import CONFIGS, tiny_config
from torch.utils.flop_counter import FlopCounterMode

from mixtransfer.cli import run_command
from mixtransfer.engine.build import prepare
from mixtransfer.engine.config import load_config
from mixtransfer.engine.recipes import describe
from mixtransfer.evaluation import throughput
from mixtransfer.evaluation.model_complexity import BOXES, MASKS, model_complexity
from mixtransfer.evaluation.throughput import build, random_batch, sweep

SIZE = (64, 96)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Configs of a tiny segmentor and a tiny detector of three classes, prepared."""
    folder = tmp_path_factory.mktemp("costs")
    found = {}
    for task, data in {"seg": masks(folder / "seg"), "det": coco(folder / "det")}.items():
        cfg = load_config(tiny_config(task, folder), (), data=str(data), work_dir=folder / "run")
        prepare(cfg, "predict")
        found[task] = cfg
    return found


@pytest.fixture
def configs(tiny):
    return {task: Config(cfg.to_dict()) for task, cfg in tiny.items()}


def test_a_detector_costs_what_its_paper_prints(tmp_path, capsys):
    """Swin's table: 48 M parameters, 267 G. mmcv counts element-wise work too, and no products of attention."""
    name = "mask_rcnn_swin"
    assert run_command("benchmark", ["complexity", name, "--json", str(tmp_path / "cost.json")]) == 0
    (row,) = json.loads((tmp_path / "cost.json").read_text())
    assert row["published"] == {"parameters": 48, "MACs": 267} and row["size"] == [800, 1280]
    assert row["total"]["macs"] / 1e9 == pytest.approx(267, rel=0.02)
    assert row["total"]["parameters"] / 1e6 == pytest.approx(48, rel=0.01)
    parts = {part["name"]: part for part in row["parts"]}
    assert set(parts) == {"backbone", "neck", "rpn_head", "roi_head"}
    assert sum(part["macs"] for part in parts.values()) == row["total"]["macs"]
    printed = capsys.readouterr().out
    assert "| 47.79 | 48 |" in printed and "| 267 |" in printed
    assert "Published: " in printed and "SwinTransformer/Swin-Transformer-Object-Detection, README" in printed


def computed(call):
    """Multiply-accumulates of a call that is really made."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        answer = call()
    return answer, counter.get_total_flops() // 2


@pytest.mark.parametrize("task", ["seg", "det"])
def test_parts_cost_what_they_take_when_computed(task, configs):
    cfg = configs[task]
    found = {part.name: part for part in model_complexity(cfg, "tiny", size=SIZE).parts}
    model = build(cfg).eval()
    maps, backbone = computed(lambda: model.backbone(torch.zeros(1, 3, *SIZE)))
    assert found["backbone"].macs == found["backbone"].macs_here == backbone
    if task == "seg":
        _, head = computed(lambda: model.decode_head(maps))
        plain = build(Config({**cfg.to_dict(), "model": {**cfg.model, "decode_head": theirs(cfg.model.decode_head)}}))
        assert found["decode_head"].macs_here == head
        assert found["decode_head"].macs == computed(lambda: plain.eval().decode_head(maps))[1]
        assert found["auxiliary_head"].macs == 0 < found["auxiliary_head"].parameters
        return
    maps, neck = computed(lambda: model.neck(maps))
    assert found["neck"].macs == neck
    assert found["rpn_head"].macs == computed(lambda: model.rpn_head(maps))[1]
    head = model.roi_head
    _, boxes = computed(lambda: head.bbox_head(torch.zeros(BOXES, 16, 7, 7)))
    _, shapes = computed(lambda: head.mask_head(torch.zeros(MASKS, 16, 14, 14)))
    assert found["roi_head"].macs == boxes + shapes


def theirs(head):
    return {**head, "type": "mmseg.UPerHead"}


def test_counting_leaves_no_shapes_behind(configs):
    """Tables that are kept for all models would hold no values, had they been made of shapes."""
    model_complexity(configs["det"], "tiny", size=(80, 112))
    maps = build(configs["det"]).eval().backbone(torch.randn(1, 3, 80, 112))
    assert all(type(x) is torch.Tensor and x.isfinite().all() for x in maps)


def test_recipes_tell_what_is_published():
    recipe = describe(CONFIGS / "seg/upernet_swin.py")
    assert (recipe.model, recipe.data) == ("UPerNet, Swin-T", "ADE20K 512×512")
    assert recipe.scores == {"mIoU": 44.51} and recipe.costs == {"parameters": 60, "MACs": 945}
    assert recipe.source == "SwinTransformer/Swin-Transformer-Semantic-Segmentation, README" and not recipe.reproduced


@pytest.mark.parametrize("task", ["seg", "det"])
def test_rows_are_measured_batch_by_batch_and_written_as_they_are(task, tiny, configs, monkeypatch, tmp_path):
    cfg = configs[task]
    model = build(cfg)
    before = {name: value.clone() for name, value in model.named_parameters()}
    settings = dict(size=SIZE, device=torch.device("cpu"), dtype="bfloat16" if task == "seg" else "float32")
    rows = list(sweep(model, cfg, "tiny", modes=("evaluation", "training"), batches=(1, 2), seconds=0.01, **settings))
    assert [(row.mode, row.batch) for row in rows] == [
        ("evaluation", 1), ("evaluation", 2), ("training", 1), ("training", 2)
    ]  # fmt: skip
    # BatchNorm has nothing to normalize one image's pooled map by.
    assert [row.failed for row in rows] == ["", "", "a norm needs 2 images" if task == "seg" else "", ""]
    for row in rows:
        if row.failed:
            continue
        assert row.steps >= throughput.FEWEST and row.latency[50] <= row.latency[90] <= row.latency[99]
        assert row.batch / row.images_per_second * 1e3 <= row.latency[99] * 1.001
        assert row.memory is None or row.memory > 100
    # A training step moves every weight that trains.
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_batch_that_memory_does_not_hold_ends_its_mode(configs, monkeypatch):
    timed = throughput._timed

    def short(step, device, seconds):
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        calls.append(step)
        return timed(step, device, seconds)

    calls = []
    monkeypatch.setattr(throughput, "_timed", short)
    settings = dict(size=SIZE, device=torch.device("cpu"), dtype="float32", seconds=0.01)
    rows = list(
        sweep(build(configs["seg"]), configs["seg"], "tiny", modes=("evaluation",), batches=(1, 2, 4), **settings)
    )
    assert [(row.batch, row.failed) for row in rows] == [(1, ""), (2, "out of memory")]
    assert "| 2 | 64 × 96 | out of memory |" in throughput.table(rows)


@pytest.mark.parametrize("task", ["seg", "det"])
def test_random_batches_have_the_models_classes(task, configs):
    init_default_scope(configs[task].default_scope)
    batch = random_batch(configs[task], 2, SIZE)
    assert [tuple(image.shape) for image in batch["inputs"]] == [(3, *SIZE)] * 2
    if task == "seg":
        labels = torch.stack([sample.gt_sem_seg.data for sample in batch["data_samples"]])
        assert labels.unique().tolist() == [0, 1, 2]
        return
    for sample in batch["data_samples"]:
        found = sample.gt_instances
        assert len(found) == throughput.OBJECTS and found.labels.max() < 3
        assert (found.bboxes[:, 2:] > found.bboxes[:, :2]).all() and found.bboxes.min() >= 0
        assert (found.masks.masks.sum((1, 2)) == ((found.bboxes[:, 2:] - found.bboxes[:, :2]).prod(1)).numpy()).all()


def test_the_command_times_a_config(tmp_path, capsys):
    path = tiny_config("seg", tmp_path)
    command = ["throughput", str(path), "--mode", "evaluation", "--size", "64", "64", "--seconds", "0.01"]
    assert run_command("benchmark", [*command, "--json", str(tmp_path / "rows.json")]) == 0
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["environment"]["dtype"] == "float32" and len(written["rows"]) == 1
    assert f"| {path} | evaluation | 1 | 64 × 64 |" in capsys.readouterr().out


def test_a_checkpoints_weights_are_those_that_are_timed(configs, monkeypatch, tmp_path, capsys):
    def timed(model, *args, **kwargs):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return iter(())

    seen = []
    monkeypatch.setattr(throughput, "sweep", timed)
    path, file = tiny_config("seg", tmp_path), tmp_path / "trained.pth"
    classes = f"model.decode_head.num_classes={configs['seg'].model.decode_head.num_classes}"
    auxiliary = classes.replace("decode_head", "auxiliary_head")
    command = ["throughput", str(path), "--checkpoint", str(file), "--cfg-options", classes, auxiliary]
    weights = build(configs["seg"]).state_dict()
    torch.save({"state_dict": weights, "meta": {}}, file)
    assert run_command("benchmark", command) == 0
    assert seen[0].keys() == weights.keys() and all(torch.equal(seen[0][name], weights[name]) for name in weights)
    weights.pop("decode_head.conv_seg.bias")
    torch.save({"state_dict": weights, "meta": {}}, file)
    capsys.readouterr()
    assert run_command("benchmark", command) == 2
    assert "decode_head.conv_seg.bias" in capsys.readouterr().err and len(seen) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["complexity", "swin_tiny", "configs/det/mask_rcnn_swin.py"], "give one kind at a time"),
        (["complexity", "swin_tinyy"], "unknown architecture 'swin_tinyy'"),
        (["complexity", "--cfg-options", "a=1"], "--arch, --cfg-options: change configs; give one"),
        (
            ["throughput", "configs/a.py", "configs/b.py", "--checkpoint", "x.pth"],
            "--checkpoint: has the weights of one",
        ),
        (["throughput", "configs/a.py", "--checkpoint", "x.pth"], "x.pth: no such checkpoint file"),
        (["throughput", "configs/a.py", "--device", "tpu"], "--device tpu: give cpu, cuda or cuda:N"),
    ],
)
def test_mistakes_are_one_line(argv, message, capsys):
    assert run_command("benchmark", argv) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
