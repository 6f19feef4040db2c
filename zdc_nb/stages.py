"""The stages of a study, and the artefacts that they hand to each other.

A stage is what one notebook does. It reads and writes below ``study.artifacts``::

    data.root                              the simulated events
    models/<subset>/<model>.safetensors    a trained teacher or student
    history/<subset>/<model>.csv           its loss terms: epoch, step, split, term, value
    evaluation/<subset>/<model>.csv        its metrics: subset, model, metric, run, value
    samples/<subset>/<model>.npz           its first generation of the test split (responses)

where model is ``teacher`` or the name of a setup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from zdc_nb.evaluation import evaluate_runs
from zdc_nb.events import Events
from zdc_nb.files import study_split
from zdc_nb.params import Study, Subset, derive_seed
from zdc_nb.storage import write_atomically, write_csv
from zdc_nb.training import (
    Surrogate,
    choose_device,
    distil_student,
    distillation_step,
    likelihood_step,
    load_surrogate,
    read_made_with,
    save_surrogate,
    train_teacher,
)

__all__ = [
    "MissingStageError",
    "device",
    "evaluate_model",
    "load_evaluation",
    "load_evaluations",
    "load_history",
    "load_model",
    "load_samples",
    "load_split",
    "make_student",
    "make_teacher",
    "ready_teacher",
    "samplers",
    "training_steps",
    "training_work",
]


class MissingStageError(FileNotFoundError):
    """An artefact is not there; the message says which and what makes it."""


def device(study: Study) -> str:
    """``cpu`` or ``cuda``: where this study's models run on this machine."""
    return choose_device(study.device).type


def load_split(study: Study, subset: str) -> tuple[Events, Events, Events]:
    """Training, validation and test events of a subset; simulates the data if they are missing."""
    return study_split(study, study.check_subset(subset))


def _artefact(study: Study, kind: str, subset: str, model: str) -> Path:
    suffix = {"models": "safetensors", "history": "csv", "evaluation": "csv", "samples": "npz"}
    return study.artifacts / kind / subset / f"{model}.{suffix[kind]}"


def _existing(study: Study, kind: str, subset: str, model: str) -> Path:
    path = _artefact(study, kind, subset, model)
    if not path.is_file():
        if model == "teacher":
            stage = f"notebooks/02_teacher_training.ipynb -p subset {subset}"
        else:
            stage = f"notebooks/03_student_distillation.ipynb -p subset {subset} -p setup {model}"
        file = f"params/{study.name}.yaml"
        raise MissingStageError(
            f"{path} is missing: run `make study STUDY={file}`, or this stage alone with "
            f"`papermill {stage.replace('.ipynb', '.ipynb out.ipynb')} -p study {file}` "
            "(or wherever your study file is)"
        )
    return path


def _made_with(study: Study, model: str) -> dict[str, Any]:
    """The parameters that the artefacts of a model depend on."""
    sections = {"seed", "data", "preprocessing", "flow", "teacher"}
    if model != "teacher":
        sections.add("student")
    return study.model_dump(mode="json", include=sections)


def _current(study: Study, kind: str, subset: str, model: str) -> Path:
    """As :func:`_existing`; ``ValueError`` if it was made with other parameters."""
    checkpoint = _existing(study, "models", subset, model)
    theirs, mine = read_made_with(checkpoint), _made_with(study, model)
    if theirs != mine:
        changed = [name for name, value in mine.items() if (theirs or {}).get(name) != value]
        raise ValueError(
            f"{checkpoint}: was made with other parameters than study {study.name!r} has now "
            f"(in {', '.join(changed)}); delete it, or run the study, to make it again"
        )
    return _existing(study, kind, subset, model)


# --- Making -------------------------------------------------------------------------------------


def make_teacher(
    study: Study, subset: str, progress: bool = False
) -> tuple[Surrogate, pd.DataFrame]:
    """Train and save the teacher of ``subset``; returns it and its history."""
    name = study.check_subset(subset)
    train, validation, _ = load_split(study, name)
    surrogate, history = train_teacher(train, validation, study, name, progress)
    _save(study, name, "teacher", surrogate, history)
    return surrogate, history


def ready_teacher(study: Study, subset: str, progress: bool = False) -> Surrogate:
    """The teacher of ``subset``; trained and evaluated now if there is none yet."""
    if all(
        _artefact(study, kind, subset, "teacher").is_file() for kind in ("models", "evaluation")
    ):
        return load_model(study, subset, "teacher")
    print(f"no teacher of {subset!r} in {study.artifacts} yet: training it first")
    teacher, _ = make_teacher(study, subset, progress)
    evaluate_model(study, subset, "teacher", teacher, progress)
    return teacher


def make_student(
    study: Study, subset: str, setup: str, progress: bool = False
) -> tuple[Surrogate, pd.DataFrame]:
    """Distil and save the student of ``subset`` and ``setup``; returns it and its history."""
    name, kind = study.check_subset(subset), study.check_setup(setup)
    train, validation, _ = load_split(study, name)
    teacher = ready_teacher(study, name, progress)
    surrogate, history = distil_student(teacher, train, validation, study, name, kind, progress)
    _save(study, name, kind, surrogate, history)
    return surrogate, history


