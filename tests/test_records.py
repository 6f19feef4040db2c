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

from zdc_nb.params import Study, load_study
from zdc_nb.study import runs, status
from zdc_nb.study.runs import PACKAGES, load_records, start
from zdc_nb.study.stages import Stage, find_stage, stages_of
from zdc_nb.study.status import outdated

ROOT = Path(__file__).parents[1]
NAME = "02_teacher_training-all"


def stage_in(folder: Path) -> Stage:
    """A stage of the smoke study, its results below ``folder``."""
    study = load_study(ROOT / "params" / "smoke.yaml")
    paths = {"reports": str(folder / "reports"), "artifacts": str(folder / "artifacts")}
    study = study.model_copy(update={"paths": study.paths.model_copy(update=paths)})
    return find_stage(study, "02_teacher_training", subset="all")


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage whose data nobody has made."""
    monkeypatch.setattr(runs, "_data", lambda _: {"dropped": {"no photons": 3}})
    return stage_in(tmp_path)


def path_of(stage: Stage) -> Path:
    return stage.study.reports / "records" / f"{stage.name}.json"


def written(stage: Stage) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path_of(stage).read_text("utf-8"))
    return content


def change(stage: Stage, **values: object) -> None:
    path_of(stage).write_text(json.dumps(written(stage) | values), "utf-8")


def test_record_is_there_from_the_start_and_done_at_the_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    before = datetime.now(UTC)
    record = start(stage)
    running = written(stage)
    assert running["status"] == "running"
    assert running["ended"] is running["wall_seconds"] is running["peak_memory_mb"] is None
    assert (running["pid"], running["host"]) == (os.getpid(), socket.gethostname())
    assert running["slurm_job"] == "4711"
    assert running["parameters"] == stage.study.model_dump(mode="json")
    assert (running["seed"], running["study_file"]) == (stage.study.seed, "smoke.yaml")

    record.finish(resumed_from_step=120)
    done = written(stage)
    assert done["status"] == "done"
    assert done["facts"] == {"resumed_from_step": 120}
    assert done["data"] == {"dropped": {"no photons": 3}}
    started, ended = (datetime.fromisoformat(done[key]) for key in ("started", "ended"))
    assert before <= started <= ended <= datetime.now(UTC)
    assert done["wall_seconds"] == (ended - started).total_seconds()
    assert {key for key, value in running.items() if value != done[key]} == {
        *("status", "ended", "wall_seconds", "peak_memory_mb", "data", "facts")
    }
    assert [path.name for path in path_of(stage).parent.iterdir()] == [f"{NAME}.json"]
    assert load_records(stage.study)[0][NAME].model_dump(mode="json") == done


def test_stage_that_is_told_to_stop_says_where(stage: Stage) -> None:
    start(stage).stop("stopped by SIGINT after step 120 of 500, saved")
    record = load_records(stage.study)[0][NAME]
    assert record.status == "stopped"
    assert record.facts == {"stopped": "stopped by SIGINT after step 120 of 500, saved"}
    assert not runs.is_done(stage)
    # which is forgotten when it goes on
    change(stage, pid=1)
    again = start(stage)
    assert (again.attempts, written(stage)["facts"]) == (2, {})


@pytest.mark.skipif(sys.platform != "linux", reason="compared with Linux's own number")
def test_peak_memory_holds_what_was_freed(stage: Stage) -> None:
    record = start(stage)
    np.ones(50_000_000)  # 400 MB
    record.finish()
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    kb = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    peak = written(stage)["peak_memory_mb"]
    assert peak == pytest.approx(int(kb["VmHWM"]) * 1024 / 1e6, rel=0.02)
    assert peak > 400


def test_cells_may_be_run_twice(stage: Stage) -> None:
    for _ in range(2):
        record = start(stage)
        record.finish()
        record.finish(note="again")
    start(stage)
    assert start(stage).attempts == 1
    with pytest.raises(ValidationError, match="facts"):
        record.finish(losses=np.ones(2))  # type: ignore[arg-type]


def test_versions_are_those_installed_and_the_packages_those_declared(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    pins = dict(line.split("==") for line in pyproject["project"]["dependencies"])
    assert set(PACKAGES) <= set(pins)
    monkeypatch.setattr(runs, "PACKAGES", (*PACKAGES, "no-such-package-here"))
    versions = start(stage).versions
    assert versions.pop("no-such-package-here") is None
    assert versions["python"] == sys.version.split()[0]
    assert {name: versions[name] for name in PACKAGES} == {name: version(name) for name in PACKAGES}


# --- Git ----------------------------------------------------------------------------------------


def git(folder: Path, *command: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *identity, *command], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    root = tmp_path / "a repository; echo"
    (root / "unpacked").mkdir(parents=True)
    (root / "code.py").write_text("1\n", "utf-8")
    git(root, "init", "--quiet")
    assert runs._git_state(root) is None  # no commit yet
    git(root, "add", "code.py")
    git(root, "commit", "--quiet", "--message", "first")
    state = runs._git_state(root)
    assert state is not None
    assert (state.commit, state.dirty) == (git(root, "rev-parse", "HEAD"), False)
    (root / "mine.yaml").write_text("untracked", "utf-8")
    assert runs._git_state(root) == state
    (root / "code.py").write_text("2\n", "utf-8")
    assert runs._git_state(root) == state.model_copy(update={"dirty": True})
    # a tarball has no commit, not even that of the repository around it
    assert runs._git_state(root / "unpacked") is runs._git_state(tmp_path) is None


def test_machine_without_git_has_no_commit(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start(stage).git is None


# --- Reading ------------------------------------------------------------------------------------

KILLED = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.test_records import stage_in, start
start(stage_in(Path(sys.argv[1])))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_stage_that_was_killed_is_stopped_and_its_attempts_are_counted(
    stage: Stage, tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    found, wrong = load_records(stage.study)
    assert (found[NAME].status, found[NAME].attempts, wrong) == ("stopped", 1, [])
    # reading changes nothing
    assert written(stage)["status"] == "running"
    with pytest.raises(RuntimeError, match="cannot be finished"):
        found[NAME].finish()
    record = start(stage)
    assert record.attempts == 2
    assert load_records(stage.study)[0][NAME].status == "running"
    record.finish()
    assert load_records(stage.study)[0][NAME].status == "done"
    assert start(stage).attempts == 1


@pytest.mark.parametrize(
    ("host", "pid", "now", "at_the_end"),
    [
        (socket.gethostname(), 2**22 + 1, "stopped", "stopped"),  # more than Linux has
        (socket.gethostname(), os.getpid(), "running", "running"),
        # of another host it is known only when the grid is at its end
        ("elsewhere", 2**22 + 1, "running", "stopped"),
    ],
    ids=["gone", "there", "elsewhere"],  # the same in every worker
)
def test_record_whose_process_is_gone_is_stopped(
    stage: Stage, host: str, pid: int, now: str, at_the_end: str
) -> None:
    start(stage)
    change(stage, host=host, pid=pid)
    assert load_records(stage.study)[0][NAME].status == now
    assert load_records(stage.study, ended=True)[0][NAME].status == at_the_end


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"stage": "02_', "the file"),
        (b"\xff\xfe\x00", "the file"),
        (b"{}", "stage"),
        ({"schema_version": 2}, "schema_version"),
        ({"new": 1}, "new"),
        ({"git": {"commit": 1, "dirty": False}}, "git.commit"),
    ],
)
def test_record_that_cannot_be_read_is_named_and_overwritten(
    stage: Stage, content: bytes | dict[str, Any], what: str
) -> None:
    start(stage)
    speed = find_stage(stage.study, "11_speed")
    start(speed).finish()
    if isinstance(content, bytes):
        path_of(stage).write_bytes(content)
    else:
        change(stage, **content)
    found, (message,) = load_records(stage.study)
    assert set(found) == {speed.name}
    assert message.startswith(f"{path_of(stage)}: not a record of this version ({what}: ")
    assert not runs.is_done(stage)
    start(stage).finish()
    assert load_records(stage.study)[1] == []


def test_nothing_run_is_no_records(stage: Stage) -> None:
    assert load_records(stage.study) == ({}, [])


# --- Whether what was run is of what the study has now ------------------------------------------


@pytest.fixture
def executed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study whose notebooks have all been executed, and have left all that they should."""
    monkeypatch.setattr(status, "is_current", lambda _: True)
    for other in stages_of(stage.study):
        other.executed.parent.mkdir(parents=True, exist_ok=True)
        for table in other.tables:
            table.parent.mkdir(parents=True, exist_ok=True)
            table.touch()
        content = {"metadata": {"zdc_nb": other.fingerprint}, "cells": []}
        other.executed.write_text(json.dumps(content), "utf-8")
    return stage.study


