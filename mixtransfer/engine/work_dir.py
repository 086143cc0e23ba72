"""The work directory of a training: its checkpoints, the newest sound one, and the lock that keeps others out."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mixtransfer.errors import UserError
from mixtransfer.progress import is_first_process, notice

try:
    import fcntl
except ImportError:  # Windows has no locks that end with their process and leave the file readable
    fcntl: Any = None

__all__ = [
    "INTERRUPTED",
    "LATEST",
    "REQUEUE",
    "checkpoints",
    "locked",
    "newest_sound",
    "remove_training",
    "require_unused",
]

#: The file that names the newest checkpoint, and the checkpoint of a stopped training.
LATEST, INTERRUPTED = "last_checkpoint", "interrupted.pth"
#: The exit status after a signal by which a scheduler takes its machine back: start the same command again.
REQUEUE = 85
#: The file that says which process trains in a folder.
LOCK = "training.lock"
#: Checkpoints that training goes on from, and those that it keeps beside them.
NUMBERED, BEST = re.compile(r"(?:iter|epoch)_(\d+)\.pth"), re.compile(r"best_.+\.pth")

Found = TypeVar("Found")


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints that a training in ``folder`` can go on from, the newest first.

    ``last_checkpoint`` names the newest, and is followed where that moved with its folder. Where it is missing or
    damaged, the names of the files tell.
    """
    folder = Path(folder)
    matches = {path: NUMBERED.fullmatch(path.name) for path in folder.glob("*.pth")}
    steps = {path: int(match[1]) for path, match in matches.items() if match}
    numbered = sorted(steps, key=steps.__getitem__, reverse=True)
    stopped = [folder / INTERRUPTED] if folder / INTERRUPTED in matches else []
    return list(dict.fromkeys([*_named(folder), *stopped, *numbered]))


def _named(folder: Path) -> list[Path]:
    try:
        text = (folder / LATEST).read_bytes().decode("utf-8").strip()
        paths = [folder / Path(text).name, Path(text)] if text.isprintable() else []
        return [path for path in paths if path.name and path.is_file()][:1]
    except (OSError, ValueError):  # no such file, or none of text
        return []


def newest_sound(folder: str | Path, read: Callable[[Path], Found]) -> tuple[Path, Found] | None:
    """Return the newest checkpoint in ``folder`` that can be read, with its content; None without any checkpoint.

    Args:
        folder: the work directory.
        read: reads a checkpoint and raises a UserError for one that is damaged. Each is said, and passed over.

    Raises:
        UserError: there are checkpoints, and none can be read.
    """
    found = checkpoints(folder)
    problem = None
    for number, path in enumerate(found):
        try:
            content = read(path)
        except UserError as error:
            problem = problem or error
            after = f"; going on from {found[number + 1]}" if number + 1 < len(found) else ""
            notice(f"{error}{after}")
        else:
            return path, content
    if problem is not None:
        raise UserError(f"--resume: none of the {len(found)} checkpoints in {folder} can be read: {problem}")
    return None


def require_unused(folder: str | Path, resumed: str | Path | None = None) -> None:
    """Refuse a folder that holds the checkpoints of another training.

    Args:
        folder: the work directory.
        resumed: the checkpoint that training goes on from; None for a training that begins.

    Raises:
        UserError: naming the newest of them.
    """
    found = checkpoints(folder)
    if found and (resumed is None or Path(resumed).resolve().parent != Path(folder).resolve()):
        raise UserError(
            f"--work-dir {folder}: holds {found[0].name} of another training; --resume goes on with it, --overwrite"
            " deletes its checkpoints, another --work-dir keeps them"
        )


def remove_training(folder: str | Path) -> None:
    """Delete the checkpoints in ``folder``, the best among them, and what names the newest."""
    (Path(folder) / LATEST).unlink(missing_ok=True)
    for path in [*checkpoints(folder), *(path for path in Path(folder).glob("*.pth") if BEST.fullmatch(path.name))]:
        path.unlink()


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep other trainings out of ``folder`` while entered; of distributed processes the first one does.

    The lock ends with its process, however that ends. On Windows there is none.

    Raises:
        UserError: naming the process that trains there.
    """
    if fcntl is None or not is_first_process():
        yield
        return
    path = Path(folder) / LOCK
    file = _lock(path)
    try:
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()} {socket.gethostname()}\n".encode())
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _lock(path: Path):
    """Return the open lock file, locked."""
    while True:
        file = open(path, "a+b")
        file.seek(0)
        pid, _, host = file.read(300).decode("utf-8", "replace").strip().partition(" ")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise UserError(
                f"--work-dir {path.parent}: process {pid} on {host} trains in it ({path.name}); wait for it, or choose"
                " another"
            ) from error
        # The one that held it may have removed it in between; then this is the lock of nothing.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()
    # Not every network file system tells hosts of each other's locks.
    if host and host != socket.gethostname():
        file.close()
        raise UserError(
            f"--work-dir {path.parent}: process {pid} on {host} trains in it; if that has ended, delete {path}"
        )
    return file
