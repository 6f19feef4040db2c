"""The grid from nothing to the report, and what goes wrong on the way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup

from tests.projects import ROOT, new_project, run, snakemake, write_study
from tests.reference_table import assert_matches_reference
from zdc_nb.evaluation.distances import DISTANCES
from zdc_nb.evaluation.metrics import METRICS, QUANTITIES
from zdc_nb.evaluation.tables import CLASSIFIERS, COSTS
from zdc_nb.params import Study, load_study
from zdc_nb.study import stages_of
from zdc_nb.study.artefacts import MissingArtefactError
from zdc_nb.study.changes import changes_table, load_changes
from zdc_nb.study.runs import load_records

TINY: dict[str, Any] = {
    "subsets": ["n", "all"],
    "setups": ["bs"],
    "data": {"responses": 1500, "max_responses": {"n": 150, "all": 200}},
    "flow": {"hidden": 16, "context_hidden": [16]},
    "teacher": {"epochs": 1},
    "student": {"epochs": 1},
    "evaluation": {"runs": 2, "figure_particles": 1},
    "speed": {"setup": "bs", "batches": [1, 4], "runs": 1},
}


def names_of(study: Study) -> list[str]:
    return [stage.name for stage in stages_of(study)]


def test_every_notebook_ran_with_its_parameters(smoke: Study) -> None:
    assert len(names_of(smoke)) == 1 + 2 + 8 + 2 + 2 + 1 + 2 + 2 + 4 + 6 + 2 + 1 + 1
    for stage in stages_of(smoke):
        notebook = nbformat.read(stage.executed, as_version=4)
        tagged = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
        assert 'study = "params/smoke.yaml"' in tagged[0].source
        for key, value in stage.keys.items():
            assert f'{key} = "{value}"' in tagged[0].source
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
        assert all(cell.execution_count for cell in code)
        assert any("image/png" in out.get("data", {}) for cell in code for out in cell.outputs)
        # of a figure that is shown twice, the repr
        assert "Figure(" not in stage.executed.read_text("utf-8")
        page = (smoke.reports / "html" / f"{stage.name}.html").read_text("utf-8")
        assert "data:image/png;base64," in page
    assert not [*smoke.reports.rglob("*.running.ipynb"), *smoke.reports.rglob("*.failed.ipynb")]


def test_every_stage_left_a_record(smoke: Study) -> None:
    records, wrong = load_records(smoke)
    assert not wrong
    assert list(records) == names_of(smoke)
    for name, record in records.items():
        assert (record.stage, record.status, record.attempts) == (name, "done", 1)
        assert record.parameters == smoke.model_dump(mode="json")
        # the process imports torch, which takes that much
        assert record.peak_memory_mb is not None
        assert record.peak_memory_mb > 100


def test_table1_is_that_of_before(smoke: Study) -> None:
    table = pd.read_csv(smoke.reports / "tables" / "table1.csv")
    spread = ["std_trainings", "trainings"]
    assert list(table.columns) == ["subset", "model", "metric", "mean", "std", "runs", *spread]
    assert (table["trainings"] == 1).all()
    assert table["std_trainings"].isna().all()
    assert_matches_reference(table)


def test_tables_are_tidy_and_complete(smoke: Study) -> None:
    tables = smoke.reports / "tables"
    table = pd.read_csv(tables / "table1.csv").set_index(["subset", "model", "metric"])
    assert table.index.is_unique
    for subset in smoke.subsets:
        for model in ("reference", "ignorant", "teacher", *smoke.setups):
            for metric in METRICS:
                assert table.loc[(subset, model, metric), "runs"] == smoke.evaluation.runs
    shapes = pd.read_csv(tables / "table2.csv")
    found = shapes.set_index(["subset", "model", "quantity", "error"])
    assert found.index.is_unique
    for model in ("teacher", "bs", "bs+ch+div"):
        for quantity in QUANTITIES:
            assert {("all", model, quantity, error) for error in ("MAE", "RMSE")} <= {*found.index}
    assert np.isfinite(shapes[["mean", "std"]]).all(axis=None)
    models = pd.read_csv(tables / "models.csv").set_index(["subset", "model", "metric"])["mean"]
    for subset in smoke.subsets:
        for model in ("teacher", *smoke.setups, "splitting"):
            always = (*METRICS, "centre", "radius", *CLASSIFIERS, *DISTANCES[2:], *COSTS)
            for metric in always:
                assert models[subset, model, metric] > 0
        for metric in (*CLASSIFIERS, *DISTANCES[2:]):
            assert {"reference", "reference+sum", "ignorant"} <= {*models[subset, :, metric].index}
        assert 0.4 < models[subset, "reference", "AUC"] < 0.6 < models[subset, "teacher", "AUC"]
        # it has learned something of how light is spread
        assert models[subset, "splitting", "nats"] < 0.6 * models[subset, "binomial", "nats"]
        assert (subset, "teacher", "nats") not in models.index
    closure = pd.read_csv(tables / "closure.csv").query("quantity == 'photons'")
    whole = closure[closure["bin"] == "all responses"].set_index(["subset", "model"])
    for subset in smoke.subsets:
        for model in ("reference+sum", "teacher", *smoke.setups, "splitting"):
            assert whole["simulated"][subset, model] == 1
            assert whole["responses"][subset, model] > 0
        assert whole["generated"][subset, "splitting"] == 1
    speed = pd.read_csv(tables / "speed.csv")
    assert sorted(speed["batch"].unique()) == smoke.speed.batches
    assert (speed["ms_per_sample"] > 0).all()
    training = pd.read_csv(tables / "training_speed.csv")
    assert len(training) == 4
    work = training.groupby("model")["responses"].first()
    # fewer epochs, but a student for every setup
    assert 0 < work["teacher"] < work["student"]


def test_index_page_leads_everywhere(smoke: Study) -> None:
    page = BeautifulSoup((smoke.reports / "index.html").read_text("utf-8"), "html.parser")
    links = [str(a["href"]) for a in page.select("a")] + [str(i["src"]) for i in page.select("img")]
    files = [link.replace("%2B", "+") for link in links if not link.startswith("#")]
    assert len([name for name in files if name == "index.html"]) == 2
    pages = {name for name in files if name.startswith("html/")}
    assert pages == {f"html/{name}.html" for name in names_of(smoke)}
    assert any(name.startswith("figures/") for name in files)
    assert [name for name in files if not (smoke.reports / name).is_file()] == []
    anchors = [link[1:] for link in links if link.startswith("#")]
    assert [name for name in anchors if page.find(id=name) is None] == []
    # what it says first is that its numbers mean nothing
    warning = page.select_one("main > header + *")
    assert warning is not None
    assert warning.get("id") == "meaning"
    assert "Too few test responses: n 100, all 160" in warning.get_text()
    assert page.select_one('img[src="figures/09_closure.png"]') is not None


@pytest.mark.parametrize(
    "name", ["08_evaluation-n", "09_ablations", "10_shower_shapes", "12_models", "13_closure-bs"]
)
def test_the_notebooks_say_that_the_numbers_mean_nothing(smoke: Study, name: str) -> None:
    page = (smoke.reports / "html" / f"{name}.html").read_text("utf-8")
    assert "Too few test responses: n 100" in page or "Too few test responses: all 160" in page


def planned(project: Path, changes: dict[str, Any]) -> set[str]:
    """Rules that would run if the smoke study had these changes."""
    write_study(project, "smoke", changes)
    done = snakemake(project, "smoke", "--dry-run", "--quiet", "reason")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    if not any(line.startswith("---") for line in lines):
        assert "Nothing to be done" in done.stdout + done.stderr
        return set()
    start = next(i for i, line in enumerate(lines) if line.startswith("---"))
    stats = [line.split() for line in lines[start + 1 :]]
    return {words[0] for words in stats[: stats.index([])]} - {"total", "index"}


def test_only_what_depends_on_a_change_is_planned_and_a_change_back_is_none(own_copy: Path) -> None:
    after_training = {"evaluation", "ablations", "shower_shapes", "models"}
    after_training |= {"closure", "new_particles", "generator", "collisions"}
    for changes, expected in (
        ({"evaluation": {"runs": 6}}, {"photon_sum", "baselines", *after_training}),
        ({"student": {"epochs": 3}}, {"student", "speed", *after_training}),
        ({}, set()),
    ):
        assert planned(own_copy, changes) == expected
    # by hand, in JupyterLab: outputs are saved, and nothing is stale
    path = own_copy / "notebooks" / "01_data_exploration.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("stream", text="seen")]
    nbformat.write(notebook, path)
    assert planned(own_copy, {}) == set()


NEW: dict[str, Any] = {
    "subsets": ["all"],
    "setups": ["bs"],
    "variants": {
        "scratch": {"setup": "bs", "student": {"start": "scratch"}},
        "scratch_ch": {"setup": "bs+ch", "student": {"start": "scratch", "channel_weight": 3.0}},
    },
    "seeds": [1, 2],
    "preprocessing": {"coordinates": "splits", "noise": None, "alpha": None, "denoise": None},
    "data": {
        "responses": 1600,
        "repeats": 2,
        "test_repeats": 20,
        "split": "by_particle",
        "fractions": [0.5, 0.1, 0.4],
        "reserved": 0.5,
        "max_responses": {},
        "max_test_responses": {"all": 120},
    },
    "flow": {"hidden": 16, "context_hidden": [16]},
    "teacher": {"epochs": 1, "epoch_responses": 200},
    "student": {"epochs": 1, "epoch_responses": 100},
    "splitting": {"epochs": 2},
    "evaluation": {"runs": 2, "figure_particles": 2},
    "speed": {"setup": "bs", "batches": [1, 4], "runs": 1},
}


def assert_tested_on_seen_and_new(study: Study, students: set[str], models: pd.DataFrame) -> None:
    """Each training of each model was tested on particles that it learned from, too."""
    gaps = pd.read_csv(study.reports / "tables" / "new_particles-all.csv")
    assert set(gaps["part"]) == {"seen", "new"}
    assert set(gaps["model"]) == {"reference+sum", "teacher", *students, "splitting"}
    assert (gaps.loc[gaps["model"] == "teacher", "trainings"] == 2).all()
    own = models[(models.model == "bs") & (models.metric == "WS")]["mean"].item()
    new = gaps.query("part == 'new' and model == 'bs' and metric == 'WS'")["value"].item()
    assert new == pytest.approx(own, rel=0.1)
    kept = [*(study.artifacts / "counterpart" / "all").glob("*.npz")]
    assert len(kept) == 2 * (2 + len(students))


def test_particles_never_seen_and_split_coordinates_through_the_whole_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new_project(tmp_path)
    write_study(project, "new", NEW)
    done = snakemake(project, "new", "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.chdir(project)
    study = load_study("params/new.yaml")
    models = pd.read_csv(study.reports / "tables" / "models.csv")
    nats = models[models.metric == "nats"].set_index("model")["mean"]
    students = {"bs", "scratch", "scratch_ch"}
    assert set(nats.index) == {"binomial", "teacher", "splitting"} | students
    assert nats["splitting"] < nats["binomial"]
    page = (study.reports / "index.html").read_text("utf-8")
    assert "split by particle" in page
    assert "split by response" not in page
    # each training is another one, and the tables tell their spread
    table1 = pd.read_csv(study.reports / "tables" / "table1.csv")
    names = ["teacher", *students, "splitting"]
    trained = table1["model"].str.removesuffix("+N").isin(names)
    assert (table1.loc[trained, "trainings"] == 2).all()
    assert (table1.loc[trained, "std_trainings"] > 0).all()
    assert table1.loc[~trained, "std_trainings"].isna().all()
    compared = pd.read_csv(study.reports / "tables" / "comparison.csv")
    assert set(compared["model"]) == {"teacher", "scratch", "scratch_ch", "splitting"}
    assert (compared["low"] <= compared["high"]).all()
    assert_tested_on_seen_and_new(study, students, models)
    # students of several studies against the weight of their channel loss
    claim = {"loss": "channel", "studies": {"splits": ["params/new.yaml"]}}
    claim |= {"reports": "reports", "open": []}
    Path("params/claim.yaml").write_text(yaml.safe_dump(claim), "utf-8")
    command = ("papermill", "notebooks/20_claim.ipynb", "out.ipynb")
    done = run(project, *command, "-r", "claim", "params/claim.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    found = pd.read_csv("reports/claim/claim.csv").query("metric == 'MAE_cw' and start.notna()")
    weights = dict(zip(found["model"], found["weight"], strict=True))
    assert weights == {"bs": 0.0, "scratch": 0.0, "scratch_ch": 3.0}
    # who puts studies side by side leaves no trace in them
    records, _ = load_records(study)
    assert {record.status for record in records.values()} == {"done"}
    # the table of changes reads what studies have left
    rows = [
        {"change": f"number {k}", "study": "params/new.yaml", "model": model}
        for k, model in enumerate(("teacher", "splitting", "reference+sum"))
    ]
    content = {"reports": "reports", "subset": "all", "rows": rows}
    Path("params/changes.yaml").write_text(yaml.safe_dump(content), "utf-8")
    command = ("papermill", "notebooks/18_changes.ipynb", "out.ipynb")
    done = run(project, *command, "-r", "changes", "params/changes.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv("reports/changes/changes.csv").set_index("model")
    assert table.loc["splitting", "nats"] == pytest.approx(nats["splitting"])
    assert Path("reports/changes/samples.png").is_file()
    rows[0]["study"] = "params/smoke.yaml"
    Path("params/changes.yaml").write_text(yaml.safe_dump(content), "utf-8")
    with pytest.raises(MissingArtefactError, match=r"run `make study STUDY=params/smoke\.yaml`"):
        changes_table(load_changes("params/changes.yaml"))


@pytest.mark.slow
def test_after_a_failure_the_rest_goes_on_and_the_index_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new_project(tmp_path)
    write_study(project, "tiny", TINY)
    # breaks one subset's training, and none of the others'
    (project / "artifacts" / "tiny" / "models").mkdir(parents=True)
    blocked = project / "artifacts" / "tiny" / "models" / "n"
    blocked.write_text("a file where a folder is to be", "utf-8")
    done = snakemake(project, "tiny", "--cores", "2")
    assert done.returncode != 0
    monkeypatch.chdir(project)
    study = load_study("params/tiny.yaml")
    ending = done.stderr[done.stderr.rindex("02_teacher_training-n failed") :]
    assert str(blocked) in ending
    assert len(ending.splitlines()) < 25
    assert str(study.reports / "index.html") in ending
    ready = {path.stem for path in (study.reports / "notebooks").glob("*.ipynb")}
    assert "02_teacher_training-n.failed" in ready
    assert "08_evaluation-all" in ready
    page = BeautifulSoup((study.reports / "index.html").read_text("utf-8"), "html.parser")
    assert page.select_one('a[href="html/02_teacher_training-n.failed.html"]')
    assert str(blocked) in page.get_text()
    # once what was wrong is put right, only what is missing is made
    before = (study.artifacts / "models" / "all" / "teacher.safetensors").stat().st_mtime_ns
    blocked.unlink()
    again = snakemake(project, "tiny", "--cores", "2")
    assert again.returncode == 0, again.stdout + again.stderr
    after = (study.artifacts / "models" / "all" / "teacher.safetensors").stat().st_mtime_ns
    assert before == after
    page = BeautifulSoup((study.reports / "index.html").read_text("utf-8"), "html.parser")
    assert "failed" not in page.get_text().lower()
    assert not list(study.reports.rglob("*.failed.*"))


def test_a_wrong_study_ends_with_one_line(finished: Path) -> None:
    done = snakemake(finished, "none", "--cores", "1")
    assert done.returncode != 0
    assert "ParameterError: params/none.yaml: no such study file" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_shell_or_snakemake_would_make_something_of_is_only_a_name(
    finished: Path, tmp_path: Path
) -> None:
    hostile = "a `touch run`; $(touch run) {x} <b> 'b' *"
    attacked = new_project(tmp_path / "attacked")
    shutil.copy(finished / "artifacts" / "smoke" / "data.root", attacked / f"{hostile}.root")
    folder = hostile.replace("{x} <b> ", "")
    study = write_study(attacked, "tiny", {**TINY, "data": {"file": f"{hostile}.root"}})
    (attacked / "params" / folder).mkdir()
    study.rename(attacked / "params" / folder / "tiny.yaml")
    done = snakemake(attacked, f"{folder}/tiny", "--until", "data", "--cores", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (attacked / "artifacts" / "tiny" / "data.root").is_file()
    assert not list(attacked.rglob("run"))
    make = ["make", "study", f'STUDY=no $(shell touch run)`touch run`; touch run; "{folder}.yaml']
    options = [f"BIN={Path(sys.executable).parent}", f"--file={ROOT / 'Makefile'}"]
    refused = subprocess.run(
        [*make, *options, "--old-file=.venv/.installed"],
        cwd=attacked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0
    assert "no such study file" in refused.stderr
    assert not list(attacked.rglob("run"))


def test_ctrl_c_says_at_which_step_it_stopped_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    project = new_project(tmp_path)
    changes = {**TINY, "subsets": ["all"], "teacher": {"epochs": 40}, "checkpoint_seconds": 0.2}
    changes["speed"] = TINY["speed"] | {"subset": "all"}
    write_study(project, "tiny", changes)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--config"]
    log = project / "printed.txt"
    with log.open("w", encoding="utf-8") as printed:
        run = subprocess.Popen(
            [*command, "study=params/tiny.yaml"],
            cwd=project,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    checkpoints = project / "artifacts" / "tiny" / "checkpoints" / "all"
    begun = time.monotonic()
    while not list(checkpoints.glob("teacher.safetensors")):
        assert run.poll() is None, log.read_text("utf-8")
        assert time.monotonic() - begun < 120
        time.sleep(0.05)
    # as a terminal does: to every process of the run
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait() != 0
    text = log.read_text("utf-8")
    ending = text[text.rindex("02_teacher_training-all") :]
    assert "stopped by SIGINT after step" in ending
    assert "the same command goes on" in ending
    assert "without an error of its own" not in text
    again = snakemake(project, "tiny", "--cores", "2", "--until", "teacher")
    assert again.returncode == 0, again.stderr
    assert "teacher all: going on from step" in again.stdout
