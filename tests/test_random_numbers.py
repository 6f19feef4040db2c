"""Many random numbers out of ten normal ones: exact, alike in an ONNX graph, and random."""

import itertools

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from scipy import stats
from spox import Tensor, argument, build

from zdc_nb.generator.onnx_flows import draw_states, draw_uniforms
from zdc_nb.generator.random_numbers import (
    PRIME,
    column_keys,
    rounds,
    states_from_normals,
    uniforms_from_normals,
    uniforms_from_states,
)


def some_normals(rows: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, 10), np.float32)


def extreme_normals() -> NDArray[np.float32]:
    """Zero, signs, the smallest and the largest numbers there are, in every place."""
    info = np.finfo(np.float32)
    values = [0.0, -0.0, 1e-3, -1e-3, 1.0, -1.0, 6.5, -6.5, 2048.0, -2048.0, info.max, info.min]
    values += [info.smallest_subnormal, info.tiny, -info.tiny, np.inf, -np.inf]
    rows = [np.full(10, value) for value in values]
    for value, place in itertools.product(values, range(10)):
        row = some_normals(1, 1)[0]
        row[place] = value
        rows.append(row)
    return np.array(rows, np.float32)


def exact_uniforms(normals: NDArray[np.float32], count: int) -> list[float]:
    """The same of one row (10,) in Python's integers, which have no size."""
    limbs: list[list[int]] = [[], []]
    for normal in normals:
        whole = int(max(min(float(normal), 2048.0), -2048.0) * 2**48) + 2**59
        for part, limb in zip(limbs, divmod(whole, 2**30), strict=True):
            part.append(limb)
    state = limbs[0] + limbs[1]
    for matrix, offset in rounds():
        columns = zip(*matrix.tolist(), strict=True)
        sums = [
            sum(x * m for x, m in zip(state, column, strict=True)) + c
            for column, c in zip(columns, offset.tolist(), strict=True)
        ]
        state = [pow(x, 5, PRIME) for x in sums]
    a, b = state
    found = []
    for c, d, e in zip(*(keys.tolist() for keys in column_keys(count)), strict=True):
        found.append((pow((a + c) * (b + d) + e, 5, PRIME) // 2**8 + 0.5) / 2**23)
    return found


# --- Exactness -----------------------------------------------------------------------------------


def test_no_product_overflows() -> None:
    normals = np.concatenate([some_normals(30, 2), extreme_normals()])
    uniforms = uniforms_from_normals(normals, 5)
    assert uniforms.dtype == np.float32
    for row, expected in zip(normals, uniforms.tolist(), strict=True):
        assert exact_uniforms(row, 5) == expected
    # nor would it, whatever numbers came
    for matrix, offset in rounds():
        assert (matrix.astype(object) * (PRIME - 1)).sum(0).max() + offset.max() < 2**63
    c, d, e = (int(keys.max()) for keys in column_keys(3000))
    assert (PRIME + c) * (PRIME + d) + e < 2**63


def test_numbers_never_change() -> None:
    """An exported file and the program that checks it may be years apart."""
    uniforms = uniforms_from_normals(np.zeros((1, 10), np.float32), 3)
    assert uniforms.tolist() == [[0.06725102663040161, 0.9471551775932312, 0.2644924521446228]]


def test_graphs_draw_the_same_numbers() -> None:
    argument_of = argument(Tensor(np.float32, ("N", 10)))
    states = draw_states(argument_of)
    outputs = {"states": states, "uniforms": draw_uniforms(states, 1938)}
    model = build({"normals": argument_of}, outputs)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    normals = np.concatenate([some_normals(200, 3), extreme_normals()])
    states, uniforms = session.run(None, {"normals": normals})
    assert (states == states_from_normals(normals)).all()
    assert uniforms.dtype == np.float32
    assert (uniforms == uniforms_from_normals(normals, 1938)).all()


def test_numbers_are_inside_and_fine() -> None:
    uniforms = uniforms_from_normals(some_normals(3000, 4), 2000).astype(np.float64)
    assert uniforms.min() >= 2.0**-24
    assert uniforms.max() <= 1 - 2.0**-24
    steps = uniforms * 2**24
    assert (steps % 2 == 1).all()
    # the outermost residues
    ends = np.array([0, PRIME - 1]) // 2**8
    assert ((ends + 0.5) / 2**23).tolist() == [2.0**-24, 1 - 2.0**-24]


def test_more_numbers_begin_alike() -> None:
    normals = some_normals(5, 5)
    assert (uniforms_from_normals(normals, 7) == uniforms_from_normals(normals, 100)[:, :7]).all()


@pytest.mark.parametrize("bad", [np.zeros((3, 9), np.float32), np.zeros((3, 10))])
def test_what_is_refused(bad: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"normals: expected \(N, 10\) float32, got"):
        uniforms_from_normals(bad, 3)


# --- Randomness ----------------------------------------------------------------------------------


def test_columns_are_uniform() -> None:
    uniforms = uniforms_from_normals(some_normals(4000, 6), 1938).astype(np.float64)
    # all columns together: the distribution of their p-values is uniform, too
    pvalues = stats.kstest(uniforms, "uniform", axis=0, method="asymp").pvalue
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-4
    # the upper and the lower bits
    whole = (uniforms * 2**23).astype(np.int64)
    for digits in (whole >> 15, whole & 255, (whole >> 8) & 255):
        assert stats.chisquare(np.bincount(digits.ravel(), minlength=256)).pvalue > 1e-4
    # rows, each from one state
    pvalues = stats.kstest(uniforms, "uniform", axis=1, method="asymp").pvalue
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("axis", [0, 1], ids=["columns", "rows"])
def test_no_two_are_correlated(axis: int) -> None:
    uniforms = uniforms_from_normals(some_normals(1938, 7), 1938)
    normal = stats.norm.ppf(uniforms.astype(np.float64))
    found = np.corrcoef(normal if axis else normal.T)
    pulls = found[np.triu_indices(len(found), 1)] * np.sqrt(1938)
    assert np.abs(pulls).max() < 6.5  # of two million
    assert abs(pulls.std() - 1) < 0.01
    # nor do they stand in twos and threes
    for shift in (1, 2, 64):
        pairs = (uniforms[:, :-shift] * 16).astype(int) * 16 + (uniforms[:, shift:] * 16).astype(
            int
        )
        assert stats.chisquare(np.bincount(pairs.ravel(), minlength=256)).pvalue > 1e-4
    triples = (uniforms[:, :1935] * 8).astype(int).reshape(-1, 3) @ [64, 8, 1]
    assert stats.chisquare(np.bincount(triples, minlength=512)).pvalue > 1e-4


def flipped_share(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of the bits of random numbers, those that differ."""
    a, b = ((part.astype(np.float64) * 2**23).astype(np.uint32) for part in (one, other))
    return float(np.bitwise_count(a ^ b).mean() / 23)


@pytest.mark.parametrize("size", [1.0, 1e-3], ids=["normal", "small"])
@pytest.mark.parametrize("change", ["last bit", "sign", "zero"])
def test_every_number_changes_everything(size: float, change: str) -> None:
    normals = some_normals(50, 8) * np.float32(size)
    before = uniforms_from_normals(normals, 1938)
    for place in range(10):
        other = normals.copy()
        other[:, place] = {
            "last bit": np.nextafter(normals[:, place], np.float32(9)),
            "sign": -normals[:, place],
            "zero": 0 * normals[:, place],
        }[change]
        after = uniforms_from_normals(other, 1938)
        assert abs(flipped_share(before, after) - 0.5) < 5 * 0.5 / np.sqrt(before.size * 23)
        assert (before != after).mean() > 0.999
        found = stats.pearsonr(before.ravel(), after.ravel()).statistic
        assert abs(found) < 5 / np.sqrt(before.size)


def test_plain_numbers_are_as_random() -> None:
    """Ten numbers that count up, one bit after the other: as far from random as they come."""
    normals = np.zeros((4000, 10), np.float32)
    normals[:, 0] = np.arange(4000) * np.float32(2.0**-20)
    uniforms = uniforms_from_normals(normals, 200).astype(np.float64)
    pvalues = stats.kstest(uniforms, "uniform", axis=0, method="asymp").pvalue
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-4
    pulls = [stats.pearsonr(column[1:], column[:-1]).statistic for column in uniforms.T]
    assert np.abs(pulls).max() * np.sqrt(4000) < 5


def test_the_sign_of_zero_is_none() -> None:
    zero = np.zeros((1, 10), np.float32)
    assert (uniforms_from_normals(zero, 9) == uniforms_from_normals(-zero, 9)).all()


def test_states_that_share_a_number_have_different_rows() -> None:
    near = np.array([[7, 9], [7, 10], [8, 9], [8, 10], [9, 7], [PRIME - 1, 9], [0, 0], [0, 1]])
    rows = uniforms_from_states(near, 1938)
    for one, other in itertools.combinations(rows, 2):
        assert (one == other).sum() <= 2


@pytest.mark.slow
def test_ten_million_draws_without_a_repetition() -> None:
    """Rows of latents are repeated where states are; 62 bits would do for 10^9 draws."""
    rng = np.random.default_rng(9)
    states = np.empty(10_000_000, np.int64)
    for part in np.split(states, 100):
        a, b = states_from_normals(rng.standard_normal((len(part), 10), np.float32)).T
        part[:] = a * PRIME + b
    states.sort()
    assert (np.diff(states) > 0).all()
    # and they fill their range evenly
    edges = np.linspace(0, PRIME**2, 1001).astype(np.int64)
    assert stats.chisquare(np.diff(np.searchsorted(states, edges))).pvalue > 1e-4
