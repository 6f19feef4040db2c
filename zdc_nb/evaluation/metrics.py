"""How well generated responses agree with the simulated ones of the test split.

Table 1 compares channel values, Table 2 the positions and shapes of showers. Both group the test
responses by unique particle (the PDG code and the nine features, not the photon sum): a particle's
repeats are what its conditional distribution is known by. ``Events.particle`` carries the groups.

Three baselines need no training. ``reference`` answers each test response with a training response
to the same particle: the floor for a generator that is not told the photon sum. Flows are told it,
that of the very response that they answer; ``reference+sum`` uses it too and is the floor for them.
``ignorant`` answers with any training response scaled to the photon sum, so it knows nothing
of the particle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from zdc_nb.data.events import Events
from zdc_nb.detector import Detector, channel_sums, containment_radius, shower_centre
from zdc_nb.params import SETUPS, SUBSETS, derive_seed

__all__ = [
    "BASELINES",
    "METRICS",
    "MODELS",
    "QUANTITIES",
    "SHAPE_MODELS",
    "Baseline",
    "EvaluationError",
    "baseline_evaluations",
    "dataset_sizes",
    "evaluate",
    "evaluate_runs",
    "ignorant_runs",
    "matched_runs",
    "published_table",
    "reference_runs",
    "relative_changes",
    "scale_to_photon_sum",
    "shape_statistics",
    "table1",
    "table2",
]

METRICS = ("WS", "MAE_c", "MAE_cw")
"""Metrics of Table 1, in photons."""

QUANTITIES = ("centre", "centre_variance", "radius", "radius_variance")
"""Quantities of Table 2, in fibre units and, for the variances, their squares."""

ERRORS = ("MAE", "RMSE")
"""How Table 2 sums each quantity up."""

MODELS = ("reference", "ignorant", "teacher", *SETUPS)
"""Rows of Table 1."""

BASELINES = ("reference", "reference+sum", "ignorant")
"""Generators that need no training; see the top of this module."""

SHAPE_MODELS = ("reference", "teacher", "bs", "bs+ch+div")
"""Rows of Table 2."""

_MOST_PHOTONS = np.iinfo(np.uint16).max
"""Largest photon sum that a response can be scaled to: all of it may fall into one fibre."""

_CHUNK = 2048
"""Responses scaled at once, so that memory stays small at the size of the published data set."""

_SHAPE_METRICS = tuple(f"{quantity} {error}" for quantity, error in product(QUANTITIES, ERRORS))


class EvaluationError(ValueError):
    """A metric that does not belong in a table, or one that is missing from it."""


def evaluate(reference: Events, generated: NDArray[Any]) -> dict[str, float]:
    """All metrics of one generation of the test set.

    Parameters
    ----------
    reference
        N test responses.
    generated
        (N, 44, 44), photons; response k answers the particle of reference response k.

    Returns
    -------
    The eleven metrics by name, smaller is better:

    ``WS``
        1-Wasserstein distance between the distributions of a channel's values in all reference
        and all generated responses, averaged over the five channels (photons).
    ``MAE_c``
        for each unique particle the mean of each channel's values, reference against generated;
        the absolute difference is averaged over particles, then over channels (photons).
    ``MAE_cw``
        the same, a particle weighted by the number of its responses in the test set (photons).
    ``centre``, ``centre_variance``, ``radius``, ``radius_variance``, each ``MAE`` and ``RMSE``
        for each unique particle the mean and the population variance of the shower centre (row
        and column) and of the radius that holds 90% of the photons; the absolute or squared
        difference is averaged over particles, weighted by their number of responses, and over
        the two coordinates; the RMSE is the root of the latter (fibres, and fibres squared for
        the variances). A generated response without light counts with the middle of the face and
        radius 0.

    Raises
    ------
    ValueError
        where ``generated`` is not one response for each reference response.
    """
    return _compare(_observe(reference.responses, reference.detector), generated, reference)


def evaluate_runs(
    subset: str, model: str, reference: Events, generations: Iterable[NDArray[Any]]
) -> pd.DataFrame:
    """Tidy metrics of several generations of the test set.

    Parameters
    ----------
    subset, model
        names for the rows.
    reference
        N test responses.
    generations
        arrays (N, 44, 44), one for each run; read one at a time.

    Returns
    -------
    A frame with columns subset, model, metric, run (from 0), value; see :func:`evaluate`.

    Raises
    ------
    EvaluationError
        naming the subset, model and metric that is not finite.
    """
    observed = _observe(reference.responses, reference.detector)
    rows = [
        (subset, model, metric, run, value)
        for run, generated in enumerate(generations)
        for metric, value in _compare(observed, generated, reference).items()
    ]
    frame = pd.DataFrame(rows, columns=["subset", "model", "metric", "run", "value"])
    return _finite(frame, "value")


@dataclass(frozen=True)
class Baseline:
    """Generations of a baseline and the test events that they answer.

    Attributes
    ----------
    test
        the M test events that the baseline has an answer to.
    generations
        arrays (M, 44, 44) uint16, one for each run; an iterator, to be read once.
    left_out_responses, left_out_particles
        test responses without an answer, and unique particles that they belong to.
    """

    test: Events
    generations: Iterator[NDArray[np.uint16]]
    left_out_responses: int
    left_out_particles: int


def reference_runs(train: Events, test: Events, runs: int, seed: int) -> Baseline:
    """Answer each test response with a training response to the same particle.

    The draw is without replacement within a particle and a run: n draws from its m >= n training
    responses are then distributed like n new simulations, as a perfect generator would give. (With
    replacement the same response comes twice and the metrics grow.) Where m < n, each is drawn
    n // m or n // m + 1 times.

    Parameters
    ----------
    train, test
        two parts of one split, so that ``particle`` means the same in both.
    runs, seed
        number of generations; run k depends on the seed and k alone.

    Returns
    -------
    Test responses to particles without a training response are left out and counted.

    Raises
    ------
    EvaluationError
        where no test particle has a training response.
    """
    kept = test[np.isin(test.particle, train.particle)]
    if len(kept) == 0:
        raise EvaluationError("reference: no test particle has a response in the training split")

    def generations() -> Iterator[NDArray[np.uint16]]:
        for run in range(runs):
            rng = np.random.default_rng(derive_seed(seed, "reference", run))
            yield train[_draw(train.particle, kept.particle, rng)].responses

    particles = len(np.unique(test.particle)) - len(np.unique(kept.particle))
    return Baseline(kept, generations(), len(test) - len(kept), particles)


def matched_runs(train: Events, test: Events, runs: int, seed: int) -> Baseline:
    """As :func:`reference_runs`, and told the photon sum, as the flows are.

    The responses that ``reference`` draws for a particle are paired with its test responses by
    the rank of their photon sums, then scaled by :func:`scale_to_photon_sum`. After the pairing
    the factors are mostly close to 1, so that scaling hardly changes what a response looks like.

    Parameters, returns and raises as :func:`reference_runs`; run k starts from the same draws.
    """
    reference = reference_runs(train, test, runs, seed)
    kept = reference.test
    by_sum = np.lexsort((kept.photon_sum, kept.particle))

    def generations() -> Iterator[NDArray[np.uint16]]:
        for run, drawn in enumerate(reference.generations):
            rng = np.random.default_rng(derive_seed(seed, "reference+sum", run))
            drawn_sum = drawn.sum(axis=(1, 2), dtype=np.int64)
            paired = np.empty_like(drawn)
            paired[by_sum] = drawn[np.lexsort((drawn_sum, kept.particle))]
            yield scale_to_photon_sum(paired, kept.photon_sum, rng)

    return replace(reference, generations=generations())


def ignorant_runs(train: Events, test: Events, runs: int, seed: int) -> Baseline:
    """Answer each test response with any training response, scaled to its photon sum.

    Drawn without replacement within a run (see :func:`reference_runs`) and scaled by
    :func:`scale_to_photon_sum`. Nothing is left out.

    Parameters
    ----------
    train, test
        two parts of one split.
    runs, seed
        number of generations; run k depends on the seed and k alone.
    """
    nobody = np.zeros(len(train), np.int64), np.zeros(len(test), np.int64)

    def generations() -> Iterator[NDArray[np.uint16]]:
        for run in range(runs):
            rng = np.random.default_rng(derive_seed(seed, "ignorant", run))
            drawn = train[_draw(*nobody, rng)].responses
            yield scale_to_photon_sum(drawn, test.photon_sum, rng)

    return Baseline(test, generations(), 0, 0)


def scale_to_photon_sum(
    responses: NDArray[np.uint16], photon_sum: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Scale responses so that each holds exactly the given number of photons.

    Rounding each fibre to the nearest integer would lose the halo of single photons when a
    response shrinks. Systematic rounding keeps every fibre within one photon of its scaled value,
    right on average, and the sum exact: the running sum along the fibres, taken in random order
    so that no channel is favoured, is cut at whole photons from a random start.

    Parameters
    ----------
    responses
        (N, 44, 44), photons.
    photon_sum
        (N,), photons wanted, each at most 65535.
    rng
        source of the order of fibres and the starts.

    Returns
    -------
    (N, 44, 44); a response without light stays without.

    Raises
    ------
    EvaluationError
        naming a photon sum that is too large: its fibres could overflow.
    """
    if np.max(photon_sum, initial=0) > _MOST_PHOTONS:
        k = int(np.argmax(photon_sum))
        raise EvaluationError(
            f"photon_sum: expected at most {_MOST_PHOTONS} photons in a response, "
            f"got {photon_sum[k]} (response {k})"
        )
    flat = responses.reshape(len(responses), -1)
    order = rng.permutation(flat.shape[1])
    scaled = np.empty_like(flat)
    for first in range(0, len(flat), _CHUNK):
        part = slice(first, first + _CHUNK)
        running = np.cumsum(flat[part][:, order], axis=1, dtype=np.int64)
        own = np.maximum(running[:, -1:], 1)
        cuts = (running * photon_sum[part, None] + rng.integers(own)) // own
        scaled[part, order] = np.diff(cuts, axis=1, prepend=0)
    return scaled.reshape(responses.shape)


