"""The parameters of a study: every number that a user may want to change.

A study is one YAML file (``params/*.yaml``) and its name is the file's stem. It is read with
:func:`load_study`, which refuses what it does not know by name. The classes below document each
key; none has a default, so that a study file shows everything that it runs with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from zdc_nb.params.detector import DetectorParams, load_detector_params
from zdc_nb.params.files import (
    Fraction,
    Name,
    ParameterError,
    Positive,
    PositiveFloat,
    Section,
    complaint,
    load_parameters,
    project_root,
)

__all__ = [
    "DRAWN",
    "SETUPS",
    "SUBSETS",
    "CollisionParams",
    "DataParams",
    "EvaluationParams",
    "FlowParams",
    "PathParams",
    "PhotonSumParams",
    "PreprocessingParams",
    "Setup",
    "SignalParams",
    "Species",
    "SpeedParams",
    "SplittingFlowParams",
    "SplittingParams",
    "StudentParams",
    "Study",
    "Subset",
    "TeacherParams",
    "Variant",
    "load_study",
    "order_subsets",
]

Species = str
"""A name of :data:`zdc_nb.params.detector.PDG` that the study's detector has as a data set."""

Subset = str
"""A data set: a species, or ``all``."""

Setup = Literal[
    "bs", "bs+ch", "bs+div", "bs+ch+div", "bs+ctr", "bs+ctr+div", "bs+ch+ctr", "bs+ch+ctr+div"
]

SUBSETS: tuple[Subset, ...] = ("n", "lambda", "k0s", "sigma+", "all")
"""The five data sets of the paper, in the order of its Table 1."""

SETUPS: tuple[Setup, ...] = (
    *("bs", "bs+div", "bs+ch", "bs+ch+div"),
    *("bs+ctr", "bs+ctr+div", "bs+ch+ctr", "bs+ch+ctr+div"),
)
"""The distillation setups: the four of the paper in the order of its Table 1, then the same with the
centre loss."""

DRAWN = "+N"
"""How the name of a model ends whose photon sum is drawn, too, instead of given."""


def order_subsets(subsets: Iterable[Subset]) -> list[Subset]:
    """Each data set once: the paper's in its order, then others as they come, ``all`` last."""
    found = list(dict.fromkeys(subsets))
    known = [subset for subset in SUBSETS[:-1] if subset in found]
    others = [subset for subset in found if subset not in SUBSETS]
    return [*known, *others, *(["all"] if "all" in found else [])]


class PathParams(Section):
    """Where results go; relative paths start at the project's root."""

    artifacts: Name = Field(description="data, checkpoints, samples (not kept in git)")
    reports: Name = Field(description="HTML, executed notebooks, tables, figures")


