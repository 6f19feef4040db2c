"""What a detector's file holds (``detectors/*.yaml``): its face, its channels, its simulation.

A detector is a wall of *fibres* (cells that each count light), seen from the collision point. Its
name among the parameters of a study is its file's stem. The frame: x to the right and y up when
facing the detector, z along the flight to either side of the collision point. Row 0 of a response
is its top, column 0 its left.
"""

from __future__ import annotations

import site
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from particle import InvalidParticle, Particle, ParticleNotFound
from pydantic import AfterValidator, Field, model_validator

from zdc_nb.params.files import (
    Name,
    ParameterError,
    Positive,
    PositiveFloat,
    Section,
    load_parameters,
    project_root,
)

__all__ = [
    "CONDITIONS",
    "PDG",
    "ChannelParams",
    "DetectorParams",
    "HadronParams",
    "PrimaryParams",
    "Scale",
    "ShowerParams",
    "SimulationParams",
    "SpeciesParams",
    "SprayParams",
    "detector_file",
    "load_detector_params",
    "shipped_detector",
]

PDG: dict[str, int] = {
    "gamma": 22,
    "n": 2112,
    "p": 2212,
    "lambda": 3122,
    "k0s": 310,
    "k0l": 130,
    "sigma+": 3222,
    "sigma-": 3112,
    "pi+": 211,
    "pi-": -211,
    "k+": 321,
    "k-": -321,
    "nbar": -2112,
    "pbar": -2212,
}
"""PDG codes of the species that can be a data set of their own, by their names in parameters."""

CONDITIONS = (
    *("energy", "vx", "vy", "vz", "px", "py", "pz", "mass", "charge"),
    *("pt", "eta", "phi", "cos_phi", "sin_phi"),
)
"""What a flow can be told of a particle: the nine features (GeV, m, GeV, MeV, e), and what follows from
them: the transverse momentum (GeV), the pseudorapidity, and the azimuthal angle (rad), which jumps from
pi to -pi, its cosine and its sine, which do not."""

Scale = Literal["standard", "log", "robust"]

_MOST_FIBRES = 2**16
"""They are numbered in 16 bits in files."""

_POSITIVE = ("energy", "mass", "pt")
"""Conditions that can be scaled as ``log``."""

Length = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Pair = Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)]
Spread = Annotated[tuple[PositiveFloat, NonNegative], Field(strict=False)]
"""A length and its relative fluctuation."""
Extent = Annotated[tuple[Length, Length], Field(strict=False)]


class ChannelParams(Section):
    """The fibres that a channel reads: those in all of the named patterns."""

    checkerboard: Literal["odd", "even"] | None = Field(
        default=None, description="fibres whose row + column is odd, or even"
    )
    quadrant: Literal["top left", "top right", "bottom left", "bottom right"] | None = Field(
        default=None, description="fibres of one quarter of the face"
    )
    strip: Annotated[tuple[int, int], Field(strict=False)] | None = Field(
        default=None, description="[k, n]: the k-th of n equal strips along x, from the left"
    )

    @model_validator(mode="after")
    def _strip_is_there(self) -> ChannelParams:
        if self.strip is not None and not 1 <= self.strip[0] <= self.strip[1]:
            raise ValueError(f"strip: expected [k, n] with 1 <= k <= n, got {list(self.strip)}")
        return self


def _known_particle(pdg: int) -> int:
    try:
        Particle.from_pdgid(pdg)
    except (InvalidParticle, ParticleNotFound) as error:
        raise ValueError(f"species: expected PDG codes of known particles, got {pdg}") from error
    return pdg


class SpeciesParams(Section):
    """One kind of primary particle."""

    pdg: Annotated[int, AfterValidator(_known_particle)]
    abundance: PositiveFloat = Field(description="relative to the other species")
    energy: Pair | None = Field(
        description="(a, b): energies follow x^(a-1) (1-x)^(b-1) between the least energy and the "
        "beam's; null: transverse momentum and pseudorapidity say it"
    )
    slope: PositiveFloat = Field(description="GeV: transverse momenta follow pT exp(-pT / slope)")


