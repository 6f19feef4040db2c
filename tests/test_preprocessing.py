"""Photon counts to flow space and back, and the conditions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit
from scipy.stats import kstest

from zdc_nb.data.events import Events
from zdc_nb.detector import ZN
from zdc_nb.generator.encoding import (
    ConditionScaler,
    counts_from_noised,
    decode_responses,
    encode_responses,
    noised_from_flow,
    raw_conditions,
)
from zdc_nb.params import load_study

PARAMS = load_study(Path(__file__).parents[1] / "params" / "smoke.yaml").preprocessing
assert PARAMS.noise is not None
assert PARAMS.alpha is not None
NOISE = PARAMS.noise
FLOOR = PARAMS.model_copy(update={"denoise": "floor"})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def responses(n, seed=0, brightest=600):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.05, (n, 44, 44))
    counts[np.arange(n), rng.integers(44, size=n), rng.integers(44, size=n)] += rng.integers(
        1, brightest, n
    )
    return counts.astype(np.uint16)


def events(px, py, pz=1000.0, photons=5):
    """Events of one particle each, with ``photons`` in the first fibre."""
    px, py = np.atleast_1d(np.asarray(px, float)), np.atleast_1d(np.asarray(py, float))
    n = len(px)
    features = np.column_stack(
        [np.full(n, 1000.0), *np.zeros((3, n)), px, py, np.full(n, pz), np.zeros(n), np.zeros(n)]
    )
    counts = np.zeros((n, 44, 44), np.uint16)
    counts[:, 0, 0] = photons
    return Events.from_arrays(np.full(n, 22, np.int32), features, counts)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), brightest=st.integers(2, 60_000))
def test_counts_come_back_exactly_when_the_noised_sum_is_known(seed, brightest):
    counts = responses(4, seed, brightest)
    x, total = encode_responses(torch.from_numpy(counts.astype(np.int64)), FLOOR, ZN, seeded(seed))
    # in double precision, as float32 cannot tell 60000.0 from 59999.999
    exact = noised_from_flow(x, FLOOR, total)
    assert ((exact - exact.round()).abs() < 0.51).all()
    error = np.abs(exact.numpy().reshape(counts.shape) - counts - NOISE / 2)
    assert (error <= NOISE / 2 + 1e-5 * counts + 2e-6 * total.numpy()[:, :, None]).all()


def test_floor_undoes_the_noise():
    counts = responses(200)
    noise = NOISE * torch.rand(200, ZN.dim, generator=seeded(), dtype=torch.float64)
    noised = torch.from_numpy(counts.reshape(200, ZN.dim).astype(np.float64)) + noise
    photon_sum = torch.from_numpy(counts.sum((1, 2)).astype(np.float64))[:, None]
    assert np.array_equal(counts_from_noised(noised, FLOOR, photon_sum, ZN), counts)


def test_encoding_is_the_published_formula():
    counts = responses(3)
    x, total = encode_responses(torch.from_numpy(counts.astype(np.int32)), PARAMS, ZN, seeded(4))
    noise = torch.rand(3, ZN.dim, generator=seeded(4), dtype=torch.float64).numpy()
    noised = counts.reshape(3, ZN.dim) + NOISE * noise
    expected = logit(1e-6 + (1 - 2e-6) * noised / noised.sum(1, keepdims=True))
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(total.numpy()[:, 0], noised.sum(1))
    assert x.abs().max() < 14


def test_noise_is_uniform_and_seeded():
    dark = torch.zeros(20, 44, 44)
    x, total = encode_responses(dark, PARAMS, ZN, seeded())
    noise = noised_from_flow(x, PARAMS, total) / NOISE
    assert kstest(noise.numpy().ravel(), "uniform").pvalue > 1e-3
    assert torch.equal(x, encode_responses(dark, PARAMS, ZN, seeded())[0])


@pytest.mark.parametrize(
    "denoise", ["floor", "floor-rescale", "shift-floor", "shift-floor-rescale"]
)
def test_decoding_gives_photon_counts_that_hardly_miss_their_sum(denoise):
    params = PARAMS.model_copy(update={"denoise": denoise})
    counts = responses(300)
    photon_sum = counts.sum((1, 2), dtype=np.int64)
    x, _ = encode_responses(torch.from_numpy(counts.astype(np.int32)), params, ZN, seeded())
    back = decode_responses(x, params, photon_sum, ZN)
    assert back.dtype == np.uint16
    assert back.shape == counts.shape
    total = back.sum((1, 2), dtype=np.int64)
    if denoise.endswith("-rescale"):
        assert (total <= photon_sum).all()
    # the noised sum is known only as its mean, a few in 484: so are the brightest fibres
    assert np.abs(total - photon_sum).mean() < 0.25 * photon_sum.mean()
    assert np.corrcoef(back.max((1, 2)), counts.max((1, 2)))[0, 1] > 0.99


def test_rescaling_gives_every_photon_back_where_it_can():
    params = PARAMS.model_copy(update={"denoise": "floor-rescale"})
    for total in range(1, 60):
        noised = torch.zeros(1, ZN.dim, dtype=torch.float64)
        noised[0, 0] = total + 0.2
        for photon_sum in range(1, 200):
            wanted = torch.tensor([[float(photon_sum)]], dtype=torch.float64)
            assert counts_from_noised(noised, params, wanted, ZN).sum() == photon_sum


def test_decoding_any_sample_gives_counts():
    wild = torch.randn(50, ZN.dim, generator=seeded()) * 30
    back = decode_responses(wild, PARAMS, np.full(50, 3000), ZN)
    assert (back.sum((1, 2), dtype=np.int64) <= 3000).all()


def test_paper_conditions_are_the_nine_features_and_the_photon_sum():
    params = PARAMS.model_copy(update={"conditions": "paper"})
    some = events([0.1, -0.2], [0.3, 0.0], photons=7)
    raw = raw_conditions(some, params)
    np.testing.assert_array_equal(raw[:, :9], some.features)
    np.testing.assert_array_equal(raw[:, 9], [7, 7])
    assert raw.shape == (2, 10)


@pytest.mark.parametrize("side", [1, -1])
def test_impact_conditions_peak_where_the_particle_arrives(side):
    # straight at the knot in row 5 (vertical) and column 2 (horizontal) of the grid
    knots = np.linspace(-ZN.face[0] / 2, ZN.face[0] / 2, PARAMS.impact_grid)
    px, py = (1000 * v / ZN.distance for v in (knots[2], knots[5] + ZN.offset[1]))
    raw = raw_conditions(events(px, py, pz=side * 1000.0), PARAMS)
    grid = raw[0, -(PARAMS.impact_grid**2) :].reshape(PARAMS.impact_grid, PARAMS.impact_grid)
    assert divmod(int(grid.argmax()), PARAMS.impact_grid) == (5, 2)
    assert grid.max() == pytest.approx(1)


def test_scaling_uses_the_training_split_and_survives_constant_columns():
    rng = np.random.default_rng(1)
    train, other = (events(rng.normal(0, 0.1, 400), rng.normal(0, 0.1, 400)) for _ in range(2))
    scaler = ConditionScaler.fit(train, PARAMS)
    scaled = scaler(train, PARAMS)
    varying = scaled.std(0) > 0.5
    torch.testing.assert_close(scaled.mean(0), torch.zeros(scaled.shape[1]), rtol=0, atol=1e-4)
    assert torch.allclose(scaled[:, varying].std(0, correction=0), torch.ones(1), atol=1e-3)
    assert (scaled[:, ~varying].abs() < 1e-3).all()  # energy, vertex, mass ...
    expected = (raw_conditions(other, PARAMS) - scaler.mean) / scaler.std
    np.testing.assert_allclose(scaler(other, PARAMS).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_particle_that_never_arrives_has_finite_conditions():
    raw = raw_conditions(events(0.1, 0.1, pz=0.0), PARAMS)
    assert np.isfinite(raw).all()
