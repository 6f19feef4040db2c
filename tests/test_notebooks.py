"""The grid from nothing to the report, at the smallest size at which every stage runs."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup

from zdc_nb.evaluation import METRICS, QUANTITIES
from zdc_nb.params import Study, load_study, notebook_names
from zdc_nb.study.runs import load_records

ROOT = Path(__file__).parents[1]
TINY: dict[str, dict[str, Any]] = {
    "data": {"responses": 1500, "max_responses": {"n": 150, "all": 200}},
    "flow": {"hidden": 16, "context_hidden": [16]},
    "teacher": {"epochs": 1},
    "student": {"epochs": 1},
    "evaluation": {"runs": 2, "figure_particles": 1},
    "speed": {"batches": [1, 4], "runs": 1},
}


def write_tiny_study(project: Path, changes: dict[str, dict[str, Any]]) -> None:
    """``params/tiny.yaml``: the smoke study with fewer and smaller parts."""
    content = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text("utf-8"))
    content |= {"subsets": ["n", "all"], "setups": ["bs", "bs+ch+div"]}
    for section in (TINY, changes):
        for key, values in section.items():
            content[key] |= values
    path = project / "params" / "tiny.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content), "utf-8")


def run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m command`` in the project."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=project, capture_output=True, text=True, check=False
    )


def snakemake(project: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(project, "snakemake", *options, "--config", "study=params/tiny.yaml")


@pytest.fixture(scope="module")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a project whose results are its own and whose code is this one."""

    # papermill, nbconvert and snakemake have to stand a space and a plus sign
    def make(folder: str = "a+project with spaces") -> Path:
        project = tmp_path_factory.mktemp(folder)
        shutil.copytree(ROOT / "notebooks", project / "notebooks")
        for name in ("zdc_nb", "Snakefile", "profiles"):
            (project / name).symlink_to(ROOT / name)
        write_tiny_study(project, {})
        return project

    return make


