"""What a notebook opens: one stage at work, with its data, models, figures and record.

.. code-block:: python

    stage = open_stage("02_teacher_training", study="params/small.yaml", subset="all")
    teacher, history = stage.train()  # or loaded, where there is one that matches
    stage.figure(likelihood_figure(history, stage.subset), "02_teacher", "Loss by epoch.")
    stage.finish()
"""

from __future__ import annotations

import ast
import difflib
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import Image
from matplotlib.figure import Figure
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from pydantic import JsonValue

from zdc_nb.data.calibration import has_published
from zdc_nb.data.events import Conditions, Events, Split, Trials, from_vertex
from zdc_nb.data.figures import save_figure
from zdc_nb.detector import Detector
from zdc_nb.evaluation import (
    Closure,
    baseline_draws,
    baseline_evaluations,
    closure_floor,
    closure_of,
    closure_summary,
    dataset_sizes,
    evaluate_runs,
    meaning_warning,
    paired_differences,
    resample,
    what_can_be_evaluated,
)
from zdc_nb.evaluation import new_particles as comparing
from zdc_nb.evaluation.baselines import matched_runs
from zdc_nb.evaluation.classifier import FEWEST_PAIRS, two_sample_test
from zdc_nb.evaluation.comparison import Resampled, errors_by_particle
from zdc_nb.evaluation.conclusions import as_list
from zdc_nb.evaluation.figures import choose_examples
from zdc_nb.evaluation.metrics import Observed, compare, has_repeats, observe
from zdc_nb.evaluation.nearest import nearest_particle
from zdc_nb.evaluation.photon_sum import draw_sums, light_table
from zdc_nb.generator.generator import Domain, Generator
from zdc_nb.generator.likelihood import (
    binomial_nats,
    density_nats,
    divergence_from_teacher,
    has_nats,
    nats_of,
)
from zdc_nb.generator.particle_models import (
    PhotonSumModel,
    SignalModel,
    load_particle_model,
    save_no_signal,
    save_particle_model,
)
from zdc_nb.generator.surrogate import Surrogate, load_surrogate, save_surrogate
from zdc_nb.hardware import choose_device
from zdc_nb.params import DRAWN, ParameterError, Subset, UserError, derive_seed, load_study
from zdc_nb.storage import exclusive, write_csv, write_text
from zdc_nb.study import runs
from zdc_nb.study.artefacts import (
    Artefact,
    ArtefactError,
    MissingArtefactError,
    artefacts_of,
    is_current,
    kind_of,
    trained_models,
)
from zdc_nb.study.counterpart import ParticlePart, particle_parts
from zdc_nb.study.dataset import (
    data_report,
    study_detector,
    study_events,
    study_split,
    study_trials,
)
from zdc_nb.study.described import described, nothing_published
from zdc_nb.study.stages import TABLE, Stage, find_stage
from zdc_nb.training.checkpoints import Checkpoint, TrainingInterrupted
from zdc_nb.training.tracking import Tracker, log_metrics, open_tracker
from zdc_nb.training.trainers import (
    distil_student,
    train_photon_sum,
    train_signal,
    train_splitting,
    train_teacher,
)

__all__ = ["Answers", "Session", "check_parameters", "open_stage"]

_GENERATIONS = 2
"""Of seen and new particles: enough, since particles differ far more than generations do."""

_DRAWS = 400
"""Of resampled particles, for their intervals."""


_NO_METRICS = pd.DataFrame(columns=["subset", "model", "metric", "run", "value", "seed"])


class Answers(NamedTuple):
    """What a model answers to N test responses: ``responses()`` gives its first generation."""

    responses: Callable[[], NDArray[np.uint16]]
    observed: Observed


def open_stage(notebook: str, study: str | Path, retrain: object = None, **keys: Any) -> Session:
    """Open the stage that a notebook runs.

    Parameters
    ----------
    notebook
        its name, ``02_teacher_training``.
    study
        the study file.
    retrain
        train anew though there is a model that matches; the old one stays until then.
    keys
        ``subset``, ``setup``, ``seed`` and ``model``, as far as the stage has them.

    Raises
    ------
    ParameterError
        naming what the study does not have, also a parameter that papermill has passed and the
        notebook does not know.
    """
    check_parameters({"study", *keys} | (set() if retrain is None else {"retrain"}))
    stage = find_stage(load_study(study), notebook, **keys)
    _show_errors_briefly(stage.study.reports / "logs" / f"{stage.name}.traceback")
    return Session(stage, str(retrain).lower() in {"true", "1", "yes"})


