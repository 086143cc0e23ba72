"""Checkpoint files: what is read without running code, what is refused, and that files appear whole or not at all."""

import argparse
import collections
import io
import json
import pathlib
import pickle
import struct
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mixtransfer.checkpoints.describe import describe
from mixtransfer.checkpoints.headers import read_header
from mixtransfer.checkpoints.mapped_memory import ReleasePages
from mixtransfer.checkpoints.read import find_weights, read_checkpoint
from mixtransfer.checkpoints.select import select_weights
from mixtransfer.checkpoints.stand_ins import Entry
from mixtransfer.checkpoints.whole_files import replace_whole
from mixtransfer.checkpoints.write import write_weights
from mixtransfer.errors import UserError

WEIGHTS = {
    "patch_embed.proj.weight": torch.arange(48.0).view(4, 3, 2, 2),
    "blocks.0.attn.qkv.weight": torch.randn(12, 4),
    "blocks.0.norm1.bias": torch.randn(4).to(torch.bfloat16),
    "num_batches_tracked": torch.tensor(7),
}


def save(content, path, **kwargs):
    torch.save(content, path, **kwargs)
    return path


def entries(weights=WEIGHTS):
    return {key: (str(value.dtype)[6:], tuple(value.shape)) for key, value in weights.items()}


def outlined(content):
    return {key: (value.dtype, value.shape) for key, value in content.items() if isinstance(value, Entry)}


