"""An open, fast, parametrised simulation of a detector of fibres.

It is not GEANT4. Its first use is to stand in for the private set of ALICE's neutron ZDC: forward
particles of pp collisions fly 112.5 m, decay, are swept away or hit the calorimeter, which answers
with light in its fibres. What is kept of the physics is what the method lives on: the same particle
can light different places, showers are cut by the edge of the face, most particles that miss leave
a few stray photons, and light is counted in Poisson numbers.

Every number is in the detector's file, ``detectors/*.yaml`` (:class:`zdc_nb.params.SimulationParams`),
which says what was tuned to published facts and what was chosen.

The frame: x to the right and y up when facing the calorimeter, z along the flight, to either
side of the interaction point. Row 0 of a response is its top, column 0 its left. Units are m, GeV
and e; masses are in GeV here and in MeV in the features of an event.

A seed gives the same events on any machine: the chunks of particles have seeds of their own, a
particle's features are rounded to :data:`DECIMALS` before anything is computed from them, and
photons are counted in integers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from particle import Particle
from scipy import sparse
from scipy.special import gammainc, gammaincinv
from tqdm import tqdm

from zdc_nb.data.events import FEATURES, Events, Trials
from zdc_nb.detector.geometry import ZN, Detector
from zdc_nb.params.detector import ShowerParams, SimulationParams

__all__ = [
    "DECAYS",
    "VERSION",
    "Decay",
    "Particles",
    "Rays",
    "Sources",
    "aim",
    "collect_light",
    "decay_length",
    "decay_products",
    "draw_particles",
    "model_of",
    "respond",
    "simulate",
    "simulate_again",
    "simulate_counted",
    "two_body_decay",
]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

DECIMALS = 6
"""Energies and momenta (GeV) are rounded to these decimals, as in the published example rows."""


@dataclass(frozen=True)
class Decay:
    """A two-body decay: branching fraction and the daughters' PDG codes."""

    fraction: float
    daughters: tuple[int, int]


DECAYS: dict[int, tuple[Decay, ...]] = {
    111: (Decay(1.0, (22, 22)),),
    310: (Decay(0.692, (211, -211)), Decay(0.308, (111, 111))),
    3122: (Decay(0.641, (2212, -211)), Decay(0.359, (2112, 111))),
    -3122: (Decay(0.641, (-2212, 211)), Decay(0.359, (-2112, 111))),
    3222: (Decay(0.516, (2212, 111)), Decay(0.484, (2112, 211))),
    3112: (Decay(1.0, (2112, -211)),),
    -3112: (Decay(1.0, (-2112, 211)),),
    3322: (Decay(1.0, (3122, 111)),),
    3312: (Decay(1.0, (3122, -211)),),
    3334: (Decay(0.678, (3122, -321)), Decay(0.236, (3322, -211)), Decay(0.086, (3312, 111))),
    321: (Decay(0.207, (211, 111)),),
    -321: (Decay(0.207, (-211, 111)),),
}
"""Decays that can bring light to the face (Particle Data Group 2024, two-body modes; sums below 1
leave the rest unseen). Pions, muons and K0L decay too, but at energies that give light hardly
one in a hundred does so on the way, so they fly on."""

VERSION = 1
"""Of the physics: raised whenever the same seed gives other events, so that kept ones are redone."""

CHUNK = 64
"""Particles per chunk; a part of the seed's meaning, so that changing it changes the events."""

GOLDEN = 0.6180339887498949
"""Fractional part of the golden ratio: i * GOLDEN mod 1 fills [0, 1) evenly."""


def model_of(detector: Detector) -> SimulationParams:
    """The numbers of a detector's simulation; ``ValueError`` where it has none."""
    if detector.simulation is None:
        raise ValueError(
            f"there is no open simulation of the detector {detector.name}: expected the section "
            "simulation in its file, or responses from files"
        )
    return detector.simulation


# --- Primary particles ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Particles:
    """N primaries: ``pdg`` (N,) int32 and ``features`` (N, 9), as in :class:`Events`."""

    pdg: NDArray[np.int32]
    features: Array