class Session:
    """One stage at work; made by :func:`open_stage`.

    Its record is written from the start, unless all that the stage leaves is there already: who
    only looks at results does not put themself in the place of who made them. With ``reads`` none is
    written at all: of who puts results of several studies side by side.
    """

    def __init__(self, stage: Stage, retrain: bool = False, reads: bool = False) -> None:
        self.stage, self.study = stage, stage.study
        self.setup, self.seed = stage.setup, stage.seed or 1
        self.retrain = retrain
        self._splits: dict[str, Split] = {}
        self._record: runs.Record | None = None
        loads = bool(artefacts_of(stage)) and not retrain and is_current(stage)
        if not (reads or (loads and runs.is_done(stage))):
            self._begin()

    def _begin(self) -> None:
        if self._record is None:
            self._record = runs.start(self.stage)

    @property
    def subset(self) -> Subset:
        """The stage's data set; ``ParameterError`` where it has none."""
        if self.stage.subset is None:
            raise ParameterError(f"{self.stage.name}: is about all data sets, name one")
        return self.stage.subset

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``: where the models run."""
        return choose_device(self.study.device).type

    # --- data ---

    @property
    def detector(self) -> Detector:
        """What responds."""
        return study_detector(self.study)

    @property
    def about(self) -> str:
        """The detector, and where its data come from: a paragraph of Markdown."""
        return described(self.study)

    @property
    def published(self) -> bool:
        """Whether there are published numbers of the detector to compare with: of the ZN alone."""
        return has_published(self.detector)

    @property
    def nothing_published(self) -> str:
        """Why nothing published stands beside the numbers; empty where something does."""
        return nothing_published(self.study)

    @cached_property
    def events(self) -> Events:
        """All events of the study: read once, made where there are none yet."""
        return study_events(self.study, progress=True)

    def split(self, subset: str) -> Split:
        """The parts of a data set: train, validation, test, reserved."""
        if subset not in self._splits:
            name = self.study.check_subset(subset)
            self._splits[subset] = study_split(self.study, name, self.events)
        return self._splits[subset]

    @property
    def train_events(self) -> Events:
        """Training part of the stage's data set."""
        return self.split(self.subset).train

    @property
    def validation_events(self) -> Events:
        """Validation part of the stage's data set."""
        return self.split(self.subset).validation

    @property
    def test_events(self) -> Events:
        """Test part of the stage's data set."""
        return self.split(self.subset).test

    def left_out(self) -> pd.DataFrame:
        """Test responses and particles that the first two baselines cannot answer.

        Columns subset, test_responses, test_particles, left_out_responses, left_out_particles; a
        row for the stage's data set, or for each of the study.
        """
        subsets = [self.stage.subset] if self.stage.subset else self.study.subsets
        rows = []
        for subset in subsets:
            _, _, test, reserved = self.split(subset)
            alone = ~np.isin(test.particle, reserved.particle)
            particles = [len(np.unique(part)) for part in (test.particle, test.particle[alone])]
            rows.append((subset, len(test), particles[0], int(alone.sum()), particles[1]))
        names = ("test_responses", "test_particles", "left_out_responses", "left_out_particles")
        return pd.DataFrame(rows, columns=["subset", *names])

    def dataset_sizes(self) -> pd.DataFrame:
        """Responses and unique particles of each part of each data set of the study."""
        sizes = [dataset_sizes(subset, self.split(subset)) for subset in self.study.subsets]
        return pd.concat(sizes, ignore_index=True)

    def what_can_be_done(self) -> str:
        """What the data of the study cannot be evaluated with, as a Markdown list.

        Raises :class:`zdc_nb.data.validation.EventFileError` where a data set cannot be split.
        """
        found: dict[str, list[str]] = {}
        for subset in self.study.subsets:
            _, _, test, reserved = self.split(subset)
            for sentence in what_can_be_evaluated(reserved, test).left_out:
                found.setdefault(sentence, []).append(subset)
        if not found:
            return "Every data set can be trained on, and evaluated with all metrics and baselines."
        return as_list(f"**{', '.join(names)}**: {said}" for said, names in found.items())

    def data_sentences(self) -> str:
        """Where the data come from and what came of their rows, in lines to be printed."""
        report = data_report(self.study)
        said = [
            f"{file['name']}: {file['size']} bytes, SHA-256 {file['sha256']}"
            for file in report["files"]
        ]
        said += [
            f"{count} of {report['read']} rows were dropped: expected {expected}"
            for expected, count in report["dropped"].items()
        ]
        said += [f"WARNING: {warning}" for warning in report["warnings"]]
        if report["faint"]:
            least = self.study.data.min_photons
            said.append(f"{report['faint']} responses have fewer than {least} photons")
        if report["guessed_species"]:
            said.append("Without PDG codes: species were guessed from mass and charge")
        return "\n".join(said)

    # --- models ---

    def train(self) -> tuple[Surrogate, pd.DataFrame]:
        """The stage's model and its history: loaded where they match, else trained and saved.

        A training that was stopped goes on from its checkpoint. An older model stays until the
        new one is whole.
        """
        return self._train_stage(save_surrogate)

    def train_photon_sum(self) -> tuple[PhotonSumModel, pd.DataFrame]:
        """The same of the photon sum."""
        return self._train_stage(save_particle_model)

    def train_signal(self) -> tuple[SignalModel | None, pd.DataFrame]:
        """The same of whether there is light; None where the data hold lit responses only."""

        def save(model: SignalModel | None, path: Path) -> None:
            if model is None:
                save_no_signal(path)
            else:
                save_particle_model(model, path)

        return self._train_stage(save)

    def _train_stage(self, save: Callable[[Any, Path], None]) -> tuple[Any, pd.DataFrame]:
        row = self.stage.row.name
        trained = self._trained(self.setup or row, self.retrain, save)
        self.retrain = False
        return trained

    def _trained(
        self, model: str, retrain: bool, save: Callable[[Any, Path], None] = save_surrogate
    ) -> tuple[Any, pd.DataFrame]:
        if kind_of(model) == "student":
            self._require_teacher()
        found = self._artefact("models", self.subset, model, self.seed)
        path = self.study.artifacts / "checkpoints" / self.subset / f"{found.stem}.safetensors"
        curves = _curves(found)
        with exclusive(path.with_suffix(".lock"), f"the training of {curves}"):
            if not retrain and self._is_there(found):
                print(f"loaded {found.path}: trained with these parameters and data", flush=True)
                return self._load(found), self.history(model, seed=self.seed)
            self._begin()
            checkpoint = Checkpoint(path, found.provenance, self.study.checkpoint_seconds)
            checkpoint.prepare()

            def track(step: int) -> Tracker:
                return open_tracker(self.study, curves, step)

            try:
                trained = self._train(model, checkpoint, track)
            except TrainingInterrupted as stopped:
                if self._record:
                    self._record.stop(str(stopped))
                raise
            made, history = trained
            with found.of("history").write() as temporary:
                history.to_csv(temporary, index=False)
            seconds = history.attrs["training_seconds"]
            with found.write(training_seconds=seconds) as temporary:
                save(made, temporary)
            checkpoint.remove()
        return trained

    def _train(
        self, model: str, checkpoint: Checkpoint, track: Callable[[int], Tracker]
    ) -> tuple[Any, pd.DataFrame]:
        options: dict[str, Any] = {
            "progress": True,
            "checkpoint": checkpoint,
            "track": track,
            "training": self.seed,
        }
        if model == "signal":
            return self._train_signal(options)
        rest = (self.train_events, self.validation_events, self.study, self.subset)
        alone: dict[str, Callable[..., tuple[Any, pd.DataFrame]]] = {
            "teacher": train_teacher,
            "splitting": train_splitting,
            "photon_sum": train_photon_sum,
        }
        if model in alone:
            return alone[model](*rest, **options)
        teacher = self.model("teacher", seed=self.seed)
        return distil_student(teacher, *rest, self.study.check_student(model), **options)

    def _train_signal(self, options: dict[str, Any]) -> tuple[SignalModel | None, pd.DataFrame]:
        parts = self.trials
        if parts is None:
            nothing = pd.DataFrame(columns=["epoch", "step", "split", "term", "value"])
            nothing.attrs["training_seconds"] = 0.0
            return None, nothing
        return train_signal(parts[0], parts[1], self.study, self.subset, self.detector, **options)

    @cached_property
    def trials(self) -> tuple[Trials, Trials, Trials] | None:
        """How often particles sent light, to train, validate and test; None where nobody knows."""
        return study_trials(self.study, self.subset)

    def _require_teacher(self) -> None:
        """Train the teacher if there is none yet; one of other parameters is refused."""
        found = self._artefact("models", self.subset, "teacher", self.seed)
        try:
            found.check()
        except MissingArtefactError:
            print(f"no teacher of {self.subset!r} yet: training it first", flush=True)
            self._trained("teacher", retrain=False)

    def _is_there(self, found: Artefact) -> bool:
        """Whether a model and its history are there and match; a printed line says why not."""
        try:
            for artefact in (found, found.of("history")):
                artefact.check()
        except MissingArtefactError:
            return False
        except ArtefactError as error:
            print(f"training anew: {str(error).partition('; ')[0]}", flush=True)
            return False
        return True

    def _artefact(self, kind: str, subset: str, model: str, seed: int | None = None) -> Artefact:
        """An artefact of one training, the study's first if not told otherwise."""
        if model == "baselines":
            seed = 1
        seed = self.study.seeds[0] if seed is None else self.study.check_seed(seed)
        return Artefact(self.study, kind, self.study.check_subset(subset), model, seed)

    def model(self, name: str, subset: str | None = None, seed: int | None = None) -> Surrogate:
        """A trained model; refused by name where it is not whole or of other parameters."""
        found = self._artefact("models", subset or self.subset, name, seed)
        surrogate = self._load(found)
        assert isinstance(surrogate, Surrogate)
        return surrogate

    def _load(self, found: Artefact) -> Surrogate | PhotonSumModel | SignalModel | None:
        if found.model in ("photon_sum", "signal"):
            return load_particle_model(found.check())
        return load_surrogate(found.check(), choose_device(self.study.device))

    def photon_sum_model(self, seed: int | None = None) -> PhotonSumModel:
        """The trained model of the photon sum of the stage's data set."""
        model = self._load(self._artefact("models", self.subset, "photon_sum", seed))
        assert isinstance(model, PhotonSumModel)
        return model

    def signal_model(self, seed: int | None = None) -> SignalModel | None:
        """The trained model of whether there is light; None where the study has none."""
        if self.study.signal is None:
            return None
        model = self._load(self._artefact("models", self.subset, "signal", seed))
        assert model is None or isinstance(model, SignalModel)
        return model

    def generator(self) -> Generator:
        """The generator of the stage's data set: made and kept, or loaded where it matches."""
        found = self._artefact("generator", self.subset, self.study.generator_model)
        try:
            return Generator.load(found.check(), self.device)
        except (ArtefactError, MissingArtefactError):
            self._begin()
        surrogate = self.model(self.study.generator_model)
        learned = [self.train_events.features]
        if self.study.signal is not None and self.trials is not None:
            learned.append(self.trials[0].features)
        detector = self.detector
        vertex = surrogate.scaler.vertex(detector)
        domain = Domain.of(np.concatenate(learned), vertex, detector)
        generator = Generator(
            surrogate, self.photon_sum_model(), self.signal_model(), domain, detector
        )
        with found.write() as temporary:
            generator.write(temporary)
        return generator

    def history(
        self, name: str, subset: str | None = None, seed: int | None = None
    ) -> pd.DataFrame:
        """Loss terms of one training: epoch, step, split, term, value."""
        return pd.read_csv(self._artefact("history", subset or self.subset, name, seed).check())

    def training_seconds(self, name: str, subset: str | None = None) -> float | None:
        """How long a training took, all its attempts together; None where it was not kept."""
        return self._artefact("models", subset or self.subset, name).fact("training_seconds")

    def answerable(self, generator: Generator) -> Events:
        """Test events whose particles are of what the generator has learned."""
        test = self.test_events
        features = from_vertex(test.features, generator.vertex, test.detector)
        return test[generator.domain.known(features)]

    @property
    def generator_file(self) -> Path:
        """Where :meth:`generator` is kept."""
        return self._artefact("generator", self.subset, self.study.generator_model).path

    @property
    def onnx_folder(self) -> Path:
        """Where :meth:`export_onnx` writes."""
        return self.study.artifacts / "onnx" / self.subset

    def export_onnx(self, generator: Generator) -> str:
        """Write the generator as O2 loads it: the files and the settings to copy, in lines.

        Of a detector that O2 does not know nothing is written, and the line says so.
        """
        # slow to import, and one stage of many needs it
        from zdc_nb.generator.onnx_export import export_onnx, why_not  # noqa: PLC0415

        if refusal := why_not(generator.detector):
            return f"Nothing is exported. {refusal}."
        paths = export_onnx(generator, self.onnx_folder)
        files = [f"{path.stat().st_size / 1e6:8.3f} MB  {path}" for path in paths]
        return "\n".join([*files, "", (self.onnx_folder / "settings.txt").read_text("utf-8")])

    def light_by_species(self, generator: Generator) -> pd.DataFrame:
        """How much light particles send in all; see :func:`~zdc_nb.evaluation.photon_sum.light_table`.

        No rows where nobody knows how often a particle was dark.
        """
        trials = None if self.study.signal is None else self.trials
        if trials is None:
            return pd.DataFrame()
        test, runs = trials[2], 20
        seed = derive_seed(self.study.seed, "light", self.subset)
        uniform = np.random.default_rng(seed).random((runs, len(test), 3))
        drawn = np.stack([generator.photon_sums(test.features, run) for run in uniform])
        return light_table(test, self.events, drawn)

    # --- evaluation ---

    def look(self, model: Surrogate, chosen: Sequence[int] | NDArray[np.intp]) -> list[Any]:
        """Two generated responses for each of some test events: a first look, quickly made."""
        events = self.test_events[np.asarray(chosen)]
        seeds = [derive_seed(self.study.seed, "look", run) for run in range(2)]
        return [model.generate(events, seed, self.study.evaluation.batch) for seed in seeds]

    def baselines(self, subset: str | None = None) -> pd.DataFrame:
        """Metrics of the baselines on a data set: those of this stage are made if need be."""
        found = self._artefact("evaluation", subset or self.subset, "baselines")
        try:
            return pd.read_csv(found.check())
        except (ArtefactError, MissingArtefactError):
            if self.stage.row.name != "baselines":
                raise
        self._begin()
        evaluation, split = self.study.evaluation, self.split(self.subset)
        table, _ = baseline_evaluations(
            split, self.subset, evaluation.runs, self.study.seed, evaluation.classifier_runs
        )
        nats = float(binomial_nats(split.train, split.test).mean())
        table = _with_row(table, self.subset, "binomial", "nats", nats)
        with found.write() as temporary:
            table.to_csv(temporary, index=False)
        return table

    def baseline_look(self) -> tuple[Events, dict[str, NDArray[np.uint16]]]:
        """A few test events, and what each baseline answers them with."""
        _, _, test, reserved = self.split(self.subset)
        found = baseline_draws(self.split(self.subset), 1, self.study.seed)
        # the first two leave out particles without a further response
        least = min((baseline.test for baseline in found.values()), key=len)
        chosen = choose_examples(least, self.study.evaluation.figure_particles)
        all_rows = np.arange(len(test))
        if len(least) < len(test):
            all_rows = np.flatnonzero(np.isin(test.particle, reserved.particle))
        return least[chosen], {
            name: next(baseline.generations)[
                chosen if len(baseline.test) == len(least) else all_rows[chosen]
            ]
            for name, baseline in found.items()
        }

    def evaluate(self, name: str) -> pd.DataFrame:
        """Metrics of a model on the test part, which it generates as often as the study says.

        Of each of its trainings: subset, model, metric, run, value, seed. Loaded where they match;
        else made, and kept with the first generation and what the metrics look at of all.
        """
        parts = [self._evaluated(name, seed).assign(seed=seed) for seed in self.study.seeds]
        return pd.concat(parts, ignore_index=True)

    def _evaluated(self, name: str, training: int) -> pd.DataFrame:
        found = self._artefact("evaluation", self.subset, name, training)
        samples, observed = found.of("samples"), found.of("observed")
        try:
            samples.check()
            observed.check()
            return pd.read_csv(found.check())
        except (ArtefactError, MissingArtefactError):
            self._begin()
        surrogate = self.model(name, seed=training)
        test, evaluation = self.test_events, self.study.evaluation
        seen: list[Observed] = []

        def generations() -> Iterator[NDArray[np.uint16]]:
            for run in range(evaluation.runs):
                # the same seeds for all models: paired comparison
                seed = derive_seed(self.study.seed, "generation", self.subset, run)
                generated = surrogate.generate(test, seed, evaluation.batch, progress=True)
                if run == 0:
                    with samples.write() as temporary:
                        np.savez_compressed(temporary, responses=generated)
                yield generated

        metrics = evaluate_runs(
            self.subset, name, test, generations(), evaluation.classifier_runs, seen.append
        )
        for metric, value in self._likelihoods(surrogate, name, training).items():
            metrics = _with_row(metrics, self.subset, name, metric, value)
        _save_observed(observed, seen)
        with found.write() as temporary:
            metrics.to_csv(temporary, index=False)
        means = metrics.groupby("metric", sort=False)["value"].mean()
        logged = {str(metric): mean for metric, mean in means.items()}
        log_metrics(self.study, _curves(found), logged)
        return metrics

    def evaluate_end_to_end(self) -> pd.DataFrame:
        """Metrics where photon sums are drawn, too, instead of given, of the models that the study names.

        As :meth:`evaluate`, of models with the suffix ``+N``; without classifiers, distances and
        likelihoods. No rows where the study has no photon-sum model.
        """
        parts = [
            self._evaluated_end_to_end(name.removesuffix(DRAWN), seed).assign(seed=seed)
            for name in self.study.end_to_end_models
            for seed in self.study.seeds
        ]
        return pd.concat(parts, ignore_index=True) if parts else _NO_METRICS

    def _evaluated_end_to_end(self, name: str, training: int) -> pd.DataFrame:
        found = self._artefact("evaluation", self.subset, name + DRAWN, training)
        kept = found.of("observed")
        try:
            kept.check()
            return pd.read_csv(found.check())
        except (ArtefactError, MissingArtefactError):
            self._begin()
        surrogate, test = self.model(name, seed=training), self.test_events
        drawn = self.drawn_sums(training)
        before = observe(test.responses, test.detector)
        seen, rows = [], []
        for run, sums in enumerate(drawn):
            # the same seeds as where the sum is given
            seed = derive_seed(self.study.seed, "generation", self.subset, run)
            asked = Conditions(test.features, sums, test.detector)
            generated = surrogate.generate(asked, seed, self.study.evaluation.batch, progress=True)
            seen.append(observe(generated, test.detector))
            rows += [
                (self.subset, found.model, metric, run, value)
                for metric, value in compare(before, seen[-1], test).items()
            ]
        metrics = pd.DataFrame(rows, columns=["subset", "model", "metric", "run", "value"])
        _save_observed(kept, seen)
        with found.write() as temporary:
            metrics.to_csv(temporary, index=False)
        return metrics

    def drawn_sums(self, training: int | None = None) -> NDArray[np.int64]:
        """(runs, N) photon sums drawn for the test part, as often as it is generated."""
        test = self.test_events
        distribution = self.photon_sum_model(training).distribution(test.features, test.detector)
        seed = derive_seed(self.study.seed, "drawn sums", self.subset)
        return draw_sums(distribution, seed, self.study.evaluation.runs)

    def _likelihoods(self, surrogate: Surrogate, name: str, training: int) -> dict[str, float]:
        """``nats``, ``density`` and ``KL``, as far as a model has them."""
        test, batch = self.test_events, self.study.evaluation.batch
        # the same noise for all models
        seed = derive_seed(self.study.seed, "nats", self.subset)
        found = {}
        if has_nats(surrogate):
            found["nats"] = nats_of(surrogate, test, seed, batch, progress=True)
        if name != "splitting":
            found["density"] = density_nats(surrogate, test, seed, batch, progress=True)
        if kind_of(name) == "student":
            teacher = self.model("teacher", seed=training)
            found["KL"] = divergence_from_teacher(surrogate, teacher, test, seed, batch, True)
        return {metric: float(values.mean()) for metric, values in found.items()}

    def importances(self, names: Sequence[str]) -> pd.DataFrame:
        """What tells the first generation of models from the test part: model, feature, importance.

        No rows where the test part is too small for a classifier.
        """
        test, parts = self.test_events, []
        for name in names if len(test) >= FEWEST_PAIRS else ():
            found = two_sample_test(test, self.samples(name), seed=0, importances=True)
            parts.append(found.importances.assign(model=name))
        columns = ["model", "feature", "importance"]
        return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)

    def read_table(self, name: str) -> pd.DataFrame:
        """A table that another stage has left in the reports.

        Raises
        ------
        MissingArtefactError
            naming it and the stage that makes it.
        """
        path = self.study.reports / "tables" / f"{name}.csv"
        if not path.is_file():
            makers = [row.notebook for row in TABLE.values() if name in row.tables + row.published]
            raise MissingArtefactError(f"{path} is missing: run the notebook {makers[0]}")
        return pd.read_csv(path)

    def metrics(
        self, name: str, subset: str | None = None, seed: int | None = None
    ) -> pd.DataFrame:
        """Metrics of one training of a model: subset, model, metric, run, value."""
        found = self._artefact("evaluation", subset or self.subset, name, seed)
        return pd.read_csv(found.check())

    def all_metrics(self) -> pd.DataFrame:
        """Metrics of every trained model on every data set of the study, with their ``seed``."""
        parts = [
            self.metrics(model, subset, seed).assign(seed=seed)
            for subset in self.study.subsets
            for model in trained_models(self.study)
            for seed in self.study.seeds
        ]
        return pd.concat(parts, ignore_index=True)

    def all_end_to_end(self) -> pd.DataFrame:
        """The same where the photon sum was drawn, too; no rows without a model of it."""
        parts = [
            self.metrics(model, subset, seed).assign(seed=seed)
            for subset in self.study.subsets
            for model in self.study.end_to_end_models
            for seed in self.study.seeds
        ]
        return pd.concat(parts, ignore_index=True) if parts else _NO_METRICS

    def all_baselines(self) -> pd.DataFrame:
        """Metrics of the baselines on every data set of the study."""
        parts = [self.baselines(subset) for subset in self.study.subsets]
        return pd.concat(parts, ignore_index=True)

    def samples(self, name: str, subset: str | None = None) -> NDArray[np.uint16]:
        """(N, rows, columns) a model's first generation of the test part."""
        with _arrays(self._artefact("samples", subset or self.subset, name)) as found:
            return cast("NDArray[np.uint16]", found["responses"])

    def observed(self, name: str, subset: str | None = None, seed: int | None = None) -> Observed:
        """What the metrics look at of all generations of one training, each (runs, N, columns)."""
        with _arrays(self._artefact("observed", subset or self.subset, name, seed)) as found:
            return Observed(found["channels"], found["centre"], found["radius"])

    def compared(self, baseline: str = "bs") -> pd.DataFrame:
        """Every trained model against a baseline, particle by particle and seed by seed.

        Columns subset and those of :func:`~zdc_nb.evaluation.comparison.paired_differences`.
        """
        parts = []
        for subset in self.study.subsets:
            table = paired_differences(self.resampled(subset), baseline)
            table.insert(0, "subset", subset)
            parts.append(table)
        return pd.concat(parts, ignore_index=True)

    def resampled(self, subset: str) -> dict[str, Resampled]:
        """Metrics of every trained model on one data set and on resampled particles of it."""
        test = self.split(subset).test
        return {
            name: resample(
                test, {seed: self.observed(name, subset, seed) for seed in self.study.seeds}
            )
            for name in trained_models(self.study)
        }

    def closure(self, name: str, subset: str) -> Closure:
        """Where a model's responses are not those of the simulation, beside ``reference+sum``."""
        split = self.split(subset)
        floor = closure_floor(split, self.study.seed)
        return closure_of(
            split.test, self.samples(name, subset), self.observed(name, subset), floor
        )

    def closure_summary(self) -> pd.DataFrame:
        """What every trained model keeps of light, fibres and variances, on every data set.

        Columns subset and those of :func:`~zdc_nb.evaluation.closure.closure_summary`.
        """
        parts = []
        for subset in self.study.subsets:
            split = self.split(subset)
            models = {
                name: (self.samples(name, subset), self.observed(name, subset))
                for name in trained_models(self.study)
            }
            table = closure_summary(split.test, models, closure_floor(split, self.study.seed))
            table.insert(0, "subset", subset)
            parts.append(table)
        return pd.concat(parts, ignore_index=True)

    def warning(self, table: pd.DataFrame, comparison: pd.DataFrame | None = None) -> str:
        """Why the numbers of some data sets mean nothing; empty where they do.

        ``table`` as for :func:`~zdc_nb.evaluation.conclusions.meaning_warning`; its data sets count.
        """
        subsets = [subset for subset in self.study.subsets if (table["subset"] == subset).any()]
        sizes = pd.concat([dataset_sizes(subset, self.split(subset)) for subset in subsets])
        return meaning_warning(sizes, table, comparison)

    # --- seen and new particles ---

    @cached_property
    def particle_parts(self) -> dict[str, ParticlePart]:
        """Test responses to particles ``seen`` in training and to ``new`` ones, as far as there are any."""
        return particle_parts(self.study, self.subset, self.split(self.subset))

    def part_sizes(self) -> pd.DataFrame:
        """Columns part, particles, responses, reserved (for the floor), simulated (for this alone)."""
        rows = [
            (
                name,
                len(np.unique(part.test.particle)),
                len(part.test),
                0 if part.reserved is None else len(part.reserved),
                part.rows is None,
            )
            for name, part in self.particle_parts.items()
        ]
        return pd.DataFrame(
            rows, columns=["part", "particles", "responses", "reserved", "simulated"]
        )

    def answers(self, name: str, part: str, seed: int | None = None) -> Answers:
        """What one training of a model answers to seen or new particles.

        Of the study's own test part it is what its evaluation has kept; of the counterpart it is
        generated, unless it is there already, and kept.
        """
        rows = self.particle_parts[part].rows
        if rows is None:
            return self._counterpart(name, seed)
        # as many generations as of the counterpart
        observed = Observed(*(v[:_GENERATIONS, rows] for v in self.observed(name, seed=seed)))
        return Answers(lambda: self.samples(name)[rows], observed)

    def _counterpart(self, name: str, seed: int | None) -> Answers:
        found = self._artefact("counterpart", self.subset, name, seed)
        try:
            found.check()
        except (ArtefactError, MissingArtefactError):
            self._begin()
            self._generate_counterpart(found)
        with _arrays(found) as file:
            observed = Observed(file["channels"], file["centre"], file["radius"])

        def responses() -> NDArray[np.uint16]:
            with _arrays(found) as file:
                return cast("NDArray[np.uint16]", file["responses"])

        return Answers(responses, observed)

    def _generate_counterpart(self, found: Artefact) -> None:
        (part,) = [part for part in self.particle_parts.values() if part.rows is None]
        surrogate, test = self.model(found.model, seed=found.seed), part.test
        seen: list[Observed] = []
        for run in range(min(_GENERATIONS, self.study.evaluation.runs)):
            # the same seeds for all models: paired comparison
            seed = derive_seed(self.study.seed, "counterpart", self.subset, run)
            generated = surrogate.generate(test, seed, self.study.evaluation.batch)
            seen.append(observe(generated, test.detector))
            if run == 0:
                first = generated
        _save_observed(found, seen, responses=first)

    def _floors(self, part: str) -> list[NDArray[np.uint16]]:
        """What the floor answers to a part; nothing where there are no further simulations."""
        test, reserved, _ = self.particle_parts[part]
        if reserved is None:
            return []
        runs = min(_GENERATIONS, self.study.evaluation.runs)
        return [*matched_runs(reserved, test, runs, self.study.seed).generations]

    @cached_property
    def seen_and_new(self) -> dict[str, dict[str, dict[int, Observed]]]:
        """By part, model and training, what the metrics look at of the answers, and of the floor's."""
        found: dict[str, dict[str, dict[int, Observed]]] = {}
        for part in self.particle_parts:
            detector = self.particle_parts[part].test.detector
            floor = [observe(answer, detector) for answer in self._floors(part)]
            found[part] = {
                name: {seed: self.answers(name, part, seed).observed for seed in self.study.seeds}
                for name in trained_models(self.study)
            }
            if floor:
                stacked = Observed.stack(floor)
                found[part][comparing.FLOOR] = {1: stacked}
        return found

    def resampled_parts(self) -> dict[str, dict[str, Resampled]]:
        """Metrics of all models and the floor by part, also on resampled particles."""
        return {
            part: {
                # of each part other draws, since its particles are others
                name: resample(self.particle_parts[part].test, trainings, _DRAWS, number)
                for name, trainings in models.items()
            }
            for number, (part, models) in enumerate(self.seen_and_new.items())
        }

    def errors_by_distance(self) -> pd.DataFrame:
        """Errors by the distance to what was learned from, all trainings together; see
        :func:`~zdc_nb.evaluation.new_particles.errors_by_distance`.

        No rows where no test particle is simulated twice.
        """
        parts = {name: part for name, part in self.particle_parts.items() if has_repeats(part.test)}
        errors = {
            name: {
                model: errors_by_particle(part.test, _together([*trainings.values()]))
                for model, trainings in self.seen_and_new[name].items()
            }
            for name, part in parts.items()
        }
        distance = np.empty(0)
        if "new" in parts:
            distance = nearest_particle(self.train_events, parts["new"].test)
        return comparing.errors_by_distance(errors, distance)

    def memorisation(self) -> tuple[str, pd.DataFrame]:
        """Part, and distances of its responses to those that were learned from.

        Of the particles seen in training, if there are any. Beside the models stand the floor, where
        it is not drawn from training, and ``copied``, what a generator would give that answers with
        training responses to the same particle; see
        :func:`~zdc_nb.evaluation.new_particles.memorisation`.
        """
        part = next(iter(self.particle_parts))
        test, reserved, _ = self.particle_parts[part]
        train, seed = self.train_events, self.study.seed
        answers = {
            name: self.answers(name, part).responses() for name in trained_models(self.study)
        }
        if reserved is not None and reserved is not train:
            answers[comparing.FLOOR] = self._floors(part)[0]
        if np.isin(test.particle, train.particle).all():
            answers[comparing.COPIED] = next(matched_runs(train, test, 1, seed).generations)
        return part, comparing.memorisation(train, test, answers, seed)

    # --- what is shown ---

    def figure(self, figure: Figure, name: str, text: str) -> Image:
        """Save a figure as ``figures/<name>-<subset>-<setup>.png``, and show that very picture.

        ``text`` says in a sentence or two what it shows, against what, and what is good.
        """
        stem = "-".join((name, *self.stage.suffixes))
        return save_figure(figure, self.study.reports / "figures" / f"{stem}.png", text)

    def table(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Save a table as ``tables/<name>-<subset>-<setup>.csv``; returns it."""
        stem = "-".join((name, *self.stage.suffixes))
        write_csv(table, self.study.reports / "tables" / f"{stem}.csv")
        return table

    def finish(self, **facts: JsonValue) -> None:
        """Close the stage's record, with what it has to tell."""
        if self._record is not None:
            self._record.finish(**facts)


def _with_row(
    table: pd.DataFrame, subset: str, model: str, metric: str, value: float
) -> pd.DataFrame:
    """Tidy metrics and one more, which is the same in all runs."""
    row = pd.DataFrame([(subset, model, metric, 0, value)], columns=table.columns)
    return pd.concat([table, row], ignore_index=True)


def _together(trainings: Sequence[Observed]) -> Observed:
    """The generations of several trainings, one after the other."""
    return Observed(*(np.concatenate(parts) for parts in zip(*trainings, strict=True)))


def _save_observed(artefact: Artefact, seen: Sequence[Observed], **more: Any) -> None:
    """Keep what the metrics look at of several generations, and what else is given."""
    channels, centre, radius = Observed.stack(seen)
    with artefact.write() as temporary:
        np.savez_compressed(
            temporary, channels=channels.astype(np.uint16), centre=centre, radius=radius, **more
        )


@contextmanager
def _arrays(artefact: Artefact) -> Iterator[NpzFile]:
    """The arrays of an artefact, once that is known to be whole."""
    # numpy itself leaves a broken file open
    with artefact.check().open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        yield file


def _curves(model: Artefact) -> str:
    """Under which name the losses and metrics of a model are logged."""
    kind = kind_of(model.model)
    if kind == "student":
        return f"{kind}/{model.subset}/{model.stem}"
    return f"{kind}/{model.subset}" + (f"/seed{model.seed}" if model.seed != 1 else "")


# --- What the notebook around it does ------------------------------------------------------------


def check_parameters(known: set[str]) -> None:
    """In a notebook, show what the user can mend in one line, and refuse unknown parameters.

    Raises :class:`ParameterError` naming what papermill has passed and is not among ``known``.
    """
    _show_errors_briefly(None)
    _refuse_unknown(_injected(), known)


def _injected() -> list[str]:
    """Names that papermill has set in the notebook, as far as one runs."""
    shell = get_ipython()
    cells = [] if shell is None else shell.user_ns.get("In", [])
    # papermill begins its cell with this line
    ours = [cell for cell in cells if cell.startswith("# Parameters\n")]
    tree = ast.parse(ours[-1]) if ours else ast.Module([], [])
    return [ast.unparse(node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)]


def _refuse_unknown(names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = (
                f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(known))}"
            )
            raise ParameterError(f"{name}: this notebook has no such parameter{hint}")


def _show_errors_briefly(log: Path | None) -> None:
    """In a notebook, show of an error that the user can mend its last line alone.

    The whole traceback goes to ``log``; ``%tb`` shows it, too.
    """
    shell = get_ipython()
    if shell is None:
        return

    def show(shell: Any, kind: type, error: BaseException, trace: Any, **_: object) -> list[str]:
        lines = [f"{kind.__name__}: {error}"]
        if log is not None and not isinstance(error, OSError):
            write_text("".join(traceback.format_exception(kind, error, trace)), log)
        shell._showtraceback(kind, error, lines)
        return lines

    shell.set_custom_exc((UserError, TrainingInterrupted), show)  # type: ignore[no-untyped-call]
