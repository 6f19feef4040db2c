"""The classifier two-sample test: its features against loops, and what its AUC and importances say."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from zdc_nb.data.events import Events, split_by_response
from zdc_nb.data.simulation import simulate
from zdc_nb.detector import ZN, Detector
from zdc_nb.evaluation import (
    EvaluationError,
    importance_figure,
    resimulated_runs,
    response_features,
    two_sample_test,
)
from zdc_nb.evaluation.images import image_test


def make_detector(rows: int, columns: int, channels: int) -> Detector:
    """Bands of columns, one for each channel."""
    masks = np.zeros((channels, rows, columns), np.bool_)
    for column in range(columns):
        masks[column % channels, :, column] = True
    names = tuple(f"band {k}" for k in range(channels))
    return Detector("ZX", (rows, columns), 0.002, 100.0, (0.0, 0.0), names, masks)


OBLONG = make_detector(5, 9, 3)
TWO_FIBRES = make_detector(2, 1, 1)
PLAIN = make_detector(12, 12, 1)
"""One channel, so that where a shower stands is told by its centre alone."""


def make_events(
    responses: NDArray[np.uint16], particle: NDArray[np.int64], detector: Detector
) -> Events:
    """Events whose energy is their particle's number."""
    features = np.zeros((len(responses), 9))
    features[:, 0] = particle
    pdg = np.full(len(responses), 2112, np.int32)
    return Events.from_arrays(pdg, features, responses, particle, detector)


def showers(n: int, seed: int) -> NDArray[np.uint16]:
    """(n, 12, 12): some photons within the middle 6 x 6 fibres."""
    rng = np.random.default_rng(seed)
    responses = np.zeros((n, *PLAIN.shape), np.uint16)
    responses[:, 3:9, 3:9] = rng.poisson(rng.uniform(0.2, 2.0, (n, 1, 1)), (n, 6, 6))
    return responses