def with_value(study: Study, key: str, value: object) -> Study:
    """The study with another value of ``key``, such as ``teacher.batch``."""
    section, _, name = key.partition(".")
    if name:
        value = getattr(study, section).model_copy(update={name: value})
    return study.model_copy(update={section: value})


TEACHERS = "02 03 08 09 10 11 12 13 14 15 16"


@pytest.mark.parametrize(
    ("key", "value", "numbers"),
    [
        ("data.fractions", (0.5, 0.25, 0.25), "01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16"),
        ("splitting.learning_rate", 1e30, "04 08 09 10 11 12 13 14 15 16"),
        ("flow.bins", 17, TEACHERS),
        ("preprocessing.alpha", 0.2, TEACHERS),
        ("teacher.learning_rate", 1e30, TEACHERS),
        ("student.channel_weight", 77.0, "03 08 09 10 11 12 13 14 15 16"),
        ("photon_sum.learning_rate", 1e30, "05 08 09 10 12 13 14 15 16"),
        ("signal.learning_rate", 1e30, "06 15 16"),
        ("evaluation.runs", 17, "05 07 08 09 10 12 13 14 15 16"),
        ("speed.runs", 17, "11 12 15"),
        ("device", "cuda", ""),
        ("tracking", "wandb", ""),
        ("checkpoint_seconds", 1.5, ""),
    ],
)
def test_changed_parameter_is_named_for_the_stages_that_depend_on_it(
    executed: Study, key: str, value: object, numbers: str
) -> None:
    assert outdated(executed) == {}
    changed = with_value(executed, key, value)
    depending = {s.name for s in stages_of(changed) if s.name[:2] in numbers.split()}
    found = outdated(changed)
    assert set(found) == depending
    assert set(found.values()) <= {f"other parameters: {key}"}


