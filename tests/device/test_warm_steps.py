"""Training steps on the simulated accelerator: they run there, compute what the CPU computes, and wait for nothing."""

import pytest
import torch
from accelerator import DEVICE, counted
from device_steps import FAMILY_STEPS, HOOK_STEPS, MIXING_STEPS, STEPS, dense, hooked, losses_of, warm

#: Copies to the device and reads from it that a warm step may ask for; those of the batch and of libraries aside.
COPIES, READS = 3, 1
CPU = torch.device("cpu")


def assert_within_budget(log):
    assert log.count("copy") <= COPIES and log.count("read") <= READS, log.lines()


@pytest.mark.parametrize("name", STEPS)
def test_a_warm_step_computes_what_the_cpu_does_and_does_not_wait(name):
    make = STEPS[name]
    step = make(DEVICE)
    there, here = losses_of(step), losses_of(make(CPU))
    with counted() as log:
        step()
    assert_within_budget(log)
    for ours, expected in zip(there, here, strict=True):
        assert ours.keys() == expected.keys() and len(ours)
        for key, value in expected.items():
            assert ours[key] == pytest.approx(value, rel=2e-4, abs=1e-6), key


def test_all_families_methods_and_hooks_are_among_them():
    assert len(FAMILY_STEPS) >= 25 and len(HOOK_STEPS) == 2
    assert {"Mixup", "CutMix", "MixupOrCutMix", "TLAlign", "TransMix", "SMMix", "MixMIM"} <= set(MIXING_STEPS)


@pytest.mark.parametrize("batch", [2, 7])
def test_the_number_of_crossings_does_not_depend_on_the_batch(batch):
    log, other = warm(dense("swin", DEVICE, batch=batch)), warm(dense("swin", DEVICE, batch=4))
    assert log.count("copy") == other.count("copy") == 1 and log.count("read") == other.count("read") == 0


def test_the_number_of_crossings_does_not_depend_on_the_instances():
    logs = [warm(hooked("segmentor", DEVICE)), *(warm(instances(counts)) for counts in ((1, 0), (9, 12)))]
    for log in logs:
        assert_within_budget(log)
    assert len({log.count("copy") for log in logs[1:]}) == 1


def instances(counts):
    """Return the step of the hook alone on a batch of detection."""
    from hooked_models import Recorder, attach, det_batch, runner_of

    torch.manual_seed(0)
    model = Recorder().to(DEVICE).train()
    hook = attach(model, dict(type="TokenBox"))
    hook.before_train_iter(runner_of(model, iteration=3), 3)
    images, samples = det_batch(counts)
    images = images.to(DEVICE)
    there = [sample.to(DEVICE) for sample in samples]

    def step():
        hook._loaded = list(samples)
        return model(images, there, mode="loss")

    return step


def test_a_recomputed_block_draws_what_it_drew():
    """Activation checkpointing runs blocks a second time, after the pass whose draws went to the device together."""
    options = dict(with_cp=True)
    there, here = (losses_of(dense("swin", device, **options), 3) for device in (DEVICE, CPU))
    plain = losses_of(dense("swin", CPU), 3)
    for ours, expected, kept in zip(there, here, plain, strict=True):
        for key, value in expected.items():
            assert ours[key] == pytest.approx(value, rel=2e-4, abs=1e-6) and value == pytest.approx(kept[key], rel=1e-5)
