"""A study's test part and its counterpart: particles that were learned from, and particles never seen.

A study is split by particle or by response, so that its test particles are all new or (nearly) all
seen. But a simulation can be asked for more at any time: beside its own test part a study simulates
another, with the same models to be tested on both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zdc_nb.data.events import Events, Split, keep_aside
from zdc_nb.data.simulation import simulate_again
from zdc_nb.evaluation import what_can_be_evaluated
from zdc_nb.params import Study, Subset, derive_seed
from zdc_nb.study.artefacts import COUNTERPART_PARTICLES, LEAST_REPEATS
from zdc_nb.study.dataset import new_particles

__all__ = ["ParticlePart", "particle_parts"]


class ParticlePart(NamedTuple):
    """Responses that models are tested on, to particles all seen in training or all new.

    ``reserved`` are further responses to the same particles for the floor; None where there are
    none. ``rows`` are positions in the study's own test part; None of the *counterpart*, which is
    simulated beside it.
    """

    test: Events
    reserved: Events | None
    rows: NDArray[np.intp] | None


def particle_parts(study: Study, subset: Subset, split: Split) -> dict[str, ParticlePart]:
    """Test responses to particles that were learned from (``seen``), and to others (``new``).

    One of the two is the study's own test part: ``new`` of data that are split by particle,
    ``seen`` of those split by response. The other is its counterpart: particles of the training part
    simulated again, or new ones, with the study's own simulation. Of data from files, which nobody
    can simulate again, it is what the test part itself holds of them. A part that is empty is left
    out. Where there is a floor, so are the few responses that it has no answer to.
    """
    data = study.data
    rows = np.arange(len(split.test))
    if data.split == "by_particle":
        found = {"new": _own(split.test, split.reserved, rows)}
        if data.file is None:
            assert data.test_repeats is not None
            assert data.reserved is not None
            events = _seen_again(study, subset, split.train, data.test_repeats)
            found = {"seen": _aside(study, subset, events, data.reserved), **found}
    else:
        known = np.isin(split.test.particle, split.train.particle)
        found = {"seen": _own(split.test, split.train, rows[known])}
        if data.file is None:
            repeats = max(data.repeats, LEAST_REPEATS)
            seed = derive_seed(study.seed, "new particles", subset)
            events = new_particles(study, subset, COUNTERPART_PARTICLES * repeats, repeats, seed)
            of_train, _, of_test = data.fractions
            found["new"] = _aside(study, subset, events, of_train / (of_train + of_test))
        else:
            found["new"] = _own(split.test, split.train, rows[~known])
    return {name: part for name, part in found.items() if len(part.test)}


def _seen_again(study: Study, subset: Subset, train: Events, repeats: int) -> Events:
    """Some of the particles that were learned from, simulated as often as test particles are."""
    rng = np.random.default_rng(derive_seed(study.seed, "seen particles", subset))
    chosen = rng.permutation(np.unique(train.particle))[:COUNTERPART_PARTICLES]
    known = train[np.isin(train.particle, chosen)]
    repeats = max(repeats, LEAST_REPEATS)
    seed = derive_seed(study.seed, "seen again", subset)
    return simulate_again(known, repeats, study.data.min_photons, seed)


def _aside(study: Study, subset: Subset, events: Events, share: float) -> ParticlePart:
    test, reserved = keep_aside(events, share, derive_seed(study.seed, "counterpart", subset))
    part = _own(test, reserved, np.arange(len(test)))
    return part._replace(rows=None)


def _own(test: Events, reserved: Events, rows: NDArray[np.intp]) -> ParticlePart:
    """Rows of a test part, with their floor as far as there is one."""
    chosen = test[rows]
    if len(rows) and "reference+sum" in what_can_be_evaluated(reserved, chosen).baselines:
        rows = rows[np.isin(chosen.particle, reserved.particle)]
        return ParticlePart(test[rows], reserved, rows)
    return ParticlePart(chosen, None, rows)
