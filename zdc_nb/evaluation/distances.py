"""Distances between the distributions of all test and all generated responses.

A classifier says whether two samples differ; these say how far they are apart, each in its own unit,
without a training. None of them asks whose response is whose. What a finite number of responses
leaves of each is what ``reference`` and ``reference+sum`` have: a model is judged beside these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from zdc_nb.data.events import Events
from zdc_nb.detector import Detector
from zdc_nb.params import derive_seed

__all__ = [
    "DISTANCES",
    "FEWEST_FOR_MOMENTS",
    "Distances",
    "fpd",
    "frechet_distance",
    "kpd",
    "photon_spectrum",
    "squared_mmd",
]

DISTANCES = ("FPD", "KPD", "sliced WS", "lit fibres", "fibre spectrum")
"""Metrics of :class:`Distances`, in the order of the tables."""

FEWEST_FOR_MOMENTS = 100
"""Pairs without which there are no ``FPD`` and ``KPD``: a batch would have fewer than features. Below
some 400 the straight line of the ``FPD`` ends a little too low."""

_SHARED = ("photon sum", "energy")
"""Features that a generated response is told, so that they cannot differ."""

_PARTS = (1, 2, 3, 4, 5)
"""Into how many batches the pairs are cut, one after the other, for the extrapolation of the FPD."""

_BATCHES = 10
"""Batches of which the KPD is the median, as in jetnet."""

_LARGEST_BATCH = 1000
"""Pairs of such a batch."""

_DIRECTIONS = 64
"""Random directions that images are projected on."""

_CHUNK = 2048
"""Responses looked at together, so that memory stays small at the size of the published data set."""


class Distances:
    """Distances of generations from one set of test responses, of which all is computed once.

    Parameters
    ----------
    test
        N test responses of a detector of R x K fibres.
    chosen
        n of them, those that ``FPD``, ``KPD`` and ``sliced WS`` look at.
    features
        of these n, as from :func:`~zdc_nb.evaluation.classifier.response_features`.
    seed
        of batches and directions: the same for all generations and models.
    """

    def __init__(
        self,
        test: Events,
        chosen: NDArray[np.intp] | slice,
        features: pd.DataFrame,
        seed: int = 0,
    ) -> None:
        self._chosen, self._seed = chosen, seed
        columns = features.drop(columns=[*_SHARED])
        mean, scale = columns.mean(), columns.std(ddof=0)
        # a feature that never changes is compared in its own unit
        self._mean, self._scale = mean, scale.where(scale > 0, 1.0)
        self._features = self._standardised(features)
        self._directions = _random_directions(test.detector, seed)
        self._projected = _sorted_projections(test.photons[chosen], self._directions)
        self._lit = test.lit_fibres
        self._spectrum = np.bincount(test.photons.data, minlength=1)

    def __call__(self, generated: NDArray[Any], features: pd.DataFrame) -> dict[str, float]:
        """The :data:`DISTANCES` of one generation; smaller is better.

        Parameters
        ----------
        generated
            (N, R, K), photons; response k answers the particle of test response k.
        features
            of the n chosen ones.

        Returns
        -------
        ``FPD``, ``KPD``
            of the features but photon sum and energy, in standard deviations of the test responses
            (:func:`fpd`, :func:`kpd`); none of fewer than :data:`FEWEST_FOR_MOMENTS`. About 0, and
            below as often as above it, where both are simulated.
        ``sliced WS``
            photons: the sliced 1-Wasserstein distance between the images, each a point with the
            photons of its fibres for coordinates. The points are projected on 64 seeded random
            directions of length 1, over all fibres, and the 1-Wasserstein distances along these
            are averaged. It needs no choice of features; it sees the bright fibres most.
        ``lit fibres``
            fibres: the 1-Wasserstein distance between the distributions of how many fibres of a
            response are lit.
        ``fibre spectrum``
            photons: the 1-Wasserstein distance between the distributions of how many photons share
            the fibre of a photon. Each *photon* counts once and not each lit fibre: most lit fibres
            hold one or two photons, so that by fibres the spectrum says little more than how many
            there are, and nothing of the core, where the light is.
        """
        found = {}
        if len(features) >= FEWEST_FOR_MOMENTS:
            pair = self._features, self._standardised(features)
            found["FPD"] = fpd(*pair, self._seed)[0]
            found["KPD"] = kpd(*pair, self._seed)[0]
        images = sparse.csr_array(generated[self._chosen].reshape(len(features), -1))
        projected = _sorted_projections(images, self._directions)
        found["sliced WS"] = float(np.abs(projected - self._projected).mean())
        found["lit fibres"] = _wasserstein(
            np.bincount(self._lit), np.bincount(np.count_nonzero(generated, axis=(1, 2)))
        )
        found["fibre spectrum"] = _wasserstein(
            _by_photon(self._spectrum), _by_photon(photon_spectrum(generated))
        )
        return found

    def _standardised(self, features: pd.DataFrame) -> NDArray[np.float64]:
        columns = features[self._mean.index]
        return ((columns - self._mean) / self._scale).to_numpy(np.float64)


def fpd(
    test: NDArray[np.float64], generated: NDArray[np.float64], seed: int
) -> tuple[float, float]:
    """Frechet physics distance: the Frechet distance of features at infinitely many responses.

    That of n responses is too large by about c / n, because means and covariances are known so
    well only. As in Kansal et al. (arXiv 2211.10295) it is taken of batches of several sizes and
    extrapolated to 1 / n = 0 along a straight line. Two things differ from their package
    ``jetnet``. A batch holds *pairs*, drawn without replacement: answers to the same particles
    fluctuate less against the test responses than others would, and c is theirs. And the line may
    end below 0, so that it is right on average where nothing differs.

    Parameters
    ----------
    test, generated
        (n, d), features of pairs.
    seed
        of the batches.

    Returns
    -------
    The distance, in the square of the features' unit, and the standard error of the line's end,
    from the scatter of the sizes about it.

    Raises
    ------
    ValueError
        where the two differ in shape or are too few to be cut into batches of two.
    """
    order = _shuffled_pairs(test, generated, 2 * max(_PARTS), seed)
    sizes, means = [], []
    for parts in _PARTS:
        size = len(order) // parts
        batches = order[: parts * size].reshape(parts, size)
        sizes.append(size)
        means.append(
            np.mean([frechet_distance(test[batch], generated[batch]) for batch in batches])
        )
    # takes long to import, and most who import this module measure nothing
    from scipy.stats import linregress  # noqa: PLC0415

    line = linregress(1 / np.array(sizes), means)
    return float(line.intercept), float(line.intercept_stderr)


def frechet_distance(test: NDArray[np.float64], generated: NDArray[np.float64]) -> float:
    """Frechet distance of two samples (n, d) and (m, d), taken as normal distributions.

    |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), of sample means and covariances. The root
    is taken of C_1^(1/2) C_2 C_1^(1/2), which has the same trace and stays symmetric where a
    covariance is singular, as that of shares is, which sum to 1.
    """
    shift = test.mean(axis=0) - generated.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (test, generated))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * cross)


def kpd(
    test: NDArray[np.float64], generated: NDArray[np.float64], seed: int
) -> tuple[float, float]:
    """Kernel physics distance: the median of :func:`squared_mmd` over ten batches of pairs.

    As in Kansal et al. (arXiv 2211.10295). A batch holds a quarter of the pairs, at most 1000,
    drawn without replacement; batches of few pairs overlap.

    Parameters and raises as :func:`fpd`.

    Returns
    -------
    The median, and its error: half the range that holds the middle 68% of the batches.
    """
    size = min(len(test) // 4, _LARGEST_BATCH)
    values = []
    for batch in range(_BATCHES):
        chosen = _shuffled_pairs(test, generated, 8, derive_seed(seed, batch))[:size]
        values.append(squared_mmd(test[chosen], generated[chosen]))
    low, middle, high = np.percentile(values, [16.275, 50, 83.725])
    return float(middle), float(high - low) / 2


def squared_mmd(test: NDArray[np.float64], generated: NDArray[np.float64]) -> float:
    """Squared maximum mean discrepancy of pairs (n, d), kernel (x . y / d + 1)^4 as in jetnet.

    The U-statistic of Gretton et al. (JMLR 13, 2012), eq. 4: the mean over i != j of
    k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i). A pair itself is left out, since both
    answer the same particle; right on average, so that it may be negative.
    """
    n = len(test)
    total = 0.0
    for one, other, sign in ((test, test, 1), (generated, generated, 1), (test, generated, -2)):
        kernel = one @ other.T / test.shape[1] + 1
        # to the fourth power: numpy's own is ten times slower
        kernel *= kernel
        kernel *= kernel
        total += sign * (kernel.sum() - np.trace(kernel))
    return float(total / (n * (n - 1)))


def photon_spectrum(responses: NDArray[Any]) -> NDArray[np.int64]:
    """How many fibres of all responses (N, R, K) hold k photons, at place k; none at 0."""
    counts = np.zeros(1, np.int64)
    for start in range(0, len(responses), _CHUNK):
        part = responses[start : start + _CHUNK]
        found = np.bincount(part[part > 0].astype(np.int64), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return counts


def _by_photon(spectrum: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many photons are in fibres of k; where there is no light, one at 0."""
    photons = spectrum * np.arange(len(spectrum))
    if not photons.any():
        photons[0] = 1
    return photons


