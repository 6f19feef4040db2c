"""Training: the teacher by maximum likelihood, the student by distillation."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from zdc_nb.detector import channel_masks, diversity_weights
from zdc_nb.events import Events
from zdc_nb.flows import Flow, Student, Teacher, start_from_marginals, start_from_teacher
from zdc_nb.params import (
    FlowParams,
    PreprocessingParams,
    Setup,
    StudentParams,
    Study,
    Subset,
    TeacherParams,
    derive_seed,
)
from zdc_nb.preprocessing import DIM, ConditionScaler, decode_responses, encode_responses
from zdc_nb.storage import write_atomically

__all__ = [
    "DISTILLATION_TERMS",
    "DivergenceError",
    "Surrogate",
    "channel_fractions",
    "choose_device",
    "combined_loss",
    "distil_student",
    "distillation_step",
    "distillation_terms",
    "likelihood_step",
    "load_surrogate",
    "read_made_with",
    "save_surrogate",
    "train_teacher",
]

DISTILLATION_TERMS = (
    "end_data",
    "blocks_data",
    "made_data",
    "end_latent",
    "blocks_latent",
    "made_latent",
    "channel",
)
"""Terms of the distillation loss: mean squared differences between the ends of the data and the
latent loop, the outputs of every block in between, and the MADE outputs; and the channel loss."""


class DivergenceError(ArithmeticError):
    """A training produced a number that is not finite."""


def choose_device(name: str) -> torch.device:
    """The device of ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device: cuda was asked for, but torch finds no CUDA device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@dataclass(frozen=True)
class Surrogate:
    """A trained flow with all that turns particles into responses.

    Attributes
    ----------
    flow
        teacher or student.
    architecture
        the parameters that ``flow`` was built with.
    scaler, preprocessing
        how conditions were scaled and responses were encoded.
    """

    flow: Teacher | Student
    architecture: FlowParams
    scaler: ConditionScaler
    preprocessing: PreprocessingParams

    def conditions(self, events: Events) -> Tensor:
        """(N, C) standardised conditions of ``events`` on the flow's device."""
        return self.scaler(events, self.preprocessing).to(self.flow.device)

    def with_engine(self, engine: Literal["fused", "reference"]) -> Surrogate:
        """A copy that computes the same numbers the other way, see :class:`FlowParams`."""
        architecture = self.architecture.model_copy(update={"engine": engine})
        flow = type(self.flow)(self.flow.dim, self.flow.context, architecture, seed=0)
        flow.load_state_dict(self.flow.state_dict())
        flow = flow.to(self.flow.device).train(self.flow.training)
        return replace(self, flow=flow, architecture=architecture)

    def generate(
        self, events: Events, seed: int, batch: int, progress: bool = False
    ) -> NDArray[np.uint16]:
        """(N, 44, 44) responses, one for the particle and photon sum of each event.

        The same seed, batch size and device give the same responses.

        Raises
        ------
        DivergenceError
            where a sample is not finite.
        """
        self.flow.eval()
        generator = torch.Generator(self.flow.device).manual_seed(seed)
        conditions = self.conditions(events)
        photon_sum = events.photon_sum
        parts = []
        starts = range(0, len(events), batch)
        # a bar is for those who wait: not for what is over at once
        bar = tqdm(starts, "generate", file=sys.stdout, disable=not progress, delay=10)
        for start in bar:
            here = slice(start, start + batch)
            x = self.flow.sample(conditions[here], generator)
            if not torch.isfinite(x).all():
                raise DivergenceError(
                    f"generate: a sample from number {start} on is not finite; "
                    "was the flow trained to the end?"
                )
            parts.append(decode_responses(x, self.preprocessing, photon_sum[here]))
        return np.concatenate(parts)


# --- Checkpoints --------------------------------------------------------------------------------


