"""What backbones/base.py promises, for every family."""

import math

import pytest
import torch
from toys import TOYS, build_toy

from mixtransfer.backbones import FAMILIES
from mixtransfer.errors import UserError

SIZES = [(64, 64), (75, 101), (33, 160), (1, 1)]
#: Families whose published dense code floors sides that its strides do not divide; no side gets smaller than 1.
FLOORS = {"dynamicvit_convnext", "fan", "fan/xlarge", "hornet", "pvt", "sequencer2d"}
families = pytest.mark.parametrize("family", sorted(TOYS))


def images(batch=2, height=75, width=101):
    return torch.randn(batch, 3, height, width)


def shares(batch=2, classes=3, height=19, width=26, dtype=torch.float32):
    """Random label maps whose entries are not negative and sum to one."""
    return torch.rand(batch, classes, height, width, dtype=dtype).softmax(dim=1)


def side(family, pixels, stride):
    """Return a side of the output at ``stride`` of an image's side."""
    if family in FLOORS:
        return max(pixels // stride, 1)
    if family == "hire_mlp":
        # Its patch embedding floors, its later stages do not.
        return math.ceil(max((pixels + 1) // 4, 1) / (stride // 4))
    return math.ceil(pixels / stride)


def test_every_family_has_a_toy():
    assert {cls.family for cls in FAMILIES} == {name.split("/")[0] for name in TOYS}


@families
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_declared_channels_and_strides_are_true_at_any_size(family, height, width):
    net = build_toy(family).eval()
    with torch.no_grad():
        maps = net(images(2, height, width))
    assert [m.shape[1] for m in maps] == list(net.out_channels)
    sides = [(side(family, height, s), side(family, width, s)) for s in net.strides]
    assert [tuple(m.shape[2:]) for m in maps] == sides
    assert all(m.isfinite().all() for m in maps)


@families
def test_out_indices_choose_outputs(family):
    net = build_toy(family).eval()
    chosen = build_toy(family, out_indices=net.out_indices[1:]).eval()
    chosen.load_state_dict({k: v for k, v in net.state_dict().items() if k in chosen.state_dict()})
    x = images()
    for whole, part in zip(net(x)[1:], chosen(x), strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=0)
    with pytest.raises(UserError, match="out_indices"):
        build_toy(family, out_indices=(99,))


def without_gradient(net):
    return [name for name, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


@families
def test_gradient_reaches_every_parameter(family):
    net = build_toy(family)
    sum(m.square().mean() for m in net(images())).backward()
    assert without_gradient(net) == []
    net = build_toy(family, out_indices=(), with_embedding=True)
    # Large enough that the last map of a stride-64 network has more than one token to attend to.
    net.embed(images(height=128, width=128)).square().mean().backward()
    assert without_gradient(net) == []


@families
def test_embedding_is_declared_and_optional(family):
    net = build_toy(family, with_embedding=True).eval()
    assert net.embed(images(height=64, width=64)).shape == (2, net.embed_channels)
    with pytest.raises(UserError, match="with_embedding"):
        build_toy(family).embed(images())


@families
def test_samples_of_a_batch_do_not_influence_each_other(family):
    net = build_toy(family, with_embedding=True).double().eval()
    x = images().double()
    for whole, alone in zip(net(x), net(x[1:]), strict=True):
        torch.testing.assert_close(whole[1:], alone, rtol=0, atol=1e-10)
    x = images(height=64, width=64).double()
    torch.testing.assert_close(net.embed(x)[1:], net.embed(x[1:]), rtol=0, atol=1e-10)


@families
def test_freezing_lasts_and_train_returns_self(family):
    net = build_toy(family, frozen_stages=1)
    assert net.train() is net and net.eval() is net
    frozen, free = net.train().stage_modules()[:2], net.stage_modules()[2:]

    def parameters(parts):
        for part in parts:
            for item in part:
                yield from [item] if isinstance(item, torch.nn.Parameter) else item.parameters()

    assert not any(p.requires_grad for p in parameters(frozen))
    assert all(p.requires_grad for p in parameters(free))
    modules = [m for part in frozen for m in part if isinstance(m, torch.nn.Module)]
    assert not any(m.training for module in modules for m in module.modules())
    net(images())[-1].mean().backward()
    assert all(p.grad is None for p in parameters(frozen))
    with pytest.raises(UserError, match="frozen_stages"):
        build_toy(family, frozen_stages=99)


@families
def test_activation_checkpointing_changes_nothing(family):
    net, saving = build_toy(family, drop_path_rate=0.3), build_toy(family, drop_path_rate=0.3, with_cp=True)
    saving.load_state_dict(net.state_dict())
    x, labels = images(4), shares(4)
    results = []
    for model in (net, saving):
        torch.manual_seed(1)
        maps, aligned = model(x, labels)
        sum(m.square().mean() for m in maps).backward()
        results.append((*maps, *aligned, *(p.grad for p in model.parameters()), *model.buffers()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@families
def test_stochastic_depth_has_the_mean_of_the_full_network(family):
    """At rate p a branch is kept with 1−p and divided by 1−p; over many draws the output's mean is the plain one."""
    net = build_toy(family, drop_path_rate=0.2).double()
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    x = images(1, 32, 32).double().expand(200, -1, -1, -1)
    with torch.no_grad():
        varied = net(x)[0]
        plain = net.eval()(x[:1])[0]
    assert varied.var(dim=0).max() >= 0
    error = (varied.mean(dim=0) - plain[0]).abs().mean() / plain.std()
    assert error < 0.1


@families
def test_a_drop_path_rate_that_is_none_is_refused(family):
    for rate in (-0.1, 1.0):
        with pytest.raises(UserError, match=rf"drop_path_rate={rate}: give 0 or more, below 1"):
            build_toy(family, drop_path_rate=rate)


@families
def test_layer_of_covers_every_parameter_in_order(family):
    net = build_toy(family, with_embedding=True)
    layers = {name: net.layer_of(name) for name, _ in net.named_parameters()}
    assert set(layers.values()) == set(range(net.depth + 2))
    assert net.no_weight_decay() <= set(layers)


@families
def test_state_dict_survives_a_round_trip(family):
    net = build_toy(family, with_embedding=True).eval()
    other = build_toy(family, with_embedding=True).eval()
    other.load_state_dict(net.state_dict())
    x = images()
    for a, b in zip(net(x), other(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@families
def test_token_labels_leave_the_maps_alone_and_keep_their_mass(family):
    net = build_toy(family, with_embedding=True).double().eval()
    x, labels = images().double(), shares(dtype=torch.float64)
    maps, aligned = net(x, labels)
    for plain, traced in zip(net(x), maps, strict=True):
        torch.testing.assert_close(traced, plain, rtol=0, atol=1e-10)
    for features, label in zip(maps, aligned, strict=True):
        assert label.shape == (2, 3, *features.shape[2:])
        assert not label.requires_grad and (label > -1e-12).all()
        torch.testing.assert_close(label.sum(dim=1), torch.ones_like(label[:, 0]), rtol=0, atol=1e-9)
    x = images(height=64, width=64).double()
    vector, label = net.embed(x, labels)
    torch.testing.assert_close(vector, net.embed(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(label.sum(dim=1), torch.ones(2).double(), rtol=0, atol=1e-9)


@families
def test_a_constant_label_map_stays_constant(family):
    net = build_toy(family).double().eval()
    constant = torch.tensor([0.2, 0.5, 0.3]).double().view(1, 3, 1, 1)
    _, aligned = net(images().double(), constant.expand(2, 3, 19, 26))
    for label in aligned:
        torch.testing.assert_close(label, constant.expand_as(label), rtol=0, atol=1e-9)


@families
def test_labels_are_linear_in_the_map(family):
    net = build_toy(family).double().eval()
    x, a, b = images().double(), shares(dtype=torch.float64), shares(dtype=torch.float64)
    mixed = net(x, 0.3 * a + 0.7 * b)[1]
    for m, la, lb in zip(mixed, net(x, a)[1], net(x, b)[1], strict=True):
        torch.testing.assert_close(m, 0.3 * la + 0.7 * lb, rtol=0, atol=1e-9)


@families
def test_bfloat16_autocast_runs_close_to_float32(family):
    net = build_toy(family)
    x, labels = images(), shares()
    torch.manual_seed(1)  # sparsified networks draw what they keep
    with torch.autocast("cpu", torch.bfloat16):
        maps, aligned = net(x, labels)
        sum(m.float().square().mean() for m in maps).backward()
    # Labels of half precision would be off by a thousandth.
    assert all(label.dtype == torch.float32 for label in aligned)
    for label in aligned:
        torch.testing.assert_close(label.sum(dim=1), torch.ones_like(label[:, 0]), rtol=0, atol=1e-5)
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    torch.manual_seed(1)
    for low, full in zip(maps, net(x), strict=True):
        assert (low.float() - full).abs().mean() / full.std() < 0.1


@families
def test_the_token_classifier_reads_the_chosen_outputs(family):
    net = build_toy(family)
    last = len(net.out_channels) - 1
    net = build_toy(family, token_classifier=dict(num_classes=5, stages=(last,)))
    maps = net(images())
    (logits,) = net.token_classifier(maps)
    assert logits.shape == (2, 5, *maps[-1].shape[2:])
    for stages in ((last + 1,), ()):
        with pytest.raises(UserError, match=r"token_classifier.stages=.*: give some"):
            build_toy(family, token_classifier=dict(num_classes=5, stages=stages))


@families
def test_trains_after_inference_mode_at_the_same_size(family):
    net = build_toy(family)
    with torch.inference_mode():
        net.eval()(images(1, 64, 96))
    sum(m.square().mean() for m in net.train()(images(2, 64, 96))).backward()
    net(images(1, 64, 96))


@families
def test_training_keeps_nothing_that_evaluation_made(family):
    """Biases for windows of a large image would take memory from the training that follows a validation."""
    net = build_toy(family).eval()
    before = held(net)
    with torch.no_grad():
        net(images(1, 64, 96))
    assert held(net.train()) == before


def held(net):
    """Return the attributes of modules that hold tensors, parameters and buffers left out."""
    return {
        f"{name}.{key}"
        for name, module in net.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_param") and not key.startswith("_buff") and "tensor(" in repr(value)
    }


@families
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_forward_hook_keeps_the_values_that_it_was_handed(family, training):
    """Probes and Grad-CAM read them after the forward pass; a block that is run alone must not overwrite either."""
    net = build_toy(family, with_embedding=True).train(training)
    seen = []

    def keep(module, args, output):
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, torch.Tensor):
                seen.append((tensor, tensor.detach().clone()))

    for module in net.modules():
        module.register_forward_hook(keep)
    with torch.set_grad_enabled(training):
        net(images())
        net.embed(images(height=64, width=64))
    assert seen and all(torch.equal(tensor.detach(), copy) for tensor, copy in seen)


@families
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_norms_of_outputs_can_be_chosen(family, norm):
    """A LayerNorm makes each token's channels zero-mean with deviation 1; without norms maps are those before them."""
    published, net = build_toy(family).eval(), build_toy(family, output_norm=norm).eval()
    own = net.state_dict()
    net.load_state_dict({**own, **{k: v for k, v in published.state_dict().items() if k in own}})
    with torch.no_grad():
        maps = net(images())
    names = set(own) - set(published.state_dict())
    if norm == "layer":
        assert names == {f"output_norm{i}.{kind}" for i in net.out_indices for kind in ("weight", "bias")}
        for features in maps:
            assert features.mean(dim=1).abs().max() < 1e-4
            assert (features.var(dim=1, unbiased=False) <= 1.001).all()
        frozen = build_toy(family, output_norm=norm, frozen_stages=len(net.stage_modules()) - 1)
        parts = len(frozen.stage_modules())
        for index, name in frozen.norm_names.items():
            # What no stage makes is not frozen with one.
            assert frozen.get_parameter(f"{name}.weight").requires_grad == (frozen.output_stage(index) >= parts)
        assert all(net.layer_of(name) == net.depth + 1 for name in names)
    else:
        assert not names and not net.norm_names
    with pytest.raises(UserError, match="unknown output_norm 'batch'"):
        build_toy(family, output_norm="batch")


#: Those that are compiled for seconds.
LONG = ("cait", "cmt", "dynamicvit/lvvit", "dynamicvit_convnext")


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.long] * (f in LONG)) for f in sorted(TOYS)])
def test_compiles(family):
    net = build_toy(family).eval()
    x = images()
    compiled = torch.compile(net, backend="aot_eager")
    with torch.no_grad():
        for a, b in zip(compiled(x), net(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
