"""TL-Align's training step equals the published code's: images, labels after every block, target, loss, gradients."""

import pytest
import torch
from parity_records import assert_matches, image, records
from published_steps import Step

import mixtransfer
from mixtransfer.layers.labels import labels_to_tokens
from mixtransfer.mixing import Draw
from mixtransfer.mixing.draws import flip_partner, own_share

TOLERANCE = 1e-6


@pytest.mark.parametrize(("system", "name"), records("tlalign train"))
def test_training_step_equals_published(system, name):
    step = Step(system, name, torch.float64, mixing=dict(type="TLAlign"))
    given, outputs, net, images = step.given, step.outputs, step.net, step.images
    grid = tuple(side // given["patch_size"] for side in images.shape[2:])
    mask = torch.tensor(given["mask"]).view(1, *grid).bool()
    draw = Draw(flip_partner(step.batch), mask, own_share(mask, step.batch))
    mixed = net.mixing.apply(images, draw)
    step.check(TOLERANCE, mixed_image=mixed)

    # One channel is carried; every label of the batch is a blend of two rows by it.
    plain = step.targets
    x, rows, _ = net.backbone.tokens(mixed, draw.label_map(mixed))
    blend = lambda share: (1 - share) * plain[:, None] + share * plain.flip(0)[:, None]  # noqa: E731
    step.check(TOLERANCE, target_class_token=blend(rows)[:, 0], target_patch_tokens=blend(rows)[:, 1:])
    for index, block in enumerate(net.backbone.blocks):
        x, rows = block(x, rows)
        for key, value in ((f"block{index:02}.label", blend(rows)), (f"block{index:02}.tokens", x)):
            if key in outputs:
                assert_matches(value, outputs[key], TOLERANCE, key)

    step.replay(draw)
    evidence = net.collect(mixed, draw)
    step.check(TOLERANCE, target_final=net.mixing.relabel(plain, draw, evidence), logits=evidence["logits"])
    (loss,) = net.loss(images, step.labels).values()
    loss.backward()
    step.check(TOLERANCE, loss=loss[None])
    step.check_gradients(TOLERANCE)


@pytest.mark.parametrize("arch", ["deit_tiny", "swin_micro"])
def test_one_channel_equals_a_channel_a_class(arch):
    """The rule is linear, so the share of one image says as much as the labels of all classes."""
    net = mixtransfer.build_classifier(arch, num_classes=5, backbone=dict(img_size=64)).double()
    images = image(64, 64, 4)
    share = torch.rand(4, 1, 4, 4).double()
    first, second = torch.rand(2, 4, 5, 1, 1).double().unbind(0)
    _, label = net.backbone.embed(images, share)
    _, labels = net.backbone.embed(images, share * first + (1 - share) * second)
    torch.testing.assert_close(labels, label * first[..., 0, 0] + (1 - label) * second[..., 0, 0], rtol=0, atol=1e-12)


def test_the_fused_label_equals_the_published_way_with_gradients():
    """mean_heads(A) L, from a materialized map, in one attention layer; the gradients are those of plain attention."""
    from mixtransfer.layers.attention import attend

    q, k, v = (torch.randn(2, 3, 17, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    labels = labels_to_tokens(torch.rand(2, 5, 1, 17, dtype=torch.float64), (1, 17))
    out, moved = attend(q, k, v, labels)
    attention = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    torch.testing.assert_close(moved, attention.detach().mean(1) @ labels, rtol=0, atol=1e-12)
    weight = torch.randn_like(out)
    fused = torch.autograd.grad((out * weight).sum(), (q, k, v))
    plain = torch.autograd.grad(((attention @ v) * weight).sum(), (q, k, v))
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_step_learns_and_follows_its_number():
    net = mixtransfer.build_classifier(
        "swin_micro", num_classes=3, mixing=dict(type="TLAlign"), backbone=dict(img_size=64)
    )
    images, labels = torch.randn(5, 3, 64, 64), torch.tensor([0, 1, 2, 0, 1])
    losses = []
    for step in (3, None, 3):
        net.step = net.step if step is None else step
        losses.append(net.loss(images, labels)["loss"].item())
    assert net.step == 4
    assert losses[0] == losses[2] != losses[1]
