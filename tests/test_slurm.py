"""The same grid on a cluster: a job for every notebook, on a real Slurm.

`make test` runs the data's notebook as a job, `make test-all` the smoke study and all that may
happen to its jobs.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from tests.slurm_cluster import ENDS_WITH_US, Cluster, SlurmError, find_programs, private_cluster
from zdc_nb.params import load_study
from zdc_nb.study import Stage, stages_of

ROOT = Path(__file__).parents[1]
PROFILE = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text("utf-8"))

# What the cluster of the test has less of: CPUs, and time to wait for.
OVERRIDES = (
    *("--set-threads", *(f"{rule}=1" for rule in PROFILE["set-threads"])),
    *("--slurm-init-seconds-before-status-checks", "1"),
    *("--latency-wait", "10"),
)

# The plugin asks 10 s later each time that nothing has ended, and no setting turns that off: jobs of
# seconds would wait for minutes.
SNAKEMAKE = """
import asyncio
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
RemoteExecutor.sleep = lambda self: asyncio.sleep(0.5)
main()
"""

Job = dict[str, str]

ONE_NOTEBOOK = "docs/one_notebook.sbatch"

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        find_programs()
    except SlurmError as error:
        # CI promises that the grid runs on a Slurm, so it may not go without one
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error}; on Debian and Ubuntu `make test` gets them")
    with private_cluster(cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a project whose results are its own and whose code is this one."""

    def make() -> Path:
        project = tmp_path_factory.mktemp("a+project with spaces")
        shutil.copytree(ROOT / "notebooks", project / "notebooks")
        shutil.copytree(ROOT / "params", project / "params")
        for name in ("docs", "profiles", "zdc_nb", "Snakefile"):
            (project / name).symlink_to(ROOT / name)
        (project / ".venv").symlink_to(sys.prefix)
        return project

    return make


def start(cluster: Cluster, project: Path, *options: str) -> subprocess.Popen[bytes]:
    """The grid as `make study PROFILE=slurm` starts it; what it prints goes to a file."""
    command = [
        *ENDS_WITH_US,
        sys.executable,
        "-c",
        SNAKEMAKE,
        "--profile",
        "profiles/slurm",
        *OVERRIDES,
    ]
    with (project / "printed.txt").open("wb") as printed:
        return subprocess.Popen(
            [
                *command,
                "--quiet",
                "host",
                "reason",
                *options,
                "--config",
                "study=params/smoke.yaml",
            ],
            cwd=project,
            env=cluster.environment,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )


def jobs_by_name(cluster: Cluster, project: Path) -> dict[str, Job]:
    """The jobs of a project's grid under their rules and keys, for example `teacher n`."""
    found = {}
    for job in cluster.jobs():
        match = re.fullmatch(r"rule_(\w+?)_wildcards_\w+?(?:-(.*))?", job.get("Comment", ""))
        if match and job["WorkDir"] == str(project):
            rule, keys = match.groups()
            found[f"{rule} {keys}" if keys else rule] = job
    return found


@dataclass
class Grid:
    """A grid that has run."""

    project: Path
    jobs: dict[str, Job]
    printed: str


def test_one_job_of_the_grid_runs(cluster: Cluster, new_project: Callable[[], Path]) -> None:
    project = new_project()
    study = project / "params" / "smoke.yaml"
    content = yaml.safe_load(study.read_text("utf-8"))
    content["data"] |= {"responses": 300, "max_responses": {"n": 100, "all": 100}}
    study.write_text(yaml.safe_dump(content), "utf-8")
    printed = project / "printed.txt"
    assert start(cluster, project, "--until", "data").wait() == 0, printed.read_text("utf-8")
    (job,) = jobs_by_name(cluster, project).values()
    assert job["JobState"] == "COMPLETED"
    assert job["MinMemoryNode"] == f"{PROFILE['default-resources']['mem_mb']}M"
    assert (project / "artifacts" / "smoke" / "data.root").is_file()
    assert (project / "reports" / "smoke" / "notebooks" / "01_data_exploration.ipynb").is_file()


