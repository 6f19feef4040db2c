"""The fused spline against Pyro's, nflows', finite differences and the definition."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nflows.transforms.splines.rational_quadratic import (
    rational_quadratic_spline as rational_quadratic_spline_of_nflows,
)
from pyro.distributions.transforms.spline import ConditionedSpline
from torch.nn.functional import softplus

from zdc_nb.flows.splines import IDENTITY_DERIVATIVE, rational_quadratic_spline

BOUND = 14.0
ENGINES = ["fused", "plain"]
# each number of bins is compiled for itself, which takes seconds
BINS = st.sampled_from([2, 5, 8])


def case(n, dim, bins, dtype, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator, dtype=dtype) * 8
    parameters = torch.randn(n, 3 * bins - 1, dim, generator=generator, dtype=dtype) * spread
    return x, parameters


def pyro_spline(inputs, parameters, bound, inverse):
    """Stock Pyro's spline of the same parameters."""
    bins = (parameters.shape[1] + 1) // 3
    widths, heights, derivatives = parameters.transpose(1, 2).split([bins, bins, bins - 1], -1)
    normalised = (widths.softmax(-1), heights.softmax(-1), softplus(derivatives), None)
    spline = ConditionedSpline(normalised, bound=bound, order="quadratic")
    return spline.spline_op(inputs, inverse=inverse)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 5, 8])
def test_values_and_gradients_equal_pyros(bins, inverse, engine):
    # more dimensions than one tile, and not a multiple of it
    x, parameters = case(9, 300, bins, torch.float64)
    weights, _ = case(18, 300, bins, torch.float64, seed=1)
    results = []
    for spline in (pyro_spline, partial(rational_quadratic_spline, engine=engine)):
        leaves = x.clone().requires_grad_(), parameters.clone().requires_grad_()
        y, logs = spline(*leaves, BOUND, inverse=inverse)
        gradients = torch.autograd.grad((weights[:9] * y + weights[9:] * logs).sum(), leaves)
        results.append((y, logs, *gradients))
    for pyros, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, pyros, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("inverse", [False, True])
def test_values_equal_nflows(inverse):
    # nflows also has parameters for the derivatives at the ends: those that give Pyro's 0.999
    x, parameters = case(9, 30, 8, torch.float64)
    x = x.clamp(-BOUND, BOUND)
    ends = torch.full((9, 1, 30), math.log(math.expm1(1 - 2e-3)), dtype=torch.float64)
    widths, heights, inner = parameters.split([8, 8, 7], dim=1)
    expected, logs = rational_quadratic_spline_of_nflows(
        x,
        widths.transpose(1, 2),
        heights.transpose(1, 2),
        torch.cat([ends, inner, ends], 1).transpose(1, 2),
        inverse=inverse,
        left=-BOUND,
        right=BOUND,
        bottom=-BOUND,
        top=BOUND,
    )
    y, ours = rational_quadratic_spline(x, parameters, BOUND, inverse=inverse)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours, logs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_pass_gradcheck(inverse, engine):
    x, parameters = case(3, 4, 4, torch.float64)
    x[0] = torch.tensor([-20.0, 20.0, 13.9, -13.9])  # tails and next to the bounds
    assert torch.autograd.gradcheck(
        lambda a, b: rational_quadratic_spline(a, b, BOUND, inverse=inverse, engine=engine),
        (x.requires_grad_(), parameters.requires_grad_()),
    )


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 5),
    dim=st.integers(1, 150),
    bins=BINS,
    spread=st.floats(0, 6),
    seed=st.integers(0, 2**31),
)
def test_single_precision_agrees_with_double(n, dim, bins, spread, seed):
    x, parameters = case(n, dim, bins, torch.float32, spread, seed)
    y, logs = rational_quadratic_spline(x, parameters, BOUND)
    exact, exact_logs = rational_quadratic_spline(x.double(), parameters.double(), BOUND)
    # an abscissa is known to 1e-6 of the interval, so y to that times the slope
    assert ((y - exact).abs() <= 2e-5 * (1 + exact_logs.exp())).all()
    assert torch.isfinite(logs).all()


