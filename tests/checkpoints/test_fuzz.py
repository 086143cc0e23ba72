"""Mutated checkpoints, the same in every run, through every door: one line, or all of what the file holds.

``pytest -m long`` makes a hundred times as many.
"""

from __future__ import annotations

import copy
import itertools
import random
from pathlib import Path

import pytest
import torch
from hostile_files import saved, weights
from mmengine.optim import OptimWrapper, PolyLR
from safetensors.torch import save
from torch import nn

from mixtransfer import build_backbone
from mixtransfer.checkpoints.convert import ConvertOptions, convert_file
from mixtransfer.checkpoints.describe import describe
from mixtransfer.checkpoints.load import load_checkpoint, load_strictly
from mixtransfer.checkpoints.read import find_weights, read_checkpoint
from mixtransfer.engine.resume import WITHOUT_STATE, hub_state, optimizer_state, place_in, scheduler_states, stateless
from mixtransfer.errors import UserError

SOUND = weights()
#: What a mutation puts in the place of a value.
ODD = (
    None, -1, 0, 2.5, float("nan"), True, "x", "\x1b[2J", b"x", [], {}, (), [[]], {"x": 1}, 7**200, torch.zeros(3),
    torch.tensor(1.0), torch.zeros(0), torch.ones(3, 4), torch.full((3, 4), torch.nan),
    torch.ones(3, dtype=torch.int64), torch.ones(4, dtype=torch.complex64), torch.ones(2).bfloat16(),
    torch.ones(1).expand(96),
)  # fmt: skip


def inspected(path, content):
    assert all(line.isprintable() for line in str(describe(path)).split("\n"))


def converted(path, content):
    # Proof is no part of reading; without it a conversion is four times as fast.
    options = ConvertOptions(force=True, arch="swin_micro", verify=False)
    counts = convert_file(path, path.with_name("out.safetensors"), options).counts
    assert counts["read"] == counts["converted"] + counts["dropped"]


def loaded(load):
    def door(path, content):
        net = build_backbone("swin_micro")
        net.load_state_dict({key: torch.full_like(value, 3) for key, value in net.state_dict().items()})
        try:
            load(net, path)
        except UserError:
            assert all(bool((value == 3).all()) for value in net.state_dict().values()), "half a load"
            raise
        state = net.state_dict()
        assert all(bool(value.isfinite().all()) for value in state.values())
        if content is not None:
            inside = content.get("state_dict", content)
            inside = {key.removeprefix("module."): value for key, value in inside.items()}
            assert all(torch.equal(value, inside[key].to(value)) for key, value in state.items())

    door.__name__ = load.__name__
    return door


def measured(net, path):
    load_strictly(net, find_weights(read_checkpoint(path), str(path)), str(path))


class Training:
    """A training of a small network: what it saves, and how it takes that up again."""

    def __init__(self):
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        groups = [{"params": list(part.parameters())} for part in self.net]
        self.wrapper = OptimWrapper(torch.optim.AdamW(groups, lr=0.1, fused=True))
        self.schedulers = [PolyLR(self.wrapper, power=0.9, by_epoch=False)]

    def steps(self, count):
        for _ in range(count):
            self.wrapper.update_params(self.net(torch.ones(5, 3)).square().sum())
            self.schedulers[0].step()

    def content(self):
        row = torch.tensor([1.0, 2.0]).double()
        optimizer = copy.deepcopy(self.wrapper.state_dict())
        return {
            "meta": {"epoch": 0, "iter": 2, "seed": 0, "cfg": "x = 1", WITHOUT_STATE: stateless(optimizer)},
            "state_dict": copy.deepcopy(dict(self.net.state_dict())),
            "optimizer": optimizer,
            "param_schedulers": [dict(scheduler.state_dict()) for scheduler in self.schedulers],
            "message_hub": {
                "log_scalars": {"loss": (row, row.clone())},
                "runtime_info": {"iter": 2, "keep_ckpt_ids": [2], "last_ckpt": "a/iter_2.pth"},
                "resumed_keys": {"iter": True},
            },
        }

    def resume(self, path):
        content, name = read_checkpoint(path), str(path)
        place = place_in(content, name)
        load_strictly(self.net, find_weights(content, name), name)
        hub_state(content["message_hub"], name)
        for scheduler, state in scheduler_states(self.schedulers, content["param_schedulers"], name):
            scheduler.load_state_dict(state)
        state, _ = optimizer_state(self.wrapper, self.net, content["optimizer"], place.stateless, name)
        self.wrapper.load_state_dict(state)