@pytest.fixture(scope="module")
def project(new_project: Callable[[], Path]) -> Path:
    """A project whose grid has run."""
    project = new_project()
    done = snakemake(project, "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(100%) done" in done.stderr
    return project


@pytest.fixture
def study(project: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(project)
    return load_study("params/tiny.yaml")


def test_every_notebook_ran_with_its_parameters(study: Study) -> None:
    names = notebook_names(study)
    assert len(names) == 1 + 2 + 4 + 3
    for name in names:
        notebook = nbformat.read(study.reports / "notebooks" / f"{name}.ipynb", as_version=4)
        tagged = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
        assert 'study = "params/tiny.yaml"' in tagged[0].source
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
        assert all(cell.execution_count for cell in code)
        assert any("image/png" in out.get("data", {}) for cell in code for out in cell.outputs)
        page = (study.reports / "html" / f"{name}.html").read_text("utf-8")
        assert "data:image/png;base64," in page
    leftovers = [*study.reports.rglob("*.running.ipynb"), *study.reports.rglob("*.failed.ipynb")]
    assert not leftovers


def test_every_stage_left_a_record(study: Study) -> None:
    records, wrong = load_records(study)
    assert not wrong
    assert list(records) == notebook_names(study)
    for name, record in records.items():
        assert (record.stage, record.status, record.attempts) == (name, "done", 1)
        assert record.parameters == study.model_dump(mode="json")
        assert record.peak_memory_mb is not None
        # the process imports torch, which takes that much
        assert record.peak_memory_mb > 100


def test_table1_is_tidy_and_complete(study: Study) -> None:
    table = pd.read_csv(study.reports / "tables" / "table1.csv")
    assert list(table.columns) == ["subset", "model", "metric", "mean", "std", "runs"]
    found = table.set_index(["subset", "model", "metric"])
    assert found.index.is_unique
    for subset in study.subsets:
        for model in ("reference", "ignorant", "teacher", *study.setups):
            for metric in METRICS:
                assert found.loc[(subset, model, metric), "runs"] == study.evaluation.runs
    assert np.isfinite(table[["mean", "std"]]).all(axis=None)
    assert (table["mean"] > 0).all()


def test_table2_is_tidy_and_complete(study: Study) -> None:
    table = pd.read_csv(study.reports / "tables" / "table2.csv")
    assert list(table.columns) == ["subset", "model", "quantity", "error", "mean", "std", "runs"]
    found = table.set_index(["subset", "model", "quantity", "error"])
    assert found.index.is_unique
    for model in ("teacher", "bs", "bs+ch+div"):
        for quantity in QUANTITIES:
            for error in ("MAE", "RMSE"):
                assert ("all", model, quantity, error) in found.index
    assert np.isfinite(table[["mean", "std"]]).all(axis=None)


def test_speed_table_is_tidy_and_complete(study: Study) -> None:
    table = pd.read_csv(study.reports / "tables" / "speed.csv")
    assert list(table.columns) == ["model", "device", "batch", "ms_per_sample", "runs"]
    assert len(table["model"].unique()) == 2
    assert sorted(table["batch"].unique()) == study.speed.batches
    assert (table["ms_per_sample"] > 0).all()


def test_training_speed_compares_both_engines(study: Study) -> None:
    table = pd.read_csv(study.reports / "tables" / "training_speed.csv")
    assert set(zip(table["model"], table["engine"], strict=True)) == {
        (model, engine) for model in ("teacher", "student") for engine in ("fused", "reference")
    }
    assert (table["ms_per_sample"] > 0).all()
    work = table.groupby("model")["responses"].first()
    # as many epochs each, but a student for every setup
    assert 0 < work["teacher"] < work["student"]


def test_index_page_leads_everywhere(study: Study) -> None:
    page = BeautifulSoup((study.reports / "index.html").read_text("utf-8"), "html.parser")
    links = [str(a["href"]) for a in page.select("a")] + [str(i["src"]) for i in page.select("img")]
    files = [link.replace("%2B", "+") for link in links if not link.startswith("#")]
    pages = {name for name in files if name.startswith("html/")}
    assert pages == {f"html/{name}.html" for name in notebook_names(study)}
    assert any(name.startswith("figures/") for name in files)
    assert [name for name in files if not (study.reports / name).is_file()] == []
    anchors = [link[1:] for link in links if link.startswith("#")]
    assert [name for name in anchors if page.find(id=name) is None] == []


def jobs(project: Path, changes: dict[str, dict[str, Any]]) -> set[str]:
    """Rules that would run if the study had these changes."""
    write_tiny_study(project, changes)
    planned = snakemake(project, "--dry-run", "--quiet", "reason")
    write_tiny_study(project, {})
    assert planned.returncode == 0, planned.stdout + planned.stderr
    lines = planned.stdout.splitlines()
    if "job" not in [line.split()[0] for line in lines if line]:
        assert "Nothing to be done" in planned.stdout + planned.stderr
        return set()
    start = next(i for i, line in enumerate(lines) if line.startswith("---"))
    stats = [line.split() for line in lines[start + 1 :]]
    return {words[0] for words in stats[: stats.index([])] if words[0] != "total"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"speed": {"runs": 2}}, {"speed"}),
        ({"student": {"epochs": 2}}, {"student", "ablations", "shower_shapes", "speed"}),
        (
            {"flow": {"hidden": 17}},
            {"teacher", "student", "ablations", "shower_shapes", "speed"},
        ),
    ],
    ids=["nothing", "speed", "student", "flow"],
)
def test_only_what_depends_on_a_change_runs_again(
    project: Path, changes: dict[str, dict[str, Any]], expected: set[str]
) -> None:
    assert jobs(project, changes) - {"html", "index"} == expected


def test_notebook_runs_alone_from_the_command_line(project: Path) -> None:
    notebook = "notebooks/03_student_distillation.ipynb"
    parameters = [
        "-p",
        "study",
        "params/tiny.yaml",
        "-p",
        "subset",
        "n",
        "-p",
        "setup",
        "bs+ch+div",
    ]
    done = run(project, "papermill", notebook, "out.ipynb", *parameters)
    assert done.returncode == 0, done.stderr
    assert (project / "out.ipynb").is_file()


def test_notebook_runs_from_its_own_folder_as_in_jupyterlab(project: Path) -> None:
    done = run(
        project,
        *("papermill", "notebooks/04_ablations.ipynb", "lab.ipynb"),
        *("--cwd", "notebooks", "-p", "study", "params/tiny.yaml"),
    )
    assert done.returncode == 0, done.stderr


