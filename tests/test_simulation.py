"""The open simulation: kinematics, decay lengths, light, and that a seed means the same anywhere."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from particle import Particle
from scipy import stats

from tests.event_sets import small_detector
from zdc_nb.data import simulation
from zdc_nb.data.events import FEATURES, Events, impact_point
from zdc_nb.data.simulation import (
    DECAYS,
    Particles,
    Rays,
    Sources,
    collect_light,
    decay_products,
    draw_particles,
    model_of,
    respond,
    simulate,
    simulate_again,
    two_body_decay,
)
from zdc_nb.detector import ZN, load_detector

Array = NDArray[np.float64]

SPECIES = model_of(ZN).primaries.species

C_TAU = {3122: 0.0789, 310: 0.026844, 3322: 0.0871}
"""m, as printed in the Review of Particle Physics 2024."""

CHECKSUM = "78a1f17394b02c8215932f300e68552f087741bf1f199b7985cd257f5ef631df"
"""sha256 of ``simulate(2000, 10, 10, seed=5)``: a physics change changes it, a machine must not."""


def gev(pdg: int) -> float:
    return float(Particle.from_pdgid(pdg).mass or 0.0) / 1e3


def charge(pdg: int) -> float:
    return float(Particle.from_pdgid(pdg).charge or 0.0)


def one_particle(pdg: int, energy: float, px: float = 0.0, py: float = 0.0) -> Particles:
    pz = np.sqrt(energy**2 - gev(pdg) ** 2 - px**2 - py**2)
    row = [energy, 0.0, 0.0, 0.0, px, py, pz, 1e3 * gev(pdg), charge(pdg)]
    return Particles(np.array([pdg], np.int32), np.array([row]))


def rays(pdg: int, count: int, momentum: tuple[float, float, float]) -> Rays:
    """``count`` equal particles at the interaction point."""
    energy = np.sqrt(gev(pdg) ** 2 + np.sum(np.square(momentum)))
    four = np.tile([energy, *momentum], (count, 1))
    return Rays(np.arange(count), np.full(count, pdg, np.int32), np.zeros((count, 3)), four)


def invariant_mass(momentum: Array) -> Array:
    squared: Array = momentum[:, 0] ** 2 - (momentum[:, 1:] ** 2).sum(axis=1)
    return np.sqrt(np.maximum(squared, 0.0))


def digest(events: Events) -> str:
    sha = hashlib.sha256()
    for array in (events.pdg, events.features, events.responses, events.particle):
        sha.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
    return sha.hexdigest()


# --- Decays


@settings(max_examples=50, deadline=None)
@given(
    mass=st.floats(0.05, 3.0),
    shares=st.tuples(st.floats(0.0, 0.49), st.floats(0.0, 0.49)),
    momentum=st.tuples(*[st.floats(-500, 500)] * 3),
)
def test_a_decay_conserves_four_momentum_and_gives_the_daughters_their_masses(
    mass: float, shares: tuple[float, float], momentum: tuple[float, float, float]
) -> None:
    count = 20
    parent = np.tile([np.sqrt(mass**2 + np.sum(np.square(momentum))), *momentum], (count, 1))
    masses = [np.full(count, m) for m in (mass, shares[0] * mass, shares[1] * mass)]
    first, second = two_body_decay(
        np.random.default_rng(0), parent, (masses[0], masses[1], masses[2])
    )
    np.testing.assert_allclose(first + second, parent, rtol=1e-12, atol=1e-9)
    for daughter, expected in ((first, masses[1]), (second, masses[2])):
        # E^2 - p^2 loses digits at large boosts, so the energy is what is compared
        energy = np.sqrt((daughter[:, 1:] ** 2).sum(axis=1) + expected**2)
        np.testing.assert_allclose(daughter[:, 0], energy, rtol=1e-9, atol=1e-9)


def boost_to_rest(momentum: Array, parent: Array) -> Array:
    """By the matrix of the textbook, unlike the code, which has the boost in closed form."""
    beta = parent[1:] / parent[0]
    square = beta @ beta
    gamma = 1 / np.sqrt(1 - square)
    matrix = np.eye(4)
    matrix[0, 0] = gamma
    matrix[0, 1:] = matrix[1:, 0] = -gamma * beta
    matrix[1:, 1:] += (gamma - 1) * np.outer(beta, beta) / square
    boosted: Array = momentum @ matrix
    return boosted


def test_a_decay_is_isotropic_in_the_rest_frame() -> None:
    count = 20_000
    parent = rays(3122, count, (0.4, -0.9, 3.0)).momentum
    masses = [np.full(count, gev(pdg)) for pdg in (3122, 2112, 111)]
    neutron, _ = two_body_decay(np.random.default_rng(1), parent, (masses[0], masses[1], masses[2]))
    rest = boost_to_rest(neutron, parent[0])
    size = np.linalg.norm(rest[:, 1:], axis=1)
    # PDG: p of Lambda -> n pi0 is 104 MeV
    np.testing.assert_allclose(size, 0.104, atol=5e-4)
    for axis in range(1, 4):
        cosine = rest[:, axis] / size
        assert stats.kstest(cosine, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_decay_modes_have_their_fractions_and_conserve_charge() -> None:
    for code, modes in DECAYS.items():
        count = 4000
        products = decay_products(np.random.default_rng(2), rays(code, count, (0.0, 0.0, 50.0)))
        parent = rays(code, 1, (0.0, 0.0, 50.0)).momentum[0]
        for mode in modes:
            assert sum(map(charge, mode.daughters)) == charge(code)
            assert sum(map(gev, mode.daughters)) < gev(code)
        decayed, per_parent = np.unique(products.response, return_counts=True)
        assert set(per_parent) == {2}
        expected = sum(mode.fraction for mode in modes)
        assert len(decayed) / count == pytest.approx(expected, abs=0.03)
        total = np.zeros((count, 4))
        np.add.at(total, products.response, products.momentum)
        np.testing.assert_allclose(total[decayed], np.tile(parent, (len(decayed), 1)), atol=1e-9)


@pytest.mark.parametrize(("pdg", "pz"), [(3122, 200.0), (310, 800.0), (3322, 300.0)])
def test_decay_lengths_are_exponential(pdg: int, pz: float) -> None:
    decayed, swept, landed = simulation._fly(
        np.random.default_rng(3), rays(pdg, 20_000, (0.1, 0.0, pz))
    )
    assert len(swept) == 0
    assert len(decayed) + len(landed) == 20_000
    length = C_TAU[pdg] * pz / gev(pdg)
    arrive = np.exp(-ZN.distance / length)
    assert stats.binomtest(len(landed), 20_000, arrive).pvalue > 1e-3
    z = decayed.position[:, 2]
    truncated = stats.truncexpon(b=ZN.distance / length, scale=length)
    assert stats.kstest(z, truncated.cdf).pvalue > 1e-3
    np.testing.assert_allclose(decayed.position[:, 0], z * 0.1 / pz)


def test_charged_particles_are_swept_away_unless_born_behind_the_dipole() -> None:
    before = rays(2212, 10, (0.0, 0.0, 3000.0))
    assert [len(part) for part in simulation._fly(np.random.default_rng(0), before)] == [0, 10, 0]
    late = np.tile([0.0, 0.0, 68.0 + 1], (10, 1))
    behind = Rays(before.response, before.pdg, late, before.momentum)
    assert [len(part) for part in simulation._fly(np.random.default_rng(0), behind)] == [0, 0, 10]


# --- Primaries


def test_primaries_lie_on_their_mass_shell_within_the_published_ranges() -> None:
    particles = draw_particles(np.random.default_rng(4), np.linspace(0, 1, 5000, endpoint=False))
    energy, *_, mass, charges = particles.features.T
    momentum = particles.features[:, 4:7]
    shell = np.sqrt((momentum**2).sum(axis=1) + (mass / 1e3) ** 2)
    np.testing.assert_allclose(energy, shell, atol=5e-6)
    assert energy.min() >= 1.1
    assert energy.max() <= 7000
    table = {s.pdg: Particle.from_pdgid(s.pdg) for s in SPECIES}
    assert set(particles.pdg) == set(table)
    assert len(table) == 21
    for pdg, m, q in zip(particles.pdg, mass, charges, strict=True):
        assert m == pytest.approx(table[pdg].mass or 0.0, abs=1e-5)
        assert q == table[pdg].charge


def test_species_are_drawn_by_their_abundance() -> None:
    particles = draw_particles(np.random.default_rng(4), np.random.default_rng(9).random(50_000))
    total = sum(s.abundance for s in SPECIES)
    observed = [int((particles.pdg == s.pdg).sum()) for s in SPECIES]
    expected = [50_000 * s.abundance / total for s in SPECIES]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_impact_point_is_where_a_straight_line_meets_the_face() -> None:
    features = np.zeros((2, len(FEATURES)))
    features[0, 1:3] = (1e-5, 2e-5)
    features[:, 4:7] = [[0.2, -0.4, 1000.0], [0.3, 0.1, -2000.0]]
    expected = [
        [1e-5 + 112.5 * 0.2e-3, 2e-5 - 112.5 * 0.4e-3 - ZN.offset[1]],
        [112.5 * 0.15e-3, 112.5 * 0.05e-3 - ZN.offset[1]],
    ]
    np.testing.assert_allclose(impact_point(features, ZN), expected)


# --- Light


def test_light_in_every_fibre_is_poisson_and_has_the_profile_of_the_source() -> None:
    count, light, radius = 4000, 40.0, 0.004
    sources = Sources(
        np.arange(count), *(np.full(count, v) for v in (0.003, -0.005, light, radius))
    )
    counts = collect_light(np.random.default_rng(5), sources, count)
    # the light in a fibre by integrating R^2 / (pi (r^2 + R^2)^2) over it on a fine grid
    fine = 16
    edge = (np.arange(44 * fine) + 0.5) * ZN.pitch / fine - ZN.face[0] / 2
    x, y = np.meshgrid(edge - 0.003, -edge + 0.005)
    profile = radius**2 / (np.pi * (x**2 + y**2 + radius**2) ** 2) * (ZN.pitch / fine) ** 2
    expected = light * profile.reshape(44, fine, 44, fine).sum(axis=(1, 3))
    mean, variance = counts.mean(axis=0), counts.var(axis=0)
    pull = (mean - expected) / np.sqrt(expected / count)
    # only fibres whose count over all responses is large enough for a Gaussian pull
    told = expected * count > 25
    assert told.sum() > 300
    assert np.abs(pull[told]).max() < 5
    assert pull[told].std() == pytest.approx(1, abs=0.1)
    bright = expected > 0.2
    ratio = variance[bright] / mean[bright]
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    row, column = np.unravel_index(expected.argmax(), expected.shape)
    central = counts[:, row, column]
    top = central.max()
    law = stats.poisson(expected.max())
    expected_counts = count * np.append(law.pmf(np.arange(top)), law.sf(top - 1))
    observed = np.bincount(central, minlength=top + 1)
    rare = expected_counts < 5
    merged = [np.append(v[~rare], v[rare].sum()) for v in (observed, expected_counts)]
    assert stats.chisquare(merged[0], merged[1] * merged[0].sum() / merged[1].sum()).pvalue > 1e-3


def test_sources_add_up_in_their_own_response_only() -> None:
    sources = Sources(
        np.array([1, 1, 3]), np.zeros(3), np.zeros(3), np.full(3, 500.0), np.full(3, 1e-4)
    )
    total = collect_light(np.random.default_rng(0), sources, 5).sum(axis=(1, 2))
    assert total[[0, 2, 4]].tolist() == [0, 0, 0]
    assert stats.poisson(1000).cdf(total[1]) == pytest.approx(0.5, abs=0.4999)
    assert stats.poisson(500).cdf(total[3]) == pytest.approx(0.5, abs=0.4999)


@pytest.mark.parametrize(
    ("x", "y", "corner"),
    [(-1, 1, (0, 0)), (1, 1, (0, 43)), (-1, -1, (43, 0)), (1, -1, (43, 43))],
)
def test_row_0_is_the_top_and_column_0_the_left(x: int, y: int, corner: tuple[int, int]) -> None:
    middle = 21.5 * ZN.pitch
    one = Sources(
        np.array([0]),
        np.array([x * middle]),
        np.array([y * middle]),
        np.full(1, 1e3),
        np.full(1, 1e-5),
    )
    counts = collect_light(np.random.default_rng(0), one, 1)[0]
    assert np.unravel_index(counts.argmax(), counts.shape) == corner


def test_a_contained_neutron_gives_the_published_light_and_a_photon_more() -> None:
    """The published example: 1256 photons at 3192.38 GeV, 0.4 a GeV."""
    rng = np.random.default_rng(6)
    neutron = respond(rng, one_particle(2112, 3192.38, 0.022422, -0.182957), 500)
    photon = respond(rng, one_particle(22, 513.318, 0.035456, -0.051821), 500)
    light = np.median(neutron.sum(axis=(1, 2))) / 3192.38
    assert light == pytest.approx(1256 / 3192.38, rel=0.2)
    assert np.median(photon.sum(axis=(1, 2))) == pytest.approx(291, rel=0.2)


def test_a_shower_is_brightest_where_its_particle_points() -> None:
    particle = one_particle(22, 1000.0, 0.1, 0.25)
    light = respond(np.random.default_rng(7), particle, 100).astype(np.float64).mean(axis=0)
    row, column = np.unravel_index(light.argmax(), light.shape)
    x, y = impact_point(particle.features, ZN)[0]
    assert abs((column + 0.5) * ZN.pitch - ZN.face[0] / 2 - x) < ZN.pitch
    assert abs(ZN.face[0] / 2 - (row + 0.5) * ZN.pitch - y) < ZN.pitch


def test_the_kaon_lights_more_places_than_the_photon() -> None:
    """What the method lives on: the same particle differs from simulation to simulation."""
    rng = np.random.default_rng(8)
    spread = {}
    for pdg in (22, 310):
        light = respond(rng, one_particle(pdg, 2000.0, 0.1, 0.2), 300)
        brightest = light.reshape(300, -1).argmax(axis=1)[light.sum(axis=(1, 2)) > 300]
        rows, columns = np.unravel_index(brightest, (44, 44))
        distance = np.hypot(rows - np.median(rows), columns - np.median(columns))
        spread[pdg] = np.quantile(distance, 0.9)
    # many kaons of this energy arrive whole, so it is the tail that tells
    assert spread[22] <= 1.5
    assert spread[310] >= 3


# --- The whole


@pytest.fixture(scope="module")
def tiny() -> Events:
    return simulate(2000, 10, 10, seed=5)


def test_exactly_as_many_as_asked_for_all_bright_enough(tiny: Events) -> None:
    assert len(tiny) == 2000
    assert tiny.photon_sum.min() >= 10
    _, counts = np.unique(tiny.particle, return_counts=True)
    assert counts.max() == 10
    assert counts.min() >= 1


@pytest.mark.parametrize("responses", [1, 777, 1999])
def test_a_smaller_set_is_the_beginning_of_a_larger_one(tiny: Events, responses: int) -> None:
    small = simulate(responses, 10, 10, seed=5)
    for name in ("pdg", "features", "responses"):
        np.testing.assert_array_equal(getattr(small, name), getattr(tiny, name)[:responses])


def test_filtering_is_dropping_from_the_unfiltered_set(tiny: Events) -> None:
    everything = simulate(5000, 10, 0, seed=5)
    assert (everything.photon_sum == 0).any()
    bright = everything[everything.photon_sum >= 10]
    count = min(len(bright), len(tiny))
    np.testing.assert_array_equal(bright.responses[:count], tiny.responses[:count])


def test_another_seed_gives_other_events(tiny: Events) -> None:
    other = simulate(2000, 10, 10, seed=6)
    assert not np.array_equal(other.responses, tiny.responses)
    assert not np.intersect1d(other.features[:, 0], tiny.features[:, 0]).size


def test_the_checksum_of_a_seed_is_the_stored_one(tiny: Events) -> None:
    assert digest(tiny) == CHECKSUM


def test_a_processor_without_vector_units_gives_the_same(tiny: Events) -> None:
    """numpy's exponentials and square roots may differ in the last bit between processors."""
    features = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR ASIMDHP ASIMDDP ASIMDFHM SVE"
    code = (
        "import hashlib; from zdc_nb.data.simulation import simulate; "
        "e = simulate(2000, 10, 10, seed=5); "
        "print(hashlib.sha256(e.features.tobytes() + e.responses.tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": features},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = hashlib.sha256(tiny.features.tobytes() + tiny.responses.tobytes()).hexdigest()
    assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    ("responses", "repeats", "min_photons"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)]
)
def test_numbers_out_of_range_are_refused(responses: int, repeats: int, min_photons: int) -> None:
    with pytest.raises(ValueError, match="expected responses >= 1, repeats >= 1"):
        simulate(responses, repeats, min_photons, seed=1)


