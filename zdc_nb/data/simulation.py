"""An open, fast, parametrised simulation of ALICE's neutron ZDC (ZN).

It is not GEANT4. It stands in for the private set of the study: forward particles of pp
collisions fly 112.5 m, decay, are swept away or hit the calorimeter, which answers with Cherenkov
light in 44 x 44 quartz fibres. What is kept of the physics is what the method lives on: the same
particle can light different places, showers are cut by the edge of the face, most particles that
miss leave a few stray photons, and light is counted in Poisson numbers.

Every number is a named constant. "Tuned" means: set so that the calibration table
(:mod:`zdc_nb.data.calibration`) agrees with the published facts of the private set. "Chosen" means: a
value of the parametrisation, of a plausible order and compared with no publication; so are those
that name no origin.

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
from zdc_nb.detector.geometry import ZN

__all__ = [
    "DECAYS",
    "SPECIES",
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
    "respond",
    "simulate",
    "simulate_again",
    "simulate_counted",
    "two_body_decay",
]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# --- The way to the detector -------------------------------------------------------------------

_SIDE = ZN.face[0]  # m, of a square face

DIPOLE_START, DIPOLE_END = 58.0, 68.0
"""m, extent of the separation dipole D1 on the way. Chosen: of the order of where it stands; only
whether a charged particle is born before or behind it matters."""

CATCH = 0.012
"""m: a particle that misses the face by less still showers in the block's housing, and light
leaks in; one that misses by more has hit the beam pipe. Tuned."""

UPSTREAM_INTERACTION = 0.06
"""Chance that a particle bound for the face interacts in a window or collimator before. Tuned."""

# --- The particles ----------------------------------------------------------------------------

BEAM_ENERGY = 7000.0
"""GeV, the published largest energy."""

LEAST_ENERGY = 1.1
"""GeV, the published smallest energy."""

LARGEST_ANGLE = 1.2e-3
"""rad: particles at wider angles are not in the set. Tuned to the spread of px and py."""

VERTEX_SPREAD = (4.7e-6, 4.7e-6, 0.022)
"""m, standard deviations of vx, vy, vz: between the two published sets of values."""

DECIMALS = 6
"""Energies and momenta (GeV) are rounded to these decimals, as in the published example rows."""


@dataclass(frozen=True)
class Species:
    """One kind of primary particle.

    ``abundance`` is relative; energies follow x^(a-1) (1-x)^(b-1) between the least energy and
    the beam's, with ``shape`` = (a, b); transverse momenta pT exp(-pT / ``slope``), GeV.
    """

    pdg: int
    abundance: float
    shape: tuple[float, float]
    slope: float


_SOFT, _HARD, _MIDDLE = (0.75, 8.5), (1.3, 2.6), (1.0, 4.0)

SPECIES: tuple[Species, ...] = (
    Species(22, 60.0, _SOFT, 0.165),
    Species(2112, 16.5, _HARD, 0.23),
    Species(2212, 8.4, _HARD, 0.23),
    Species(3122, 2.4, _HARD, 0.25),
    Species(310, 1.9, _MIDDLE, 0.22),
    Species(130, 1.5, _MIDDLE, 0.22),
    Species(3222, 0.45, _HARD, 0.25),
    Species(-2112, 1.0, _MIDDLE, 0.22),
    Species(-2212, 0.35, _MIDDLE, 0.22),
    Species(-3122, 0.3, _MIDDLE, 0.24),
    Species(3112, 0.2, _HARD, 0.25),
    Species(-3112, 0.1, _MIDDLE, 0.25),
    Species(3322, 0.3, _HARD, 0.26),
    Species(3312, 0.1, _HARD, 0.26),
    Species(3334, 0.03, _HARD, 0.27),
    Species(211, 4.2, _SOFT, 0.18),
    Species(-211, 1.1, _SOFT, 0.18),
    Species(321, 0.8, _MIDDLE, 0.20),
    Species(-321, 0.3, _MIDDLE, 0.20),
    Species(11, 0.2, _SOFT, 0.15),
    Species(-11, 0.2, _SOFT, 0.15),
)
"""The 21 species of the set. Tuned: abundances to the fractions of kept responses, charges and
masses, energies to the spectrum, slopes to the spread of px and py."""


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

# --- Light ------------------------------------------------------------------------------------

EM_YIELD = 0.55
"""Photons per GeV of an electromagnetic shower; published example: 291 photons at 513 GeV."""

EM_RESOLUTION = (0.7, 0.03)
"""Stochastic (sqrt GeV) and constant relative fluctuation of that yield, without photon
statistics. Chosen."""

HADRON_YIELD = 0.42
"""Photons per GeV of a hadronic shower, of which a part leaks: 0.4 for a contained neutron."""

HADRON_RESOLUTION = (2.57, 0.103)
"""The same for hadrons: 257%/sqrt(E) and 10.3% in quadrature. Chosen: a coarse hadron
calorimeter."""

DEPTH, TAIL_LENGTH = 8.5, 1.6
"""Interaction lengths: the calorimeter's depth (chosen, about 8.5), and how a hadronic shower fades
behind its start (chosen)."""

EM_CORE = (0.0014, 0.15)
EM_TAIL = (0.010, 0.25)
HADRON_CORE = (0.0019, 0.25)
HADRON_TAIL = (0.016, 0.35)
"""m and relative (log-normal) fluctuation from shower to shower of the radii of the lateral
profile 2 r R^2 / (r^2 + R^2)^2 of core and tail (form: Grindhammer and Peters, hep-ex/0001020).
Tuned to the lit fibres, the largest pixel and the light of particles beside the face."""

EM_CORE_SHARE = (12.0, 4.0)
HADRON_CORE_SHARE = (6.0, 4.5)
"""Beta distributions of the light's share in the core: means 0.75 and 0.57. Tuned."""

