"""The table of stages: what each stage depends on, and what is to run again after a change."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.projects import ROOT, new_project, snakemake, write_study
from zdc_nb.params import ParameterError, Study, Variant, load_study
from zdc_nb.study import TABLE, find_stage, stages_of
from zdc_nb.study.artefacts import Artefact, artefacts_of, is_current
from zdc_nb.study.status import mark_of, mark_outdated, outdated

SMALL = load_study(ROOT / "params" / "small.yaml")


def changed(study: Study, section: str, **values: object) -> Study:
    part = getattr(study, section).model_copy(update=values)
    return study.model_copy(update={section: part})


def depending(before: Study, after: Study) -> set[str]:
    """Stages whose numbers depend on what differs."""
    pairs = zip(stages_of(before), stages_of(after), strict=True)
    return {one.name for one, other in pairs if one.values != other.values}


CLOSURES = {f"13_closure-{model}" for model in ("teacher", *SMALL.setups, "splitting")}
ALWAYS = {"09_ablations", "10_shower_shapes", "12_models", *CLOSURES}


def trainings_of(study: Study, subset: str) -> set[str]:
    students = {f"03_student_distillation-{subset}-{setup}" for setup in study.setups}
    return {f"02_teacher_training-{subset}", *students}


def test_an_epoch_more_of_one_subset_concerns_that_subset_alone() -> None:
    epochs = {**SMALL.teacher.epochs, "sigma+": 99}  # type: ignore[dict-item]
    found = depending(SMALL, changed(SMALL, "teacher", epochs=epochs))
    # speed tells how long all trainings would have taken
    shown = {"08_evaluation-sigma+", "14_new_particles-sigma+", "11_speed"}
    assert found == trainings_of(SMALL, "sigma+") | ALWAYS | shown


def test_a_change_of_the_evaluation_trains_nothing() -> None:
    found = depending(SMALL, changed(SMALL, "evaluation", runs=3))
    evaluations = {
        f"{name}-{s}"
        for name in ("07_baselines", "08_evaluation", "14_new_particles")
        for s in SMALL.subsets
    }
    assert found == evaluations | ALWAYS | {"15_generator-all", "16_collisions-all"}


SHOWN = {"evaluation", "ablations", "shower_shapes", "speed", "models"}
SHOWN |= {"closure", "new_particles", "generator", "collisions"}
"""Kinds of stages that show every model."""


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("speed", {"runs": 99}, {"speed", "models"}),
        ("student", {"batch": 7}, {"student"} | SHOWN),
        ("splitting", {"batch": 7}, {"splitting"} | SHOWN),
        (
            "flow",
            {"bins": 9},
            set(TABLE) - {"data", "baselines", "splitting", "photon_sum", "signal"},
        ),
        ("data", {"min_photons": 11}, set(TABLE)),
        ("collisions", {"events": 7}, {"collisions"}),
        ("paths", {"reports": "elsewhere"}, set()),
        ("evaluation", {"figure_particles": 9}, set()),
    ],
)
def test_stages_depend_on_what_they_need_depends_on(
    section: str, values: dict[str, Any], expected: set[str]
) -> None:
    names = depending(SMALL, changed(SMALL, section, **values))
    rows = {stage.row.name for stage in stages_of(SMALL) if stage.name in names}
    assert rows == expected


def with_variant(study: Study, **student: Any) -> Study:
    variant = Variant(setup="bs+ch", student=student)
    return study.model_copy(update={"variants": {"heavy": variant}})


def test_a_variant_depends_on_its_own_values_alone() -> None:
    study = with_variant(SMALL, channel_weight=100.0)
    heavy = find_stage(study, "03_student_distillation", subset="n", setup="heavy")
    assert heavy.values["student"]["channel_weight"] == 100
    assert heavy.values["setup"] == "bs+ch"
    other = with_variant(SMALL, channel_weight=200.0)
    heavies = {f"03_student_distillation-{subset}-heavy" for subset in SMALL.subsets}
    assert depending(study, other) == heavies
    # who reads it shows it anew
    pairs = zip(stages_of(study), stages_of(other), strict=True)
    shown = {one.row.name for one, two in pairs if one.fingerprint != two.fingerprint}
    assert shown == ({"student"} | SHOWN) - {"generator", "collisions"}
    # what the variant says itself, the section need not
    weight = changed(study, "student", channel_weight=3.0)
    assert heavy.name not in depending(study, weight)
    # its name is free, and nothing that was trained without it is trained again
    names = {stage.name: stage.values for stage in stages_of(SMALL)}
    kept = {stage.name: stage.values for stage in stages_of(study) if stage.name in names}
    assert kept == names


def test_what_was_trained_without_the_centre_loss_knows_nothing_of_it() -> None:
    keys = {"centre_weight", "centre_offset"}
    for stage in stages_of(SMALL):
        assert not keys & set(stage.values.get("student", {}))
        assert not keys & set(stage.shown.get("student", {}))
    student = {"centre_weight": 30.0, "centre_offset": "given"}
    variant = {"ctr": Variant(setup="bs+ctr", student=student)}
    study = SMALL.model_copy(update={"variants": variant})
    before = {stage.name: stage.values for stage in stages_of(SMALL)}
    after = {stage.name: stage.values for stage in stages_of(study)}
    assert {name: after[name] for name in before} == before
    name = "03_student_distillation-n-ctr"
    assert {key: after[name]["student"][key] for key in keys} == student
    # a setup that has it beside others that have not: only its own are others
    setups = SMALL.model_copy(update={"setups": [*SMALL.setups, "bs+ctr"]})
    setups = changed(setups, "student", **student)
    after = {stage.name: stage.values for stage in stages_of(setups)}
    for name, values in before.items():
        if name.startswith("03"):
            assert after[name] == values
    name = "03_student_distillation-n-bs+ctr"
    assert {key: after[name]["student"][key] for key in keys} == student


def test_another_seed_is_another_training_of_every_model() -> None:
    study = SMALL.model_copy(update={"seeds": [1, 3]})
    first, third = (
        find_stage(study, "03_student_distillation", subset="n", setup="bs", **seed)
        for seed in ({}, {"seed": "3"})
    )
    assert (first.name, third.name) == (
        "03_student_distillation-n-bs",
        "03_student_distillation-n-bs-seed3",
    )
    assert first.values == find_stage(SMALL, first.row.notebook, subset="n", setup="bs").values
    assert third.values != first.values
    # it imitates the teacher of its own seed
    needed = {stage.name for stage in third.needs}
    assert needed == {"01_data_exploration", "02_teacher_training-n-seed3"}
    evaluation = find_stage(study, "08_evaluation", subset="n")
    assert {"02_teacher_training-n", third.name} < {stage.name for stage in evaluation.needs}
    with pytest.raises(ParameterError, match=r"seed: 2 is not in study 'small'.*\[1, 3\]"):
        find_stage(study, "02_teacher_training", subset="n", seed=2)  # type: ignore[arg-type]


def test_a_closure_is_about_one_model_and_needs_what_was_evaluated() -> None:
    study = with_variant(SMALL, channel_weight=100.0)
    models = [stage.model for stage in stages_of(study) if stage.row.name == "closure"]
    assert models == ["teacher", *study.setups, "heavy", "splitting"]
    stage = find_stage(study, "13_closure", model="heavy")
    assert (stage.name, stage.keys) == ("13_closure-heavy", {"model": "heavy"})
    needed = {other.name for other in stage.needs}
    assert {"08_evaluation-n", "08_evaluation-all", "09_ablations"} < needed
    assert not {name for name in needed if name.startswith(("10", "11", "12"))}
    with pytest.raises(ParameterError, match="model: 'splitting' is not in study"):
        find_stage(study.model_copy(update={"splitting": None}), "13_closure", model="splitting")


def test_a_stage_needs_what_it_reads_of_its_own_subset() -> None:
    stage = find_stage(SMALL, "08_evaluation", subset="k0s")
    first = {"01_data_exploration", "04_splitting_flow-k0s", "07_baselines-k0s"}
    first.add("05_photon_sum-k0s")
    expected = first | trainings_of(SMALL, "k0s")
    assert {other.name for other in stage.needs} == expected
    student = find_stage(SMALL, "03_student_distillation", subset="n", setup="bs")
    assert [other.name for other in student.needs] == [
        "01_data_exploration",
        "02_teacher_training-n",
    ]


def test_every_notebook_of_the_table_is_there_and_takes_its_keys() -> None:
    for row in TABLE.values():
        notebook = nbformat.read(ROOT / "notebooks" / f"{row.notebook}.ipynb", as_version=4)
        (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
        for key in ("study", *row.keys):
            assert f"{key} = " in cell.source
        assert ("retrain = False" in cell.source) == ("models" in row.artefacts)


@pytest.mark.parametrize(
    ("notebook", "keys", "message"),
    [
        ("11_nothing", {}, "'11_nothing' is none; expected one of 01_data_exploration"),
        ("02_teacher_training", {"subste": "n"}, "subste: .* did you mean 'subset'"),
        ("02_teacher_training", {}, "subset: 02_teacher_training needs it"),
        ("02_teacher_training", {"subset": "pi0"}, "'pi0'"),
        ("03_student_distillation", {"subset": "n", "setup": "ch"}, "'ch'"),
        ("13_closure", {}, "model: 13_closure needs it"),
        ("13_closure", {"model": "ch"}, "model: 'ch' is not in study 'small'; .*'splitting'"),
    ],
)
def test_what_the_study_does_not_have_is_refused_by_name(
    notebook: str, keys: dict[str, str], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        find_stage(SMALL, notebook, **keys)


# --- on a study that has run ---------------------------------------------------------------------


def test_a_finished_study_has_nothing_to_run_again(smoke: Study) -> None:
    assert outdated(smoke) == {}
    assert all(is_current(stage) for stage in stages_of(smoke))


def test_what_the_table_promises_is_left(smoke: Study) -> None:
    for stage in stages_of(smoke):
        assert stage.executed.is_file()
        files = [artefact.path for artefact in artefacts_of(stage)] + stage.tables
        assert [path for path in files if not path.is_file()] == []


def test_a_changed_parameter_is_named_for_what_depends_on_it(smoke: Study) -> None:
    again = outdated(changed(smoke, "student", batch=31))
    assert again["03_student_distillation-n-bs"] == "other parameters: student.batch"
    assert {name[:2] for name in again} == {"03", *(f"{k:02}" for k in range(8, 17))}


def test_outputs_and_metadata_of_a_notebook_do_not_count_but_its_cells_do(
    own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_copy)
    study = load_study("params/smoke.yaml")
    path = own_copy / "notebooks" / "01_data_exploration.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].outputs = [nbformat.v4.new_output("stream", text="as saved by JupyterLab")]
    code[0].execution_count = 7
    notebook.metadata["kernelspec"]["display_name"] = "Python 3 (zdc-nb)"
    nbformat.write(notebook, path)
    assert outdated(study) == {}
    notebook.cells[0].source += "\nOne more sentence."
    nbformat.write(notebook, path)
    # nobody needs another text: what it leaves is what it was
    assert outdated(study) == {"01_data_exploration": "its notebook was changed"}


def test_what_is_missing_or_of_another_teacher_is_made_again_with_all_that_needs_it(
    own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_copy)
    study = load_study("params/smoke.yaml")
    (study.artifacts / "evaluation" / "n" / "bs.csv").unlink()
    of_n = {"08_evaluation-n", "14_new_particles-n"}
    assert set(outdated(study)) == {*of_n, *ALWAYS}
    sidecar = study.artifacts / "models" / "all" / "teacher.safetensors.json"
    described = json.loads(sidecar.read_text("utf-8"))
    sidecar.write_text(json.dumps(described | {"sha256": "0" * 64}), "utf-8")
    again = outdated(study)
    assert set(again) == {
        *(name for name in trainings_of(study, "all") if "student" in name),
        *("08_evaluation-all", "14_new_particles-all", "15_generator-all", "11_speed"),
        "16_collisions-all",
        *of_n,
        *ALWAYS,
    }


def test_a_generator_with_a_classifier_is_not_one_without(
    own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_copy)
    study = load_study("params/smoke.yaml")
    assert Artefact(study, "generator", "all", "splitting").changes() == []
    without = study.model_copy(update={"signal": None})
    assert Artefact(without, "generator", "all", "splitting").changes() == ["trained_signal"]


def test_marks_of_stages_that_run_again_are_never_the_same_twice(
    own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake remembers the checksums of small files, and a time alone is no change to it."""
    monkeypatch.chdir(own_copy)
    study = changed(load_study("params/smoke.yaml"), "teacher", batch=31)
    mark = mark_of(study, "02_teacher_training-n")
    seen = set()
    for _ in range(3):
        assert "02_teacher_training-n" in mark_outdated(study)
        assert mark.stat().st_mtime > 0
        seen.add(mark.read_bytes())
    assert len(seen) == 3
    # and what is done is older than everything
    before = mark_of(study, "01_data_exploration").read_bytes()
    mark_outdated(study)
    assert mark_of(study, "01_data_exploration").read_bytes() == before
    assert mark_of(study, "01_data_exploration").stat().st_mtime == 0


