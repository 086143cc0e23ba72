"""Draws follow the training step, which a loop hands in, or which a model counts and saves with its weights."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader
from toys import TOYS, build_toy

from mixtransfer.backbones.mixmim import MixMIMEncoder
from mixtransfer.engine.loops import _SeededSteps
from mixtransfer.mixing.draws import step_generator
from mixtransfer.mixing.steps import StepCounter, outside_graphs
from mixtransfer.pretrain import DynamicClassifier, MixingClassifier, MixMIM, OAMixer, TokenLabelingClassifier

AREA = dict(type="Mixing", region=dict(type="TokenBox"), target=dict(type="Area"))
MODELS = {
    "MixingClassifier": lambda: MixingClassifier("toy", 3, mixing=dict(type="TLAlign")),
    "OAMixer": lambda: OAMixer("toy", 3, patch_classes=3, mixing=AREA),
    "TokenLabelingClassifier": lambda: TokenLabelingClassifier("toy", 3, mixing=dict(type="CutMix")),
    "DynamicClassifier": lambda: DynamicClassifier("sparse_toy", 3),
    "MixMIM": lambda: MixMIM("mixmim_toy", decoder_channels=16, decoder_depth=1, decoder_heads=2),
}


@pytest.fixture(autouse=True)
def toy_archs(monkeypatch):
    for arch, family in (("toy", "deit"), ("sparse_toy", "dynamicvit")):
        cls = type(build_toy(family)).__mro__[1]
        monkeypatch.setattr(cls, "archs", {**cls.archs, arch: TOYS[family]})
    monkeypatch.setitem(MixMIMEncoder.archs, "mixmim_toy", TOYS["mixmim"])


def batch(number=2):
    samples = [DataSample(patch_labels=torch.rand(3, 4, 4)).set_gt_label(i % 3) for i in range(number)]
    return {"inputs": torch.rand(number, 3, 64, 64), "data_samples": samples}


class Numbers(StepCounter, BaseModel):
    """A model that logs the random number of each of its steps."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.drawn = []

    def forward(self, inputs, mode):
        self.drawn.append(torch.rand((), generator=self.generator(7)).item())
        self.count_step()
        return {"loss": self.weight.sum()}


def expected(*steps):
    return [torch.rand((), generator=step_generator(7, 0, step)).item() for step in steps]


def runner(model, folder, **options):
    return Runner(
        model,
        str(folder),
        train_dataloader=DataLoader([{"inputs": 0}] * 3, collate_fn=lambda items: items[0]),
        train_cfg=dict(by_epoch=False, max_iters=5),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=2, by_epoch=False)),
        experiment_name=f"{folder.name}_{id(model)}",
        **options,
    )


def test_mmengines_own_runner_draws_by_the_iteration_and_resumes(tmp_path):
    straight, resumed = Numbers(), Numbers()
    runner(straight, tmp_path).train()
    assert straight.drawn == expected(0, 1, 2, 3, 4)
    runner(resumed, tmp_path / "resumed", load_from=str(tmp_path / "iter_2.pth"), resume=True).train()
    assert resumed.drawn == straight.drawn[2:]


def test_our_loops_hand_in_the_iteration_and_the_seed_of_the_run():
    """Or trainings of several seeds would all mix alike."""

    class Model:
        def run_iter(self):
            self.runner.model(None, "loss")

    class Loop(_SeededSteps, Model):
        _iter, runner = 3, SimpleNamespace(model=Numbers(), seed=4)

    Loop().run_iter()
    assert Loop.runner.model.drawn == [torch.rand((), generator=step_generator(7, 0, 3, 4)).item()]
    assert Loop.runner.model.drawn != expected(3)


def test_the_count_is_beside_the_entries_of_a_state_dict():
    model, other = Numbers(), Numbers()
    model.step = 6
    assert list(model.state_dict()) == ["weight"]
    other.load_state_dict(dict(model.state_dict()))
    assert other.step == 0
    other.load_state_dict(model.state_dict())
    assert other.step == 6


@pytest.mark.parametrize("name", MODELS)
def test_a_step_repeats_bit_for_bit_and_is_counted_once(name):
    net, other, data = MODELS[name]().train(), MODELS[name]().train(), batch()

    def step(model):
        torch.manual_seed(0)
        return {key: value.item() for key, value in model(**data, mode="loss").items()}

    first = [step(net) for _ in range(4)]
    assert net.step == 4 and len({tuple(losses.values()) for losses in first}) > 1
    other.load_state_dict(net.state_dict())
    assert other.step == 4
    other.step = 1
    assert [step(other) for _ in range(3)] == first[1:]


def test_a_compiled_step_draws_what_a_plain_one_does():
    plain, compiled = (MixingClassifier("toy", 3, mixing=dict(type="TLAlign")).train() for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(backend="eager")
    data = batch(4)
    for number in range(3):
        losses = [model(**data, mode="loss")["loss"] for model in (plain, compiled)]
        torch.testing.assert_close(*losses)
        assert plain.step == compiled.step == number + 1


def test_a_function_outside_of_graphs_keeps_its_name_and_is_called():
    @outside_graphs
    def double(x):
        """Twice."""
        return 2 * x

    assert (double.__name__, double.__doc__, double(3)) == ("double", "Twice.", 6)
    assert torch.compile(lambda x: double(x) + 1, backend="eager")(torch.ones(1)) == 3
