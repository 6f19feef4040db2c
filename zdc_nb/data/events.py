"""Responses of a detector and the particles that caused them, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from zdc_nb.detector.geometry import FEATURES, ZN, Detector
from zdc_nb.params import Subset

__all__ = [
    "FEATURES",
    "Conditioned",
    "Conditions",
    "Events",
    "Split",
    "Trials",
    "bend",
    "cap",
    "deal_particles",
    "from_vertex",
    "impact_point",
    "keep_aside",
    "select_subset",
    "split_by_response",
]


@dataclass(frozen=True, eq=False)
class Events:
    """N responses of a detector of R x K fibres; only lit ones, about one in twenty, take memory.

    Attributes
    ----------
    pdg
        (N,) int32, PDG codes; 0 where unknown.
    features
        (N, 9) float64, in the order and units of :data:`FEATURES`.
    photons
        (N, R * K) uint16, photons counted in each fibre, row * K + column, as a sparse matrix in
        canonical form: the lit fibres of a response in increasing order, each once.
    particle
        (N,) int64, equal for responses to the same unique particle (pdg and nine features).
        Kept through selections, so that it means the same in every part of a split.
    detector
        what responded.
    """

    pdg: NDArray[np.int32]
    features: NDArray[np.float64]
    photons: sparse.csr_array
    particle: NDArray[np.int64]
    detector: Detector = ZN

    @classmethod
    def from_arrays(
        cls,
        pdg: NDArray[np.int32],
        features: NDArray[np.float64],
        responses: NDArray[np.uint16] | sparse.csr_array,
        particle: NDArray[np.int64] | None = None,
        detector: Detector = ZN,
    ) -> Events:
        """Check shapes and, unless ``particle`` is given, number the unique particles.

        ``responses`` are (N, R, K) uint16, or the same as ``photons``. Particles are numbered in
        the order of their PDG codes, then of their features. Raises ``ValueError``.
        """
        n, *shape = responses.shape
        expected = [detector.dim] if sparse.issparse(responses) else [*detector.shape]
        if shape != expected or responses.dtype != np.uint16:
            sizes = ", ".join(map(str, expected))
            raise ValueError(
                f"responses: expected (N, {sizes}) uint16, got {responses.shape} {responses.dtype}"
            )
        if features.shape != (n, len(FEATURES)):
            raise ValueError(f"features: expected ({n}, 9), got {features.shape}")
        if pdg.shape != (n,):
            raise ValueError(f"pdg: expected ({n},), got {pdg.shape}")
        if particle is None:
            particle = _number_particles(pdg, features)
        elif particle.shape != (n,):
            raise ValueError(f"particle: expected ({n},), got {particle.shape}")
        photons = sparse.csr_array(
            responses if sparse.issparse(responses) else responses.reshape(n, detector.dim)
        )
        photons.sum_duplicates()
        photons.eliminate_zeros()
        return cls(
            pdg.astype(np.int32),
            features.astype(np.float64),
            photons,
            particle.astype(np.int64),
            detector,
        )

    @classmethod
    def join(cls, parts: Sequence[Events]) -> Events:
        """All events of the parts, their particles numbered anew; at least one part.

        Raises ``ValueError`` where the parts are of several detectors.
        """
        detector = parts[0].detector
        for part in parts:
            if part.detector != detector:
                raise ValueError(
                    f"join: expected events of the {detector.name} alone, got some of the "
                    f"{part.detector.name}"
                )
        return cls.from_arrays(
            np.concatenate([part.pdg for part in parts]),
            np.concatenate([part.features for part in parts]),
            sparse.vstack([part.photons for part in parts], format="csr"),
            detector=detector,
        )

    def __len__(self) -> int:
        return len(self.pdg)

    def __getitem__(self, index: NDArray[np.generic] | slice) -> Events:
        """The events at ``index`` (a boolean mask, integers or a slice)."""
        return Events(
            self.pdg[index],
            self.features[index],
            self.photons[index],
            self.particle[index],
            self.detector,
        )

    @property
    def responses(self) -> NDArray[np.uint16]:
        """(N, R, K) photons counted in each fibre: a new array of 2 N R K bytes, not writable.

        To change it would not change the events.
        """
        dense: NDArray[np.uint16] = self.photons.toarray().reshape(-1, *self.detector.shape)
        dense.flags.writeable = False
        return dense

    @property
    def photon_sum(self) -> NDArray[np.int64]:
        """(N,) photons in each response."""
        total: NDArray[np.int64] = self.photons.sum(axis=1, dtype=np.int64)
        return total

    @property
    def lit_fibres(self) -> NDArray[np.int64]:
        """(N,) fibres with light in each response."""
        lit: NDArray[np.int64] = np.diff(self.photons.indptr).astype(np.int64)
        return lit


class Conditioned(Protocol):
    """What a flow is told of N responses: :class:`Events`, or :class:`Conditions` alone."""

    @property
    def features(self) -> NDArray[np.float64]:
        """(N, 9) of the particles, as in :data:`FEATURES`."""

    @property
    def photon_sum(self) -> NDArray[np.int64]:
        """(N,) photons that a response has, or shall have."""

    @property
    def detector(self) -> Detector:
        """What responds."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Conditions:
    """Particles, (N, 9) ``features``, and the ``photon_sum`` (N,) that is asked of each."""

    features: NDArray[np.float64]
    photon_sum: NDArray[np.int64]
    detector: Detector = ZN

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, eq=False)
class Trials:
    """How often each of P particles was simulated, and how often it sent light.

    Attributes
    ----------
    pdg, features
        (P,) int32 and (P, 9), as in :class:`Events`.
    simulated
        (P,) int64, responses to the particle.
    lit
        (P,) int64, those with as many photons as are kept.
    """

    pdg: NDArray[np.int32]
    features: NDArray[np.float64]
    simulated: NDArray[np.int64]
    lit: NDArray[np.int64]

    @classmethod
    def count(
        cls, pdg: NDArray[np.int32], features: NDArray[np.float64], lit: NDArray[np.bool_]
    ) -> Trials:
        """Of N responses, whether each is lit: one row for each unique particle."""
        counted = cls(pdg, features, np.ones(len(pdg), np.int64), lit.astype(np.int64))
        return cls.join([counted])

    @classmethod
    def join(cls, parts: Sequence[Trials]) -> Trials:
        """All parts together; a particle of several is one row, whose numbers are added."""
        pdg = np.concatenate([part.pdg for part in parts])
        features = np.concatenate([part.features for part in parts])
        number = _number_particles(pdg, features)
        _, first = np.unique(number, return_index=True)

        def total(values: list[NDArray[np.int64]]) -> NDArray[np.int64]:
            added = np.zeros(len(first), np.int64)
            np.add.at(added, number, np.concatenate(values))
            return added

        return cls(
            pdg[first],
            features[first],
            total([part.simulated for part in parts]),
            total([part.lit for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.pdg)

    def __getitem__(self, index: NDArray[np.generic] | slice) -> Trials:
        """The particles at ``index``."""
        return Trials(self.pdg[index], self.features[index], self.simulated[index], self.lit[index])

    def find(self, events: Events) -> NDArray[np.int64]:
        """(N,) the row of each event's particle; -1 where it is none of these."""
        number = _number_particles(
            np.concatenate([self.pdg, events.pdg]),
            np.concatenate([self.features, events.features]),
        )
        row = np.full(int(number.max(initial=-1)) + 1, -1)
        row[number[: len(self)]] = np.arange(len(self))
        found: NDArray[np.int64] = row[number[len(self) :]]
        return found

    def of(self, subset: Subset, detector: Detector) -> Trials:
        """Those of one of a detector's data sets."""
        return self if subset == "all" else self[self.pdg == detector.codes[subset]]


def _number_particles(pdg: NDArray[np.int32], features: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) as from ``np.unique`` of the rows, which takes twenty times as long."""
    rows = np.column_stack([pdg, features])
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    number = np.zeros(len(rows), np.int64)
    number[order[1:]] = np.cumsum((ordered[1:] != ordered[:-1]).any(axis=1))
    return number


def impact_point(features: NDArray[np.float64], detector: Detector) -> NDArray[np.float64]:
    """(N, 2): x and y (m) from the centre of a detector's face where a flight without decay ends.

    ``features`` (N, 9) as in :data:`FEATURES`. The flight is straight but for the detector's
    deflection of charged particles; where these are swept away, it is straight all the same. The
    side that a particle flies to is the sign of pz; the vertex's few centimetres along z do not
    matter.
    """
    vx, vy, px, py, pz = (features[:, FEATURES.index(k)] for k in ("vx", "vy", "px", "py", "pz"))
    slope = detector.distance / np.abs(pz)
    x = vx + slope * px - detector.offset[0] + detector.distance * bend(features, detector)
    return np.column_stack([x, vy + slope * py - detector.offset[1]])


def bend(features: NDArray[np.float64], detector: Detector) -> NDArray[np.float64]:
    """(N,) by how much the slope x / z from the origin to where a particle arrives is greater than
    that of its straight flight: deflection * charge / (abs(pz) * distance)."""
    if not detector.deflection:
        return np.zeros(len(features))
    charge, pz = (features[:, FEATURES.index(name)] for name in ("charge", "pz"))
    along = np.maximum(np.abs(pz), 1e-6) * detector.distance
    bent: NDArray[np.float64] = detector.deflection * charge / along
    return bent


def from_vertex(
    features: NDArray[np.float64], vertex: NDArray[np.float64], detector: Detector
) -> NDArray[np.float64]:
    """(N, 9) features of particles from ``vertex`` (3,) that arrive where those of ``features`` do.

    A generator that never saw a vertex so far off must not be asked about one: the slopes say
    the same. Momenta change by the offset (m) times abs(pz) / distance.
    """
    moved = features.copy()
    along = np.abs(features[:, FEATURES.index("pz")]) / detector.distance
    for axis, (position, momentum) in enumerate((("vx", "px"), ("vy", "py"))):
        offset = features[:, FEATURES.index(position)] - vertex[axis]
        moved[:, FEATURES.index(momentum)] += offset * along
    first = FEATURES.index("vx")
    moved[:, first : first + 3] = vertex
    return moved


def select_subset(events: Events, subset: Subset) -> Events:
    """The events of one of the detector's data sets; raises ``ValueError`` if there are none."""
    selected = events if subset == "all" else events[events.pdg == events.detector.codes[subset]]
    if len(selected) == 0:
        raise ValueError(f"none of the {len(events)} responses belongs to the subset {subset!r}")
    return selected


def cap(events: Events, at_most: int, seed: int) -> Events:
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


class Split(NamedTuple):
    """Events for four purposes.

    ``train``, ``validation`` and ``test``; and ``reserved``, further responses to the test
    particles, which the floors are drawn from: split by response, the training part itself.
    """

    train: Events
    validation: Events
    test: Events
    reserved: Events


def split_by_response(events: Events, fractions: tuple[float, float, float], seed: int) -> Split:
    """A seeded random split of the responses, as in the paper.

    Repeats of one particle fall in all parts. Raises ``ValueError`` where a part would be empty.
    """
    order = np.random.default_rng(seed).permutation(len(events))
    first = round(fractions[0] * len(events))
    second = round((fractions[0] + fractions[1]) * len(events))
    parts = (order[:first], order[first:second], order[second:])
    if any(len(part) == 0 for part in parts):
        raise ValueError(f"{len(events)} responses are too few to split {fractions}")
    train, validation, test = (events[np.sort(part)] for part in parts)
    return Split(train, validation, test, train)


def deal_particles(events: Events, shares: Sequence[float], seed: int) -> list[Events]:
    """Parts that share no particle, whole particles in a seeded random order.

    Part k gets about ``shares[k]`` of the responses; the shares sum to 1. Raises ``ValueError``
    where a part would be empty.
    """
    unique, inverse, counts = np.unique(events.particle, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(unique))
    # by the middle of the particle's responses, so that none is always the last of a part
    middle = np.cumsum(counts[order]) - counts[order] / 2
    ends = np.cumsum(shares)[:-1] * len(events)
    part = np.empty(len(unique), np.int64)
    part[order] = np.searchsorted(ends, middle, side="right")
    found = [events[part[inverse] == k] for k in range(len(shares))]
    if any(len(part) == 0 for part in found):
        raise ValueError(f"{len(unique)} particles are too few to split {tuple(shares)}")
    return found


def keep_aside(events: Events, share: float, seed: int) -> tuple[Events, Events]:
    """Of each particle's responses, about ``1 - share`` and ``share``, seeded.

    A particle keeps at least one in the first part, so that the second is empty where none is
    repeated.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(events))
    order = shuffled[np.argsort(events.particle[shuffled], kind="stable")]
    _, first, counts = np.unique(events.particle[order], return_index=True, return_counts=True)
    rank = np.arange(len(events)) - np.repeat(first, counts)
    aside = np.zeros(len(events), bool)
    aside[order] = rank >= np.repeat(np.maximum(np.rint((1 - share) * counts), 1), counts)
    return events[~aside], events[aside]
