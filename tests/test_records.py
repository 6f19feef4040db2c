"""A record says what was run, where and how far it came, and never stands in the way."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from zdc_nb.params import ParameterError, Study, load_study, notebook_names
from zdc_nb.study import runs as records
from zdc_nb.study.runs import PACKAGES, load_records, start

ROOT = Path(__file__).parents[1]
STAGE = "02_teacher_training-all"


def make_study(folder: Path) -> Study:
    """The smoke study, its results below ``folder``."""
    study = load_study(ROOT / "params" / "smoke.yaml")
    paths = study.paths.model_copy(update={"reports": str(folder / "reports")})
    return study.model_copy(update={"paths": paths})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path)


def path_of(study: Study, stage: str = STAGE) -> Path:
    return study.reports / "records" / f"{stage}.json"


def written(study: Study) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path_of(study).read_text("utf-8"))
    return content


def change(study: Study, **values: object) -> None:
    path_of(study).write_text(json.dumps(written(study) | values), "utf-8")


def test_record_is_there_from_the_start_and_done_at_the_end(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(records, "_data", lambda _: {"dropped": {"no photons": 3}})
    before = datetime.now(UTC)
    record = start(study, STAGE)
    running = written(study)
    assert running["status"] == "running"
    assert running["ended"] is running["wall_seconds"] is running["peak_memory_mb"] is None
    assert running["pid"] == os.getpid()
    assert running["host"] == socket.gethostname()
    assert running["slurm_job"] == "4711"
    assert running["parameters"] == study.model_dump(mode="json")
    assert running["seed"] == study.seed
    assert running["study_file"] == "smoke.yaml"

    record.finish(resumed_from_step=120)
    done = written(study)
    assert done["status"] == "done"
    assert done["facts"] == {"resumed_from_step": 120}
    assert done["data"] == {"dropped": {"no photons": 3}}
    started, ended = (datetime.fromisoformat(done[key]) for key in ("started", "ended"))
    assert before <= started <= ended <= datetime.now(UTC)
    assert done["wall_seconds"] == (ended - started).total_seconds()
    assert {key for key, value in running.items() if value != done[key]} == {
        *("status", "ended", "wall_seconds", "peak_memory_mb", "data", "facts")
    }
    assert [path.name for path in path_of(study).parent.iterdir()] == [f"{STAGE}.json"]
    assert load_records(study)[0][STAGE].model_dump(mode="json") == done


@pytest.mark.skipif(sys.platform != "linux", reason="compared with Linux's own number")
def test_peak_memory_holds_what_was_freed(study: Study) -> None:
    record = start(study, STAGE)
    np.ones(50_000_000)  # 400 MB
    record.finish()
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    kb = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    peak = written(study)["peak_memory_mb"]
    assert peak == pytest.approx(int(kb["VmHWM"]) * 1024 / 1e6, rel=0.02)
    assert peak > 400


def test_cells_may_be_run_twice(study: Study) -> None:
    for _ in range(3):
        record = start(study, STAGE)
        record.finish()
        record.finish(note="again")
    start(study, STAGE)
    record = start(study, STAGE)
    assert record.attempts == 1
    record.finish()
    assert written(study)["status"] == "done"
    assert written(study)["facts"] == {}


def test_facts_that_json_cannot_hold_are_refused(study: Study) -> None:
    record = start(study, STAGE)
    with pytest.raises(ValidationError, match="facts"):
        record.finish(losses=np.ones(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["02_teacher_training-proton", "../../elsewhere", "", "07"])
def test_stage_that_the_study_has_not_is_refused(study: Study, stage: str) -> None:
    with pytest.raises(ParameterError, match="is not in study 'smoke'"):
        start(study, stage)
    assert not study.reports.exists()


def test_versions_are_those_installed_and_the_packages_those_declared(study: Study) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    pins = dict(line.split("==") for line in pyproject["project"]["dependencies"])
    assert set(PACKAGES) <= set(pins)
    versions = start(study, STAGE).versions
    for package in PACKAGES:
        assert versions[package] == version(package)
    assert versions["python"] == sys.version.split()[0]


def test_package_that_is_not_installed_is_null(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PACKAGES", ("numpy", "no-such-package-here"))
    assert start(study, STAGE).versions["no-such-package-here"] is None


# --- Git ----------------------------------------------------------------------------------------


def git(folder: Path, *command: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *identity, *command], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "a repository; echo"
    root.mkdir()
    git(root, "init", "--quiet")
    (root / "code.py").write_text("1\n", "utf-8")
    git(root, "add", "code.py")
    git(root, "commit", "--quiet", "--message", "first")
    return root


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_and_whether_it_was_changed(repository: Path) -> None:
    state = records._git_state(repository)
    assert state is not None
    assert state.commit == git(repository, "rev-parse", "HEAD")
    assert not state.dirty
    (repository / "mine.yaml").write_text("untracked", "utf-8")
    assert records._git_state(repository) == state
    (repository / "code.py").write_text("2\n", "utf-8")
    assert records._git_state(repository) == state.model_copy(update={"dirty": True})


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_tarball_has_no_commit_not_even_that_of_the_repository_around_it(
    repository: Path, tmp_path: Path
) -> None:
    inside = repository / "unpacked"
    inside.mkdir()
    assert records._git_state(inside) is None
    assert records._git_state(tmp_path) is None
    empty = tmp_path / "no commit yet"
    empty.mkdir()
    git(empty, "init", "--quiet")
    assert records._git_state(empty) is None


def test_machine_without_git_has_no_commit(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start(study, STAGE).git is None
    assert written(study)["git"] is None


# --- Reading ------------------------------------------------------------------------------------

KILLED = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_records import STAGE, make_study, start
start(make_study(Path(sys.argv[1])), STAGE)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_stage_that_was_killed_is_stopped_and_its_attempts_are_counted(
    study: Study, tmp_path: Path
) -> None:
    for attempt in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, tmp_path],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        found, wrong = load_records(study)
        assert (found[STAGE].status, found[STAGE].attempts) == ("stopped", attempt)
        assert not wrong
        # reading changes nothing
        assert written(study)["status"] == "running"
    with pytest.raises(RuntimeError, match="cannot be finished"):
        found[STAGE].finish()
    record = start(study, STAGE)
    assert record.attempts == 3
    assert load_records(study)[0][STAGE].status == "running"
    record.finish()
    assert load_records(study)[0][STAGE].status == "done"
    assert start(study, STAGE).attempts == 1


def test_process_on_another_host_is_not_called_stopped(study: Study) -> None:
    start(study, STAGE)
    change(study, pid=2**22 + 1)  # more than Linux has
    assert load_records(study)[0][STAGE].status == "stopped"
    change(study, host="elsewhere")
    assert load_records(study)[0][STAGE].status == "running"
    # when the grid is at its end nothing is left there; but here it can be seen who lives
    assert load_records(study, ended=True)[0][STAGE].status == "stopped"
    change(study, host=socket.gethostname(), pid=os.getpid())
    assert load_records(study, ended=True)[0][STAGE].status == "running"


def with_value(study: Study, key: str, value: object) -> Study:
    """The study with another value of ``key``, such as ``teacher.batch``."""
    section, _, name = key.partition(".")
    if name:
        value = getattr(study, section).model_copy(update={name: value})
    return study.model_copy(update={section: value})


@pytest.mark.parametrize(
    ("key", "value", "first"),
    [
        ("seed", 99, "01"),
        ("data.file", ["a.root", "b.root"], "01"),
        ("data.split", (0.5, 0.25, 0.25), "01"),
        ("device", "cuda", "02"),
        ("preprocessing.alpha", 0.2, "02"),
        ("flow.bins", 17, "02"),
        ("teacher.learning_rate", 1e30, "02"),
        ("teacher.epochs", {"all": 77}, "02"),
        ("evaluation.runs", 17, "02"),
        ("student.channel_weight", 77.0, "03"),
        ("subsets", ["all"], "04"),
        ("setups", ["bs"], "04"),
        ("speed.runs", 17, "06"),
        ("paths.artifacts", "elsewhere", "none"),
        ("tracking", "wandb", "none"),
        ("checkpoint_seconds", 1.5, "none"),
        ("evaluation.figure_particles", 17, "none"),
    ],
)
def test_changed_parameter_is_named_for_the_stages_that_depend_on_it(
    study: Study, key: str, value: object, first: str
) -> None:
    stages = notebook_names(study)
    for stage in stages:
        start(study, stage).finish()
    found, _ = load_records(study)
    changed = with_value(study, key, value)
    for stage in stages:
        assert records.changed_parameters(found[stage], study) == []
        depends = stage[:2] >= first and (first != "06" or stage == "06_speed")
        assert records.changed_parameters(found[stage], changed) == [key] * depends


@pytest.mark.parametrize("key", ["data.max_responses", "teacher.epochs", "student.epochs"])
def test_what_is_set_for_one_subset_is_changed_for_that_alone(study: Study, key: str) -> None:
    values = dict.fromkeys(study.subsets, 70)
    before = with_value(study, key, values)
    after = with_value(study, key, values | {"n": 71})
    first = "03" if key == "student.epochs" else "02"
    for stage in notebook_names(study):
        start(before, stage).finish()
        record = load_records(study)[0][stage]
        depends = stage[:2] >= first and (stage[:2] >= "04" or stage.split("-")[1] == "n")
        assert records.changed_parameters(record, before) == []
        assert records.changed_parameters(record, after) == [key] * depends, stage


def test_parameter_that_a_record_has_not_is_changed_and_an_order_is_not(study: Study) -> None:
    start(study, "06_speed").finish()
    record = load_records(study)[0]["06_speed"]
    turned = study.model_copy(update={"setups": study.setups[::-1]})
    assert records.changed_parameters(record, turned) == []
    flow = record.parameters["flow"]
    assert isinstance(flow, dict)
    del flow["precision"]
    flow["of_old"] = 1
    del record.parameters["student"]
    names = records.changed_parameters(record, study)
    assert names == ["flow.precision", "flow.of_old", "student"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"stage": "02_', "the file"),
        (b"\xff\xfe\x00", "the file"),
        (b"[]", "the file"),
        (b"{}", "stage"),
        ({"schema_version": 2}, "schema_version"),
        ({"new": 1}, "new"),
        ({"git": {"commit": 1, "dirty": False}}, "git.commit"),
    ],
)
def test_record_that_cannot_be_read_is_named_and_overwritten(
    study: Study, content: bytes | dict[str, Any], what: str
) -> None:
    start(study, STAGE)
    start(study, "06_speed").finish()
    if isinstance(content, bytes):
        path_of(study).write_bytes(content)
    else:
        change(study, **content)
    found, (message,) = load_records(study)
    assert set(found) == {"06_speed"}
    assert message.startswith(f"{path_of(study)}: not a record of this version ({what}: ")
    start(study, STAGE).finish()
    assert load_records(study)[1] == []


def test_nothing_run_is_no_records(study: Study) -> None:
    assert load_records(study) == ({}, [])
    for stage in notebook_names(study):
        start(study, stage).finish()
    assert list(load_records(study)[0]) == notebook_names(study)
