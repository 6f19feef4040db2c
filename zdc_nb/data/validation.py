"""Rows of a data file: what each must hold, in whatever format it is kept.

A format's reader hands over some consecutive rows at a time, which bounds the memory that it
takes. What is wrong with a row is told with file, row and what was expected; or, where bad rows
are to be dropped, counted by what was expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
from zdc_nb.data.simulation import SPECIES
from zdc_nb.detector.geometry import ZN, Detector

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

MASS_TOLERANCE = 1e-4
"""By which part of its mass an energy may be short of it: both are rounded, to six digits in O2's
text, and masses differ a little between programs."""


class EventFileError(ValueError):
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
    """

    strict: bool
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    guessed: bool = False


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

    def expect(self, fulfilled: Any, expected: str, path: Path | None = None) -> None:
        """Refuse the rows that are not ``fulfilled`` (n,), or leave them out.

        ``path`` where they are those of another file than the first.
        """
        bad = self.good & ~np.asarray(fulfilled)
        if not bad.any():
            return
        if self.tally.strict:
            row = self.start + int(bad.argmax())
            raise EventFileError(
                f"{path or self.path}: row {row} (counted from 0, the first such row): "
                f"expected {expected}"
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
                self.expect(np.bincount(row[~fulfilled], minlength=len(lit)) == 0, expected, path)
        ends = np.concatenate([[0], np.cumsum(lit)])
        return sparse.csr_array((photons, fibre, ends), shape=(len(lit), self.detector.dim))

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
        self.expect(np.isfinite(features).all(axis=1), "finite features")
        if pdg is None:
            self.tally.guessed = True
            pdg = nearest_species(features)
        limits = np.iinfo(np.int32)
        with np.errstate(invalid="ignore"):
            whole = (pdg == np.rint(pdg)) & (pdg >= limits.min) & (pdg <= limits.max)
        self.expect(whole, "a PDG code")
        codes, which = np.unique(np.where(whole, pdg, 0).astype(np.int32), return_inverse=True)
        exists = np.array([_exists(code) for code in codes.tolist()], np.bool_)
        self.expect(exists[which], "a PDG code that exists")
        energy, mass = (features[:, FEATURES.index(name)] for name in ("energy", "mass"))
        self.expect(mass >= 0, "a mass of at least 0")
        self.expect(
            energy >= 1e-3 * (1 - MASS_TOLERANCE) * mass,
            "an energy (GeV) of at least the mass (MeV)",
        )
        total = photons.sum(axis=1, dtype=np.int64)
        self.expect(total <= LARGEST, f"at most {LARGEST} photons in all")
        if photon_sum is not None:
            self.expect(total == photon_sum, "a photon sum equal to the response's")
        if not self.good.all():
            features, pdg, photons = features[self.good], pdg[self.good], photons[self.good]
        return Events.from_arrays(pdg.astype(np.int32), features, photons, detector=self.detector)


def nearest_species(features: NDArray[np.float64]) -> NDArray[np.int32]:
    """(N,) PDG code of the species nearest in mass among those of the same charge.

    A guess: mass and charge cannot tell K0L from K0S, nor a neutral particle from its
    antiparticle. Every neutral kaon becomes K0S (310), every neutral antiparticle the particle.
    Charges that no species has give 0.
    """
    mass, charge = (features[:, FEATURES.index(name)] for name in ("mass", "charge"))
    # particles before antiparticles, so that a tie goes to the particle
    codes = np.array(sorted((s.pdg for s in SPECIES), reverse=True), np.int32)
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