class PrimaryParams(Section):
    """The particles that leave the collision."""

    beam_energy: PositiveFloat = Field(description="GeV, the largest energy")
    least_energy: PositiveFloat = Field(description="GeV, above the mass")
    largest_angle: PositiveFloat | None = Field(
        description="rad: particles at wider angles are not drawn; null: eta says where they fly"
    )
    eta: Extent | None = Field(
        description="pseudorapidities are even over this range; null: energy and pT say where they fly"
    )
    sides: Literal["both", "one"] = Field(description="to both sides of the collision, or to one")
    vertex_spread: Annotated[tuple[NonNegative, NonNegative, NonNegative], Field(strict=False)] = (
        Field(description="m, standard deviations of vx, vy, vz")
    )
    per_collision: PositiveFloat = Field(
        description="mean number of such particles in an event, both sides together"
    )
    species: list[SpeciesParams] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_kinematics(self) -> PrimaryParams:
        if self.least_energy >= self.beam_energy:
            raise ValueError("least_energy: expected less than beam_energy")
        if self.eta is not None and not self.eta[0] < self.eta[1]:
            raise ValueError(f"eta: expected [least, largest], got {list(self.eta)}")
        if (self.eta is None) == (self.largest_angle is None):
            raise ValueError("eta: expected either eta or largest_angle, and null for the other")
        for kind in self.species:
            if (kind.energy is None) != (self.eta is not None):
                expected = "null, eta is given" if self.eta is not None else "a shape [a, b]"
                raise ValueError(f"species: energy of {kind.pdg}: expected {expected}")
        return self


class ShowerParams(Section):
    """The light of one kind of shower.

    The lateral profile of core and tail is 2 r R^2 / (r^2 + R^2)^2 (Grindhammer and Peters,
    hep-ex/0001020).
    """

    photons_per_gev: NonNegative = Field(description="light of a shower that is contained")
    resolution: Spread = Field(
        description="stochastic (sqrt GeV) and constant relative fluctuation of that yield, without "
        "photon statistics"
    )
    core: Spread = Field(description="m and relative fluctuation of the core's radius R")
    tail: Spread = Field(description="the same of the tail's")
    core_share: Pair = Field(description="Beta distribution of the light's share in the core")


class HadronParams(ShowerParams):
    """Hadronic showers: they start deep, leak out behind, and have several centres."""

    depth: PositiveFloat = Field(description="interaction lengths of the calorimeter")
    tail_length: PositiveFloat = Field(
        description="interaction lengths: how a shower fades behind its start"
    )
    centre_shares: list[PositiveFloat] = Field(
        min_length=1,
        description="Dirichlet parameters of the centres' shares of the light (leading neutral "
        "pions), the first at the impact point",
    )
    centre_distance: NonNegative = Field(
        description="m, mean distance of the other centres from the impact point"
    )
    jitter: NonNegative = Field(
        description="m, standard deviation per axis of a centre about its place"
    )


class SprayParams(Section):
    """Stray light of particles that are lost on the way."""

    chance: Annotated[float, Field(ge=0, le=1)] = Field(
        description="that such a particle sends light to the face at all"
    )
    spots: NonNegative = Field(description="mean number of its spots beyond the first")
    light: Spread = Field(
        description="shape of the gamma distribution of a spot's photons, and the power of the lost "
        "energy that their mean follows"
    )
    mean: Annotated[tuple[NonNegative, NonNegative], Field(strict=False)] = Field(
        description="mean photons of a spot at 1 TeV: of charged and of neutral particles"
    )
    radius: Spread = Field(description="m and relative fluctuation of a spot's radius R")
    reach: Pair = Field(
        description="m: spots are spread evenly over this far along x and y from the face's centre"
    )


class SimulationParams(Section):
    """The open simulation: fast and parametrised. It is not GEANT4."""

    primaries: PrimaryParams
    dipole: Extent | None = Field(
        description="m, extent of the magnet on the way that bends what is charged; null: none"
    )
    catch: NonNegative = Field(
        description="m: a particle that misses the face by less still showers in its housing"
    )
    upstream_interaction: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="chance that a particle bound for the face interacts before"
    )
    electromagnetic: ShowerParams
    hadronic: HadronParams
    spray: SprayParams


