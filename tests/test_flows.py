"""Teacher and student against stock Pyro, integrals, gradients and each other."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import ConditionalSplineAutoregressive as StockPyro
from pyro.distributions.transforms import Permute
from pyro.nn import ConditionalAutoRegressiveNN
from scipy.integrate import simpson
from scipy.stats import chi2, kstest

from zdc_nb.flows import (
    Student,
    Teacher,
    block_orders,
    marginal_parameters,
    start_from_marginals,
    start_from_teacher,
)
from zdc_nb.made import Made, MaskedLinear, hidden_degrees
from zdc_nb.params import load_study
from zdc_nb.splines import rational_quadratic_spline

PARAMS = load_study(Path(__file__).parents[1] / "params" / "smoke.yaml").flow
CONTEXT = 3


def flow(kind, dim=12, seed=0, **changes):
    """A flow with weights large enough that nothing is near the identity."""
    torch.manual_seed(seed)
    settings = {"hidden": 20, "context_hidden": [8], **changes}
    made = kind(dim, CONTEXT, PARAMS.model_copy(update=settings), seed=1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.15)
    for module in made.modules():
        if isinstance(module, MaskedLinear):
            module.apply_mask()
    return made.eval()


def points(n, dim, seed=5):
    torch.manual_seed(seed)
    return torch.randn(n, dim) * 5, torch.randn(n, CONTEXT)


@pytest.mark.parametrize("hidden", [5, 12, 40])
@pytest.mark.parametrize("kind", [Teacher, Student])
def test_an_output_depends_on_earlier_dimensions_only(kind, hidden):
    network = flow(kind, hidden=hidden).networks[0]
    x, context = (t.abs() for t in points(1, 12))
    for parameter in network.parameters():
        parameter.data.abs_()  # so that no unit is off, which would hide what it is connected to
    jacobian = torch.autograd.functional.jacobian(
        lambda v: network.spline_parameters(v, context)[0], x
    )[:, :, 0]
    depends = jacobian.abs().amax(0) > 0  # (output dimension, input dimension)
    assert not depends.triu().any()
    # and on all of them, up to the resolution that the width leaves
    degrees = hidden_degrees(12, hidden)
    for d in range(12):
        assert depends[d, : degrees[degrees <= d].max()].all()


def test_every_output_depends_on_the_condition():
    network = flow(Teacher, context_hidden=[]).networks[0]
    x, context = (t.abs() for t in points(1, 12))
    for parameter in network.parameters():
        parameter.data.abs_()
    jacobian = torch.autograd.functional.jacobian(
        lambda c: network.spline_parameters(x, c)[0], context
    )
    assert (jacobian.abs().amax((0, 2, 3)) > 0).all()


def stock_pyro(teacher: Teacher) -> Any:
    """The teacher's weights in stock Pyro: its classes, its masks, its splines."""
    transforms: list[Any] = []
    for i, network in enumerate(teacher.networks):
        bins, hidden = network.bins, network.layer("first").out_features
        stock = ConditionalAutoRegressiveNN(
            network.dim,
            network.context,
            [hidden] * len(network.hidden_names),
            param_dims=[bins, bins, bins - 1],
            permutation=torch.arange(network.dim),  # type: ignore[arg-type]
        )
        for layer, name in zip(stock.layers, (*network.hidden_names, "last"), strict=True):
            layer.load_state_dict(
                {**network.layer(name).state_dict(), "mask": layer.mask}, strict=True
            )
        if i > 0:
            transforms.append(Permute(teacher.get_buffer(f"order_{i - 1}")))
        transforms.append(
            StockPyro(network.dim, stock, count_bins=bins, bound=PARAMS.bound, order="quadratic")
        )
    base = dist.Normal(torch.zeros(teacher.dim), torch.ones(teacher.dim)).to_event(1)
    # our transforms run from data to latent space, a Pyro distribution's the other way
    return dist.ConditionalTransformedDistribution(base, [t.inv for t in reversed(transforms)])