def resumed(path, content):
    training = Training()
    training.resume(path)
    training.steps(1)  # a state that does not fit would be written out of bounds


def doors(kind):
    doors = [inspected, converted, loaded(load_checkpoint), loaded(measured)]
    return [*doors, resumed] if kind != "safetensors" else doors


def training_content():
    training = Training()
    training.steps(2)
    return training.content()


TRAINED = training_content()


def content_of(door):
    return TRAINED if door is resumed else {"state_dict": dict(SOUND), "meta": {"epoch": 3}}


def written(kind, content):
    if kind != "safetensors":
        return saved(content, legacy=kind == "legacy")
    return save({key: value.clone(memory_format=torch.contiguous_format) for key, value in content.items()})


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return a file with one to four pieces changed, more often in its pickle or header than in its weights."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 12_000))
        what = rng.choice(("flip", "set", "cut", "insert", "drop", "repeat", "swap"))
        length = rng.choice((1, 1, 2, 4, 16, 200))
        if what == "flip":
            data[place] ^= 1 << rng.randrange(8)
        elif what == "set":
            data[place] = rng.choice(b"\x00\xff.(]}tuR\x81bsQ0q" + bytes([rng.randrange(256)]))
        elif what == "cut":
            del data[place + 1 :]
        elif what == "insert":
            data[place:place] = rng.randbytes(length)
        elif what == "drop":
            del data[place : place + length]
        elif what == "repeat":
            data[place:place] = data[place : place + length]
        else:
            other = rng.randrange(len(data))
            data[place], data[other] = data[other], data[place]
        if len(data) < 2:
            break
    return bytes(data)


def mutated_content(rng: random.Random, content: dict) -> dict:
    """Return values of a file with one to three entries changed, somewhere inside."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        holder = content
        while True:
            inside = list(holder.values() if isinstance(holder, dict) else holder)
            inside = [value for value in inside if isinstance(value, dict | list) and value]
            if not inside or rng.random() < 0.3:
                break
            holder = rng.choice(inside)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            continue
        key, what = rng.choice(keys), rng.choice(("replace", "replace", "drop", "rename", "move"))
        if what == "replace":
            holder[key] = rng.choice(ODD)
        elif what == "drop":
            del holder[key]
        elif what == "move":
            holder[key] = holder[rng.choice(keys)]
        elif isinstance(holder, dict):
            holder[rng.choice((f"{key}x", f"module.{key}", "", "a\nb", 3, None, ("a", 1)))] = holder.pop(key)
        else:
            holder.append(holder[key])
    return content


def try_one(rng, door, kind, folder):
    """Give one mutated file to a door, and return whether it was taken."""
    content, path = content_of(door), Path(folder) / f"a.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        content = content["state_dict"]
    mutated = None
    if rng.random() < 0.5:
        mutated = mutated_content(rng, content)
        if kind == "safetensors":
            mutated = {str(key): value for key, value in mutated.items() if isinstance(value, torch.Tensor)}
        path.write_bytes(written(kind, mutated))
    else:
        path.write_bytes(mutated_bytes(rng, written(kind, content)))
    try:
        door(path, mutated)
    except UserError as error:
        assert str(error).isprintable() and str(path) in str(error)
        return False
    return True


KINDS = ("zip", "legacy", "safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [8, pytest.param(800, marks=pytest.mark.long)])
def test_a_mutated_file_is_one_line_or_taken_whole(kind, count, tmp_path):
    taken = []
    for door, number in itertools.product(doors(kind), range(count)):
        seed = f"{kind} {door.__name__} {number}"
        try:
            taken.append(try_one(random.Random(seed), door, kind, tmp_path))
        except Exception as error:
            raise AssertionError(f"mutation {seed!r}") from error
    assert not all(taken)


def test_what_is_not_mutated_is_taken(tmp_path):
    for kind in KINDS:
        for door in doors(kind):
            content = content_of(door)
            path = tmp_path / f"a.{'safetensors' if kind == 'safetensors' else 'pth'}"
            path.write_bytes(written(kind, content["state_dict"] if kind == "safetensors" else content))
            door(path, content["state_dict"] if kind == "safetensors" else content)
