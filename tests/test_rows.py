"""What is checked in the rows of every format, and what follows from a particle's code."""

from typing import Any

import numpy as np
import pytest
from particle import Particle

from zdc_nb.events import FEATURES
from zdc_nb.rows import mass_and_charge, nearest_species
from zdc_nb.simulation import SPECIES


def test_the_nearest_species_finds_every_species_but_neutral_antiparticles() -> None:
    features = np.zeros((len(SPECIES), len(FEATURES)))
    expected = []
    for row, species in zip(features, SPECIES, strict=True):
        entry = Particle.from_pdgid(species.pdg)
        # masses of other programs' tables differ a little
        row[7], row[8] = (entry.mass or 0.0) * 1.0001, entry.charge
        neutral = entry.charge == 0 and entry.pdgid < 0
        expected.append(abs(species.pdg) if neutral else species.pdg)
    found = nearest_species(features).tolist()
    kaons = {130, 310}  # nobody can tell K0L from K0S by mass and charge
    for pdg, guess in zip(expected, found, strict=True):
        assert guess == pdg or {guess, pdg} <= kaons


def test_a_charge_that_no_species_has_is_unknown() -> None:
    features = np.zeros((1, len(FEATURES)))
    features[0, 7:9] = 3727.379, 2
    assert nearest_species(features).tolist() == [0]


@pytest.mark.parametrize("species", SPECIES, ids=lambda species: str(species.pdg))
def test_mass_and_charge_follow_from_the_code(species: Any) -> None:
    entry = Particle.from_pdgid(species.pdg)
    assert mass_and_charge(float(species.pdg)) == (entry.mass or 0.0, float(entry.charge or 0))


@pytest.mark.parametrize("code", [0.0, 99999.0, 417.0, np.nan, np.inf, 1e300])
def test_codes_without_a_known_mass_give_none(code: float) -> None:
    assert np.isnan(mass_and_charge(code)).all()


def test_neutrinos_weigh_nothing() -> None:
    assert [mass_and_charge(code) for code in (12, -14, 16)] == [(0.0, 0.0)] * 3
