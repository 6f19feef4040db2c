"""Teacher and student against stock Pyro, integrals, gradients and each other."""

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions.transforms import ConditionalSplineAutoregressive as StockPyro
from scipy.integrate import simpson
from scipy.stats import chi2, kstest

from zdc_nb.flows import splines
from zdc_nb.flows.initialise import marginal_parameters, start_from_marginals, start_from_teacher
from zdc_nb.flows.made import TriangularLinear, hidden_degrees
from zdc_nb.flows.maf_iaf import FlowTrace, Student, Teacher, block_orders
from zdc_nb.flows.splines import rational_quadratic_spline
from zdc_nb.params import load_study

PARAMS = load_study(Path(__file__).parents[1] / "params" / "smoke.yaml").flow
CONTEXT = 3
ROUNDED = {"hidden": 20, "context_hidden": [8], "precision": "bfloat16"}


def flow(kind, dim=12, seed=0, **changes):
    """A flow with weights large enough that nothing is near the identity."""
    torch.manual_seed(seed)
    update = {"hidden": 20, "context_hidden": [8], **changes}
    made = kind(dim, CONTEXT, PARAMS.model_copy(update=update), seed=1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.15)
    for module in made.modules():
        if isinstance(module, TriangularLinear):
            module.apply_mask()
    return made.eval()


def points(n, dim, seed=5):
    torch.manual_seed(seed)
    return torch.randn(n, dim) * 5, torch.randn(n, CONTEXT)


@pytest.mark.parametrize("hidden", [5, 12, 40])
@pytest.mark.parametrize("kind", [Teacher, Student])
def test_an_output_depends_on_earlier_dimensions_only(kind, hidden):
    block = flow(kind, hidden=hidden).blocks[0]
    x, context = (t.abs() for t in points(1, 12))
    for parameter in block.parameters():
        parameter.data.abs_()  # so that no unit is off, which would hide what it is connected to
    jacobian = torch.autograd.functional.jacobian(
        lambda v: block.fast(v.T, context, keep=True)[2][:, :, 0], x
    )[:, :, 0]
    depends = jacobian.abs().amax(1) > 0  # (output dimension, input dimension)
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


