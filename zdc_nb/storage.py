"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

__all__ = ["write_atomically", "write_csv", "write_text"]


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path of the same suffix beside ``path``, renamed to it if the block succeeds.

    Folders are made where needed; on an error nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; results are for others too
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write ``table`` without its index."""
    with write_atomically(path) as temporary:
        table.to_csv(temporary, index=False)


def write_text(text: str, path: Path) -> None:
    """Write ``text`` in UTF-8."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