def test_an_impossible_filter_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    dark = np.zeros((simulation.CHUNK * 2000, 44, 44), np.uint8)
    monkeypatch.setattr(simulation, "respond", lambda *_: dark)
    with pytest.raises(ValueError, match="no response has 5 photons"):
        simulate(1, 2000, 5, seed=1)


# --- The same particles again


@pytest.fixture(scope="module")
def again() -> tuple[Events, Events]:
    """A few bright particles simulated often, and the same ones again."""
    first = simulate(3000, 500, 10, seed=8)
    labels, counts = np.unique(first.particle, return_counts=True)
    chosen = first[np.isin(first.particle, labels[counts > 200])]
    return chosen, simulate_again(chosen, 500, 10, seed=9)


def test_particles_that_are_simulated_again_stay_the_same_bit_for_bit(
    again: tuple[Events, Events],
) -> None:
    first, second = again
    assert len(np.unique(first.particle)) >= 3
    assert len(second) > 1000
    for label in np.unique(first.particle):
        one, other = (part[part.particle == label] for part in again)
        assert np.unique(np.vstack([one.features, other.features]), axis=0).shape == (1, 9)
        assert {*one.pdg} == {*other.pdg}
    # so that all their responses are one particle's when they are numbered anew
    joined = Events.join([first, second])
    assert len(np.unique(joined.particle)) == len(np.unique(first.particle))
    assert second.photon_sum.min() >= 10
    assert (np.diff(second.particle) >= 0).all()


