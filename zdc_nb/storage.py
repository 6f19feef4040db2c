"""Files that are either whole or not there, and that say what they were made with.

Beside each artefact lies ``<name>.json`` with its checksum and the parameters that it was made
with. It is written last: an artefact without it, or whose bytes it does not describe, is not whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ArtefactError",
    "check_artefact",
    "checksum",
    "exclusive",
    "read_sidecar",
    "save_tensors",
    "sidecar",
    "sweep",
    "write_artefact",
    "write_atomically",
    "write_csv",
    "write_text",
]


class ArtefactError(ValueError):
    """An artefact is damaged, or was made with other parameters or data; the message names it."""


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path of the same suffix beside ``path``, renamed to it if the block succeeds.

    Folders are made where needed; on an error nothing is left behind. What a killed process of
    this machine left behind when it wrote the same file is removed.

    Raises
    ------
    OSError
        naming ``path``, where the block or this could not write it, as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path, socket.gethostname())
    prefix = f"{_mark(path)}{socket.gethostname()}@{os.getpid()}@"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; results are for others too
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        # the bytes before the name: a machine that loses power keeps the old file or the new
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        why = f"could not be written ({error.strerror}); what was there before still is"
        raise OSError(error.errno, why, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


_CANNOT_WRITE = {errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC}


def _mark(path: Path) -> str:
    """How the names of temporary files for ``path`` begin, before host and number of process."""
    return f".{path.name}@"


def sweep(path: Path, host: str | None = None) -> None:
    """Remove temporary files for ``path`` of processes of ``host``, this one, that are no more.

    Without ``host`` all of them, whatever wrote them: only for who alone may write ``path``.
    """
    mark = _mark(path)
    for leftover in path.parent.iterdir() if path.parent.is_dir() else ():
        if leftover.name.startswith(mark):
            where, pid, _ = leftover.name.removeprefix(mark).split("@", 2)
            if host is None or (where == host and not _is_running(int(pid))):
                leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write ``table`` without its index."""
    with write_atomically(path) as temporary:
        table.to_csv(temporary, index=False)


def write_text(text: str, path: Path) -> None:
    """Write ``text`` in UTF-8."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write a safetensors file; ``OSError`` where that fails, as from other ways to write."""
    from safetensors import SafetensorError  # noqa: PLC0415 - torch takes its time
    from safetensors.torch import save_file  # noqa: PLC0415

    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        # of the system's error it keeps the text alone
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


# --- Artefacts ----------------------------------------------------------------------------------


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sidecar(path: Path) -> Path:
    """Where the checksum and the parameters of the artefact ``path`` are."""
    return path.with_name(path.name + ".json")


@contextmanager
def write_artefact(path: Path, made_with: object) -> Iterator[Path]:
    """As :func:`write_atomically`, and then the sidecar.

    ``made_with`` is anything that JSON can hold: all that the artefact depends on.
    """
    with write_atomically(path) as temporary:
        yield temporary
        # of the bytes that were written, before another process can write the same artefact
        description = {
            "bytes": temporary.stat().st_size,
            "sha256": checksum(temporary),
            "made_with": made_with,
        }
    write_text(json.dumps(description, indent=1), sidecar(path))


def read_sidecar(path: Path) -> dict[str, Any]:
    """What is known of the artefact ``path``: ``bytes``, ``sha256`` and ``made_with``.

    Raises
    ------
    ArtefactError
        naming the artefact, where its sidecar is missing or not whole.
    """
    try:
        content = json.loads(sidecar(path).read_text("utf-8"))
        return {key: content[key] for key in ("bytes", "sha256", "made_with")}
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{path}: not whole, {sidecar(path).name} with its checksum is missing; delete it and "
            "run the study to make it again"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{sidecar(path)}: expected the checksum of {path.name}") from error


def check_artefact(path: Path, made_with: object) -> None:
    """Raise :class:`ArtefactError` unless ``path`` is whole and was made with ``made_with``."""
    known = read_sidecar(path)
    mine = json.loads(json.dumps(made_with))  # as JSON gives it back: no tuples
    if known["made_with"] != mine:
        changed = ", ".join(_differences(known["made_with"], mine))
        raise ArtefactError(
            f"{path}: was made with other parameters or data than this study has now ({changed}); "
            "delete it and run the study to make it again"
        )
    if path.stat().st_size != known["bytes"] or checksum(path) != known["sha256"]:
        raise ArtefactError(
            f"{path}: damaged, its bytes are not those of the checksum in {sidecar(path).name}; "
            "delete it and run the study to make it again"
        )


def _differences(theirs: object, mine: object, where: str = "") -> Iterator[str]:
    """Dotted names of the values that differ."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in sorted({*theirs, *mine}):
            yield from _differences(theirs.get(key), mine.get(key), f"{where}.{key}".lstrip("."))
    elif theirs != mine:
        yield where or "all"


# --- Who may write ------------------------------------------------------------------------------


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path``; wait, and say so, while another process holds it.

    The system drops the lock of a process that dies, however it does. Where the file system knows
    no locks, a line says so, and nothing is locked.

    Parameters
    ----------
    path
        a file of its own, made where needed and left behind.
    what
        is done under the lock, for the message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # its fallback, a file that is there or not, would outlive a process that is killed
    lock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process that is at {what} (it holds {path})", flush=True)
            lock.acquire(poll_interval=0.5)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}:
            raise
        print(f"{path}: this file system has no locks; run {what} once at a time", flush=True)
    try:
        yield
    finally:
        lock.release()
