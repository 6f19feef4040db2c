"""How near a test particle is to what was learned from, and a response to those that were.

Particles: flows are told where a particle would hit the face, its energy, its kind and how many
photons it gave. Two particles of one species are therefore as far apart as their impact points, in
fibres, and their energies, of which :data:`ENERGY_STEP` counts as much as a fibre.

Responses: the Hellinger distance between their light, each normalised to 1,
H^2 = 1 - sum_k sqrt(p_k q_k). It is 0 for equal shares, 1 where no fibre is lit in both, and takes
the same account of few and of many photons as counting does: the root of a Poisson number has the
same spread whatever its mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import KDTree

from zdc_nb.data.events import FEATURES, Events, impact_point

__all__ = ["ENERGY_STEP", "nearest_particle", "nearest_response"]

ENERGY_STEP = 0.1
"""Difference of the logarithms of two energies that counts as much as a fibre."""

_CHUNK, _BLOCK = 2048, 512
"""Training responses, and others, that are compared at once: they fit into a processor's cache."""


def nearest_particle(train: Events, test: Events) -> NDArray[np.float64]:
    """How far the nearest training particle of the same species is, in fibres.

    The distance is sqrt(dx^2 + dy^2 + (d ln E / ENERGY_STEP)^2), x and y those of
    :func:`~zdc_nb.data.events.impact_point` in fibres.

    Parameters
    ----------
    train, test
        events of one detector.

    Returns
    -------
    One for each of ``np.unique(test.particle)``; infinite where training has none of its species.
    """
    _, first = np.unique(test.particle, return_index=True)
    distance = np.full(len(first), np.inf)
    _, known = np.unique(train.particle, return_index=True)
    wanted, there = test[first], train[known]
    for code in np.unique(wanted.pdg):
        mine, theirs = wanted.pdg == code, there.pdg == code
        if theirs.any():
            distance[mine], _ = KDTree(_place(there[theirs])).query(_place(wanted[mine]))
    return distance


def _place(events: Events) -> NDArray[np.float64]:
    """(N, 3) where distances between particles are those of the space."""
    fibres = impact_point(events.features, events.detector) / events.detector.pitch
    energy = events.features[:, FEATURES.index("energy")]
    return np.column_stack([fibres, np.log(energy) / ENERGY_STEP])


def nearest_response(train: sparse.csr_array, responses: sparse.csr_array) -> NDArray[np.float64]:
    """Hellinger distance of each response to the nearest one that was learned from.

    Parameters
    ----------
    train, responses
        (N, K) and (M, K) photons in each fibre.

    Returns
    -------
    (M,) from 0 to 1; of a response without light 1.
    """
    wanted = _roots(responses).toarray()
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(wanted), _BLOCK)]
    turned = [np.ascontiguousarray(wanted[block].T) for block in blocks]
    overlap = np.zeros(len(wanted), np.float32)
    for start in range(0, train.shape[0], _CHUNK):
        known = _roots(train[start : start + _CHUNK])
        for block, some in zip(blocks, turned, strict=True):
            # as many products as training responses have lit fibres: most fibres are dark
            nearest = (known @ some).max(axis=0, initial=0.0)
            overlap[block] = np.maximum(overlap[block], nearest)
    distance: NDArray[np.float64] = np.sqrt(np.clip(1.0 - overlap.astype(np.float64), 0.0, 1.0))
    return distance


def _roots(photons: sparse.csr_array) -> sparse.csr_array:
    """Square roots of the shares of the light; rows without light stay empty."""
    found = photons.astype(np.float64)
    total = np.asarray(found.sum(axis=1)).ravel()
    found.data = np.sqrt(found.data / np.repeat(total, np.diff(found.indptr)))
    return found.astype(np.float32)
