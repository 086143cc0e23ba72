"""TransMix: its published training step, the row of attention that it reads, and its label's rule."""

import pytest
import torch
from parity_records import assert_matches, both_precisions, img_size, published_state, record, record_input, records
from published_steps import Step
from toys import build_toy

import mixtransfer
from mixtransfer.errors import UserError
from mixtransfer.layers import attention_maps
from mixtransfer.mixing import AttentionWeighted, Box, Draw, PixelDraw, TokenBox, TransMix, WholeImage
from mixtransfer.mixing.draws import flip_partner, own_share, step_generator
from mixtransfer.mixing.regions import box_at
from mixtransfer.mixing.transmix import attention_share


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("transmix train", lambda r: r["given"]["use_cutmix"]))
def test_a_step_with_a_box_equals_published(system, name, dtype, tolerance):
    step = Step(system, name, dtype, mixing=dict(type="TransMix"))
    given = step.given
    box = box_at(tuple(step.images.shape[2:]), given["lambda_drawn"], tuple(given["box_center_yx_pixels"]))
    assert list(box) == given["box_pixels_yl_yh_xl_xh"]
    draw = step.box_draw(*box)
    mixed = step.net.mixing.apply(step.images, draw)
    seen = step.net.collect(mixed, draw)
    attention = seen["class_attention"]
    share = attention_share(attention, draw)
    step.check(
        tolerance,
        mixed_image=mixed,
        lambda_corrected=draw.ratio[:1],
        y1=step.targets,
        y2=step.targets.flip(0),
        class_attention_last_block=attention.flatten(1),
        class_attention_sum=attention.sum(dim=(1, 2)),
        attention_weight_B=share * attention.sum(dim=(1, 2)),
        lambda0_area_of_B=1 - draw.ratio[:1],
        lambda1_attention_of_B=share,
        lambda_final_of_B=(1 - draw.ratio + share) / 2,
        target_area=draw.ratio[:, None] * step.targets + (1 - draw.ratio[:, None]) * step.targets.flip(0),
        target_final=step.net.mixing.relabel(step.targets, draw, seen),
        logits=seen["logits"],
    )
    step.replay(draw)
    (loss,) = step.net.loss(step.images, step.labels).values()
    loss.backward()
    step.check(tolerance, loss=loss[None])
    step.check_gradients(tolerance)


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("transmix train", lambda r: not r["given"]["use_cutmix"]))
def test_a_step_of_mixup_equals_published(system, name, dtype, tolerance):
    step = Step(system, name, dtype, mixing=dict(type="TransMix"))
    draw = step.even_draw(step.given["lambda_drawn"])
    mixed = step.net.mixing.apply(step.images, draw)
    seen = step.net.collect(mixed, draw)
    target = step.net.mixing.relabel(step.targets, draw, seen)
    attention = seen["class_attention"].flatten(1)
    step.check(tolerance, mixed_image=mixed, target_area=target, target_final=target, logits=seen["logits"])
    step.check(tolerance, class_attention_last_block=attention, class_attention_sum=attention.sum(1))
    step.replay(draw)
    (loss,) = step.net.loss(step.images, step.labels).values()
    loss.backward()
    step.check(tolerance, loss=loss[None])
    step.check_gradients(tolerance)


@both_precisions
@pytest.mark.parametrize(
    ("system", "name"), records("classify", lambda r: "class_attention_last_block" in r["outputs"])
)
def test_the_class_attention_of_an_image_equals_published(system, name, dtype, tolerance):
    expected = record(system, name)
    arch, classes = expected["arch"], expected["outputs"]["logits"]["shape"][1]
    net = mixtransfer.build_classifier(arch, classes, backbone=img_size(expected)).to(dtype).eval()
    net.load_state_dict(mixtransfer.convert_state_dict(published_state(expected, dtype), arch))
    seen = net.backbone.embed_with_evidence(record_input(expected).to(dtype), ("class_attention",))
    found = seen["class_attention"].flatten(1)
    assert_matches(found, expected["outputs"]["class_attention_last_block"], tolerance, "attention")
    assert_matches(seen["vector"], expected["outputs"]["features"], tolerance, "features")


@pytest.mark.parametrize("family", ["deit", "cait", "pvt"])
def test_what_is_observed_is_the_attention_of_the_last_block_and_no_other_network(family):
    """Materialized maps of the block's own queries and keys, at a size that the patch does not divide."""
    net = build_toy(family, with_embedding=True).double().train()
    images = torch.randn(3, 3, 70, 101, dtype=torch.float64)
    # Stochastic depth draws from torch's generator; these toys have none, so that both passes agree.
    seen = net.embed_with_evidence(images, ("class_attention", "image_attention", "tokens"))
    torch.testing.assert_close(seen["vector"], net.embed(images), rtol=0, atol=1e-12)

    last = {"deit": "blocks.3", "pvt": "block4.0", "cait": "blocks_token_only.1"}[family]
    inputs = {}
    handle = net.get_submodule(f"{last}.attn").register_forward_pre_hook(lambda m, args: inputs.update(x=args[0]))
    net.embed(images)
    handle.remove()
    attn, x = net.get_submodule(f"{last}.attn"), inputs["x"]
    if family == "deit":
        q, k, _ = attn.qkv(x).chunk(3, dim=-1)
    else:
        q, k = attn.q(x), attn.k(x) if family == "cait" else attn.kv(x).chunk(2, dim=-1)[0]
    q, k = (part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in (q, k))
    maps = (q @ k.transpose(2, 3) / q.size(-1) ** 0.5).softmax(-1).mean(1)
    torch.testing.assert_close(seen["class_attention"].flatten(1), maps[:, 0, 1:], rtol=0, atol=1e-12)
    if family != "cait":
        torch.testing.assert_close(seen["image_attention"].flatten(1), maps[:, 1:, 1:].mean(1), rtol=0, atol=1e-12)
    assert not seen["class_attention"].requires_grad and not seen["image_attention"].requires_grad