@pytest.fixture(scope="module")
def grid(cluster: Cluster, new_project: Callable[[], Path]) -> Grid:
    """The smoke study, with the teacher of `all` held back until a student of `n` has begun."""
    project = new_project()
    run = start(cluster, project)
    printed = project / "printed.txt"

    def wait_for(what: Callable[[dict[str, Job]], bool]) -> dict[str, Job]:
        while not what(jobs := jobs_by_name(cluster, project)):
            assert run.poll() is None, printed.read_text("utf-8")
            time.sleep(0.3)
        return jobs

    try:
        wait_for(lambda jobs: jobs.get("data", {}).get("JobState") == "RUNNING")
        cluster.ask("scontrol", "update", "PartitionName=study", "State=DOWN")
        jobs = wait_for(lambda jobs: {"teacher n", "teacher all"} <= jobs.keys())
        cluster.ask("scontrol", "hold", jobs["teacher all"]["JobId"])
        cluster.ask("scontrol", "update", "PartitionName=study", "State=UP")
        wait_for(
            lambda jobs: any(
                name.startswith("student n") and job["JobState"] == "RUNNING"
                for name, job in jobs.items()
            )
        )
        cluster.ask("scontrol", "release", jobs["teacher all"]["JobId"])
        assert run.wait() == 0, printed.read_text("utf-8")
    finally:
        # asked to end, it would wait for its jobs
        run.kill()
        run.wait()
    return Grid(project, jobs_by_name(cluster, project), printed.read_text("utf-8"))


def smoke_stages() -> list[Stage]:
    return stages_of(load_study(ROOT / "params" / "smoke.yaml"))


def name_of_job(stage: Stage) -> str:
    """The job that runs a stage, as :func:`jobs_by_name` calls it."""
    return " ".join((stage.row.name, "-".join(stage.suffixes))).strip()


@slow
def test_every_notebook_was_a_job_that_succeeded(grid: Grid) -> None:
    stages = {name_of_job(stage): stage for stage in smoke_stages()}
    # the report is made where snakemake runs
    assert grid.jobs.keys() == stages.keys()
    assert {job["JobState"] for job in grid.jobs.values()} == {"COMPLETED"}
    reports = grid.project / "reports" / "smoke"
    assert (reports / "index.html").is_file()
    names = [stage.name for stage in stages.values()]
    assert [name for name in names if not (reports / "html" / f"{name}.html").is_file()] == []


@slow
def test_only_what_can_use_a_gpu_asks_for_one(grid: Grid) -> None:
    with_gpu = {name for name, job in grid.jobs.items() if "gpu:1" in job.get("TresPerJob", "")}
    assert with_gpu == {name_of_job(stage) for stage in smoke_stages() if stage.row.on_gpu}
    assert [job for job in grid.jobs.values() if "TresPerNode" in job] == []


@slow
def test_jobs_ask_for_what_the_profile_says(grid: Grid) -> None:
    for name, job in grid.jobs.items():
        wanted = PROFILE["default-resources"] | PROFILE["set-resources"].get(name.split()[0], {})
        assert job["MinMemoryNode"] == f"{wanted['mem_mb']}M"
        hours, minutes = divmod(wanted["runtime"], 60)
        assert job["TimeLimit"] == f"{hours:02}:{minutes:02}:00"
        assert job["NumCPUs"] == "1"
        assert job["Requeue"] == "1"


@slow
def test_each_student_waits_for_its_own_teacher_only(grid: Grid) -> None:
    def when(name: str, field: str) -> datetime:
        return datetime.fromisoformat(grid.jobs[name][field])

    students = [name for name in grid.jobs if name.startswith("student")]
    for name in students:
        subset = name.split()[1].split("-")[0]
        assert when(name, "StartTime") >= when(f"teacher {subset}", "EndTime")
    first = min(when(name, "StartTime") for name in students if name.startswith("student n"))
    assert first <= when("teacher all", "StartTime")