class DataParams(Section):
    """Which responses the study uses."""

    file: Name | Annotated[list[Name], Field(min_length=1)] | None = Field(
        description="null: the open simulation; or files of one format, or patterns of names such "
        "as run*/data.root: ROOT, pairs of npz, pairs of text from O2"
    )
    strict: bool = Field(
        description="of a file: refuse one with a bad row, or (false) drop bad rows and count them"
    )
    responses: Positive = Field(description="responses that the open simulation keeps")
    repeats: Positive = Field(
        description="of the open simulation: how often each particle is simulated; by_particle: "
        "each that is learned from"
    )
    test_repeats: Positive | None = Field(
        description="by_particle: how often the open simulation simulates each test particle; "
        "by_response: null"
    )
    abundance: dict[Species, PositiveFloat] = Field(
        description="the open simulation draws particles of a species so many times as often as "
        "it would; {}: none"
    )
    min_photons: Positive = Field(description="responses with fewer photons are dropped")
    max_responses: dict[Subset, Positive] = Field(
        description="cap a subset, by whole particles; a subset left out is used whole; "
        "by_particle: its training and validation parts"
    )
    max_test_responses: dict[Subset, Positive] = Field(
        description="by_particle: cap a subset's test part, by whole particles; by_response: {}"
    )
    split: Literal["by_particle", "by_response"] = Field(
        description="by_particle: test particles are none that was learned from; by_response: as "
        "published, repeats of a particle fall in all parts"
    )
    fractions: tuple[Fraction, Fraction, Fraction] = Field(
        strict=False, description="training, validation and test part of the responses"
    )
    reserved: Fraction | None = Field(
        description="by_particle: of the responses to test particles, kept aside for the floors; "
        "by_response: null, the floors are drawn from the training part"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DataParams:
        if abs(sum(self.fractions) - 1) > 1e-9:
            raise ValueError(
                f"fractions: expected numbers that sum to 1, got {list(self.fractions)}"
            )
        by_particle = self.split == "by_particle"
        for key, value in (("test_repeats", self.test_repeats), ("reserved", self.reserved)):
            needed = by_particle and not (key == "test_repeats" and self.file is not None)
            if needed and value is None:
                raise ValueError(f"{key}: expected a number, the split is by_particle")
            if not by_particle and value is not None:
                raise ValueError(f"{key}: expected null, the split by_response does not read it")
        if not by_particle and self.max_test_responses:
            raise ValueError(
                "max_test_responses: expected {}, the split by_response does not read it"
            )
        return self


class PreprocessingParams(Section):
    """From photon counts to flow space and back."""

    coordinates: Literal["fibres", "splits"] = Field(
        description="of teacher and student: fibres, as published, or the logits of how photons "
        "split over the halves of ever smaller boxes"
    )
    noise: Fraction | None = Field(
        description="fibres: dequantisation, counts + noise * U[0, 1); splits: null"
    )
    alpha: Annotated[float, Field(gt=0, lt=0.5)] | None = Field(
        description="fibres: logit(alpha + (1 - 2 alpha) x) keeps 0 and 1 finite; splits: null"
    )
    conditions: Literal["paper", "impact"] = Field(
        description="paper: nine features and the photon sum; impact: and the impact point"
    )
    impact_grid: Annotated[int, Field(gt=1)] = Field(
        description="impact: radial basis functions along each side of the face"
    )
    denoise: Literal["floor", "floor-rescale", "shift-floor", "shift-floor-rescale"] | None = Field(
        description="fibres: how noise is removed from a sample; splits: null"
    )

    @model_validator(mode="after")
    def _of_the_coordinates(self) -> PreprocessingParams:
        for key in ("noise", "alpha", "denoise"):
            if (getattr(self, key) is None) != (self.coordinates == "splits"):
                expected = "null" if self.coordinates == "splits" else "a value"
                raise ValueError(
                    f"{key}: expected {expected}, the coordinates are {self.coordinates}"
                )
        return self


class FlowParams(Section):
    """The architecture that teacher and student share."""

    transforms: Positive = Field(description="autoregressive transforms")
    bins: Annotated[int, Field(gt=1)] = Field(description="bins of each rational-quadratic spline")
    bound: PositiveFloat = Field(
        description="splines act on [-bound, bound]; at least log((1 - alpha) / alpha)"
    )
    hidden: Positive = Field(description="width of every hidden layer of a MADE")
    hidden_layers: Annotated[int, Field(ge=0)] = Field(description="hidden layers after the first")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(description="after every hidden layer")
    context_hidden: list[Positive] = Field(
        description="hidden widths of the context network; [] turns it off"
    )
    initialise: Literal["random", "data"] = Field(
        description="of the teacher; data: it starts from independent fibres"
    )
    engine: Literal["fused", "plain"] = Field(
        description="fused: triangular products and compiled splines; plain: the same numbers "
        "in plain torch, slow, for comparison"
    )
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        description="of products and hidden units in the fused engine's fast passes and their "
        "gradients; auto: bfloat16 where the machine has instructions for it; weights, optimiser, "
        "splines and inversions are float32 always"
    )


class SplittingFlowParams(Section):
    """The architecture of the splitting flow."""

    window: Annotated[int, Field(gt=0)] = Field(
        description="odd: boxes along each side of what the network sees around a node"
    )
    bins: Annotated[int, Field(gt=1)] = Field(description="bins of each rational-quadratic spline")
    bound: PositiveFloat = Field(description="splines act on [-bound, bound], in widths of a cut")
    hidden: Positive = Field(description="width of the network that all nodes share")
    hidden_layers: Annotated[int, Field(ge=0)] = Field(description="residual layers of it")
    context_hidden: list[Positive] = Field(
        min_length=1, description="hidden widths of the network that reads the particle"
    )
    coarse_nodes: Positive = Field(
        description="so many nodes, from the top, get the particle's own way to their curves"
    )

    @model_validator(mode="after")
    def _window_has_a_middle(self) -> SplittingFlowParams:
        if self.window % 2 == 0:
            raise ValueError(f"window: expected an odd number, got {self.window}")
        return self


