"""Nats per response, against scipy and numerical integrals."""

import numpy as np
import pytest
import torch
from scipy import stats

from tests.test_splitting import SPLITS, make_flow
from zdc_nb.data.events import Events, split_by_response
from zdc_nb.data.simulation import simulate
from zdc_nb.detector import ZN, Detector, split_tree
from zdc_nb.flows.maf_iaf import Student, Teacher
from zdc_nb.generator import (
    ConditionScaler,
    Surrogate,
    binomial_nats,
    density_nats,
    divergence_from_teacher,
    has_nats,
    load_surrogate,
    nats_of,
    save_surrogate,
)
from zdc_nb.generator.encoding import encode_responses
from zdc_nb.params import FlowParams, load_study
from zdc_nb.training import train_splitting

PAIR = Detector("pair", (1, 2), 0.01, 10.0, (0.0, 0.0), ("all",), np.ones((1, 1, 2), np.bool_))
"""Two fibres: a single cut, so that integrals are of one dimension."""


def pair_events(counts: list[tuple[int, int]]) -> Events:
    features = np.tile([100.0, 0, 0, 0, 0.01, 0.01, 100.0, 939.565, 0], (len(counts), 1))
    responses = np.array(counts, np.uint16).reshape(-1, 1, 2)
    return Events.from_arrays(np.full(len(counts), 2112), features, responses, detector=PAIR)


def make_model(kind: type[Teacher] | type[Student], seed: int = 1) -> Surrogate:
    params = FlowParams(
        transforms=2,
        bins=4,
        bound=14.0,
        hidden=8,
        hidden_layers=1,
        dropout=0.0,
        context_hidden=[],
        initialise="random",
        engine="fused",
        precision="float32",
    )
    torch.manual_seed(seed)
    scaler = ConditionScaler(np.zeros(10), np.full(10, 100.0))
    flow = kind(1, 10, params, seed=1).eval()
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return Surrogate(flow, params, scaler, SPLITS)


def exact_probabilities(model: Surrogate, photon_sum: int) -> np.ndarray:
    """(n + 1,) P(l | n): the density of t, integrated over each cell with a fine grid."""
    grid = 4000
    steps = (np.arange(grid) + 0.5) / grid
    probability = []
    for half in range(photon_sum + 1):
        t = (half + steps) / (photon_sum + 1)
        x = torch.from_numpy(np.log(t) - np.log1p(-t)).to(torch.float32)[:, None]
        condition = model.conditions(pair_events([(half, photon_sum - half)])).expand(grid, -1)
        with torch.no_grad():
            density = model.flow.log_prob(x, condition).double().exp().numpy() / (t * (1 - t))
        probability.append(density.mean() / (photon_sum + 1))
    return np.array(probability)


def test_the_bound_of_a_teacher_is_one_and_averages_to_the_probability() -> None:
    model = make_model(Teacher)
    exact = exact_probabilities(model, 4)
    assert exact.sum() == pytest.approx(1, abs=2e-3)
    for half in range(5):
        events = pair_events([(half, 4 - half)] * 4000)
        nats = nats_of(model, events, seed=half, batch=1000)
        # the mean of exp(-nats) is unbiased; that of nats is an upper bound of -log P
        spread = np.exp(-nats).std() / np.sqrt(len(nats))
        assert abs(np.exp(-nats).mean() - exact[half]) < 5 * spread + 1e-3
        assert nats.mean() > -np.log(exact[half]) - 5 * nats.std() / np.sqrt(len(nats)) - 1e-3


def test_fixed_shares_are_scipys_binomials() -> None:
    parts = split_by_response(simulate(120, 4, 10, seed=2), (0.6, 0.1, 0.3), seed=1)
    tree = split_tree(ZN.shape)
    learned = tree.counts(parts.train.photons.toarray().astype(np.int64)).sum(0)
    counts = tree.counts(parts.test.photons.toarray().astype(np.int64))
    expected = np.zeros(len(parts.test))
    for box, first in zip(tree.nodes, tree.first, strict=True):
        share = (learned[first] + 0.5) / (learned[box] + 1)
        expected -= stats.binom.logpmf(counts[:, first], counts[:, box], share)
    np.testing.assert_allclose(binomial_nats(parts.train, parts.test), expected, rtol=1e-9)


def test_the_published_coordinates_have_none() -> None:
    model = make_model(Teacher)
    fibres = load_study("params/smoke.yaml").preprocessing
    old = Surrogate(model.flow, model.architecture, model.scaler, fibres)
    assert has_nats(model)
    assert not has_nats(old)
    with pytest.raises(TypeError, match="expected a model of counts"):
        nats_of(old, pair_events([(1, 2)]), seed=0, batch=1)