@torch.no_grad()
def test_forbidden_weights_stay_zero_when_loaded_or_trained():
    layer = flow(Teacher).networks[0].last
    mask = layer.mask()
    full = {name: torch.ones_like(value) for name, value in layer.state_dict().items()}
    layer.load_state_dict(full)
    torch.testing.assert_close(layer.dense(), mask.to(layer.weight))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        with torch.enable_grad():
            loss = layer(torch.randn(layer.in_features, 8)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # the flat weights hold more than the mask allows, but nothing else than zeros there
    assert layer.weight.count_nonzero() == mask.sum()
    assert (layer.dense()[mask] != 1).all()


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    columns=st.lists(st.integers(0, 30), max_size=40),
    cut=st.integers(1, 31),
    samples=st.integers(1, 20),
)
def test_a_triangular_layer_is_a_masked_one(rows, columns, cut, samples):
    rows, columns = np.sort(rows), np.sort(np.array(columns, dtype=np.int64))
    layer = TriangularLinear(rows, columns, range(0, int(rows[-1]) + 1, cut)).double()
    mask = torch.from_numpy(rows[:, None] >= columns)
    weight = torch.randn(mask.shape, dtype=torch.float64, requires_grad=True)
    layer.copy_dense(weight)
    torch.testing.assert_close(layer.dense(), weight * mask)
    x = torch.randn(len(columns), samples, dtype=torch.float64, requires_grad=True)
    expected = (weight * mask) @ x + layer.bias[:, None]
    got = layer(x)
    torch.testing.assert_close(got, expected)
    pull = torch.randn_like(expected)
    ours = torch.autograd.grad(got, (x, layer.weight, layer.bias), pull)
    theirs = torch.autograd.grad(expected, (x, weight, layer.bias), pull)
    other = TriangularLinear(rows, columns, range(0, int(rows[-1]) + 1, cut)).double()
    with torch.no_grad():
        other.weight.copy_(ours[1])  # where a gradient lies is where its weight lies
    for a, b in zip((ours[0], other.dense(), ours[2]), theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_rows_of_two_panels_are_no_part():
    layer = TriangularLinear(np.arange(9), np.arange(9), [0, 4])
    assert layer.part(slice(5, 7), 3).shape == (2, 3)
    with pytest.raises(IndexError, match="one panel"):
        layer.part(slice(3, 5), 3)


def test_several_inputs_share_a_condition():
    student = flow(Student)
    x, context = points(6, 12)
    together = student.trace(x, context[:2])
    apart = student.trace(x, context[:2].repeat(3, 1))
    torch.testing.assert_close(together.data, apart.data)
    torch.testing.assert_close(together.log_derivative, apart.log_derivative)


@pytest.mark.parametrize("engine", ["fused", "plain"])
@pytest.mark.parametrize("hidden", [7, 20])  # below D too, as in the published configuration
def test_log_density_is_stock_pyros(hidden, engine):
    shape = {"transforms": 3, "context_hidden": [], "engine": engine, "hidden_layers": 2}
    teacher = flow(Teacher, hidden=hidden, **shape)
    with torch.no_grad():
        teacher.networks[0].location.normal_()
        teacher.networks[0].scale.uniform_(0.5, 2)
    x, context = points(50, 12)
    expected = teacher.stock_pyro().condition(context).log_prob(x)
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
            theirs.last.bias.copy_(bias)
            mine.last.bias.copy_(bias)
    x, context = points(100, 12)
    x = x.clamp(-13.9, 13.9)
    there = teacher.trace(x, context, keep=True)
    back = student.trace(there.latent, context, keep=True)
    torch.testing.assert_close(back.data, x, rtol=0, atol=1e-4)
    for ours, theirs in zip(back.ends, there.ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    for ours, theirs in zip(back.parameters, there.parameters, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(back.log_derivative, -there.log_derivative, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("engine", ["fused", "plain"])
def test_students_exact_likelihood_is_that_of_its_samples(engine):
    student = flow(Student, dim=9, engine=engine).double()
    z, context = (t.double() for t in points(20, 9))
    trace = student.trace(z, context)
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum(-1) - trace.log_derivative
    data = trace.data.detach().clone()
    for got in (student.log_prob(data, context), student.distribution(context).log_prob(data)):
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


@pytest.mark.parametrize("kind", [Teacher, Student])
@pytest.mark.parametrize("engine", ["fused", "plain"])
def test_dropout_is_refused_where_it_would_be_drawn(kind, engine):
    model = flow(kind, dropout=0.5, engine=engine).train()
    context = torch.zeros(2, CONTEXT)
    with pytest.raises(RuntimeError, match="evaluation mode"):
        model.sample(context, torch.Generator())
    with pytest.raises(RuntimeError, match="evaluation mode"):
        model._backwards(torch.zeros(12, 2), context)
    assert model.eval().sample(context, torch.Generator()).shape == (2, 12)


@pytest.mark.parametrize("kind", [Teacher, Student])
def test_no_samples_are_no_trouble(kind):
    model, none = flow(kind), torch.zeros(0, CONTEXT)
    x = model.sample(none, torch.Generator())
    assert x.shape == (0, 12)
    assert model.log_prob(x, none).shape == (0,)


def test_sampling_without_inference_tensors_in_the_way():
    model = flow(Student, dim=70, **{k: v for k, v in ROUNDED.items() if k == "precision"})
    z, context = points(4, 70)
    with torch.inference_mode():
        first = model.sample(context, torch.Generator().manual_seed(1))
    trace = model.trace(z, context)
    trace.log_derivative.sum().backward()
    assert torch.equal(first, model.sample(context, torch.Generator().manual_seed(1)))


def test_a_flow_can_be_pickled_and_copied():
    model = flow(Teacher, precision="bfloat16")
    x, context = points(4, 12)
    expected = model.log_prob(x, context)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(other.log_prob(x, context), expected)


@pytest.mark.parametrize("kind", [Teacher, Student])
@pytest.mark.parametrize("hidden_layers", [0, 2])
def test_panels_are_solved_alike_with_and_without_a_kernel(monkeypatch, kind, hidden_layers):
    # what devices without a kernel do, on the arguments of a real inversion
    model = flow(kind, dim=150, hidden=90, hidden_layers=hidden_layers).double()
    y, context = (t.double() for t in points(5, 150))
    compiled = model._backwards(y.T.contiguous(), context)
    monkeypatch.setattr("zdc_nb.flows.autoregressive.solve_panel", splines._plain_solve_panel)
    plain = model._backwards(y.T.contiguous(), context)
    for a, b in zip(compiled, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


# --- The fused passes against the plain ones ---


def pair(kind, dim, seed, **changes):
    """The same flow with both engines, in panels narrower than its dimensions."""
    fused = flow(kind, dim, seed, **changes)
    plain = flow(kind, dim, seed, engine="plain", **changes)
    plain.load_state_dict(fused.state_dict())
    return fused, plain


SHAPES = {
    "dim": st.sampled_from([1, 2, 17, 63, 64, 65, 150, 300]),
    "hidden": st.sampled_from([2, 5, 64, 170]),
    "hidden_layers": st.integers(0, 3),
    "transforms": st.integers(1, 2),
    "bins": st.sampled_from([2, 8]),
    "context_hidden": st.sampled_from([[], [4], [6, 3]]),
}


@pytest.mark.parametrize("kind", [Teacher, Student])
@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**31), shape=st.fixed_dictionaries(SHAPES))
def test_a_fused_pass_is_the_plain_one(kind, n, seed, shape):
    fused, plain = (model.double() for model in pair(kind, seed=seed, **shape))
    x, context = (t.double() for t in points(2 * n, shape["dim"], seed))
    other = torch.randn(
        shape["dim"], 3 * shape["bins"] - 1, 3 * n, dtype=torch.float64, requires_grad=True
    )
    results = []
    for model in (fused, plain):
        leaf = x.clone().requires_grad_()
        # two inputs a condition; half of the samples are matched with a part of another pass's
        half = context[:n] if kind is Student else context
        fixed = FlowTrace([x[:n].T], x[:n, 0], [other] * shape["transforms"], [])
        wanted = (fixed, n) if kind is Student else None
        trace = model.trace(leaf, half, keep=True, match=wanted)
        values = [*trace.ends, trace.log_derivative, *trace.parameters, *trace.distances]
        generator = torch.Generator().manual_seed(0)
        loss = sum(
            (v * torch.randn(v.shape, generator=generator, dtype=v.dtype)).sum() for v in values
        )
        leaves = [leaf, *model.parameters(), *([other] if wanted else [])]
        gradients: Any = torch.autograd.grad(loss, leaves, allow_unused=True)
        results.append([*values, *(torch.zeros(()) if g is None else g for g in gradients)])
    for ours, theirs in zip(*results, strict=True):
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7 * (1 + scale))


@pytest.mark.parametrize("kind", [Teacher, Student])
@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**31), shape=st.fixed_dictionaries(SHAPES))
def test_the_fused_inversion_is_the_plain_one(kind, n, seed, shape):
    shape["dim"] = min(shape["dim"], 70)  # the plain one costs as many passes
    fused, plain = (model.double() for model in pair(kind, seed=seed, **shape))
    x, context = (t.double() for t in points(n, shape["dim"], seed))
    x[0, 0] = 14.0 + 1e-3  # a tail
    for ours, theirs in zip(
        fused._backwards(x.T.contiguous(), context),
        plain._backwards(x.T.contiguous(), context),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [Teacher, Student])
