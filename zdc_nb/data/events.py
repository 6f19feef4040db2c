"""Responses of the neutron ZDC and the particles that caused them, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from zdc_nb.params import Subset

__all__ = ["FEATURES", "FIBRES", "PDG", "SHAPE", "Events", "select_subset", "split_events", "thin"]

FEATURES = ("energy", "vx", "vy", "vz", "px", "py", "pz", "mass", "charge")
"""The nine features of a particle: GeV, m (three), GeV (three), MeV, e."""

SHAPE = (44, 44)
"""Fibres of the neutron ZDC: rows (vertical), columns (horizontal)."""

FIBRES = SHAPE[0] * SHAPE[1]
"""Fibres of the neutron ZDC, numbered row * 44 + column."""

PDG: dict[Subset, int] = {"n": 2112, "lambda": 3122, "k0s": 310, "sigma+": 3222}
"""PDG codes of the subsets that hold a single species."""


@dataclass(frozen=True, eq=False)
class Events:
    """A set of N responses, of which only lit fibres take memory: about one in twenty.

    Attributes
    ----------
    pdg
        (N,) int32, PDG codes; 0 where unknown.
    features
        (N, 9) float64, in the order and units of :data:`FEATURES`.
    light
        (N, 1936) uint16, photons counted in each fibre, row * 44 + column, as a sparse matrix in
        canonical form: the lit fibres of a response in increasing order, each once.
    particle
        (N,) int64, equal for responses to the same unique particle (pdg and nine features).
        Kept through selections, so that it means the same in every part of a split.
    """

    pdg: NDArray[np.int32]
    features: NDArray[np.float64]
    light: sparse.csr_array
    particle: NDArray[np.int64]

    @classmethod
    def from_arrays(
        cls,
        pdg: NDArray[np.int32],
        features: NDArray[np.float64],
        responses: NDArray[np.uint16] | sparse.csr_array,
        particle: NDArray[np.int64] | None = None,
    ) -> Events:
        """Check shapes and, unless ``particle`` is given, number the unique particles.

        ``responses`` are (N, 44, 44) uint16, or the same as ``light``. Particles are numbered in
        the order of their PDG codes, then of their features. Raises ``ValueError``.
        """
        n, *shape = responses.shape
        expected = [FIBRES] if sparse.issparse(responses) else [*SHAPE]
        if shape != expected or responses.dtype != np.uint16:
            raise ValueError(
                f"responses: expected (N, 44, 44) uint16, got {responses.shape} {responses.dtype}"
            )
        if features.shape != (n, len(FEATURES)):
            raise ValueError(f"features: expected ({n}, 9), got {features.shape}")
        if pdg.shape != (n,):
            raise ValueError(f"pdg: expected ({n},), got {pdg.shape}")
        if particle is None:
            particle = _number_particles(pdg, features)
        elif particle.shape != (n,):
            raise ValueError(f"particle: expected ({n},), got {particle.shape}")
        light = responses if sparse.issparse(responses) else responses.reshape(n, FIBRES)
        light = sparse.csr_array(light)
        light.sum_duplicates()
        light.eliminate_zeros()
        return cls(
            pdg.astype(np.int32), features.astype(np.float64), light, particle.astype(np.int64)
        )

    @classmethod
    def join(cls, parts: Sequence[Events]) -> Events:
        """All events of the parts, their particles numbered anew; at least one part."""
        return cls.from_arrays(
            np.concatenate([part.pdg for part in parts]),
            np.concatenate([part.features for part in parts]),
            sparse.vstack([part.light for part in parts], format="csr"),
        )

    def __len__(self) -> int:
        return len(self.pdg)

    def __getitem__(self, index: NDArray[np.generic] | slice) -> Events:
        """The events at ``index`` (a boolean mask, integers or a slice)."""
        return Events(
            self.pdg[index], self.features[index], self.light[index], self.particle[index]
        )

    @property
    def responses(self) -> NDArray[np.uint16]:
        """(N, 44, 44) photons counted in each fibre: a new array of 3872 N bytes, not writable.

        To change it would not change the events.
        """
        dense: NDArray[np.uint16] = self.light.toarray().reshape(-1, *SHAPE)
        dense.flags.writeable = False
        return dense

    @property
    def photon_sum(self) -> NDArray[np.int64]:
        """(N,) photons in each response."""
        total: NDArray[np.int64] = self.light.sum(axis=1, dtype=np.int64)
        return total

    @property
    def lit_fibres(self) -> NDArray[np.int64]:
        """(N,) fibres with light in each response."""
        lit: NDArray[np.int64] = np.diff(self.light.indptr).astype(np.int64)
        return lit


def _number_particles(pdg: NDArray[np.int32], features: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) as from ``np.unique`` of the rows, which takes twenty times as long."""
    rows = np.column_stack([pdg, features])
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    number = np.zeros(len(rows), np.int64)
    number[order[1:]] = np.cumsum((ordered[1:] != ordered[:-1]).any(axis=1))
    return number


def select_subset(events: Events, subset: Subset) -> Events:
    """The events of one of the paper's data sets; raises ``ValueError`` if there are none."""
    selected = events if subset == "all" else events[events.pdg == PDG[subset]]
    if len(selected) == 0:
        raise ValueError(f"none of the {len(events)} responses belongs to the subset {subset!r}")
    return selected


def thin(events: Events, at_most: int, seed: int) -> Events:
    """At most ``at_most`` events, taking whole particles in a seeded random order.

    Whole particles, so that the repeats that diversity is measured on stay together. The last
    particle is cut where it would pass the limit.
    """
    if len(events) <= at_most:
        return events
    rng = np.random.default_rng(seed)
    unique, inverse = np.unique(events.particle, return_inverse=True)
    rank = rng.permutation(len(unique))[inverse]
    order = np.argsort(rank, kind="stable")[:at_most]
    return events[np.sort(order)]


def split_events(
    events: Events, fractions: tuple[float, float, float], seed: int
) -> tuple[Events, Events, Events]:
    """Training, validation and test events: a seeded random split of the responses.

    As in the paper the split is by response, so that repeats of one particle fall in all three
    parts. Raises ``ValueError`` where a part would be empty.
    """
    order = np.random.default_rng(seed).permutation(len(events))
    first = round(fractions[0] * len(events))
    second = round((fractions[0] + fractions[1]) * len(events))
    parts = (order[:first], order[first:second], order[second:])
    if any(len(part) == 0 for part in parts):
        raise ValueError(f"{len(events)} responses are too few to split {fractions}")
    train, validation, test = (events[np.sort(part)] for part in parts)
    return train, validation, test