def test_a_particle_that_is_simulated_again_answers_as_before(
    again: tuple[Events, Events],
) -> None:
    for label in np.unique(again[0].particle):
        one, other = (part[part.particle == label] for part in again)
        assert len(other) == pytest.approx(len(one), rel=0.15)
        rows = np.arange(44)
        for values in (
            [part.photon_sum for part in (one, other)],
            [part.lit_fibres for part in (one, other)],
            [part.responses.sum(2) @ rows / part.photon_sum for part in (one, other)],
        ):
            assert stats.ks_2samp(*values).pvalue > 1e-3
        # and no response comes twice
        assert not {row.tobytes() for row in one.responses} & {
            row.tobytes() for row in other.responses if row.sum() > 50
        }


def test_another_particle_answers_otherwise(again: tuple[Events, Events]) -> None:
    """What the test before would have noticed."""
    first, second = again
    labels = np.unique(first.particle)
    sums = [first.photon_sum[first.particle == k] for k in labels]
    others = [second.photon_sum[second.particle == k] for k in np.roll(labels, 1)]
    assert min(stats.ks_2samp(*pair).pvalue for pair in zip(sums, others, strict=True)) < 1e-6


def test_the_same_seed_gives_the_same_further_responses(again: tuple[Events, Events]) -> None:
    first, second = again
    same = simulate_again(first[::-1], 500, 10, seed=9)
    np.testing.assert_array_equal(same.responses, second.responses)
    np.testing.assert_array_equal(same.particle, second.particle)
    other = simulate_again(first, 500, 10, seed=10)
    assert not np.array_equal(other.photon_sum[:100], second.photon_sum[:100])


