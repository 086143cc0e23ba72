"""MixMIM's pretraining: the published step, what the mask hides, its checkpoints, a run that is cut."""

import functools

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample
from parity_records import (
    assert_matches,
    both_precisions,
    fill,
    img_size,
    published_state,
    record,
    record_input,
    records,
    uniform,
)
from tiny_runs import CONFIGS, ProbeHook, small_scenes, train
from toys import TOYS

import mixtransfer
from mixtransfer.backbones.mixmim import MixMIMEncoder
from mixtransfer.cli import run_command
from mixtransfer.errors import UserError
from mixtransfer.pretrain import MixMIM
from mixtransfer.pretrain.mixmim import CELL, _normalization, cells, image_of

PRETRAIN = pytest.mark.parametrize(("system", "name"), records("pretrain"))
#: Arguments of the published class -> ours.
OPTIONS = {
    "decoder_dim": "decoder_channels",
    "decoder_depth": "decoder_depth",
    "decoder_num_heads": "decoder_heads",
    "norm_pix_loss": "norm_pixels",
}


@functools.cache
def published(system, name):
    """Return the record's entries, without those that a network computes itself."""
    expected = record(system, name)
    return {key: value for key, value in published_state(expected).items() if key not in expected["computed"]}


def published_net(system, name, dtype):
    expected = record(system, name)
    arguments = expected["source"]["kwargs"]
    options = {ours: arguments[theirs] for theirs, ours in OPTIONS.items() if theirs in arguments}
    mask_ratio = expected["given"]["mask_ratio"]
    net = MixMIM(expected["arch"], backbone=img_size(expected), mask_ratio=mask_ratio, **options).to(dtype).train()
    assert sum(p.numel() for p in net.parameters()) == expected["param_count"]
    own = {key.removeprefix("backbone."): value for key, value in net.state_dict().items()}
    net.load_state_dict({**published(system, name), **{key: own[key] for key in expected["computed"]}})
    return net


@both_precisions
@PRETRAIN
def test_the_training_step_equals_published(system, name, dtype, tolerance):
    expected = record(system, name)
    given, outputs = expected["given"], expected["outputs"]
    net, images = published_net(system, name, dtype), record_input(expected).to(dtype)
    noise = uniform(given["mask_noise"]["key"], (len(given["mask"]),)).astype(np.float32)
    mask = net.mask_of(torch.from_numpy(noise), tuple(given["mask_grid"]))
    assert mask.flatten().tolist() == given["mask"]
    net.draw = lambda images: mask

    def check(**found):
        for key, value in found.items():
            assert_matches(value, outputs[key], tolerance, key)

    with torch.no_grad():
        latent = net.backbone.encode_mixed(images, mask)
        check(latent=latent, x_rec=net.decoder_pred(net.decoder_norm(net.decode(latent, mask))))
    target = cells(images)
    mean, scale = _normalization(target)
    check(target_norm_pix=(target - mean) / scale)

    loss = net(images, mode="loss")["loss"]
    restored = net(images)
    goal = (target - mean) / scale if net.norm_pixels else target
    check(loss=loss, unmixed_rec=restored, loss_per_patch=(restored - goal).square().mean(dim=-1))
    net.norm_pixels = False
    check(loss_without_norm_pix=net(images, mode="loss")["loss"])

    loss.backward()
    parameters = dict(net.backbone.named_parameters()) | dict(net.named_parameters())
    gradients = {key: parameters[key.removeprefix("grad:")].grad for key in outputs if key.startswith("grad:")}
    assert gradients
    check(**gradients)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(MixMIMEncoder.archs, "toy", TOYS["mixmim"])
    torch.manual_seed(0)
    return MixMIM("toy", decoder_channels=16, decoder_depth=1, decoder_heads=2)


def test_cells_are_the_images_pixels():
    images = torch.rand(2, 3, 2 * CELL, 3 * CELL)
    rows = cells(images)
    assert torch.equal(rows[1, 4].view(CELL, CELL, 3), images[1, :, CELL:, CELL : 2 * CELL].permute(1, 2, 0))
    assert torch.equal(image_of(rows, (2, 3)), images)


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_a_cell_is_restored_from_the_cells_of_its_image_that_it_is_not_among(toy, size):
    mask = toy.draw(torch.empty(1, 3, *size))
    images = torch.rand(3, 3, *size, requires_grad=True)
    restored = toy.restore(images, mask)
    for foreign, index in ((0.0, 0), (1.0, 2)):
        row = int((mask.flatten() == foreign).nonzero()[0])
        (gradient,) = torch.autograd.grad(restored[index, row].sum(), images, retain_graph=True)
        read = cells(gradient).abs().amax(dim=-1) > 0
        # What was covered is restored from the rest of the image, and the rest from what was covered.
        assert read[index].tolist() == (mask.flatten() != foreign).tolist()
        assert not read[[i for i in range(3) if i != index]].any()