class Harm:
    """Unpickles to a call of ``open(path, "w")``."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["torch zip", "torch legacy", "safetensors"])
def test_outline_tells_what_reading_finds(tmp_path, kind):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        tied = {**WEIGHTS, "tied": WEIGHTS["num_batches_tracked"], "t": WEIGHTS["blocks.0.attn.qkv.weight"].t()}
        save(tied, path, _use_new_zipfile_serialization=kind == "torch zip")
    outline = read_header(path)
    assert outline.kind == kind and outline.wants == ()
    content = read_checkpoint(path)
    assert outlined(outline.content) == entries(content) and len(content) >= len(WEIGHTS)
    for key, value in WEIGHTS.items():
        assert torch.equal(content[key], value)


def test_an_mmengine_checkpoint_needs_no_trust(tmp_path):
    from mmengine.logging import HistoryBuffer

    buffer = HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 1])
    hub = {"log_scalars": {"loss": buffer}, "runtime_info": {"eta": np.float64(2.5)}}
    path = save({"state_dict": WEIGHTS, "message_hub": hub, "meta": {"epoch": 3}}, tmp_path / "a.pth")
    content = read_checkpoint(path)
    assert content["message_hub"]["log_scalars"]["loss"].mean() == 3.0
    assert content["message_hub"]["runtime_info"]["eta"] == 2.5
    assert "none that would be run" in str(describe(path))


def test_settings_of_published_training_scripts_need_no_trust(tmp_path, monkeypatch):
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", types.ModuleType("yacs.config"))
    sys.modules["yacs.config"].CfgNode = node
    config = node(MODEL=node(NAME="swin"))
    config.__dict__["frozen"] = True
    args = argparse.Namespace(model="deit_small", output_dir=pathlib.Path("out"))
    content = {"model": WEIGHTS, "config": config, "args": args, "log": collections.defaultdict(dict, a={})}
    path = save(content, tmp_path / "a.pth")
    monkeypatch.delitem(sys.modules, "yacs.config")
    found = read_checkpoint(path)
    assert found["config"]["MODEL"]["NAME"] == "swin" and found["args"].model == "deit_small"
    assert "model=deit_small" in str(describe(path))


def test_code_is_refused_by_name_and_not_run(tmp_path):
    mark = tmp_path / "ran"
    path = save({"model": WEIGHTS, "extra": Harm(mark)}, tmp_path / "a.pth")
    assert "wants io.open" in str(describe(path)) or "_io.open" in str(describe(path))
    with pytest.raises(UserError, match=r"a\.pth: wants to run code \(_?io\.open\); pass --trust"):
        read_checkpoint(path)
    assert not mark.exists()
    read_checkpoint(path, trust=True)
    assert mark.exists()


def test_getattr_serves_history_buffers_only(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (torch.device, "__init__")

    path = save({"model": WEIGHTS, "x": Reach()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"wants to run code \(builtins\.getattr"):
        read_checkpoint(path)


def test_allowing_ends_with_the_reading(tmp_path):
    path = save({"model": WEIGHTS, "args": argparse.Namespace(a=1)}, tmp_path / "a.pth")
    read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(path, weights_only=True)


def rezip(path, out, compression=zipfile.ZIP_STORED, extra=(), change=None):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(name, data) if change else data)
        for name, data in extra:
            new.writestr(name, data)
    return out


def test_damaged_torch_files_are_refused_with_the_reason(tmp_path):
    good = save({"model": WEIGHTS}, tmp_path / "good.pth")
    data = good.read_bytes()

    def bad(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    values = WEIGHTS["patch_embed.proj.weight"].numpy().tobytes()
    at = data.index(values)
    flipped = data[: at + 5] + bytes([data[at + 5] ^ 1]) + data[at + 6 :]
    bomb = rezip(good, tmp_path / "bomb.pth", zipfile.ZIP_DEFLATED, [("good/data/9", bytes(10_000_000))])
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = rezip(good, tmp_path / "twice.pth", extra=[("good/data/0", b"")])
    script = rezip(good, tmp_path / "script.pth", extra=[("good/constants.pkl", b"")])
    missing = rezip(good, tmp_path / "missing.pth", change=lambda n, d: b"" if n.endswith("data/0") else d)
    cases = [
        (bad("cut.pth", data[: len(data) // 2]), "zip directory is missing or damaged: the file was cut"),
        (bad("flipped.pth", flipped), "do not have their checksum"),
        (bomb, "compressed members.*a zip bomb"),
        (twice, "two zip members of one name"),
        (script, "TorchScript program"),
        (missing, "storage 0 claims 192 bytes, more than there are"),
        (bad("empty.pth", b""), "empty"),
        (bad("page.pth", b"<!DOCTYPE html><html>..."), "a text or web page"),
        (bad("lfs.pth", b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
        (bad("plain.pth", pickle.dumps({"a": 1})), "a plain pickle"),
        (bad("noise.pth", bytes(range(256)) * 9), "not a checkpoint"),
        (tmp_path, "a folder"),
        (tmp_path / "nothing.pth", "no such checkpoint file"),
    ]
    for path, text in cases:
        with pytest.raises(UserError, match=text) as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_cut_legacy_file_is_refused(tmp_path):
    path = save({"model": WEIGHTS}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for length in (30, 200, len(data) - 3):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="fetch it again"):
            read_checkpoint(path)


def header(entries, payload=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (header({}, length=10**12), "header claims 1000000000000 bytes"),
        (header(b"{not json"), "no list of tensors"),
        (header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, bytes(8)), "does not fill its 8 bytes"),
        (header({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, bytes(16)), "no valid shape"),
        (header({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 16]}}, bytes(16)), "does not fill"),
        (header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(9)), "the file has 9"),
        (header({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)), "values of type F4"),
        (
            header(
                {
                    "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                    "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
                },
                bytes(24),
            ),
            "gap or overlap at byte 16",
        ),
        (
            header(
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
                bytes(8),
            ),
            "names the entry 'a' twice",
        ),
    ],
)
def test_lying_safetensors_headers_are_refused(tmp_path, content, text):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=text):
        read_checkpoint(path)


def forged(tmp_path, change):
    """Write a torch zip file whose pickle is changed."""
    good = save(WEIGHTS, tmp_path / "g.pth")
    return rezip(good, tmp_path / "forged.pth", change=lambda n, d: change(d) if n.endswith("data.pkl") else d)


def test_absurd_sizes_and_repeated_names_are_refused(tmp_path):
    def endless(data):
        # A stride of 0 makes any size out of one value: BININT1 12, BININT1 4 and the strides 4, 1.
        at = data.index(b"K\x0cK\x04\x86")
        strides = data.index(b"K\x04K\x01\x86", at)
        huge = b"J" + struct.pack("<i", 2**31 - 1)
        data = data[:strides] + b"K\x00K\x00\x86" + data[strides + 5 :]
        return data[:at] + huge + huge + b"\x86" + data[at + 5 :]

    with pytest.raises(UserError, match=r"claims shape \(2147483647, 2147483647\), more than the file holds"):
        read_checkpoint(forged(tmp_path, endless))
    twice = forged(tmp_path, lambda data: data.replace(b"num_batches_tracked", b"blocks.0.norm1.bias"))
    with pytest.raises(UserError, match=r"names the entry 'blocks\.0\.norm1\.bias' twice"):
        read_checkpoint(twice)


def test_what_writing_takes_reading_gives(tmp_path):
    shared = torch.randn(6, 5)
    state = {**WEIGHTS, "t": shared.t(), "part": shared[2:4], "none": torch.empty(0, 3), "flag": torch.tensor([True])}
    state["expanded"] = torch.ones(1).expand(3)
    for name in ("a.safetensors", "a.pth"):
        write_weights(tmp_path / name, state, {"arch": "x"}, "model")
        content = read_checkpoint(tmp_path / name)
        content = content.get("model", content)
        assert content.keys() == state.keys()
        assert all(torch.equal(content[key], value) for key, value in state.items())
    assert load_file(tmp_path / "a.safetensors").keys() == state.keys()
    assert (tmp_path / "a.pth").stat().st_size < 10_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "a.safetensors"]


def resident(path):
    """Return how many bytes of a mapped file are in this process's memory."""
    *before, here = pathlib.Path("/proc/self/smaps").read_text().partition(str(path))
    assert before[1], "not mapped"
    return int(here.partition("Rss:")[2].split()[0]) * 1024


