"""What a detector measures in a response: channels, shower centre and radius, diversity.

Positions and radii are in fibre units: one unit is the pitch, and fibre (i, j) is at (i, j). Sizes
are those of a :class:`~zdc_nb.detector.geometry.Detector`: R rows, K columns. Responses are read in
chunks, so that memory stays small at the size of the published data set, and of each chunk only the
lit fibres are looked at, which are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from zdc_nb.detector.geometry import Detector

__all__ = [
    "channel_sums",
    "containment_radius",
    "diversity",
    "diversity_weights",
    "measure",
    "shower_centre",
]

_CHUNK = 512
"""Responses looked at together: few enough for their lit fibres to stay in the cache."""


def channel_sums(responses: NDArray[Any], detector: Detector) -> NDArray[Any]:
    """Light in each of the C channels.

    Parameters
    ----------
    responses
        (..., R, K), photons or any other measure of light in each fibre.
    detector
        whose channels.

    Returns
    -------
    (..., C) in the order of ``detector.channels``: int64 for integers (exact), else float64.

    Raises
    ------
    ValueError
        where the last two axes are not the detector's.

    Examples
    --------
    >>> from zdc_nb.detector import ZN
    >>> channel_sums(np.ones((2, 44, 44), np.uint16), ZN)
    array([[968, 242, 242, 242, 242],
           [968, 242, 242, 242, 242]])
    """
    flat = _flat(responses, detector)
    masks = _by_fibre(detector)
    sums = np.empty((len(flat), masks.shape[1]))
    for part in _chunks(len(flat)):
        sums[part] = _Lit.of(flat[part]).matrix(detector.dim) @ masks
    return _whole(sums, flat).reshape(*responses.shape[:-2], len(detector.channels))


def shower_centre(responses: NDArray[Any], detector: Detector) -> NDArray[np.float64]:
    """Photon-weighted centre of mass of each response.

    Parameters
    ----------
    responses
        (N, R, K), photons in each fibre.
    detector
        whose face.

    Returns
    -------
    (N, 2), row and column in fibre units. A response without light has no centre of its own and
    gets the middle of the face, the guess that is never far off.

    Raises
    ------
    ValueError
        where the last two axes are not the detector's.

    Examples
    --------
    >>> from zdc_nb.detector import ZN
    >>> response = np.zeros((1, 44, 44), np.uint16)
    >>> response[0, 10, 20], response[0, 10, 24] = 3, 1
    >>> shower_centre(response, ZN)
    array([[10., 21.]])
    """
    flat = _flat(responses, detector)
    centre = np.empty((len(flat), 2))
    for part in _chunks(len(flat)):
        centre[part] = _centre(_Lit.of(flat[part]), detector)
    return centre


def containment_radius(
    responses: NDArray[Any], detector: Detector, fraction: float = 0.9
) -> NDArray[np.float64]:
    """Radius of the circle about the shower centre that holds ``fraction`` of the photons.

    A photon counts as standing at the middle of its fibre, so this is the smallest distance r
    from :func:`shower_centre` to a lit fibre such that the fibres no farther than r hold at least
    ``fraction`` of the photons. A single lit fibre gives 0.

    Parameters
    ----------
    responses
        (N, R, K), photons in each fibre, none negative.
    detector
        whose face.
    fraction
        in (0, 1].

    Returns
    -------
    (N,), fibre units; 0 for a response without light.

    Raises
    ------
    ValueError
        where ``fraction`` is outside (0, 1] or the last two axes are not the detector's.

    Examples
    --------
    >>> from zdc_nb.detector import ZN
    >>> response = np.zeros((1, 44, 44), np.uint16)
    >>> response[0, 10, 20], response[0, 10, [15, 25]] = 17, 1
    >>> containment_radius(response, ZN), containment_radius(response, ZN, fraction=0.85)
    (array([5.]), array([0.]))
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a value in (0, 1], got {fraction}")
    flat = _flat(responses, detector)
    radius = np.empty(len(flat))
    for part in _chunks(len(flat)):
        lit = _Lit.of(flat[part])
        radius[part] = _radius(lit, _centre(lit, detector), detector, fraction)
    return radius