def save_surrogate(surrogate: Surrogate, path: Path, made_with: object = None) -> None:
    """Write a checkpoint (safetensors): weights, scaler and the parameters to rebuild it.

    ``made_with`` is anything that JSON can hold; :func:`read_made_with` gives it back.
    """
    flow = surrogate.flow
    tensors = {f"flow.{name}": value.contiguous() for name, value in flow.state_dict().items()}
    tensors["scaler.mean"] = torch.from_numpy(surrogate.scaler.mean)
    tensors["scaler.std"] = torch.from_numpy(surrogate.scaler.std)
    description = {
        "kind": type(flow).__name__.lower(),
        "dim": flow.dim,
        "context": flow.context,
        "flow": surrogate.architecture.model_dump(),
        "preprocessing": surrogate.preprocessing.model_dump(),
    }
    with write_atomically(path) as temporary:
        metadata = {"description": json.dumps(description), "made_with": json.dumps(made_with)}
        save_file(tensors, temporary, metadata)


def read_made_with(path: Path) -> Any:
    """What a checkpoint was saved with, without reading its weights; ``ValueError`` as below."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["made_with"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint of this project ({error})") from error


def load_surrogate(path: Path, device: torch.device) -> Surrogate:
    """Read a checkpoint of :func:`save_surrogate`; ``ValueError`` names a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["description"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kinds: dict[str, type[Teacher | Student]] = {"teacher": Teacher, "student": Student}
        architecture = FlowParams.model_validate(description["flow"])
        # the permutations are among the tensors: any seed will do
        flow = kinds[description["kind"]](
            description["dim"], description["context"], architecture, seed=0
        )
        weights = {k.removeprefix("flow."): v for k, v in tensors.items() if k.startswith("flow.")}
        flow.load_state_dict(weights)
        scaler = ConditionScaler(tensors["scaler.mean"].numpy(), tensors["scaler.std"].numpy())
        preprocessing = PreprocessingParams.model_validate(description["preprocessing"])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: not a checkpoint of this project ({error})") from error
    # frozen, so that what is rounded of its weights is rounded once
    frozen = flow.to(device).eval().requires_grad_(False)
    return Surrogate(frozen, architecture, scaler, preprocessing)


# --- The loop that both share -------------------------------------------------------------------


@dataclass
class _History:
    rows: list[dict[str, object]] = field(default_factory=list)

    def add(self, epoch: int, step: int, split: str, terms: dict[str, float]) -> None:
        self.rows += [
            {"epoch": epoch, "step": step, "split": split, "term": term, "value": value}
            for term, value in terms.items()
        ]

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def _learning_rate(
    params: TeacherParams | StudentParams, epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """The factor of the learning rate at each step."""
    total = epochs * steps_per_epoch
    warm_up = max(1, min(50, total // 10))

    def cosine(step: int) -> float:
        ramp = min(1.0, (step + 1) / warm_up)
        return ramp * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

    def halve(step: int) -> float:
        return float(0.5 ** sum(step >= epoch * steps_per_epoch for epoch in params.halve_after))

    return cosine if params.schedule == "cosine" else halve


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    yield from torch.randperm(n, generator=generator).split(size)


def _finite(terms: dict[str, Tensor], what: str, epoch: int, step: int) -> dict[str, float]:
    values = {name: float(term.detach()) for name, term in terms.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise DivergenceError(
                f"{what}: the term {name!r} became {value} at step {step} (epoch {epoch}); a lower "
                "learning_rate or gradient_clip may help"
            )
    return values


def _fit(
    flow: Flow,
    params: TeacherParams | StudentParams,
    epochs: int,
    n: int,
    what: str,
    seed: int,
    loss: Callable[[Tensor, torch.Generator], dict[str, Tensor]],
    validate: Callable[[], dict[str, Tensor]],
    progress: bool,
) -> pd.DataFrame:
    """Minimise ``loss(indices, generator)["loss"]``; keep the epoch of the best validation loss."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(flow.parameters(), lr=params.learning_rate, fused=True)
    steps_per_epoch = math.ceil(n / params.batch)
    scheduler = LambdaLR(optimizer, _learning_rate(params, epochs, steps_per_epoch))
    history = _History()
    best, best_state = math.inf, {}
    step = 0
    # on stdout, since a page shows stderr as a warning
    steps = epochs * steps_per_epoch
    bar = tqdm(total=steps, desc=what, file=sys.stdout, disable=not progress, mininterval=5)
    for epoch in range(1, epochs + 1):
        flow.train()
        sums: dict[str, float] = {}
        for indices in _batches(n, params.batch, generator):
            step += 1
            terms = loss(indices, generator)
            values = _finite(terms, what, epoch, step)
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            gradients = [p.grad for p in flow.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            _finite({"norm of the gradient": norm}, what, epoch, step)
            if norm > params.gradient_clip:
                torch.nn.utils.clip_grads_with_norm_(flow.parameters(), params.gradient_clip, norm)
            optimizer.step()
            scheduler.step()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value * len(indices) / n
            bar.update()
        flow.eval()
        with torch.no_grad():
            validation = _finite(validate(), what, epoch, step)
        history.add(epoch, step, "train", sums)
        history.add(epoch, step, "validation", validation)
        bar.set_postfix(train=f"{sums['loss']:.4f}", validation=f"{validation['loss']:.4f}")
        if validation["loss"] < best:
            best = validation["loss"]
            best_state = {name: value.clone() for name, value in flow.state_dict().items()}
    bar.close()
    flow.load_state_dict(best_state)
    return history.frame()


# --- Teacher ------------------------------------------------------------------------------------


def train_teacher(
    train: Events, validation: Events, study: Study, subset: Subset, progress: bool = False
) -> tuple[Surrogate, pd.DataFrame]:
    """Train a teacher by maximum likelihood.

    Noise is drawn anew in every epoch; the validation noise is always the same. The term
    ``loss`` of the history is the negative log-likelihood in nats per fibre.

    Returns
    -------
    surrogate, history
        the best validation epoch, and epoch, step, split, term, value.

    Raises
    ------
    DivergenceError
        naming step and term.
    """
    device = choose_device(study.device)
    scaler = ConditionScaler.fit(train, study.preprocessing)
    seed = derive_seed(study.seed, "teacher", subset)
    torch.manual_seed(seed)
    flow = Teacher(DIM, len(scaler.mean), study.flow, derive_seed(study.seed, "orders", subset))
    data = _Encoded(train, scaler, study.preprocessing, device)
    if study.flow.initialise == "data":
        generator = torch.Generator().manual_seed(seed)
        some = torch.randperm(len(train), generator=generator)[:4096]
        x, _ = data(some, generator)
        start_from_marginals(flow, x.cpu(), study.flow.bound)
    flow.to(device)
    held_out = _Encoded(validation, scaler, study.preprocessing, device)

    def nll(data: _Encoded, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        x, condition = data(indices, generator)
        return {"loss": -flow.log_prob(x, condition).mean() / DIM}

    history = _fit(
        flow,
        study.teacher,
        study.teacher.epochs_for(subset),
        len(train),
        f"teacher {subset}",
        seed,
        lambda indices, generator: nll(data, indices, generator),
        lambda: _mean_over(held_out, study.teacher.batch, seed, nll),
        progress,
    )
    return Surrogate(flow, study.flow, scaler, study.preprocessing), history


class _Encoded:
    """Events as batches of (x, condition), encoded with fresh noise at every call."""

    def __init__(
        self,
        events: Events,
        scaler: ConditionScaler,
        preprocessing: PreprocessingParams,
        device: torch.device,
    ) -> None:
        self.light = events.light
        self.conditions = scaler(events, preprocessing).to(device)
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.conditions)

    def __call__(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        counts = torch.from_numpy(self.light[indices.numpy()].toarray().astype(np.int32))
        x, _ = encode_responses(counts, self.preprocessing, generator)
        return x.to(self.conditions.device), self.conditions[indices]


def _mean_over(
    data: _Encoded,
    batch: int,
    seed: int,
    terms: Callable[[_Encoded, Tensor, torch.Generator], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Terms averaged over ``data``, with the same noise at every call."""
    generator = torch.Generator().manual_seed(seed + 1)
    sums: dict[str, Tensor] = {}
    for indices in torch.arange(len(data)).split(batch):
        for name, value in terms(data, indices, generator).items():
            sums[name] = sums.get(name, torch.zeros(())) + value.cpu() * len(indices) / len(data)
    return sums


# --- Student ------------------------------------------------------------------------------------


def channel_fractions(x: Tensor) -> Tensor:
    """(N, 5) shares of the light in the five channels, from flow space x (N, D) (for eq. 2)."""
    light = torch.sigmoid(x)
    masks = torch.from_numpy(channel_masks().reshape(5, -1)).to(x)
    return (light / light.sum(1, keepdim=True)) @ masks.T


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """(N,) squared differences of (D, N), averaged over dimensions."""
    return (a - b).square().mean(0)


def _average(each: list[Tensor], n: int) -> Tensor:
    """(N,) mean over the blocks; a flow of one block has nothing between its ends."""
    return torch.stack(each).mean(0) if each else torch.zeros(n)


def distillation_terms(
    teacher: Teacher, student: Student, x: Tensor, z: Tensor, condition: Tensor
) -> dict[str, Tensor]:
    """The terms of :data:`DISTILLATION_TERMS` for each sample, (N,) each.

    Parameters
    ----------
    x, z
        (N, D) data and noise: the data loop x -(teacher)-> z -(student)-> x' and the latent loop
        z -(student)-> x' -(teacher)-> z'.
    condition
        (N, C), of both loops.
    """
    n = len(x)
    with torch.no_grad():
        target = teacher.passage(x, condition, keep=True)
    # both of the student's passes at once: what follows of the condition alone is needed once
    both = student.passage(torch.cat([target.latent, z]), condition, keep=True, match=(target, 0))
    copy = [end[:, :n] for end in both.ends]
    drawn = [end[:, n:] for end in both.ends]
    back = teacher.passage(drawn[0].T, condition, match=(both, n))
    channels = (channel_fractions(copy[0].T) - channel_fractions(x)).square().sum(1)

    def between(a: list[Tensor], b: list[Tensor]) -> Tensor:
        pairs = zip(a[1:-1], b[1:-1], strict=True)
        return _average([_difference(p, q) for p, q in pairs], n).to(x)

    return {
        "end_data": _difference(copy[0], target.ends[0]),
        "blocks_data": between(copy, target.ends),
        "made_data": _average(both.distances, n),
        "end_latent": _difference(back.ends[-1], drawn[-1]),
        "blocks_latent": between(back.ends, drawn),
        "made_latent": _average(back.distances, n),
        "channel": channels,
    }


def combined_loss(terms: dict[str, Tensor], weights: Tensor, channel_weight: float) -> Tensor:
    """What a setup minimises: the mean over samples of weight times the sum of the terms.

    Parameters
    ----------
    terms
        those of :func:`distillation_terms`, (N,) each.
    weights
        (N,) of eq. 3, or ones.
    channel_weight
        factor of the channel term (eq. 2); 0 leaves it out.
    """
    squares = torch.stack([term for name, term in terms.items() if name != "channel"]).sum(0)
    return (weights * (squares + channel_weight * terms["channel"])).mean()


def distil_student(
    teacher: Surrogate,
    train: Events,
    validation: Events,
    study: Study,
    subset: Subset,
    setup: Setup,
    progress: bool = False,
) -> tuple[Surrogate, pd.DataFrame]:
    """Distil a frozen teacher into a student.

    The loss is the sum of the six squared differences, with ``+ch`` also ``channel_weight`` times
    the channel loss (eq. 2). With ``+div`` each sample's whole loss is multiplied by the weight
    of its particle (eq. 3). The latent loop takes the conditions of the same batch. All terms are logged in every setup, unweighted, so that setups can be compared;
    ``loss`` is what was minimised. The validation loss is not weighted by diversity.

    The teacher is frozen in place. Returns and raises as :func:`train_teacher`.
    """
    if not isinstance(teacher.flow, Teacher):
        raise TypeError("distil_student: expected a teacher to distil")
    device = choose_device(study.device)
    seed = derive_seed(study.seed, "student", subset)  # the same draws in every setup
    torch.manual_seed(seed)
    master = teacher.flow.to(device).eval().requires_grad_(False)
    student = Student(DIM, master.context, study.flow, seed=0)
    start_from_teacher(student, master, everything=study.flow.initialise == "data")
    student.to(device)
    params = study.student
    channel_weight = params.channel_weight if "ch" in setup.split("+") else 0.0
    weights = torch.ones(len(train))
    if "div" in setup.split("+"):
        weights = torch.from_numpy(
            diversity_weights(
                train.light, train.particle, params.diversity_epsilon, params.diversity_mean_one
            ).astype(np.float32)
        )
    data = _Encoded(train, teacher.scaler, study.preprocessing, device)
    held_out = _Encoded(validation, teacher.scaler, study.preprocessing, device)

    def terms_of(
        data: _Encoded, indices: Tensor, generator: torch.Generator, weights: Tensor
    ) -> dict[str, Tensor]:
        x, condition = data(indices, generator)
        z = torch.randn(x.shape, generator=generator).to(device)
        terms = distillation_terms(master, student, x, z, condition)
        loss = combined_loss(terms, weights[indices].to(device), channel_weight)
        return {"loss": loss, **{name: term.mean() for name, term in terms.items()}}

    even = torch.ones(len(validation))
    history = _fit(
        student,
        params,
        params.epochs_for(subset),
        len(train),
        f"student {subset} {setup}",
        seed,
        lambda indices, generator: terms_of(data, indices, generator, weights),
        lambda: _mean_over(held_out, params.batch, seed, lambda d, i, g: terms_of(d, i, g, even)),
        progress,
    )
    return Surrogate(student, study.flow, teacher.scaler, study.preprocessing), history


# --- Single steps, to be timed ------------------------------------------------------------------


def likelihood_step(surrogate: Surrogate, events: Events, seed: int) -> Callable[[int], Tensor]:
    """A step of a teacher's training on a batch of a given size; returns the loss.

    Responses are taken from the beginning of ``events``, again and again. The weights of
    ``surrogate`` change.
    """
    teacher = surrogate.flow
    if not isinstance(teacher, Teacher):
        raise TypeError("likelihood_step: expected a teacher")
    return _step(surrogate, events, seed, lambda x, _, c: -teacher.log_prob(x, c).mean() / DIM)


def distillation_step(
    teacher: Surrogate, student: Surrogate, events: Events, seed: int
) -> Callable[[int], Tensor]:
    """As :func:`likelihood_step`, of a student's training in the setup ``bs``."""
    master, flow = teacher.flow, student.flow
    if not (isinstance(master, Teacher) and isinstance(flow, Student)):
        raise TypeError("distillation_step: expected a teacher and a student")
    master.eval().requires_grad_(False)

    def loss(x: Tensor, z: Tensor, condition: Tensor) -> Tensor:
        terms = distillation_terms(master, flow, x, z, condition)
        return combined_loss(terms, torch.ones(len(x), device=x.device), 0.0)

    return _step(student, events, seed, loss)


def _step(
    surrogate: Surrogate,
    events: Events,
    seed: int,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[[int], Tensor]:
    flow = surrogate.flow.train()
    data = _Encoded(events, surrogate.scaler, surrogate.preprocessing, flow.device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-6, fused=True)

    def step(batch: int) -> Tensor:
        x, condition = data(torch.arange(batch) % len(data), generator)
        z = torch.randn(x.shape, generator=generator).to(x)
        value = loss(x, z, condition)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    return step