@pytest.mark.skipif(not pathlib.Path("/proc/self/smaps").exists(), reason="Linux tells what is mapped")
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_mapped_file_does_not_stay_in_memory(tmp_path, name):
    path, weight = tmp_path / name, torch.randn(1000, 1000)
    write_weights(path, {"a.weight": weight}, {}, "")
    content = read_checkpoint(path, mapped=True)
    mapped = content["a.weight"]
    assert torch.equal(mapped, weight) and resident(path) > 3_000_000
    with ReleasePages(path, content) as pages:
        assert torch.equal(mapped, weight) and resident(path) < 100_000
        assert torch.equal(torch.linalg.norm(mapped), torch.linalg.norm(weight))
        write_weights(tmp_path / f"b{path.suffix}", {"a.weight": mapped}, {}, "", pages.release)
        assert resident(path) < 100_000
    assert torch.equal(read_checkpoint(tmp_path / f"b{path.suffix}")["a.weight"], weight)


def test_only_what_stays_mapped_is_given_back(tmp_path):
    """An earlier reading may end any time; giving its addresses back then took the values of others."""
    path = tmp_path / "a.pth"
    write_weights(path, {"a.weight": torch.randn(1000, 1000)}, {}, "")
    first, second = (read_checkpoint(path, mapped=True) for _ in range(2))
    pages = ReleasePages(path, {"model": [second]})
    inside = [
        any(start <= content["a.weight"].data_ptr() < stop for start, stop in pages.spans)
        for content in (first, second)
    ]
    assert inside == [False, True]


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("a.safetensors", FULL),
        ("a.safetensors", KeyboardInterrupt()),
        ("a.pth", FULL),
        ("a.pth", RuntimeError("unexpected pos 704 vs 598")),  # what torch.save makes of a full disk later on
        ("a.pth", KeyboardInterrupt()),
    ],
)
def test_a_full_disk_or_ctrl_c_leaves_what_was_there(tmp_path, monkeypatch, name, error):
    path = tmp_path / name
    path.write_bytes(b"before")

    class Full(io.BytesIO):
        def write(self, data):
            raise error

    monkeypatch.setattr("builtins.open", lambda *args: Full())
    with pytest.raises((UserError, KeyboardInterrupt), match=r"No space left on device; nothing was left|^$"):
        write_weights(path, WEIGHTS, {}, "model")
    monkeypatch.undo()
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_an_unwritable_folder_is_a_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), replace_whole(tmp_path / "file" / "a.pth"):
        pass


