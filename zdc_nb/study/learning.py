"""What should a collaboration simulate? A learning curve: many particles, or many responses to each.

Splitting flows are trained on equal numbers of responses to different numbers of particles, and
tested on particles that none of them has seen and on further simulations of those it learned from.
Each point of the curve (repeats, responses and seed) is kept as one file as soon as it is done, with
all that it depends on inside: what is there is loaded, what was begun goes on from its checkpoint.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from zdc_nb.data.events import Events, keep_aside
from zdc_nb.data.simulation import VERSION, simulate_again
from zdc_nb.evaluation import matched_runs, resample
from zdc_nb.evaluation.comparison import Resampled, interval, intervals, join_trainings, over_floor
from zdc_nb.evaluation.metrics import Observed, observe
from zdc_nb.generator.surrogate import Surrogate
from zdc_nb.params import (
    SplittingParams,
    Study,
    Subset,
    derive_seed,
    load_parameters,
    load_study,
    project_root,
)
from zdc_nb.storage import exclusive, write_atomically
from zdc_nb.study.dataset import new_particles
from zdc_nb.training.checkpoints import Checkpoint
from zdc_nb.training.trainers import train_splitting

__all__ = [
    "Learned",
    "Learning",
    "Point",
    "learn",
    "learning_table",
    "load_learning",
    "points_of",
]

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]

FLOOR, MODEL = "reference+sum", "splitting"

VALIDATION_REPEATS = 3
"""Simulations of each particle that a training is validated on."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EqualParticles(_Part):
    """Other numbers of responses to as many particles as one point of the curve has."""

    as_at: Positive
    repeats: list[Positive] = Field(min_length=1)


class Learning(_Part):
    """What is trained and tested, as read from one YAML file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    artifacts: Name
    reports: Name
    study: Name
    subset: Subset
    responses: Positive
    repeats: list[Positive] = Field(min_length=2)
    equal_particles: EqualParticles | None
    seeds: list[Positive] = Field(min_length=1)
    validation_responses: Positive
    test_particles: Annotated[int, Field(ge=2)]
    test_repeats: Annotated[int, Field(ge=2)]
    reserved: Fraction
    runs: Positive
    draws: Positive
    splitting: SplittingParams

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in ("repeats", "seeds"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key}: expected different numbers, got {getattr(self, key)}")
        also = self.equal_particles
        if also is not None and also.as_at not in self.repeats:
            raise ValueError(
                f"equal_particles.as_at: expected one of repeats {self.repeats}, got {also.as_at}"
            )
        if also is not None and also.as_at in also.repeats:
            raise ValueError(f"equal_particles.repeats: {also.as_at} is there already, as as_at")
        if self.splitting.epoch_responses is not None:
            raise ValueError("splitting.epoch_responses: expected null, the curve sets it")
        return self

    @property
    def folder(self) -> Path:
        """Where figures and tables go."""
        return project_root() / self.reports / self.name

    @property
    def kept(self) -> Path:
        """Where the points are kept."""
        return project_root() / self.artifacts / "learning" / self.name


def load_learning(path: str | Path) -> Learning:
    """Read and check a file of a learning curve, see :func:`zdc_nb.params.load_parameters`."""
    return load_parameters(path, Learning, "learning curve")


@dataclass(frozen=True)
class Point:
    """So many responses, to particles that were each simulated ``repeats`` times; one training."""

    repeats: int
    responses: int
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"repeats{self.repeats}-responses{self.responses}-seed{self.seed}"


def points_of(learning: Learning) -> list[Point]:
    """All points: of one seed after the other, so that a run that was stopped has a whole curve."""
    wanted = [(repeats, learning.responses) for repeats in learning.repeats]
    wanted += _equal_particles(learning)
    return [Point(*each, seed) for seed in learning.seeds for each in wanted]


def _equal_particles(learning: Learning) -> list[tuple[int, int]]:
    also = learning.equal_particles
    if also is None:
        return []
    return [(repeats, round(learning.responses * repeats / also.as_at)) for repeats in also.repeats]


@dataclass(frozen=True, eq=False)
class Learned:
    """What came of one point.

    Attributes
    ----------
    particles
        that were learned from.
    seconds
        that the training took.
    parts
        by part, ``new`` and ``seen``, and model, ``splitting`` and ``reference+sum``: the metrics, also
        on resampled particles.
    """

    particles: int
    seconds: float
    parts: dict[tuple[str, str], Resampled]


def learn(learning: Learning, point: Point, progress: bool = False) -> Learned:
    """Train and test one point; loaded where it is kept and of these parameters.

    Raises :class:`~zdc_nb.training.checkpoints.TrainingInterrupted` on SIGTERM or SIGINT, after
    saving where the training is.
    """
    study = _study_of(learning, point)
    made_with = _made_with(learning, study, point)
    path = learning.kept / f"{point.name}.npz"
    with exclusive(path.with_suffix(".lock"), f"{point.name} of {learning.name}"):
        found = _read(path, made_with)
        if found is None:
            checkpoint = Checkpoint(
                path.with_suffix(".safetensors"), made_with, study.checkpoint_seconds
            )
            checkpoint.prepare()
            found = _learn(learning, study, point, checkpoint, progress)
            _write(found, path, made_with)
            checkpoint.remove()
    return found


def _study_of(learning: Learning, point: Point) -> Study:
    """The study, with the curve's own splitting flow: as many steps whatever the responses."""
    in_epoch = min(learning.responses, point.responses)
    epochs = learning.splitting.epochs_for(learning.subset) * learning.responses / in_epoch
    update = {"epochs": max(1, round(epochs)), "epoch_responses": in_epoch}
    study = load_study(learning.study)
    return study.model_copy(update={"splitting": learning.splitting.model_copy(update=update)})


