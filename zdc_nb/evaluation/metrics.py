"""How well generated responses agree with the simulated ones of the test split.

Table 1 compares channel values, Table 2 the positions and shapes of showers. Both group the test
responses by unique particle (the PDG code and the nine features, not the photon sum): a particle's
repeats are what its conditional distribution is known by. ``Events.particle`` carries the groups.
Where no test particle has a second response there is no such distribution, only a single draw of
it; all but ``WS`` is then left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zdc_nb.data.events import Events
from zdc_nb.detector import Detector, measure

__all__ = [
    "METRICS",
    "QUANTITIES",
    "SHAPE_METRICS",
    "EvaluationError",
    "Observed",
    "compare",
    "evaluate",
    "has_repeats",
    "observe",
    "require_finite",
    "shape_statistics",
]

METRICS = ("WS", "MAE_c", "MAE_cw")
"""Metrics of Table 1, in photons."""

QUANTITIES = ("centre", "centre_variance", "radius", "radius_variance")
"""Quantities of Table 2, in fibre units and, for the variances, their squares."""

SHAPE_METRICS = tuple(
    f"{quantity} {error}" for quantity, error in product(QUANTITIES, ("MAE", "RMSE"))
)
"""Metrics of Table 2: each quantity, and how its errors are summed up."""


class EvaluationError(ValueError):
    """A metric that does not belong in a table, or one that is missing from it."""


def has_repeats(events: Events) -> bool:
    """Whether any particle has at least two responses."""
    return len(np.unique(events.particle)) < len(events)


def evaluate(test: Events, generated: NDArray[Any]) -> dict[str, float]:
    """All metrics of one generation of the test set.

    Parameters
    ----------
    test
        N test responses of a detector of R x K fibres.
    generated
        (N, R, K), photons; response k answers the particle of test response k.

    Returns
    -------
    The eleven metrics by name, or ``WS`` alone where not :func:`has_repeats`; smaller is better:

    ``WS``
        1-Wasserstein distance between the distributions of a channel's values in all test
        and all generated responses, averaged over the channels (photons).
    ``MAE_c``
        for each unique particle the mean of each channel's values, test against generated;
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
        where ``generated`` is not one response for each test response.
    """
    found = observe(generated, test.detector)
    return compare(observe(test.responses, test.detector), found, test)


def shape_statistics(
    particle: NDArray[np.int64], responses: NDArray[Any], detector: Detector
) -> dict[str, NDArray[np.float64]]:
    """What Table 2 compares: mean and population variance of centre and radius by particle.

    Parameters
    ----------
    particle
        (N,), equal for responses to the same particle.
    responses
        (N, R, K), photons.
    detector
        of R x K fibres.

    Returns
    -------
    One array for each of :data:`QUANTITIES`, with a row for each of ``np.unique(particle)``:
    (particles, 2) row and column for the centre and its variance, (particles, 1) for the radius
    and its variance; fibres, and fibres squared for the variances.
    """
    return _shape_statistics(observe(responses, detector), _Groups.of(particle))


def require_finite(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The frame itself; :class:`EvaluationError` names the first number that is not finite."""
    for column in columns:
        bad = frame[~np.isfinite(frame[column].to_numpy(np.float64))]
        if len(bad):
            row = bad.iloc[0]
            raise EvaluationError(
                f"{column} is {row[column]} (subset {row['subset']!r}, model {row['model']!r}, "
                f"metric {row['metric']!r}): expected a finite number, from at least two runs"
            )
    return frame


@dataclass(frozen=True)
class _Groups:
    """Which group each of N responses belongs to, and how many each group has."""

    index: NDArray[np.intp]
    counts: NDArray[np.intp]

    @classmethod
    def of(cls, particle: NDArray[np.int64]) -> _Groups:
        _, index, counts = np.unique(particle, return_inverse=True, return_counts=True)
        return cls(index, counts)


class Observed(NamedTuple):
    """What the metrics look at, each (N, columns)."""

    channels: NDArray[Any]
    centre: NDArray[np.float64]
    radius: NDArray[np.float64]

    @classmethod
    def stack(cls, generations: Sequence[Observed]) -> Observed:
        """Several generations together, each (runs, N, columns)."""
        return cls(*(np.stack(parts) for parts in zip(*generations, strict=True)))


def observe(responses: NDArray[Any], detector: Detector) -> Observed:
    """What the metrics look at of (N, R, K) responses."""
    channels, centre, radius = measure(responses, detector)
    return Observed(channels, centre, radius[:, None])


def compare(observed: Observed, found: Observed, test: Events) -> dict[str, float]:
    """As :func:`evaluate`, of test and generated responses that have been looked at already."""
    if len(found.channels) != len(test):
        raise ValueError(
            f"generated: expected {len(test)} responses, one for each test response, "
            f"got {len(found.channels)}"
        )
    metrics = {"WS": _wasserstein(observed.channels, found.channels)}
    if not has_repeats(test):
        return metrics
    groups = _Groups.of(test.particle)
    errors = np.abs(_means(found.channels, groups) - _means(observed.channels, groups))
    metrics["MAE_c"] = float(errors.mean())
    metrics["MAE_cw"] = _weighted(errors, groups)
    before, after = _shape_statistics(observed, groups), _shape_statistics(found, groups)
    for quantity in QUANTITIES:
        errors = after[quantity] - before[quantity]
        metrics[f"{quantity} MAE"] = _weighted(np.abs(errors), groups)
        metrics[f"{quantity} RMSE"] = float(np.sqrt(_weighted(errors**2, groups)))
    return metrics


def _shape_statistics(observed: Observed, groups: _Groups) -> dict[str, NDArray[np.float64]]:
    return {
        "centre": _means(observed.centre, groups),
        "centre_variance": _variances(observed.centre, groups),
        "radius": _means(observed.radius, groups),
        "radius_variance": _variances(observed.radius, groups),
    }


def _wasserstein(test: NDArray[Any], generated: NDArray[Any]) -> float:
    # takes long to import, and most who import this module measure nothing
    from scipy.stats import wasserstein_distance  # noqa: PLC0415

    distances = [wasserstein_distance(a, b) for a, b in zip(test.T, generated.T, strict=True)]
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