class _TrainingParams(Section):
    epochs: Positive | dict[Subset, Positive] = Field(description="for all, or by subset")
    epoch_responses: Positive | None = Field(
        description="training responses of an epoch, drawn anew for each; null: all of them"
    )
    batch: Positive
    learning_rate: PositiveFloat
    schedule: Literal["halve", "cosine"] = Field(
        description="halve: after the epochs in halve_after; cosine: short warm-up, then to zero"
    )
    halve_after: list[Positive]
    gradient_clip: PositiveFloat = Field(description="largest norm of the whole gradient")

    @model_validator(mode="after")
    def _halve_after_is_read(self) -> Self:
        if self.halve_after and self.schedule != "halve":
            raise ValueError(
                f"halve_after: expected [], the schedule {self.schedule} does not read it"
            )
        return self

    def epochs_for(self, subset: Subset) -> int:
        """Number of epochs for ``subset``."""
        if isinstance(self.epochs, int):
            return self.epochs
        if subset not in self.epochs:
            raise ParameterError(f"epochs: no entry for the subset {subset!r}")
        return self.epochs[subset]


class TeacherParams(_TrainingParams):
    """Maximum-likelihood training of the MAF teacher."""


class StudentParams(_TrainingParams):
    """Distillation into the IAF student."""

    start: Literal["scratch", "teacher"] = Field(
        description="scratch: from random weights, as published; teacher: from its output layers"
    )
    channel_weight: PositiveFloat = Field(description="weight of the channel loss (eq. 2)")
    channel_unit: Literal["share", "photons"] = Field(
        description="of the channels in the channel loss: shares of the light, or photons"
    )
    diversity_epsilon: PositiveFloat = Field(description="epsilon of eq. 3")
    diversity_mean_one: bool = Field(description="rescale the weights of eq. 3 to mean 1")
    centre_weight: PositiveFloat | None = Field(
        description="weight of the centre loss; null where no setup has it"
    )
    centre_offset: Literal["given", "learned"] | None = Field(
        description="of the centre loss: given, the detector's alone; learned, and by how much "
        "training responses lie off it; null where no setup has it"
    )

    @model_validator(mode="after")
    def _centre_is_whole(self) -> StudentParams:
        if (self.centre_weight is None) != (self.centre_offset is None):
            expected = "null" if self.centre_weight is None else "given or learned"
            raise ValueError(
                f"centre_offset: expected {expected}, centre_weight is "
                f"{'null' if self.centre_weight is None else 'a number'}"
            )
        return self


class Variant(Section):
    """A setup trained once more with other values of the section ``student``."""

    setup: Setup = Field(description="whose terms of the loss it has")
    student: dict[str, Any] = Field(description="what differs from the section student")


class SplittingParams(_TrainingParams):
    """The splitting flow and its training by maximum likelihood."""

    flow: SplittingFlowParams
    fine_share: Annotated[float, Field(gt=0, le=1)] = Field(
        description="of the lit nodes beyond flow.coarse_nodes, the share that a step learns from, "
        "drawn anew for each; 1: all"
    )


class SignalParams(_TrainingParams):
    """Whether a particle sends light, learned from the responses that were dropped, too."""

    hidden: list[Positive] = Field(min_length=1, description="widths of the network's layers")


class PhotonSumParams(_TrainingParams):
    """How many photons a particle sends where it sends light, by maximum likelihood."""

    hidden: list[Positive] = Field(min_length=1, description="widths of the network's layers")
    components: Positive = Field(description="logistic distributions of the mixture")


class CollisionParams(Section):
    """Whole collisions, whose light is summed over their particles."""

    file: Name | None = Field(
        description="null: drawn from the open simulation; or a list of particles with a column event: "
        ".csv, .root or .npz"
    )
    events: Annotated[int, Field(ge=2)] = Field(
        description="how many; of a list those of the smallest numbers"
    )


class EvaluationParams(Section):
    """Metrics on the test split."""

    runs: Annotated[int, Field(ge=2)] = Field(description="generations of the test set")
    classifier_runs: Annotated[int, Field(ge=2)] = Field(
        description="of these, generations that a classifier is trained on"
    )
    batch: Positive = Field(description="samples generated at once")
    figure_particles: Positive = Field(description="particles in the figure of samples")


class SpeedParams(Section):
    """Timing of teacher and student sampling."""

    subset: Subset
    setup: Setup
    batches: list[Positive] = Field(min_length=1)
    runs: Positive = Field(description="timed runs of each; the median is reported")

    @model_validator(mode="after")
    def _batches_differ(self) -> SpeedParams:
        if len(set(self.batches)) != len(self.batches):
            raise ValueError(f"batches: expected each size once, got {self.batches}")
        return self