@pytest.mark.parametrize("hidden", [100, 700])  # below and above D
@torch.no_grad()
def test_single_precision_is_exact_enough(kind, hidden):
    # of the published depth and of torch's own initial weights, on the whole domain
    torch.manual_seed(1)
    dim = 500
    params = PARAMS.model_copy(
        update={"hidden": hidden, "hidden_layers": 2, "transforms": 2, "context_hidden": []}
    )
    model = kind(dim, CONTEXT, params, seed=1).eval()
    x = torch.linspace(-16, 16, 40 * dim)[torch.randperm(40 * dim)].view(40, dim)
    context = torch.randn(40, CONTEXT)
    trace = model.trace(x, context)
    there = trace.ends[-1 if kind is Teacher else 0]
    back, logs = model._backwards(there, context)
    assert float((back.T - x).abs().max()) <= 1e-4
    torch.testing.assert_close(logs, -trace.log_derivative, rtol=1e-3, atol=1e-2)
    # log-densities within 1e-3 relative of the reference
    double = kind(dim, CONTEXT, params.model_copy(update={"engine": "plain"}), seed=1).eval()
    double.load_state_dict(model.state_dict())
    exact = double.double().trace(x.double(), context.double())
    torch.testing.assert_close(
        trace.log_derivative.double(), exact.log_derivative, rtol=1e-3, atol=1e-3
    )


