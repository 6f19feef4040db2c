"""Where a shower should be: against the formula of eta and phi, and against many simulated responses."""

import dataclasses

import numpy as np
import pytest
from particle import Particle
from scipy import integrate

from zdc_nb.data.events import FEATURES, Events, impact_point
from zdc_nb.data.expected import arrival_chance, expected_centre, learned_offset
from zdc_nb.data.simulation import Particles, aim, draw_particles, respond
from zdc_nb.detector import ZN, Detector, load_detector, shower_centre

FOCAL, ZP = load_detector("focal_h"), load_detector("zp")


def column(particles: Particles, name: str) -> np.ndarray:
    return particles.features[:, FEATURES.index(name)]


def drawn(detector: Detector, n: int = 300) -> Particles:
    rng = np.random.default_rng(3)
    return draw_particles(rng, rng.random(n), None, detector)


def with_values(particles: Particles, **values: float) -> Particles:
    features = particles.features.copy()
    for name, value in values.items():
        features[:, FEATURES.index(name)] = value
    return Particles(particles.pdg, features)


@pytest.mark.parametrize("detector", [ZN, FOCAL])
def test_without_offset_bend_and_vertex_it_is_the_formula_of_eta_and_phi(
    detector: Detector,
) -> None:
    plain = dataclasses.replace(detector, offset=(0.0, 0.0), deflection=0.0)
    particles = with_values(drawn(detector), vx=0.0, vy=0.0, vz=0.0)
    px, py, pz = (column(particles, name) for name in ("px", "py", "pz"))
    momentum = np.sqrt(px**2 + py**2 + pz**2)
    eta, phi = np.arctanh(pz / momentum), np.arctan2(py, px)
    z = np.sign(pz) * plain.distance  # particles fly to either side
    x = z * np.tan(2 * np.arctan(np.exp(-eta))) * np.cos(phi)
    y = z * np.tan(2 * np.arctan(np.exp(-eta))) * np.sin(phi)
    np.testing.assert_allclose(impact_point(particles.features, plain), np.c_[x, y], rtol=1e-4)
    centre, weight = expected_centre(particles.pdg, particles.features, plain)
    rows, columns = plain.shape
    found = weight > 0
    assert 10 < found.sum() < len(found)
    # the middle of fibre (i, j) lies at x = (j + 1/2) pitch from the left, and as far from the top
    np.testing.assert_allclose(
        centre[found, 1], ((x + columns * plain.pitch / 2) / plain.pitch - 0.5)[found], atol=1e-3
    )
    np.testing.assert_allclose(
        centre[found, 0], ((rows * plain.pitch / 2 - y) / plain.pitch - 0.5)[found], atol=1e-3
    )
    np.testing.assert_array_equal(centre[~found], np.tile(plain.face_centre, ((~found).sum(), 1)))


AIMED = [
    (ZN, 2112, 2500.0, (0.003, -0.002)),
    (FOCAL, 211, 200.0, (0.06, -0.04)),
    (ZP, 2212, 2700.0, (0.012, -0.006)),
]


@pytest.mark.parametrize(("detector", "pdg", "energy", "point"), AIMED)
def test_many_showers_of_what_arrives_have_their_centre_there(
    detector: Detector, pdg: int, energy: float, point: tuple[float, float]
) -> None:
    particle = aim(pdg, energy, point, detector)
    responses = respond(np.random.default_rng(1), particle, 2000, detector)
    lit = responses.sum(0, dtype=np.int64)
    # a loop over fibres: every photon where its fibre is
    row = sum(i * int(n) for (i, _), n in np.ndenumerate(lit)) / int(lit.sum())
    col = sum(j * int(n) for (_, j), n in np.ndenumerate(lit)) / int(lit.sum())
    (centre,), (weight,) = expected_centre(particle.pdg, particle.features, detector)
    assert weight > 0.999
    # light beyond the face is lost, so that what is seen lies a little nearer to its middle
    middle = np.array(detector.face_centre)
    off = centre - middle
    assert np.abs(off).min() > 1
    share = (np.array([row, col]) - middle) / off
    assert ((share > 0.8) & (share < 1.02)).all()


