"""Records: what each stage was run with, ``records/<stage>.json`` below ``study.reports``.

A record is written when its stage begins (``running``) and again at its end (``done``), so that a
stage which was killed leaves one that says when and where.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr, ValidationError

from zdc_nb import __version__
from zdc_nb.params import Study
from zdc_nb.storage import write_text
from zdc_nb.study.stages import Stage, stages_of

__all__ = [
    "Device",
    "GitState",
    "Record",
    "is_done",
    "load_records",
    "start",
]

PACKAGES = (
    "awkward",
    "llvmlite",
    "numba",
    "numpy",
    "pandas",
    "papermill",
    "particle",
    "pydantic",
    "pyro-ppl",
    "safetensors",
    "scipy",
    "snakemake",
    "torch",
    "uproot",
)
"""Packages whose versions a record holds: those that the numbers come from."""


class Device(BaseModel):
    """The machine that a stage ran on, as far as the study may use it."""

    system: str
    cpu: str
    cores: int | None
    threads: int = Field(description="of torch")
    gpu: str | None = Field(description="None where the study does not use one")
    gpus: int


class GitState(BaseModel):
    """The commit that the code was at."""

    commit: str
    dirty: bool = Field(description="whether files under version control were changed since")


class Record(BaseModel):
    """One run of one stage.

    Attributes
    ----------
    started, ended, wall_seconds
        times in UTC; the last two are None until the stage is done.
    attempts
        1, and one more for each time before that the stage was begun and not finished.
    peak_memory_mb, peak_cuda_memory_mb
        of the process, from its start to the end of the stage (MB = 1e6 bytes); the second is
        None where CUDA was not used.
    versions
        of Python, of this project and of :data:`PACKAGES`; None for what is not installed.
    git
        None where there is no git, or the code is not in a repository of its own.
    data
        of a data file: ``files`` (a list with ``name``, ``size`` and ``sha256`` of each),
        ``dropped`` (number of rows by reason), and more. Known when the stage is done.
    facts
        what the stage itself tells, such as ``resumed_from_step``.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    schema_version: Literal[1] = 1
    stage: str
    study_file: str
    status: Literal["running", "done", "stopped"]
    started: datetime
    ended: datetime | None = None
    wall_seconds: float | None = None
    attempts: int
    host: str
    pid: int
    slurm_job: str | None
    peak_memory_mb: float | None = None
    peak_cuda_memory_mb: float | None = None
    device: Device
    versions: dict[str, str | None]
    git: GitState | None
    seed: int
    parameters: dict[str, JsonValue]
    data: dict[str, JsonValue] = {}
    facts: dict[str, JsonValue] = {}

    _study: Study | None = PrivateAttr(None)

    def stop(self, why: str) -> None:
        """Write the record anew: the stage was told to stop, and said ``why``."""
        if self._study is not None:
            self.status, self.facts = "stopped", {"stopped": why}
            _write(self, self._study)

    def finish(self, **facts: JsonValue) -> None:
        """Write the record anew, as done, with what the stage has to tell.

        Only for a record that :func:`start` has given; a second call takes the place of the first.
        """
        import torch  # noqa: PLC0415 - slow to import, and not needed to read records

        from zdc_nb.hardware import peak_memory_mb  # noqa: PLC0415

        if self._study is None:
            raise RuntimeError(f"{self.stage}: a record that was read cannot be finished")
        self.status = "done"
        self.ended = datetime.now(UTC)
        self.wall_seconds = (self.ended - self.started).total_seconds()
        self.peak_memory_mb = peak_memory_mb()
        if torch.cuda.is_initialized():
            self.peak_cuda_memory_mb = torch.cuda.max_memory_allocated() / 1e6
        # now and not at the start: 01 only makes the data, or finds what is wrong with them
        self.data = _data(self._study)
        self.facts = facts
        _write(self, self._study)