def test_only_one_row_of_attention_is_made(monkeypatch):
    """The largest tensor beside the network's own is the row (B, h, N)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    sizes = []
    q, k = torch.randn(2, 4, 1 + 400, 16), torch.randn(2, 4, 1 + 400, 16)
    with Largest(), torch.no_grad():
        attention_maps.Note(q, k, None, None).attended(slice(0, 1))
    # Views of the keys aside.
    assert sorted(size for size in sizes if size != k.numel())[-1] == 2 * 4 * 401


def test_the_row_survives_half_precision_and_compiles():
    net = build_toy("deit", with_embedding=True).bfloat16()
    images = torch.randn(2, 3, 64, 64)
    seen = net.embed_with_evidence(images.bfloat16(), ("class_attention",))["class_attention"]
    assert seen.dtype == torch.float32 and (seen.sum(dim=(1, 2)) <= 1.001).all()
    net = net.float()
    compiled = torch.compile(net.embed_with_evidence, fullgraph=True, backend="eager")
    plain, found = (run(images, ("class_attention", "tokens")) for run in (net.embed_with_evidence, compiled))
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value)


def test_a_token_is_the_partners_if_its_first_pixel_is():
    pixels = torch.zeros(1, 32, 48, dtype=torch.bool)
    pixels[:, 15:33, 1:32] = True
    draw = PixelDraw(flip_partner(2), torch.zeros(1, 2, 3), own_share(pixels, 2), pixels)
    attention = torch.tensor([[1.0, 2, 4], [8, 16, 32]]).expand(2, 2, 3) / 63
    # First pixels (0, 0), (0, 16), (0, 32), (16, 0), (16, 16), (16, 32): only one of them is inside.
    torch.testing.assert_close(attention_share(attention, draw), torch.full((2,), 16 / 63))


def test_a_label_follows_area_and_attention_by_halves():
    mask = torch.tensor([[[True, False], [False, False]]])
    draw = Draw(flip_partner(2), mask, own_share(mask, 2))
    targets = torch.eye(2)
    attention = torch.tensor([[[0.6, 0.1], [0.1, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = AttentionWeighted().relabel(targets, draw, {"class_attention": attention})
    first = (0.25 + 0.6 / 0.8) / 2
    # Where the class token attends to itself alone, the attention has no say for the partner.
    torch.testing.assert_close(found, torch.tensor([[1 - first, first], [0.125, 0.875]]))


def test_a_box_of_no_pixel_leaves_the_label():
    pixels = torch.zeros(1, 32, 32, dtype=torch.bool)
    draw = PixelDraw(flip_partner(2), torch.zeros(1, 2, 2), own_share(pixels, 2), pixels)
    targets = torch.eye(2)
    found = AttentionWeighted().relabel(targets, draw, {"class_attention": torch.rand(2, 2, 2)})
    assert torch.equal(found, targets)


@pytest.mark.parametrize("region", [Box(), TokenBox(), WholeImage(0.8)])
@pytest.mark.parametrize("family", ["deit", "cait", "pvt"])
def test_a_step_trains_every_parameter_with_any_region(region, family, monkeypatch):
    cls = type(build_toy(family)).__mro__[1]
    (toy,) = build_toy(family).archs.values()
    monkeypatch.setattr(cls, "archs", {**cls.archs, "toy": toy})
    mixing = dict(type="Mixing", region=region, target=dict(type="AttentionWeighted"))
    net = mixtransfer.build_classifier("toy", 3, mixing=mixing, backbone=dict(drop_path_rate=0.3)).train()
    (loss,) = net.loss(torch.randn(5, 3, 64, 75), torch.tensor([0, 1, 2, 1, 0])).values()
    loss.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_the_switch_is_between_mixup_and_boxes():
    mixing = TransMix(switch_prob=0.8)
    pastes = sum(mixing.draw((2, 3, 32, 32), (2, 2), step).pastes for step in range(400)) / 400
    # Binomial: 3.5 deviations around 0.8.
    assert pastes == pytest.approx(0.8, abs=0.07)


def test_a_network_without_attention_is_refused_when_built():
    with torch.device("meta"), pytest.raises(UserError, match="class_attention, which MixingClassifier cannot collect"):
        mixtransfer.build_classifier("hornet_tiny_7x7", mixing=dict(type="TransMix"))
    net = build_toy("hornet", with_embedding=True)
    with pytest.raises(UserError, match="cannot tell class_attention"):
        net.embed_with_evidence(torch.randn(1, 3, 64, 64), ("class_attention",))
    with pytest.raises(UserError, match="with_embedding=False"):
        build_toy("deit").embed_with_evidence(torch.randn(1, 3, 64, 64), ("tokens",))


def test_the_box_is_that_of_cutmix():
    draw = Box().draw((2, 3, 64, 64), (4, 4), step_generator(0, 0, 3))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(TransMix().apply(images, draw), torch.where(draw.pixel_mask[:, None], images.flip(0), images))
