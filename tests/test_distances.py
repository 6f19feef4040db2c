"""Distances between samples: against jetnet, scipy and loops, and what they say where nothing differs."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from sklearn.metrics.pairwise import polynomial_kernel

from tests.event_sets import make_events, small_detector
from tests.reference.jetnet_samples import LARGE, REFERENCE, SMALL, samples
from zdc_nb.data.events import Events
from zdc_nb.evaluation import DISTANCES, EvaluationError, evaluate_runs
from zdc_nb.evaluation.classifier import features_of
from zdc_nb.evaluation.distances import (
    FEWEST_FOR_MOMENTS,
    Distances,
    fpd,
    frechet_distance,
    kpd,
    photon_spectrum,
    squared_mmd,
)

JETNET = json.loads(REFERENCE.read_text("utf-8"))["samples"]
NAMES = sorted(JETNET)


@pytest.fixture(scope="module")
def large() -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    return samples(LARGE)


@pytest.mark.parametrize("name", NAMES)
def test_frechet_distance_is_that_of_jetnet(name: str) -> None:
    found = frechet_distance(*samples(SMALL)[name])
    assert found == pytest.approx(JETNET[name]["frechet_distance"], rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_squared_mmd_is_that_of_jetnet_but_for_the_pairs_themselves(name: str) -> None:
    x, y = samples(SMALL)[name]
    # jetnet's mean of k(x_i, y_j) has the pairs i = j in it
    kernel = polynomial_kernel(x, y, degree=4, gamma=1 / x.shape[1], coef0=1)
    apart = kernel[~np.eye(len(x), dtype=bool)]
    expected = JETNET[name]["squared_mmd"] + 2 * (kernel.mean() - apart.mean())
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_fpd_and_kpd_agree_with_jetnet_within_their_errors(
    name: str, large: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> None:
    for metric, function in (("fpd", fpd), ("kpd", kpd)):
        found, expected = np.array(function(*large[name], seed=1)), np.array(JETNET[name][metric])
        # jetnet's FPD keeps what 60 000 responses leave of themselves: 0.0004 for two equal samples
        assert abs(found[0] - expected[0]) < 3 * np.hypot(found[1], expected[1]) + 1e-3
        # so that the line above could fail: 1.8 and 0.2 for two that differ
        assert 0 < found[1] < {"fpd": 0.02, "kpd": 0.7}[metric]


def test_frechet_distance_of_features_that_sum_to_one() -> None:
    """Their covariance is singular: the distance is twice that of the one that is free."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.3, 0.1, 500), rng.normal(0.4, 0.15, 700)
    found = frechet_distance(np.stack([x, 1 - x], axis=1), np.stack([y, 1 - y], axis=1))
    alone = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert found == pytest.approx(2 * alone, rel=1e-9)
    assert frechet_distance(x[:, None], y[:, None]) == pytest.approx(alone, rel=1e-9)