def _save(
    study: Study, subset: Subset, model: str, surrogate: Surrogate, history: pd.DataFrame
) -> None:
    write_csv(history, _artefact(study, "history", subset, model))
    save_surrogate(surrogate, _artefact(study, "models", subset, model), _made_with(study, model))


def evaluate_model(
    study: Study, subset: str, model: str, surrogate: Surrogate, progress: bool = False
) -> tuple[pd.DataFrame, list[NDArray[np.uint16]]]:
    """Generate the test split ``study.evaluation.runs`` times; save metrics and first generation.

    Returns the tidy metrics and the first two generations, aligned with the test split.
    """
    test = load_split(study, subset)[2]
    shown: list[NDArray[np.uint16]] = []

    def generations() -> Iterator[NDArray[np.uint16]]:
        for run in range(study.evaluation.runs):
            # not of the model's name: what setups share they shall share here too
            seed = derive_seed(study.seed, "generation", subset, run)
            generated = surrogate.generate(test, seed, study.evaluation.batch, progress)
            if len(shown) < 2:
                shown.append(generated)
            yield generated

    metrics = evaluate_runs(subset, model, test, generations())
    with write_atomically(_artefact(study, "samples", subset, model)) as temporary:
        np.savez_compressed(temporary, responses=shown[0])
    write_csv(metrics, _artefact(study, "evaluation", subset, model))
    return metrics, shown


# --- Reading ------------------------------------------------------------------------------------


def load_model(study: Study, subset: str, model: str) -> Surrogate:
    """A trained model; ``ValueError`` if it was made with other parameters than the study's."""
    return load_surrogate(_current(study, "models", subset, model), choose_device(study.device))


def load_evaluation(study: Study, subset: str, model: str) -> pd.DataFrame:
    """Metrics of one model: subset, model, metric, run, value."""
    return pd.read_csv(_current(study, "evaluation", subset, model))


def load_evaluations(study: Study) -> pd.DataFrame:
    """Metrics of every teacher and student of the study: subset, model, metric, run, value."""
    return pd.concat(
        [
            load_evaluation(study, subset, model)
            for subset in study.subsets
            for model in ("teacher", *study.setups)
        ],
        ignore_index=True,
    )


def load_history(study: Study, subset: str, model: str) -> pd.DataFrame:
    """Loss terms of one training: epoch, step, split, term, value."""
    return pd.read_csv(_current(study, "history", subset, model))


def load_samples(study: Study, subset: str, model: str) -> NDArray[np.uint16]:
    """(N, 44, 44) responses of a model's first generation, aligned with the test split."""
    path = _current(study, "samples", subset, model)
    try:
        # numpy itself leaves a broken file open
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            responses: NDArray[np.uint16] = file["responses"]
    except Exception as error:  # numpy raises almost anything on bytes that are no npz
        raise ValueError(f"{path}: expected an npz file with the array 'responses'") from error
    return responses


def samplers(study: Study) -> dict[str, Callable[[int], object]]:
    """Teacher and student of ``study.speed`` as functions that generate a batch of a given size.

    What is timed is the flow, from a condition on the device to a sample in flow space; what the
    published times include is not said. Particles are taken from the test split, in turn.
    """
    subset, setup = study.speed.subset, study.speed.setup
    test = load_split(study, subset)[2]

    def sampler(surrogate: Surrogate) -> Callable[[int], object]:
        conditions = surrogate.conditions(test)
        generator = torch.Generator(surrogate.flow.device).manual_seed(study.seed)

        def sample(batch: int) -> object:
            rows = torch.arange(batch, device=conditions.device) % len(conditions)
            return surrogate.flow.sample(conditions[rows], generator)

        return sample

    return {
        "teacher": sampler(load_model(study, subset, "teacher")),
        "student": sampler(load_model(study, subset, setup)),
    }


def training_steps(study: Study) -> dict[str, Callable[[int], object]]:
    """A training step of teacher and student of ``study.speed``, with both engines.

    As functions that make one on a batch of a given size: loss, gradients and optimiser, on copies
    of the trained weights, with responses of the test split. Names are ``<model> <engine>``, with
    ``fused`` and ``reference``.
    """
    subset, setup = study.speed.subset, study.speed.setup
    test = load_split(study, subset)[2]

    def steps(engine: Literal["fused", "reference"]) -> dict[str, Callable[[int], object]]:
        teacher = load_model(study, subset, "teacher").with_engine(engine)
        student = load_model(study, subset, setup).with_engine(engine)
        master = teacher.with_engine(engine)
        return {
            f"teacher {engine}": likelihood_step(teacher, test, study.seed),
            f"student {engine}": distillation_step(master, student, test, study.seed),
        }

    return {**steps("fused"), **steps("reference")}


def training_work(study: Study) -> dict[str, int]:
    """How many responses all teachers and all students of the study were trained on.

    A response counts once for each epoch.
    """
    work = {"teacher": 0, "student": 0}
    for subset in study.subsets:
        responses = len(load_split(study, subset)[0])
        for model in ("teacher", *study.setups):
            kind = "teacher" if model == "teacher" else "student"
            epochs = int(load_history(study, subset, model)["epoch"].max())
            work[kind] += epochs * responses
    return work
