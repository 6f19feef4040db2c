"""What stages leave to each other, and what they refuse to take."""

from pathlib import Path

import numpy as np
import pytest
import torch

from zdc_nb.generator.surrogate import save_surrogate
from zdc_nb.params import ParameterError, Study, load_study
from zdc_nb.storage import ArtefactError, read_sidecar, sidecar, write_artefact
from zdc_nb.study import stages
from zdc_nb.training import trainers as training

SMOKE = load_study(Path(__file__).parents[1] / "params" / "smoke.yaml")


def changed(study: Study, section: str, **values: object) -> Study:
    part = getattr(study, section).model_copy(update=values)
    return study.model_copy(update={section: part})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of its own folder with a teacher and a student of ``n``."""
    folder = tmp_path_factory.mktemp("study")
    tiny = changed(SMOKE, "paths", artifacts=str(folder), reports=str(folder / "reports"))
    tiny = changed(tiny, "data", responses=600, max_responses={"n": 60})
    tiny = changed(tiny, "flow", hidden=8, context_hidden=[8])
    tiny = changed(tiny, "evaluation", runs=2)
    for section in ("teacher", "student"):
        tiny = changed(tiny, section, epochs=1)
    # the student asks for its teacher, which is not there yet
    student, _ = stages.make_student(tiny, "n", "bs")
    stages.evaluate_model(tiny, "n", "bs", student)
    return tiny


def test_a_student_trains_and_evaluates_its_teacher_first(study: Study) -> None:
    for kind in ("models", "history", "evaluation", "samples"):
        found = sorted((study.artifacts / kind / "n").glob("*.json"))
        assert [path.name.split(".")[0] for path in found] == ["bs", "teacher"]
        assert all(path.with_suffix("").is_file() for path in found)


def test_results_come_back_as_they_were_saved(study: Study) -> None:
    test = stages.load_split(study, "n")[2]
    for model in ("teacher", "bs"):
        samples = stages.load_samples(study, "n", model)
        assert samples.shape == test.responses.shape
        surrogate = stages.load_model(study, "n", model)
        metrics, shown = stages.evaluate_model(study, "n", model, surrogate)
        assert np.array_equal(shown[0], samples), "the same seed gives the same generation"
        loaded = stages.load_evaluation(study, "n", model)
        assert set(loaded["subset"]) == {"n"}
        np.testing.assert_allclose(loaded["value"], metrics["value"])
        assert set(stages.load_history(study, "n", model)["split"]) == {"train", "validation"}


@pytest.mark.parametrize(
    ("section", "values", "refused"),
    [
        ("data", {"repeats": 21}, ("teacher", "bs")),
        ("teacher", {"epochs": 2}, ("teacher", "bs")),
        ("flow", {"hidden": 9}, ("teacher", "bs")),
        ("student", {"epochs": 2}, ("bs",)),
    ],
)
def test_artefacts_of_other_parameters_are_refused_by_name(
    study: Study, section: str, values: dict[str, object], refused: tuple[str, ...]
) -> None:
    other = changed(study, section, **values)
    changes = rf"{section}\.{next(iter(values))}"
    for model in ("teacher", "bs"):
        for load in (
            stages.load_model,
            stages.load_history,
            stages.load_samples,
            stages.load_evaluation,
        ):
            if model in refused:
                with pytest.raises(ArtefactError, match=rf"{model}\.\w+: .*other.*{changes}"):
                    load(other, "n", model)
            else:
                load(other, "n", model)


def test_an_evaluation_of_other_runs_is_refused_but_its_model_is_not(study: Study) -> None:
    other = changed(study, "evaluation", runs=3)
    with pytest.raises(ArtefactError, match=r"teacher\.csv: .*evaluation\.runs"):
        stages.load_evaluation(other, "n", "teacher")
    stages.load_model(other, "n", "teacher")


def test_a_student_of_another_teacher_is_refused(study: Study) -> None:
    path = study.artifacts / "models" / "n" / "teacher.safetensors"
    kept = path.read_bytes(), sidecar(path).read_bytes()
    try:
        teacher = stages.load_model(study, "n", "teacher")
        teacher.flow.networks[0].last.bias[0] += 1
        with write_artefact(path, read_sidecar(path)["made_with"]) as temporary:
            save_surrogate(teacher, temporary)
        stages.load_model(study, "n", "teacher")
        with pytest.raises(ArtefactError, match=r"bs\.safetensors: .*trained_teacher"):
            stages.load_model(study, "n", "bs")
        with pytest.raises(ArtefactError, match=r"teacher\.csv: .*trained_model"):
            stages.load_evaluation(study, "n", "teacher")
    finally:
        path.write_bytes(kept[0])
        sidecar(path).write_bytes(kept[1])


def test_a_stage_that_was_stopped_after_its_training_does_not_train_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, history = stages.make_student(study, "n", "bs")
    monkeypatch.setattr(training._Fit, "_step", None)  # would fail
    again, continued = stages.make_student(study, "n", "bs")
    assert continued.attrs["resumed_from_step"] == history["step"].max()
    assert continued.equals(history)
    for name, value in first.flow.state_dict().items():
        assert torch.equal(value, again.flow.state_dict()[name])
    stages.close_training(study, "n", "bs")
    with pytest.raises(TypeError):
        stages.make_student(study, "n", "bs")


def test_what_is_missing_is_named_with_what_makes_it(study: Study) -> None:
    with pytest.raises(stages.MissingStageError, match=r"bs\+ch\.csv is missing") as error:
        stages.load_history(study, "n", "bs+ch")
    assert "03_student_distillation.ipynb out.ipynb -p subset n -p setup bs+ch" in str(error.value)
    with pytest.raises(stages.MissingStageError, match="02_teacher_training"):
        stages.load_model(study, "all", "teacher")


def test_damaged_samples_are_named(study: Study) -> None:
    path = study.artifacts / "samples" / "n" / "bs.npz"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ArtefactError, match=r"bs\.npz: damaged"):
            stages.load_samples(study, "n", "bs")
    finally:
        path.write_bytes(whole)


def test_unknown_names_are_refused(study: Study) -> None:
    with pytest.raises(ParameterError, match="'pi0'"):
        stages.make_teacher(study, "pi0")
    with pytest.raises(ParameterError, match="'ch'"):
        stages.make_student(study, "n", "ch")