def test_squared_mmd_equals_a_loop() -> None:
    x, y = np.random.default_rng(2).normal(size=(2, 9, 3))

    def k(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float((a @ b / 3 + 1) ** 4)

    terms = [
        k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
        for i in range(9)
        for j in range(9)
        if i != j
    ]
    assert squared_mmd(x, y) == pytest.approx(np.mean(terms), rel=1e-12)


def repeated(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features (400, 4) of 20 particles, of each 20 pairs: all differ most between particles."""
    rng = np.random.default_rng(seed)
    own = 2 * rng.normal(size=(20, 4)).repeat(20, axis=0)
    first, second = own + rng.normal(size=(2, 400, 4))
    return first, second


def test_answers_to_the_same_particles_are_at_0_on_average() -> None:
    """Also where the particles are few: both samples share them."""
    pairs = [repeated(seed) for seed in range(30)]
    for function in (fpd, kpd):
        values = np.array([function(*pair, seed=0)[0] for pair in pairs])
        assert abs(values.mean()) < 3.5 * values.std(ddof=1) / np.sqrt(len(values))
        assert (values < 0).any()
    # without the extrapolation it is always above
    plain = np.array([frechet_distance(*pair) for pair in pairs])
    assert plain.min() > 0
    assert plain.mean() > 10 * plain.std(ddof=1) / np.sqrt(len(plain))


def test_fpd_of_a_shift_is_its_square() -> None:
    first, second = repeated(3)
    assert fpd(first, second + 1.5, seed=0)[0] == pytest.approx(4 * 1.5**2, rel=0.1)


def test_features_that_are_no_pairs_are_refused() -> None:
    x = np.zeros((30, 2))
    for function in (fpd, kpd):
        with pytest.raises(ValueError, match=r"expected pairs.*\(30, 2\) and \(29, 2\)"):
            function(x, x[1:], seed=0)
        with pytest.raises(ValueError, match="expected pairs, at least"):
            function(x[:4], x[:4], seed=0)


def measured(test: Events, generated: NDArray[Any], chosen: Any = slice(None)) -> dict[str, float]:
    part = test[chosen]
    distances = Distances(test, chosen, features_of(part, part.responses))
    return distances(generated, features_of(part, generated[chosen]))


@pytest.fixture(scope="module")
def test() -> Events:
    return make_events(np.repeat(np.arange(15), 8), seed=1)


@pytest.fixture(scope="module")
def generated(test: Events) -> NDArray[np.uint16]:
    return make_events(np.roll(test.particle, 3), seed=2).responses.copy()


def test_a_set_is_at_no_distance_from_itself(test: Events) -> None:
    found = measured(test, test.responses)
    assert tuple(found) == DISTANCES
    assert found == pytest.approx(dict.fromkeys(DISTANCES, 0.0), abs=1e-6)


def test_lit_fibres_and_spectrum_equal_scipy(test: Events, generated: NDArray[np.uint16]) -> None:
    found = measured(test, generated)
    lit = [[int((each > 0).sum()) for each in images] for images in (test.responses, generated)]
    assert found["lit fibres"] == pytest.approx(wasserstein_distance(*lit), rel=1e-9)
    # a fibre of k photons, k times
    photons = [np.repeat(x[x > 0], x[x > 0]) for x in (test.responses, generated)]
    expected = wasserstein_distance(*photons)
    assert found["fibre spectrum"] == pytest.approx(expected, rel=1e-9)


def test_sliced_distance_is_the_mean_of_many_directions(
    test: Events, generated: NDArray[np.uint16]
) -> None:
    rng = np.random.default_rng(7)
    x, y = (images.reshape(len(test), -1).astype(float) for images in (test.responses, generated))
    along = []
    for _ in range(300):
        direction = rng.normal(size=x.shape[1])
        direction /= np.linalg.norm(direction)
        along.append(wasserstein_distance(x @ direction, y @ direction))
    error = np.std(along) / np.sqrt(64)
    assert abs(measured(test, generated)["sliced WS"] - np.mean(along)) < 4 * error


def test_one_more_photon_in_a_fibre_that_is_lit_moves_the_spectrum_alone(test: Events) -> None:
    found = measured(test, test.responses + (test.responses > 0))
    assert found["lit fibres"] == 0
    # each photon has one more beside it, and the added ones do not change the mean by more
    assert 0.5 < found["fibre spectrum"] < 1.5


def test_light_that_is_spread_evenly_has_no_core(test: Events) -> None:
    """As many fibres are lit, and as many photons: what most of them hold is another matter."""
    even = np.zeros_like(test.responses)
    for k, response in enumerate(test.responses):
        lit = response > 0
        each, rest = divmod(int(response.sum()), int(lit.sum()))
        values = np.full(lit.sum(), each)
        values[:rest] += 1
        even[k][lit] = values
    found = measured(test, even)
    assert found["lit fibres"] == 0
    assert found["fibre spectrum"] > 0.5


def test_the_same_numbers_again(test: Events, generated: NDArray[np.uint16]) -> None:
    assert measured(test, generated) == measured(test, generated)


def test_a_part_is_looked_at_where_the_docstring_says_so(
    test: Events, generated: NDArray[np.uint16]
) -> None:
    chosen = np.arange(0, len(test), 2)
    part, whole = measured(test, generated, chosen), measured(test, generated)
    assert part["lit fibres"] == whole["lit fibres"]
    assert part["fibre spectrum"] == whole["fibre spectrum"]
    assert part["sliced WS"] == measured(test[chosen], generated[chosen])["sliced WS"]
    # 60 pairs are too few for moments
    assert len(chosen) < FEWEST_FOR_MOMENTS
    assert set(whole) - set(part) == {"FPD", "KPD"}


def test_no_light_at_all_is_at_a_distance(test: Events) -> None:
    dark = np.zeros_like(test.responses)
    found = measured(test, dark)
    assert found["lit fibres"] == pytest.approx(test.lit_fibres.mean())
    counts = test.photons.data.astype(float)
    assert found["fibre spectrum"] == pytest.approx((counts**2).sum() / counts.sum())
    nothing = make_events(test.particle, 1)
    nothing = Events.from_arrays(nothing.pdg, nothing.features, dark, nothing.particle)
    assert measured(nothing, dark) == pytest.approx(dict.fromkeys(DISTANCES, 0.0), abs=1e-9)


def test_another_detector_without_repeats() -> None:
    detector = small_detector()
    rng = np.random.default_rng(4)
    n = 120
    responses, other = rng.poisson(0.1, (2, n, *detector.shape)).astype(np.uint16)
    events = Events.from_arrays(
        np.zeros(n, np.int32), rng.normal(size=(n, 9)), responses, detector=detector
    )
    table = evaluate_runs("n", "teacher", events, [responses, other, other], classified=1)
    values = table.set_index(["metric", "run"])["value"]
    assert {metric for metric, _ in values.index} == {"WS", "AUC", "AUC image", *DISTANCES}
    for metric in DISTANCES:
        assert values[metric, 0] == pytest.approx(0, abs=1e-6)
        assert values[metric, 1] == values[metric, 2] != 0
    assert values["AUC", 0] == pytest.approx(0.5)
    assert values["AUC image", 0] == pytest.approx(0.5, abs=0.01)
    assert ("AUC image", 1) not in values.index


def test_evaluations_have_the_distances_and_refuse_a_nan_by_name(
    test: Events, generated: NDArray[np.uint16]
) -> None:
    table = evaluate_runs("all", "bs", test, [generated, test.responses])
    values = table.pivot(index="metric", columns="run", values="value")
    pd.testing.assert_series_equal(
        values.loc[[*DISTANCES], 0],
        pd.Series(measured(test, generated), name=0),
        check_names=False,
    )
    assert values.loc["lit fibres", 1] == 0
    broken = generated.astype(float)
    broken[3, 3, 3] = np.nan
    with pytest.raises(EvaluationError, match="subset 'all', model 'bs', metric 'WS'"):
        evaluate_runs("all", "bs", test, [broken])


def test_spectrum_counts_fibres_over_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdc_nb.evaluation.distances._CHUNK", 3)
    responses = np.random.default_rng(5).poisson(1.0, (10, 4, 5)).astype(np.uint16)
    responses[0, 0, 0] = 65535
    spectrum = photon_spectrum(responses)
    values, counts = np.unique(responses[responses > 0], return_counts=True)
    assert len(spectrum) == 65536
    np.testing.assert_array_equal(np.flatnonzero(spectrum), values)
    np.testing.assert_array_equal(spectrum[values], counts)
