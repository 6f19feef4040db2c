"""What stages leave to each other, and what they refuse to take."""

from pathlib import Path

import numpy as np
import pytest

from zdc_nb import stages
from zdc_nb.params import ParameterError, Study, load_study

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
        assert sorted(p.stem for p in (study.artifacts / kind / "n").iterdir()) == ["bs", "teacher"]


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
    ("section", "values", "models"),
    [
        ("data", {"repeats": 21}, ("teacher", "bs")),
        ("teacher", {"epochs": 2}, ("teacher", "bs")),
        ("flow", {"hidden": 9}, ("teacher", "bs")),
        ("student", {"epochs": 2}, ("bs",)),
    ],
)
def test_artefacts_of_other_parameters_are_refused_by_name(
    study: Study, section: str, values: dict[str, object], models: tuple[str, ...]
) -> None:
    other = changed(study, section, **values)
    for model in ("teacher", "bs"):
        for load in (stages.load_model, stages.load_history, stages.load_samples):
            if model in models:
                with pytest.raises(ValueError, match=rf"{model}\.safetensors.*\(in {section}\)"):
                    load(other, "n", model)
            else:
                load(other, "n", model)


def test_what_is_missing_is_named_with_what_makes_it(study: Study) -> None:
    with pytest.raises(stages.MissingStageError, match=r"bs\+ch\.safetensors is missing") as error:
        stages.load_history(study, "n", "bs+ch")
    assert "03_student_distillation.ipynb out.ipynb -p subset n -p setup bs+ch" in str(error.value)
    with pytest.raises(stages.MissingStageError, match="02_teacher_training"):
        stages.load_model(study, "all", "teacher")


def test_broken_samples_are_named(study: Study) -> None:
    path = study.artifacts / "samples" / "n" / "bs.npz"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"bs\.npz: expected an npz file"):
            stages.load_samples(study, "n", "bs")
    finally:
        path.write_bytes(whole)


def test_unknown_names_are_refused(study: Study) -> None:
    with pytest.raises(ParameterError, match="'pi0'"):
        stages.make_teacher(study, "pi0")
    with pytest.raises(ParameterError, match="'ch'"):
        stages.make_student(study, "n", "ch")
