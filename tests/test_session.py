"""A notebook by hand, on a study that has run: nothing is lost, nothing made again."""

import json
import os
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from tests.projects import papermill, snakemake
from zdc_nb.evaluation import BASELINES
from zdc_nb.flows.maf_iaf import Teacher
from zdc_nb.generator.surrogate import save_surrogate
from zdc_nb.params import ParameterError, Study, load_study
from zdc_nb.storage import checksum
from zdc_nb.study import open_stage
from zdc_nb.study.artefacts import Artefact, ArtefactError, MissingArtefactError
from zdc_nb.study.status import outdated


def state(project: Path) -> dict[str, str]:
    """Checksums of all artefacts, tables and records."""
    folders = ("artifacts/smoke", "reports/smoke/tables", "reports/smoke/records")
    files = [path for name in folders for path in (project / name).rglob("*") if path.is_file()]
    return {
        str(p): checksum(p) for p in files if p.suffix in {".json", ".csv", ".npz", ".safetensors"}
    }


def text_of(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    return "".join(out.get("text", "") for out in outputs)


# the example of docs/notebooks.md, and what used to overwrite a valid model
@pytest.mark.parametrize(
    ("notebook", "keys"),
    [
        ("02_teacher_training", ("subset", "n")),
        ("03_student_distillation", ("subset", "n", "setup", "bs+ch+div")),
    ],
)
def test_a_training_notebook_by_hand_loads_what_matches(
    own_copy: Path, notebook: str, keys: tuple[str, ...]
) -> None:
    before = state(own_copy)
    done = papermill(own_copy, notebook, "smoke", *keys)
    assert done.returncode == 0, done.stderr
    assert "loaded " in text_of(own_copy / f"{notebook}.out.ipynb")
    assert state(own_copy) == before
    planned = snakemake(own_copy, "smoke", "--cores", "1", "--dry-run")
    assert "Nothing to be done" in planned.stdout + planned.stderr


def test_retrain_trains_anew_and_keeps_the_old_model_until_then(own_copy: Path) -> None:
    model = own_copy / "artifacts" / "smoke" / "models" / "n" / "teacher.safetensors"
    inode, content = model.stat().st_ino, checksum(model)
    done = papermill(own_copy, "02_teacher_training", "smoke", "subset", "n", "retrain", "true")
    assert done.returncode == 0, done.stderr
    assert "loaded" not in text_of(own_copy / "02_teacher_training.out.ipynb")
    # another file of the same numbers, so that what was made from it still is
    assert model.stat().st_ino != inode
    assert checksum(model) == content
    planned = snakemake(own_copy, "smoke", "--cores", "1", "--dry-run")
    assert "Nothing to be done" in planned.stdout + planned.stderr


def test_an_unknown_parameter_of_papermill_is_an_error_that_suggests_the_name(
    finished: Path,
) -> None:
    done = papermill(finished, "02_teacher_training", "smoke", "subste", "n")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "ParameterError: subste: this notebook has no such parameter; did you mean 'subset'?"
    )