def _wasserstein(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """1-Wasserstein distance of two distributions of whole numbers, given how often each comes."""
    # the integral of the difference of the cumulative shares, which change at whole numbers alone
    size = max(len(one), len(other))
    shares = [np.cumsum(np.pad(x, (0, size - len(x)))) / x.sum() for x in (one, other)]
    return float(np.abs(shares[0] - shares[1]).sum())


def _shuffled_pairs(
    test: NDArray[np.float64], generated: NDArray[np.float64], fewest: int, seed: int
) -> NDArray[np.int64]:
    if test.shape != generated.shape or len(test) < fewest:
        raise ValueError(
            f"features: expected pairs, at least {fewest}, got {test.shape} and {generated.shape}"
        )
    return np.random.default_rng(derive_seed(seed, "batches")).permutation(len(test))


def _random_directions(detector: Detector, seed: int) -> NDArray[np.float64]:
    """(R * K, directions), columns of length 1."""
    rng = np.random.default_rng(derive_seed(seed, "directions"))
    directions: NDArray[np.float64] = rng.standard_normal((detector.dim, _DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    return directions


def _sorted_projections(
    images: sparse.csr_array, directions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, directions): along each direction, in increasing order."""
    projected: NDArray[np.float64] = images @ directions
    projected.sort(axis=0)
    return projected
