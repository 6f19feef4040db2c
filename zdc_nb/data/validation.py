"""Rows of a data file: what each must hold, in whatever format it is kept.

A format's reader hands over some consecutive rows at a time, which bounds the memory that it
takes. What is wrong with a row is told with file, row and what was expected; or, where bad rows
are to be dropped, counted by what was expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from particle import InvalidParticle, Particle, ParticleNotFound
from particle.pdgid import is_nucleus
from scipy import sparse

from zdc_nb.data.events import FEATURES, Events
from zdc_nb.detector.geometry import ZN, Detector
from zdc_nb.params import PDG, UserError

__all__ = [
    "LARGEST",
    "EventFileError",
    "Rows",
    "Tally",
    "mass_and_charge",
    "nearest_species",
    "refusing",
]

LARGEST = np.iinfo(np.uint16).max
"""Photons in a fibre, and in all of a response: a generated fibre may hold all of them."""

TOLERANCE = 0.01
"""By which part of itself a mass may differ from that of its PDG code, and an energy from that of
its momentum and mass: files round to six digits, programs know masses a little differently, and a
wrong unit is a factor of a thousand."""

LEAST_MASS_TOLERANCE = 0.1
"""MeV: a photon is sometimes stored with a mass that is not quite zero."""

LEAST_ENERGY = 1e-9
"""GeV: differences below are none."""

USUAL = {"energy": 20_000.0, "vx": 0.005, "vy": 0.005, "vz": 1.0}
"""GeV and m: above any beam's energy, and far outside of any beam spot."""


LONG_LIVED = (*PDG.values(), -3122, -3112, 3322, 3312, 3334, 11, -11)
"""PDG codes of what lives long enough to be seen as a primary particle: those that can be a data set,
further hyperons and electrons."""


class EventFileError(UserError, ValueError):
    """A file does not hold events as expected; the message names file, row and expectation."""


@contextmanager
def refusing(path: Path, expected: str) -> Iterator[None]:
    """Whatever goes wrong in the block is an :class:`EventFileError` that names ``path``.

    For libraries that raise almost anything on broken bytes. A missing file stays a
    ``FileNotFoundError``.
    """
    try:
        yield
    except (EventFileError, FileNotFoundError):
        raise
    except Exception as error:
        raise EventFileError(f"{path}: {expected} ({error})") from error


@dataclass
class Tally:
    """What came of the rows of some files.

    Attributes
    ----------
    strict
        whether a bad row is an error; else it is dropped.
    read
        rows read, good or bad.
    dropped
        bad rows by what was expected of them. A row counts for the first fault found.
    guessed
        whether species were guessed, see :func:`nearest_species`.
    farthest
        the energy and the vertex coordinates farthest from zero: value, row and file by name.
    """

    strict: bool
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    guessed: bool = False
    farthest: dict[str, tuple[float, int, Path]] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """Sentences about what may be wrong, though it could be right."""
        said = []
        for name, (value, row, path) in self.farthest.items():
            if abs(value) <= USUAL[name]:
                continue
            text = f"{path}: {name} is {value:.4g} in row {row} (counted from 0)"
            if name == "energy":
                said.append(f"{text}, above any beam's in GeV; are energies and momenta in MeV?")
            else:
                # the largest of many vertices along the beam: some 0.1 m, or 10 cm, or 100 mm
                unit = "cm" if abs(self.farthest["vz"][0]) <= 50 else "mm"
                said.append(f"{text}, beyond any beam spot in m; are the vertices in {unit}?")
        return said


