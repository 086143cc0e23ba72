"""``--mixing`` and ``--token-mix`` of ``train``, on recipes."""

import copy
import json

import pytest
from recipes import CONFIGS, read
from small_sets import class_folders
from tiny_runs import ProbeHook, small_scenes, tiny_config, train

from mixtransfer.engine.config import task_of
from mixtransfer.engine.fit_channels import fit_channels
from mixtransfer.engine.mixing_options import use_mixing, use_token_mix
from mixtransfer.errors import UserError
from mixtransfer.mixing import Region, TokenBox
from mixtransfer.registry import build
from mixtransfer.transfer import TokenMixHook

NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts)
DENSE = [name for name in NAMES if name.startswith(("seg/", "det/"))]
#: A recipe of each kind of head -> the classes of a token, and the last output's position.
HEADS = {
    "seg/upernet_pvt.py": (150, 3),
    "seg/semantic_fpn_pvt.py": (150, 3),
    "seg/segformer_fan.py": (19, 3),
    "det/mask_rcnn_deit.py": (81, 0),
    "det/cascade_mask_rcnn_hornet.py": (81, 3),
    "det/retinanet_cmt.py": (81, 2),
    "seg/upernet_swin_tlalign.py": (150, 3),
}


def test_every_dense_recipe_takes_token_mixing():
    for name in DENSE:
        cfg = copy.deepcopy(read(name))
        use_token_mix(cfg, "TokenBlocks", name)
        (hook,) = (dict(hook) for hook in cfg.custom_hooks if "TokenMixHook" in hook["type"])
        assert hook["region"] == dict(type="TokenBlocks") and cfg.model.backbone.token_classifier, name
        hook.pop("type")
        assert 8 <= TokenMixHook(**hook).cell_size <= 32, name


@pytest.mark.parametrize("name", HEADS)
def test_the_token_classifier_follows_head_and_backbone(name):
    cfg = copy.deepcopy(read(name))
    use_token_mix(cfg, "mixtransfer.TokenBox", name)
    fit_channels(cfg)
    found = cfg.model.backbone.token_classifier
    assert (found.num_classes, found.stages[-1]) == HEADS[name]
    assert isinstance(build(cfg.custom_hooks[-1]["region"], Region), TokenBox)


def test_cells_are_as_small_as_the_crops_ask_for():
    cfg = copy.deepcopy(read("seg/upernet_swin.py"))
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == "RandomCrop":
            step.crop_size = (64, 128)
    use_token_mix(cfg, "TokenBox", "x.py")
    assert cfg.custom_hooks[-1]["cell_size"] == 8


def test_a_backbone_that_is_not_ours_mixes_without_labels():
    cfg = copy.deepcopy(read("seg/upernet_swin.py"))
    cfg.model.backbone = dict(type="ResNetV1c", depth=50)
    use_token_mix(cfg, "Box", "x.py")
    assert cfg.custom_hooks[-1]["loss_weight"] == 0 and "token_classifier" not in cfg.model.backbone


def test_a_method_goes_into_any_classifiers_recipe():
    for name in NAMES:
        cfg = copy.deepcopy(read(name))
        if task_of(cfg) != "cls" or "mixmim_pretrain" in name:
            with pytest.raises(UserError, match=f"--mixing: {name} trains no classifier that mixes; --token-mix is"):
                use_mixing(cfg, "CutMix", name)
        else:
            use_mixing(cfg, "CutMix", name)
            assert cfg.model.mixing == dict(type="mixtransfer.CutMix")
    cfg = copy.deepcopy(read("pretrain/deit_tokenmix.py"))
    assert "teacher" in cfg.model
    use_mixing(cfg, "none", "x.py")
    assert cfg.model.mixing is None and "teacher" not in cfg.model
    with pytest.raises(UserError, match=r"--token-mix: x.py trains no segmentor or detector; --mixing is"):
        use_token_mix(cfg, "Box", "x.py")


@pytest.mark.parametrize(("task", "region"), [("seg", "ClassRegion"), ("det", "InstanceRegion")])
def test_a_region_of_the_command_line_is_trained_with(task, region, tmp_path):
    ProbeHook.reset()
    config, data = tiny_config(task, tmp_path), small_scenes(tmp_path)
    short = ("train_cfg.max_iters=2",) if task == "seg" else ("train_cfg.max_epochs=1", "train_dataloader.batch_size=8")
    options = ("--token-mix", region)
    assert train(config, data, tmp_path / "work", *options, cfg_options=(*short, "train_cfg.val_interval=9")) == 0
    assert len(ProbeHook.losses) >= 2 and all(0 < losses["loss_token"] < 20 for losses in ProbeHook.losses)
    (written,) = (tmp_path / "work").glob("*.py")
    assert f"type='{region}'" in written.read_text()


@pytest.mark.parametrize("name", ["MixPro", "nonsense"])
def test_a_method_of_the_command_line_is_trained_with(name, tmp_path, capsys):
    config = tmp_path / "small.py"
    config.write_text(f"_base_ = {str(CONFIGS / 'pretrain/swin_micro_scenes.py')!r}\n", encoding="utf-8")
    status = train(
        config,
        class_folders(tmp_path / "data"),
        tmp_path / "work",
        *("--mixing", name, "--epochs", "1"),
        cfg_options=("train_dataloader.batch_size=3", "default_hooks.logger.interval=1"),
    )
    if name == "nonsense":
        assert status == 2 and "unknown mixing method 'nonsense'" in capsys.readouterr().err
        return
    assert status == 0
    (log,) = (tmp_path / "work").rglob("scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(line.get("loss", -1) > 0 for line in lines)
