"""The grid is killed again and again, and run twice at once, and ends with the same numbers.

At a small size; `make faults` does the same to the smoke study, twenty times.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from tests import kill_grid

ROOT = Path(__file__).parents[1]


def write_study(path: Path) -> Path:
    """One subset and two setups, with trainings that are long beside everything else."""
    content = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text("utf-8"))
    content |= {"subsets": ["n"], "setups": ["bs", "bs+ch"], "checkpoint_seconds": 0.5}
    changes = {
        "data": {"responses": 1500, "max_responses": {"n": 400}},
        "flow": {"hidden": 16, "context_hidden": [16]},
        "teacher": {"epochs": 12},
        "student": {"epochs": 5},
        "evaluation": {"runs": 2, "figure_particles": 1},
        "speed": {"subset": "n", "setup": "bs", "batches": [1], "runs": 1},
    }
    for section, values in changes.items():
        content[section] |= values
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


@pytest.fixture(scope="module")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    study = write_study(tmp_path_factory.mktemp("study") / "faulty.yaml")
    return lambda: kill_grid.copy_project(tmp_path_factory.mktemp("project"), study)


@pytest.fixture(scope="module")
def quiet(new_project: Callable[[], Path]) -> Path:
    """A project whose grid has run undisturbed."""
    project = new_project()
    assert kill_grid.finish(project, "faulty", project / "log") == 0, (project / "log").read_text()
    return project


def test_killed_at_random_moments_it_ends_with_the_same_tables(
    quiet: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("disturbed")
    study = quiet / "params" / "faulty.yaml"
    done, differing, _ = kill_grid.disturb_again_and_again(
        quiet, study, folder, kills=4, longest=20, seed=3
    )
    assert done == dict.fromkeys(kill_grid.KILLS, 1)
    assert differing == []
    left = [path for path in folder.rglob(".*@*") if path.is_file()]
    assert not left


def test_started_twice_at_once_the_second_waits_and_finds_all_done(
    quiet: Path, new_project: Callable[[], Path]
) -> None:
    project = new_project()
    logs = [project / "one.log", project / "two.log"]
    runs = [kill_grid.start(project, "faulty", log) for log in logs]
    assert [run.wait() for run in runs] == [0, 0]
    texts = [log.read_text("utf-8") for log in logs]
    waited = ["waiting for another process that is at the study faulty" in text for text in texts]
    assert sorted(waited) == [False, True]
    (second,) = (text for text, last in zip(texts, waited, strict=True) if last)
    assert "Nothing to be done" in second
    assert kill_grid.compare(quiet, project, "faulty") == []


def training_kernel(run: psutil.Process, folder: Path) -> psutil.Process:
    """The kernel of a run that has just written a checkpoint."""
    begun = time.monotonic()
    while not list(folder.glob("*.safetensors")):
        assert time.monotonic() - begun < 120
        assert run.is_running()
        time.sleep(0.05)
    (kernel,) = kill_grid.kernels_of(run)
    return kernel


def test_killed_while_it_trains_the_grid_goes_on_from_a_checkpoint(
    quiet: Path, new_project: Callable[[], Path]
) -> None:
    project = new_project()
    log = project / "log"
    run = kill_grid.start(project, "faulty", log)
    training_kernel(run, project / "artifacts" / "faulty" / "checkpoints" / "n")
    assert kill_grid.kill(run, "all", random.Random(0)) == ["02_teacher_training-n"]
    assert kill_grid.finish(project, "faulty", log) == 0, log.read_text("utf-8")
    # that of a training from nothing would have the same numbers
    assert "teacher n: going on from step" in log.read_text("utf-8")
    assert kill_grid.compare(quiet, project, "faulty") == []


def test_a_training_alone_goes_on_after_papermill_was_told_to_stop(
    quiet: Path, new_project: Callable[[], Path]
) -> None:
    """As by hand in a batch job: SIGTERM to papermill and to the kernel, then the same again."""
    project = new_project()
    command = ["papermill", "notebooks/02_teacher_training.ipynb", "out.ipynb"]
    parameters = ["-p", "study", "params/faulty.yaml", "-p", "subset", "n"]
    # as many as in the grid: another number of threads adds up in another order
    threads = {f"{name}_NUM_THREADS": "2" for name in ("OMP", "MKL", "NUMBA")}
    run = psutil.Popen(
        [sys.executable, "-m", *command, *parameters],
        cwd=project,
        env=os.environ | threads,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    kernel = training_kernel(run, project / "artifacts" / "faulty" / "checkpoints" / "n")
    for process in (kernel, run):
        process.send_signal(signal.SIGTERM)
    assert run.wait() != 0
    kernel.wait()
    again = subprocess.run(
        [sys.executable, "-m", *command, *parameters],
        cwd=project,
        env=os.environ | threads,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "going on from step" in (project / "out.ipynb").read_text("utf-8")
    mine, other = (kill_grid.results(path, "faulty") for path in (project, quiet))
    taught = {name for name in mine if "teacher" in name}
    assert len(taught) == 4
    assert {name: mine[name] for name in taught} == {name: other[name] for name in taught}
