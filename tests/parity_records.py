"""Published numbers to hold a network against.

A record in ``tests/parity/SYSTEM`` names the entries of a published state dict, the input, and probed values of the
outputs. It holds no weights: each entry's values follow from its name and shape, the input's from its size. Tests take
architecture, sizes, options, draws and numbers of classes from the record, so that a further record of a kind in
:data:`READERS` needs no further test.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mixtransfer.backbones import Backbone, backbone_class
from mixtransfer.checkpoints.fit import FittedState, account_for
from mixtransfer.checkpoints.select import select_weights

FOLDER = Path(__file__).parent / "parity"
PROBES = 256
#: Errors of the published code itself that a comparison may be off by: its rounding is not ours, and both err.
ERRORS = 4
#: Kind of a record, see :func:`kind_of` -> the file whose tests read all records of it.
READERS = {
    "classify": "backbones/test_parity.py",
    "dense": "backbones/test_parity.py",
    "levels": "backbones/test_parity.py",
    "relpos_resize": "backbones/test_parity.py",
    "metric": "evaluation/test_robustness.py",
    "neck": "transfer/test_hornet_heads.py",
    "head": "transfer/test_hornet_heads.py",
    "pretrain": "pretrain/test_mixmim.py",
    "token_label": "pretrain/test_token_labeling.py",
    "dynamicvit train": "pretrain/test_dynamic.py",
    "oamixer masked": "pretrain/test_oamixer.py",
    "oamixer train": "pretrain/test_oamixer.py",
    "oamixer mix": "pretrain/test_oamixer.py",
    "smmix train": "pretrain/test_smmix.py",
    "tlalign train": "pretrain/test_tlalign.py",
    "tlalign mix": "mixing/test_mixing.py",
    "tokenmix train": "pretrain/test_tokenmix.py",
    "tokenmix mix": "pretrain/test_tokenmix.py",
    "transmix train": "pretrain/test_transmix.py",
}

both_precisions = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["f64", "f32"]
)


def records(kind: str | None = None, where: Callable[[dict], Any] = bool) -> list[tuple[str, str]]:
    """Return (system, name) of the records of a kind, by default of all, for which ``where`` is true."""
    every = [(path.parent.name, path.stem) for path in sorted(FOLDER.glob("*/*.json"))]
    return [(s, n) for s, n in every if kind in (None, kind_of(record(s, n))) and where(record(s, n))]


def kind_of(record: dict) -> str:
    """Return the kind of a record: its task, behind its system where each has a test of its own."""
    task = record["task"]
    if task == "classify" and record["source"].get("kwargs", {}).get("mask_attention"):
        task = "masked"
    return f"{record['system']} {task}" if task in ("train", "mix", "masked") else task


@cache
def record(system: str, name: str) -> dict:
    """Return a record, with what it states of each output's error as the output's ``tolerance``."""
    found = json.loads((FOLDER / system / f"{name}.json").read_text())
    for output, expected in found["outputs"].items():
        if isinstance(expected, dict) and "values" in expected:
            expected["tolerance"] = _stated_tolerance(found, output)
    return found


def _stated_tolerance(record: dict, output: str) -> dict[str, float]:
    """Return type of numbers -> least tolerance: stated, or a multiple of the published code's own error."""
    precision = record.get("precision")
    errors = {
        "float64": precision.get("relative_max_diff", {}) if isinstance(precision, dict) else {},
        "float32": record.get("float32_max_deviation_over_std", {}),
    }
    own = {kind: ERRORS * found[output] for kind, found in errors.items() if output in found}
    return own | record.get("tolerance", {})


def img_size(record: dict) -> dict[str, Any]:
    """Return the size that the published network was built for, where the record names it."""
    arguments = record["source"]["kwargs"]
    size = arguments.get("img_size", arguments.get("image_size"))
    return {} if size is None else backbone_class(record["arch"]).at_size(size)


def evaluate(expression: str, **names: Any) -> Any:
    """Return the value of an expression that a record states, up to its explanation."""
    expression = re.split(r" for |, shape|;", expression)[0]
    return eval(expression, {"__builtins__": {}}, names)


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
                x = evaluate(expression, x=x, abs=np.abs)
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


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return recorded draws from [0, 1), float64."""
    return _generator(key).random(shape)


def load_official(net: Backbone, state: dict[str, Tensor], name: str, source: str = "official") -> FittedState:
    """Load a state dict into a backbone, completely, and return what became of its entries."""
    fitted = account_for(select_weights(state, name).weights, net, source, name)
    net.load_state_dict(fitted.state, strict=False)
    return fitted


def assert_matches(output: Tensor, expected: dict, tolerance: float, name: str = "") -> None:
    """Compare shape and probed values, relative to the output's standard deviation (absolute for a constant).

    ``tolerance`` is the test's; where the record states a larger one for numbers of this type, that one holds.
    """
    assert list(output.shape) == expected["shape"], f"{name}: {list(output.shape)} instead of {expected['shape']}"
    flat = output.detach().double().flatten().numpy()
    probes = np.linspace(0, flat.size - 1, min(flat.size, PROBES)).astype(np.int64)
    scale = expected["std"] or max(abs(expected["mean"]), 1.0)
    error = np.abs(flat[probes] - np.asarray(expected["values"])).max() / scale
    tolerance = max(tolerance, expected.get("tolerance", {}).get(str(output.dtype).removeprefix("torch."), 0.0))
    assert error <= tolerance, f"{name}: off by {error:.2e} of the standard deviation, allowed {tolerance:.0e}"


def _noise(text: str, shape: tuple[int, ...]) -> np.ndarray:
    return _generator(text).standard_normal(shape)


def _generator(text: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(text.encode())))