def test_collisions_depend_on_what_their_list_holds_not_on_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(new_project(tmp_path))
    for name, content in (("one.csv", "same"), ("two.csv", "same"), ("three.csv", "other")):
        Path(name).write_text(content, "utf-8")
    of = [changed(SMALL, "collisions", file=f"{n}.csv") for n in ("one", "two", "three")]
    assert depending(of[0], of[1]) == set()
    assert depending(of[0], of[2]) == {"16_collisions-all"}
    assert depending(SMALL, of[0]) == {"16_collisions-all"}


@pytest.mark.parametrize("section", ["collisions", "photon_sum"])
def test_without_collisions_or_a_generator_there_is_no_stage_of_them(section: str) -> None:
    without = SMALL.model_copy(update={section: None})
    rows = {stage.row.name for stage in stages_of(without)}
    assert "collisions" not in rows
    # and all else depends on what it did
    values = {stage.name: stage.values for stage in stages_of(SMALL)}
    if section == "collisions":
        assert all(stage.values == values[stage.name] for stage in stages_of(without))
        assert rows == {*TABLE} - {"collisions"}


def test_a_study_without_a_splitting_flow_has_a_grid_without_it(tmp_path: Path) -> None:
    project = new_project(tmp_path / "project")
    write_study(project, "plain", {"splitting": None})
    planned = snakemake(project, "plain", "--cores", "1", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "02_teacher_training-n" in planned.stdout + planned.stderr
    assert "04_splitting_flow" not in planned.stdout + planned.stderr
