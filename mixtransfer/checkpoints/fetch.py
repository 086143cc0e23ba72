"""Checkpoints by name become files in a cache: ``https://…``, ``hf://ORG/REPO[/FILE]``, ``timm://…``, ``weights://…``.

A file is fetched once. What a server sends is not believed: the number of bytes has to be the announced one, a hash in
the name or behind ``#sha256=`` has to be the content's, and the headers are read by
:func:`~mixtransfer.checkpoints.headers.read_header` before the file gets its place. Addresses are ``https`` after every
redirection too; ``http`` is taken from this machine only.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from mixtransfer.checkpoints.headers import INDEX, is_url, read_header, require_file
from mixtransfer.checkpoints.published import find_published
from mixtransfer.checkpoints.whole_files import file_hash, replace_whole
from mixtransfer.errors import UserError
from mixtransfer.progress import notice, progress_line

__all__ = ["cache_folder", "is_name", "located"]

SCHEMES = ("https", "http", "hf", "timm", "weights")
#: The machines that plain http is taken from: nobody listens or writes between.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: A file's name with the beginning of its SHA-256, as torch.hub's: NAME-HASH.pth.
HASHED = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
#: The files of a repository that its weights are looked for in.
WEIGHTS = ("model.safetensors", f"model{INDEX}", "pytorch_model.bin")
#: Seconds until a server has to answer, and bytes that are read at once.
PATIENCE, BLOCK = 30, 1 << 20
#: Bytes that a download leaves free on the disk.
RESERVE = 1 << 28


def is_name(text: str | Path) -> bool:
    """Tell whether a checkpoint is named instead of given as a file, in a form that :func:`located` takes."""
    return is_url(text) and str(text).partition("://")[0].lower() in SCHEMES


def cache_folder() -> Path:
    """Return the folder of fetched files, where they may be put by hand too."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "mixtransfer", "weights")


def located(name: str | Path) -> Path:
    """Return the file of a checkpoint; one that is named is fetched, or comes from the cache.

    Raises:
        UserError: there is no such file; or it cannot be fetched, with the path where it may be put by hand; or what
            came is not what was announced, or no checkpoint.
    """
    text = str(name)
    if not is_name(text):
        return require_file(name)
    scheme, _, rest = text.partition("://")
    if scheme.lower() == "hf":
        return _from_hub(text, rest)
    if scheme.lower() == "timm":
        return _of_timm(text, rest)
    if scheme.lower() == "weights":
        return _of_paper(text, rest)
    return _from_server(text)


# A server -------------------------------------------------------------------------------------------------------------


def _from_server(url: str) -> Path:
    """Return the file behind an address, and with an index its parts."""
    address, fragment = urldefrag(url)
    _require_safe(url, address)
    parts = [part for part in unquote(urlsplit(address).path).split("/") if part]
    if not parts or any(part in (".", "..") or not part.isprintable() for part in parts):
        raise UserError(f"{url}: names no file")
    # Another query is another file.
    query = urlsplit(address).query
    mark = [hashlib.sha256(query.encode()).hexdigest()[:8]] if query else []
    path = cache_folder().joinpath(str(urlsplit(address).hostname), *parts[:-1], *mark, parts[-1])
    wanted = fragment.partition("sha256=")[2].lower() or (match[1] if (match := HASHED.search(parts[-1])) else "")
    if not re.fullmatch(r"[0-9a-f]*", wanted):
        raise UserError(f"{url}: what follows #sha256= is no hash of hexadecimal digits")
    with _locked(path):
        if not path.is_file():
            _download(url, address, path, wanted)
        elif wanted and not file_hash(path).startswith(wanted):
            raise UserError(f"{path}: has not the SHA-256 {wanted}… of {url}; remove it, and it is fetched anew")
    if path.name.endswith(INDEX):
        for part in _parts(url, path):
            located(urljoin(address, part))
        read_header(path)
    return path


def _download(url: str, address: str, path: Path, wanted: str) -> None:
    """Fetch a file into its place, or leave nothing behind."""
    by_hand = f"put the file by hand into {path}"
    opener = urllib.request.build_opener(_SafeRedirects(url))
    request = urllib.request.Request(address, headers={"User-Agent": "mixtransfer", "Accept-Encoding": "identity"})
    try:
        with opener.open(request, timeout=PATIENCE) as answer, replace_whole(path, by_hand) as partial:
            total, free = _announced(url, answer), shutil.disk_usage(path.parent).free - RESERVE
            if total is not None and total > free:
                raise UserError(f"{url}: announces {total:,} bytes, and the disk of {path.parent} has {max(free, 0):,}")
            notice(f"fetching {url}" + ("" if total is None else f", {total / 1e6:.0f} MB") + f", into {path}")
            digest = _copy(url, answer, partial, total, free)
            if not digest.startswith(wanted):
                raise UserError(f"{url}: what came has the SHA-256 {digest}, not {wanted}…; nothing was kept")
            if not path.name.endswith(INDEX):
                try:
                    read_header(partial)
                except UserError as error:
                    text = str(error).removeprefix(f"{partial}: ")
                    raise UserError(f"{url}: what came is {text}; nothing was kept; {by_hand}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{url}: cannot be fetched ({reason}); {by_hand}") from None


