"""Whether one model is better than another, beyond what chance makes of it.

Two models answer the same test responses, so they are compared particle by particle, and two
trainings with the same seed start from the same random numbers, so they are compared seed by seed.
What is then uncertain has two parts. *Particles*: another test set would hold others; they are
resampled (bootstrap). *Trainings*: each would end elsewhere from another seed. To resample the few
seeds of a study would show less than their spread; the mean over S seeds is therefore drawn from
Student's t distribution with S - 1 degrees of freedom, as wide as their standard error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zdc_nb.data.events import Events
from zdc_nb.evaluation.metrics import EvaluationError, Observed, has_repeats, observe
from zdc_nb.params import derive_seed

__all__ = [
    "COMPARED",
    "LEVEL",
    "Resampled",
    "errors_by_particle",
    "gap_over_floor",
    "interval",
    "intervals",
    "join_trainings",
    "over_floor",
    "paired_differences",
    "resample",
]

COMPARED = ("WS", "MAE_c", "MAE_cw", "centre MAE", "radius MAE")
"""Metrics of Tables 1 and 2 that models are compared by: photons, and fibres for the last two."""

LEVEL = 0.95
"""Of the intervals: so often they hold the true value."""


@dataclass(frozen=True, eq=False)
class Resampled:
    """Metrics of several trainings of one model, on the test particles and on resampled ones.

    Attributes
    ----------
    seeds
        of the S trainings.
    found
        by metric, (S,): the metric of each training on the test part.
    drawn
        by metric, (S, draws): the same on resampled particles, the same in all models.
    """

    seeds: tuple[int, ...]
    found: dict[str, NDArray[np.float64]]
    drawn: dict[str, NDArray[np.float64]]


def resample(
    test: Events, trainings: Mapping[int, Observed], draws: int = 1000, seed: int = 0
) -> Resampled:
    """Metrics of each training of a model, and on particles that are resampled.

    Parameters
    ----------
    test
        N test responses.
    trainings
        by seed, what the metrics look at of all generations of a training, each
        (runs, N, columns); response k answers the particle of test response k.
    draws
        how often as many particles as there are are drawn, with replacement.
    seed
        of the draws: those of two models on one test part are the same for the same seed.

    Returns
    -------
    The metrics of :data:`COMPARED`, averaged over the generations, see
    :func:`~zdc_nb.evaluation.metrics.evaluate`; WS alone where no particle has several responses.

    Raises
    ------
    EvaluationError
        where a training does not answer each test response.
    """
    for training, found in trainings.items():
        if found.channels.shape[1] != len(test):
            raise EvaluationError(
                f"seed {training}: expected {len(test)} responses in each generation, "
                f"got {found.channels.shape[1]}"
            )
    _, index, counts = np.unique(test.particle, return_inverse=True, return_counts=True)
    particles = len(counts)
    rng = np.random.default_rng(derive_seed(seed, "particles", particles))
    # the first row is the test part as it is
    times = rng.multinomial(particles, np.full(particles, 1 / particles), draws)
    times = np.vstack([np.ones(particles, np.int64), times])
    simulated = observe(test.responses, test.detector)
    groups = (index, counts)
    each = [_metrics(simulated, found, groups, times) for found in trainings.values()]
    names = COMPARED if has_repeats(test) else COMPARED[:1]
    values = {name: np.stack([metrics[name] for metrics in each]) for name in names}
    return Resampled(
        tuple(trainings),
        {name: value[:, 0] for name, value in values.items()},
        {name: value[:, 1:] for name, value in values.items()},
    )


def paired_differences(
    models: Mapping[str, Resampled], baseline: str = "bs", seed: int = 0
) -> pd.DataFrame:
    """How much each model differs from a baseline, with an interval.

    Parameters
    ----------
    models
        by name, as from :func:`resample` of one test part with one seed, each with the trainings
        of the baseline.
    baseline
        the model to compare with.
    seed
        of what is drawn for the trainings.

    Returns
    -------
    Columns model, metric; value and baseline, means over trainings and generations; difference
    (photons, below 0: better) and change (per cent of the baseline); low and high, the interval
    of the change at :data:`LEVEL`; improvement, the probability that the model is better;
    trainings. Of a single training the interval holds the particles alone. No rows without a
    baseline.

    Raises
    ------
    EvaluationError
        where a model has not the trainings of the baseline.
    """
    columns = ["model", "metric", "value", "baseline", "difference", "change", "low", "high"]
    rows: list[tuple[Any, ...]] = []
    base = models.get(baseline)
    for name, mine in models.items() if base is not None else ():
        if name == baseline:
            continue
        assert base is not None
        if mine.seeds != base.seeds:
            raise EvaluationError(
                f"{name}: expected the trainings of {baseline}, seeds {base.seeds}, got {mine.seeds}"
            )
        for metric in mine.found:
            differences = mine.found[metric] - base.found[metric]
            level = base.found[metric].mean()
            # relative to the baseline on the same particles, which vary in how hard they are
            drawn = (mine.drawn[metric] - base.drawn[metric]).mean(0) / base.drawn[metric].mean(0)
            change = 100 * (drawn + _of_trainings(differences / level, len(drawn), seed))
            value, difference = mine.found[metric].mean(), differences.mean()
            change = about(100 * difference / level, change)
            rows.append((name, metric, value, level, difference, 100 * difference / level))
            rows[-1] += (*interval(change), (change < 0).mean(), len(mine.seeds))
    return pd.DataFrame(rows, columns=[*columns, "improvement", "trainings"])


def intervals(models: Mapping[str, Resampled], seed: int = 0) -> pd.DataFrame:
    """Each metric of each model with an interval over particles and trainings.

    Columns model, metric, value, low, high (photons), trainings; see :func:`paired_differences`.
    """
    rows = []
    for name, mine in models.items():
        for metric, found in mine.found.items():
            drawn = mine.drawn[metric].mean(0)
            drawn = about(found.mean(), drawn + _of_trainings(found, len(drawn), seed))
            rows.append((name, metric, float(found.mean()), *interval(drawn), len(found)))
    return pd.DataFrame(rows, columns=["model", "metric", "value", "low", "high", "trainings"])


def join_trainings(trainings: Sequence[Resampled]) -> Resampled:
    """Trainings of one model that were tested on particles of their own, as one.

    The particles of one are then resampled without regard to those of another. Each must have the
    same metrics and as many draws.
    """

    def joined(which: str, metric: str) -> NDArray[np.float64]:
        return np.concatenate([getattr(each, which)[metric] for each in trainings])

    seeds = tuple(seed for each in trainings for seed in each.seeds)
    found, drawn = (
        {metric: joined(which, metric) for metric in trainings[0].found}
        for which in ("found", "drawn")
    )
    return Resampled(seeds, found, drawn)


def over_floor(
    model: Resampled, floor: Resampled, seed: int = 0
) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """Each metric of a model as a multiple of its floor's: the value, and (draws,) that it varies by.

    Parameters
    ----------
    model, floor
        as from :func:`resample` of one test part with one seed; the floor, which is not trained, has
        one row for all trainings of the model, or one for each.
    seed
        of what is drawn for the trainings.
    """
    found = {}
    for metric, (ratios, drawn) in _ratios(model, floor).items():
        ratio = float(model.found[metric].mean() / floor.found[metric].mean())
        found[metric] = (ratio, about(ratio, drawn + _of_trainings(ratios, len(drawn), seed)))
    return found


def gap_over_floor(
    one: tuple[Resampled, Resampled], other: tuple[Resampled, Resampled], seed: int = 0
) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """How many times farther from its floor a model is on one test part than on another.

    Both are (model, floor) as of :func:`over_floor`, with the same trainings of the model: what a
    training happens to be worth on both parts is no gap, so that they are compared one by one. The
    parts hold different particles, which should be resampled with different seeds.
    """
    found = {}
    theirs = _ratios(*other)
    for metric, (ratios, drawn) in _ratios(*one).items():
        if metric in theirs:
            gaps, apart = ratios / theirs[metric][0], drawn / theirs[metric][1]
            apart = apart + _of_trainings(gaps, len(apart), seed)
            gap = float(ratios.mean() / theirs[metric][0].mean())
            found[metric] = (gap, about(gap, apart))
    return found


def _ratios(
    model: Resampled, floor: Resampled
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """By metric, (S,) of each training and (draws,) of all together on resampled particles."""
    return {
        metric: (
            values / floor.found[metric],
            model.drawn[metric].mean(0) / floor.drawn[metric].mean(0),
        )
        for metric, values in model.found.items()
    }


def errors_by_particle(test: Events, found: Observed) -> pd.DataFrame:
    """How far generated responses to each particle are from the simulated ones, on average.

    Parameters
    ----------
    test
        N test responses.
    found
        what the metrics look at of all generations, each (runs, N, columns).

    Returns
    -------
    A row for each of ``np.unique(test.particle)``: particle, responses (how many), and the absolute
    errors of its mean channel values (``MAE_cw``, photons), shower centre and radius (fibres), averaged
    over generations and columns. Weighted by ``responses`` their means are the metrics of these names.
    """
    labels, index, counts = np.unique(test.particle, return_inverse=True, return_counts=True)
    simulated = observe(test.responses, test.detector)
    errors = {
        name: _errors_of_means(mine, theirs, index, counts)
        for name, mine, theirs in zip(COMPARED[2:], found, simulated, strict=True)
    }
    return pd.DataFrame({"particle": labels, "responses": counts, **errors})


def _errors_of_means(
    generations: NDArray[Any],
    simulated: NDArray[Any],
    index: NDArray[np.intp],
    counts: NDArray[np.intp],
) -> NDArray[np.float64]:
    """(particles,) absolute errors of means, averaged over columns and generations."""
    parts = [
        np.abs(np.bincount(index, mine - theirs.astype(np.float64), len(counts)))
        for run in generations
        for mine, theirs in zip(run.T, simulated.T, strict=True)
    ]
    means: NDArray[np.float64] = np.mean(parts, axis=0) / counts
    return means


def _of_trainings(values: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """(draws,) what the mean of S values may be off by; zeros where one value shows no spread."""
    if len(values) < 2:
        return np.zeros(draws)
    rng = np.random.default_rng(derive_seed(seed, "trainings"))
    error = values.std(ddof=1) / np.sqrt(len(values))
    drawn: NDArray[np.float64] = error * rng.standard_t(len(values) - 1, draws)
    return drawn


def about(found: float, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draws of a number, moved so that their median is what was found.

    Particles that are drawn twice make the distance of two distributions larger than it is, that of the
    better model more: the spread of such draws says how sure a WS is, their place does not.
    """
    moved: NDArray[np.float64] = drawn + (found - np.median(drawn))
    return moved


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """What holds the middle share :data:`LEVEL` of some values."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _metrics(
    test: Observed,
    generated: Observed,
    groups: tuple[NDArray[np.intp], NDArray[np.intp]],
    times: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """Metrics of one training, (draws,) each: particle p is there ``times[:, p]`` times."""
    index, counts = groups
    weighted = times * counts
    weights = {True: weighted / weighted.sum(1)[:, None], False: times / times.sum(1)[:, None]}
    pairs = [
        (mine, theirs)
        for run in generated.channels
        for mine, theirs in zip(run.T, test.channels.T, strict=True)
    ]
    distances = sum(_wasserstein(*pair, index, times) for pair in pairs) / weighted.sum(1)

    channels, centre, radius = (
        _errors_of_means(mine, theirs, index, counts)
        for mine, theirs in zip(generated, test, strict=True)
    )
    return {
        "WS": distances / len(pairs),
        "MAE_c": weights[False] @ channels,
        "MAE_cw": weights[True] @ channels,
        "centre MAE": weights[True] @ centre,
        "radius MAE": weights[True] @ radius,
    }


def _wasserstein(
    one: NDArray[Any], other: NDArray[Any], index: NDArray[np.intp], times: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(draws,) the 1-Wasserstein distance, times the number of responses, of each draw.

    It is the integral over x of how many more of ``one`` than of ``other`` are at most x.
    """
    values, place = np.unique(np.concatenate([one, other]), return_inverse=True)
    surplus = np.zeros((len(times[0]), len(values)))
    np.add.at(surplus, (index, place[: len(one)]), 1)
    np.add.at(surplus, (index, place[len(one) :]), -1)
    between = np.cumsum(surplus, axis=1)[:, :-1] * np.diff(values.astype(np.float64))
    return np.abs(times @ between).sum(1) if len(values) > 1 else np.zeros(len(times))
