r"""Where a shower should be: the expected centre of a particle's response, and how far to trust it.

A particle that arrives undecayed showers where its flight ends. With the vertex at the origin and a
straight flight to a wall at z this is

.. math::

    x = z \tan(2 \arctan e^{-\eta}) \cos\varphi, \qquad y = z \tan(2 \arctan e^{-\eta}) \sin\varphi,

from pseudorapidity and azimuthal angle. :func:`~zdc_nb.data.events.impact_point` says the same from
momentum and vertex, with the detector's offset and its deflection of charged particles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from particle import InvalidParticle, Particle, ParticleNotFound
from particle.pdgid import is_nucleus

from zdc_nb.data.events import FEATURES, Events, impact_point
from zdc_nb.detector import Detector, shower_centre

__all__ = ["Expected", "arrival_chance", "expected_centre", "learned_offset"]

Array = NDArray[np.float64]


class Expected(NamedTuple):
    """Of N particles.

    ``centre`` (N, 2): row and column in fibre units. ``weight`` (N,): the chance that the shower is
    there; where it is 0, the centre is the middle of the face and means nothing.
    """

    centre: Array
    weight: Array


def expected_centre(
    pdg: NDArray[np.integer],
    features: Array,
    detector: Detector,
    offset: tuple[float, float] = (0.0, 0.0),
) -> Expected:
    """Where the showers of particles should be.

    Parameters
    ----------
    pdg, features
        (N,) PDG codes and (N, 9), as in :class:`~zdc_nb.data.events.Events`.
    offset
        rows and columns that are added, see :func:`learned_offset`.

    Returns
    -------
    The weight is :func:`arrival_chance`, and 0 of what is aimed beside the face.

    Examples
    --------
    >>> from zdc_nb.data.simulation import aim
    >>> from zdc_nb.detector import ZN
    >>> neutron = aim(2112, 2500.0, (0.0, 5 * ZN.pitch))
    >>> centre, weight = expected_centre(neutron.pdg, neutron.features, ZN)
    >>> centre.round(3).tolist(), weight.tolist()
    ([[16.5, 21.5]], [1.0])
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # pz = 0 never arrives
        x, y = impact_point(features, detector).T
    height, width = detector.face
    inside = (np.abs(x) <= width / 2) & (np.abs(y) <= height / 2)
    weight = np.where(inside, arrival_chance(pdg, features, detector), 0.0)
    row, column = detector.face_centre
    # row 0 is at the top
    found = np.column_stack([row - y / detector.pitch, column + x / detector.pitch]) + offset
    return Expected(np.where(weight[:, None] > 0, found, (row, column)), weight)


def arrival_chance(pdg: NDArray[np.integer], features: Array, detector: Detector) -> Array:
    r"""(N,) the chance that a particle is still there at the detector's distance L.

    :math:`\exp(-L m / (|p_z| c\tau))`, with mass and c tau from the table of the Particle Data Group;
    0 of charged particles where the detector has them swept away, and of PDG codes that the table
    does not have: of what may decay at once nothing is said.
    """
    charge, pz = (features[:, FEATURES.index(name)] for name in ("charge", "pz"))
    codes, inverse = np.unique(pdg, return_inverse=True)
    rate = np.array([_decay_rate(int(code)) for code in codes])[inverse]
    with np.errstate(divide="ignore", invalid="ignore"):
        decays = np.where(rate > 0, detector.distance * rate / np.abs(pz), 0.0)
    swept = (charge != 0) & (detector.deflection is None)
    return np.where(swept, 0.0, np.exp(-decays))


def _decay_rate(pdg: int) -> float:
    """m / c tau of a species (GeV / m): 0 of one that is stable, infinite of one that is not known."""
    try:
        entry = Particle.from_pdgid(pdg)
    except (InvalidParticle, ParticleNotFound):
        return np.inf
    if entry.ctau is None:  # nuclei have none in the table
        return 0.0 if is_nucleus(pdg) else np.inf
    # MeV / mm; neutrinos, of no known mass, are stable
    return np.inf if entry.ctau == 0 else (entry.mass or 0.0) / entry.ctau


def learned_offset(train: Events) -> tuple[float, float]:
    """Rows and columns by which showers lie off where they should be.

    The weighted median, along each axis, of measured less expected centre, over all training
    responses with their particles' weights; (0, 0) where all of these are 0. A median, since
    responses of what has decayed, or was lost on the way, lie anywhere.
    """
    expected = expected_centre(train.pdg, train.features, train.detector)
    if not (expected.weight > 0).any():
        return 0.0, 0.0
    some = expected.weight > 0
    off = shower_centre(train.responses[some], train.detector) - expected.centre[some]
    row, column = (_weighted_median(values, expected.weight[some]) for values in off.T)
    return row, column


def _weighted_median(values: Array, weights: Array) -> float:
    """The least value that at least half of the weight is at or below."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2)])
