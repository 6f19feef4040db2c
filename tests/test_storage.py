"""Files that are whole or not there, say what they were made with, and are written by one."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from zdc_nb.storage import (
    ArtefactError,
    check_artefact,
    exclusive,
    read_sidecar,
    sidecar,
    sweep,
    write_artefact,
    write_atomically,
    write_csv,
    write_text,
)

MADE_WITH = {"seed": 1, "flow": {"hidden": 8, "widths": (1, 2)}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    path = tmp_path / "a" / "teacher.csv"
    with write_artefact(path, MADE_WITH) as temporary:
        temporary.write_text("x\n1\n")
    return path


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


def test_an_artefact_says_what_it_was_made_with(artefact: Path) -> None:
    check_artefact(artefact, MADE_WITH)
    known = read_sidecar(artefact)
    # printf 'x\n1\n' | sha256sum
    assert known["sha256"] == "daff832f802000e645771a60983c76c963f6ee602a6230e45237bd360e91cc1a"
    assert known["bytes"] == 4
    assert names(artefact.parent) == ["teacher.csv", "teacher.csv.json"]


def test_other_parameters_are_named(artefact: Path) -> None:
    other = {"seed": 1, "flow": {"hidden": 9, "widths": (1, 2)}, "student": {"epochs": 2}}
    with pytest.raises(ArtefactError, match=r"teacher\.csv: .*\(flow\.hidden, student\)"):
        check_artefact(artefact, other)


@pytest.mark.parametrize("content", [b"", b"x\n1", b"x\n2\n", b"x\n1\n\n"])
def test_damage_is_named(artefact: Path, content: bytes) -> None:
    artefact.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"teacher\.csv: damaged"):
        check_artefact(artefact, MADE_WITH)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"bytes": 4}', b"\xff"])
def test_a_sidecar_that_is_none_is_named(artefact: Path, content: bytes) -> None:
    sidecar(artefact).write_bytes(content)
    with pytest.raises(ArtefactError, match=r"teacher\.csv\.json: expected"):
        check_artefact(artefact, MADE_WITH)


def test_an_artefact_without_its_sidecar_is_not_whole(artefact: Path) -> None:
    sidecar(artefact).unlink()
    with pytest.raises(ArtefactError, match=r"teacher\.csv: not whole"):
        check_artefact(artefact, MADE_WITH)


def test_a_sidecar_of_the_artefact_before_is_not_taken(artefact: Path) -> None:
    """As a process leaves it that was killed after the artefact and before the sidecar."""
    before = sidecar(artefact).read_bytes()
    with write_artefact(artefact, MADE_WITH) as temporary:
        temporary.write_text("x\n3\n")
    check_artefact(artefact, MADE_WITH)
    sidecar(artefact).write_bytes(before)
    with pytest.raises(ArtefactError, match="damaged"):
        check_artefact(artefact, MADE_WITH)
    assert json.loads(before)["made_with"]["flow"]["widths"] == [1, 2]


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
