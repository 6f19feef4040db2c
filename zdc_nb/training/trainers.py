"""Training: the teacher by maximum likelihood, the student by distillation."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from zdc_nb.data.events import Events
from zdc_nb.detector import Detector, diversity_weights
from zdc_nb.flows.maf_iaf import Flow, Student, Teacher, start_from_marginals, start_from_teacher
from zdc_nb.generator.encoding import ConditionScaler, encode_responses
from zdc_nb.generator.surrogate import DivergenceError, Surrogate
from zdc_nb.hardware import choose_device
from zdc_nb.params import (
    PreprocessingParams,
    Setup,
    StudentParams,
    Study,
    Subset,
    TeacherParams,
    derive_seed,
)
from zdc_nb.training.checkpoints import (
    Checkpoint,
    Progress,
    StopRequest,
    TrainingInterrupted,
)
from zdc_nb.training.tracking import Tracker

__all__ = [
    "DISTILLATION_TERMS",
    "channel_fractions",
    "combined_loss",
    "distil_student",
    "distillation_step",
    "distillation_terms",
    "likelihood_step",
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


# --- The loop that both share -------------------------------------------------------------------


def _learning_rate(
    params: TeacherParams | StudentParams, epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """The factor of the learning rate by the number of steps that are done."""
    total = epochs * steps_per_epoch
    warm_up = max(1, min(50, total // 10))

    def cosine(step: int) -> float:
        ramp = min(1.0, (step + 1) / warm_up)
        return ramp * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

    def halve(step: int) -> float:
        return float(0.5 ** sum(step >= epoch * steps_per_epoch for epoch in params.halve_after))

    return cosine if params.schedule == "cosine" else halve


class _Fit:
    """Minimises a loss over n responses and keeps the epoch of the best validation loss.

    Goes on from the checkpoint, if there is one that fits.
    """

    def __init__(
        self,
        flow: Flow,
        params: TeacherParams | StudentParams,
        epochs: int,
        n: int,
        what: str,
        seed: int,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.flow, self.params, self.n, self.what = flow, params, n, what
        self.checkpoint = checkpoint
        self.epochs, self.steps = epochs, epochs * math.ceil(n / params.batch)
        self.slower = _learning_rate(params, epochs, math.ceil(n / params.batch))
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(flow.parameters(), lr=params.learning_rate, fused=True)
        self.at, self.best = Progress(), dict[str, Tensor]()
        self.order = torch.randperm(n, generator=self.generator)
        self.stop = StopRequest()
        if checkpoint and (found := checkpoint.restore(flow, self.optimizer, self.generator)):
            self.at, self.best, self.order = found
            print(f"{what}: going on from step {self.at.step} of {self.steps}", flush=True)

    def run(
        self,
        loss: Callable[[Tensor, torch.Generator], dict[str, Tensor]],
        validate: Callable[[Callable[[], None]], dict[str, Tensor]],
        progress: bool,
        track: Callable[[int], Tracker] | None,
    ) -> pd.DataFrame:
        """Minimise ``loss(indices, generator)["loss"]``; ``validate`` calls back between batches.

        Returns the history; the flow has the weights of the best epoch then.
        """
        at, began = self.at, self.at.step
        bar = tqdm(
            total=self.steps,
            initial=began,
            desc=self.what,
            # on stdout, since a page shows stderr as a warning
            file=sys.stdout,
            disable=not progress,
            mininterval=5,
        )
        with self.stop, bar, track(began) if track else nullcontext() as tracker:
            while at.epoch <= self.epochs:
                self.flow.train()
                for indices in self.order.split(self.params.batch)[at.batch :]:
                    self._step(loss(indices, self.generator), len(indices) / self.n)
                    bar.update()
                    self._pause()
                self.flow.eval()
                with torch.no_grad():
                    terms = {"train": at.sums, "validation": self._finite(validate(self._pause))}
                for split, values in terms.items():
                    at.note(split, values)
                    if tracker:
                        tracker.log(at.step, split, values)
                bar.set_postfix({split: f"{values['loss']:.4f}" for split, values in terms.items()})
                self._end_epoch(terms["validation"]["loss"])
            # for what is still to be done with the model: its evaluation can be stopped, too
            self._save()
        self.flow.load_state_dict(self.best)
        history = pd.DataFrame(at.rows)
        history.attrs["resumed_from_step"] = began
        return history

    def _step(self, terms: dict[str, Tensor], share: float) -> None:
        """One step down the gradient, on a share of the responses of an epoch."""
        at, largest = self.at, self.params.gradient_clip
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.learning_rate * self.slower(at.step)
        at.batch += 1
        at.step += 1
        values = self._finite(terms)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        gradients = [p.grad for p in self.flow.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._finite({"norm of the gradient": norm})
        if norm > largest:
            torch.nn.utils.clip_grads_with_norm_(self.flow.parameters(), largest, norm)
        self.optimizer.step()
        for name, value in values.items():
            at.sums[name] = at.sums.get(name, 0.0) + value * share

    def _end_epoch(self, validation_loss: float) -> None:
        at = self.at
        if validation_loss < at.best:
            at.best = validation_loss
            self.best = {name: value.clone() for name, value in self.flow.state_dict().items()}
        at.epoch, at.batch, at.sums = at.epoch + 1, 0, {}
        self.order = torch.randperm(self.n, generator=self.generator)
        self._pause()

    def _pause(self) -> None:
        """Between two batches: save where it is time to, and stop where told to."""
        told = self.stop.signal
        if told or (self.checkpoint and self.checkpoint.is_due()):
            self._save()
        if told:
            kept = f"; saved as {self.checkpoint.path}" if self.checkpoint else ""
            raise TrainingInterrupted(f"{self.what}: {told} after step {self.at.step}{kept}")

    def _save(self) -> None:
        if self.checkpoint:
            self.checkpoint.save(
                self.at, self.flow, self.best, self.optimizer, self.generator, self.order
            )

    def _finite(self, terms: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(term.detach()) for name, term in terms.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise DivergenceError(
                    f"{self.what}: the term {name!r} became {value} at step {self.at.step} (epoch "
                    f"{self.at.epoch}); a lower learning_rate or gradient_clip may help"
                )
        return values


# --- Teacher ------------------------------------------------------------------------------------


def train_teacher(
    train: Events,
    validation: Events,
    study: Study,
    subset: Subset,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
    track: Callable[[int], Tracker] | None = None,
) -> tuple[Surrogate, pd.DataFrame]:
    """Train a teacher by maximum likelihood.

    Noise is drawn anew in every epoch; the validation noise is always the same. The term
    ``loss`` of the history is the negative log-likelihood in nats per fibre.

    Parameters
    ----------
    checkpoint
        to go on from, and to write again and again.
    track
        opens the log of the losses of each epoch, given the number of steps that are done.

    Returns
    -------
    surrogate, history
        the best validation epoch, and epoch, step, split, term, value; where it went on from is
        ``history.attrs["resumed_from_step"]``.

    Raises
    ------
    DivergenceError
        naming step and term.
    TrainingInterrupted
        on SIGTERM or SIGINT, after saving the checkpoint.
    """
    device = choose_device(study.device)
    scaler = ConditionScaler.fit(train, study.preprocessing)
    seed = derive_seed(study.seed, "teacher", subset)
    torch.manual_seed(seed)
    dim = train.detector.dim
    flow = Teacher(dim, len(scaler.mean), study.flow, derive_seed(study.seed, "orders", subset))
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
        return {"loss": -flow.log_prob(x, condition).mean() / dim}

    fit = _Fit(
        flow,
        study.teacher,
        study.teacher.epochs_for(subset),
        len(train),
        f"teacher {subset}",
        seed,
        checkpoint,
    )
    history = fit.run(
        lambda indices, generator: nll(data, indices, generator),
        lambda pause: _mean_over(held_out, study.teacher.batch, seed, nll, pause),
        progress,
        track,
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
        self.photons = events.photons
        self.conditions = scaler(events, preprocessing).to(device)
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.conditions)

    def __call__(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        counts = torch.from_numpy(self.photons[indices.numpy()].toarray().astype(np.int32))
        x, _ = encode_responses(counts, self.preprocessing, generator)
        return x.to(self.conditions.device), self.conditions[indices]


def _mean_over(
    data: _Encoded,
    batch: int,
    seed: int,
    terms: Callable[[_Encoded, Tensor, torch.Generator], dict[str, Tensor]],
    pause: Callable[[], None],
) -> dict[str, Tensor]:
    """Terms averaged over ``data``, with the same noise at every call; pauses between batches."""
    generator = torch.Generator().manual_seed(seed + 1)
    sums: dict[str, Tensor] = {}
    for indices in torch.arange(len(data)).split(batch):
        for name, value in terms(data, indices, generator).items():
            sums[name] = sums.get(name, torch.zeros(())) + value.cpu() * len(indices) / len(data)
        pause()
    return sums


# --- Student ------------------------------------------------------------------------------------


def channel_fractions(x: Tensor, detector: Detector) -> Tensor:
    """(N, C) shares of the light in the detector's channels, from flow space x (N, D) (for eq. 2)."""
    light = torch.sigmoid(x)
    masks = torch.tensor(detector.masks.reshape(-1, detector.dim)).to(x)
    return (light / light.sum(1, keepdim=True)) @ masks.T


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """(N,) squared differences of (D, N), averaged over dimensions."""
    return (a - b).square().mean(0)