@torch.no_grad()
def test_forbidden_weights_stay_zero_when_loaded_or_trained():
    layer = flow(Teacher).networks[0].layer("last")
    assert not layer.weight[~layer.mask].any()
    full = {name: torch.ones_like(value) for name, value in layer.state_dict().items()}
    layer.load_state_dict(full)
    torch.testing.assert_close(layer.weight, layer.mask.to(layer.weight))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        with torch.enable_grad():
            loss = layer(torch.randn(8, layer.in_features)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not layer.weight[~layer.mask].any()
    assert (layer.weight[layer.mask] != 1).all()


def test_gradients_of_a_masked_layer_are_those_of_masked_weights():
    layer = flow(Teacher).networks[0].layer("block_0").double()
    x = torch.randn(5, layer.in_features, dtype=torch.float64, requires_grad=True)
    leaves = [x, layer.weight, layer.bias]
    ours = torch.autograd.grad(layer(x).square().sum(), leaves)
    plain = torch.nn.functional.linear(x, layer.weight * layer.mask, layer.bias)
    for got, expected in zip(ours, torch.autograd.grad(plain.square().sum(), leaves), strict=True):
        torch.testing.assert_close(got, expected)


def test_several_inputs_share_a_condition():
    student = flow(Student)
    x, context = points(6, 12)
    together = student.passage(x, context[:2])
    apart = student.passage(x, context[:2].repeat(3, 1))
    torch.testing.assert_close(together.data, apart.data)
    torch.testing.assert_close(together.log_derivative, apart.log_derivative)


@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_log_density_is_stock_pyros(engine):
    teacher = flow(Teacher, transforms=3, context_hidden=[], engine=engine, blocks=2)
    x, context = points(50, 12)
    expected = stock_pyro(teacher).condition(context).log_prob(x)
    torch.testing.assert_close(teacher.log_prob(x, context), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        teacher.distribution(context).log_prob(x), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("hidden", [4, 12])
def test_our_network_serves_stock_pyros_transform(hidden):
    # widths below D, which Pyro's own network refuses, and the context network
    network = flow(Teacher, hidden=hidden).networks[0]
    x, context = points(20, 12)
    stock = StockPyro(12, network, count_bins=8, bound=PARAMS.bound, order="quadratic")
    transform = stock.condition(context)
    y = transform(x)
    parameters = network.spline_parameters(x, context)
    ours, logs = rational_quadratic_spline(x, parameters, PARAMS.bound)
    torch.testing.assert_close(ours, y, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        logs.sum(-1), transform.log_abs_det_jacobian(x, y), rtol=1e-5, atol=1e-4
    )


def test_density_integrates_to_one_in_two_dimensions():
    teacher = flow(Teacher, dim=2, hidden=6).double()
    context = torch.randn(1, CONTEXT, dtype=torch.float64)
    # a fine grid, for a spline's second derivative jumps at every knot
    side = torch.linspace(-15, 15, 1501, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        density = torch.cat(
            [teacher.log_prob(part, context.expand(len(part), -1)) for part in grid.split(50_000)]
        ).exp()
    surface = density.view(len(side), len(side)).numpy()
    assert simpson(simpson(surface, x=side), x=side) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("hidden", [3, 12, 40])
def test_the_exact_inversion_equals_pyros_slow_loop(hidden):
    teacher = flow(Teacher, hidden=hidden, transforms=1)
    z, context = points(6, 12)
    network = teacher.networks[0]
    slow = StockPyro(12, network, count_bins=8, bound=PARAMS.bound, order="quadratic")
    with torch.no_grad():
        expected = slow.condition(context)._inverse(z)
    got = teacher.blocks[0].condition(context)._inverse(z)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Teacher, Student])
@pytest.mark.parametrize("hidden", [7, 60])
def test_both_directions_undo_each_other(kind, hidden):
    model = flow(kind, dim=40, hidden=hidden, transforms=3).double()
    x, context = (t.double() for t in points(9, 40))
    transforms = model.distribution(context).transforms
    y = x
    with torch.no_grad():
        for transform in transforms:
            y = transform(y)
        for transform in reversed(transforms):
            y = transform.inv(y.clone())  # a copy, so that no cache answers
    torch.testing.assert_close(y, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Teacher, Student])