class DetectorParams(Section):
    """A detector, as read from one YAML file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    label: Name = Field(description="what it is called in texts and figures: ZN")
    title: Name = Field(description="the same in full, for the first sentence of a report")
    shape: Annotated[tuple[Positive, Positive], Field(strict=False)] = Field(
        description="rows and columns of fibres"
    )
    pitch: PositiveFloat = Field(description="m, between neighbouring fibres")
    distance: PositiveFloat = Field(description="m, from the collision point to the face")
    offset: Annotated[tuple[Length, Length], Field(strict=False)] = Field(
        description="m, x and y of the face's centre; (0, 0) is where a neutral particle without "
        "transverse momentum arrives"
    )
    deflection: Length | None = Field(
        description="m GeV / e: a charged particle arrives at x greater by this times charge / "
        "momentum; 0: they fly straight; null: they are swept away"
    )
    species: list[str] = Field(
        description=f"that are a data set of their own, among {', '.join(PDG)}"
    )
    conditions: dict[Literal[CONDITIONS], Scale] = Field(  # type: ignore[valid-type]
        min_length=1,
        description="what a flow is told of a particle, and how it is scaled: standard (mean 0, "
        "spread 1 of those trained on), log (log(1 + value), then standard), robust (median and "
        "half the width of the middle 68%)",
    )
    channels: dict[Name, ChannelParams] = Field(
        min_length=1, description="what is read out together, by name"
    )
    simulation: SimulationParams | None = Field(
        description="null: there is none, a study needs files"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DetectorParams:
        for name in self.species:
            if name not in PDG:
                raise ValueError(f"species: {name!r} is none; expected one of {', '.join(PDG)}")
        if len(set(self.species)) != len(self.species):
            raise ValueError(f"species: expected each name once, got {self.species}")
        if self.shape[0] * self.shape[1] > _MOST_FIBRES:
            raise ValueError(
                f"shape: expected at most {_MOST_FIBRES} fibres, got {list(self.shape)}"
            )
        for name, scale in self.conditions.items():
            if scale == "log" and name not in _POSITIVE:
                raise ValueError(
                    f"conditions.{name}: expected standard or robust, it can be negative; "
                    f"log is for {', '.join(_POSITIVE)}"
                )
        columns = [name.replace(" ", "_") for name in self.channels]
        if len(set(columns)) != len(columns):
            raise ValueError(f"channels: expected names that differ, got {[*self.channels]}")
        for name, pattern in self.channels.items():
            if pattern.strip is not None and pattern.strip[1] > self.shape[1]:
                raise ValueError(
                    f"channels.{name}.strip: expected at most {self.shape[1]} strips, as many as "
                    f"columns, got {pattern.strip[1]}"
                )
        self._check_dipole()
        return self

    def _check_dipole(self) -> None:
        if self.simulation is None:
            return
        dipole = self.simulation.dipole
        if self.deflection != 0 and dipole is None:
            raise ValueError(
                "simulation.dipole: expected its extent, charged particles are bent (deflection "
                f"{'null' if self.deflection is None else self.deflection})"
            )
        if dipole is not None and not 0 <= dipole[0] <= dipole[1] < self.distance:
            raise ValueError(
                "simulation.dipole: expected [start, end] with 0 <= start <= end < distance, got "
                f"{list(dipole)}"
            )


def detector_file(name: str) -> Path:
    """The file of a detector: of the project that one works in, else one that comes with the package.

    ``name`` is a stem of ``detectors/``, or the path of a file. Raises
    :class:`~zdc_nb.params.ParameterError`.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        # a notebook runs in its own folder
        return path.resolve() if path.is_absolute() or path.exists() else project_root() / path
    folders = (project_root() / "detectors", *_shipped())
    for folder in folders:
        if (file := folder / f"{name}.yaml").is_file():
            return file
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise ParameterError(f"detector: {name!r} is none; expected one of {', '.join(known)}")


def _shipped() -> Iterator[Path]:
    """Where detectors can be that come with the package."""
    yield Path(__file__).parents[2] / "detectors"  # beside it, where it is a checkout
    for data in dict.fromkeys((sysconfig.get_path("data"), site.getuserbase())):
        yield Path(data) / "share" / "zdc_nb" / "detectors"  # where a wheel puts them


def shipped_detector(name: str) -> Path:
    """The file of a detector that comes with the package, whatever the project has.

    Raises ``FileNotFoundError``.
    """
    for folder in _shipped():
        if (file := folder / f"{name}.yaml").is_file():
            return file
    raise FileNotFoundError(f"{name}.yaml: not among what the package was installed with")


def load_detector_params(name: str) -> DetectorParams:
    """Read and check a detector's file; :class:`~zdc_nb.params.ParameterError` where it is wrong."""
    file = detector_file(name)
    return _load(file, file.stat().st_mtime_ns if file.is_file() else 0)


@cache
def _load(file: Path, _mtime: int) -> DetectorParams:
    return load_parameters(file, DetectorParams, "detector")