def test_weights_are_found_in_every_published_container():
    def keys(content, **kwargs):
        selected = select_weights(content, "x", **kwargs)
        return sorted(selected.weights), selected

    plain = {"patch_embed.proj.weight": torch.ones(1), "head.weight": torch.ones(1)}
    names = sorted(plain)

    def under(prefix):
        return {prefix + key: value for key, value in plain.items()}

    for container in ("model", "state_dict", "module", "model_state_dict", "state_dict_ema", "model_ema"):
        assert keys({container: plain, "epoch": 3})[0] == names
    for prefix in ("module.", "model.", "_orig_mod.", "module._orig_mod.", "backbone.", "module.backbone.", "encoder."):
        assert keys(under(prefix))[0] == names, prefix
    assert keys({"a._fsdp_wrapped_module.b": plain["head.weight"]})[0] == ["a.b"]
    moco = {"module.encoder_q.a.b": plain["head.weight"], "module.encoder_k.a.b": plain["head.weight"]}
    assert keys({"state_dict": {**moco, "module.queue": torch.ones(2), "module.queue_ptr": torch.ones(1)}})[0] == [
        "a.b"
    ]
    both = {"model": plain, "model_ema": {"module.a.b": torch.ones(1), "n_averaged": torch.ones(1)}}
    assert keys(both)[0] == names and keys(both, average=True)[0] == ["a.b"]
    assert keys(both)[1].other == "model_ema"
    with pytest.raises(UserError, match="holds no moving average; drop --ema"):
        keys({"model": plain}, average=True)
    with pytest.raises(UserError, match=r"decode_hed\.x lies outside backbone and no rule names it; say --drop"):
        keys({"backbone.a": torch.ones(1), "decode_hed.x": torch.ones(1)})
    assert keys({"backbone.a": torch.ones(1), "decode_hed.x": torch.ones(1)}, drop=["decode_hed.*"])[0] == ["a"]
    with pytest.raises(UserError, match="both name a"):
        keys({"backbone.a": torch.ones(1), "backbone._orig_mod.a": torch.ones(1)})
    with pytest.raises(UserError, match=r"1 entries are no tensors: blocks\.0\.weight"):
        keys({"model": {"blocks.0.weight": [1.0], "a": torch.ones(1)}})
    with pytest.raises(UserError, match="no weights under"):
        keys({"epoch": 3})


def test_whole_models_are_read_as_wrappers_save_them():
    plain = {"backbone.a": torch.ones(1), "decode_head.b": torch.ones(2)}
    for front in ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        assert find_weights({"state_dict": {front + key: value for key, value in plain.items()}}) == plain
    averaged = {f"module.{key}": value for key, value in plain.items()} | {"n_averaged": torch.tensor(3)}
    assert find_weights(averaged) == plain
    assert find_weights({**plain, "module.c": torch.ones(1)}).keys() == {*plain, "module.c"}
    with pytest.raises(UserError, match=r"x: _orig_mod\.backbone\.a and another entry both name backbone\.a"):
        find_weights({**plain, "_orig_mod.backbone.a": torch.ones(1)}, "x")
    with pytest.raises(UserError, match="x: 2 tensors have names that are no text: 0, None"):
        find_weights({0: torch.ones(1), None: torch.ones(1)}, "x")


def test_inspect_needs_no_torch_and_answers_at_once(tmp_path):
    path = save({"model": WEIGHTS, "epoch": 3, "max_accuracy": 81.25}, tmp_path / "a.pth")
    code = (
        "import sys; from mixtransfer.cli import run_command; code = run_command('inspect', sys.argv[1:]);"
        "assert not {'torch', 'mmengine', 'timm', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "max_accuracy" in done.stdout and "81.25" in done.stdout and "not recognized" in done.stdout


damage = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "drop"]), st.floats(0, 1), st.integers(1, 255)),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damage)
def test_damaged_bytes_never_give_a_traceback_or_other_weights(tmp_path_factory, kind, damage):
    path = tmp_path_factory.mktemp("fuzz") / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        save({"model": WEIGHTS, "epoch": 3}, path, _use_new_zipfile_serialization=kind == "zip")
    data = bytearray(path.read_bytes())
    for what, where, value in damage:
        at = int(where * (len(data) - 1))
        if what == "flip":
            data[at] ^= value
        elif what == "cut":
            del data[at:]
        elif what == "insert":
            data[at:at] = bytes([value])
        else:
            del data[at : at + value]
        if not data:
            break
    path.write_bytes(data)
    try:
        selected = select_weights(read_checkpoint(path), "x")
    except UserError as error:
        assert "\n" not in str(error)
        return
    # What was read is as the file says; entries may have other names then, which strict loading refuses.
    assert all(isinstance(value, torch.Tensor) for value in selected.weights.values())
    if kind == "zip":
        for key in selected.weights.keys() & WEIGHTS.keys():
            assert torch.equal(selected.weights[key], WEIGHTS[key])