class Rows:
    """Some consecutive rows of a file, as they are checked.

    Attributes
    ----------
    good
        (n,) bool, rows without a fault so far.
    """

    def __init__(
        self, path: Path, start: int, count: int, tally: Tally, detector: Detector = ZN
    ) -> None:
        self.path, self.start, self.tally, self.detector = path, start, tally, detector
        self.good = np.ones(count, np.bool_)
        tally.read += count

    def expect(
        self,
        fulfilled: Any,
        expected: str,
        found: Callable[[int], object] | None = None,
        path: Path | None = None,
    ) -> None:
        """Refuse the rows that are not ``fulfilled`` (n,), or leave them out.

        ``found`` tells what a row (of these, from 0) holds instead; ``path`` where the rows are
        those of another file than the first.
        """
        bad = self.good & ~np.asarray(fulfilled)
        if not bad.any():
            return
        if self.tally.strict:
            row = int(bad.argmax())
            instead = f", found {found(row)}" if found else ""
            raise EventFileError(
                f"{path or self.path}: row {self.start + row} (counted from 0, the first such "
                f"row): expected {expected}{instead}"
            )
        self.tally.dropped[expected] += int(bad.sum())
        self.good &= ~bad

    def photons(
        self, values: NDArray[Any], fibre: NDArray[Any], lit: NDArray[Any], path: Path
    ) -> sparse.csr_array:
        """(n, fibres) uint16 photons from those of the lit fibres.

        Parameters
        ----------
        values
            (L,) numbers of any real type, one row after the other.
        fibre
            (L,) their fibres, increasing in each row.
        lit
            (n,) how many of them each row has.
        path
            the file that they are from, for messages.
        """
        with np.errstate(invalid="ignore"):  # what is no 16-bit number is found below
            photons = values.astype(np.uint16)
        if not (photons == values).all():
            row = np.repeat(np.arange(len(lit)), lit)
            values = values.astype(np.longdouble)  # half floats cannot hold 65535
            for fulfilled, expected in (
                (np.isfinite(values), "finite photon counts"),
                (values == np.rint(values), "whole photon counts"),
                (values >= 0, "photon counts of at least 0"),
                (values <= LARGEST, f"photon counts of at most {LARGEST}"),
            ):
                self.expect_of_fibres(fulfilled, expected, row, values, path)
        ends = np.concatenate([[0], np.cumsum(lit)])
        return sparse.csr_array((photons, fibre, ends), shape=(len(lit), self.detector.dim))

    def expect_of_fibres(
        self,
        fulfilled: NDArray[np.bool_],
        expected: str,
        row: NDArray[Any],
        values: NDArray[Any],
        path: Path | None = None,
    ) -> None:
        """As :meth:`expect`, of (L,) values of fibres, each of which is in a ``row`` (L,)."""
        faults = np.bincount(row[~fulfilled], minlength=len(self.good))
        self.expect(faults == 0, expected, lambda k: values[(row == k) & ~fulfilled][0], path)

    def events(
        self,
        features: NDArray[np.float64],
        pdg: NDArray[Any] | None,
        photons: sparse.csr_array,
        photon_sum: NDArray[Any] | None,
    ) -> Events:
        """The good rows, after what is checked in every format.

        Species are guessed where ``pdg`` is None; ``photon_sum`` is compared where there is one.
        """
        finite = np.isfinite(features)
        self.expect(
            finite.all(axis=1), "finite features", lambda k: _named(features[k], ~finite[k])
        )
        if pdg is None:
            self.tally.guessed = True
            pdg = nearest_species(features, self.detector)
        limits = np.iinfo(np.int32)
        with np.errstate(invalid="ignore"):
            whole = (pdg == np.rint(pdg)) & (pdg >= limits.min) & (pdg <= limits.max)
        codes_read = pdg
        self.expect(whole, "a PDG code", lambda k: codes_read[k])
        codes, which = np.unique(np.where(whole, pdg, 0).astype(np.int32), return_inverse=True)
        exists = np.array([_exists(code) for code in codes.tolist()], np.bool_)
        self.expect(exists[which], "a PDG code that exists", lambda k: codes_read[k])
        total = photons.sum(axis=1, dtype=np.int64)
        self.expect(total <= LARGEST, f"at most {LARGEST} photons in all", lambda k: total[k])
        if photon_sum is not None:
            self.expect(
                total == photon_sum,
                "a photon sum equal to the response's",
                lambda k: f"{photon_sum[k]:g} for {total[k]} photons",
            )
        self._expect_units(features, codes, which)
        self._note_farthest(features)
        if not self.good.all():
            features, pdg, photons = features[self.good], pdg[self.good], photons[self.good]
        return Events.from_arrays(pdg.astype(np.int32), features, photons, detector=self.detector)

    def _expect_units(
        self, features: NDArray[np.float64], codes: NDArray[np.int32], which: NDArray[Any]
    ) -> None:
        """Check the mass against that of the PDG code, and E^2 = p^2 + m^2."""
        energy, mass, *momentum = (
            features[:, FEATURES.index(name)] for name in ("energy", "mass", "px", "py", "pz")
        )
        self.expect(mass >= 0, "a mass of at least 0", lambda k: f"mass {mass[k]:.6g}")
        table, width = np.array([_mass_and_width(code) for code in codes.tolist()]).reshape(-1, 2).T
        right = table[which]
        allowed = np.maximum(TOLERANCE * right + 10 * width[which], LEAST_MASS_TOLERANCE)

        def wrong_mass(k: int) -> str:
            text = f"mass {mass[k]:.6g} where {codes[which[k]]} has {right[k]:.6g} MeV"
            in_gev = abs(1e3 * mass[k] - right[k]) <= allowed[k]
            return text + ("; is the mass in GeV?" if in_gev else "")

        with np.errstate(invalid="ignore"):
            fits = ~(np.abs(mass - right) > allowed)  # what is not known fits
        self.expect(fits, "the mass (MeV) of the PDG code", wrong_mass)

        def energy_of(unit: float) -> NDArray[np.float64]:
            with np.errstate(over="ignore", invalid="ignore"):  # rows that are not finite are bad
                p = np.sqrt(sum((unit * part) ** 2 for part in momentum))
                return np.hypot(p, 1e-3 * mass)

        def is_near(one: Any, other: Any) -> Any:
            with np.errstate(invalid="ignore"):
                allowed = TOLERANCE * np.maximum(np.abs(one), np.abs(other)) + LEAST_ENERGY
                return np.abs(one - other) <= allowed

        def wrong_energy(k: int) -> str:
            text = f"energy {energy[k]:.6g} where they give {energy_of(1)[k]:.6g}"
            guesses = {
                "the momenta in MeV": (energy[k], energy_of(1e-3)[k]),
                "the energy in MeV": (1e-3 * energy[k], energy_of(1)[k]),
            }
            likely = [guess for guess, pair in guesses.items() if is_near(*pair)]
            return text + (f"; are {likely[0]}?" if likely else "")

        self.expect(
            is_near(energy, energy_of(1)),
            "an energy (GeV) that follows from momentum (GeV) and mass (MeV)",
            wrong_energy,
        )

    def _note_farthest(self, features: NDArray[np.float64]) -> None:
        """Remember the values farthest from zero, for :meth:`Tally.warnings`."""
        rows = np.flatnonzero(self.good)
        for name in USUAL if len(rows) else ():
            values = features[rows, FEATURES.index(name)]
            k = int(np.abs(values).argmax())
            known = self.tally.farthest.get(name)
            if known is None or abs(values[k]) > abs(known[0]):
                place = (float(values[k]), self.start + int(rows[k]), self.path)
                self.tally.farthest[name] = place