@cache
def _properties(pdg: int) -> tuple[float, float, float]:
    """Mass (GeV), charge (e) and c tau (m) of a particle."""
    entry = Particle.from_pdgid(pdg)
    # electrons and protons are stable, and c tau of a photon is infinite in the table
    ctau = np.inf if entry.ctau is None else entry.ctau / 1e3
    return float(entry.mass or 0.0) / 1e3, float(entry.charge or 0.0), float(ctau)


def _look_up(pdg: NDArray[np.int32]) -> tuple[Array, Array, Array]:
    """Mass (GeV), charge (e) and c tau (m) of many particles, each (N,)."""
    codes, inverse = np.unique(pdg, return_inverse=True)
    table = np.array([_properties(int(code)) for code in codes]).reshape(-1, 3)
    mass, charge, ctau = table[inverse].T
    return mass, charge, ctau


def decay_length(pdg: int, energy: float) -> float:
    """m, how far a particle of ``energy`` (GeV) flies on average until it decays.

    Infinite of one that does not decay, or hardly ever so near, see :data:`DECAYS`.
    """
    mass, _, ctau = _properties(pdg)
    return ctau * np.sqrt(energy**2 - mass**2) / mass if pdg in DECAYS else np.inf


def aim(pdg: int, energy: float, impact: tuple[float, float], detector: Detector = ZN) -> Particles:
    """One particle from the middle of the interaction region that would hit the face at a point.

    It would if it did not decay and, where the detector has no deflection of charged particles, if
    it flew straight on.

    Parameters
    ----------
    pdg
        of a species.
    energy
        GeV, above the particle's mass.
    impact
        m, x and y from the centre of the face, as of
        :func:`~zdc_nb.data.events.impact_point`.

    Raises
    ------
    ValueError
        where the energy is not above the mass.

    Examples
    --------
    >>> from zdc_nb.data.events import impact_point
    >>> neutron = aim(2112, 2500.0, (0.01, -0.02))
    >>> impact_point(neutron.features, ZN).round(6).tolist()
    [[0.01, -0.02]]
    """
    mass, charge, _ = _properties(pdg)
    if not energy > mass:
        raise ValueError(f"aim: expected an energy above {mass:.4g} GeV, got {energy:g}")
    energy = round(energy, DECIMALS)
    momentum = np.sqrt(energy**2 - mass**2)
    pz = momentum
    for _ in range(3):  # the deflection is that of pz
        bent = (detector.deflection or 0.0) * charge / pz
        arrives = np.array([impact[0] + detector.offset[0] - bent, impact[1] + detector.offset[1]])
        slope = arrives / detector.distance
        pz = momentum / np.sqrt(1 + slope @ slope)
    px, py, pz = np.round([*(slope * pz), pz], DECIMALS)
    features = [energy, 0, 0, 0, px, py, pz, round(1e3 * mass, DECIMALS), charge]
    return Particles(np.array([pdg], np.int32), np.array([features], np.float64))