def start(stage: Stage) -> Record:
    """Write that ``stage`` runs now, and return the record to be finished at its end."""
    study = stage.study
    record = Record(
        stage=stage.name,
        study_file=f"{study.name}.yaml",
        status="running",
        started=datetime.now(UTC),
        attempts=1 + _unfinished_attempts(study, stage.name),
        host=socket.gethostname(),
        pid=os.getpid(),
        slurm_job=os.environ.get("SLURM_JOB_ID"),
        device=_device(study),
        versions=_versions(),
        git=_git_state(Path(__file__).resolve().parents[2]),
        seed=study.seed,
        parameters=study.model_dump(mode="json"),
    )
    record._study = study
    _write(record, study)
    return record


def is_done(stage: Stage) -> bool:
    """Whether a stage has left a record of its end."""
    try:
        record = _load(_path(stage.study, stage.name))
    except ValueError:
        return False
    return record is not None and record.status == "done"


def load_records(study: Study, ended: bool = False) -> tuple[dict[str, Record], list[str]]:
    """The records of a study by stage, and what is wrong with those that cannot be read.

    A record that says ``running`` is returned as ``stopped`` where its process is gone. That of a
    process on another host cannot be told from here, and stays ``running``; unless it is known
    that all stages have ``ended``, as when the grid is at its end.
    """
    records, wrong = {}, []
    for stage in (stage.name for stage in stages_of(study)):
        try:
            record = _load(_path(study, stage))
        except ValueError as error:
            wrong.append(str(error))
            continue
        if record is not None:
            if record.status == "running" and _is_gone(record, ended):
                record.status = "stopped"
            records[stage] = record
    return records, wrong


def _data(study: Study) -> dict[str, JsonValue]:
    """Data files with their checksums and what came of their rows, or what was simulated.

    And a checksum of the events that came of it.
    """
    from zdc_nb.study.dataset import data_digest, data_identity, data_report  # noqa: PLC0415

    data = data_identity(study) | {"digest": data_digest(study)}
    return data if study.data.file is None else data | data_report(study)


def _path(study: Study, stage: str) -> Path:
    return study.reports / "records" / f"{stage}.json"


def _write(record: Record, study: Study) -> None:
    write_text(record.model_dump_json(indent=2) + "\n", _path(study, record.stage))


def _load(path: Path) -> Record | None:
    """A record; None where there is no such file, ``ValueError`` where it cannot be read."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(
            f"{path}: not a record of this version ({where}: {first['msg']})"
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def _unfinished_attempts(study: Study, stage: str) -> int:
    try:
        earlier = _load(_path(study, stage))
    except ValueError:
        return 0
    # in JupyterLab the same process may begin a stage again and again
    mine = earlier and (earlier.host, earlier.pid) == (socket.gethostname(), os.getpid())
    return 0 if earlier is None or earlier.status == "done" else earlier.attempts - bool(mine)


def _is_gone(record: Record, elsewhere: bool) -> bool:
    """Whether the process of a record is no more; ``elsewhere``: the answer for other hosts."""
    here = record.host == socket.gethostname()
    return not psutil.pid_exists(record.pid) if here else elsewhere


def _device(study: Study) -> Device:
    import torch  # noqa: PLC0415

    from zdc_nb.hardware import cpu_model  # noqa: PLC0415

    with_gpu = study.device != "cpu" and torch.cuda.is_available()
    return Device(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_model(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if with_gpu else None,
        gpus=torch.cuda.device_count() if with_gpu else 0,
    )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "zdc-nb": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _git_state(root: Path) -> GitState | None:
    """State of the repository whose top is ``root``; None where that is none."""
    top, commit = _git(root, "rev-parse", "--show-toplevel"), _git(root, "rev-parse", "HEAD")
    # a tarball may be unpacked inside another repository
    if top is None or commit is None or Path(top).resolve() != root:
        return None
    # without the untracked: a study file of the user's own stands in the record itself
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if changed is None else GitState(commit=commit, dirty=changed != "")


def _git(root: Path, *command: str) -> str | None:
    """What git says; None where it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
