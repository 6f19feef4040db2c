"""Files that are whole or not there, say what they were made with, and are written by one."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from zdc_nb.storage import exclusive, sweep, write_atomically, write_csv, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    write_csv(pd.DataFrame({"x": [1]}), path)

    def write_half() -> None:
        with write_atomically(path) as temporary:
            temporary.write_text("half")
            assert temporary.suffix == ".csv"
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write_half()
    assert path.read_text() == "x\n1\n"
    write_text("é", path.with_suffix(".txt"))
    assert names(path.parent) == ["table.csv", "table.txt"]


def test_others_may_read_it(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_text("x", tmp_path / "a.txt")
    finally:
        os.umask(mask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


WRITER = """
import sys, time
from pathlib import Path
from zdc_nb.storage import write_atomically
with write_atomically(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def writer(path: Path) -> "subprocess.Popen[str]":
    """A process that is in the middle of writing ``path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.txt"
    with writer(path) as alive, writer(path) as dead, writer(tmp_path / "a.txt-b.txt") as other:
        dead.kill()
        dead.wait()
        assert len(names(tmp_path)) == 3
        write_text("whole", path)
        assert len(names(tmp_path)) == 3
        alive.kill()
        alive.wait()
        write_text("whole", path)
        assert names(tmp_path) != ["a.txt"]
        other.kill()
        other.wait()
        write_text("other", tmp_path / "a.txt-b.txt")
    assert names(tmp_path) == ["a.txt", "a.txt-b.txt"]


HOLDER = """
import sys, time
from pathlib import Path
from zdc_nb.storage import exclusive
with exclusive(Path(sys.argv[1]), "the work"):
    print("holding", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "is killed"])
def test_only_one_process_is_at_it_and_the_next_waits(tmp_path: Path, killed: bool) -> None:
    lock = tmp_path / "new" / "a.lock"
    command = [sys.executable, "-c", HOLDER, str(lock)]
    first = subprocess.Popen([*command, "60" if killed else "3"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "holding\n"
    second = subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    assert second.stdout.readline() == (
        f"waiting for another process that is at the work (it holds {lock})\n"
    )
    time.sleep(0.7)
    assert second.poll() is None
    if killed:
        first.send_signal(signal.SIGKILL)
    assert second.stdout.readline() == "holding\n"
    first.communicate()
    second.communicate()
    assert second.returncode == 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_it_goes_on_and_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with exclusive(tmp_path / "a.lock", "the work"):
        pass
    assert "has no locks" in capsys.readouterr().out


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path, number: int) -> None:
    path = tmp_path / "table.csv"
    write_text("before", path)

    def write() -> None:
        with write_atomically(path):
            raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=r"could not be written.*table\.csv") as error:
        write()
    assert error.value.errno == number
    assert names(tmp_path) == ["table.csv"]
    assert path.read_text() == "before"


def test_what_processes_of_other_hosts_left_goes_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    host = socket.gethostname()
    # a name that begins as this host's, and the process with the largest number there can be
    (tmp_path / f".a.txt@{host}-2@4194305@x.txt").touch()
    (tmp_path / f".a.txt@{host}@4194305@x.txt").touch()
    write_text("whole", path)
    assert names(tmp_path) == [f".a.txt@{host}-2@4194305@x.txt", "a.txt"]
    sweep(path)
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "no permission to write there"),
        (errno.EROFS, "a file system that can only be read"),
    ],
)
def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for attempt in (write_text, lambda text, path: exclusive(path, text).__enter__()):
        with pytest.raises(OSError, match=f"cannot be written: .*{said}") as error:
            attempt("x", tmp_path / "new" / "a.txt")
        assert error.value.filename == str(tmp_path / "new")


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    for path in (tmp_path / "a" / "b.txt", tmp_path / "a" / "c" / "b.txt"):
        with pytest.raises(OSError, match="a file is in the place of a folder"):
            write_text("x", path)
    assert (tmp_path / "a").read_text() == "a file"