def draw_particles(
    rng: np.random.Generator,
    position: NDArray[np.floating],
    abundance: Mapping[int, float] | None = None,
    detector: Detector = ZN,
) -> Particles:
    """Primaries, of the species found at ``position`` (N,) in [0, 1) of the mixture.

    The position is asked for, so that a caller can fill the mixture evenly and a small set still
    holds its rare species. ``abundance`` multiplies that of species, by PDG code.
    """
    n = len(position)
    more, primaries = abundance or {}, model_of(detector).primaries
    species = primaries.species
    cumulative = np.cumsum([kind.abundance * more.get(kind.pdg, 1.0) for kind in species])
    kind = np.searchsorted(cumulative / cumulative[-1], position, side="right")
    pdg = np.array([s.pdg for s in species], np.int32)[kind]
    slope = np.array([s.slope for s in species])[kind]
    mass, charge, _ = _look_up(pdg)
    least = primaries.least_energy + mass
    if primaries.eta is None:
        shape = np.array([s.energy for s in species])[kind]
        reach = primaries.beam_energy - least
        energy = np.round(least + reach * rng.beta(shape[:, 0], shape[:, 1]), DECIMALS)
        momentum = np.sqrt(energy**2 - mass**2)
        # pT exp(-pT / slope) has the regularised gamma function of order 2 as its integral
        within = gammainc(2.0, primaries.largest_angle * momentum / slope)
        transverse = slope * gammaincinv(2.0, rng.random(n) * within)
    else:
        eta = rng.uniform(*primaries.eta, n)
        # between the least energy and the beam's
        low, high = (
            gammainc(2.0, np.sqrt(limit**2 - mass**2) / np.cosh(eta) / slope)
            for limit in (least, primaries.beam_energy)
        )
        transverse = slope * gammaincinv(2.0, low + rng.random(n) * (high - low))
        momentum = transverse * np.cosh(eta)
        energy = np.round(np.sqrt(momentum**2 + mass**2), DECIMALS)
        momentum = np.sqrt(energy**2 - mass**2)
    angle = 2 * np.pi * rng.random(n)
    px = np.round(transverse * np.cos(angle), DECIMALS)
    py = np.round(transverse * np.sin(angle), DECIMALS)
    side = np.where(rng.random(n) < 0.5, -1.0, 1.0) if primaries.sides == "both" else 1.0
    pz = side * np.round(np.sqrt(momentum**2 - px**2 - py**2), DECIMALS)
    vertex = np.round(rng.normal(0, primaries.vertex_spread, (n, 3)), 9)
    columns = [energy, *vertex.T, px, py, pz, np.round(1e3 * mass, DECIMALS), charge]
    return Particles(pdg, np.column_stack(columns))


# --- Flight and decay -------------------------------------------------------------------------


class _Table:
    """A dataclass of arrays of one length that are cut and joined together."""

    def __getitem__(self, index: NDArray[np.bool_] | Integers | slice) -> Self:
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))  # type: ignore[arg-type]

    @classmethod
    def join(cls, parts: Iterable[Self]) -> Self:
        """One table after the other."""
        rows = list(parts)
        return cls(
            *(np.concatenate([getattr(r, f.name) for r in rows]) for f in fields(cls))  # type: ignore[arg-type]
        )


@dataclass(frozen=True, eq=False)
class Rays(_Table):
    """N particles in flight towards one side.

    ``response`` (N,) says which simulated response a ray belongs to; ``position`` (N, 3) in m, z
    the distance from the interaction point; ``momentum`` (N, 4) is E, px, py, pz in GeV.
    """

    response: Integers
    pdg: NDArray[np.int32]
    position: Array
    momentum: Array

    def __len__(self) -> int:
        return len(self.response)


def _primary_rays(particles: Particles, repeats: int) -> Rays:
    """Each particle ``repeats`` times, at its vertex, mirrored so that it flies to positive z."""
    pdg = np.repeat(particles.pdg, repeats)
    energy, vx, vy, vz, px, py, pz, _, _ = np.repeat(particles.features, repeats, axis=0).T
    position = np.column_stack([vx, vy, np.sign(pz) * vz])
    momentum = np.column_stack([energy, px, py, np.abs(pz)])
    return Rays(np.arange(len(pdg)), pdg, position, momentum)


