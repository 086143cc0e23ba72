"""Checkpoints by name: from a server on this machine, honest and not, and from a hub that a test has in its place."""

from __future__ import annotations

import hashlib
import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
from mmengine.config import ConfigDict
from safetensors.torch import save

from mixtransfer.checkpoints import fetch, read_checkpoint
from mixtransfer.checkpoints.fetch import cache_folder, located
from mixtransfer.cli import run_command
from mixtransfer.engine.config import require_pretrained
from mixtransfer.errors import UserError

WEIGHTS = {"weight": torch.arange(6.0).view(2, 3)}
FILE = save(WEIGHTS)
HASH = hashlib.sha256(FILE).hexdigest()
PAGE = b"<!DOCTYPE html><html><body>Sign in to download</body></html>"
#: What the server answers: path -> (status, headers, body).
ANSWERS = {
    "/good/a.safetensors": (200, {}, FILE),
    f"/good/a-{HASH[:8]}.safetensors": (200, {}, FILE),
    "/good/a-0badc0de.safetensors": (200, {}, FILE),
    "/moved.safetensors": (302, {"Location": "/good/a.safetensors"}, b""),
    "/page.pth": (200, {"Content-Type": "text/html"}, PAGE),
    "/cut.safetensors": (200, {"Content-Length": str(len(FILE) + 1000)}, FILE),
    "/half.safetensors": (200, {}, FILE[:-5]),
    "/silent.safetensors": (200, {"Content-Length": None}, FILE),
    "/huge.safetensors": (200, {"Content-Length": str(10**18)}, FILE),
    "/odd.safetensors": (200, {"Content-Length": "many"}, FILE),
    "/local.pth": (302, {"Location": "file:///etc/passwd"}, b""),
    "/ftp.pth": (302, {"Location": "ftp://127.0.0.1/a.pth"}, b""),
    "/plain.pth": (302, {"Location": "http://example.org/a.pth"}, b""),
    # What the hub's library asks for; the second file is not what it is announced to be.
    "/org/true/resolve/main/model.safetensors": (200, {"X-Repo-Commit": "a" * 40, "ETag": f'"{HASH}"'}, FILE),
    "/org/false/resolve/main/model.safetensors": (200, {"X-Repo-Commit": "a" * 40, "ETag": f'"{"0" * 64}"'}, FILE),
    "/circle.pth": (302, {"Location": "/circle.pth"}, b""),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        status, headers, body = ANSWERS.get(self.path.partition("?")[0], (404, {}, b"none"))
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self):
        self.server.asked.append(self.path)
        status, headers, body = ANSWERS.get(self.path, (404, {"X-Error-Code": "EntryNotFound"}, b""))
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked = []
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


@pytest.fixture
def url(server):
    server.asked.clear()
    return lambda path: f"http://127.0.0.1:{server.server_port}{path}"