SUBSHOWERS = 3
"""Centres of a hadronic shower: its leading neutral pions."""

SUBSHOWER_SHARE = (6.0, 1.0, 0.6)
"""Dirichlet parameters of the centres' shares of the light, the first at the impact point."""

SUBSHOWER_DISTANCE = 0.007
"""m, mean distance of the other centres from the impact point."""

IMPACT_JITTER = 0.0008
"""m, standard deviation per axis of a hadronic shower's centre about the impact point."""

SPRAY_CHANCE = 0.65
"""Chance that a particle lost on the way sends light to the face. Tuned to the responses with
few photons."""

SPRAY_SPOTS = 1.0
"""Mean number of a spray's spots beyond the first."""

SPRAY_LIGHT = (0.7, 0.4)
"""A spot's photons: shape of their gamma distribution, and the power of the lost energy that
their mean follows. Tuned."""

SPRAY_MEAN = (38.0, 115.0)
"""Mean photons of a spot at 1 TeV: of charged particles swept away half-way, and of neutral ones
that hit the pipe just before the calorimeter. Tuned."""

SPRAY_RADIUS = (0.006, 0.5)
"""m and relative fluctuation: a spot's radius, with the profile of a shower's tail."""

SPRAY_REACH = 0.07
"""m: spots are spread evenly over this far to each side of the face's centre."""

VERSION = 1
"""Of the physics: raised whenever the same seed gives other events, so that kept ones are redone."""

CHUNK = 64
"""Particles per chunk; a part of the seed's meaning, so that changing it changes the events."""

GOLDEN = 0.6180339887498949
"""Fractional part of the golden ratio: i * GOLDEN mod 1 fills [0, 1) evenly."""


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


