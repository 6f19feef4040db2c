"""The photon sum's distribution and what is known of a particle, against scipy and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tests.event_sets import small_detector
from zdc_nb.data.events import FEATURES, from_vertex, impact_point
from zdc_nb.data.simulation import draw_particles
from zdc_nb.detector import ZN
from zdc_nb.flows.particle_nets import LARGEST_SUM, PhotonSum, PhotonSumNetwork, SignalNetwork
from zdc_nb.generator.encoding import PLACE_GRID, ConditionScaler

LEAST = 10


def mixture(rows=3, components=4, seed=1):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(1.0, 7.0, (rows, components))
    scales = rng.uniform(0.02, 0.6, (rows, components))
    logits = rng.normal(size=(rows, components))
    w, m, s = (torch.from_numpy(part) for part in (logits, centres, scales))
    return PhotonSum(w, m, s, LEAST)


def truth(found, row):
    """P(N) for N = 10 ... 65536 from scipy's log-logistic distribution."""
    edges = np.arange(LEAST, 2**16 + 1)
    weights = found.log_weights[row].exp().numpy()
    parts = [
        w * stats.fisk(c=1 / s, scale=math.exp(m)).cdf(edges)
        for w, m, s in zip(
            weights, found.centres[row].numpy(), found.scales[row].numpy(), strict=True
        )
    ]
    below = np.sum(parts, axis=0)
    return np.diff(below) / (1 - below[0])


def test_the_likelihood_is_that_of_truncated_log_logistic_numbers():
    found = mixture()
    counts = torch.arange(LEAST, 2**16)
    ours = found.log_prob(counts[:, None].expand(-1, 3)).exp().numpy()
    for row in range(3):
        np.testing.assert_allclose(ours[:, row], truth(found, row), rtol=1e-6, atol=1e-14)
    assert torch.isneginf(found.log_prob(torch.tensor([9, 9, 0]))).all()


def test_cdf_and_quantiles_are_sums_of_the_likelihood():
    found = mixture()
    for row in range(3):
        running = truth(found, row).cumsum()
        counts = torch.tensor([10, 11, 57, 300, 4000])
        cdf = found.cdf(counts[:, None].expand(-1, 3))[:, row].numpy()
        np.testing.assert_allclose(cdf, running[counts.numpy() - LEAST], rtol=1e-7)
        for level in (0.01, 0.3, 0.5, 0.97):
            expected = LEAST + int(np.searchsorted(running, level))
            assert found.quantile(torch.full((3,), level))[row] == expected
    assert (found.cdf(torch.tensor([9, 5, 0])) == 0).all()


def test_draws_are_distributed_as_the_likelihood_says():
    found = mixture(seed=2)
    torch.manual_seed(3)
    drawn = found.sample((40_000,)).numpy()
    for row in range(3):
        p = truth(found, row)
        # bins of about one in twenty
        edges = np.searchsorted(p.cumsum(), np.arange(1, 20) / 20)
        which = np.searchsorted(np.unique(edges), drawn[:, row] - LEAST)
        expected = np.bincount(np.searchsorted(np.unique(edges), np.arange(len(p))), weights=p)
        counts = np.bincount(which, minlength=len(expected))
        keep = expected > 0
        test = stats.chisquare(
            counts[keep], expected[keep] / expected[keep].sum() * counts[keep].sum()
        )
        assert test.pvalue > 1e-4


def test_a_component_below_the_least_sum_gives_no_less():
    far = PhotonSum(
        torch.zeros(1, 1),
        torch.full((1, 1), -3.0, dtype=torch.float64),
        torch.full((1, 1), 0.01, dtype=torch.float64),
        LEAST,
    )
    ends = torch.tensor([1e-9, 0.5, 1 - 1e-9], dtype=torch.float64)[:, None]
    drawn = far.from_uniform(ends, ends)
    assert drawn.min() == LEAST
    assert torch.isfinite(far.log_prob(torch.tensor([[LEAST]]))).all()
    assert far.from_uniform(torch.ones(1, 1), torch.ones(1, 1)).max() <= LARGEST_SUM


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(1)
    network = PhotonSumNetwork(3, [4], 3, LEAST).double()
    network.start_from(torch.tensor([12.0, 60.0, 200.0, 900.0]))
    context = torch.randn(5, 3, dtype=torch.float64)
    counts = torch.tensor([10, 25, 90, 400, 3000])
    weights = [p.detach().clone().requires_grad_() for p in network.parameters()]
    names = [name for name, _ in network.named_parameters()]

    def loss(*values):
        raw = torch.func.functional_call(
            network.layers,
            {n.removeprefix("layers."): v for n, v in zip(names, values, strict=True)},
            (context,),
        )
        logits, centres, scales = raw.chunk(3, dim=1)
        spread = 0.005 + torch.nn.functional.softplus(scales)
        return PhotonSum(logits, centres, spread, LEAST).log_prob(counts)

    torch.autograd.gradcheck(loss, weights)


def test_what_is_known_of_a_particle_is_finite_wherever_it_flies():
    particles = draw_particles(np.random.default_rng(1), np.linspace(0, 0.999, 500))
    scaler = ConditionScaler.fit_particle(particles.features, ZN)
    odd = particles.features[:4].copy()
    odd[0, FEATURES.index("pz")] = 0
    odd[1, FEATURES.index("px")] = 1e4
    odd[2, 1:4] = 1.0
    context = scaler.particle(odd, ZN)
    assert torch.isfinite(context).all()
    assert context.abs().max() < 1e5
    assert context.shape == (4, 10 + PLACE_GRID**2 + 4)
    assert torch.isfinite(SignalNetwork(context.shape[1], [8])(context)).all()


@pytest.mark.parametrize("detector", [ZN, small_detector()])
def test_a_moved_vertex_changes_nothing_but_the_momentum(detector):
    particles = draw_particles(np.random.default_rng(2), np.linspace(0, 0.999, 50)).features
    shifted = particles.copy()
    # 100 micrometres, O2's vertex diamond
    shifted[:, 1:4] += np.array([1e-4, -1e-4, 0.1])
    vertex = particles[:, 1:4].mean(0)
    moved = from_vertex(shifted, vertex, detector)
    assert (moved[:, 1:4] == vertex).all()
    np.testing.assert_allclose(
        impact_point(moved, detector), impact_point(shifted, detector), rtol=1e-9, atol=1e-12
    )
    scaler = ConditionScaler.fit_particle(particles, detector)
    before, after = scaler.particle(shifted, detector), scaler.particle(moved, detector)
    # but for px and py themselves
    rest = [k for k in range(before.shape[1]) if k not in (2, 3)]
    torch.testing.assert_close(before[:, rest], after[:, rest], rtol=1e-4, atol=1e-4)
