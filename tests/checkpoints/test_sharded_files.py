"""Models in several safetensors files with an index: read as one, or refused in one line; a part alone is named."""

import json

import pytest
import torch
from hostile_files import weights
from safetensors.torch import load_file, save_file

from mixtransfer.checkpoints import headers
from mixtransfer.checkpoints.convert import ConvertOptions, convert_file, plan
from mixtransfer.checkpoints.describe import describe
from mixtransfer.checkpoints.fit import fit
from mixtransfer.checkpoints.headers import read_header
from mixtransfer.checkpoints.load import load_checkpoint
from mixtransfer.checkpoints.read import read_checkpoint
from mixtransfer.checkpoints.rename import rename
from mixtransfer.cli import run_command
from mixtransfer.errors import UserError
from mixtransfer.zoo import build_backbone

WEIGHTS = weights()
PARTS = tuple(f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


def sharded(folder, change=lambda places: places):
    """Write the weights in two parts, and an index of which ``change`` makes another; return the index."""
    keys = list(WEIGHTS)
    parts = dict(zip(PARTS, (keys[:40], keys[40:]), strict=True))
    for name, held in parts.items():
        save_file({key: WEIGHTS[key] for key in held}, folder / name, metadata={"format": "pt"})
    places = {key: name for name, held in parts.items() for key in held}
    index = folder / "model.safetensors.index.json"
    content = {"metadata": {"total_size": 3}, "weight_map": change(places)}
    index.write_text(json.dumps(content), encoding="utf-8")
    return index


def test_the_parts_are_read_as_one_at_every_door(tmp_path):
    index = sharded(tmp_path)
    read = read_checkpoint(index)
    assert read.keys() == WEIGHTS.keys() and all(torch.equal(read[key], WEIGHTS[key]) for key in WEIGHTS)
    text = str(describe(index))
    assert "safetensors index of 2 files" in text and "swin_micro, 100.0% certain" in text
    report = convert_file(index, tmp_path / "joined.safetensors", ConvertOptions(verify=False))
    assert sorted(report.source["parts"]) == sorted(PARTS)
    assert report.source["bytes"] == sum(path.stat().st_size for path in (index, *(tmp_path / name for name in PARTS)))
    joined = load_file(tmp_path / "joined.safetensors")
    assert joined.keys() <= WEIGHTS.keys() and all(torch.equal(joined[key], WEIGHTS[key]) for key in joined)
    net = build_backbone("swin_micro")
    load_checkpoint(net, index)
    assert all(torch.equal(value, WEIGHTS[key]) for key, value in net.state_dict().items())


def test_a_part_alone_names_the_whole(tmp_path):
    index = sharded(tmp_path)
    part = index.with_name(PARTS[1])
    doors = (read_checkpoint, lambda path: convert_file(path, tmp_path / "a.safetensors"))
    for door in (*doors, lambda path: load_checkpoint(build_backbone("swin_micro"), path)):
        with pytest.raises(UserError, match=r"a part of a model; give .*index\.json, and keep all parts beside it"):
            door(part)
    assert f"of the model that {index} lists" in str(describe(part))
    # One part of one is the whole, and other names say nothing.
    for name in ("model-00001-of-00001.safetensors", "model-1-of-2.safetensors"):
        save_file(WEIGHTS, tmp_path / name)
        assert read_checkpoint(tmp_path / name).keys() == WEIGHTS.keys()


def test_a_folder_with_parts_becomes_one_file(tmp_path):
    index = sharded(tmp_path)
    save_file(WEIGHTS, tmp_path / "other.safetensors")
    assert plan([tmp_path], tmp_path / "out", ".pth") == [
        (index, tmp_path / "out" / "model.pth"),
        (tmp_path / "other.safetensors", tmp_path / "out" / "other.pth"),
    ]
    index.unlink()
    assert [path.name for path, _ in plan([tmp_path], tmp_path / "out", ".pth")] == [*PARTS, "other.safetensors"]


URL = "https://127.0.0.1:9/swin.pth"


@pytest.mark.parametrize(
    "command",
    [("inspect", URL), ("convert", URL, "a.pth"), ("test", "x.py", URL), ("benchmark", "robustness", "x.py", URL)],
)
def test_a_url_is_named_as_it_was_given(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = ("--data", str(tmp_path)) if command[0] == "benchmark" else ()
    assert run_command(command[0], [*command[1:], *data]) == 2
    assert f"{URL}: cannot be fetched (" in capsys.readouterr().err


def first(places, name):
    return {**places, next(iter(places)): name}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda places: first(places, "../other.safetensors"),
            "lists '../other.safetensors', which is no .safetensors",
        ),
        (lambda places: first(places, "/etc/passwd"), "lists '/etc/passwd', which is no .safetensors"),
        (lambda places: first(places, "model.safetensors.index.json"), "which is no .safetensors file beside it"),
        (lambda places: first(places, "model-00003-of-00002.safetensors"), "no such checkpoint file"),
        (lambda places: first(places, ""), "lists '', which is no"),
        (lambda places: first(places, 3), "lists '3', which is no"),
        (lambda places: first(places, [3]), "is no index of safetensors files"),
        (lambda places: first(places, "\ud800.safetensors"), "no such checkpoint file"),
        (lambda places: first(places, PARTS[1]), "has not the 88 entries that this index lists for it"),
        (lambda places: {**places, "more": PARTS[0]}, "has not the 41 entries"),
        (lambda places: dict(list(places.items())[1:]), "has not the 39 entries"),
        (list, "is no index of safetensors files"),
        (lambda places: None, "is no index of safetensors files"),
    ],
)
def test_an_index_that_does_not_fit_its_parts_is_one_line(change, text, tmp_path):
    index = sharded(tmp_path, change)
    for door in (read_header, read_checkpoint, describe):
        with pytest.raises(UserError, match=text) as caught:
            door(index)
        assert str(caught.value).startswith(str(index)) and str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": 3}', '{"weight_map": ' + "[" * 100_000, "<html>"])
def test_a_text_that_is_no_index_is_one_line(text, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is no index of safetensors files"):
        read_checkpoint(path)


def test_parts_are_bounded_together_and_hold_no_pickle(tmp_path, monkeypatch):
    index = sharded(tmp_path)
    monkeypatch.setattr(headers, "TENSORS", 100)
    with pytest.raises(UserError, match="more than 100 tensors"):
        read_header(index)
    monkeypatch.setattr(headers, "TENSORS", 1000)
    torch.save({key: WEIGHTS[key] for key in list(WEIGHTS)[:40]}, tmp_path / PARTS[0])
    with pytest.raises(UserError, match="has not the 40 entries"):
        read_checkpoint(index)


def test_a_class_token_without_position_is_named():
    net = build_backbone("deit_tiny", img_size=32)
    state = {**net.state_dict(), "pos_embed": torch.zeros(1, 196, 192)}
    with pytest.raises(UserError, match="its class token has no position of its own"):
        fit(rename(state, "deit_tiny", "official"), build_backbone("deit_tiny"), "official", "a.pth")