def test_samples_follow_the_density(kind):
    # counts of samples in a grid of bins against the density integrated over each
    model = flow(kind, dim=2, hidden=6).double()
    context = torch.zeros(1, CONTEXT, dtype=torch.float64)
    n, fine, bins = 20_000, 480, 12
    x = model.sample(context.expand(n, -1), torch.Generator().manual_seed(1))
    side = (torch.arange(fine, dtype=torch.float64) + 0.5) / fine * 12 - 6
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        log_prob = model.distribution(context.expand(len(grid), -1)).log_prob(grid)
    mass = (log_prob.exp() * (12 / fine) ** 2).view(bins, fine // bins, bins, -1).sum((1, 3))
    counts, _, _ = np.histogram2d(  # type: ignore[call-overload]
        *x.double().T.numpy(), bins=bins, range=np.array([[-6.0, 6.0]] * 2)
    )
    expected = n * mass.numpy()
    full = expected > 10
    assert expected[full].sum() > 0.9 * n
    statistic = ((counts - expected)[full] ** 2 / expected[full]).sum()
    assert chi2.sf(statistic, full.sum()) > 1e-4


def test_sampling_is_seeded():
    for kind in (Teacher, Student):
        model, context = flow(kind), torch.randn(5, CONTEXT)
        first, again, other = (
            model.sample(context, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_student_inverts_teacher_when_both_have_the_same_constant_parameters():
    teacher, student = flow(Teacher, transforms=3), flow(Student, transforms=3, seed=8)
    start_from_teacher(student, teacher, everything=False)
    with torch.no_grad():
        for mine, theirs in zip(student.networks, teacher.networks, strict=True):
            for network in (mine, theirs):
                for parameter in network.parameters():
                    parameter.zero_()
            bias = 0.5 * torch.randn(theirs.dim * theirs.outputs_per_dim)
            theirs.layer("last").bias.copy_(bias)
            mine.layer("last").bias.copy_(bias)
    x, context = points(100, 12)
    x = x.clamp(-13.9, 13.9)
    there = teacher.passage(x, context)
    back = student.passage(there.latent, context)
    torch.testing.assert_close(back.data, x, rtol=0, atol=1e-4)
    for ours, theirs in zip(back.ends, there.ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    for ours, theirs in zip(back.parameters, there.parameters, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(back.log_derivative, -there.log_derivative, rtol=1e-4, atol=1e-3)


def test_students_exact_likelihood_is_that_of_its_samples():
    student = flow(Student, dim=9).double()
    z, context = (t.double() for t in points(20, 9))
    passage = student.passage(z, context)
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum(-1) - passage.log_derivative
    got = student.distribution(context).log_prob(passage.data.detach().clone())
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-6)


def test_orders_are_permutations_reversed_and_random_in_turn():
    orders = block_orders(50, 5, seed=3)
    assert len(orders) == 4
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(50))
    for reverse in orders[::2]:
        assert torch.equal(reverse, torch.arange(49, -1, -1))
    assert not torch.equal(orders[1], orders[3])
    assert torch.equal(block_orders(50, 5, seed=3)[1], orders[1])


def test_marginal_parameters_make_each_dimension_normal():
    rng = np.random.default_rng(2)
    skewed = -8 + np.log(rng.uniform(size=20_000))
    two = np.where(rng.random(20_000) < 0.3, rng.normal(2, 0.5, 20_000), rng.normal(-9, 1, 20_000))
    x = torch.from_numpy(np.column_stack([skewed, two]).clip(-13.8, 13.8)).float()
    parameters = marginal_parameters(x[::2], 8, 14.0)
    z, _ = rational_quadratic_spline(x, parameters.expand(len(x), -1, -1).contiguous(), 14.0)
    for d in range(2):
        # eight bins cannot follow two peaks to the last, but start far nearer than the data
        assert kstest(z[1::2, d].numpy(), "norm").statistic < 0.15
        assert kstest(x[1::2, d].numpy(), "norm").statistic > 0.5


def test_starting_from_marginals_begins_near_independent_fibres():
    torch.manual_seed(6)
    x = torch.randn(500, 12) * 1.5 - 8
    teacher = Teacher(12, CONTEXT, PARAMS, seed=1).eval()
    context = torch.zeros(500, CONTEXT)
    before = teacher.log_prob(x, context).mean().item()
    start_from_marginals(teacher, x, PARAMS.bound)
    after = teacher.log_prob(x, context).mean().item()
    entropy = 12 * (0.5 * math.log(2 * math.pi * math.e) + math.log(1.5))
    assert after == pytest.approx(-entropy, abs=1.0)
    assert before < after - 20


def test_dropout_is_refused_in_a_sequential_inversion():
    network = Made(6, CONTEXT, 8, 10, 1, dropout=0.5).train()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        network.solve(torch.zeros(2, CONTEXT), lambda _, p: p[:, 0])
