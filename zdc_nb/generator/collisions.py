"""What a generator answers to the particles of whole collisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from zdc_nb.data.events import FEATURES, Events
from zdc_nb.data.particles import Collisions
from zdc_nb.generator.generator import Generator

__all__ = ["OTHER_SIDE", "answer_collisions", "unanswered"]

OTHER_SIDE = "side"
"""Why a particle is not answered that flies to where no such detector stands."""


def unanswered(generator: Generator, particles: Events) -> NDArray[np.str_]:
    """(N,) why a particle is not answered; an empty text where it is.

    ``species``, ``energy`` or ``direction`` where the generator has not learned such a one, and
    ``side`` where no such detector stands on the side that it flies to.
    """
    why = generator.faults(particles.features)
    pz = particles.features[:, FEATURES.index("pz")]
    away = ~np.isin(np.where(pz > 0, "A", "C"), generator.detector.sides)
    return np.where(away, OTHER_SIDE, why)


def answer_collisions(
    generator: Generator,
    parts: Iterable[Collisions],
    seed: int,
    batch: int = 256,
    total: int | None = None,
) -> Iterator[tuple[Collisions, NDArray[np.uint16] | None]]:
    """Responses (n, R, K) to the particles of collisions, a batch at a time, for any number of them.

    Particles that are not answered (see :func:`unanswered`) come with None instead. With ``total``,
    the number of all particles, a bar is shown. Raises as :meth:`Generator.sample_parts`.
    """
    waiting: list[NDArray[np.int64]] = []
    left_out: list[Collisions] = []

    def answered() -> Iterator[Events]:
        for part in parts:
            known = unanswered(generator, part.particles) == ""
            waiting.append(part.event[known])
            left_out.append(part[~known])
            yield part.particles[known]

    for particles, responses in generator.sample_parts(answered(), seed, batch, total):
        event = np.concatenate(waiting)
        waiting[:] = [event[len(particles) :]]
        yield Collisions(event[: len(particles)], particles), responses
        yield from ((part, None) for part in left_out)
        left_out.clear()
    yield from ((part, None) for part in left_out)
