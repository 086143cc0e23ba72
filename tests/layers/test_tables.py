"""Tables of sizes stay within a budget of bytes, whatever the sizes, and are what they were."""

import pytest
import torch
from toys import build_toy

from mixtransfer.layers import tables

BUDGET = 2**18


@pytest.fixture
def small_budget(monkeypatch):
    tables._kept.clear()
    monkeypatch.setattr(tables, "BUDGET", BUDGET)
    yield
    tables._kept.clear()


def test_forty_sizes_stay_within_the_budget(small_budget):
    net = build_toy("swin").eval()
    sizes = [(32 + 8 * (i % 8), 32 + 8 * (i // 8)) for i in range(40)]
    first, most = [], 0
    with torch.no_grad():
        for size in sizes:
            first.append(net(torch.ones(1, 3, *size))[-1])
            most = max(most, tables.kept_bytes())
        assert BUDGET / 2 < most <= BUDGET
        for size, expected in zip(sizes, first, strict=True):
            assert torch.equal(net(torch.ones(1, 3, *size))[-1], expected)


def test_a_table_is_made_once_while_there_is_room(small_budget):
    calls = []

    @tables.table
    def numbers(count):
        calls.append(count)
        return torch.arange(count), None

    assert numbers(3) is numbers(3) and calls == [3]
    numbers(BUDGET // 8)  # as large as the budget: nothing else is kept beside it
    assert numbers(BUDGET // 8)[0] is numbers(BUDGET // 8)[0] and tables.kept_bytes() == BUDGET
    numbers(3)
    assert calls == [3, BUDGET // 8, 3]


def test_a_table_that_inference_asked_for_serves_training(small_budget):
    @tables.table
    def weights(count):
        return torch.ones(count)

    with torch.inference_mode():
        weights(2)
    (torch.ones(2, requires_grad=True) * weights(2)).sum().backward()