def kept(cache):
    """Return the files in the cache, the locks aside."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


@pytest.mark.parametrize("path", ["/good/a.safetensors", "/moved.safetensors", "/silent.safetensors"])
def test_a_file_is_fetched_once_and_read_by_the_reader(path, url, server, cache):
    assert torch.equal(read_checkpoint(url(path))["weight"], WEIGHTS["weight"])
    times = len(server.asked)
    file = located(url(path))
    assert len(server.asked) == times and file == cache_folder() / "127.0.0.1" / path[1:]
    assert kept(cache) == [file.name]


def test_a_hash_in_the_name_or_behind_it_is_compared_every_time(url, cache):
    assert located(url("/good/a.safetensors#sha256=") + HASH).is_file()
    file = located(url(f"/good/a-{HASH[:8]}.safetensors"))
    file.write_bytes(save({"weight": torch.zeros(2, 3)}))
    with pytest.raises(UserError, match=f"has not the SHA-256 {HASH[:8]}… of .*; remove it, and it is fetched anew"):
        located(url(f"/good/a-{HASH[:8]}.safetensors"))
    with pytest.raises(UserError, match="no hash of hexadecimal digits"):
        located(url("/good/a.safetensors#sha256=xyz"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/good/a-0badc0de.safetensors", f"what came has the SHA-256 {HASH}, not 0badc0de…; nothing was kept"),
        ("/good/a.safetensors#sha256=" + "0" * 64, "what came has the SHA-256"),
        ("/page.pth", r"what came is a text or web page, .*; nothing was kept; put the file by hand into .*/page\.pth"),
        ("/cut.safetensors", r"[\d,]+ of [\d,]+ bytes came: it was cut; try again"),
        ("/half.safetensors", "what came is its header speaks of 24 bytes of weights, the file has 19"),
        ("/huge.safetensors", "announces 1,000,000,000,000,000,000 bytes, and the disk of"),
        ("/odd.safetensors", "announces 'many' bytes"),
        ("/local.pth", "leads to file:///etc/passwd, which is no https:// address; nothing was fetched"),
        ("/ftp.pth", "leads to ftp://127.0.0.1/a.pth, which is no https:// address"),
        ("/plain.pth", "leads to http://example.org/a.pth, which is no https:// address"),
        ("/circle.pth", r"cannot be fetched \(.*\); put the file by hand into"),
        ("/gone.pth", r"cannot be fetched \(Not Found\); put the file by hand into .*/127\.0\.0\.1/gone\.pth$"),
        ("/", "names no file"),
        ("/a/%2e%2e/%2e%2e/b.pth", "names no file"),
    ],
)
def test_what_a_server_sends_is_not_believed(path, message, url, cache):
    with pytest.raises(UserError, match=message) as caught:
        located(url(path))
    assert "\n" not in str(caught.value)
    assert kept(cache) == []


def test_a_server_that_sends_more_than_it_announced_is_cut_off(monkeypatch, tmp_path):
    class Endless:
        def read(self, count):
            return bytes(count)

    with pytest.raises(UserError, match="sends more bytes than 3000000"):
        fetch._copy("x", Endless(), tmp_path / "a", 3_000_000, 10**9)
    with pytest.raises(UserError, match="sends more bytes than the disk takes"):
        fetch._copy("x", Endless(), tmp_path / "a", None, 3_000_000)
    assert (tmp_path / "a").stat().st_size <= 3_000_000


def test_only_https_is_taken_from_elsewhere_and_nobody_leads_to_this_machine():
    with pytest.raises(UserError, match="it is no https:// address"):
        located("http://example.org/a.pth")
    with pytest.raises(UserError, match=r"leads to http://127\.0\.0\.1/x, on this machine"):
        fetch._require_safe("https://a.org/x", "http://127.0.0.1/x", "https://a.org/x")
    with pytest.raises(UserError, match="a URL, where a file is needed; download it first"):
        located("torchvision://resnet50")


def test_queries_are_files_of_their_own(url):
    assert located(url("/good/a.safetensors?id=1")) != located(url("/good/a.safetensors?id=2"))


def test_what_was_put_there_by_hand_is_taken(cache):
    path = cache_folder() / "nohost.invalid" / "a.safetensors"
    with pytest.raises(UserError, match=f"put the file by hand into {path}"):
        located("https://nohost.invalid/a.safetensors")
    path.write_bytes(FILE)
    assert located("https://nohost.invalid/a.safetensors") == path


def test_commands_and_configs_take_names(url, capsys, cache):
    assert run_command("inspect", [url("/good/a.safetensors")]) == 0
    assert "1 entries in the top level" in capsys.readouterr().out
    assert run_command("inspect", [url("/page.pth")]) == 2
    note, error = capsys.readouterr().err.strip().splitlines()
    assert note.startswith("note: fetching http") and error.startswith("mixtransfer inspect: error: http")
    model = ConfigDict(
        backbone=dict(init_cfg=dict(type="mixtransfer.Pretrained", checkpoint=url("/moved.safetensors")))
    )
    require_pretrained(model)
    assert model.backbone.init_cfg.checkpoint == str(cache_folder() / "127.0.0.1/moved.safetensors")
    with pytest.raises(UserError, match=r"model\.pretrained: http://.*gone.pth: cannot be .*model\.pretrained=FILE"):
        require_pretrained({"pretrained": url("/gone.pth")})


def test_the_hubs_own_library_fetches_and_the_hash_that_it_was_told_is_compared(url, tmp_path, monkeypatch):
    true = partial(huggingface_hub.hf_hub_download, endpoint=url(""), cache_dir=tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", true)
    assert torch.equal(read_checkpoint("hf://org/true")["weight"], WEIGHTS["weight"])
    with pytest.raises(UserError, match=f"has not the SHA-256 {'0' * 64} that the hub announced"):
        located("hf://org/false")
    with pytest.raises(UserError, match=r"hf://org/none: cannot be fetched \(it has no such file\)"):
        located("hf://org/none")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Let the hub have files; returns the folder of repositories, and what was asked for."""
    folder, asked = tmp_path / "hub", []

    def download(repo, file, **_):
        asked.append((repo, file))
        if not (folder / repo / file).is_file():
            known = (folder / repo).is_dir()
            raise EntryNotFoundError("404") if known else LocalEntryNotFoundError("cannot reach the hub")
        return str(folder / repo / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return folder, asked


def put(folder, name, content=FILE):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_repository_is_looked_through_for_weights(hub):
    folder, asked = hub
    file = put(folder, "org/old/pytorch_model.bin", b"")
    torch.save(WEIGHTS, file)
    assert located("hf://org/old") == file
    assert [name for _, name in asked] == ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    named = put(folder, "org/new/sub/x.safetensors")
    assert located("hf://org/new/sub/x.safetensors") == named
    parts = {f"model-0000{n}-of-00002.safetensors": save({f"w{n}": torch.ones(2)}) for n in (1, 2)}
    for name, content in parts.items():
        put(folder, f"org/parts/{name}", content)
    listed = {"weight_map": {f"w{n}": name for n, name in enumerate(parts, 1)}}
    put(folder, "org/parts/model.safetensors.index.json", json.dumps(listed).encode())
    assert read_checkpoint("hf://org/parts").keys() == {"w1", "w2"}


def test_timms_names_lead_to_the_repository_that_timm_lists(hub):
    folder, _ = hub
    file = put(folder, "timm/resnet50.a1_in1k/model.safetensors")
    assert located("timm://resnet50.a1_in1k") == located("timm://resnet50") == file
    with pytest.raises(
        UserError, match=r"timm://resnet50.nope: timm lists no such weights of resnet50; it has a1_in1k"
    ):
        located("timm://resnet50.nope")
    with pytest.raises(UserError, match="unknown network of timm 'resnet51'"):
        located("timm://resnet51")


def test_a_hub_that_cannot_be_reached_or_lies_is_one_line(hub, monkeypatch, cache):
    folder, _ = hub
    place = cache_folder() / "huggingface.co/org/away/model.safetensors"
    with pytest.raises(UserError, match=rf"hf://org/away: cannot be fetched \(cannot reach.*by hand into {place}$"):
        located("hf://org/away")
    put(place.parent, place.name)
    assert located("hf://org/away") == place
    put(folder, "org/empty/README.md")
    with pytest.raises(UserError, match=r"hf://org/empty: cannot be fetched \(it has no such file\)"):
        located("hf://org/empty")
    blob = put(folder, f"org/lies/{'0' * 64}")
    (folder / "org/lies/model.safetensors").symlink_to(blob)
    with pytest.raises(UserError, match=r"has not the SHA-256 000.* that the hub announced"):
        located("hf://org/lies")
    put(folder, "org/page/model.safetensors", PAGE)
    with pytest.raises(UserError, match="a text or web page"):
        located("hf://org/page")
    for name in ("hf://org", "hf://org/repo/../../x", "hf://o rg/repo"):
        with pytest.raises(UserError, match="give hf://ORG/REPO"):
            located(name)

    def gated(*_, **__):
        raise GatedRepoError("403", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gated)
    with pytest.raises(UserError, match=r"its authors ask for an agreement .*hf auth login"):
        located("hf://org/gated")
