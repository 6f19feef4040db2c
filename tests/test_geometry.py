"""A detector as a value, and that everything works for one of another face, against brute force."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import wasserstein_distance

from tests.event_sets import assert_equal, channel, small_detector, write_pair
from zdc_nb.data.events import Events, impact_point
from zdc_nb.data.o2_text import HEADER
from zdc_nb.data.readers import read_events
from zdc_nb.data.root import write_root
from zdc_nb.detector import (
    ZN,
    Detector,
    channel_sums,
    containment_radius,
    diversity,
    shower_centre,
)
from zdc_nb.evaluation import evaluate
from zdc_nb.generator.encoding import (
    channel_fractions,
    counts_from_noised,
    decode_responses,
    encode_responses,
    noised_from_flow,
    raw_conditions,
)
from zdc_nb.params import load_study

ROWS, COLUMNS = 56, 30
PARAMS = load_study(Path(__file__).parents[1] / "params" / "smoke.yaml").preprocessing
assert PARAMS.noise is not None
assert PARAMS.alpha is not None
NOISE, ALPHA = PARAMS.noise, PARAMS.alpha
ZP = small_detector()


def make_events(particle: NDArray[np.int64], seed: int) -> Events:
    """Some fibres lit at random; the impact point of particle k is to the right by k cm."""
    rng = np.random.default_rng(seed)
    n = len(particle)
    responses = rng.integers(1, 400, (n, ROWS, COLUMNS)).astype(np.uint16)
    responses[rng.random(responses.shape) > 0.02] = 0
    features = np.zeros((n, 9))
    features[:, 0] = features[:, 6] = 1000.0
    features[:, 4] = 1000.0 * 0.01 * particle / 113.0
    features[:, 5] = -1000.0 * 0.2 / 113.0
    features[:, 7:] = 938.272, 1
    return Events.from_arrays(np.full(n, 2212, np.int32), features, responses, particle, ZP)


@pytest.fixture(scope="module")
def events() -> Events:
    return make_events(np.array([3, 1, 3, 2, 3, 1, 2, 4]), seed=0)


def lit(response: NDArray[np.uint16]) -> list[tuple[int, int, int]]:
    every = product(range(ROWS), range(COLUMNS))
    return [(i, j, int(response[i, j])) for i, j in every if response[i, j]]


def test_equal_values_make_equal_detectors() -> None:
    assert small_detector() == ZP
    assert hash(small_detector()) == hash(ZP)
    assert len({ZP, small_detector(), ZN}) == 2
    turned = ZP.masks[::-1]
    assert turned.shape == ZP.masks.shape
    other = Detector("ZP", ZP.shape, ZP.pitch, ZP.distance, ZP.offset, ZP.channels, turned)
    assert other != ZP
    assert ZP != "ZP"
    with pytest.raises(ValueError, match="read-only"):
        ZP.masks[0, 0, 0] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (0, 30)}, r"shape: expected 1 to 65536 fibres, got \(0, 30\)"),
        ({"shape": (300, 300)}, "shape: expected 1 to 65536 fibres"),
        ({"pitch": 0.0}, "pitch: expected a positive length, got 0.0"),
        ({"distance": -1.0}, "distance: expected a positive length, got -1.0"),
        ({"channels": ("one",)}, r"masks: expected \(1, 56, 30\) bool, got \(6, 56, 30\) bool"),
        ({"masks": np.ones((6, 56, 30))}, r"masks: expected .* bool, got \(6, 56, 30\) float64"),
    ],
)
def test_what_makes_no_detector_is_refused(change: dict[str, object], message: str) -> None:
    names = ("name", "shape", "pitch", "distance", "offset", "channels", "masks")
    values: dict[str, object] = {name: getattr(ZP, name) for name in names}
    with pytest.raises(ValueError, match=message):
        Detector(**{**values, **change})  # type: ignore[arg-type]


def test_sizes_follow_from_the_shape() -> None:
    assert ZP.dim == 1680
    assert ZP.face == pytest.approx((0.224, 0.12))
    assert ZP.face_centre == (27.5, 14.5)


def test_events_hold_the_responses_of_their_detector(events: Events) -> None:
    assert events.photons.shape == (8, 1680)
    assert events.responses.shape == (8, 56, 30)
    chosen = events[np.array([6, 0])]
    assert chosen.detector is ZP
    for k, response in zip((6, 0), chosen.responses, strict=True):
        fibres = lit(response)
        flat = {30 * i + j: photons for i, j, photons in fibres}
        row = events.photons[[k]]
        assert dict(zip(row.indices.tolist(), row.data.tolist(), strict=True)) == flat
    assert chosen.photon_sum.tolist() == [sum(p for *_, p in lit(r)) for r in chosen.responses]
    assert chosen.lit_fibres.tolist() == [len(lit(r)) for r in chosen.responses]


def test_events_of_two_detectors_are_not_mixed(events: Events) -> None:
    assert Events.join([events[:3], events[3:]]).detector == ZP
    with pytest.raises(ValueError, match=r"expected \(N, 44, 44\) uint16, got \(8, 56, 30\)"):
        Events.from_arrays(events.pdg, events.features, events.responses)
    zn = Events.from_arrays(
        events.pdg, events.features, np.zeros((8, 44, 44), np.uint16), detector=ZN
    )
    with pytest.raises(ValueError, match="expected events of the ZP alone, got some of the ZN"):
        Events.join([events, zn])


def test_impact_point_is_that_of_the_detector(events: Events) -> None:
    # particle k flies k cm to the right, and to where the face's centre is
    expected = np.column_stack([0.01 * events.particle, np.zeros(8)])
    np.testing.assert_allclose(impact_point(events.features, ZP), expected, atol=1e-12)


def brute_observables(response: NDArray[np.uint16]) -> tuple[list[int], list[float], float]:
    fibres = lit(response)
    sums = [0] * 6
    for i, j, photons in fibres:
        sums[channel(i, j)] += photons
    total = sum(sums)
    centre = [sum(f[axis] * f[2] for f in fibres) / total for axis in (0, 1)]
    distances = sorted(
        math.dist((i, j), centre) for i, j, photons in fibres for _ in range(photons)
    )
    return sums, centre, distances[-(-9 * total // 10) - 1]


def test_observables_equal_loops(events: Events) -> None:
    sums, centre, radius = zip(*map(brute_observables, events.responses), strict=True)
    np.testing.assert_array_equal(channel_sums(events.responses, ZP), sums)
    np.testing.assert_allclose(shower_centre(events.responses, ZP), centre, rtol=1e-12)
    np.testing.assert_allclose(containment_radius(events.responses, ZP), radius, rtol=1e-12)
    dark = np.zeros((1, 56, 30), np.uint16)
    assert shower_centre(dark, ZP).tolist() == [[27.5, 14.5]]
    expected = []
    for label in (1, 2, 3, 4):
        mine = events.responses[events.particle == label].astype(float)
        fibres = product(range(ROWS), range(COLUMNS))
        expected.append(sum(float(np.std(mine[:, i, j])) for i, j in fibres))
    np.testing.assert_allclose(diversity(events.photons, events.particle), expected, rtol=1e-12)
    for measure in (channel_sums, shower_centre, containment_radius):
        with pytest.raises(ValueError, match=r"expected \(\.\.\., 44, 44\), got \(8, 56, 30\)"):
            measure(events.responses, ZN)


def test_responses_are_encoded_and_decoded(events: Events) -> None:
    counts = torch.from_numpy(events.responses.astype(np.int64))
    x, total = encode_responses(counts, PARAMS, ZP, torch.Generator().manual_seed(1))
    noise = torch.rand(8, 1680, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noised = counts.reshape(8, 1680).numpy() + NOISE * noise.numpy()
    share = noised / noised.sum(1, keepdims=True)
    expected = logit(ALPHA + (1 - 2 * ALPHA) * share)
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-6)
    floor = PARAMS.model_copy(update={"denoise": "floor"})
    exact = torch.from_numpy(noised)
    photon_sum = torch.from_numpy(events.photon_sum.astype(np.float64))[:, None]
    np.testing.assert_array_equal(
        counts_from_noised(exact, floor, photon_sum, ZP), events.responses
    )
    # decoding takes the noised sum to be the photons and half the noise of each of 1680 fibres
    mean = events.photon_sum[:, None] + 1680 * NOISE / 2
    share = (expit(x.numpy().astype(np.float64)) - ALPHA) / (1 - 2 * ALPHA)
    by_hand = np.floor(share / np.abs(share).sum(1, keepdims=True) * mean).clip(0)
    decoded = decode_responses(x, floor, events.photon_sum, ZP)
    assert decoded.shape == (8, 56, 30)
    assert np.abs(decoded.reshape(8, -1) - by_hand).max() <= 1
    assert (decoded.reshape(8, -1) != by_hand).mean() < 1e-3
    assert noised_from_flow(x, floor, total).shape == (8, 1680)


def test_impact_conditions_cover_a_face_that_is_not_square() -> None:
    grid = PARAMS.impact_grid
    for row, column in ((0, 0), (grid - 1, 2), (3, grid - 1)):
        one = make_events(np.array([0]), seed=1)
        x = -0.06 + 0.12 * column / (grid - 1)
        y = -0.112 + 0.224 * row / (grid - 1)
        one.features[0, 4], one.features[0, 5] = (1000 * v / 113.0 for v in (x, y - 0.2))
        found = raw_conditions(one, PARAMS)[0, -(grid**2) :].reshape(grid, grid)
        assert divmod(int(found.argmax()), grid) == (row, column)
        assert found.max() == pytest.approx(1)


def test_metrics_equal_loops(events: Events) -> None:
    generated = make_events(events.particle, seed=5).responses
    before, after = (
        [brute_observables(response) for response in responses]
        for responses in (events.responses, generated)
    )
    distances = [
        wasserstein_distance([b[0][c] for b in before], [a[0][c] for a in after]) for c in range(6)
    ]
    found = evaluate(events, generated)
    assert found["WS"] == pytest.approx(sum(distances) / 6)
    errors, radii = [], []
    for label in (1, 2, 3, 4):
        mine = [k for k in range(8) if events.particle[k] == label]
        errors += [
            abs(sum(before[k][0][c] - after[k][0][c] for k in mine)) / len(mine) for c in range(6)
        ]
        radii.append(abs(sum(before[k][2] - after[k][2] for k in mine)))
    assert found["MAE_c"] == pytest.approx(sum(errors) / 24)
    assert found["radius MAE"] == pytest.approx(sum(radii) / 8)


def test_channel_fractions_equal_loops() -> None:
    x = torch.from_numpy(np.random.default_rng(2).normal(-6, 2, (3, 1680)))
    shares = channel_fractions(x, PARAMS, ZP).numpy()
    for sample, found in zip(expit(x.numpy()), shares, strict=True):
        sums = [0.0] * 6
        for place, share in enumerate(sample):
            sums[channel(*divmod(place, 30))] += share
        np.testing.assert_allclose(found, np.array(sums) / sum(sums), rtol=1e-9)


def test_files_are_read_for_their_detector(tmp_path: Path, events: Events) -> None:
    numbered = Events.join([events])
    write_root([events], tmp_path / "zp.root")
    assert_equal(read_events(tmp_path / "zp.root", detector=ZP), numbered)
    table = np.column_stack([events.features, events.pdg])
    pair = write_pair(tmp_path, table, events.responses)
    assert_equal(read_events(pair, detector=ZP), numbered)
    with pytest.raises(ValueError, match=r"expected \(N, 44, 44\) counts, got \(8, 56, 30\)"):
        read_events(pair)
    lines = [HEADER]
    for features, photons in zip(events.features, events.photon_sum, strict=True):
        momenta = ",".join(repr(float(value)) for value in features[:7])
        lines += [f"N,2212,{momenta},0", f"P,2212,{momenta},{photons}"]
    texts = tmp_path / "non_zero_examples.txt", tmp_path / "neutron_image.txt"
    texts[0].write_text("\n".join(lines))
    np.savetxt(texts[1], events.responses.reshape(-1, 30), fmt="%d")
    read = read_events(texts, detector=ZP)
    np.testing.assert_array_equal(read.responses, events.responses)
    assert read.detector == ZP
