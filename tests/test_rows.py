"""What is checked in the rows of every format, and what follows from a particle's code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from particle import Particle
from scipy import sparse

from tests.event_sets import physical
from zdc_nb.data.events import FEATURES
from zdc_nb.data.simulation import model_of
from zdc_nb.data.validation import EventFileError, Rows, Tally, mass_and_charge, nearest_species
from zdc_nb.detector import ZN

SPECIES = model_of(ZN).primaries.species


def test_the_nearest_species_finds_every_species_but_neutral_antiparticles() -> None:
    features = np.zeros((len(SPECIES), len(FEATURES)))
    expected = []
    for row, species in zip(features, SPECIES, strict=True):
        entry = Particle.from_pdgid(species.pdg)
        # masses of other programs' tables differ a little
        row[7], row[8] = (entry.mass or 0.0) * 1.0001, entry.charge
        neutral = entry.charge == 0 and entry.pdgid < 0
        expected.append(abs(species.pdg) if neutral else species.pdg)
    found = nearest_species(features, ZN).tolist()
    kaons = {130, 310}  # nobody can tell K0L from K0S by mass and charge
    for pdg, guess in zip(expected, found, strict=True):
        assert guess == pdg or {guess, pdg} <= kaons


def test_a_charge_that_no_species_has_is_unknown() -> None:
    features = np.zeros((1, len(FEATURES)))
    features[0, 7:9] = 3727.379, 2
    assert nearest_species(features, ZN).tolist() == [0]


@pytest.mark.parametrize("species", SPECIES, ids=lambda species: str(species.pdg))
def test_mass_and_charge_follow_from_the_code(species: Any) -> None:
    entry = Particle.from_pdgid(species.pdg)
    assert mass_and_charge(float(species.pdg)) == (entry.mass or 0.0, float(entry.charge or 0))


@pytest.mark.parametrize("code", [0.0, 99999.0, 417.0, np.nan, np.inf, 1e300])
def test_codes_without_a_known_mass_give_none(code: float) -> None:
    assert np.isnan(mass_and_charge(code)).all()


def accepted(codes: Sequence[float]) -> list[bool]:
    """Of each code by itself, as the code of a row at rest."""
    light = sparse.csr_array((1, 1936), dtype=np.uint16)
    kept = []
    for code in codes:
        tally = Tally(strict=False)
        rows = Rows(Path("some"), 0, 1, tally)
        kept.append(
            len(rows.events(physical([code], np.zeros((1, 9))), np.array([code]), light, None)) == 1
        )
        assert kept[-1] or tally.dropped == {"a PDG code that exists": 1}
    return kept


def test_codes_of_particles_nuclei_and_of_what_is_unknown_are_accepted() -> None:
    known = [float(particle.pdgid) for particle in Particle.all()]
    # He4, Pb208, a nucleus that the table lacks, a hypertriton, and antimatter
    nuclei = [1000020040, 1000822080, 1000999999, 1010010030, -1000020040]
    assert all(accepted([0, 12, 22, *known, *nuclei]))


def test_codes_that_do_not_exist_are_refused() -> None:
    codes = [123456789, 10, 110, -22, 990, 2000020040, 1000030020, -130]
    assert not any(accepted(codes))


def test_codes_are_refused_row_by_row() -> None:
    light = sparse.csr_array((5, 1936), dtype=np.uint16)
    pdg = np.array([2112.0, 10, 22, 10, 310])
    features = physical(pdg, np.zeros((5, 9)))
    with pytest.raises(EventFileError, match=r"some: row 101 .* a PDG code that exists"):
        Rows(Path("some"), 100, 5, Tally(strict=True)).events(features, pdg, light, None)
    tally = Tally(strict=False)
    kept = Rows(Path("some"), 100, 5, tally).events(features, pdg, light, None)
    assert (kept.pdg.tolist(), tally.dropped) == ([2112, 22, 310], {"a PDG code that exists": 2})


def test_neutrinos_weigh_nothing() -> None:
    assert [mass_and_charge(code) for code in (12, -14, 16)] == [(0.0, 0.0)] * 3