def test_an_error_of_the_users_is_shown_in_one_line(finished: Path) -> None:
    keys = ("subset", "n", "setup", "bs+mass")
    done = papermill(finished, "03_student_distillation", "smoke", *keys)
    assert done.returncode != 0
    cells = nbformat.read(finished / "03_student_distillation.out.ipynb", as_version=4).cells
    (error,) = [o for c in cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert len(error.traceback) == 1
    assert error.traceback[0].startswith("ParameterError: setup: 'bs+mass' is not in study")


def test_a_notebook_runs_from_its_own_folder_as_in_jupyterlab(
    smoke: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("notebooks")
    stage = open_stage("08_evaluation", study="params/smoke.yaml", subset="n")
    assert stage.study.reports == smoke.reports


def test_results_come_back_as_they_were_saved(smoke: Study) -> None:
    stage = open_stage("08_evaluation", study="params/smoke.yaml", subset="n")
    surrogate, test = stage.model("bs"), stage.test_events
    generated = surrogate.generate(test, seed=1, batch=7)
    assert generated.shape == stage.samples("bs").shape == test.responses.shape
    assert set(stage.history("bs")["split"]) == {"train", "validation"}
    evaluated = stage.evaluate("bs")
    assert (evaluated["seed"] == 1).all()
    pd.testing.assert_frame_equal(evaluated.drop(columns="seed"), stage.metrics("bs"))
    assert set(stage.baselines()["model"]) == {*BASELINES, "binomial"}
    assert set(stage.all_metrics()["model"]) == {"teacher", *smoke.setups, "splitting"}


def test_the_data_are_read_once_in_a_notebook(
    own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_copy)
    stage = open_stage("10_shower_shapes", study="params/smoke.yaml")
    events = stage.events
    monkeypatch.setattr("zdc_nb.study.session.study_events", None)  # would fail
    for subset in stage.study.subsets:
        assert sum(map(len, stage.split(subset))) <= len(events)


def test_a_stage_that_only_loads_leaves_the_record_of_who_made_it(smoke: Study) -> None:
    record = smoke.reports / "records" / "03_student_distillation-n-bs.json"
    before = record.read_bytes()
    stage = open_stage("03_student_distillation", study="params/smoke.yaml", subset="n", setup="bs")
    stage.train()
    stage.finish()
    assert record.read_bytes() == before
    assert json.loads(before)["pid"] != os.getpid()


def changed(study: Study, section: str, **values: object) -> Study:
    part = getattr(study, section).model_copy(update=values)
    return study.model_copy(update={section: part})


@pytest.mark.parametrize(
    ("section", "values", "refused"),
    [
        ("data", {"repeats": 21}, ("teacher", "bs", "baselines")),
        ("teacher", {"epochs": 3}, ("teacher", "bs")),
        ("student", {"epochs": 3}, ("bs",)),
        ("evaluation", {"runs": 3}, ("teacher", "bs", "baselines")),
    ],
)
def test_artefacts_of_other_parameters_are_refused_by_name(
    smoke: Study, section: str, values: dict[str, object], refused: tuple[str, ...]
) -> None:
    other = changed(smoke, section, **values)
    for model in ("teacher", "bs", "baselines"):
        artefact = Artefact(other, "evaluation", "n", model)
        if model in refused:
            key = next(iter(values))
            with pytest.raises(ArtefactError, match=rf"{model}\.csv: .*other.*{section}\.{key}"):
                artefact.check()
        else:
            artefact.check()
    if section == "evaluation":
        Artefact(other, "models", "n", "teacher").check()


def test_what_is_missing_or_damaged_is_named_with_what_makes_it(own_copy: Path) -> None:
    study = load_study(own_copy / "params" / "smoke.yaml")
    study = changed(study, "paths", artifacts=str(own_copy / "artifacts"))
    samples = Artefact(study, "samples", "n", "bs")
    whole = samples.path.read_bytes()
    for damaged in (b"", whole[:-9], whole + b" ", whole[:-9] + b"123456789"):
        samples.path.write_bytes(damaged)
        with pytest.raises(ArtefactError, match=r"bs\.npz: damaged"):
            samples.check()
    samples.path.write_bytes(whole)
    samples.check()
    for sidecar in (b"", b"{", b"[]", b'{"bytes": 4}', b"\xff"):
        samples.sidecar.write_bytes(sidecar)
        with pytest.raises(ArtefactError, match=r"bs\.npz\.json: expected the checksum"):
            samples.check()
    samples.sidecar.unlink()
    with pytest.raises(ArtefactError, match=r"bs\.npz: not whole"):
        samples.check()
    samples.path.unlink()
    with pytest.raises(MissingArtefactError, match=r"bs\.npz is missing.*08_evaluation\.ipynb"):
        samples.check()


def test_a_student_of_another_teacher_is_refused(
    own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_copy)
    stage = open_stage("08_evaluation", study="params/smoke.yaml", subset="n")
    teacher = stage.model("teacher")
    assert isinstance(teacher.flow, Teacher)
    teacher.flow.networks[0].last.bias[0] += 1
    with Artefact(stage.study, "models", "n", "teacher").write() as temporary:
        save_surrogate(teacher, temporary)
    with pytest.raises(ArtefactError, match=r"bs\.safetensors: .*trained_teacher"):
        stage.model("bs")
    with pytest.raises(ArtefactError, match=r"teacher\.csv: .*trained_model"):
        stage.metrics("teacher")
    # and the grid makes again what is of another teacher, not the teacher
    again = outdated(stage.study)
    assert "03_student_distillation-n-bs" in again
    assert "02_teacher_training-n" not in again


def test_a_student_without_a_teacher_trains_it_first(
    own_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(own_copy)
    kept = np.load("artifacts/smoke/samples/n/bs.npz")["responses"]
    for kind in ("models", "history"):
        for path in Path("artifacts/smoke", kind, "n").iterdir():
            path.unlink()
    stage = open_stage("03_student_distillation", study="params/smoke.yaml", subset="n", setup="bs")
    student, _ = stage.train()
    assert "no teacher of 'n' yet" in capsys.readouterr().out
    assert Artefact(stage.study, "models", "n", "teacher").path.is_file()
    assert student.generate(stage.test_events, 1, 64).shape == kept.shape


@pytest.mark.usefixtures("smoke")
def test_what_the_notebook_asks_for_has_to_be_in_the_study() -> None:
    with pytest.raises(ParameterError, match="'pi0'"):
        open_stage("02_teacher_training", study="params/smoke.yaml", subset="pi0")
    with pytest.raises(ParameterError, match="no such study file"):
        open_stage("02_teacher_training", study="params/none.yaml", subset="n")
