"""Channels, shower centre and radius, diversity: against loops, hand-made responses and symmetry."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from zdc_nb.detector import (
    ZN,
    channel_sums,
    containment_radius,
    diversity,
    diversity_weights,
    shower_centre,
)

Responses = NDArray[np.uint16]


def sparse_responses(count: int, seed: int, top: int = 44) -> Responses:
    """Few lit fibres, in rows and columns below ``top``; every tenth response is dark."""
    rng = np.random.default_rng(seed)
    responses = np.zeros((count, 44, 44), np.uint16)
    for k in range(count):
        lit = 0 if k % 10 == 9 else rng.integers(1, 60)
        where = rng.integers(top, size=(2, lit))
        responses[k, where[0], where[1]] = rng.integers(1, 600, lit)
    return responses


def one_fibre(row: int, column: int, photons: int = 1) -> Responses:
    response = np.zeros((44, 44), np.uint16)
    response[row, column] = photons
    return response


def test_each_fibre_belongs_to_one_channel() -> None:
    masks = ZN.masks
    assert masks.shape == (5, 44, 44)
    assert masks.dtype == bool
    assert (masks.sum(axis=0) == 1).all()
    assert masks.sum(axis=(1, 2)).tolist() == [968, 242, 242, 242, 242]


@pytest.mark.parametrize(
    ("row", "column", "channel"),
    [
        (0, 1, 0),
        (1, 0, 0),
        (21, 22, 0),
        (43, 42, 0),
        (0, 0, 1),
        (21, 21, 1),
        (0, 22, 2),
        (21, 43, 2),
        (22, 0, 3),
        (43, 21, 3),
        (22, 22, 4),
        (43, 43, 4),
    ],
)
def test_a_fibre_is_read_by_the_published_channel(row: int, column: int, channel: int) -> None:
    expected = [0, 0, 0, 0, 0]
    expected[channel] = 7
    assert channel_sums(one_fibre(row, column, 7), ZN).tolist() == expected


def test_channel_sums_equal_a_loop_over_fibres() -> None:
    responses = sparse_responses(30, seed=1)
    expected = np.zeros((30, 5), np.int64)
    for k, i, j in zip(*np.nonzero(responses), strict=True):
        quadrant = 1 + 2 * (i >= 22) + (j >= 22)
        expected[k, 0 if (i + j) % 2 else quadrant] += responses[k, i, j]
    sums = channel_sums(responses, ZN)
    assert sums.dtype == np.int64
    np.testing.assert_array_equal(sums, expected)


def test_channel_sums_keep_leading_axes_and_do_not_overflow() -> None:
    responses = np.full((2, 3, 44, 44), 65535, np.uint16)
    sums = channel_sums(responses, ZN)
    assert sums.shape == (2, 3, 5)
    assert sums[1, 2].tolist() == [65535 * 968, *[65535 * 242] * 4]


def test_channel_sums_of_real_numbers_stay_real() -> None:
    response = np.full((44, 44), 1 / 1936, np.float32)
    sums = channel_sums(response, ZN)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, [0.5, *[0.125] * 4], rtol=1e-6)


def test_results_do_not_depend_on_the_chunks() -> None:
    one = sparse_responses(7, seed=2)
    many = np.tile(one, (600, 1, 1))
    for measure in (channel_sums, shower_centre, containment_radius):
        np.testing.assert_array_equal(measure(many, ZN), np.concatenate([measure(one, ZN)] * 600))


@pytest.mark.parametrize("measure", [channel_sums, shower_centre, containment_radius])
def test_another_face_is_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 44, 44\), got \(3, 44, 43\)"):
        measure(np.ones((3, 44, 43)), ZN)


def brute_centre(response: Responses) -> tuple[float, float]:
    light = [(i, j, int(response[i, j])) for i in range(44) for j in range(44) if response[i, j]]
    total = sum(photons for _, _, photons in light)
    if total == 0:
        return 21.5, 21.5
    return (
        sum(i * photons for i, _, photons in light) / total,
        sum(j * photons for _, j, photons in light) / total,
    )


def brute_radius(response: Responses, percent: int) -> float:
    """Give every photon its distance, sort them, and read off the photon that is needed."""
    row, column = brute_centre(response)
    distances = sorted(
        math.dist((i, j), (row, column))
        for i in range(44)
        for j in range(44)
        for _ in range(response[i, j])
    )
    needed = -(-percent * len(distances) // 100)
    return distances[needed - 1] if distances else 0.0


@pytest.mark.parametrize("percent", [1, 50, 90, 100])
def test_centre_and_radius_equal_loops_over_photons(percent: int) -> None:
    responses = sparse_responses(20, seed=percent)
    expected = [brute_centre(response) for response in responses]
    np.testing.assert_allclose(shower_centre(responses, ZN), expected, rtol=1e-12)
    radius = containment_radius(responses, ZN, percent / 100)
    np.testing.assert_allclose(radius, [brute_radius(r, percent) for r in responses], rtol=1e-12)


def test_radius_counts_photons_exactly_at_the_threshold() -> None:
    # The centre is (10, 20): nine photons there, one pair at distance 5 that balances.
    response = one_fibre(10, 20, 18) + one_fibre(10, 15) + one_fibre(10, 25)
    assert containment_radius(response[None], ZN, 0.9).tolist() == [0.0]
    assert containment_radius(response[None], ZN, 0.91).tolist() == [5.0]


def test_no_light_and_a_single_fibre() -> None:
    responses = np.stack([np.zeros((44, 44), np.uint16), one_fibre(3, 40, 500)])
    assert shower_centre(responses, ZN).tolist() == [[21.5, 21.5], [3.0, 40.0]]
    assert containment_radius(responses, ZN).tolist() == [0.0, 0.0]
    assert channel_sums(responses, ZN).sum(axis=1).tolist() == [0, 500]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction: expected"):
        containment_radius(sparse_responses(1, seed=0), ZN, fraction)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(0, 20), columns=st.integers(0, 20))
def test_moving_a_response_moves_its_centre_alone(seed: int, rows: int, columns: int) -> None:
    responses = sparse_responses(9, seed, top=24)
    moved = np.roll(responses, (rows, columns), axis=(1, 2))
    np.testing.assert_allclose(
        shower_centre(moved, ZN),
        shower_centre(responses, ZN) + np.array([rows, columns]),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        containment_radius(moved, ZN), containment_radius(responses, ZN), rtol=1e-9, atol=1e-9
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.integers(2, 100))
def test_turning_the_face_turns_the_centre(seed: int, factor: int) -> None:
    responses = sparse_responses(9, seed)
    turned = np.rot90(responses, axes=(1, 2))
    centre = shower_centre(responses, ZN)
    expected = np.stack([43 - centre[:, 1], centre[:, 0]], axis=1)
    np.testing.assert_allclose(shower_centre(turned, ZN), expected, rtol=1e-12, atol=1e-12)
    radius = containment_radius(responses, ZN)
    np.testing.assert_allclose(containment_radius(turned, ZN), radius, rtol=1e-9)
    # On an even number of fibres a quarter turn swaps the two colours of the checkerboard.
    sums = channel_sums(responses, ZN)
    np.testing.assert_array_equal(channel_sums(turned, ZN)[:, 0], sums[:, 1:].sum(axis=1))
    # Brighter light in the same places is the same shower.
    brighter = responses.astype(np.int64) * factor
    np.testing.assert_allclose(shower_centre(brighter, ZN), centre, rtol=1e-12)
    np.testing.assert_allclose(containment_radius(brighter, ZN), radius, rtol=1e-9)
    np.testing.assert_array_equal(channel_sums(brighter, ZN), factor * sums)


def brute_diversity(responses: Responses) -> float:
    total = 0.0
    for i in range(44):
        for j in range(44):
            values = [float(response[i, j]) for response in responses]
            mean = sum(values) / len(values)
            total += math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return total


def test_diversity_equals_eq_1_by_loops() -> None:
    responses = sparse_responses(23, seed=5)
    particle = np.random.default_rng(0).choice([-4, 17, 900, 901], 23)
    expected = [brute_diversity(responses[particle == p]) for p in np.unique(particle)]
    assert len(expected) == 4
    np.testing.assert_allclose(diversity(responses, particle), expected, rtol=1e-12)


def test_diversity_of_a_sparse_matrix_is_that_of_the_same_responses() -> None:
    responses = sparse_responses(60, seed=4)
    particle = np.random.default_rng(1).integers(0, 9, 60)
    light = sparse.csr_array(responses.reshape(60, -1))
    np.testing.assert_array_equal(diversity(light, particle), diversity(responses, particle))
    with pytest.raises(ValueError, match="expected \\(60,\\) labels"):
        diversity(light, particle[1:])


def test_diversity_is_exactly_zero_for_one_or_identical_responses() -> None:
    same = sparse_responses(1, seed=3)
    responses = np.concatenate([same] * 7 + [sparse_responses(1, seed=4)])
    assert diversity(responses, np.array([1] * 7 + [2])).tolist() == [0.0, 0.0]


def test_diversity_of_bright_fibres_does_not_overflow() -> None:
    responses = np.stack([one_fibre(0, 0, 65535), one_fibre(0, 0, 1)])
    assert diversity(responses, np.array([8, 8])).tolist() == [32767.0]


@pytest.fixture
def hand_made() -> tuple[Responses, NDArray[np.int64]]:
    """Five particles, in mixed order.

    10: counts 0 and 8 in a fibre: f_div = 4, two responses
    20: counts 0 and 2 in a fibre: f_div = 1, two responses
    30: counts 0, 0, 4, 4 in a fibre: f_div = 2, four responses
    40: one response; 50: three identical ones: f_div = 0
    """
    fibre = [(10, 0), (10, 8), (20, 0), (20, 2), (30, 0), (30, 0), (30, 4), (30, 4)]
    fibre += [(40, 9), (50, 5), (50, 5), (50, 5)]
    order = [7, 0, 11, 3, 8, 5, 1, 9, 2, 6, 10, 4]
    responses = np.stack([one_fibre(30, 2, fibre[k][1]) for k in order])
    return responses, np.array([fibre[k][0] for k in order])


def test_weights_equal_eq_3_by_hand(hand_made: tuple[Responses, NDArray[np.int64]]) -> None:
    responses, particle = hand_made
    assert diversity(responses, particle).tolist() == [4.0, 1.0, 2.0, 0.0, 0.0]
    # 1 / f_div = 1/4, 1, 1/2; minmax = 0, 1, 1/3; times 2, 2, 4 responses; plus epsilon.
    by_hand = {10: 0.1, 20: 2.1, 30: 4 / 3 + 0.1, 40: 0.1, 50: 0.1}
    weights = diversity_weights(responses, particle, epsilon=0.1, mean_one=False)
    np.testing.assert_allclose(weights, [by_hand[int(p)] for p in particle], rtol=1e-12)


def test_mean_one_only_rescales(hand_made: tuple[Responses, NDArray[np.int64]]) -> None:
    responses, particle = hand_made
    plain = diversity_weights(responses, particle, epsilon=0.1, mean_one=False)
    scaled = diversity_weights(responses, particle, epsilon=0.1, mean_one=True)
    assert scaled.mean() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(scaled / plain, 12 / plain.sum(), rtol=1e-12)


@pytest.mark.parametrize("mean_one", [True, False])
def test_weights_where_no_particle_is_diverse(mean_one: bool) -> None:
    responses = np.concatenate([sparse_responses(3, seed=8)] * 2)
    weights = diversity_weights(responses, np.array([1, 2, 3, 1, 2, 3]), 0.25, mean_one)
    assert weights.tolist() == [1.0 if mean_one else 0.25] * 6


def test_weights_where_all_are_equally_diverse() -> None:
    # Two particles with f_div = 3, of two and four responses, and one alone.
    counts = [(1, 0), (1, 6), (2, 0), (2, 6), (2, 0), (2, 6), (3, 6)]
    responses = np.stack([one_fibre(4, 4, photons) for _, photons in counts])
    weights = diversity_weights(responses, np.array([p for p, _ in counts]), 0.5, mean_one=False)
    assert weights.tolist() == [2.5, 2.5, 4.5, 4.5, 4.5, 4.5, 0.5]


def test_bad_weights_are_refused() -> None:
    responses = sparse_responses(3, seed=0)
    with pytest.raises(ValueError, match="epsilon: expected a positive value, got 0"):
        diversity_weights(responses, np.array([1, 2, 3]), 0, mean_one=True)
    with pytest.raises(ValueError, match=r"particle: expected \(3,\) labels, got \(2,\)"):
        diversity(responses, np.array([1, 2]))
