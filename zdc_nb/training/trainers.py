"""Training: teacher and splitting flow by maximum likelihood, the student by distillation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from zdc_nb.data.events import Events, Trials
from zdc_nb.data.expected import expected_centre, learned_offset
from zdc_nb.detector import Detector, diversity_weights, shower_centre
from zdc_nb.flows.initialise import (
    start_from_centres,
    start_from_marginals,
    start_from_teacher,
)
from zdc_nb.flows.maf_iaf import Student, Teacher
from zdc_nb.flows.particle_nets import PhotonSumNetwork, SignalNetwork
from zdc_nb.flows.splitting import SplittingFlow
from zdc_nb.generator.encoding import (
    ConditionScaler,
    centre_in_flow,
    channel_fractions,
    channels_and_centre,
    flow_dim,
)
from zdc_nb.generator.particle_models import PhotonSumModel, SignalModel
from zdc_nb.generator.surrogate import Surrogate
from zdc_nb.hardware import choose_device
from zdc_nb.params import (
    PreprocessingParams,
    Study,
    Subset,
    derive_seed,
)
from zdc_nb.training.checkpoints import (
    Checkpoint,
)
from zdc_nb.training.loop import Counted, Encoded, Fit, mean_over
from zdc_nb.training.losses import Aim, combined_loss, distillation_terms
from zdc_nb.training.tracking import Tracker

__all__ = [
    "distil_student",
    "distillation_step",
    "likelihood_step",
    "train_photon_sum",
    "train_signal",
    "train_splitting",
    "train_teacher",
]


# --- Teacher ------------------------------------------------------------------------------------


def train_teacher(
    train: Events,
    validation: Events,
    study: Study,
    subset: Subset,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
    track: Callable[[int], Tracker] | None = None,
    training: int = 1,
) -> tuple[Surrogate, pd.DataFrame]:
    """Train a teacher by maximum likelihood.

    Noise is drawn anew in every epoch; the validation noise is always the same. The term
    ``loss`` of the history is the negative log-likelihood in nats per dimension.

    Parameters
    ----------
    checkpoint
        to go on from, and to write again and again.
    track
        opens the log of the losses of each epoch, given the number of steps that are done.
    training
        which of several trainings with different random numbers this is.

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
    seed = _seed(study, "teacher", subset, training)
    torch.manual_seed(seed)
    dim = flow_dim(study.preprocessing, train.detector)
    flow = Teacher(dim, len(scaler.mean), study.flow, _seed(study, "orders", subset, training))
    data = Encoded(train, scaler, study.preprocessing, device)
    if study.flow.initialise == "data":
        generator = torch.Generator().manual_seed(seed)
        some = torch.randperm(len(train), generator=generator)[:4096]
        x, _ = data(some, generator)
        start_from_marginals(flow, x.cpu(), study.flow.bound)
    flow.to(device)
    held_out = Encoded(validation, scaler, study.preprocessing, device)

    def nll(data: Encoded, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        x, condition = data(indices, generator)
        return {"loss": -flow.log_prob(x, condition).mean() / dim}

    fit = Fit(
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
        lambda pause: mean_over(held_out, study.teacher.batch, seed, nll, pause),
        progress,
        track,
    )
    return Surrogate(flow, study.flow, scaler, study.preprocessing), history


# --- Student ------------------------------------------------------------------------------------


def distil_student(
    teacher: Surrogate,
    train: Events,
    validation: Events,
    study: Study,
    subset: Subset,
    setup: str,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
    track: Callable[[int], Tracker] | None = None,
    training: int = 1,
) -> tuple[Surrogate, pd.DataFrame]:
    """Distil a frozen teacher into a student: a setup, or a variant of the study.

    The loss is the sum of the six squared differences, with ``+ch`` also ``channel_weight`` times
    the channel loss (eq. 2), with ``+ctr`` also ``centre_weight`` times the centre loss
    (:mod:`zdc_nb.data.expected`). With ``+div`` each sample's whole loss is multiplied by the weight
    of its particle (eq. 3). The latent loop takes the conditions of the same batch. All terms but the
    centre loss are logged in every setup, unweighted, so that setups can be compared; ``loss`` is
    what was minimised. The validation loss is not weighted by diversity.

    The teacher is frozen in place. The rest is as in :func:`train_teacher`.
    """
    if not isinstance(teacher.flow, Teacher):
        raise TypeError("distil_student: expected a teacher to distil")
    device = choose_device(study.device)
    seed = _seed(study, "student", subset, training)  # the same draws in every setup
    torch.manual_seed(seed)
    teacher_flow = teacher.flow.to(device).eval().requires_grad_(False)
    student = Student(teacher_flow.dim, teacher_flow.context, study.flow, seed=0)
    terms, params = study.student_of(setup)
    start_from_teacher(student, teacher_flow, everything=params.start == "teacher")
    student.to(device)
    channel_weight = params.channel_weight if "ch" in terms.split("+") else 0.0
    weights = torch.ones(len(train))
    if "div" in terms.split("+"):
        weights = torch.from_numpy(
            diversity_weights(
                train.photons, train.particle, params.diversity_epsilon, params.diversity_mean_one
            ).astype(np.float32)
        )
    data = Encoded(train, teacher.scaler, study.preprocessing, device)
    held_out = Encoded(validation, teacher.scaler, study.preprocessing, device)
    aims: dict[Encoded, Aim] = {}
    if "ctr" in terms.split("+"):
        offset = learned_offset(train) if params.centre_offset == "learned" else (0.0, 0.0)
        aims[data] = _aim_of(train, study.preprocessing, offset)
        aims[held_out] = _aim_of(validation, study.preprocessing, offset)
        print(
            f"centre loss: offset of {offset[0]:.3g} rows and {offset[1]:.3g} columns "
            f"({params.centre_offset}); mean weight of a response {aims[data].weight.mean():.3g}",
            flush=True,
        )

    def shares_of(x: Tensor) -> Tensor:
        shares = channels_and_centre if aims else channel_fractions
        return shares(x, study.preprocessing, train.detector)

    def terms_of(
        data: Encoded, indices: Tensor, generator: torch.Generator, weights: Tensor
    ) -> dict[str, Tensor]:
        x, condition = data(indices, generator)
        z = torch.randn(x.shape, generator=generator).to(device)
        aim = _some(aims[data], indices, device) if aims else None
        terms = distillation_terms(teacher_flow, student, x, z, condition, shares_of, aim)
        if params.channel_unit == "photons":
            terms["channel"] = terms["channel"] * data.photon_sums[indices].square().to(device)
        loss = combined_loss(
            terms, weights[indices].to(device), channel_weight, params.centre_weight or 0.0
        )
        return {"loss": loss, **{name: term.mean() for name, term in terms.items()}}

    even = torch.ones(len(validation))
    fit = Fit(
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
        lambda pause: mean_over(
            held_out, params.batch, seed, lambda d, i, g: terms_of(d, i, g, even), pause
        ),
        progress,
        track,
    )
    return Surrogate(student, study.flow, teacher.scaler, study.preprocessing), history


def _aim_of(events: Events, params: PreprocessingParams, offset: tuple[float, float]) -> Aim:
    """Where the light of events should be in flow space, with the noise that is part of it there."""
    centre, weight = expected_centre(events.pdg, events.features, events.detector, offset)
    seen = centre_in_flow(centre, events.photon_sum, params, events.detector)
    return Aim(
        torch.from_numpy(seen.astype(np.float32)),
        torch.from_numpy(weight.astype(np.float32)),
        float(max(events.detector.shape)),
    )


def _some(aim: Aim, indices: Tensor, device: torch.device) -> Aim:
    return Aim(aim.centre[indices].to(device), aim.weight[indices].to(device), aim.side)


# --- Splitting flow -----------------------------------------------------------------------------


def train_splitting(
    train: Events,
    validation: Events,
    study: Study,
    subset: Subset,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
    track: Callable[[int], Tracker] | None = None,
    training: int = 1,
) -> tuple[Surrogate, pd.DataFrame]:
    """Train a splitting flow by maximum likelihood of the counts themselves, without noise.

    The term ``loss`` of the history is the negative log-likelihood in nats per fibre, in validation
    the exact one, in training its estimate from a share of the fine nodes
    (:meth:`~zdc_nb.flows.splitting.SplittingFlow.estimated_log_prob`). The rest is as in :func:`train_teacher`; ``TypeError`` where the study has no splitting flow.
    """
    params = study.splitting
    if params is None:
        raise TypeError("train_splitting: the study has no splitting flow")
    device = choose_device(study.device)
    scaler = ConditionScaler.fit_context(train)
    seed = _seed(study, "splitting", subset, training)
    torch.manual_seed(seed)
    detector = train.detector
    contexts = scaler.context(train)
    flow = SplittingFlow(detector.shape, contexts.shape[1], params.flow)
    some = np.random.default_rng(seed).permutation(len(train))[:4096]
    centres = shower_centre(train[some].responses, detector)
    start_from_centres(flow, torch.from_numpy(centres), contexts[some])
    flow.to(device)
    data, held_out = Counted(train, scaler, device), Counted(validation, scaler, device)

    def nll(data: Counted, indices: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        return {"loss": -flow.log_prob(*data(indices)).mean() / detector.dim}

    def estimate(indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        logs = flow.estimated_log_prob(*data(indices), params.fine_share, generator)
        return {"loss": -logs.mean() / detector.dim}

    fit = Fit(
        flow, params, params.epochs_for(subset), len(train), f"splitting {subset}", seed, checkpoint
    )
    history = fit.run(
        estimate,
        lambda pause: mean_over(held_out, params.batch, seed, nll, pause),
        progress,
        track,
    )
    return Surrogate(flow, params.flow, scaler, None), history


# --- Networks of the particle -------------------------------------------------------------------


def train_photon_sum(
    train: Events,
    validation: Events,
    study: Study,
    subset: Subset,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
    track: Callable[[int], Tracker] | None = None,
    training: int = 1,
) -> tuple[PhotonSumModel, pd.DataFrame]:
    """Learn the photon sum of a particle by maximum likelihood.

    The term ``loss`` is the exact negative log-likelihood of the sum, in nats. The rest is as in
    :func:`train_teacher`, on the CPU; ``TypeError`` where the study has no such section.
    """
    params = study.photon_sum
    if params is None:
        raise TypeError("train_photon_sum: the study has no photon_sum")
    detector = train.detector
    scaler, context, held_out = _contexts(train.features, validation.features, detector)
    seed = _seed(study, "photon_sum", subset, training)
    torch.manual_seed(seed)
    network = PhotonSumNetwork(
        context.shape[1], params.hidden, params.components, study.data.min_photons
    )
    sums, held_out_sums = (torch.from_numpy(e.photon_sum) for e in (train, validation))
    network.start_from(sums[torch.randperm(len(sums))[:4096]])

    def nll(context: Tensor, sums: Tensor) -> Tensor:
        return -network.distribution(context).log_prob(sums)

    fit = Fit(
        network,
        params,
        params.epochs_for(subset),
        len(train),
        f"photon sum {subset}",
        seed,
        checkpoint,
    )
    history = fit.run(
        lambda i, _: {"loss": nll(context[i], sums[i]).mean()},
        lambda _: {"loss": nll(held_out, held_out_sums).mean()},
        progress,
        track,
    )
    return PhotonSumModel(network.eval().requires_grad_(False), params.hidden, scaler), history


def train_signal(
    train: Trials,
    validation: Trials,
    study: Study,
    subset: Subset,
    detector: Detector,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
    track: Callable[[int], Tracker] | None = None,
    training: int = 1,
) -> tuple[SignalModel, pd.DataFrame]:
    """Learn whether a particle sends light, by maximum likelihood of how often it did.

    The term ``loss`` is the cross-entropy of a simulation in nats; a step takes a batch of particles,
    with all simulations of each. The rest is as in :func:`train_photon_sum`.
    """
    params = study.signal
    if params is None:
        raise TypeError("train_signal: the study has no signal")
    scaler, context, held_out = _contexts(train.features, validation.features, detector)
    seed = _seed(study, "signal", subset, training)
    torch.manual_seed(seed)
    network = SignalNetwork(context.shape[1], params.hidden)

    def counts(trials: Trials) -> tuple[Tensor, Tensor]:
        mean = trials.simulated.mean()
        lit, dark = trials.lit / mean, (trials.simulated - trials.lit) / mean
        return torch.from_numpy(lit).to(torch.float32), torch.from_numpy(dark).to(torch.float32)

    def entropy(context: Tensor, lit: Tensor, dark: Tensor) -> Tensor:
        logit = network(context)
        return (functional.softplus(-logit) * lit + functional.softplus(logit) * dark).mean()

    (lit, dark), tested = counts(train), counts(validation)
    fit = Fit(
        network,
        params,
        params.epochs_for(subset),
        len(train),
        f"signal {subset}",
        seed,
        checkpoint,
    )
    history = fit.run(
        lambda i, _: {"loss": entropy(context[i], lit[i], dark[i])},
        lambda _: {"loss": entropy(held_out, *tested)},
        progress,
        track,
    )
    return SignalModel(network.eval().requires_grad_(False), params.hidden, scaler), history


def _contexts(
    train: NDArray[np.float64], validation: NDArray[np.float64], detector: Detector
) -> tuple[ConditionScaler, Tensor, Tensor]:
    """Scaler of particles that are trained on, features (N, 9), and contexts of both parts."""
    scaler = ConditionScaler.fit_particle(train, detector)
    return scaler, scaler.particle(train, detector), scaler.particle(validation, detector)


def _seed(study: Study, what: str, subset: Subset, training: int) -> int:
    """Of one training; the first is what it was before there were several."""
    return derive_seed(study.seed, what, subset, *(() if training == 1 else (training,)))


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
    teacher_flow, flow = teacher.flow, student.flow
    if not (isinstance(teacher_flow, Teacher) and isinstance(flow, Student)):
        raise TypeError("distillation_step: expected a teacher and a student")
    teacher_flow.eval().requires_grad_(False)
    preprocessing = _encoded(student)

    def shares_of(x: Tensor) -> Tensor:
        return channel_fractions(x, preprocessing, events.detector)

    def loss(x: Tensor, z: Tensor, condition: Tensor) -> Tensor:
        terms = distillation_terms(teacher_flow, flow, x, z, condition, shares_of)
        return combined_loss(terms, torch.ones(len(x), device=x.device), 0.0)

    return _step(student, events, seed, loss)


def _encoded(surrogate: Surrogate) -> PreprocessingParams:
    if surrogate.preprocessing is None:
        raise TypeError("expected a teacher or a student, whose responses are encoded")
    return surrogate.preprocessing


def _step(
    surrogate: Surrogate,
    events: Events,
    seed: int,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[[int], Tensor]:
    flow = surrogate.flow.train()
    data = Encoded(events, surrogate.scaler, _encoded(surrogate), flow.device)
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