def _copy(url: str, answer: IO[bytes], partial: Path, total: int | None, free: int) -> str:
    """Write what a server sends, as much as it announced and the disk takes; return its SHA-256."""
    digest, done, progress = hashlib.sha256(), 0, progress_line("MB fetched")
    with open(partial, "wb") as file:
        while block := answer.read(BLOCK):
            done += len(block)
            if done > (free if total is None else total):
                raise UserError(f"{url}: sends more bytes than {'the disk takes' if total is None else total}")
            file.write(block)
            digest.update(block)
            if total:
                progress(done // BLOCK or 1, total // BLOCK or 1)
    if total is not None and done != total:
        raise UserError(f"{url}: {done:,} of {total:,} bytes came: it was cut; try again")
    return digest.hexdigest()


def _announced(url: str, answer: Any) -> int | None:
    length = answer.headers.get("Content-Length")
    if length is None:
        return None
    if not length.isdecimal():
        raise UserError(f"{url}: announces {length!r} bytes")
    return int(length)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a server only to where the first address could have pointed."""

    def __init__(self, url: str):
        self.url = url

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request of the new address."""
        _require_safe(self.url, newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    # The base class refuses schemes before it asks the method above.
    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Follow a redirection."""
        target = headers.get("location") or headers.get("uri") or ""
        _require_safe(self.url, urljoin(req.full_url, target), req.full_url)
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _require_safe(url: str, address: str, source: str | None = None) -> None:
    """Refuse an address that is neither https nor on this machine, and a way to this machine from elsewhere."""
    parts = urlsplit(address)
    local = parts.hostname in LOOPBACK
    if source is not None and local and urlsplit(source).hostname not in LOOPBACK:
        raise UserError(f"{url}: leads to {address[:100]}, on this machine; nothing was fetched")
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        leads = f"leads to {address[:100]}, which" if source else "it"
        raise UserError(f"{url}: {leads} is no https:// address; nothing was fetched")


# The hub --------------------------------------------------------------------------------------------------------------


def _from_hub(name: str, rest: str) -> Path:
    """Return a file of a repository of the Hugging Face Hub, by default that of its weights."""
    org, _, more = rest.partition("/")
    repo, _, file = more.partition("/")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", f"{org}/{repo}") or ".." in file.split("/"):
        raise UserError(f"{name}: give hf://ORG/REPO or hf://ORG/REPO/FILE")
    place = cache_folder() / "huggingface.co" / org / repo
    files = [file] if file else list(WEIGHTS)
    for candidate in files:
        if (place / candidate).is_file():
            return place / candidate

    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    def fetch(file: str) -> Path:
        path = Path(huggingface_hub.hf_hub_download(f"{org}/{repo}", file))
        blob = path.resolve().name
        # The cache names large files by their SHA-256; a server could have sent other bytes.
        if re.fullmatch(r"[0-9a-f]{64}", blob) and file_hash(path) != blob:
            raise UserError(f"{path}: has not the SHA-256 {blob} that the hub announced; remove it, and try again")
        return path

    reason: object = "it has no such file"
    for candidate in files:
        try:
            path = fetch(candidate)
            if candidate.endswith(INDEX):
                for part in _parts(name, path):
                    fetch(f"{candidate.rpartition('/')[0]}/{part}".lstrip("/"))
        except LocalEntryNotFoundError as error:
            # Offline, or no answer: the other files would not come either.
            reason = _first_line(error.__cause__ or error)
            break
        except GatedRepoError:
            reason = "its authors ask for an agreement on its page; accept it there and say 'hf auth login'"
            break
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            reason = _first_line(error)
            break
        else:
            read_header(path)
            return path
    raise UserError(f"{name}: cannot be fetched ({reason}); put the file by hand into {place / files[0]}")


def _of_timm(name: str, rest: str) -> Path:
    """Return the file of timm's pretrained weights of a name, wherever timm says they are."""
    import timm.models

    from mixtransfer.backbones.foreign.timm_networks import known_tags

    plain, _, tag = rest.partition(".")
    tags = known_tags(plain)
    if tag and tag not in tags:
        raise UserError(f"{name}: timm lists no such weights of {plain}; it has {', '.join(tags) or 'none'}")
    found = timm.models.get_pretrained_cfg(rest, allow_unregistered=False)
    if found is None or not (found.hf_hub_id or found.url):
        raise UserError(f"{name}: timm lists no weights of {plain}; it has {', '.join(tags) or 'none'}")
    if found.hf_hub_id:
        file = f"/{found.hf_hub_filename}" if found.hf_hub_filename else ""
        return _from_hub(name, f"{found.hf_hub_id}{file}")
    return _from_server(str(found.url))


def _of_paper(name: str, rest: str) -> Path:
    """Return a paper's official file, see :mod:`~mixtransfer.checkpoints.published`."""
    entry = find_published(rest)
    if not entry.is_page:
        return _from_server(entry.address)
    place = cache_folder() / "weights" / rest
    if not place.is_file():
        raise UserError(f"{name}: is behind a page, {entry.address}; put the file by hand into {place}")
    read_header(place)
    return place


# Both -----------------------------------------------------------------------------------------------------------------


def _parts(name: str, index: Path) -> list[str]:
    """Return the names of the files that an index lists, which lie beside it."""
    try:
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        sound = all(Path(part).name == part and part.endswith(".safetensors") for part in parts)
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{name}: {index} is no index of safetensors files; remove it")
    return parts


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time fetch a file; the others wait, and find it there."""
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        with lock:
            yield
    except PermissionError as error:
        raise UserError(f"{path.parent}: cannot be written to ({error.strerror}); set XDG_CACHE_HOME") from None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