def test_dark_particles_and_more_than_a_chunk_of_them(tiny: Events) -> None:
    assert len(np.unique(tiny.particle)) > 2 * simulation.CHUNK
    found = simulate_again(tiny, 1, 200, seed=1)
    assert 0 < len(found) == len(np.unique(found.particle)) < len(np.unique(tiny.particle))
    assert found.photon_sum.min() >= 200
    for event in range(0, len(found), 20):
        of = tiny.features[tiny.particle == found.particle[event]]
        np.testing.assert_array_equal(found.features[event], of[0])
    assert len(simulate_again(tiny, 1, 60_000, seed=1)) == 0


def test_what_cannot_be_simulated_again_is_refused(tiny: Events) -> None:
    for repeats, least in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="expected repeats >= 1 and min_photons >= 0"):
            simulate_again(tiny, repeats, least, seed=1)
    unknown = Events(np.zeros_like(tiny.pdg), tiny.features, tiny.photons, tiny.particle)
    with pytest.raises(ValueError, match="no species of the simulation has PDG code 0"):
        simulate_again(unknown, 1, 0, seed=1)
    elsewhere = Events.from_arrays(
        np.full(1, 22, np.int32),
        np.zeros((1, 9)),
        np.zeros((1, 56, 30), np.uint16),
        detector=small_detector(),
    )
    with pytest.raises(ValueError, match="no open simulation of the detector ZP"):
        simulate_again(elsewhere, 1, 0, seed=1)


def test_a_magnet_bends_once() -> None:
    """Wherever protons are aimed, those that do not interact on the way arrive there."""
    zp = load_detector("zp")
    protons = [
        simulation.aim(2212, energy, (x, y), zp)
        for energy in (2500.0, 2700.0, 2900.0)
        for x in np.linspace(-0.1, 0.1, 9)
        for y in np.linspace(-0.05, 0.05, 5)
    ]
    particles = Particles(
        np.concatenate([p.pdg for p in protons]), np.concatenate([p.features for p in protons])
    )
    rng = np.random.default_rng(1)
    arrived, _ = simulation._transport(rng, simulation._primary_rays(particles, 20), zp)
    share = np.bincount(arrived.response // 20, minlength=len(protons)) / 20
    assert share.min() > 0.5
    expected = impact_point(particles.features, zp)[arrived.response // 20] + zp.offset
    np.testing.assert_allclose(arrived.position[:, :2], expected, atol=1e-9)