def _made_with(learning: Learning, study: Study, point: Point) -> dict[str, Any]:
    """All that a point depends on, as JSON has it."""
    assert study.splitting is not None
    others = {"name", "artifacts", "reports", "study", "seeds", "repeats", "responses"}
    found: dict[str, Any] = {
        **learning.model_dump(mode="json", exclude=others | {"splitting", "equal_particles"}),
        "point": [point.repeats, point.responses, point.seed],
        "splitting": study.splitting.model_dump(mode="json"),
        "data": study.data.model_dump(mode="json", include={"min_photons", "abundance"}),
        "batch": study.evaluation.batch,
        "seed": study.seed,
        "simulation": VERSION,
    }
    return found


def _learn(
    learning: Learning, study: Study, point: Point, checkpoint: Checkpoint, progress: bool
) -> Learned:
    subset = learning.subset

    def new(responses: int, repeats: int, *labels: str | int) -> Events:
        seed = derive_seed(study.seed, "learning curve", *labels)
        return new_particles(study, subset, responses, repeats, seed)

    train = new(point.responses, point.repeats, "train", point.seed)
    validation = new(learning.validation_responses, VALIDATION_REPEATS, "validation")
    surrogate, history = train_splitting(
        train, validation, study, subset, progress, checkpoint, training=point.seed
    )
    tests = {
        "new": new(learning.test_particles * learning.test_repeats, learning.test_repeats, "test"),
        "seen": _seen(learning, study, train, point.seed),
    }
    parts = {}
    for name, events in tests.items():
        # new particles are the same for all seeds, and so is how they are resampled
        draws = point.seed if name == "seen" else 0
        for model, answers in _answers(learning, study, events, surrogate).items():
            test, observed = answers
            trainings = {point.seed: observed}
            parts[name, model] = resample(test, trainings, learning.draws, draws)
    seconds = float(history.attrs["training_seconds"])
    return Learned(len(np.unique(train.particle)), seconds, parts)


def _seen(learning: Learning, study: Study, train: Events, seed: int) -> Events:
    """Further simulations of some of the particles that were learned from."""
    labels = np.unique(train.particle)
    rng = np.random.default_rng(derive_seed(study.seed, "learning curve", "chosen", seed))
    chosen = rng.permutation(labels)[: learning.test_particles]
    again = derive_seed(study.seed, "learning curve", "again", seed)
    known = train[np.isin(train.particle, chosen)]
    return simulate_again(known, learning.test_repeats, study.data.min_photons, again)


