"""Training steps on a real GPU: ``pytest -m gpu`` on a machine with CUDA tells what holds there."""

import pytest
import torch
from device_steps import STEPS, dense, losses_of
from toys import TOYS, build_toy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(autouse=True)
def full_precision():
    """Compare float32 with float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", [name for name in STEPS if "Dynamic" not in name and name != "token labeling, CutMix"])
def test_a_step_computes_what_the_cpu_does(name):
    """Methods that draw on the device have other numbers there, and are left out."""
    there, here = losses_of(STEPS[name](GPU)), losses_of(STEPS[name](CPU))
    for ours, expected in zip(there, here, strict=True):
        for key, value in expected.items():
            assert ours[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("family", ["deit", "swin", "fan"])
def test_a_warm_step_waits_for_nothing(family):
    step = dense(family, GPU)
    step(), step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("family", sorted(TOYS))
def test_bfloat16_keeps_the_mass_of_labels(family):
    net = build_toy(family).to(GPU)
    images, labels = torch.randn(2, 3, 64, 64, device=GPU), torch.rand(2, 3, 16, 16, device=GPU).softmax(dim=1)
    with torch.autocast("cuda", torch.bfloat16):
        maps, aligned = net(images, labels)
        sum(x.float().square().mean() for x in maps).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    for label in aligned:
        assert label.dtype == torch.float32
        torch.testing.assert_close(label.sum(dim=1), torch.ones_like(label[:, 0]), rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_step():
    first, second = (losses_of(dense("swin", GPU), 3) for _ in range(2))
    assert first == second


def test_memory_stays_where_it_is_over_many_sizes():
    net = build_toy("swin").to(GPU)
    used = []
    for _ in range(2):
        for side in range(64, 64 + 40 * 8, 8):
            sum(x.mean() for x in net(torch.randn(1, 3, side, side, device=GPU))).backward()
        used.append(torch.cuda.memory_allocated())
    assert used[1] <= 1.1 * used[0]
