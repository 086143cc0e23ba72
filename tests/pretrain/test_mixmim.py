"""MixMIM's pretraining: the published step, what the mask hides, its checkpoints, a run that is cut."""

import functools
import zlib

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmpretrain.structures import DataSample
from parity_records import assert_matches, fill, published_state, record, record_input
from published_steps import both_precisions
from tiny_runs import CONFIGS, ProbeHook, small_scenes, train
from toys import TOYS

import mixtransfer
from mixtransfer.backbones.mixmim import MixMIMEncoder
from mixtransfer.cli import run_command
from mixtransfer.errors import UserError
from mixtransfer.pretrain import MixMIM
from mixtransfer.pretrain.mixmim import CELL, _normalization, cells, image_of

EXPECTED = record("mixmim", "mixmim_base_pretrain")
GIVEN, OUTPUTS = EXPECTED["given"], EXPECTED["outputs"]


@functools.cache
def published():
    """Return the record's entries, without what a network computes itself."""
    return {key: value for key, value in published_state(EXPECTED).items() if key not in EXPECTED["computed"]}


def published_net(dtype):
    net = MixMIM(EXPECTED["arch"]).to(dtype).train()
    assert sum(p.numel() for p in net.parameters()) == EXPECTED["param_count"]
    own = {key.removeprefix("backbone."): value for key, value in net.state_dict().items()}
    net.load_state_dict({**published(), **{key: own[key] for key in EXPECTED["computed"]}})
    return net


@both_precisions
def test_the_training_step_equals_published(dtype, tolerance):
    net, images = published_net(dtype), record_input(EXPECTED).to(dtype)
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(GIVEN["mask_noise"]["key"].encode())))
    noise = noise.random(len(GIVEN["mask"])).astype(np.float32)
    mask = net.mask_of(torch.from_numpy(noise), tuple(GIVEN["mask_grid"]))
    assert mask.flatten().tolist() == GIVEN["mask"]
    net.draw = lambda images: mask

    check = functools.partial(_check, tolerance)
    with torch.no_grad():
        latent = net.backbone.encode_mixed(images, mask)
        check(latent=latent, x_rec=net.decoder_pred(net.decoder_norm(net.decode(latent, mask))))
    target = cells(images)
    mean, scale = _normalization(target)
    check(target_norm_pix=(target - mean) / scale)

    loss = net(images, mode="loss")["loss"]
    restored = net(images)
    check(loss=loss, unmixed_rec=restored, loss_per_patch=(restored - (target - mean) / scale).square().mean(dim=-1))
    net.norm_pixels = False
    check(loss_without_norm_pix=net(images, mode="loss")["loss"])

    loss.backward()
    parameters = dict(net.backbone.named_parameters()) | dict(net.named_parameters())
    gradients = {key: parameters[key.removeprefix("grad:")].grad for key in OUTPUTS if key.startswith("grad:")}
    assert len(gradients) == 5
    check(**gradients)


def _check(tolerance, **found):
    for name, value in found.items():
        assert_matches(value, OUTPUTS[name], tolerance, name)


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


def test_a_steps_mask_is_that_of_its_iteration(toy):
    images, hub = torch.empty(4, 3, 128, 96), MessageHub.get_current_instance()

    def draw(step):
        hub.update_info("iter", step)
        return toy.draw(images)

    first = [draw(step) for step in range(3)]
    assert all(mask.shape == (4, 3) and mask.sum() == 6 for mask in first)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(draw(1), first[1])
    toy.mask_ratio = 0.26
    assert draw(1).sum() == 3


def test_predicting_shows_what_was_mixed_and_restored(toy):
    images = torch.rand(3, 3, 64, 64)
    MessageHub.get_current_instance().update_info("iter", 5)
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


def test_a_published_file_becomes_an_encoder_and_names_what_it_leaves(tmp_path, capsys):
    state = {key: value.float() for key, value in published().items()}
    for key in EXPECTED["computed"]:
        state[key] = torch.from_numpy(fill(key, tuple(EXPECTED["state"][key]["shape"]))).float()
    source, target = tmp_path / "pretrain.pth", tmp_path / "encoder.safetensors"
    torch.save({"model": state, "epoch": 599}, source)
    assert run_command("convert", [str(source), str(target), "--arch", EXPECTED["arch"]]) == 0
    assert "pretraining decoder" in capsys.readouterr().out
    net = mixtransfer.build_backbone(EXPECTED["arch"], with_embedding=True)
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