def brute_force(response: NDArray[np.uint16], energy: float, detector: Detector) -> list[float]:
    """The features of one response, fibre by fibre, in the order of the columns."""
    rows, columns = detector.shape
    light = {
        (row, column): int(response[row, column])
        for row, column in product(range(rows), range(columns))
        if response[row, column]
    }
    total = sum(light.values())

    def holding(fibres: list[tuple[float, int]], percent: int) -> tuple[float, int]:
        """Key of the fibre, from the first on, at which so much light is held, and its rank."""
        held = 0
        for rank, (key, photons) in enumerate(fibres, start=1):
            held += photons
            if 100 * held >= percent * total:
                return key, rank
        return 0.0, 0

    shares = [
        sum(photons for fibre, photons in light.items() if mask[fibre]) / max(total, 1)
        for mask in detector.masks
    ]
    centre = list(detector.face_centre)
    if total:
        centre = [sum(fibre[k] * p for fibre, p in light.items()) / total for k in (0, 1)]
    by_distance = sorted((math.dist(fibre, centre), photons) for fibre, photons in light.items())
    falling = sorted(light.values(), reverse=True)
    ranked = [(0.0, photons) for photons in falling]
    horizontal = sum(p * light.get((i, j + 1), 0) for (i, j), p in light.items())
    vertical = sum(p * light.get((i + 1, j), 0) for (i, j), p in light.items())
    isolated = [
        not {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & light.keys() for i, j in light
    ]
    return [
        *shares,
        *centre,
        *(holding(by_distance, percent)[0] for percent in (50, 90)),
        len(light),
        *[*falling, 0, 0, 0][:3],
        falling.count(1),
        falling.count(2),
        horizontal / max(total, 1),
        vertical / max(total, 1),
        sum(isolated),
        *(holding(ranked, percent)[1] for percent in (50, 90)),
        total,
        energy,
    ]


@pytest.mark.parametrize("detector", [ZN, OBLONG, TWO_FIBRES], ids=lambda d: f"{d.shape}")
def test_features_equal_loops(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    # 20 responses in three parts, the last of which is not full
    monkeypatch.setattr("zdc_nb.evaluation.classifier._CHUNK", 8)
    rng = np.random.default_rng(5)
    responses = rng.geometric(0.4, (20, *detector.shape)).astype(np.uint16)
    filled = rng.uniform(0.01, 0.9, (20, 1, 1))
    responses[rng.random(responses.shape) > filled] = 0
    responses[[3, 19]] = 0
    # whose products do not fit in 16 bits, nor in 32, and whose sum does not fit in 16
    responses[7, :2, 0] = responses[8, 0] = 65535
    energy = rng.uniform(0, 1000, 20)
    features = response_features(responses, energy, detector)
    expected = [
        brute_force(response, e, detector) for response, e in zip(responses, energy, strict=True)
    ]
    np.testing.assert_allclose(features.to_numpy(), expected, rtol=1e-12, atol=1e-12)
    assert features.columns.is_unique
    assert set(features.dtypes) == {np.dtype(np.float64)}


def test_features_stand_in_columns_of_their_names() -> None:
    response = np.zeros((1, *OBLONG.shape), np.uint16)
    response[0, 1, 3:5] = 6, 2  # in bands 0 and 1
    response[0, 2, 3] = 1
    response[0, 4, 8] = 1
    (features,) = response_features(response, np.array([7.0]), OBLONG).to_dict("records")
    assert features == {
        "share of band 0": 0.7,
        "share of band 1": 0.2,
        "share of band 2": 0.1,
        "centre row": pytest.approx(1.4),
        "centre column": pytest.approx(3.7),
        "radius of 50% of the photons": pytest.approx(math.hypot(0.4, 0.7)),
        "radius of 90% of the photons": pytest.approx(math.hypot(0.6, 0.7)),
        "lit fibres": 4,
        "largest count": 6,
        "second largest count": 2,
        "third largest count": 1,
        "fibres with one photon": 2,
        "fibres with two photons": 1,
        "horizontal neighbours": pytest.approx(1.2),
        "vertical neighbours": pytest.approx(0.6),
        "isolated lit fibres": 1,
        "brightest fibres with 50% of the photons": 1,
        "brightest fibres with 90% of the photons": 3,
        "photon sum": 10,
        "energy": 7,
    }


def test_features_refuse_other_shapes() -> None:
    responses = np.ones((3, *OBLONG.shape), np.uint16)
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 44, 44\)"):
        response_features(responses, np.ones(3), ZN)
    with pytest.raises(ValueError, match=r"energy: expected \(3,\)"):
        response_features(responses, np.ones(1), OBLONG)
    assert len(response_features(responses[:0], np.ones(0), OBLONG)) == 0


@pytest.fixture(scope="module")
def halves() -> tuple[Events, NDArray[np.uint16]]:
    """Test responses, and other simulations of the same particles."""
    events = simulate(responses=2400, repeats=20, min_photons=100, seed=1)
    train, _, test, _ = split_by_response(events, (0.55, 0.05, 0.4), seed=1)
    again = resimulated_runs(train, test, runs=1, seed=1)
    return again.test, next(again.generations)


def test_two_halves_of_a_simulation_cannot_be_told_apart(
    halves: tuple[Events, NDArray[np.uint16]],
) -> None:
    test, again = halves
    assert len(test) > 900
    # Under the null hypothesis the Mann-Whitney statistic of twice n values gives an AUC of
    # variance (2 n + 1) / (12 n^2), about 1 / 6n; four of its roots are 0.053 here.
    assert abs(two_sample_test(test, again, seed=1).auc - 0.5) < 4 / math.sqrt(6 * len(test))


def test_blurred_responses_give_themselves_away(
    halves: tuple[Events, NDArray[np.uint16]],
) -> None:
    test, again = halves
    blurred = np.zeros_like(again)
    # every photon stays or goes to one of the four neighbours, the sum is as it was
    rng = np.random.default_rng(2)
    moved = rng.multinomial(again, [0.2] * 5)
    for k, (step, axis) in enumerate([(0, 1), (1, 1), (-1, 1), (1, 2), (-1, 2)]):
        blurred += np.roll(moved[..., k], step, axis).astype(np.uint16)
    assert (blurred.sum(axis=(1, 2)) == again.sum(axis=(1, 2))).all()
    assert two_sample_test(test, blurred, seed=1).auc > 0.9


def test_images_of_two_halves_of_a_simulation_cannot_be_told_apart(
    halves: tuple[Events, NDArray[np.uint16]],
) -> None:
    test, again = halves
    # half of the pairs are held out, see above
    allowed = 4 / math.sqrt(3 * len(test))
    assert all(abs(image_test(test, again, seed) - 0.5) < allowed for seed in (1, 2))


def test_photons_shuffled_over_the_lit_fibres_are_seen_in_the_image(
    halves: tuple[Events, NDArray[np.uint16]],
) -> None:
    test, again = halves
    rng = np.random.default_rng(3)
    shuffled = np.zeros_like(again)
    for response, given in zip(shuffled, again, strict=True):
        response[given > 0] = rng.permutation(given[given > 0])
    assert image_test(test, shuffled, seed=1) > 0.9


def test_a_pattern_that_no_feature_sees_is_seen_in_the_image() -> None:
    """Of two fibres beside each other the brighter one stands left (L) or right (R).

    Which of the two alternates such that products of neighbours are as large as ever.
    """

    def shifted(seed: int) -> NDArray[np.uint16]:
        """Showers within columns 2 to 7, three pairs of neighbours."""
        return np.roll(showers(1200, seed), -1, axis=2)

    test = make_events(shifted(13), np.arange(1200), PLAIN)
    flawed = shifted(14)
    pairs = np.sort(flawed[:, :, 2:8].reshape(-1, 12, 3, 2), axis=3)
    for row, pair in product(range(12), range(3)):
        if ("LLL", "LRL", "RRR", "RLR")[row % 4][pair] == "L":
            pairs[:, row, pair] = pairs[:, row, pair, ::-1]
    flawed[:, :, 2:8] = pairs.reshape(-1, 12, 6)
    assert two_sample_test(test, flawed, seed=1).auc < 0.6
    assert image_test(test, flawed, seed=1) > 0.95


@pytest.mark.parametrize("particles", [1, 4, 5, 200])
def test_a_response_and_its_answer_are_never_parted(particles: int) -> None:
    """Of a pair of equals, one in the training folds would have the other called the opposite."""
    responses = showers(200, seed=3)
    test = make_events(responses, np.arange(200) % particles, PLAIN)
    assert two_sample_test(test, responses, seed=1).auc == 0.5
    # rounding differs with the place in a batch
    assert image_test(test, responses, seed=1) == pytest.approx(0.5, abs=0.01)


def test_a_particle_is_not_recognised_by_its_repeats() -> None:
    """Which of two looks is the generated one differs between particles, at random."""
    particle = np.repeat(np.arange(10), 60)
    bright = showers(len(particle), seed=4)
    bright[:, 6, 6] += 20
    dim = showers(len(particle), seed=5)
    swapped = (np.random.default_rng(6).random(10) < 0.5)[particle][:, None, None]
    test = make_events(np.where(swapped, dim, bright), particle, PLAIN)
    generated = np.where(swapped, bright, dim)
    # A new particle's look is a coin that the others say nothing about.
    assert two_sample_test(test, generated, seed=1).auc < 0.7
    apart = replace(test, particle=np.arange(len(test)))
    assert two_sample_test(apart, generated, seed=1).auc > 0.9
    # the network does not know the particle, and the looks are as many of each kind
    assert abs(image_test(test, generated, seed=1) - 0.5) < 0.3


def test_an_image_gives_the_same_again_and_disturbs_nobody() -> None:
    test = make_events(showers(200, seed=9), np.arange(200) // 5, PLAIN)
    generated = np.roll(showers(200, seed=10), 1, axis=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (image_test(test, generated, seed, at_most=150) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.rand(3), expected)


def test_importance_finds_the_one_feature_that_differs() -> None:
    test = make_events(showers(600, seed=7), np.arange(600), PLAIN)
    # moving all light to the right changes nothing but the centre's column
    result = two_sample_test(test, np.roll(showers(600, seed=8), 2, axis=2), 1, importances=True)
    assert result.auc > 0.9
    first, *others = result.importances["importance"]
    assert result.importances["feature"][0] == "centre column"
    # without it nothing is left that tells the two apart; what noise was learnt matters little
    assert first == pytest.approx(result.auc - 0.5, abs=0.05)
    assert max(map(abs, others)) < 0.02
    names = response_features(test.responses[:1], np.zeros(1), PLAIN).columns
    assert set(result.importances["feature"]) == set(names)
    assert len(result.importances) == len(names)


def test_a_seed_gives_the_same_result_again() -> None:
    test = make_events(showers(300, seed=9), np.arange(300) // 5, PLAIN)
    generated = np.roll(showers(300, seed=10), 1, axis=2)
    first, again, other = (
        two_sample_test(test, generated, seed, importances=True, at_most=200) for seed in (1, 1, 2)
    )
    assert first.auc == again.auc != other.auc
    pd.testing.assert_frame_equal(first.importances, again.importances)
    without = two_sample_test(test, generated, seed=1, at_most=200)
    assert without.auc == first.auc
    assert list(without.importances) == list(first.importances)
    assert len(without.importances) == 0


def test_of_many_pairs_a_random_part_is_used() -> None:
    """The first half of the answers are copies and the second is dark: 0.5 and 1 by themselves."""
    responses = showers(400, seed=11)
    test = make_events(responses, np.arange(400), PLAIN)
    generated = responses.copy()
    generated[200:] = 0
    auc = {n: two_sample_test(test, generated, seed=1, at_most=n).auc for n in (200, 400, 500)}
    assert auc[400] == auc[500]
    assert 0.7 < auc[400] < 0.9
    assert auc[200] == pytest.approx(auc[400], abs=0.05)


def test_what_cannot_be_tested_is_refused() -> None:
    responses = showers(12, seed=12)
    test = make_events(responses, np.arange(12), PLAIN)
    for wrong in (responses[:11], responses[:, :11], responses.reshape(12, -1)):
        with pytest.raises(EvaluationError, match=r"generated: expected \(12, 12, 12\)"):
            two_sample_test(test, wrong, seed=1)
    with pytest.raises(EvaluationError, match="at least 10 pairs of responses, got 9"):
        two_sample_test(test[:9], responses[:9], seed=1)
    with pytest.raises(EvaluationError, match="at least 10 pairs of responses, got 3"):
        two_sample_test(test, responses, seed=1, at_most=3)
    assert two_sample_test(test[:10], responses[:10], seed=1).auc == 0.5
    with pytest.raises(EvaluationError, match=r"generated: expected \(12, 12, 12\)"):
        image_test(test, responses[:, :11], seed=1)
    with pytest.raises(EvaluationError, match=r"image test: expected at least 10 pairs.*got 3"):
        image_test(test, responses, seed=1, at_most=3)
    # rounding differs with the place in a batch
    assert image_test(test[:10], responses[:10], seed=1) == pytest.approx(0.5, abs=0.1)


def test_figure_has_bars_for_the_features_that_matter_most_to_any_model() -> None:
    names = [f"feature {k}" for k in range(15)]
    teacher = np.linspace(0.3, -0.01, 15)
    student = np.where(np.arange(15) == 14, 0.2, 0.0)  # between teacher's features 4 and 5
    frames = [
        pd.DataFrame({"model": model, "feature": names, "importance": falls})
        for model, falls in (("teacher", teacher), ("bs", student))
    ]
    figure = importance_figure(pd.concat(frames))
    figure.draw_without_rendering()
    assert [axis.get_title() for axis in figure.axes] == ["teacher", "bs"]
    shown = [*range(5), 14, *range(5, 11)]
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == [names[k] for k in shown]
    assert figure.axes[0].yaxis_inverted()
    for axis, falls in zip(figure.axes, (teacher, student), strict=True):
        (bars,) = axis.containers
        np.testing.assert_allclose([bar.get_width() for bar in bars], falls[shown])
    assert "fall of the AUC" in figure.get_supxlabel()


def test_the_classifier_is_imported_only_when_it_is_used() -> None:
    code = "import sys, zdc_nb.evaluation; sys.exit(bool({'sklearn', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