def _average(each: list[Tensor], n: int) -> Tensor:
    """(N,) mean over the blocks; a flow of one block has nothing between its ends."""
    return torch.stack(each).mean(0) if each else torch.zeros(n)


def distillation_terms(
    teacher: Teacher, student: Student, x: Tensor, z: Tensor, condition: Tensor, detector: Detector
) -> dict[str, Tensor]:
    """The terms of :data:`DISTILLATION_TERMS` for each sample, (N,) each.

    Parameters
    ----------
    x, z
        (N, D) data and noise: the data loop x -(teacher)-> z -(student)-> x' and the latent loop
        z -(student)-> x' -(teacher)-> z'.
    condition
        (N, C), of both loops.
    detector
        whose channels are compared.
    """
    n = len(x)
    with torch.no_grad():
        target = teacher.passage(x, condition, keep=True)
    # both of the student's passes at once: what follows of the condition alone is needed once
    both = student.passage(torch.cat([target.latent, z]), condition, keep=True, match=(target, 0))
    copy = [end[:, :n] for end in both.ends]
    drawn = [end[:, n:] for end in both.ends]
    back = teacher.passage(drawn[0].T, condition, match=(both, n))
    shares = [channel_fractions(light, detector) for light in (copy[0].T, x)]
    channels = (shares[0] - shares[1]).square().sum(1)

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
    checkpoint: Checkpoint | None = None,
    track: Callable[[int], Tracker] | None = None,
) -> tuple[Surrogate, pd.DataFrame]:
    """Distil a frozen teacher into a student.

    The loss is the sum of the six squared differences, with ``+ch`` also ``channel_weight`` times
    the channel loss (eq. 2). With ``+div`` each sample's whole loss is multiplied by the weight
    of its particle (eq. 3). The latent loop takes the conditions of the same batch. All terms are
    logged in every setup, unweighted, so that setups can be compared; ``loss`` is what was
    minimised. The validation loss is not weighted by diversity.

    The teacher is frozen in place. The rest is as in :func:`train_teacher`.
    """
    if not isinstance(teacher.flow, Teacher):
        raise TypeError("distil_student: expected a teacher to distil")
    device = choose_device(study.device)
    seed = derive_seed(study.seed, "student", subset)  # the same draws in every setup
    torch.manual_seed(seed)
    master = teacher.flow.to(device).eval().requires_grad_(False)
    student = Student(master.dim, master.context, study.flow, seed=0)
    start_from_teacher(student, master, everything=study.flow.initialise == "data")
    student.to(device)
    params = study.student
    channel_weight = params.channel_weight if "ch" in setup.split("+") else 0.0
    weights = torch.ones(len(train))
    if "div" in setup.split("+"):
        weights = torch.from_numpy(
            diversity_weights(
                train.photons, train.particle, params.diversity_epsilon, params.diversity_mean_one
            ).astype(np.float32)
        )
    data = _Encoded(train, teacher.scaler, study.preprocessing, device)
    held_out = _Encoded(validation, teacher.scaler, study.preprocessing, device)

    def terms_of(
        data: _Encoded, indices: Tensor, generator: torch.Generator, weights: Tensor
    ) -> dict[str, Tensor]:
        x, condition = data(indices, generator)
        z = torch.randn(x.shape, generator=generator).to(device)
        terms = distillation_terms(master, student, x, z, condition, train.detector)
        loss = combined_loss(terms, weights[indices].to(device), channel_weight)
        return {"loss": loss, **{name: term.mean() for name, term in terms.items()}}

    even = torch.ones(len(validation))
    fit = _Fit(
        student,
        params,
        params.epochs_for(subset),
        len(train),
        f"student {subset} {setup}",
        seed,
        checkpoint,
    )
    history = fit.run(
        lambda indices, generator: terms_of(data, indices, generator, weights),
        lambda pause: _mean_over(
            held_out, params.batch, seed, lambda d, i, g: terms_of(d, i, g, even), pause
        ),
        progress,
        track,
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
    return _step(
        surrogate, events, seed, lambda x, _, c: -teacher.log_prob(x, c).mean() / teacher.dim
    )


def distillation_step(
    teacher: Surrogate, student: Surrogate, events: Events, seed: int
) -> Callable[[int], Tensor]:
    """As :func:`likelihood_step`, of a student's training in the setup ``bs``."""
    master, flow = teacher.flow, student.flow
    if not (isinstance(master, Teacher) and isinstance(flow, Student)):
        raise TypeError("distillation_step: expected a teacher and a student")
    master.eval().requires_grad_(False)

    def loss(x: Tensor, z: Tensor, condition: Tensor) -> Tensor:
        terms = distillation_terms(master, flow, x, z, condition, events.detector)
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