def test_a_splitting_flow_learns_and_its_file_says_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    smoke = load_study("params/smoke.yaml")
    assert smoke.splitting is not None
    section = smoke.splitting.model_copy(update={"epochs": 3})
    study = smoke.model_copy(update={"splitting": section, "device": "cpu"})
    parts = split_by_response(simulate(500, 5, 10, seed=3), (0.7, 0.1, 0.2), seed=1)
    model, history = train_splitting(parts.train, parts.validation, study, "all")
    assert history.attrs["training_seconds"] > 0
    exact = nats_of(model, parts.test, seed=0, batch=40)
    assert np.isfinite(exact).all()
    assert exact.mean() < 0.8 * binomial_nats(parts.train, parts.test).mean()
    save_surrogate(model, tmp_path / "splitting.safetensors")
    assert (tmp_path / "splitting.safetensors").stat().st_size < 1.1e6 * model.megabytes + 20_000
    again = load_surrogate(tmp_path / "splitting.safetensors", torch.device("cpu"))
    np.testing.assert_allclose(nats_of(again, parts.test, seed=1, batch=33), exact, rtol=1e-4)
    drawn = again.generate(parts.test, seed=1, batch=16)
    np.testing.assert_array_equal(drawn, model.generate(parts.test, seed=1, batch=16))
    np.testing.assert_array_equal(drawn.sum(axis=(1, 2)), parts.test.photon_sum)
    # nothing but the ten published numbers is told
    strangers = Events.from_arrays(
        np.zeros(len(parts.test), np.int32), parts.test.features, parts.test.photons
    )
    assert torch.equal(model.conditions(strangers), model.conditions(parts.test))


def test_a_flow_of_nan_is_refused() -> None:
    flow = make_flow((44, 44))
    with torch.no_grad():
        flow.last.bias.fill_(torch.nan)
    context = torch.zeros(2, 6)
    context[:, -1] = 50
    drawn = flow.sample(context, torch.Generator().manual_seed(1))
    assert not torch.equal(drawn.sum(1), context[:, -1].long())


def on_a_grid(model: Surrogate, events: Events) -> tuple[np.ndarray, np.ndarray]:
    """Places in flow space, and the log-density there, by the Pyro distribution of the flow."""
    grid = torch.linspace(-25, 25, 20_001)[:, None]
    condition = model.conditions(events).expand(len(grid), -1)
    with torch.no_grad():
        logs = model.flow.distribution(condition).log_prob(grid)
    return grid[:, 0].double().numpy(), logs.double().numpy()


def test_the_divergence_from_the_teacher_is_its_integral() -> None:
    student, teacher = make_model(Student, seed=5), make_model(Teacher, seed=6)
    one = pair_events([(3, 4)])
    x, log_q = on_a_grid(student, one)
    _, log_p = on_a_grid(teacher, one)
    step = x[1] - x[0]
    assert (np.exp(log_q) * step).sum() == pytest.approx(1, abs=2e-3)
    exact = (np.exp(log_q) * (log_q - log_p) * step).sum()
    assert exact > 0.05
    found = divergence_from_teacher(student, teacher, pair_events([(3, 4)] * 20_000), 7, 5000)
    error = found.std() / np.sqrt(len(found))
    assert found.mean() == pytest.approx(exact, abs=4 * error)
    assert error < 0.1 * exact
    # the other way round is another number
    other = (np.exp(log_p) * (log_p - log_q) * step).sum()
    assert abs(other - exact) > 8 * error


def test_densities_of_teacher_and_student_are_those_of_their_distributions() -> None:
    events = pair_events([(0, 9), (5, 4), (2, 7)] * 50)
    for kind in (Teacher, Student):
        model = make_model(kind)
        found = density_nats(model, events, seed=3, batch=64)
        # x of the same seed lies between grid points, where the density is smooth
        generator = torch.Generator().manual_seed(3)
        x = np.concatenate(
            [
                encode_responses(
                    torch.from_numpy(events.photons[k : k + 64].toarray().astype(np.int64)),
                    SPLITS,
                    PAIR,
                    generator,
                )[0].numpy()
                for k in range(0, len(events), 64)
            ]
        )[:, 0]
        grid, logs = on_a_grid(model, events[:1])
        np.testing.assert_allclose(found, -np.interp(x, grid, logs), atol=2e-3)


def test_a_divergence_needs_a_student_and_a_teacher() -> None:
    student, teacher = make_model(Student), make_model(Teacher)
    events = pair_events([(1, 2)])
    with pytest.raises(TypeError, match="expected a student and a teacher"):
        divergence_from_teacher(teacher, student, events, 0, 1)  # exchanged
