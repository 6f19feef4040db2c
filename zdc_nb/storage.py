"""Atomic writes, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "checksum",
    "exclusive",
    "save_tensors",
    "sweep",
    "write_atomically",
    "write_csv",
    "write_text",
]


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
    _make_folder(path.parent)
    sweep(path, socket.gethostname())
    prefix = f"{_mark(path)}{socket.gethostname()}@{os.getpid()}@"
    with _explained(path):
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
_NOT_WRITABLE = {
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "it is on a file system that can only be read",
    errno.EEXIST: "a file is in the place of a folder",
    errno.ENOTDIR: "a file is in the place of a folder",
}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of a path that cannot be made what is in the way."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        why = f"cannot be written: {_NOT_WRITABLE[error.errno]}"
        raise OSError(error.errno, why, str(path)) from error


def _make_folder(folder: Path) -> None:
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


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


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    _make_folder(path.parent)
    # its fallback, a file that is there or not, would outlive a process that is killed
    lock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            with _explained(path):
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