@pytest.mark.parametrize(
    "key", ["data.max_responses", "teacher.epochs", "student.epochs", "splitting.epochs"]
)
def test_what_is_set_for_one_subset_is_changed_for_that_alone(executed: Study, key: str) -> None:
    values = dict.fromkeys(executed.subsets, 70)
    before, after = (with_value(executed, key, v) for v in (values, values | {"n": 71}))
    for stage in stages_of(before):
        content = {"metadata": {"zdc_nb": stage.fingerprint}, "cells": []}
        stage.executed.write_text(json.dumps(content), "utf-8")
    assert outdated(before) == {}
    found = {name for name, why in outdated(after).items() if key in why}
    trained = "04_splitting_flow-n" if "splitting" in key else "03_student_distillation-n-bs"
    assert trained in found
    # to be run again because of 01, whose table tells of it, it may be; to be trained again it is not
    assert not [name for name in found if "-all" in name]


def test_changed_cells_are_told_and_an_order_of_setups_is_not(executed: Study) -> None:
    turned = executed.model_copy(update={"setups": executed.setups[::-1]})
    assert not [name for name in outdated(turned) if name[:2] < "08"]
    stage = find_stage(executed, "02_teacher_training", subset="all")
    fingerprint = stage.fingerprint | {"cells": "another"}
    content = {"metadata": {"zdc_nb": fingerprint}, "cells": []}
    stage.executed.write_text(json.dumps(content), "utf-8")
    assert outdated(executed) == {NAME: "its notebook was changed"}