def aim(pdg: int, energy: float, impact: tuple[float, float]) -> Particles:
    """One particle from the middle of the interaction region that would hit the face at a point.

    It would if it flew straight on all the way: the dipole bends what is charged, and what decays
    sends others.

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
    slope = np.array([impact[0], impact[1] + ZN.crossing_offset]) / ZN.distance
    energy = round(energy, DECIMALS)
    pz = np.sqrt((energy**2 - mass**2) / (1 + slope @ slope))
    px, py, pz = np.round([*(slope * pz), pz], DECIMALS)
    features = [energy, 0, 0, 0, px, py, pz, round(1e3 * mass, DECIMALS), charge]
    return Particles(np.array([pdg], np.int32), np.array([features], np.float64))


def draw_particles(
    rng: np.random.Generator,
    position: NDArray[np.floating],
    abundance: Mapping[int, float] | None = None,
) -> Particles:
    """Primaries, of the species found at ``position`` (N,) in [0, 1) of the mixture.

    The position is asked for, so that a caller can fill the mixture evenly and a small set still
    holds its rare species. ``abundance`` multiplies that of species, by PDG code.
    """
    n = len(position)
    more = abundance or {}
    cumulative = np.cumsum([kind.abundance * more.get(kind.pdg, 1.0) for kind in SPECIES])
    kind = np.searchsorted(cumulative / cumulative[-1], position, side="right")
    pdg = np.array([s.pdg for s in SPECIES], np.int32)[kind]
    shape = np.array([s.shape for s in SPECIES])[kind]
    slope = np.array([s.slope for s in SPECIES])[kind]
    mass, charge, _ = _look_up(pdg)
    least = LEAST_ENERGY + mass
    energy = np.round(least + (BEAM_ENERGY - least) * rng.beta(shape[:, 0], shape[:, 1]), DECIMALS)
    momentum = np.sqrt(energy**2 - mass**2)
    # pT exp(-pT / slope) has the regularised gamma function of order 2 as its integral
    within = gammainc(2.0, LARGEST_ANGLE * momentum / slope)
    transverse = slope * gammaincinv(2.0, rng.random(n) * within)
    angle = 2 * np.pi * rng.random(n)
    px = np.round(transverse * np.cos(angle), DECIMALS)
    py = np.round(transverse * np.sin(angle), DECIMALS)
    side = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    pz = side * np.round(np.sqrt(momentum**2 - px**2 - py**2), DECIMALS)
    vertex = np.round(rng.normal(0, VERTEX_SPREAD, (n, 3)), 9)
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


def _fly(rng: np.random.Generator, rays: Rays) -> tuple[Rays, Rays, Rays]:
    """Fly straight on: those that decay on the way (moved there), those swept away, and those
    that arrive in the plane of the face (moved there)."""
    mass, charge, ctau = _look_up(rays.pdg)
    decaying = np.isin(rays.pdg, list(DECAYS))
    pz = rays.momentum[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        # the path along z: pz / m is beta gamma times the direction's cosine
        length = np.where(decaying, ctau * pz / mass, np.inf)
    path = rng.standard_exponential(len(rays)) * length
    z = rays.position[:, 2]
    bent = (charge != 0) & (z < DIPOLE_END)
    reach = np.where(bent, np.maximum(DIPOLE_START - z, 0.0), ZN.distance - z)
    decays = path < reach
    step = np.where(decays, path, reach)
    position = rays.position + step[:, None] * rays.momentum[:, 1:] / pz[:, None]
    moved = Rays(rays.response, rays.pdg, position, rays.momentum)
    return moved[decays], moved[bent & ~decays], moved[~bent & ~decays]


def _transport(rng: np.random.Generator, rays: Rays) -> tuple[Rays, Rays]:
    """What reaches the calorimeter, and what is lost on the way, of all generations."""
    arrived, lost = [], []
    while len(rays):
        decays, swept, landed = _fly(rng, rays)
        # measured from the face's centre from here on
        x, y = landed.position[:, 0], landed.position[:, 1] - ZN.crossing_offset
        hits = np.maximum(np.abs(x), np.abs(y)) < _SIDE / 2 + CATCH
        hits &= rng.random(len(landed)) >= UPSTREAM_INTERACTION
        arrived.append(landed[hits])
        lost.extend([swept, landed[~hits]])
        rays = decay_products(rng, decays)
        rays = rays[rays.momentum[:, 3] > 0]  # thrown backwards: not seen on this side
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


def _fluctuating_light(
    rng: np.random.Generator, energy: Array, light_yield: float, resolution: tuple[float, float]
) -> Array:
    """Mean photons of showers: gamma distributed about yield * energy, so never negative."""
    variance = resolution[0] ** 2 / energy + resolution[1] ** 2
    return light_yield * energy * variance * rng.standard_gamma(1 / variance)


def _core_and_tail(spot: Sources, share: Array, tail_radius: Array) -> Sources:
    """Split spots with the core's radius into a core with ``share`` of the light and a tail."""
    core = Sources(spot.response, spot.x, spot.y, share * spot.photons, spot.radius)
    tail = Sources(spot.response, spot.x, spot.y, (1 - share) * spot.photons, tail_radius)
    return Sources.join([core, tail])


