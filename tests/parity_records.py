"""Published numbers to hold a network against.

A record in ``tests/parity`` names the entries of a published state dict, the input, and probed values of the outputs.
It holds no weights: each entry's values follow from its name and shape, the input's from its size.
"""

from __future__ import annotations

import json
import re
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixtransfer.backbones import Backbone
from mixtransfer.checkpoints.fit import FittedState, account_for
from mixtransfer.checkpoints.select import select_weights

FOLDER = Path(__file__).parent / "parity"
PROBES = 256
OVERRIDES = {"3 * x": lambda x: 3 * x, "1 + x": lambda x: 1 + x, "0.5 + abs(x)": lambda x: 0.5 + np.abs(x)}


def names(system: str) -> list[str]:
    """Return the records of a system."""
    return sorted(path.stem for path in (FOLDER / system).glob("*.json"))


@cache
def record(system: str, name: str) -> dict:
    return json.loads((FOLDER / system / f"{name}.json").read_text())


def published_state(record: dict, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return the record's published state dict; entries that a network computes itself are zeros of their type."""
    prefix = record.get("fill_prefix", "")
    state = {}
    for key, entry in record["state"].items():
        shape, kind = tuple(entry["shape"]), getattr(torch, entry["dtype"])
        if not kind.is_floating_point or key in record["computed"]:
            state[key] = torch.zeros(shape, dtype=kind)
            continue
        x = fill(prefix + key, shape)
        for pattern, expression in (record.get("overrides") or {}).items():
            if re.search(pattern, key):
                x = OVERRIDES[expression](x)
        state[key] = torch.from_numpy(np.asarray(x, dtype=np.float64)).to(dtype)
    for alias, key in (record.get("aliases") or {}).items():
        state[alias] = state[key]
    return state


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of an entry: plain noise, scaled by what its name and shape say it is."""
    x = _noise(key, shape)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return 0.5 + np.abs(x)
    if leaf == "running_mean":
        return 0.1 * x
    if len(shape) <= 1:
        if leaf == "weight":
            return 1.0 + 0.1 * x
        scale = "gamma" in leaf or "layer_scale" in leaf
        return 0.5 + 0.1 * x if scale else 0.1 * x
    return x / np.sqrt(max(int(np.prod(shape[1:])), 1))


def image(height: int, width: int, batch: int = 1, channels: int = 3) -> Tensor:
    """Return the input batch (batch, channels, height, width), float64."""
    return torch.from_numpy(_noise(f"image:{batch}x{channels}x{height}x{width}", (batch, channels, height, width)))


def record_input(record: dict) -> Tensor:
    size = record["input"]
    return image(size["height"], size["width"], size["batch"])


def load_official(net: Backbone, state: dict[str, Tensor], name: str, source: str = "official") -> FittedState:
    """Load a state dict into a backbone, completely, and return what became of its entries."""
    fitted = account_for(select_weights(state, name).weights, net, source, name)
    net.load_state_dict(fitted.state, strict=False)
    return fitted


def assert_matches(output: Tensor, expected: dict, tolerance: float, name: str = "") -> None:
    """Compare shape and probed values, relative to the output's standard deviation (absolute for a constant)."""
    assert list(output.shape) == expected["shape"], f"{name}: {list(output.shape)} instead of {expected['shape']}"
    flat = output.detach().double().flatten().numpy()
    probes = np.linspace(0, flat.size - 1, min(flat.size, PROBES)).astype(np.int64)
    scale = expected["std"] or max(abs(expected["mean"]), 1.0)
    error = np.abs(flat[probes] - np.asarray(expected["values"])).max() / scale
    assert error <= tolerance, f"{name}: off by {error:.2e} of the standard deviation, allowed {tolerance:.0e}"


def _noise(text: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(zlib.crc32(text.encode()))).standard_normal(shape)
