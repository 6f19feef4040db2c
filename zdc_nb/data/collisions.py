"""Whole collisions from the open simulation: their particles, and one response to each of these."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from zdc_nb.data.events import FEATURES, Events
from zdc_nb.data.particles import Collisions
from zdc_nb.data.simulation import CHUNK, Particles, draw_particles, model_of, respond
from zdc_nb.detector.geometry import Detector

__all__ = ["can_be_simulated", "draw_collisions", "respond_once"]


def draw_collisions(events: int, seed: int, detector: Detector) -> Collisions:
    """The particles of so many collisions, numbered from 0, of the detector's open simulation.

    How many a collision has is Poisson distributed with the mean ``per_collision`` of the simulation,
    so that some may have none. Their species are of the simulation's mixture, and they share a vertex.

    Raises ``ValueError`` where the detector has no simulation.
    """
    rng = np.random.default_rng(seed)
    number = rng.poisson(model_of(detector).primaries.per_collision, events)
    particles = draw_particles(rng, rng.random(number.sum()), detector=detector)
    event = np.repeat(np.arange(events), number)
    features = particles.features
    vertex = slice(FEATURES.index("vx"), FEATURES.index("vz") + 1)
    _, first, inverse = np.unique(event, return_index=True, return_inverse=True)
    features[:, vertex] = features[first[inverse], vertex]
    dark = sparse.csr_array((len(event), detector.dim), dtype=np.uint16)
    return Collisions(event, Events.from_arrays(particles.pdg, features, dark, detector=detector))


def can_be_simulated(particles: Events) -> NDArray[np.bool_]:
    """(N,) whether the open simulation has each particle's species."""
    known = [kind.pdg for kind in model_of(particles.detector).primaries.species]
    return np.isin(particles.pdg, known)


def respond_once(particles: Events, seed: int) -> Iterator[tuple[slice, NDArray[np.uint16]]]:
    """Simulate each particle once: which particles, and their responses (n, R, K), some at a time.

    The species have to be known, see :func:`can_be_simulated`. The same seed gives the same responses.
    """
    for number, start in enumerate(range(0, len(particles), CHUNK)):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        here = slice(start, min(start + CHUNK, len(particles)))
        some = Particles(particles.pdg[here], particles.features[here])
        yield here, respond(rng, some, 1, particles.detector)
