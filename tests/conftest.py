"""One finished grid for all tests that need one."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.projects import new_project, snakemake
from zdc_nb.params import Study, load_study


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the smoke study has run; not to be changed, see :func:`own_copy`."""
    # of all workers the first makes it, and the others wait
    base = tmp_path_factory.getbasetemp()
    shared = base if base.name.startswith("pytest-") else base.parent
    project = shared / "a+project with spaces"  # which papermill and snakemake have to stand
    with FileLock(shared / "finished.lock"):
        if not (project / "done").is_file():
            new_project(project)
            done = snakemake(project, "smoke", "--cores", "2")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "(100%) done" in done.stderr
            (project / "done").touch()
    return project


@pytest.fixture
def own_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project that a test may change."""
    # with the times of the files: Snakemake goes by them
    return Path(shutil.copytree(finished, tmp_path / "project", symlinks=True))


@pytest.fixture
def smoke(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The study that has run, as its project sees it."""
    monkeypatch.chdir(finished)
    return load_study("params/smoke.yaml")