def two_body_decay(
    rng: np.random.Generator, parent: Array, masses: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """Decay isotropically in the rest frame and boost to the frame of ``parent`` (N, 4).

    ``masses`` (GeV) are those of the parent and of the two daughters, (N,) each. Returns the
    daughters' E, px, py, pz (GeV), (N, 4) each. The momentum in the rest frame is
    sqrt((M^2 - (m1 + m2)^2) (M^2 - (m1 - m2)^2)) / 2M (PDG review of kinematics).
    """
    mass, first, second = masses
    size = np.sqrt((mass**2 - (first + second) ** 2) * (mass**2 - (first - second) ** 2))
    size /= 2 * mass
    cosine = rng.uniform(-1, 1, len(mass))
    azimuth = 2 * np.pi * rng.random(len(mass))
    sine = np.sqrt(1 - cosine**2)
    direction = np.column_stack([sine * np.cos(azimuth), sine * np.sin(azimuth), cosine])
    rest_momentum = size[:, None] * direction
    rest_energy = np.sqrt(size**2 + first**2)
    along = (parent[:, 1:] * rest_momentum).sum(axis=1)
    energy = (parent[:, 0] * rest_energy + along) / mass
    factor = (rest_energy + energy) / (parent[:, 0] + mass)
    daughter = np.column_stack([energy, rest_momentum + factor[:, None] * parent[:, 1:]])
    return daughter, parent - daughter


def decay_products(rng: np.random.Generator, rays: Rays) -> Rays:
    """The daughters of ``rays`` (all of which decay where they are); unseen modes leave none."""
    products = []
    for code in np.unique(rays.pdg):
        group = rays[rays.pdg == code]
        pick = rng.random(len(group))
        start = 0.0
        for mode in DECAYS[int(code)]:
            chosen = group[(start <= pick) & (pick < start + mode.fraction)]
            start += mode.fraction
            products.extend(_daughters(rng, chosen, mode.daughters))
    return Rays.join([rays[:0], *products])


def _daughters(rng: np.random.Generator, rays: Rays, codes: tuple[int, int]) -> list[Rays]:
    masses = [_look_up(rays.pdg)[0], *(np.full(len(rays), _properties(c)[0]) for c in codes)]
    momenta = two_body_decay(rng, rays.momentum, (masses[0], masses[1], masses[2]))
    return [
        Rays(rays.response, np.full(len(rays), code, np.int32), rays.position, momentum)
        for code, momentum in zip(codes, momenta, strict=True)
    ]


def _fly(rng: np.random.Generator, rays: Rays, detector: Detector = ZN) -> tuple[Rays, Rays, Rays]:
    """Fly straight on: those that decay on the way (moved there), those that reach the magnet (moved
    there), and those that arrive in the plane of the face (moved there)."""
    mass, charge, ctau = _look_up(rays.pdg)
    decaying = np.isin(rays.pdg, list(DECAYS))
    pz = rays.momentum[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        # the path along z: pz / m is beta gamma times the direction's cosine
        length = np.where(decaying, ctau * pz / mass, np.inf)
    path = rng.standard_exponential(len(rays)) * length
    z = rays.position[:, 2]
    start, end = model_of(detector).dipole or (-np.inf, -np.inf)
    if detector.deflection is not None:  # bent at once, in the magnet's middle
        start = end = (start + end) / 2
    bent = (charge != 0) & (z < end)
    reach = np.where(bent, np.maximum(start - z, 0.0), detector.distance - z)
    decays = path < reach
    step = np.where(decays, path, reach)
    position = rays.position + step[:, None] * rays.momentum[:, 1:] / pz[:, None]
    moved = Rays(rays.response, rays.pdg, position, rays.momentum)
    return moved[decays], moved[bent & ~decays], moved[~bent & ~decays]


def _deflect(rays: Rays, detector: Detector) -> Rays:
    """Rays in the magnet with the transverse momentum that brings them to where they belong."""
    start, end = model_of(detector).dipole or (0.0, 0.0)
    position = rays.position.copy()
    # flown there in floating point some are a little before it, and would be bent again
    position[:, 2] = z = (start + end) / 2
    charge = _look_up(rays.pdg)[1]
    momentum = rays.momentum.copy()
    momentum[:, 1] += (detector.deflection or 0.0) * charge / (detector.distance - z)
    return Rays(rays.response, rays.pdg, position, momentum)


def _transport(rng: np.random.Generator, rays: Rays, detector: Detector = ZN) -> tuple[Rays, Rays]:
    """What reaches the calorimeter, and what is lost on the way, of all generations."""
    model, (height, width), swept = model_of(detector), detector.face, detector.deflection is None
    arrived, lost = [], []
    while len(rays):
        decays, bent, landed = _fly(rng, rays, detector)
        # measured from the face's centre from here on
        x, y = (landed.position[:, axis] - detector.offset[axis] for axis in (0, 1))
        hits = (np.abs(x) < width / 2 + model.catch) & (np.abs(y) < height / 2 + model.catch)
        hits &= rng.random(len(landed)) >= model.upstream_interaction
        arrived.append(landed[hits])
        lost.extend([*([bent] if swept else []), landed[~hits]])
        rays = decay_products(rng, decays)
        rays = rays[rays.momentum[:, 3] > 0]  # thrown backwards: not seen on this side
        if not swept:
            rays = Rays.join([rays, _deflect(bent, detector)])
    return Rays.join(arrived), Rays.join(lost)


# --- Light ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sources(_Table):
    """N round spots of light: response, centre (m, from the face's centre), mean photons, and
    the radius R (m) of the profile 2 r R^2 / (r^2 + R^2)^2."""

    response: Integers
    x: Array
    y: Array
    photons: Array
    radius: Array

    def __len__(self) -> int:
        return len(self.response)


def _log_normal(rng: np.random.Generator, scale: tuple[float, float], n: int) -> Array:
    """Values of median ``scale[0]`` and relative spread ``scale[1]``."""
    return scale[0] * np.exp(scale[1] * rng.standard_normal(n))


def _fluctuating_light(rng: np.random.Generator, energy: Array, shower: ShowerParams) -> Array:
    """Mean photons of showers: gamma distributed about yield * energy, so never negative."""
    variance = shower.resolution[0] ** 2 / energy + shower.resolution[1] ** 2
    return shower.photons_per_gev * energy * variance * rng.standard_gamma(1 / variance)


def _core_and_tail(spot: Sources, share: Array, tail_radius: Array) -> Sources:
    """Split spots with the core's radius into a core with ``share`` of the light and a tail."""
    core = Sources(spot.response, spot.x, spot.y, share * spot.photons, spot.radius)
    tail = Sources(spot.response, spot.x, spot.y, (1 - share) * spot.photons, tail_radius)
    return Sources.join([core, tail])


def _electromagnetic(rng: np.random.Generator, rays: Rays, detector: Detector = ZN) -> Sources:
    n, shower = len(rays), model_of(detector).electromagnetic
    light = _fluctuating_light(rng, rays.momentum[:, 0], shower)
    x, y = (rays.position[:, axis] - detector.offset[axis] for axis in (0, 1))
    spot = Sources(rays.response, x, y, light, _log_normal(rng, shower.core, n))
    return _core_and_tail(spot, rng.beta(*shower.core_share, n), _log_normal(rng, shower.tail, n))


def _hadronic(rng: np.random.Generator, rays: Rays, detector: Detector = ZN) -> Sources:
    n, shower = len(rays), model_of(detector).hadronic
    centres = len(shower.centre_shares)
    light = _fluctuating_light(rng, rays.momentum[:, 0], shower)
    behind = np.maximum(shower.depth - rng.standard_exponential(n), 0.0)
    light *= 1 - np.exp(-behind / shower.tail_length)
    share = rng.standard_gamma(shower.centre_shares, (n, centres))
    share /= share.sum(axis=1, keepdims=True)
    offset = rng.normal(0, shower.jitter, (n, centres, 2))
    distance = rng.exponential(shower.centre_distance, (n, centres - 1))
    angle = 2 * np.pi * rng.random((n, centres - 1))
    offset[:, 1:, 0] += distance * np.cos(angle)
    offset[:, 1:, 1] += distance * np.sin(angle)
    x, y = (
        rays.position[:, axis, None] - detector.offset[axis] + offset[..., axis] for axis in (0, 1)
    )
    core = np.repeat(_log_normal(rng, shower.core, n), centres)
    tail = np.repeat(_log_normal(rng, shower.tail, n), centres)
    in_core = np.repeat(rng.beta(*shower.core_share, n), centres)
    response = np.repeat(rays.response, centres)
    photons = (light[:, None] * share).ravel()
    return _core_and_tail(Sources(response, x.ravel(), y.ravel(), photons, core), in_core, tail)


def _spray(rng: np.random.Generator, lost: Rays, detector: Detector = ZN) -> Sources:
    """Stray light of particles that hit the beam pipe: soft spots anywhere."""
    spray = model_of(detector).spray
    hit = lost[rng.random(len(lost)) < spray.chance]
    spots = 1 + rng.poisson(spray.spots, len(hit))
    shape, power = spray.light
    neutral = _look_up(hit.pdg)[1] == 0
    mean = np.where(neutral, spray.mean[1], spray.mean[0]) * (hit.momentum[:, 0] / 1e3) ** power
    photons = np.repeat(mean, spots)
    n = len(photons)
    photons *= rng.standard_gamma(shape, n) / shape
    reach = np.array(spray.reach)[:, None]
    x, y = rng.uniform(-reach, reach, (2, n))
    response = np.repeat(hit.response, spots)
    return Sources(response, x, y, photons, _log_normal(rng, spray.radius, n))


def collect_light(
    rng: np.random.Generator, sources: Sources, responses: int, detector: Detector = ZN
) -> Integers:
    """Photons in every fibre, (responses, rows, columns) int64.

    A Poisson number of photons from each source, each thrown at a fibre, is the same as a Poisson
    number in every fibre. Photons that miss the face are lost.
    """
    number = rng.poisson(sources.photons)
    source = np.repeat(np.arange(len(sources)), number)
    u = rng.random(len(source))
    radius = sources.radius[source] * np.sqrt(u / (1 - u))
    angle = 2 * np.pi * rng.random(len(source))
    (rows, columns), (height, width) = detector.shape, detector.face
    column = np.floor((sources.x[source] + radius * np.cos(angle) + width / 2) / detector.pitch)
    row = np.floor((height / 2 - sources.y[source] - radius * np.sin(angle)) / detector.pitch)
    seen = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    fibre = (row[seen] * columns + column[seen]).astype(np.int64)
    flat = np.bincount(
        sources.response[source[seen]] * detector.dim + fibre, minlength=responses * detector.dim
    )
    return flat.reshape(responses, rows, columns)


def respond(
    rng: np.random.Generator, particles: Particles, repeats: int, detector: Detector = ZN
) -> NDArray[np.uint16]:
    """(N * repeats, rows, columns): the responses to each particle, one after the other.

    Raises ``OverflowError`` where a fibre holds more photons than fit in 16 bits.
    """
    arrived, lost = _transport(rng, _primary_rays(particles, repeats), detector)
    light = np.isin(np.abs(arrived.pdg), (11, 22))
    sources = Sources.join(
        [
            _electromagnetic(rng, arrived[light], detector),
            _hadronic(rng, arrived[~light], detector),
            _spray(rng, lost, detector),
        ]
    )
    counts = collect_light(rng, sources, len(particles.pdg) * repeats, detector)
    if counts.max(initial=0) > np.iinfo(np.uint16).max:
        raise OverflowError("a fibre holds more photons than fit in 16 bits")
    return counts.astype(np.uint16)


# --- The whole --------------------------------------------------------------------------------


def _chunks(
    seed: int, repeats: int, abundance: Mapping[int, float] | None, detector: Detector
) -> Iterator[tuple[Particles, NDArray[np.uint16]]]:
    """Particles and all their responses, without end; each chunk has a seed of its own."""
    shift = np.random.default_rng(seed).random()
    chunk = 0
    while True:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(chunk,)))
        position = (shift + GOLDEN * np.arange(CHUNK * chunk, CHUNK * (chunk + 1))) % 1.0
        particles = draw_particles(rng, position, abundance, detector)
        yield particles, respond(rng, particles, repeats, detector)
        chunk += 1