@pytest.mark.parametrize(("code", "energy"), [(3122, 1500.0), (310, 3000.0), (3222, 2000.0)])
def test_the_weight_is_the_chance_that_a_particle_has_not_decayed(code: int, energy: float) -> None:
    """Against an integral of the decays along the way, in the rest frame's own time."""
    particle = aim(code, energy, (0.0, 0.0), ZP)
    entry = Particle.from_pdgid(code)
    mass, lifetime = float(entry.mass or 0) / 1e3, float(entry.lifetime or 0)  # GeV, ns
    gamma = energy / mass
    speed = np.sqrt(1 - 1 / gamma**2) * 0.299792458  # m / ns
    until = ZP.distance / speed / gamma
    decayed, _ = integrate.quad(lambda t: np.exp(-t / lifetime) / lifetime, 0, until)
    (weight,) = arrival_chance(particle.pdg, particle.features, ZP)
    assert 0.05 < weight < 0.95
    assert weight == pytest.approx(1 - decayed, rel=1e-3)


def test_what_is_swept_away_or_aimed_beside_or_not_known_has_no_weight() -> None:
    def weight(particle: Particles, detector: Detector, pdg: int | None = None) -> float:
        codes = particle.pdg if pdg is None else np.array([pdg], np.int32)
        return float(expected_centre(codes, particle.features, detector).weight[0])

    half = ZN.face[1] / 2
    assert weight(aim(2212, 2500.0, (0.0, 0.0), ZN), ZN) == 0
    assert weight(aim(2212, 2700.0, (0.0, 0.0), ZP), ZP) == 1
    assert weight(aim(2112, 2500.0, (half - 1e-4, 0.0), ZN), ZN) == pytest.approx(1)
    assert weight(aim(2112, 2500.0, (half + 1e-4, 0.0), ZN), ZN) == 0
    assert weight(aim(22, 500.0, (0.0, 0.0), ZN), ZN) == 1
    for unknown in (0, 999999, 421):  # none, none, and a D0, which is gone at once
        assert weight(aim(2112, 2500.0, (0.0, 0.0), ZN), ZN, unknown) < 1e-99
    stopped = with_values(aim(2112, 2500.0, (0.0, 0.0), ZN), px=1.0, pz=0.0)
    assert weight(stopped, ZN) == 0
    nucleus = aim(2112, 2500.0, (0.0, 0.0), FOCAL)
    assert weight(nucleus, FOCAL, 1000822080) == 1


def test_a_learned_offset_is_found_again_among_responses_that_lie_anywhere() -> None:
    rng = np.random.default_rng(5)
    rows, cols = rng.integers(10, 30, (2, 400))
    neutrons = [
        aim(2112, 2000.0, ((j - 21.5) * ZN.pitch, (21.5 - i) * ZN.pitch))
        for i, j in zip(rows, cols, strict=True)
    ]
    responses = np.zeros((400, *ZN.shape), np.uint16)
    off_row, off_col = rng.normal(2.0, 0.4, 400), rng.normal(-1.0, 0.4, 400)
    for k in range(400):
        if k % 4 == 0:  # lost on the way, seen in a corner
            responses[k, 40:44, 40:44] = 5
            continue
        # a light of two fibres whose mean lies off the expected centre
        i, j = rows[k] + off_row[k], cols[k] + off_col[k]
        for at, share in ((int(np.floor(i)), 1 - i % 1), (int(np.floor(i)) + 1, i % 1)):
            for to, part in ((int(np.floor(j)), 1 - j % 1), (int(np.floor(j)) + 1, j % 1)):
                responses[k, at, to] = round(1000 * share * part)
    events = Events.from_arrays(
        np.concatenate([n.pdg for n in neutrons]),
        np.concatenate([n.features for n in neutrons]),
        responses,
    )
    offset = learned_offset(events)
    measured = shower_centre(responses, ZN)
    expected = np.c_[rows, cols]
    # all weights are nearly 1: the median, of which a quarter lies in the corner
    np.testing.assert_allclose(offset, np.median(measured - expected, axis=0), atol=0.1)
    moved = expected_centre(events.pdg, events.features, ZN, offset).centre
    plain = expected_centre(events.pdg, events.features, ZN).centre
    np.testing.assert_allclose(moved - plain, np.tile(offset, (400, 1)))
    # particles that never arrive say nothing
    charged = Events.from_arrays(np.full(400, 2212, np.int32), events.features, responses)
    swept = charged.features.copy()
    swept[:, FEATURES.index("charge")] = 1.0
    assert learned_offset(dataclasses.replace(charged, features=swept)) == (0.0, 0.0)
