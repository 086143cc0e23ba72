"""Shared fixtures: torch's and OpenMMLab's defaults are left as each test found them."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: a submission is judged by what it changed, not by what was drawn.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "docs"), str(ROOT)]


@pytest.fixture(autouse=True)
def _torch_defaults():
    import torch
    from mmengine.registry import DefaultScope

    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.set_default_dtype(dtype)
    # A runner leaves its config's scope behind, under which the next test's names would be looked up.
    DefaultScope._instance_dict.clear()