def _electromagnetic(rng: np.random.Generator, rays: Rays) -> Sources:
    n = len(rays)
    light = _fluctuating_light(rng, rays.momentum[:, 0], EM_YIELD, EM_RESOLUTION)
    x, y = rays.position[:, 0], rays.position[:, 1] - ZN.crossing_offset
    spot = Sources(rays.response, x, y, light, _log_normal(rng, EM_CORE, n))
    return _core_and_tail(spot, rng.beta(*EM_CORE_SHARE, n), _log_normal(rng, EM_TAIL, n))


def _hadronic(rng: np.random.Generator, rays: Rays) -> Sources:
    n = len(rays)
    light = _fluctuating_light(rng, rays.momentum[:, 0], HADRON_YIELD, HADRON_RESOLUTION)
    behind = np.maximum(DEPTH - rng.standard_exponential(n), 0.0)
    light *= 1 - np.exp(-behind / TAIL_LENGTH)
    share = rng.standard_gamma(SUBSHOWER_SHARE, (n, SUBSHOWERS))
    share /= share.sum(axis=1, keepdims=True)
    offset = rng.normal(0, IMPACT_JITTER, (n, SUBSHOWERS, 2))
    distance = rng.exponential(SUBSHOWER_DISTANCE, (n, SUBSHOWERS - 1))
    angle = 2 * np.pi * rng.random((n, SUBSHOWERS - 1))
    offset[:, 1:, 0] += distance * np.cos(angle)
    offset[:, 1:, 1] += distance * np.sin(angle)
    x = rays.position[:, 0, None] + offset[..., 0]
    y = rays.position[:, 1, None] - ZN.crossing_offset + offset[..., 1]
    core = np.repeat(_log_normal(rng, HADRON_CORE, n), SUBSHOWERS)
    tail = np.repeat(_log_normal(rng, HADRON_TAIL, n), SUBSHOWERS)
    in_core = np.repeat(rng.beta(*HADRON_CORE_SHARE, n), SUBSHOWERS)
    response = np.repeat(rays.response, SUBSHOWERS)
    photons = (light[:, None] * share).ravel()
    return _core_and_tail(Sources(response, x.ravel(), y.ravel(), photons, core), in_core, tail)


def _spray(rng: np.random.Generator, lost: Rays) -> Sources:
    """Stray light of particles that hit the beam pipe: soft spots anywhere."""
    hit = lost[rng.random(len(lost)) < SPRAY_CHANCE]
    spots = 1 + rng.poisson(SPRAY_SPOTS, len(hit))
    shape, power = SPRAY_LIGHT
    neutral = _look_up(hit.pdg)[1] == 0
    mean = np.where(neutral, SPRAY_MEAN[1], SPRAY_MEAN[0]) * (hit.momentum[:, 0] / 1e3) ** power
    photons = np.repeat(mean, spots)
    n = len(photons)
    photons *= rng.standard_gamma(shape, n) / shape
    x, y = rng.uniform(-SPRAY_REACH, SPRAY_REACH, (2, n))
    response = np.repeat(hit.response, spots)
    return Sources(response, x, y, photons, _log_normal(rng, SPRAY_RADIUS, n))


def collect_light(rng: np.random.Generator, sources: Sources, responses: int) -> Integers:
    """Photons in every fibre, (responses, 44, 44) int64.

    A Poisson number of photons from each source, each thrown at a fibre, is the same as a Poisson
    number in every fibre. Photons that miss the face are lost.
    """
    number = rng.poisson(sources.photons)
    source = np.repeat(np.arange(len(sources)), number)
    u = rng.random(len(source))
    radius = sources.radius[source] * np.sqrt(u / (1 - u))
    angle = 2 * np.pi * rng.random(len(source))
    column = np.floor((sources.x[source] + radius * np.cos(angle) + _SIDE / 2) / ZN.pitch)
    row = np.floor((_SIDE / 2 - sources.y[source] - radius * np.sin(angle)) / ZN.pitch)
    seen = (row >= 0) & (row < ZN.shape[0]) & (column >= 0) & (column < ZN.shape[1])
    fibre = (row[seen] * ZN.shape[1] + column[seen]).astype(np.int64)
    flat = np.bincount(
        sources.response[source[seen]] * ZN.dim + fibre, minlength=responses * ZN.dim
    )
    return flat.reshape(responses, *ZN.shape)


