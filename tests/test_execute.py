"""One notebook of the grid: done, failed, stopped, and left alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[1]
Start = Callable[..., "subprocess.Popen[str]"]
SAVED = """it's "saved" $(touch run); `touch run`"""
"""A parameter that a shell would make something of."""

TRAINING = """
import time
from pathlib import Path
from zdc_nb.training.checkpoints import StopRequest, TrainingInterrupted

with StopRequest() as stop:
    print("training", flush=True)
    while not stop.signal:
        time.sleep(0.01)
    time.sleep(3)  # longer than a kernel lives without its parent
    Path(saved).write_text(stop.signal)
raise TrainingInterrupted("saved")
"""


PROGRAM = """
import sys
from pathlib import Path
from zdc_nb.study.execute import execute, follow

follow(int(sys.argv[2]))
sys.exit(execute(Path("in.ipynb"), Path("out/it.ipynb"), {"saved": sys.argv[1]}, {"cells": "x"}))
"""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a notebook of these cells, after one that sets the parameter ``saved``."""

    def begin(*cells: str, parent: int | None = None) -> "subprocess.Popen[str]":
        first = new_code_cell('saved = "default"', metadata={"tags": ["parameters"]})
        notebook = new_notebook(
            cells=[first, *map(new_code_cell, cells)],
            metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
        )
        nbformat.write(notebook, tmp_path / "in.ipynb")
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, SAVED, str(parent or os.getpid())],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").glob("[!.]*"))


def test_done_under_its_name_with_its_output_in_lines(start: Start, tmp_path: Path) -> None:
    process = start(r"print('one\rtwo'); print('thr', end=''); print('ee')", "print(saved)")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.splitlines() == ["[it] one", "[it] two", "[it] three", f"[it] {SAVED}"]
    assert left(tmp_path) == ["it.ipynb"]
    assert not (tmp_path / "run").exists()
    done = nbformat.read(tmp_path / "out" / "it.ipynb", as_version=4)
    assert done.metadata["zdc_nb"] == {"cells": "x"}


def test_failed_is_kept_with_its_traceback_and_gone_when_it_succeeds(
    start: Start, tmp_path: Path
) -> None:
    process = start("1 / 0", "print('never')")
    output, errors = process.communicate()
    assert process.returncode == 1
    assert "ZeroDivisionError" in errors
    assert "never" not in output
    assert left(tmp_path) == ["it.failed.ipynb"]
    cells = nbformat.read(tmp_path / "out" / "it.failed.ipynb", as_version=4).cells
    assert any(
        out.get("ename") == "ZeroDivisionError" for c in cells for out in c.get("outputs", [])
    )
    start("1").communicate()
    assert left(tmp_path) == ["it.ipynb"]


def test_a_kernel_that_dies_is_a_failure(start: Start, tmp_path: Path) -> None:
    process = start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Kernel died" in errors
    assert left(tmp_path) == ["it.failed.ipynb"]


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=["SIGTERM", "SIGINT"],
)
def test_told_to_stop_it_waits_for_the_checkpoint(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(TRAINING, "print('never')")
    assert process.stdout is not None
    assert process.stdout.readline() == "[it] training\n"
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}" in output
    assert "never" not in output
    assert (tmp_path / SAVED).read_text() == "SIGINT"
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "delay", [0.3, *(pytest.param(delay, marks=pytest.mark.slow) for delay in (0.0, 1.0))]
)
def test_told_to_stop_while_its_kernel_starts_it_stops(
    start: Start, tmp_path: Path, delay: float
) -> None:
    process = start("import time", "time.sleep(30)", "print('never')")
    begun = time.monotonic()
    while not (children := psutil.Process(process.pid).children()):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(delay)
    process.terminate()
    output, _ = process.communicate()
    assert time.monotonic() - begun < 30
    assert process.returncode == 128 + signal.SIGTERM
    assert "never" not in output
    assert left(tmp_path) == []
    assert children


@pytest.mark.slow
def test_it_stops_when_the_process_that_waits_for_it_is_gone(start: Start, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as parent:
        process = start(TRAINING, parent=parent.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == "[it] training\n"
        time.sleep(1)
        assert process.poll() is None
        parent.kill()
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert (tmp_path / SAVED).is_file()