@slow
def test_log_of_every_job_is_kept_and_named(grid: Grid) -> None:
    named = re.findall(r"SLURM jobid (\d+) \(log: (.*)\)\.$", grid.printed, re.MULTILINE)
    assert {number for number, _ in named} == {job["JobId"] for job in grid.jobs.values()}
    for _, log in named:
        assert "1 of 1 steps (100%) done" in Path(log).read_text("utf-8")


@slow
def test_failure_on_a_node_is_shown_where_snakemake_runs(
    cluster: Cluster, new_project: Callable[[], Path]
) -> None:
    project = new_project()
    study = project / "params" / "smoke.yaml"
    content = yaml.safe_load(study.read_text("utf-8"))
    content["data"]["file"] = "broken.root"
    study.write_text(yaml.safe_dump(content), "utf-8")
    (project / "broken.root").write_text("not a ROOT file", "utf-8")
    run = start(cluster, project, "--retries", "0", "--until", "data")
    assert run.wait() != 0
    printed = (project / "printed.txt").read_text("utf-8")
    failed = project / "reports" / "smoke" / "notebooks" / "01_data_exploration.failed.ipynb"
    ending = printed[printed.index("01_data_exploration failed") :]
    assert "broken.root" in ending
    assert str(failed) in ending
    assert failed.is_file()
    assert jobs_by_name(cluster, project)["data"]["JobState"] == "FAILED"


@slow
def test_a_training_that_is_told_to_stop_goes_on_in_its_next_attempt(
    cluster: Cluster, new_project: Callable[[], Path]
) -> None:
    """SIGTERM to all processes of a job, as at its time limit, which cannot be below a minute."""
    project = new_project()
    study = project / "params" / "smoke.yaml"
    content = yaml.safe_load(study.read_text("utf-8"))
    content |= {"subsets": ["n"], "setups": ["bs"]}
    content["speed"] |= {"subset": "n", "setup": "bs"}
    content["teacher"]["epochs"] = 60
    study.write_text(yaml.safe_dump(content), "utf-8")
    run = start(cluster, project, "--until", "teacher")
    try:
        # opened when the training begins
        curves = project / "reports" / "smoke" / "tensorboard" / "teacher" / "n"
        while not list(curves.glob("events.*")):
            assert run.poll() is None, (project / "printed.txt").read_text("utf-8")
            time.sleep(0.2)
        first = jobs_by_name(cluster, project)["teacher n"]
        time.sleep(1)
        cluster.ask("scancel", "--signal=TERM", first["JobId"])
        assert run.wait() == 0, (project / "printed.txt").read_text("utf-8")
    finally:
        run.kill()
        run.wait()
    second = jobs_by_name(cluster, project)["teacher n"]
    assert job_of(cluster, first["JobId"])["JobState"] == "FAILED"
    assert second["JobState"] == "COMPLETED"
    assert first["JobId"] != second["JobId"]
    logs = project / ".snakemake" / "slurm_logs" / "rule_teacher" / "02_teacher_training-n"
    stopped, went_on = (
        (logs / f"{job['JobId']}.log").read_text("utf-8") for job in (first, second)
    )
    assert "stopped by SIGTERM" in stopped
    assert "teacher n: going on from step" in went_on