def test_a_mask_follows_the_number_of_the_step(toy):
    images = torch.empty(4, 3, 128, 96)

    def draw(step):
        toy.step = step
        return toy.draw(images)

    first = [draw(step) for step in range(3)]
    assert all(mask.shape == (4, 3) and mask.sum() == 6 for mask in first)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(draw(1), first[1])
    toy.mask_ratio = 0.26
    assert draw(1).sum() == 3


def test_predicting_shows_what_was_mixed_and_restored(toy):
    images = torch.rand(3, 3, 64, 64)
    toy.step = 5
    mask = toy.eval().draw(images)
    samples = toy(images, [DataSample() for _ in images], mode="predict")
    pixels = mask.bool().repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
    assert torch.equal(samples[0].mixed, torch.where(pixels, images[2], images[0]))
    # Restored cells have the mean of what they restore, up to what the network adds.
    toy.decoder_pred.weight.data.zero_()
    samples = toy(images, samples, mode="predict")
    mean = cells(images)[1:2].mean(dim=-1, keepdim=True)
    assert torch.allclose(cells(samples[1].restored[None]), mean.expand(-1, -1, 3 * CELL**2))


def test_half_precision_trains(toy):
    with torch.autocast("cpu", torch.bfloat16):
        loss = toy(torch.rand(2, 3, 64, 64), mode="loss")["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert [key for key, value in toy.named_parameters() if value.requires_grad and value.grad is None] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(arch="swin_tiny"), "only its own encoder keeps mixed images apart; give a mixmim_"),
        (dict(mask_ratio=0.0), "mask_ratio=0.0: give a share between 0 and 1"),
        (dict(mask_ratio=1), "mask_ratio=1: give a share between 0 and 1"),
    ],
)
def test_what_is_no_pretraining_of_mixmim(options, message):
    with pytest.raises(UserError, match=message):
        MixMIM(**options)


def test_images_are_whole_cells(toy):
    with pytest.raises(UserError, match="images of 64×80; give sides that are multiples of 32"):
        toy(torch.rand(2, 3, 64, 80), mode="loss")


@PRETRAIN
def test_a_published_file_becomes_an_encoder_and_names_what_it_leaves(system, name, tmp_path, capsys):
    expected = record(system, name)
    state = {key: value.float() for key, value in published(system, name).items()}
    for key in expected["computed"]:
        state[key] = torch.from_numpy(fill(key, tuple(expected["state"][key]["shape"]))).float()
    source, target = tmp_path / "pretrain.pth", tmp_path / "encoder.safetensors"
    torch.save({"model": state, "epoch": 599}, source)
    assert run_command("convert", [str(source), str(target), "--arch", expected["arch"]]) == 0
    assert "pretraining decoder" in capsys.readouterr().out
    net = mixtransfer.build_backbone(expected["arch"], with_embedding=True)
    mixtransfer.load_checkpoint(net, target)
    # The file's position table is taken as it is.
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items() if key in state)


def test_a_cut_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MixMIMEncoder.archs, "toy", TOYS["mixmim"])
    config = tmp_path / "tiny.py"
    config.write_text(
        f"""
_base_ = {str(CONFIGS / "pretrain/mixmim_pretrain.py")!r}
model = dict(arch="toy", decoder_channels=16, decoder_depth=1, decoder_heads=2)
train_dataloader = dict(batch_size=3, persistent_workers=False)
train_cfg = dict(max_epochs=2)
param_scheduler = []
custom_hooks = [dict(type="mixtransfer.ProbeHook")]
""",
        encoding="utf-8",
    )
    scenes, small = small_scenes(tmp_path), ("train_dataloader.dataset.pipeline.1.scale=64",)
    ProbeHook.reset()
    assert train(config, scenes, tmp_path / "straight", cfg_options=small) == 0
    straight = ProbeHook.losses
    assert len(straight) == 8
    ProbeHook.reset(stop_after=6)
    assert train(config, scenes, tmp_path / "cut", cfg_options=small) == 130
    ProbeHook.reset()
    assert train(config, scenes, tmp_path / "cut", "--resume", cfg_options=small) == 0
    assert ProbeHook.losses == straight[6:]

    capsys.readouterr()
    assert run_command("test", [str(config), str(tmp_path / "cut" / "epoch_2.pth"), "--data", str(scenes)]) == 2
    assert "nothing to measure" in capsys.readouterr().err
    encoder = tmp_path / "encoder.safetensors"
    assert run_command("convert", [str(tmp_path / "cut" / "epoch_2.pth"), str(encoder), "--arch", "toy"]) == 0
    mixtransfer.load_checkpoint(mixtransfer.build_backbone("toy"), encoder)