def _answers(
    learning: Learning, study: Study, events: Events, surrogate: Surrogate
) -> dict[str, tuple[Events, Observed]]:
    """Test responses, and what the trained flow and the floor answer; a part is kept aside for it."""
    aside = derive_seed(study.seed, "learning curve", "reserved")
    test, reserved = keep_aside(events, learning.reserved, aside)
    floor = matched_runs(reserved, test, learning.runs, study.seed)

    def generate(run: int) -> NDArray[np.uint16]:
        seed = derive_seed(study.seed, "learning curve", "generation", run)
        return surrogate.generate(floor.test, seed, study.evaluation.batch)

    generated = [observe(generate(run), test.detector) for run in range(learning.runs)]
    drawn = [observe(answer, test.detector) for answer in floor.generations]
    return {
        MODEL: (floor.test, Observed.stack(generated)),
        FLOOR: (floor.test, Observed.stack(drawn)),
    }


# --- Files ------------------------------------------------------------------------------------


def _write(learned: Learned, path: Path, made_with: dict[str, Any]) -> None:
    """One file, so that it is whole or not there."""
    arrays: dict[str, NDArray[Any]] = {
        "made_with": np.array(json.dumps(made_with, sort_keys=True)),
        "particles": np.array(learned.particles),
        "seconds": np.array(learned.seconds),
    }
    for (part, model), metrics in learned.parts.items():
        arrays[f"{part}/{model}/seeds"] = np.array(metrics.seeds)
        for metric, values in metrics.found.items():
            arrays[f"{part}/{model}/{metric}/found"] = values
            arrays[f"{part}/{model}/{metric}/drawn"] = metrics.drawn[metric]
    with write_atomically(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _read(path: Path, made_with: dict[str, Any]) -> Learned | None:
    """A point that was kept; None, and a printed line, where it cannot be used."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        known = json.loads(str(arrays.pop("made_with")))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        print(f"{path}: damaged ({error}); making it again", flush=True)
        return None
    if known != json.loads(json.dumps(made_with)):
        print(f"{path}: of other parameters; making it again", flush=True)
        return None
    particles, seconds = int(arrays.pop("particles")), float(arrays.pop("seconds"))
    parts: dict[tuple[str, str], Resampled] = {}
    for name, values in arrays.items():
        part, model, metric, *which = name.split("/")
        if not which:
            parts[part, model] = Resampled(tuple(map(int, values)), {}, {})
            continue
        kind = parts[part, model].found if which == ["found"] else parts[part, model].drawn
        kind[metric] = values
    return Learned(particles, seconds, parts)


# --- Numbers ----------------------------------------------------------------------------------


def learning_table(learning: Learning, results: dict[Point, Learned]) -> pd.DataFrame:
    """Errors on new and on seen particles at each point, all seeds together.

    Returns
    -------
    Columns curve (``equal responses`` or ``equal particles``), repeats, responses, particles (mean over
    seeds), part (``new``, ``seen``), metric, value, low, high (photons or fibres), floor, ratio (value
    over floor), ratio_low, ratio_high, trainings. Intervals are over particles and trainings at
    :data:`~zdc_nb.evaluation.comparison.LEVEL`. That of seen particles is rather too wide: other
    seeds have other particles, so that these count twice.
    """
    equal = [("equal responses", (repeats, learning.responses)) for repeats in learning.repeats]
    also = learning.equal_particles
    if also is not None:
        more = [*_equal_particles(learning), (also.as_at, learning.responses)]
        equal += [("equal particles", each) for each in sorted(more)]
    rows = []
    for curve, (repeats, responses) in equal:
        found = [results[Point(repeats, responses, seed)] for seed in learning.seeds]
        particles = float(np.mean([each.particles for each in found]))
        for part in ("new", "seen"):
            model, floor = (
                join_trainings([each.parts[part, name] for each in found])
                for name in (MODEL, FLOOR)
            )
            values = intervals({MODEL: model}).set_index("metric")
            for metric, (ratio, drawn) in over_floor(model, floor).items():
                low, high = interval(drawn)
                mine = values.loc[metric, ["value", "low", "high"]]
                point = (curve, repeats, responses, particles, part, metric)
                rest = (floor.found[metric].mean(), ratio, low, high, len(found))
                rows.append((*point, *mine, *rest))
    columns = ["curve", "repeats", "responses", "particles", "part", "metric"]
    columns += ["value", "low", "high", "floor", "ratio", "ratio_low", "ratio_high", "trainings"]
    return pd.DataFrame(rows, columns=columns)