def respond(rng: np.random.Generator, particles: Particles, repeats: int) -> NDArray[np.uint16]:
    """(N * repeats, 44, 44): the responses to each particle, one after the other.

    Raises ``OverflowError`` where a fibre holds more photons than fit in 16 bits.
    """
    arrived, lost = _transport(rng, _primary_rays(particles, repeats))
    photon = arrived.pdg == 22
    sources = Sources.join(
        [
            _electromagnetic(rng, arrived[photon]),
            _hadronic(rng, arrived[~photon]),
            _spray(rng, lost),
        ]
    )
    counts = collect_light(rng, sources, len(particles.pdg) * repeats)
    if counts.max(initial=0) > np.iinfo(np.uint16).max:
        raise OverflowError("a fibre holds more photons than fit in 16 bits")
    return counts.astype(np.uint16)


# --- The whole --------------------------------------------------------------------------------


def _chunks(
    seed: int, repeats: int, abundance: Mapping[int, float] | None
) -> Iterator[tuple[Particles, NDArray[np.uint16]]]:
    """Particles and all their responses, without end; each chunk has a seed of its own."""
    shift = np.random.default_rng(seed).random()
    chunk = 0
    while True:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(chunk,)))
        position = (shift + GOLDEN * np.arange(CHUNK * chunk, CHUNK * (chunk + 1))) % 1.0
        particles = draw_particles(rng, position, abundance)
        yield particles, respond(rng, particles, repeats)
        chunk += 1


def simulate(
    responses: int,
    repeats: int,
    min_photons: int,
    seed: int,
    progress: bool = False,
    abundance: Mapping[int, float] | None = None,
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
        by PDG code, how many times as often as in :data:`SPECIES` a species is drawn.

    Raises
    ------
    ValueError
        where a number is out of range, or (after many particles) nothing has so much light.
    """
    return simulate_counted(responses, repeats, min_photons, seed, progress, abundance)[0]


def simulate_counted(
    responses: int,
    repeats: int,
    min_photons: int,
    seed: int,
    progress: bool = False,
    abundance: Mapping[int, float] | None = None,
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
        for number, (particles, chunk) in enumerate(_chunks(seed, repeats, abundance)):
            lit = chunk.sum(axis=(1, 2), dtype=np.int64) >= min_photons
            tried = np.full(CHUNK, repeats)
            bright = lit.reshape(CHUNK, repeats).sum(axis=1)
            trials.append(Trials(particles.pdg, particles.features, tried, bright))
            enough = np.flatnonzero(lit)[: responses - kept]
            part = slice(kept, kept + len(enough))
            pdg[part] = particles.pdg[enough // repeats]
            features[part] = particles.features[enough // repeats]
            photons.append(sparse.csr_array(chunk[enough].reshape(-1, ZN.dim)))
            kept += len(enough)
            bar.update(len(enough))
            if kept == responses:
                together = sparse.vstack(photons, format="csr")
                return Events.from_arrays(pdg, features, together), Trials.join(trials)
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
        of the ZN; each of their particles counts once, however many responses it has.
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
        where a number is out of range, a PDG code is not known, or the detector is another one.
    """
    if repeats < 1 or min_photons < 0:
        raise ValueError(
            "simulate_again: expected repeats >= 1 and min_photons >= 0, got "
            f"{repeats} and {min_photons}"
        )
    if events.detector != ZN:
        raise ValueError(f"simulate_again: expected events of the ZN, got {events.detector.name}")
    if unknown := {*np.unique(events.pdg).tolist()} - {kind.pdg for kind in SPECIES}:
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
        chunk = respond(rng, Particles(pdg[here], features[here]), repeats)
        enough = np.flatnonzero(chunk.sum(axis=(1, 2), dtype=np.int64) >= min_photons)
        kept.append(start + enough // repeats)
        photons.append(sparse.csr_array(chunk[enough].reshape(-1, ZN.dim)))
    of = np.concatenate(kept) if kept else np.empty(0, np.intp)
    counts = sparse.vstack(photons, format="csr")
    return Events.from_arrays(pdg[of], features[of], counts, labels[of])