def test_unknown_setup_is_refused_by_name(project: Path) -> None:
    done = run(
        project,
        *("papermill", "notebooks/03_student_distillation.ipynb", "refused.ipynb"),
        *("-p", "study", "params/tiny.yaml", "-p", "subset", "n", "-p", "setup", "bs+mass"),
    )
    assert done.returncode != 0
    assert "ParameterError" in done.stderr
    assert "'bs+mass'" in done.stderr


def test_what_a_shell_would_run_is_only_a_name(
    new_project: Callable[..., Path], project: Path
) -> None:
    hostile = "a `touch run`; $(touch run) 'b' *"
    attacked = new_project(hostile)
    shutil.copy(project / "artifacts" / "tiny" / "data.root", attacked / f"{hostile}.root")
    write_tiny_study(attacked, {"data": {"file": f"{hostile}.root"}})
    (attacked / "params" / hostile).mkdir()
    study = (attacked / "params" / "tiny.yaml").rename(attacked / "params" / hostile / "tiny.yaml")
    options = ("--until", "data", "--cores", "1", "--config")
    done = run(attacked, "snakemake", *options, f"study=params/{hostile}/tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (attacked / "artifacts" / "tiny" / "data.root").is_file()
    assert not list(attacked.rglob("run"))
    make = ["make", "study", f'STUDY=no $(shell touch run)`touch run`; touch run; "{hostile}.yaml']
    refused = subprocess.run(
        [
            *make,
            f"BIN={Path(sys.executable).parent}",
            "--file",
            ROOT / "Makefile",
            "--old-file=.venv/.installed",
        ],
        cwd=attacked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0
    assert "no such study file" in refused.stderr
    assert not list(attacked.rglob("run"))
    assert study.is_file()


def test_failure_is_shown_and_never_taken_for_done(new_project: Callable[[], Path]) -> None:
    project = new_project()
    write_tiny_study(project, {"data": {"file": "broken.root"}})
    (project / "broken.root").write_text("not a ROOT file", "utf-8")
    done = snakemake(project, "--cores", "1")
    assert done.returncode != 0
    executed = project / "reports" / "tiny" / "notebooks"
    left = [path.name for path in executed.glob("[!.]*")]
    assert left == ["01_data_exploration.failed.ipynb"]
    # at the end, where a user looks
    ending = done.stderr[done.stderr.index("01_data_exploration failed in cell") :]
    assert "broken.root" in ending
    assert str(executed / "01_data_exploration.failed.ipynb") in ending


def test_after_a_failure_the_rest_goes_on_and_the_index_shows_it(
    new_project: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new_project()
    # too few to be split
    write_tiny_study(project, {"data": {"max_responses": {"n": 2, "all": 200}}})
    done = snakemake(project, "--cores", "2")
    assert done.returncode != 0
    assert "02_teacher_training-n failed in cell" in done.stderr
    monkeypatch.chdir(project)
    study = load_study("params/tiny.yaml")
    assert str(study.reports / "index.html") in done.stderr
    ready = {path.stem for path in (study.reports / "notebooks").glob("*.ipynb")}
    of_all = {f"03_student_distillation-all-{setup}" for setup in study.setups}
    assert ready == {
        *("01_data_exploration", "02_teacher_training-all", "02_teacher_training-n.failed"),
        *of_all,
    }
    page = BeautifulSoup((study.reports / "index.html").read_text("utf-8"), "html.parser")
    text = page.get_text()
    assert "EventFileError" in text
    assert "2 responses are too few to split" in text
    assert page.select_one('a[href="html/02_teacher_training-n.failed.html"]')
    assert (study.reports / "html" / "02_teacher_training-n.failed.html").is_file()
    # once what was wrong is put right, only what is missing is made
    before = (study.artifacts / "models" / "all" / "teacher.safetensors").stat().st_mtime_ns
    write_tiny_study(project, {})
    again = snakemake(project, "--cores", "2", "--rerun-triggers", "mtime")
    assert again.returncode == 0, again.stdout + again.stderr
    after = (study.artifacts / "models" / "all" / "teacher.safetensors").stat().st_mtime_ns
    assert before == after
    page = BeautifulSoup((study.reports / "index.html").read_text("utf-8"), "html.parser")
    assert "EventFileError" not in page.get_text()
    assert not list(study.reports.rglob("*.failed.*"))
