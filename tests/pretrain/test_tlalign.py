"""TL-Align's training step equals the published code's: images, labels after every block, target, loss, gradients."""

import pytest
import torch
from parity_records import assert_matches, image, published_state, record

import mixtransfer
from mixtransfer.layers.labels import labels_to_tokens
from mixtransfer.mixing import AlignedTokens, TokenBox
from mixtransfer.mixing.draws import Draw
from mixtransfer.pretrain.classifier import smooth_one_hot, soft_cross_entropy

TOLERANCE = 1e-6


@pytest.mark.parametrize("name", ["tlalign_deit_tiny_train_64x64", "tlalign_deit_tiny_train_sharp_64x96"])
def test_training_step_equals_published(name):
    expected = record("tlalign", name)
    given, outputs = expected["given"], expected["outputs"]
    batch, height, width = (expected["input"][key] for key in ("batch", "height", "width"))
    classes, grid = given["num_classes"], (height // 16, width // 16)
    net = mixtransfer.build_classifier("deit_tiny", num_classes=classes, backbone=dict(img_size=(height, width)))
    net = net.double().train()
    net.load_state_dict(mixtransfer.convert_state_dict(published_state(expected), "deit_tiny"))

    images = image(height, width, batch)
    mask = torch.tensor(given["mask"]).view(1, *grid).bool()
    ratio = (1 - mask.double().mean()).expand(batch)
    draw = Draw(partner=torch.arange(batch).flip(0), mask=mask, ratio=ratio)
    mixed = TokenBox().apply(images, draw)
    assert_matches(mixed, outputs["mixed_image"], TOLERANCE, "mixed_image")

    # One channel is carried; every label of the batch is a blend of two rows by it.
    plain = smooth_one_hot(torch.tensor(given["labels"]), classes, given["label_smoothing"]).double()
    x, rows, _ = net.backbone.tokens(mixed, draw.label_map(mixed))
    blend = lambda share: (1 - share) * plain[:, None] + share * plain.flip(0)[:, None]  # noqa: E731
    assert_matches(blend(rows)[:, 0], outputs["target_class_token"], TOLERANCE, "target_class_token")
    assert_matches(blend(rows)[:, 1:], outputs["target_patch_tokens"], TOLERANCE, "target_patch_tokens")
    for index, block in enumerate(net.backbone.blocks):
        x, rows = block(x, rows)
        assert_matches(blend(rows), outputs[f"block{index:02}.label"], TOLERANCE, f"label of block {index}")
        if f"block{index:02}.tokens" in outputs:
            assert_matches(x, outputs[f"block{index:02}.tokens"], TOLERANCE, f"tokens of block {index}")

    vector, label = net.backbone.embed(mixed, draw.label_map(mixed))
    logits = net.head(vector)
    targets = AlignedTokens().relabel(plain, draw, {"token_labels": label})
    loss = soft_cross_entropy(logits, targets)
    loss.backward()
    assert_matches(targets, outputs["target_final"], TOLERANCE, "target_final")
    assert_matches(logits, outputs["logits"], TOLERANCE, "logits")
    assert_matches(loss[None], outputs["loss"], TOLERANCE, "loss")
    gradients = dict(net.backbone.named_parameters()) | {f"head.{k}": p for k, p in net.head.named_parameters()}
    for key in (key for key in outputs if key.startswith("grad.")):
        assert_matches(gradients[key.removeprefix("grad.")].grad, outputs[key], TOLERANCE, key)


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


def test_a_step_learns_and_follows_the_iteration():
    from mmengine.logging import MessageHub

    net = mixtransfer.build_classifier(
        "swin_micro", num_classes=3, mixing=dict(type="TLAlign"), backbone=dict(img_size=64)
    )
    images, labels = torch.randn(5, 3, 64, 64), torch.tensor([0, 1, 2, 0, 1])
    hub = MessageHub.get_current_instance()
    losses = []
    for step in (3, 4, 3):
        hub.update_info("iter", step)
        losses.append(net.loss(images, labels)["loss"].item())
    hub.runtime_info.pop("iter")
    assert losses[0] == losses[2] != losses[1]