@settings(deadline=None, max_examples=40)
@given(bins=BINS, spread=st.floats(0, 3), seed=st.integers(0, 2**31))
def test_inverse_undoes_forward_everywhere(bins, spread, seed):
    _, parameters = case(1, 400, bins, torch.float64, spread, seed)
    x = torch.linspace(-16, 16, 400, dtype=torch.float64)[None]  # tails included
    y, logs = rational_quadratic_spline(x, parameters, BOUND)
    back, back_logs = rational_quadratic_spline(y, parameters, BOUND, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(back_logs, -logs, rtol=0, atol=1e-6)


def test_log_derivative_is_that_of_a_difference_quotient():
    _, one = case(1, 1, 8, torch.float64, seed=3)
    x = torch.linspace(-13.99, 13.99, 2001, dtype=torch.float64)[:, None]
    parameters = one.expand(len(x), -1, -1)
    step = 1e-6
    above, _ = rational_quadratic_spline(x + step, parameters, BOUND)
    below, _ = rational_quadratic_spline(x - step, parameters, BOUND)
    _, logs = rational_quadratic_spline(x, parameters, BOUND)
    torch.testing.assert_close(((above - below) / (2 * step)).log(), logs, rtol=0, atol=1e-5)
    assert (above > below).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knots_and_ends_are_hit_exactly(dtype, engine):
    _, parameters = case(1, 1, 8, torch.float64, seed=5)
    fractions = torch.softmax(parameters[0, :8, 0], 0) * (1 - 8e-3) + 1e-3
    heights = torch.softmax(parameters[0, 8:16, 0], 0) * (1 - 8e-3) + 1e-3
    zero = torch.zeros(1, dtype=torch.float64)
    x = 2 * BOUND * torch.cat([zero, fractions.cumsum(0)]) - BOUND
    y = 2 * BOUND * torch.cat([zero, heights.cumsum(0)]) - BOUND
    table = parameters.expand(9, -1, -1).to(dtype)
    # in single precision a knot is where rounding puts it, on either side
    close = 1e-9 if dtype is torch.float64 else 1e-4
    for source, expected, inverse in ((x, y, False), (y, x, True)):
        values = source[:, None].to(dtype)
        got, logs = rational_quadratic_spline(values, table, BOUND, inverse=inverse, engine=engine)
        torch.testing.assert_close(got[:, 0].double(), expected, rtol=0, atol=close)
        assert torch.isfinite(logs).all()


@pytest.mark.parametrize(
    ("values", "table"),
    [
        (torch.zeros(2, 5), torch.zeros(2, 23, 5, dtype=torch.float64)),
        (torch.zeros(2, 5, dtype=torch.float64), torch.zeros(2, 23, 5)),
        (torch.zeros(2, 5, dtype=torch.bfloat16), torch.zeros(2, 23, 5, dtype=torch.bfloat16)),
        (torch.zeros(1, 5), torch.zeros(2, 23, 5)),
        (torch.zeros(2, 4), torch.zeros(2, 23, 5)),
    ],
    ids=["double table", "single table", "all rounded", "rows", "columns"],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_does_not_go_together_is_refused(values, table, engine):
    with pytest.raises(ValueError, match="expected inputs"):
        rational_quadratic_spline(values, table, BOUND, engine=engine)


def test_identity_parameters_give_the_identity():
    parameters = torch.zeros(7, 23, 1)
    parameters[:, 16:] = IDENTITY_DERIVATIVE
    x = torch.linspace(-9, 9, 7)[:, None]
    y, logs = rational_quadratic_spline(x, parameters, BOUND)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-5)
    torch.testing.assert_close(logs, torch.zeros_like(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", [False, True])
def test_not_a_number_is_never_hidden(dtype, inverse, engine):
    x, parameters = case(2, 200, 8, dtype)
    x[0, 3] = np.nan
    parameters[1, 2, 5] = np.nan
    x[1, 5] = 0.5
    y, logs = rational_quadratic_spline(x, parameters, BOUND, inverse=inverse, engine=engine)
    for n, d in ((0, 3), (1, 5)):
        assert y[n, d].isnan()
        assert logs[n, d].isnan()
    assert y.isnan().sum() == 2


def test_extreme_parameters_stay_finite():
    x, parameters = case(4, 130, 8, torch.float32, spread=60.0)
    leaves = x.requires_grad_(), parameters.requires_grad_()
    y, logs = rational_quadratic_spline(*leaves, BOUND)
    gradients = torch.autograd.grad(y.sum() + logs.sum(), leaves)
    for result in (y, logs, *gradients):
        assert torch.isfinite(result).all()


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 4),
    width=st.integers(1, 70),
    bins=BINS,
    inverse=st.booleans(),
    spread=st.floats(0, 8),
    seed=st.integers(0, 2**31),
)
def test_the_fused_spline_is_the_plain_one(rows, width, bins, inverse, spread, seed):
    # widths below, at and between whole vectors; splines that are nearly steps
    x, parameters = case(rows, width, bins, torch.float64, spread, seed)
    weights, _ = case(2 * rows, width, bins, torch.float64, seed=seed + 1)
    results = []
    for engine in ENGINES:
        leaves = x.clone().requires_grad_(), parameters.clone().requires_grad_()
        y, logs = rational_quadratic_spline(*leaves, BOUND, inverse=inverse, engine=engine)
        loss = (weights[:rows] * y + weights[rows:] * logs).sum()
        results.append((y, logs, *torch.autograd.grad(loss, leaves)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=30)
@given(
    width=st.integers(1, 70), inverse=st.booleans(), spread=st.floats(0, 3), seed=st.integers(0, 99)
)
@pytest.mark.slow
def test_rounded_parameters_are_read_and_written_as_torch_does(width, inverse, spread, seed):
    x, parameters = case(2, width, 8, torch.float32, spread, seed)
    rounded = parameters.to(torch.bfloat16)
    results = []
    for table in (rounded, rounded.float()):
        leaves = x.clone().requires_grad_(), table.requires_grad_()
        y, logs = rational_quadratic_spline(*leaves, BOUND, inverse=inverse)
        results.append((y, logs, *torch.autograd.grad((y + logs).sum(), leaves)))
    (*exact, gradient), (*expected, wide) = results
    for ours, theirs in zip(exact, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, wide.to(torch.bfloat16))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_inverse_is_exact_in_steep_splines_too(engine):
    # from flat to steep within a bin: the two terms of the root cancel in the usual form
    parameters = torch.zeros(1, 23, 400, dtype=torch.float64)
    parameters[:, 8:16] = -6.0
    parameters[:, 15] = 6.0
    parameters[:, 16:] = torch.linspace(0, 300, 400, dtype=torch.float64)
    y = torch.linspace(-13.999, 13.999, 400, dtype=torch.float64)[None]
    exact, _ = rational_quadratic_spline(y, parameters, BOUND, inverse=True, engine=engine)
    forth, _ = rational_quadratic_spline(exact, parameters, BOUND, engine=engine)
    torch.testing.assert_close(forth, y, rtol=0, atol=1e-6)
    single, logs = rational_quadratic_spline(
        y.float(), parameters.float(), BOUND, inverse=True, engine=engine
    )
    assert torch.isfinite(logs).all()
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=2e-4)
