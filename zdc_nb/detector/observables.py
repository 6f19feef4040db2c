"""What a detector measures in a response: channels, shower centre and radius, diversity.

Positions and radii are in fibre units: one unit is the pitch, and fibre (i, j) is at (i, j). Sizes
are those of a :class:`~zdc_nb.detector.geometry.Detector`: R rows, K columns. Responses are read in chunks, so that memory stays small at the size of the published data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from zdc_nb.detector.geometry import Detector

__all__ = [
    "channel_sums",
    "containment_radius",
    "diversity",
    "diversity_weights",
    "shower_centre",
]

_CHUNK = 2048


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
    sums = _project(flat, detector.masks.reshape(-1, detector.dim).T)
    if np.issubdtype(flat.dtype, np.integer):
        sums = np.rint(sums).astype(np.int64)
    return sums.reshape(*responses.shape[:-2], len(detector.channels))


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
    row, column = (axis.reshape(-1) for axis in np.indices(detector.shape))
    moments = _project(
        _flat(responses, detector), np.stack([np.ones(detector.dim), row, column], axis=1)
    )
    photons = moments[:, :1]
    centre = np.tile(np.array(detector.face_centre), (len(photons), 1))
    np.divide(moments[:, 1:], photons, out=centre, where=photons > 0)
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
    centre = shower_centre(responses, detector)
    radius = np.zeros(len(flat))
    for part in _chunks(len(flat)):
        radius[part] = _radius(flat[part], centre[part], detector.shape[1], fraction)
    return radius


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
    _, counts = np.unique(particle, return_counts=True)
    groups = np.split(np.argsort(particle, kind="stable"), np.cumsum(counts)[:-1])
    spread = np.zeros(len(counts))
    for index in np.flatnonzero(counts > 1):
        group = flat[groups[index]]
        dense = group.toarray() if sparse.issparse(group) else group
        spread[index] = dense.std(axis=0, dtype=np.float64).sum()
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


def _project(flat: NDArray[Any], matrix: NDArray[Any]) -> NDArray[np.float64]:
    """flat @ matrix in float64, which is exact for photon counts."""
    matrix = matrix.astype(np.float64)
    out = np.empty((len(flat), matrix.shape[1]))
    for part in _chunks(len(flat)):
        np.matmul(flat[part].astype(np.float64), matrix, out=out[part])
    return out


def _radius(
    flat: NDArray[Any], centre: NDArray[np.float64], columns: int, fraction: float
) -> NDArray[np.float64]:
    # Only lit fibres are sorted: a response of the ZN has 20 to 60 of its 1936.
    response, fibre = np.nonzero(flat)
    row, column = np.divmod(fibre, columns)
    distance = np.hypot(row - centre[response, 0], column - centre[response, 1])
    order = np.lexsort((distance, response))
    photons = flat[response, fibre][order].astype(np.float64)
    total = np.bincount(response, weights=photons, minlength=len(flat))
    before = np.cumsum(total) - total
    # The tolerance keeps rounding in fraction * total from asking for one photon more.
    enough = np.cumsum(photons) - before[response] >= fraction * total[response] * (1 - 1e-12)
    lit, first = np.unique(response[enough], return_index=True)
    radius = np.zeros(len(flat))
    radius[lit] = distance[order][enough][first]
    return radius