def baseline_evaluations(
    train: Events, test: Events, subset: str, runs: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics of the :data:`BASELINES` on one subset, and what the first two leave out.

    Parameters
    ----------
    train, test
        two parts of the subset's split.
    subset, runs, seed
        name for the rows, number of generations, seed of the draws.

    Returns
    -------
    The tidy frame of :func:`evaluate_runs`, and a frame of one row with the columns subset,
    test_responses, test_particles, left_out_responses, left_out_particles.

    Raises
    ------
    EvaluationError
        naming the subset of which no test particle has a training response.
    """
    draws = (reference_runs, matched_runs, ignorant_runs)
    try:
        baselines = [draw(train, test, runs, seed) for draw in draws]
    except EvaluationError as error:
        raise EvaluationError(f"subset {subset!r}: {error}") from error
    evaluations = pd.concat(
        [
            evaluate_runs(subset, name, baseline.test, baseline.generations)
            for name, baseline in zip(BASELINES, baselines, strict=True)
        ],
        ignore_index=True,
    )
    reference = baselines[0]
    left_out = pd.DataFrame(
        {
            "subset": [subset],
            "test_responses": [len(test)],
            "test_particles": [len(np.unique(test.particle))],
            "left_out_responses": [reference.left_out_responses],
            "left_out_particles": [reference.left_out_particles],
        }
    )
    return evaluations, left_out


def dataset_sizes(subset: str, train: Events, validation: Events, test: Events) -> pd.DataFrame:
    """How many responses, and how many unique particles, each part of a subset's split holds.

    A row for each part, with the columns subset, part (train, validation, test), responses and
    particles.
    """
    parts = {"train": train, "validation": validation, "test": test}
    rows = [
        (subset, name, len(part), len(np.unique(part.particle))) for name, part in parts.items()
    ]
    return pd.DataFrame(rows, columns=["subset", "part", "responses", "particles"])


def table1(evaluations: pd.DataFrame, models: Sequence[str] = MODELS) -> pd.DataFrame:
    """Table 1: mean and standard deviation over the runs.

    Parameters
    ----------
    evaluations
        tidy frame of :func:`evaluate_runs`, of any number of subsets and models.
    models
        which models to show; those that ``evaluations`` does not have are passed over.

    Returns
    -------
    Columns subset, model, metric, mean, std (of a single run, ddof = 1), runs; subsets and
    metrics in the order of the paper, models in the order given.

    Raises
    ------
    EvaluationError
        naming what is not finite, or missing beside the rest.
    """
    return _summary(evaluations, models, METRICS)


def table2(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Table 2: the eight errors of shower centre and radius.

    As :func:`table1`, with the columns subset, model, quantity, error, mean, std, runs and the
    models of :data:`SHAPE_MODELS`.
    """
    table = _summary(evaluations, SHAPE_MODELS, _SHAPE_METRICS)
    names = table["metric"].str.split(" ", expand=True)
    table = table.assign(quantity=names[0], error=names[1])
    return table[["subset", "model", "quantity", "error", "mean", "std", "runs"]]


def relative_changes(evaluations: pd.DataFrame, baseline: str = "bs") -> pd.DataFrame:
    """Change of each metric of Table 1 against a baseline model.

    The change is the ratio of the means over the runs, less 1. Its uncertainty is the standard
    error of that ratio, to first order: ratio * std(a_k / mean(a) - b_k / mean(b)) / sqrt(runs).
    Taken run by run it is right whether or not the two models start from the same random numbers
    in run k. It covers the noise of generation alone, for one test set and one training of each
    model: how much a metric moves when a model is trained again from another seed is not in it,
    and may well be larger.

    Parameters
    ----------
    evaluations
        tidy frame of :func:`evaluate_runs`, the baseline with all runs that the others have.
    baseline
        the model to compare with.

    Returns
    -------
    Columns subset, model, metric, change, uncertainty, both in per cent of the baseline's mean;
    a negative change is an improvement. The trained models but the baseline, in the order of
    :data:`MODELS`; no rows at all where there is no baseline.

    Raises
    ------
    EvaluationError
        where a change is not finite, naming subset, model and metric.
    """
    trained = evaluations["model"].isin(["teacher", *SETUPS])
    shown = evaluations[evaluations["metric"].isin(METRICS) & trained]
    base = shown[shown["model"] == baseline].drop(columns="model")
    pairs = shown[shown["model"] != baseline].merge(
        base, on=["subset", "metric", "run"], suffixes=("", "_base")
    )
    groups = pairs.groupby(["subset", "model", "metric"])[["value", "value_base"]]
    means = groups.transform("mean")
    ratio = means["value"] / means["value_base"]
    scatter = ratio * (pairs["value"] / means["value"] - pairs["value_base"] / means["value_base"])
    changes = (
        pairs[["subset", "model", "metric"]]
        .assign(change=100 * (ratio - 1), uncertainty=100 * scatter)
        .groupby(["subset", "model", "metric"])
        .agg(change=("change", "mean"), uncertainty=("uncertainty", "sem"))
    )
    order = [key for key in product(SUBSETS, MODELS, METRICS) if key in changes.index]
    return _finite(changes.loc[order].reset_index(), "change", "uncertainty")


def published_table(number: Literal[1, 2]) -> pd.DataFrame:
    """The paper's Table 1 or 2: the columns of ours but ``runs``, made on ALICE's own data."""
    source = resources.files("zdc_nb.evaluation") / "published" / f"published_table{number}.csv"
    with source.open("r", encoding="utf-8") as lines:
        return pd.read_csv(lines)


def shape_statistics(
    particle: NDArray[np.int64], responses: NDArray[Any], detector: Detector
) -> dict[str, NDArray[np.float64]]:
    """What Table 2 compares: mean and population variance of centre and radius by particle.

    Parameters
    ----------
    particle
        (N,), equal for responses to the same particle.
    responses
        (N, 44, 44), photons.

    Returns
    -------
    One array for each of :data:`QUANTITIES`, with a row for each of ``np.unique(particle)``:
    (particles, 2) row and column for the centre and its variance, (particles, 1) for the radius
    and its variance; fibres, and fibres squared for the variances.
    """
    return _shape_statistics(_observe(responses, detector), _Groups.of(particle))


@dataclass(frozen=True)
class _Groups:
    """Which group each of N responses belongs to, and how many each group has."""

    index: NDArray[np.intp]
    counts: NDArray[np.intp]

    @classmethod
    def of(cls, particle: NDArray[np.int64]) -> _Groups:
        _, index, counts = np.unique(particle, return_inverse=True, return_counts=True)
        return cls(index, counts)


class _Observed(NamedTuple):
    """What the metrics look at, each (N, columns)."""

    channels: NDArray[Any]
    centre: NDArray[np.float64]
    radius: NDArray[np.float64]


def _observe(responses: NDArray[Any], detector: Detector) -> _Observed:
    return _Observed(
        channel_sums(responses, detector),
        shower_centre(responses, detector),
        containment_radius(responses, detector)[:, None],
    )


def _compare(reference: _Observed, generated: NDArray[Any], test: Events) -> dict[str, float]:
    if len(generated) != len(test):
        raise ValueError(
            f"generated: expected {len(test)} responses, one for each reference response, "
            f"got {len(generated)}"
        )
    groups = _Groups.of(test.particle)
    found = _observe(generated, test.detector)
    errors = np.abs(_means(found.channels, groups) - _means(reference.channels, groups))
    metrics = {
        "WS": _wasserstein(reference.channels, found.channels),
        "MAE_c": float(errors.mean()),
        "MAE_cw": _weighted(errors, groups),
    }
    before, after = _shape_statistics(reference, groups), _shape_statistics(found, groups)
    for quantity in QUANTITIES:
        errors = after[quantity] - before[quantity]
        metrics[f"{quantity} MAE"] = _weighted(np.abs(errors), groups)
        metrics[f"{quantity} RMSE"] = float(np.sqrt(_weighted(errors**2, groups)))
    return metrics


def _shape_statistics(observed: _Observed, groups: _Groups) -> dict[str, NDArray[np.float64]]:
    return {
        "centre": _means(observed.centre, groups),
        "centre_variance": _variances(observed.centre, groups),
        "radius": _means(observed.radius, groups),
        "radius_variance": _variances(observed.radius, groups),
    }


def _wasserstein(reference: NDArray[Any], generated: NDArray[Any]) -> float:
    distances = [wasserstein_distance(a, b) for a, b in zip(reference.T, generated.T, strict=True)]
    return float(np.mean(distances))


def _means(values: NDArray[Any], groups: _Groups) -> NDArray[np.float64]:
    """(groups, columns): the mean of each column of ``values`` within each group."""
    sums = [np.bincount(groups.index, weights=column) for column in values.T]
    return np.stack(sums, axis=1) / groups.counts[:, None]


def _variances(values: NDArray[Any], groups: _Groups) -> NDArray[np.float64]:
    return _means((values - _means(values, groups)[groups.index]) ** 2, groups)


def _weighted(errors: NDArray[np.float64], groups: _Groups) -> float:
    """Average over particles by their number of responses, then over columns."""
    return float(np.average(errors, axis=0, weights=groups.counts).mean())


def _draw(
    source: NDArray[np.int64], wanted: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.intp]:
    """For each label of ``wanted`` a position in ``source`` with that label, none used twice
    before all with that label are used."""
    shuffled = rng.permutation(len(source))
    pool = shuffled[np.argsort(source[shuffled], kind="stable")]
    labels, first, size = np.unique(source[pool], return_index=True, return_counts=True)
    group = np.searchsorted(labels, wanted)
    return pool[first[group] + _occurrence(wanted) % size[group]]


def _occurrence(labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """How many equal labels stand before each."""
    _, counts = np.unique(labels, return_counts=True)
    occurrence = np.empty(len(labels), np.intp)
    order = np.argsort(labels, kind="stable")
    occurrence[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return occurrence


def _summary(
    evaluations: pd.DataFrame, models: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    subsets = [subset for subset in SUBSETS if (evaluations["subset"] == subset).any()]
    present = [model for model in models if (evaluations["model"] == model).any()]
    values = _finite(evaluations, "value").groupby(["subset", "model", "metric"])["value"]
    summary = values.agg(["mean", "std", "count"]).rename(columns={"count": "runs"})
    wanted = pd.MultiIndex.from_product(
        [subsets, present, metrics], names=["subset", "model", "metric"]
    )
    missing = wanted[~wanted.isin(summary.index)]
    if len(missing):
        subset, model, metric = missing[0]
        raise EvaluationError(
            f"{len(missing)} entries are missing from the table, the first: "
            f"subset {subset!r}, model {model!r}, metric {metric!r}"
        )
    return _finite(summary.loc[wanted].reset_index(), "mean", "std")


def _finite(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The frame itself, once every number in ``columns`` is known to be finite."""
    for column in columns:
        bad = frame[~np.isfinite(frame[column].to_numpy(np.float64))]
        if len(bad):
            row = bad.iloc[0]
            raise EvaluationError(
                f"{column} is {row[column]} (subset {row['subset']!r}, model {row['model']!r}, "
                f"metric {row['metric']!r}): expected a finite number, from at least two runs"
            )
    return frame
