"""Options change what a config has or what is read of it; a resumed training says how its settings differ."""

from __future__ import annotations

import sys

import pytest
from mmengine.config import Config

from mixtransfer.engine.build import prepare
from mixtransfer.engine.cfg_options import apply_options
from mixtransfer.engine.config import check_windows, read_config
from mixtransfer.engine.launchers import _first_host, check_launcher
from mixtransfer.engine.settings import changed_settings, describe
from mixtransfer.errors import UserError


def config(**more):
    return Config(
        dict(
            model=dict(type="EncoderDecoder", backbone=dict(type="ResNet", depth=50), test_cfg=dict(mode="whole")),
            train_dataloader=dict(batch_size=2, dataset=dict(type="ADE20KDataset")),
            train_cfg=dict(type="IterBasedTrainLoop", max_iters=5),
            optim_wrapper=dict(type="OptimWrapper", clip_grad=None, optimizer=dict(type="AdamW", lr=0.1)),
            param_scheduler=[dict(type="PolyLR", power=0.9, by_epoch=False)],
            default_scope="mmseg",
            **more,
        )
    )


@pytest.mark.parametrize(
    "option, value",
    [
        ("model.test_cfg.crop_size=(64,64)", (64, 64)),
        ("optim_wrapper.clip_grad.max_norm=1.0", 1.0),
        ("train_dataloader.drop_last=true", True),
        ("randomness.seed=7", 7),
        ("env_cfg.mp_cfg.mp_start_method=spawn", "spawn"),
        ("custom_hooks=[dict(type='EMAHook', momentum=1e-3)]", [{"type": "EMAHook", "momentum": 1e-3}]),
        ("train_dataloader.dataset={'type': 'CityscapesDataset'}", {"type": "CityscapesDataset"}),
        ("model.backbone.out_indices=0,2", [0, 2]),
        ("model.backbone.pretrained=weights/a=b.pth", "weights/a=b.pth"),
        # In the place of None, alone and inside other settings.
        ("optim_wrapper.clip_grad={'max_norm': 2}", {"max_norm": 2}),
        ("optim_wrapper={'clip_grad': {'max_norm': 2}, '_delete_': True}", {"clip_grad": {"max_norm": 2}}),
        ("custom_hooks=[]", []),
        ("val_dataloader=None", None),
    ],
)
def test_whatever_is_read_can_be_set(option, value):
    cfg = config()
    apply_options(cfg, [option], "it.py")
    place = cfg
    for part in option.partition("=")[0].split("."):
        place = place[part]
    assert place == value and isinstance(place, type(value))


def test_lists_can_be_appended_to():
    cfg = config(custom_hooks=[dict(type="A")])
    more = ["custom_hooks+=[dict(type='B'), dict(type='C')]", "custom_hooks+=dict(type='D')"]
    apply_options(cfg, [*more, "param_scheduler+=dict(type='LinearLR')"], "it.py")
    assert [hook["type"] for hook in cfg.custom_hooks] == ["A", "B", "C", "D"]
    assert [part.type for part in cfg.param_scheduler] == ["PolyLR", "LinearLR"]
    none = config()
    apply_options(none, ["custom_hooks+=[dict(type='B')]"], "it.py")
    assert none.custom_hooks == [dict(type="B")]
    for option, text in (("train_cfg.max_iters+=3", "is no list; write train_cfg.max_iters=VALUE"),
                         ("custom_hooks+=3", "holds a list of settings")):  # fmt: skip
        with pytest.raises(UserError, match=text):
            apply_options(config(custom_hooks=[dict(type="A")]), [option], "it.py")


@pytest.mark.parametrize(
    "option, words",
    [
        ("custom_hooks=[dict(type='EMAHook']", "the value cannot be read; write it as in Python"),
        ("model.backbone.depth=((1", "the value cannot be read"),
        ("custom_hooks={'type'", "the value cannot be read"),
        ("model.backbone.depth=" + "[" * 5000 + "]" * 5000, "the value cannot be read"),
        ("optim_wrapper.clip_grad.max_nrom=1", "'max_nrom'; did you mean max_norm"),
        ("train_dataloader.batchsize=1", "'batchsize'; did you mean batch_size"),
        ("randomness.sed=1", "'sed'; did you mean seed"),
        ("model.test_cfg.size=1", "unknown --cfg-options entry of model.test_cfg 'size'"),
        ("train_dataloader.sampler.shuffle=True", "train_dataloader has no sampler; set it as a whole"),
    ],
)
def test_options_that_nothing_reads_are_refused(option, words):
    with pytest.raises(UserError) as error:
        apply_options(config(), [option], "it.py")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "option",
    "model=3 model.backbone=None train_cfg=None train_dataloader.dataset=[] param_scheduler=fast custom_hooks=[EMAHook]"
    " custom_hooks=3 default_hooks=7 param_scheduler.0=4 randomness=3".split(),
)
def test_settings_do_not_become_a_word(option):
    with pytest.raises(UserError, match=rf"--cfg-options .*: {option.partition('=')[0]} holds (a list of )?settings"):
        apply_options(config(), [option], "it.py")