def simulate(
    responses: int,
    repeats: int,
    min_photons: int,
    seed: int,
    progress: bool = False,
    abundance: Mapping[int, float] | None = None,
    detector: Detector = ZN,
) -> Events:
    """Simulate exactly ``responses`` responses of at least ``min_photons`` photons.

    Parameters
    ----------
    responses
        how many to keep; the last particle is cut where it would give more.
    repeats
        simulations of each particle, of which those with less light are dropped.
    min_photons
        least photons of a response that is kept; 0 keeps even empty ones.
    seed
        any non-negative integer; the same seed gives the same events everywhere, and a smaller
        set is the beginning of a larger one.
    progress
        show a bar.
    abundance
        by PDG code, how many times as often as in the detector's file a species is drawn.
    detector
        one with a simulation.

    Raises
    ------
    ValueError
        where a number is out of range, or (after many particles) nothing has so much light.
    """
    return simulate_counted(responses, repeats, min_photons, seed, progress, abundance, detector)[0]


def simulate_counted(
    responses: int,
    repeats: int,
    min_photons: int,
    seed: int,
    progress: bool = False,
    abundance: Mapping[int, float] | None = None,
    detector: Detector = ZN,
) -> tuple[Events, Trials]:
    """As :func:`simulate`, and how many of each particle's simulations had so much light.

    Of all particles that were drawn, also those that sent no light in any.
    """
    if responses < 1 or repeats < 1 or min_photons < 0:
        raise ValueError(
            "simulate: expected responses >= 1, repeats >= 1 and min_photons >= 0, got "
            f"{responses}, {repeats} and {min_photons}"
        )
    pdg = np.empty(responses, np.int32)
    features = np.empty((responses, len(FEATURES)))
    photons: list[sparse.csr_array] = []
    trials: list[Trials] = []
    kept = 0
    with tqdm(
        total=responses, desc="simulating", unit=" responses", file=sys.stdout, disable=not progress
    ) as bar:
        for number, (particles, chunk) in enumerate(_chunks(seed, repeats, abundance, detector)):
            lit = chunk.sum(axis=(1, 2), dtype=np.int64) >= min_photons
            tried = np.full(CHUNK, repeats)
            bright = lit.reshape(CHUNK, repeats).sum(axis=1)
            trials.append(Trials(particles.pdg, particles.features, tried, bright))
            enough = np.flatnonzero(lit)[: responses - kept]
            part = slice(kept, kept + len(enough))
            pdg[part] = particles.pdg[enough // repeats]
            features[part] = particles.features[enough // repeats]
            photons.append(sparse.csr_array(chunk[enough].reshape(-1, detector.dim)))
            kept += len(enough)
            bar.update(len(enough))
            if kept == responses:
                together = sparse.vstack(photons, format="csr")
                events = Events.from_arrays(pdg, features, together, detector=detector)
                return events, Trials.join(trials)
            if kept == 0 and number * CHUNK * repeats > 1_000_000:
                raise ValueError(f"simulate: no response has {min_photons} photons")
    raise AssertionError("the chunks have no end")


def simulate_again(events: Events, repeats: int, min_photons: int, seed: int) -> Events:
    """Simulate every particle of some events ``repeats`` times more.

    A particle is simulated from its PDG code (which its mass, charge, lifetime and decays are looked
    up by) and its features. What comes of it is distributed as what :func:`simulate` makes of it.

    Parameters
    ----------
    events
        of a detector with a simulation; each of their particles counts once, however many responses it has.
    repeats
        simulations of each particle, of which those with less light are dropped.
    min_photons
        least photons of a response that is kept.
    seed
        any non-negative integer; the same seed gives the same events everywhere.

    Returns
    -------
    Events in the order of their particles, whose numbers (``Events.particle``) and features are those
    of ``events``, bit for bit. A particle that sends no such light has none.

    Raises
    ------
    ValueError
        where a number is out of range, a PDG code is not known, or the detector has no simulation.
    """
    if repeats < 1 or min_photons < 0:
        raise ValueError(
            "simulate_again: expected repeats >= 1 and min_photons >= 0, got "
            f"{repeats} and {min_photons}"
        )
    detector = events.detector
    known = {kind.pdg for kind in model_of(detector).primaries.species}
    if unknown := {*np.unique(events.pdg).tolist()} - known:
        raise ValueError(
            f"simulate_again: no species of the simulation has PDG code {min(unknown)}"
        )
    labels, first = np.unique(events.particle, return_index=True)
    pdg, features = events.pdg[first], events.features[first]
    kept: list[NDArray[np.intp]] = []
    photons = [events.photons[:0]]
    for start in range(0, len(labels), CHUNK):
        here = slice(start, start + CHUNK)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(start // CHUNK,)))
        chunk = respond(rng, Particles(pdg[here], features[here]), repeats, detector)
        enough = np.flatnonzero(chunk.sum(axis=(1, 2), dtype=np.int64) >= min_photons)
        kept.append(start + enough // repeats)
        photons.append(sparse.csr_array(chunk[enough].reshape(-1, detector.dim)))
    of = np.concatenate(kept) if kept else np.empty(0, np.intp)
    counts = sparse.vstack(photons, format="csr")
    return Events.from_arrays(pdg[of], features[of], counts, labels[of], detector)