@torch.no_grad()
@pytest.mark.parametrize("layer", ["first", "last"])
def test_an_inversion_hides_no_nan(layer):
    teacher = flow(Teacher)
    teacher.networks[0].get_submodule(layer).bias[0] = torch.nan
    x = teacher.sample(torch.zeros(3, CONTEXT), torch.Generator())
    assert x.isnan().any(1).all()


@torch.no_grad()
def test_rounded_products_stay_near():
    exact, rounded = flow(Student, dim=150, hidden=90), flow(Student, dim=150, hidden=90)
    for network in rounded.networks:
        network.precision = "bfloat16"
    z, context = points(50, 150)
    a, b = exact.trace(z, context, keep=True), rounded.trace(z, context, keep=True)
    assert not torch.equal(a.parameters[0], b.parameters[0])
    assert b.data.dtype == torch.float32
    # 8 bits of mantissa
    error = (a.parameters[-1] - b.parameters[-1].float()).abs().max() / a.parameters[-1].abs().max()
    assert 1e-4 < float(error) < 2e-2
    # rounded weights follow the weights
    for network in rounded.networks:
        network.last.weight.mul_(2)
    c = rounded.trace(z, context, keep=True)
    assert float((c.parameters[-1] - b.parameters[-1]).abs().max()) > 0.1


@pytest.mark.parametrize("can", [False, True])
def test_automatic_precision_is_what_the_machine_has(monkeypatch, can):
    monkeypatch.setattr("zdc_nb.flows.made.has_bfloat16", lambda _: can)
    network = flow(Teacher, precision="auto").networks[0]
    assert network.working_type(torch.zeros(1)) == (torch.bfloat16 if can else torch.float32)


def test_rounded_gradients_point_the_same_way():
    exact, rounded = flow(Teacher, dim=700, hidden=90), flow(Teacher, dim=700, hidden=90)
    with torch.no_grad():
        for parameter in (*exact.parameters(), *rounded.parameters()):
            parameter.mul_(0.3)  # larger ones make for chaos that no rounding survives
    for network in rounded.networks:
        network.precision = "bfloat16"
    x, context = points(50, 700)

    def gradient(model: Teacher) -> torch.Tensor:
        loss = model.log_prob(x / 3, context).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    cosine = torch.nn.functional.cosine_similarity(gradient(exact), gradient(rounded), dim=0)
    assert float(cosine) > 0.99


def test_rounded_weights_follow_every_optimiser():
    # fused ones write to the weights without counting up their version
    model = flow(Teacher, dim=70, context_hidden=[8])
    for network in model.networks:
        network.precision = "bfloat16"
    x, context = points(20, 70)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        loss = model.log_prob(x, context).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = Teacher(70, CONTEXT, PARAMS.model_copy(update=ROUNDED), seed=1).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.log_prob(x, context), fresh.log_prob(x, context))
    loss = model.log_prob(x, context).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    fresh.load_state_dict(model.state_dict())
    frozen = model.requires_grad_(False)
    first = frozen.log_prob(x, context)
    assert torch.equal(first, fresh.log_prob(x, context))
    assert torch.equal(first, frozen.log_prob(x, context))
    for network in frozen.networks:
        network.last.weight.zero_()
        assert network.context_network is not None
        network.context_network[-1].weight.mul_(2)
    assert not torch.equal(first, frozen.log_prob(x, context))