def sbatch(cluster: Cluster, project: Path, *arguments: str) -> str:
    """Submit the example with one CPU; returns the number of its job."""
    command = ["sbatch", "--parsable", "--cpus-per-task=1", ONE_NOTEBOOK, *arguments]
    return subprocess.run(
        command, cwd=project, env=cluster.environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def job_of(cluster: Cluster, number: str) -> Job:
    return next(job for job in cluster.jobs() if job["JobId"] == number)


def test_make_takes_the_profile() -> None:
    def commands(*arguments: str) -> str:
        # as where nothing is installed yet
        command = ["make", "--dry-run", "study", "VENV=.no-venv", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    there, here = commands("PROFILE=slurm"), commands()
    assert 'snakemake --profile "profiles/$PROFILE" ' in there
    assert '--editable ".[slurm]"' in there
    assert 'snakemake --cores "$CORES" ' in here
    assert "[slurm]" not in here


SMOKE = ("-p", "study", "params/smoke.yaml")


def ended(cluster: Cluster, number: str) -> Job:
    """A job when it has ended. `sbatch --wait` would look for that only every half a minute."""
    while (job := job_of(cluster, number))["JobState"] in {"PENDING", "RUNNING", "COMPLETING"}:
        time.sleep(0.3)
    return job


@slow
def test_one_notebook_runs_as_a_job_by_hand(cluster: Cluster, grid: Grid) -> None:
    number = sbatch(cluster, grid.project, "10_shower_shapes", *SMOKE)
    job = ended(cluster, number)
    log = (grid.project / f"zdc-notebook-{number}.log").read_text("utf-8")
    assert job["JobState"] == "COMPLETED", log
    assert (grid.project / f"10_shower_shapes-{number}.ipynb").is_file()
    assert "gpu:1" in job["TresPerJob"]


@slow
def test_one_notebook_that_fails_does_not_go_back_into_the_queue(
    cluster: Cluster, grid: Grid
) -> None:
    number = sbatch(cluster, grid.project, "02_teacher_training", *SMOKE, "-p", "subset", "pi0")
    job = ended(cluster, number)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")


def run_out_of_time(cluster: Cluster, number: str) -> None:
    """Tell a job what Slurm tells it before its time limit, which cannot be shorter than a minute."""
    cluster.ask("scancel", "--batch", "--signal=USR1", number)


@slow
def test_one_notebook_that_runs_out_of_time_goes_back_into_the_queue(
    cluster: Cluster, grid: Grid
) -> None:
    content = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text("utf-8"))
    content["data"]["file"] = "artifacts/smoke/data.root"
    content["teacher"]["epochs"] = 100_000
    (grid.project / "params" / "long.yaml").write_text(yaml.safe_dump(content), "utf-8")
    study = ("-p", "study", "params/long.yaml", "-p", "subset", "n")
    number = sbatch(cluster, grid.project, "02_teacher_training", *study)
    log = grid.project / f"zdc-notebook-{number}.log"
    try:
        # opened when the training begins
        curves = grid.project / "reports" / "long" / "tensorboard" / "teacher" / "n"
        while not list(curves.glob("events.*")):
            assert job_of(cluster, number)["JobState"] in {"PENDING", "RUNNING"}, log.read_text(
                "utf-8"
            )
            time.sleep(0.3)
        time.sleep(1)
        run_out_of_time(cluster, number)
        while (job := job_of(cluster, number))["Restarts"] == "0":
            assert job["JobState"] in {"RUNNING", "COMPLETING", "PENDING"}, log.read_text("utf-8")
            time.sleep(0.3)
        text = log.read_text("utf-8")
        assert "goes back into the queue" in text
        saved = re.search(r"stopped by SIGINT after step (\d+) of \d+, saved", text)
        assert saved, text
        # not after the two minutes that Slurm lets it wait
        cluster.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
        while f"going on from step {saved[1]} of" not in log.read_text("utf-8"):
            job = job_of(cluster, number)
            assert job["JobState"] in {"RUNNING", "COMPLETING", "PENDING"}, log.read_text("utf-8")
            time.sleep(0.3)
    finally:
        cluster.ask("scancel", number)
    while (job := job_of(cluster, number))["JobState"] in {"RUNNING", "COMPLETING"}:
        time.sleep(0.3)
    # by hand it is ended for good
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "1")