def test_settings_go_where_a_config_says_none_inside_others():
    cfg = config()
    apply_options(cfg, ["optim_wrapper={'clip_grad': {'max_norm': 2}}"], "it.py")
    assert cfg.optim_wrapper.clip_grad == {"max_norm": 2} and cfg.optim_wrapper.optimizer.lr == 0.1


@pytest.mark.parametrize("line", ["model = 3", "custom_hooks = 3", "custom_hooks = ['a']", "train_cfg = 'x'"])
def test_a_config_with_a_word_in_the_place_of_settings_is_one_line(line, tmp_path):
    (tmp_path / "it.py").write_text(f"model = dict()\n{line}\n")
    with pytest.raises(UserError, match=rf"it\.py: {line.partition(' ')[0]} is .*; write dict"):
        read_config(tmp_path / "it.py")


def test_sliding_windows_need_a_size():
    cfg = config()
    apply_options(cfg, ["model.test_cfg.mode=slide"], "it.py")
    with pytest.raises(UserError, match=r"mode=slide needs the windows too: .*crop_size=.*stride="):
        check_windows(cfg)


@pytest.mark.parametrize("launcher, start", [("slurm", "srun"), ("mpi", "mpirun"), ("pytorch", "torchrun")])
def test_a_launcher_that_did_not_start_the_process(launcher, start, monkeypatch):
    for key in ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "RANK"):
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(UserError, match=f"--launcher {launcher}: no .* in the environment; start it with {start}"):
        check_launcher(launcher)


def test_slurms_first_host_is_asked_for(tmp_path, monkeypatch):
    program = tmp_path / "scontrol"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"scontrol show hostnames node\[01-02\] names no host; export MASTER_ADDR"):
        _first_host("node[01-02]")
    program.write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames node[01-02]" ] && echo node01 && echo node02\n')
    program.chmod(0o755)
    assert _first_host("node[01-02]") == "node01"


def test_a_config_keeps_what_it_says(tmp_path, monkeypatch):
    (tmp_path / "my_hooks.py").write_text("ran = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    class IoUMetric:
        """A class as ``type``."""

    class TokenMixHook:
        """Another."""

    drawing = dict(type="SegVisualizationHook", draw=True)
    cfg = config(
        custom_imports=dict(imports=["my_hooks"]),
        default_hooks=dict(visualization=drawing),
        randomness=dict(seed=5, deterministic=True),
        test_evaluator=dict(type=IoUMetric),
        custom_hooks=[dict(type=TokenMixHook)],
        work_dir=str(tmp_path),
    )
    cfg.model.backbone = dict(type="ResNet", depth=50)
    prepare(cfg, "test")
    assert sys.modules["my_hooks"].ran
    assert cfg.default_hooks.visualization == drawing and cfg.randomness.seed == 5 and cfg.randomness.deterministic
    assert cfg.test_evaluator.type == "mixtransfer.ClassIoU" and cfg.custom_hooks == []
    cfg = config(work_dir=str(tmp_path), custom_imports=dict(imports="no_such_module"))
    with pytest.raises(UserError, match=r"custom_imports: no_such_module: .*PYTHONPATH"):
        prepare(cfg, "test")


def test_a_config_without_default_hooks_trains(tmp_path):
    cfg = config(work_dir=str(tmp_path))
    prepare(cfg, "resume")
    assert cfg.default_hooks.checkpoint.type == "mixtransfer.CheckpointHook"


def test_changed_settings_are_said_one_a_line():
    saved, cfg = describe(config(), 2), config()
    assert changed_settings(saved, saved, "iter_5.pth") == []
    cfg.train_dataloader.batch_size, cfg.train_cfg.max_iters = 4, 9
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint="gone.pth")
    lines = changed_settings(saved, describe(cfg, 1), "iter_5.pth")
    assert lines == [
        "processes: 2 -> 1",
        "train_dataloader.batch_size: 2 -> 4",
        "train_cfg.max_iters: 5 -> 9",
        "samples come in another order from here on",
    ]
    for text in (None, "", "[]", "{}", '{"config": 3}', "[" * 9999):
        (line,) = changed_settings(text, saved, "iter_5.pth")
        assert line.startswith("iter_5.pth") and "not seen" in line


@pytest.mark.parametrize("change", [{"lr": 1.0}, {"type": "Adam"}])
def test_settings_that_a_checkpoint_brings_are_not_changed_in_silence(change):
    cfg = config()
    cfg.optim_wrapper.optimizer.update(change)
    with pytest.raises(
        UserError, match=r"--resume: optim_wrapper.optimizer.*iter_5.pth brings the state of the former"
    ):
        changed_settings(describe(config(), 1), describe(cfg, 1), "iter_5.pth")