class Study(Section):
    """A whole study, as read from one YAML file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    seed: Annotated[int, Field(ge=0)]
    detector: Name = Field(description="a file of detectors/, by its name: zn")
    device: Literal["auto", "cpu", "cuda"]
    tracking: Literal["tensorboard", "wandb"] = Field(
        description="where losses and metrics are logged; wandb: Weights & Biases, offline "
        "where WANDB_MODE=offline is set"
    )
    checkpoint_seconds: PositiveFloat = Field(
        description="time between two checkpoints of a training, from which a rerun goes on"
    )
    paths: PathParams
    subsets: list[Subset] = Field(min_length=1)
    setups: list[Setup] = Field(min_length=1)
    variants: dict[Annotated[str, Field(pattern=r"^[a-z0-9][A-Za-z0-9+._]*$")], Variant] = Field(
        description="further students by name; {}: none"
    )
    seeds: list[Positive] = Field(
        min_length=1, description="trainings of each model, on the same data; 1: the first"
    )
    data: DataParams
    preprocessing: PreprocessingParams
    flow: FlowParams
    teacher: TeacherParams
    student: StudentParams
    splitting: SplittingParams | None = Field(description="null: no splitting flow")
    photon_sum: PhotonSumParams | None = Field(
        description="null: every model is told the photon sum, there is no generator"
    )
    signal: SignalParams | None = Field(
        description="null: a generator takes every particle to send light"
    )
    collisions: CollisionParams | None = Field(
        description="null, or without photon_sum: generated collisions are not looked at"
    )
    evaluation: EvaluationParams
    speed: SpeedParams

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        self._check_subsets()
        self._check_source()
        for key, values in (("subsets", self.subsets), ("setups", self.setups)):
            if len(set(values)) != len(values):
                raise ValueError(f"{key}: expected each name once, got {values}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected each number once, got {self.seeds}")
        for name in self.variants:
            self._check_variant(name)
        self._check_centre_loss()
        if self.speed.subset not in self.subsets:
            raise ValueError(f"speed.subset: {self.speed.subset!r} is not among the subsets")
        if self.speed.setup not in self.setups:
            raise ValueError(f"speed.setup: {self.speed.setup!r} is not among the setups")
        trainings: dict[str, _TrainingParams | None] = {
            "teacher": self.teacher,
            "student": self.student,
            "splitting": self.splitting,
            "photon_sum": self.photon_sum,
            "signal": self.signal,
        }
        for key, training in trainings.items():
            epochs = 1 if training is None else training.epochs
            missing = (
                [] if isinstance(epochs, int) else [s for s in self.subsets if s not in epochs]
            )
            if missing:
                raise ValueError(f"{key}.epochs: no entry for {', '.join(missing)}")
        if self.evaluation.classifier_runs > self.evaluation.runs:
            raise ValueError("evaluation.classifier_runs: expected at most evaluation.runs")
        if 1e-3 * self.flow.bins >= 1:
            raise ValueError("flow.bins: expected fewer than 1000 bins")
        # where a dark fibre lies in flow space; beyond the bound a spline is the identity, and
        # nothing would be learned about most fibres
        alpha = self.preprocessing.alpha
        darkest = 0.0 if alpha is None else math.log((1 - alpha) / alpha)
        if alpha is not None and self.flow.bound < darkest:
            raise ValueError(
                f"flow.bound: expected at least {darkest:.6g}, which is log((1 - alpha) / alpha) "
                f"with preprocessing.alpha = {alpha:g}, got {self.flow.bound:g}"
            )
        return self

    def _check_source(self) -> None:
        """Where there is no simulation of the detector, nothing asks for one."""
        if self.detector_params.simulation is not None:
            return
        if self.data.file is None:
            raise ValueError(
                f"data.file: expected files, the detector {self.detector} has no simulation"
            )
        if self.collisions is not None:
            raise ValueError(
                f"collisions: expected null, the detector {self.detector} has no simulation to "
                "compare with"
            )

    def _check_subsets(self) -> None:
        """Every data set that is named is one of the detector's."""
        species = self.detector_params.species
        everything = [*species, "all"]
        asked: list[tuple[str, Iterable[str], list[str]]] = [
            ("subsets", self.subsets, everything),
            ("data.abundance", self.data.abundance, species),
            ("data.max_responses", self.data.max_responses, everything),
            ("data.max_test_responses", self.data.max_test_responses, everything),
        ]
        for section in ("teacher", "student", "splitting", "photon_sum", "signal"):
            epochs = getattr(getattr(self, section), "epochs", 1)
            if isinstance(epochs, dict):
                asked.append((f"{section}.epochs", epochs, everything))
        for key, names, known in asked:
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"{key}: {name!r} is no data set of the detector {self.detector}; "
                        f"expected one of {', '.join(known)}"
                    )

    @property
    def detector_params(self) -> DetectorParams:
        """What the detector's file holds."""
        return load_detector_params(self.detector)

    def _check_variant(self, name: str) -> None:
        if name in (*SETUPS, "teacher", "splitting", "photon_sum", "signal", "baselines"):
            raise ValueError(f"variants: {name!r} is the name of a model already")
        if name.endswith(DRAWN):
            raise ValueError(f"variants: {name!r} ends in {DRAWN}, as a model whose sum is drawn")
        self._student_of_variant(name)

    def _check_centre_loss(self) -> None:
        """Who has the centre loss has its weight, and a weight is there for someone."""
        having = {name: "ctr" in self.student_of(name)[0].split("+") for name in self.students}
        for name in (name for name, has in having.items() if has):
            if self.student_of(name)[1].centre_weight is None:
                key = f"variants.{name}.student" if name in self.variants else "student"
                raise ValueError(
                    f"{key}.centre_weight: expected a number above 0, {name} has the centre loss"
                )
        if self.student.centre_weight is not None and not any(having.values()):
            raise ValueError("student.centre_weight: expected null, no setup has the centre loss")
        for name, variant in self.variants.items():
            if variant.student.get("centre_weight") is not None and not having[name]:
                raise ValueError(
                    f"variants.{name}.student.centre_weight: expected null, the setup "
                    f"{variant.setup} has no centre loss"
                )

    @property
    def artifacts(self) -> Path:
        """Folder of this study's data, checkpoints and samples."""
        return project_root() / self.paths.artifacts / self.name

    @property
    def reports(self) -> Path:
        """Folder of this study's reports."""
        return project_root() / self.paths.reports / self.name

    def check_subset(self, subset: str) -> Subset:
        """Return ``subset`` if the study has it; raise :class:`ParameterError` if not."""
        for known in self.subsets:
            if known == subset:
                return known
        raise ParameterError(
            f"subset: {subset!r} is not in study {self.name!r}; expected one of {self.subsets}"
        )

    @property
    def students(self) -> tuple[str, ...]:
        """Names of the setups and the variants: the students trained for each subset."""
        return (*self.setups, *self.variants)

    def check_student(self, name: str) -> str:
        """Return ``name`` if it is a setup or variant; raise :class:`ParameterError` if not."""
        if name in self.students:
            return name
        raise ParameterError(
            f"setup: {name!r} is not in study {self.name!r}; expected one of {[*self.students]}"
        )

    @property
    def trained_models(self) -> tuple[str, ...]:
        """``teacher``, all students and ``splitting``: the models trained for each subset."""
        return ("teacher", *self.students, *(() if self.splitting is None else ("splitting",)))

    @property
    def end_to_end_models(self) -> tuple[str, ...]:
        """Models that are also evaluated with the photon sum drawn, with the suffix :data:`DRAWN`.

        The student of ``speed`` and what a generator is made of; none without a photon-sum model.
        """
        chosen = dict.fromkeys((self.speed.setup, self.generator_model))
        return () if self.photon_sum is None else tuple(name + DRAWN for name in chosen)

    @property
    def generator_model(self) -> str:
        """The model that a generator is made of: the splitting flow, else the student of ``speed``."""
        return self.speed.setup if self.splitting is None else "splitting"

    def check_model(self, name: str) -> str:
        """Return ``name`` if it is a trained model; raise :class:`ParameterError` if not."""
        if name in self.trained_models:
            return name
        raise ParameterError(
            f"model: {name!r} is not in study {self.name!r}; expected one of "
            f"{[*self.trained_models]}"
        )

    def check_seed(self, seed: object) -> int:
        """Return ``seed`` as a number if the study has it; raise :class:`ParameterError` if not."""
        for known in self.seeds:
            if str(known) == str(seed):
                return known
        raise ParameterError(
            f"seed: {seed!r} is not in study {self.name!r}; expected one of {self.seeds}"
        )

    def student_of(self, name: str) -> tuple[Setup, StudentParams]:
        """The terms of the loss and the parameters of a setup or variant."""
        for known in self.setups:
            if known == name:
                return known, self.student
        self.check_student(name)
        return self.variants[name].setup, self._student_of_variant(name)

    def _student_of_variant(self, name: str) -> StudentParams:
        changed = self.variants[name].student
        try:
            return StudentParams.model_validate(self.student.model_dump() | changed)
        except ValidationError as error:
            raise ValueError(
                f"variants: {name}.student: "
                + "; ".join(complaint(StudentParams, changed, e) for e in error.errors())
            ) from None


def load_study(path: str | Path) -> Study:
    """Read and check a study file, see :func:`load_parameters`."""
    return load_parameters(path, Study, "study")