def _named(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> str:
    """The first of the chosen features with its name."""
    k = int(chosen.argmax())
    return f"{FEATURES[k]} {values[k]:g}"


def nearest_species(features: NDArray[np.float64], detector: Detector) -> NDArray[np.int32]:
    """(N,) PDG code of the species nearest in mass among those of the same charge.

    A guess: mass and charge cannot tell K0L from K0S, nor a neutral particle from its
    antiparticle. Every neutral kaon becomes K0S (310), every neutral antiparticle the particle.
    Charges that no species has give 0. The species are :data:`LONG_LIVED` and those of the
    detector's simulation.
    """
    mass, charge = (features[:, FEATURES.index(name)] for name in ("mass", "charge"))
    # particles before antiparticles, so that a tie goes to the particle
    simulation = detector.simulation
    own = [] if simulation is None else [kind.pdg for kind in simulation.primaries.species]
    codes = np.array(sorted({*LONG_LIVED, *own}, reverse=True), np.int32)
    table = [Particle.from_pdgid(int(code)) for code in codes]
    distance = np.abs(mass[:, None] - [entry.mass or 0.0 for entry in table])
    distance[charge[:, None] != [entry.charge for entry in table]] = np.inf
    return np.where(np.isfinite(distance.min(1)), codes[distance.argmin(1)], 0).astype(np.int32)


@cache
def _exists(pdg: int) -> bool:
    """Whether a PDG code is that of a known particle, of any nucleus, or 0 for an unknown one."""
    try:
        Particle.from_pdgid(pdg)
    except (InvalidParticle, ParticleNotFound):
        return pdg == 0 or bool(is_nucleus(pdg))
    return True


@cache
def _mass_and_width(pdg: int) -> tuple[float, float]:
    """Mass and width (MeV) of a PDG code; a mass that is not known is NaN."""
    mass, _ = mass_and_charge(pdg)
    width = 0.0 if np.isnan(mass) else Particle.from_pdgid(pdg).width
    return mass, width or 0.0


@cache
def mass_and_charge(pdg: float) -> tuple[float, float]:
    """Mass (MeV) and charge (e) of a PDG code; NaN where one of them is not known."""
    try:
        entry = Particle.from_pdgid(int(pdg))
    except (InvalidParticle, ParticleNotFound, ValueError, OverflowError):
        return np.nan, np.nan
    # no mass of a neutrino is known, only that it is small
    mass = 0.0 if abs(pdg) in {12, 14, 16} else entry.mass
    if mass is None or entry.charge is None:
        return np.nan, np.nan
    return mass, float(entry.charge)
