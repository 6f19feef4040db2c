"""The grid is killed again and again, and run twice at once, and ends with the same numbers.

At a small size; `make faults` does the same to the smoke study, twenty times. `make test` stops one
training and goes on with it.
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

from tests import kill_grid, projects

slow = pytest.mark.slow


# one subset and two setups, with trainings that are long beside everything else
CHANGES = {
    "subsets": ["n"],
    "setups": ["bs", "bs+ch"],
    "checkpoint_seconds": 0.5,
    "data": {"responses": 1500, "max_responses": {"n": 400}},
    "flow": {"hidden": 16, "context_hidden": [16]},
    "teacher": {"epochs": 50},
    "student": {"epochs": 5},
    "evaluation": {"runs": 2, "figure_particles": 1},
    "speed": {"subset": "n", "setup": "bs", "batches": [1], "runs": 1},
}


@pytest.fixture(scope="module")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    def make() -> Path:
        project = projects.new_project(tmp_path_factory.mktemp("project"))
        projects.write_study(project, "faulty", CHANGES)
        return project

    return make


@pytest.fixture(scope="module")
def quiet(new_project: Callable[[], Path]) -> Path:
    """A project whose grid has run undisturbed."""
    project = new_project()
    assert kill_grid.finish(project, "faulty", project / "log") == 0, (project / "log").read_text()
    return project


@slow
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


@slow
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
    # not one that is being written: its name begins with a dot
    while not list(folder.glob("[!.]*.safetensors")):
        assert time.monotonic() - begun < 120
        assert run.is_running()
        time.sleep(0.05)
    (kernel,) = kill_grid.kernels_of(run)
    return kernel


@slow
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


def teach(project: Path) -> psutil.Popen:
    """Train the teacher by hand, as in a batch job."""
    notebook = ("notebooks/02_teacher_training.ipynb", "out.ipynb")
    parameters = ("-p", "study", "params/faulty.yaml", "-p", "subset", "n")
    with (project / "log").open("w", encoding="utf-8") as log:
        return psutil.Popen(
            [sys.executable, "-m", "papermill", *notebook, *parameters],
            cwd=project,
            env=os.environ | projects.THREADS,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def test_a_training_that_was_told_to_stop_goes_on_and_ends_with_the_same_numbers(
    new_project: Callable[[], Path],
) -> None:
    """SIGTERM to papermill and to the kernel, then the same command again."""
    project, undisturbed = new_project(), new_project()
    runs = teach(project), teach(undisturbed)
    kernel = training_kernel(runs[0], project / "artifacts" / "faulty" / "checkpoints" / "n")
    for process in (kernel, runs[0]):
        process.send_signal(signal.SIGTERM)
    assert runs[0].wait() != 0
    kernel.wait()
    assert teach(project).wait() == 0, (project / "log").read_text("utf-8")
    assert "going on from step" in (project / "out.ipynb").read_text("utf-8")
    assert runs[1].wait() == 0, (undisturbed / "log").read_text("utf-8")
    assert kill_grid.compare(undisturbed, project, "faulty") == []
