"""The stages of a study, and the artefacts that they hand to each other.

A stage is what one notebook does. It reads and writes below ``study.artifacts``::

    data.root                              the events, simulated or read from files
    models/<subset>/<model>.safetensors    a trained teacher or student
    history/<subset>/<model>.csv           its loss terms: epoch, step, split, term, value
    evaluation/<subset>/<model>.csv        its metrics: subset, model, metric, run, value
    samples/<subset>/<model>.npz           its first generation of the test split (responses)
    checkpoints/<subset>/<model>.*         of a training that is not done yet

where model is ``teacher`` or the name of a setup. Each carries its checksum and all that it was made
with, ``data.root`` and checkpoints inside, the others beside it (``<name>.json``). What is not whole,
or was made with anything else than the study has now, is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from zdc_nb.data.events import Events
from zdc_nb.evaluation import evaluate_runs
from zdc_nb.generator.surrogate import Surrogate, load_surrogate, save_surrogate
from zdc_nb.hardware import choose_device
from zdc_nb.params import StudentParams, Study, Subset, TeacherParams, derive_seed
from zdc_nb.storage import check_artefact, exclusive, read_sidecar, write_artefact
from zdc_nb.study.dataset import data_identity, study_split
from zdc_nb.training.checkpoints import Checkpoint
from zdc_nb.training.tracking import Tracker, log_metrics, open_tracker
from zdc_nb.training.trainers import (
    distil_student,
    distillation_step,
    likelihood_step,
    train_teacher,
)

__all__ = [
    "MissingStageError",
    "close_training",
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
    """Training, validation and test events of a subset; makes ``data.root`` if it is missing."""
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


def _made_with(study: Study, kind: str, subset: str, model: str) -> dict[str, Any]:
    """All that an artefact depends on: parameters, the data, and the artefacts that it came from."""
    made_with = study.model_dump(mode="json", include={"seed", "preprocessing", "flow"})
    name = study.check_subset(subset)
    trainings: dict[str, TeacherParams | StudentParams] = {"teacher": study.teacher}
    if model != "teacher":
        trainings["student"] = study.student
    for key, training in trainings.items():
        made_with[key] = training.model_dump(mode="json") | {"epochs": training.epochs_for(name)}
    # what the files hold, not how they are named; of the caps only that of this subset
    made_with["data"] = study.data.model_dump(mode="json", exclude={"file"})
    made_with["data"]["max_responses"] = study.data.max_responses.get(name)
    made_with["source"] = data_identity(study)
    if model != "teacher":
        teacher = _existing(study, "models", subset, "teacher")
        made_with["trained_teacher"] = read_sidecar(teacher)["sha256"]
    if kind in ("evaluation", "samples"):
        made_with["evaluation"] = study.evaluation.model_dump(include={"runs", "batch"})
        made_with["trained_model"] = read_sidecar(_existing(study, "models", subset, model))[
            "sha256"
        ]
    return made_with


def _current(study: Study, kind: str, subset: str, model: str) -> Path:
    """As :func:`_existing`; :class:`ArtefactError` if not whole or made with anything else."""
    path = _existing(study, kind, subset, model)
    check_artefact(path, _made_with(study, kind, subset, model))
    return path


# --- Making -------------------------------------------------------------------------------------


def make_teacher(
    study: Study, subset: str, progress: bool = False
) -> tuple[Surrogate, pd.DataFrame]:
    """Train and save the teacher of ``subset``; returns it and its history.

    Goes on from the checkpoint of a training that was stopped, see :func:`close_training`.
    """
    name = study.check_subset(subset)
    train, validation, _ = load_split(study, name)
    with _training(study, name, "teacher") as (checkpoint, track):
        surrogate, history = train_teacher(
            train, validation, study, name, progress, checkpoint, track
        )
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
    close_training(study, subset, "teacher")
    return teacher


def make_student(
    study: Study, subset: str, setup: str, progress: bool = False
) -> tuple[Surrogate, pd.DataFrame]:
    """Distil and save the student of ``subset`` and ``setup``; returns it and its history.

    Goes on from the checkpoint of a training that was stopped, see :func:`close_training`.
    """
    name, kind = study.check_subset(subset), study.check_setup(setup)
    train, validation, _ = load_split(study, name)
    teacher = ready_teacher(study, name, progress)
    with _training(study, name, kind) as (checkpoint, track):
        surrogate, history = distil_student(
            teacher, train, validation, study, name, kind, progress, checkpoint, track
        )
        _save(study, name, kind, surrogate, history)
    return surrogate, history


def close_training(study: Study, subset: str, model: str) -> None:
    """Remove the checkpoint of a training once all that is made of it is there.

    Until then a stage that was stopped after the training, in the evaluation say, need not train
    again.
    """
    _checkpoint(study, subset, model).remove()


def _checkpoint(study: Study, subset: str, model: str) -> Checkpoint:
    path = study.artifacts / "checkpoints" / subset / f"{model}.safetensors"
    made_with = _made_with(study, "models", subset, model)
    return Checkpoint(path, made_with, study.checkpoint_seconds)


@contextmanager
def _training(
    study: Study, subset: str, model: str
) -> Iterator[tuple[Checkpoint, Callable[[int], Tracker]]]:
    """The checkpoint and the log of a training that no other process is at."""
    checkpoint = _checkpoint(study, subset, model)
    curves = _curves(subset, model)
    with exclusive(checkpoint.path.with_suffix(".lock"), f"the training of {curves}"):
        checkpoint.prepare()
        yield checkpoint, lambda step: open_tracker(study, curves, step)


def _curves(subset: str, model: str) -> str:
    """Under which name the losses and metrics of a model are logged."""
    return f"teacher/{subset}" if model == "teacher" else f"student/{subset}/{model}"


def _save(
    study: Study, subset: Subset, model: str, surrogate: Surrogate, history: pd.DataFrame
) -> None:
    made_with = _made_with(study, "models", subset, model)
    with write_artefact(_artefact(study, "history", subset, model), made_with) as temporary:
        history.to_csv(temporary, index=False)
    with write_artefact(_artefact(study, "models", subset, model), made_with) as temporary:
        save_surrogate(surrogate, temporary)


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
    made_with = _made_with(study, "evaluation", subset, model)
    with write_artefact(_artefact(study, "samples", subset, model), made_with) as temporary:
        np.savez_compressed(temporary, responses=shown[0])
    with write_artefact(_artefact(study, "evaluation", subset, model), made_with) as temporary:
        metrics.to_csv(temporary, index=False)
    means = metrics.groupby("metric", sort=False)["value"].mean()
    log_metrics(study, _curves(subset, model), {str(name): mean for name, mean in means.items()})
    return metrics, shown


# --- Reading ------------------------------------------------------------------------------------


def load_model(study: Study, subset: str, model: str) -> Surrogate:
    """A trained model; :class:`ArtefactError` if it was made with other parameters or data."""
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
    # numpy itself leaves a broken file open
    with (
        _current(study, "samples", subset, model).open("rb") as stream,
        np.load(stream, allow_pickle=False) as file,
    ):
        responses: NDArray[np.uint16] = file["responses"]
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
