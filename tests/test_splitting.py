"""The tree of boxes, split coordinates, and the splitting flow, against loops and enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions.transforms.spline import _monotonic_rational_spline
from scipy import stats

from tests.event_sets import small_detector
from zdc_nb.detector import ZN, channel_sums, split_tree
from zdc_nb.flows.initialise import start_from_centres
from zdc_nb.flows.splitting import SplittingFlow
from zdc_nb.generator import channel_fractions, decode_responses, encode_responses, split_cells
from zdc_nb.params import PreprocessingParams, SplittingFlowParams

SPLITS = PreprocessingParams(
    coordinates="splits", noise=None, alpha=None, conditions="paper", impact_grid=8, denoise=None
)
SHAPES = [(44, 44), (56, 30), (5, 7), (1, 6), (2, 1)]


def recursive_boxes(top, bottom, left, right):
    """The box and all boxes in it, depth first, by the rule in words."""
    height, width = bottom - top, right - left
    yield (top, bottom, left, right)
    if height * width == 1:
        return
    if height >= width:
        middle = top + math.ceil(height / 2)
        halves = (top, middle, left, right), (middle, bottom, left, right)
    else:
        middle = left + math.ceil(width / 2)
        halves = (top, bottom, left, middle), (top, bottom, middle, right)
    for half in halves:
        yield from recursive_boxes(*half)


# --- The tree -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_those_of_the_rule(shape):
    tree = split_tree(shape)
    assert sorted(map(tuple, tree.boxes.tolist())) == sorted(
        recursive_boxes(0, shape[0], 0, shape[1])
    )
    assert len(tree.nodes) == shape[0] * shape[1] - 1
    assert (np.diff(tree.depth) >= 0).all()
    assert sum(level.stop - level.start for level in tree.levels) == len(tree.nodes)


def test_levels_of_the_zn():
    sizes = [level.stop - level.start for level in split_tree((44, 44)).levels]
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 624, 288]


def test_the_first_two_cuts_give_the_quadrants():
    tree = split_tree(ZN.shape)
    quadrants = [tuple(tree.boxes[box]) for box in np.flatnonzero(tree.depth == 2)]
    assert quadrants == [(0, 22, 0, 22), (0, 22, 22, 44), (22, 44, 0, 22), (22, 44, 22, 44)]


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_are_sums_over_boxes(shape):
    tree = split_tree(shape)
    photons = np.random.default_rng(1).poisson(0.4, (3, *shape))
    counts = tree.counts(photons.reshape(3, -1))
    for box, (top, bottom, left, right) in enumerate(tree.boxes):
        assert (counts[:, box] == photons[:, top:bottom, left:right].sum(axis=(1, 2))).all()
    assert (photons.reshape(3, -1) @ tree.members.toarray() == counts).all()
    assert (counts[:, tree.fibre] == photons.reshape(3, -1)).all()


def test_windows_are_boxes_of_the_level_around_a_node():
    tree = split_tree((12, 10))
    window = tree.window(3)
    for node, box in enumerate(tree.nodes):
        top, bottom, left, right = tree.boxes[box]
        for place, (i, j) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
            row = (top + bottom) / 2 + i * (bottom - top)
            column = (left + right) / 2 + j * (right - left)
            found = window[node, place]
            if i == j == 0:
                assert found == box
            elif not (0 <= row < 12 and 0 <= column < 10):
                assert found == -1
            else:
                a, b, c, d = tree.boxes[found]
                assert a <= math.floor(row) < b
                assert c <= math.floor(column) < d
                # of this depth, or a fibre that was reached before
                single = (b - a) * (d - c) == 1
                assert tree.depth[found] == tree.depth[box] or (
                    single and tree.depth[found] < tree.depth[box]
                )


def test_nothing_to_cut():
    with pytest.raises(ValueError, match="at least two fibres"):
        split_tree((1, 1))


# --- Coordinates --------------------------------------------------------------------------------


@pytest.mark.parametrize("detector", [ZN, small_detector()], ids=["ZN", "56 x 30"])
def test_there_and_back_is_exact(detector):
    rng = np.random.default_rng(2)
    responses = rng.poisson(rng.gamma(0.05, 20, (60, *detector.shape)))
    responses[0] = 0
    responses[1], responses[1, 3, 4] = 0, 65535
    responses[2] = 33
    x, total = encode_responses(
        torch.from_numpy(responses), SPLITS, detector, torch.Generator().manual_seed(1)
    )
    assert x.dtype == torch.float32
    assert x.shape == (60, detector.dim - 1)
    assert torch.isfinite(x).all()
    assert (total[:, 0].numpy() == responses.sum(axis=(1, 2))).all()
    assert (decode_responses(x, SPLITS, total.numpy(), detector) == responses).all()


def test_there_and_back_with_the_least_and_the_largest_noise():
    class Fixed:
        """Stands for torch.rand: the ends of its range."""

    responses = torch.zeros(2, 44, 44, dtype=torch.int64)
    responses[:, 10, 10], responses[:, 10, 11], responses[:, 40, 3] = 40000, 25000, 535
    generator = torch.Generator().manual_seed(1)
    real = torch.rand
    for value in (0.0, 1 - 2.0**-53):
        torch.rand = lambda *shape, value=value, **_: torch.full(
            shape[0], value, dtype=torch.float64
        )
        try:
            x, total = encode_responses(responses, SPLITS, ZN, generator)
        finally:
            torch.rand = real
        assert (decode_responses(x, SPLITS, total.numpy(), ZN) == responses.numpy()).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 65535))
def test_whatever_is_drawn_adds_up(seed, photon_sum):
    x = 8 * torch.randn(2, ZN.dim - 1, generator=torch.Generator().manual_seed(seed))
    counts = decode_responses(x, SPLITS, np.array([photon_sum] * 2), ZN)
    assert (counts.sum(axis=(1, 2), dtype=np.int64) == photon_sum).all()


def test_t_is_uniform_in_its_cell():
    responses = torch.zeros(4000, 44, 44)
    responses[:, 0, 0], responses[:, 43, 43] = 3, 2
    x, _ = encode_responses(responses, SPLITS, ZN, torch.Generator().manual_seed(3))
    # of 5 photons 3 are in the upper half
    t = torch.sigmoid(x[:, 0].to(torch.float64)).numpy()
    assert stats.kstest(t, stats.uniform(3 / 6, 1 / 6).cdf).pvalue > 1e-3
    cells = split_cells(responses.flatten(1).numpy(), ZN)
    assert np.allclose(np.exp(cells[:, 0]), 1 / 6)


def test_channel_shares_are_products_along_the_paths():
    responses = np.random.default_rng(4).poisson(2.0, (3, 44, 44))
    tree = split_tree(ZN.shape)
    counts = tree.counts(responses.reshape(3, -1))
    n, half = counts[:, tree.nodes], counts[:, tree.first]
    with np.errstate(divide="ignore", invalid="ignore"):
        # the exact share instead of a dequantised one; anything where there is no light
        t = np.clip(np.where(n > 0, half / n, 0.5), 1e-12, 1 - 1e-12)
    x = torch.from_numpy(np.log(t) - np.log1p(-t)).requires_grad_()
    shares = channel_fractions(x, SPLITS, ZN)
    expected = channel_sums(responses, ZN) / responses.sum(axis=(1, 2))[:, None]
    assert np.allclose(shares.detach(), expected, atol=1e-9)
    detector = small_detector()
    y = torch.randn(1, detector.dim - 1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(channel_fractions(y, SPLITS, detector)[0, 1], y)
    step = torch.zeros_like(y)
    for k in (0, 1, 5, 700):
        step.zero_()[0, k] = 1e-5
        with torch.no_grad():
            up, down = (channel_fractions(y + s, SPLITS, detector)[0, 1] for s in (step, -step))
        assert math.isclose(float(gradient[0, k]), float((up - down) / 2e-5), abs_tol=1e-7)


# --- The flow -----------------------------------------------------------------------------------


def make_flow(shape=(6, 5), seed=1, spread=0.3, **changes):
    """A flow of random weights, so that nothing about it is special."""
    params = SplittingFlowParams(
        window=3, bins=4, bound=6.0, hidden=8, hidden_layers=2, context_hidden=[8], coarse_nodes=7
    ).model_copy(update=changes)
    generator = torch.Generator().manual_seed(seed)
    flow = SplittingFlow(shape, 6, params).eval()
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(spread * torch.randn(weight.shape, generator=generator))
    return flow


def contexts(photon_sums, seed=5):
    """Random conditions and slopes for these photon sums."""
    numbers = torch.randn(len(photon_sums), 5, generator=torch.Generator().manual_seed(seed))
    return torch.cat([numbers, torch.tensor(photon_sums, dtype=torch.float32)[:, None]], 1)


def test_probabilities_of_all_responses_sum_to_one():
    flow = make_flow((2, 2))
    responses = [r for r in itertools.product(range(5), repeat=4) if sum(r) == 4]
    photons = torch.tensor(responses)
    context = contexts([4]).expand(len(photons), 6)
    with torch.no_grad():
        total = flow.log_prob(photons, context).to(torch.float64).exp().sum()
    assert math.isclose(float(total), 1, abs_tol=1e-5)


def test_log_prob_against_a_loop_around_pyros_spline():
    flow = make_flow()
    photons = torch.from_numpy(np.random.default_rng(6).poisson(3.0, (2, 30)))
    context = contexts(photons.sum(1).tolist())
    event, nodes, logs = flow.lit_log_prob(photons, context)
    tree, bins = flow.tree, flow.params.bins
    counts = tree.counts(photons.numpy())
    light = torch.log1p(flow.boxes(photons))
    inputs = light, flow.impact(context), flow.particle(flow._told(context))
    for k in range(0, len(nodes), 5):
        i, node = int(event[k]), int(nodes[k])
        n, half = counts[i, tree.nodes[node]], counts[i, tree.first[node]]
        rows = type("Rows", (tuple,), {"event": event[k : k + 1], "node": nodes[k : k + 1]})(
            (event[k : k + 1], nodes[k : k + 1], torch.tensor([float(n)]))
        )
        rows.n = torch.tensor([float(n)])
        raw = flow.curves(rows, *inputs)[:, 0].detach().to(torch.float64)
        box = tree.boxes[[tree.first[node], tree.first[node] + 1]]
        areas = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])

        def cumulative(t, raw=raw, n=n, areas=areas):
            if t <= 0 or t >= 1:
                return float(t >= 1)
            x = math.log(t) - math.log(1 - t) - math.log(areas[0] / areas[1]) - float(raw[-2])
            x *= math.exp(float(raw[-1])) * math.sqrt(n + 4) / 2
            y, _ = _monotonic_rational_spline(
                torch.tensor([x], dtype=torch.float64),
                torch.softmax(raw[None, :bins], -1),
                torch.softmax(raw[None, bins : 2 * bins], -1),
                torch.nn.functional.softplus(raw[None, 2 * bins : 3 * bins - 1]),
                bound=flow.params.bound,
            )
            return 1 / (1 + math.exp(-1.7 * float(y)))

        expected = cumulative((half + 1) / (n + 1)) - cumulative(half / (n + 1))
        assert math.isclose(math.exp(logs[k].item()), expected, rel_tol=1e-3, abs_tol=1e-6)


def test_samples_come_as_often_as_their_probability_says():
    flow = make_flow((2, 2))
    context = contexts([3]).expand(20_000, 6)
    drawn = flow.sample(context, torch.Generator().manual_seed(7))
    responses = torch.tensor([r for r in itertools.product(range(4), repeat=4) if sum(r) == 3])
    found = (drawn[:, None] == responses).all(2).sum(0).numpy()
    expected = flow.log_prob(responses, context[: len(responses)]).exp().detach().double().numpy()
    assert found.sum() == len(drawn)
    often = expected * len(drawn) > 5
    rest = [found[~often].sum()], [expected[~often].sum() * len(drawn) + 1e-9]
    observed = np.append(found[often], rest[0])
    wanted = np.append(expected[often] * len(drawn), rest[1])
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


@pytest.mark.parametrize(("shape", "layers"), [((44, 44), 2), ((7, 12), 2), ((7, 12), 0)])
def test_compiled_and_plain_sampling_agree(shape, layers):
    flow = make_flow(shape, spread=0.1, window=5, hidden_layers=layers)
    context = contexts([0, 1, 17, 300, 4000] * 9)
    uniform = torch.rand(45, shape[0] * shape[1] - 1, generator=torch.Generator().manual_seed(8))
    ours = flow.from_uniform(uniform, context)
    plain = flow.from_uniform(uniform, context, compiled=False)
    assert (ours.sum(1) == context[:, -1]).all()
    # rounding may move a photon where u lies on the edge of a cell
    assert (ours == plain).all(1).to(torch.float32).mean() > 0.95


def test_sampling_inverts_the_distribution_function():
    """u in the cell [F(l / (n+1)), F((l+1) / (n+1))) of a node gives l, one by one."""
    flow = make_flow((2, 1))
    context = contexts([9])
    chance = flow.probabilities(torch.tensor([[4, 5]]), context, 0).to(torch.float64)
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), chance.cumsum(0)])
    for half in range(10):
        if chance[half] > 1e-4:
            middle = ((edges[half] + edges[half + 1]) / 2).to(torch.float32).reshape(1, 1)
            assert flow.from_uniform(middle, context)[0].tolist() == [half, 9 - half]


def test_a_cut_does_not_know_what_is_below_it():
    flow = make_flow((4, 4))
    tree = flow.tree
    rng = np.random.default_rng(9)
    photons = rng.poisson(4.0, 16)
    for depth in range(1, len(tree.levels)):
        # the same photons in each box of this depth, in other fibres
        moved = photons.copy()
        for box in np.unique(tree.owner[depth]):
            inside = np.flatnonzero(tree.owner[depth].ravel() == box)
            moved[inside] = rng.multinomial(
                photons[inside].sum(), np.full(len(inside), 1 / len(inside))
            )
        both = torch.from_numpy(np.stack([photons, moved]))
        event, node, logs = flow.lit_log_prob(both, contexts([photons.sum()]).expand(2, 6))
        above = node < tree.levels[depth].start
        first, second = (logs[above & (event == k)] for k in range(2))
        assert torch.allclose(first, second, atol=1e-6)


def test_photons_that_do_not_add_up_are_impossible():
    flow = make_flow()
    photons = torch.ones(2, 30, dtype=torch.int64)
    assert flow.log_prob(photons, contexts([30, 31])).isinf().tolist() == [False, True]


def test_gradient_against_differences():
    flow = make_flow().to(torch.float64)
    photons = torch.from_numpy(np.random.default_rng(10).poisson(2.0, (3, 30)))
    context = contexts(photons.sum(1).tolist()).to(torch.float64)

    def loss():
        return flow.log_prob(photons, context).sum()

    loss().backward()
    for weight in (flow.aim_offset, flow.aim_scale, flow.last.bias, flow.coarse, flow.see.weight):
        flat, gradient = weight.data.view(-1), weight.grad.view(-1)
        k = int(gradient.abs().argmax())
        flat[k] += 1e-4
        up = loss().item()
        flat[k] -= 2e-4
        down = loss().item()
        flat[k] += 1e-4
        assert math.isclose(float(gradient[k]), (up - down) / 2e-4, rel_tol=2e-3)


def test_an_untrained_flow_is_about_a_binomial():
    params = SplittingFlowParams(
        window=3, bins=8, bound=10.0, hidden=8, hidden_layers=0, context_hidden=[8], coarse_nodes=1
    )
    flow = SplittingFlow((2, 1), 6, params).eval()
    chance = flow.probabilities(torch.tensor([[20, 20]]), contexts([40]), 0).detach().numpy()
    distance = np.abs(chance - stats.binom.pmf(np.arange(41), 40, 0.5)).sum() / 2
    assert distance < 0.06


def test_as_a_distribution_of_pyros():
    flow = make_flow()
    context = contexts([10, 20, 30])
    distribution = flow.distribution(context)
    drawn = distribution.sample((2,))
    assert drawn.shape == (2, 3, 30)
    assert distribution.batch_shape == (3,)
    assert distribution.event_shape == (30,)
    assert (drawn.sum(-1) == context[:, -1]).all()
    assert distribution.log_prob(drawn).shape == (2, 3)
    assert torch.allclose(distribution.log_prob(drawn)[1], flow.log_prob(drawn[1], context))


def test_the_aim_begins_where_showers_stand():
    flow = make_flow((44, 44), spread=0.0)
    generator = torch.Generator().manual_seed(11)
    slopes = torch.randn(500, 2, generator=generator)
    context = torch.cat([torch.zeros(500, 3), slopes, torch.ones(500, 1)], 1)
    # fibres down and to the right of the centre: 20 - 7 and 25 + 9 a unit of slope
    centres = torch.stack([20 - 7 * slopes[:, 0], 25 + 9 * slopes[:, 1]], 1)
    noise = torch.randn(500, 2, generator=generator)
    context[0, 3] = 1000.0  # a particle that never arrives is left out
    start_from_centres(flow, centres + noise, context)
    assert torch.allclose(flow.impact(context)[1:], centres[1:] + 0.5, atol=0.6)


def test_an_estimate_from_a_share_of_the_nodes_is_unbiased():
    flow = make_flow((8, 6), spread=0.2, coarse_nodes=7)
    context = contexts([3, 40, 500])
    photons = flow.sample(context, torch.Generator().manual_seed(1))
    exact = flow.log_prob(photons, context).double()
    generator = torch.Generator().manual_seed(2)
    assert torch.equal(flow.estimated_log_prob(photons, context, 1.0, generator).double(), exact)
    drawn = torch.stack(
        [flow.estimated_log_prob(photons, context, 0.3, generator).double() for _ in range(600)]
    )
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert (drawn.std(0) > 0).all()
    assert ((drawn.mean(0) - exact).abs() < 4 * error).all()
    # the first nodes are in every estimate
    event, node, logs = flow.lit_log_prob(photons, context)
    coarse = torch.zeros(3).index_add(0, event, torch.where(node < 7, logs, 0.0)).detach()
    none = flow.estimated_log_prob(photons, context, 1e-12, torch.Generator().manual_seed(3))
    assert torch.allclose(none.detach(), coarse, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_is_the_same_flow():
    flow = make_flow((44, 44), spread=0.1, window=5)
    context = contexts([1, 17, 300, 4000] * 5)
    uniform = torch.rand(20, 1935, generator=torch.Generator().manual_seed(8))
    here = flow.from_uniform(uniform, context)
    nats = flow.log_prob(here, context)
    flow = flow.to("cuda")
    there = flow.from_uniform(uniform.cuda(), context.cuda())
    assert (there.cpu() == here).all(1).to(torch.float32).mean() > 0.9
    assert torch.allclose(flow.log_prob(here.cuda(), context.cuda()).cpu(), nats, rtol=1e-3)