def measure(
    responses: NDArray[Any], detector: Detector
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Channel sums, shower centre and the radius of 90% of the photons, in one pass.

    Parameters
    ----------
    responses
        (N, R, K), photons in each fibre, none negative.
    detector
        of R x K fibres and C channels.

    Returns
    -------
    (N, C), (N, 2) and (N,): as :func:`channel_sums`, :func:`shower_centre` and
    :func:`containment_radius`, which each read all responses again. ``ValueError`` as there.
    """
    flat = _flat(responses, detector)
    masks = _by_fibre(detector)
    channels = np.empty((len(flat), masks.shape[1]))
    centre, radius = np.empty((len(flat), 2)), np.empty(len(flat))
    for part in _chunks(len(flat)):
        lit = _Lit.of(flat[part])
        channels[part] = lit.matrix(detector.dim) @ masks
        centre[part] = _centre(lit, detector)
        radius[part] = _radius(lit, centre[part], detector, 0.9)
    return _whole(channels, flat), centre, radius


def diversity(
    responses: NDArray[Any] | sparse.csr_array, particle: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Diversity f_div of the responses to each unique particle (paper, eq. 1).

    Parameters
    ----------
    responses
        (N, R, K), raw photon counts; or the same as a sparse matrix (N, R * K).
    particle
        (N,), equal for responses to the same particle.

    Returns
    -------
    One value for each of ``np.unique(particle)``, in that order: the population standard
    deviation of each fibre's counts over the particle's responses, summed over fibres (photons).
    Exactly 0 for one response or identical ones.

    Raises
    ------
    ValueError
        where ``particle`` is not one label a response.

    Examples
    --------
    >>> responses = np.array([[[0, 1]], [[4, 1]], [[9, 9]]])
    >>> diversity(responses, np.array([7, 7, 8]))
    array([2., 0.])
    """
    flat: Any = responses
    if not sparse.issparse(responses):
        flat = responses.reshape(len(responses), -1)
    if particle.shape != (flat.shape[0],):
        raise ValueError(f"particle: expected ({flat.shape[0]},) labels, got {particle.shape}")
    _, group, counts = np.unique(particle, return_inverse=True, return_counts=True)
    places = np.arange(len(group))
    members = sparse.csr_array(
        (np.ones(len(group), np.int64), (group, places)), (len(counts), len(group))
    )
    photons = sparse.csr_array(flat).astype(np.int64)
    # n sum(x^2) - (sum x)^2 in whole numbers, so that it is 0 where all are equal
    squares = (members @ photons.power(2)).multiply(counts[:, None])
    variances = sparse.csr_array(squares - (members @ photons).power(2))
    spread: NDArray[np.float64] = np.sqrt(variances.astype(np.float64)).sum(axis=1) / counts
    return spread


def diversity_weights(
    responses: NDArray[Any] | sparse.csr_array,
    particle: NDArray[np.int64],
    epsilon: float,
    mean_one: bool,
) -> NDArray[np.float64]:
    """Weight f_div_inv_w of each response in the loss (paper, eq. 3).

    minmax(1 / f_div) * |X_c| + epsilon for a particle with |X_c| responses. A particle with
    f_div = 0 (one response, or identical ones) is a rare artefact by definition: its minmax is 0
    and it takes no part in the minimum and maximum. Where all others are equally diverse, minmax
    is 0 / 0; none of them is then an artefact beside the rest and each gets 1.

    Parameters
    ----------
    responses
        (N, R, K), raw photon counts of the training split, or sparse as for :func:`diversity`.
    particle
        (N,), equal for responses to the same particle.
    epsilon
        positive, so that no response is lost to the training.
    mean_one
        rescale, so that the weights have mean 1 over the responses and the learning rate keeps
        its meaning.

    Returns
    -------
    (N,) float64, positive.

    Raises
    ------
    ValueError
        where ``epsilon`` is not positive, and as :func:`diversity`.

    Examples
    --------
    >>> responses = np.array([[[0]], [[8]], [[0]], [[2]], [[5]]])
    >>> particle = np.array([1, 1, 2, 2, 3])
    >>> diversity_weights(responses, particle, epsilon=0.5, mean_one=False)
    array([0.5, 0.5, 2.5, 2.5, 0.5])
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon: expected a positive value, got {epsilon}")
    f_div = diversity(responses, particle)
    _, inverse, counts = np.unique(particle, return_inverse=True, return_counts=True)
    weights = (_minmax_of_inverse(f_div) * counts + epsilon)[inverse]
    return weights / weights.mean() if mean_one else weights


def _minmax_of_inverse(f_div: NDArray[np.float64]) -> NDArray[np.float64]:
    diverse = f_div > 0
    scaled = np.zeros_like(f_div)
    if not diverse.any():
        return scaled
    inverse = 1 / f_div[diverse]
    low, high = inverse.min(), inverse.max()
    scaled[diverse] = (inverse - low) / (high - low) if high > low else 1.0
    return scaled


def _flat(responses: NDArray[Any], detector: Detector) -> NDArray[Any]:
    """(N, R * K) view of (..., R, K)."""
    rows, columns = detector.shape
    if responses.shape[-2:] != detector.shape:
        raise ValueError(f"responses: expected (..., {rows}, {columns}), got {responses.shape}")
    return responses.reshape(-1, detector.dim)


def _chunks(length: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, length, _CHUNK))


def _by_fibre(detector: Detector) -> NDArray[np.float64]:
    """(R * K, C): 1 where a channel reads a fibre."""
    return detector.masks.reshape(-1, detector.dim).T.astype(np.float64)


def _whole(sums: NDArray[np.float64], of: NDArray[Any]) -> NDArray[Any]:
    """Sums of whole numbers as whole numbers."""
    return np.rint(sums).astype(np.int64) if np.issubdtype(of.dtype, np.integer) else sums


class _Lit(NamedTuple):
    """The lit fibres of n responses, one response after the other."""

    photons: NDArray[np.float64]
    fibre: NDArray[np.int64]
    start: NDArray[np.int64]
    """(n + 1,): where the fibres of each response begin, and where the last one's end."""

    @classmethod
    def of(cls, flat: NDArray[Any]) -> _Lit:
        """Of (n, R * K) light."""
        n, dim = flat.shape
        place = np.flatnonzero(flat)
        start = np.searchsorted(place, dim * np.arange(n + 1))
        fibre = place - np.repeat(dim * np.arange(n), np.diff(start))
        return cls(flat.reshape(-1)[place].astype(np.float64), fibre, start)

    @property
    def response(self) -> NDArray[np.int64]:
        """The response that each fibre belongs to."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    def matrix(self, dim: int) -> sparse.csr_array:
        """(n, R * K) the same as a sparse matrix; float64 is exact for photon counts."""
        return sparse.csr_array(
            (self.photons, self.fibre, self.start), shape=(len(self.start) - 1, dim)
        )


def _centre(lit: _Lit, detector: Detector) -> NDArray[np.float64]:
    row, column = (axis.reshape(-1) for axis in np.indices(detector.shape))
    moments = lit.matrix(detector.dim) @ np.stack([np.ones(detector.dim), row, column], axis=1)
    photons = moments[:, :1]
    centre = np.tile(np.array(detector.face_centre), (len(photons), 1))
    np.divide(moments[:, 1:], photons, out=centre, where=photons > 0)
    return centre


def _radius(
    lit: _Lit, centre: NDArray[np.float64], detector: Detector, fraction: float
) -> NDArray[np.float64]:
    response = lit.response
    row, column = np.divmod(lit.fibre, detector.shape[1])
    distance = np.hypot(row - centre[response, 0], column - centre[response, 1])
    order = _by_response_and(distance, response)
    held = np.cumsum(lit.photons[order])
    ends = np.concatenate([[0.0], held])[lit.start]
    total = np.diff(ends)
    # The tolerance keeps rounding in fraction * total from asking for one photon more.
    first = np.searchsorted(held, ends[:-1] + fraction * total * (1 - 1e-12))
    radius = np.zeros(len(total))
    bright = total > 0
    radius[bright] = distance[order][first[bright]]
    return radius


def _by_response_and(
    distance: NDArray[np.float64], response: NDArray[np.int64]
) -> NDArray[np.intp]:
    """The order of lit fibres by response, and within it by distance."""
    # one key sorts several times as fast as two; what it rounds is below 1e-9 fibres
    farthest = distance.max(initial=0.0) + 1.0
    return np.argsort(response + distance / farthest)
