"""Subsets, whole particles and the split, on hand-made and random sets."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from zdc_nb.data.events import FEATURES, Events, cap, select_subset, split_by_response
from zdc_nb.params import PDG


def make_events(groups: list[int], pdg: int = 22) -> Events:
    """Dark responses to particles that differ in energy, with ``groups`` repeats each.

    The first fibre counts the responses, so that each can be told from all others.
    """
    count = sum(groups)
    features = np.zeros((count, len(FEATURES)))
    features[:, 0] = 1.0 + np.repeat(np.arange(len(groups)), groups)
    responses = np.zeros((count, 44, 44), np.uint16)
    responses[:, 0, 0] = np.arange(count)
    return Events.from_arrays(np.full(count, pdg, np.int32), features, responses)


def identity(events: Events) -> list[int]:
    return [int(k) for k in events.responses[:, 0, 0]]


def test_particles_are_told_apart_by_species_and_every_feature() -> None:
    features = np.ones((12, len(FEATURES)))
    for column in range(len(FEATURES)):
        features[column + 1, column] = 2.0
    pdg = np.full(12, 22, np.int32)
    pdg[11] = 2112
    features[10:] = 1.0
    events = Events.from_arrays(pdg, features, np.zeros((12, 44, 44), np.uint16))
    assert len(np.unique(events.particle)) == 11
    assert events.particle[0] == events.particle[10]
    assert events.particle[0] != events.particle[11]


@pytest.mark.parametrize(
    ("pdg", "features", "responses", "message"),
    [
        ((3,), (3, 9), (3, 44, 43), "responses: expected"),
        ((3,), (3, 8), (3, 44, 44), "features: expected \\(3, 9\\)"),
        ((3,), (2, 9), (3, 44, 44), "features: expected \\(3, 9\\)"),
        ((2,), (3, 9), (3, 44, 44), "pdg: expected \\(3,\\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    pdg: tuple[int], features: tuple[int, int], responses: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Events.from_arrays(
            np.zeros(pdg, np.int32), np.zeros(features), np.zeros(responses, np.uint16)
        )


def test_photon_sum_does_not_overflow_16_bits() -> None:
    full = np.full((1, 44, 44), 65535, np.uint16)
    events = Events.from_arrays(np.zeros(1, np.int32), np.zeros((1, 9)), full)
    assert events.photon_sum.tolist() == [44 * 44 * 65535]


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.sampled_from([-1.5, -0.0, 0.0, 2.0])] * 9), max_size=30),
    data=st.data(),
)
def test_particles_are_numbered_as_numpy_numbers_unique_rows(
    rows: list[tuple[float, ...]], data: st.DataObject
) -> None:
    codes = st.lists(st.sampled_from([-211, 22, 2112]), min_size=len(rows), max_size=len(rows))
    pdg = np.array(data.draw(codes), np.int32)
    features = np.array(rows).reshape(-1, 9)
    events = Events.from_arrays(pdg, features, np.zeros((len(rows), 44, 44), np.uint16))
    table = np.column_stack([pdg, features])
    expected = np.unique(table, axis=0, return_inverse=True)[1] if rows else np.array([])
    np.testing.assert_array_equal(events.particle, expected.reshape(-1))


def random_events(count: int, seed: int) -> tuple[Events, NDArray[np.uint16]]:
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 65536, (count, 44, 44), np.uint16)
    dense[rng.random(dense.shape) > 0.03] = 0
    features = rng.integers(0, 2, (count, 9)).astype(np.float64)
    return Events.from_arrays(np.full(count, 22, np.int32), features, dense), dense


@pytest.mark.parametrize(
    "index",
    [slice(3, 9), slice(None, None, -1), slice(0, 0), np.array([5, 5, 0]), np.arange(20) % 3 == 0],
    ids=map(str, range(5)),
)
def test_what_is_chosen_is_what_numpy_chooses(index: slice | NDArray[Any]) -> None:
    events, dense = random_events(20, 0)
    chosen, expected = events[index], dense[index]
    np.testing.assert_array_equal(chosen.responses, expected)
    assert chosen.responses.dtype == np.uint16
    np.testing.assert_array_equal(chosen.photon_sum, expected.sum((1, 2), dtype=np.int64))
    np.testing.assert_array_equal(chosen.lit_fibres, np.count_nonzero(expected, axis=(1, 2)))
    assert len(chosen) == len(expected)


def test_parts_are_joined_and_their_particles_numbered_anew() -> None:
    events, _ = random_events(40, 1)
    parts = [events[30:], events[:0], events[:30]]
    together = Events.join([Events.from_arrays(p.pdg, p.features, p.photons) for p in parts])
    expected = events[np.r_[30:40, 0:30]]
    for name in ("pdg", "features", "responses", "particle"):
        np.testing.assert_array_equal(getattr(together, name), getattr(expected, name))


def test_a_sparse_matrix_in_any_form_gives_the_same_events() -> None:
    events, dense = random_events(12, 2)
    place = np.nonzero(dense.reshape(12, -1))
    order = np.random.default_rng(0).permutation(len(place[0]))
    shuffled = sparse.coo_array(
        (
            np.r_[dense.reshape(12, -1)[place][order], np.zeros(3, np.uint16)],
            (np.r_[place[0][order], 0, 1, 2], np.r_[place[1][order], 5, 6, 7]),
        ),
        shape=(12, 1936),
    )
    same = Events.from_arrays(events.pdg, events.features, shuffled)
    np.testing.assert_array_equal(same.responses, dense)
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(same.photons, name), getattr(events.photons, name))


def test_a_change_of_the_dense_responses_is_refused() -> None:
    events, _ = random_events(2, 3)
    with pytest.raises(ValueError, match="read-only"):
        events.responses[0] = 0


def test_responses_take_little_memory() -> None:
    events, dense = random_events(500, 4)
    photons = events.photons
    assert (
        sum(a.nbytes for a in (photons.data, photons.indices, photons.indptr)) < 0.2 * dense.nbytes
    )
    tracemalloc.start()
    train, _, _, _ = split_by_response(
        cap(select_subset(events, "all"), 400, 0), (0.7, 0.1, 0.2), 0
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(train) == 280
    assert peak < 0.5 * dense.nbytes


@pytest.mark.parametrize("subset", ["n", "lambda", "k0s", "sigma+"])
def test_a_subset_is_one_species_and_all_is_everything(subset: str) -> None:
    events = make_events([2] * 8)
    codes = [2112, 3122, 310, 3222, -2112, -3122, 22, 0]
    events = Events.from_arrays(
        np.repeat(codes, 2).astype(np.int32), events.features, events.responses
    )
    expected = [k for k, pdg in enumerate(events.pdg) if pdg == PDG[subset]]
    assert identity(select_subset(events, subset)) == expected
    assert len(expected) == 2
    assert identity(select_subset(events, "all")) == list(range(16))


def test_a_subset_without_responses_is_named() -> None:
    with pytest.raises(ValueError, match="none of the 3 responses belongs to the subset 'k0s'"):
        select_subset(make_events([3]), "k0s")


@settings(deadline=None)
@given(
    groups=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    at_most=st.integers(1, 120),
    seed=st.integers(0, 2**32),
)
def test_thinning_keeps_whole_particles_but_the_last(
    groups: list[int], at_most: int, seed: int
) -> None:
    events = make_events(groups)
    thinned = cap(events, at_most, seed)
    assert len(thinned) == min(at_most, len(events))
    assert identity(thinned) == sorted(set(identity(thinned)))
    labels, counts = np.unique(thinned.particle, return_counts=True)
    cut = sum(
        count != groups[int(events.features[events.particle == label][0, 0]) - 1]
        for label, count in zip(labels, counts, strict=True)
    )
    assert cut <= 1
    assert identity(cap(events, at_most, seed)) == identity(thinned)


def test_thinning_depends_on_the_seed_and_grows_with_the_limit() -> None:
    events = make_events([5] * 40)
    picks = {seed: set(identity(cap(events, 50, seed))) for seed in range(4)}
    assert len({frozenset(pick) for pick in picks.values()}) == 4
    for seed, pick in picks.items():
        assert pick < set(identity(cap(events, 100, seed)))


@settings(deadline=None)
@given(count=st.integers(10, 300), seed=st.integers(0, 2**63 - 1))
def test_the_split_is_a_partition_of_the_asked_sizes(count: int, seed: int) -> None:
    events = make_events([count])
    parts = split_by_response(events, (0.7, 0.1, 0.2), seed)[:3]
    assert sorted(k for part in parts for k in identity(part)) == list(range(count))
    for part, fraction in zip(parts, (0.7, 0.1, 0.2), strict=True):
        assert abs(len(part) - fraction * count) <= 1
    again = split_by_response(events, (0.7, 0.1, 0.2), seed)[:3]
    assert [identity(part) for part in again] == [identity(part) for part in parts]


def test_another_seed_splits_otherwise_and_repeats_go_to_all_parts() -> None:
    events = make_events([50] * 4)
    first, second = (split_by_response(events, (0.7, 0.1, 0.2), seed)[:3] for seed in (1, 2))
    assert identity(first[2]) != identity(second[2])
    assert [sorted(set(part.particle)) for part in first] == [[0, 1, 2, 3]] * 3


def test_a_part_keeps_the_numbers_of_its_particles() -> None:
    events = make_events([3, 4, 5])
    for part in split_by_response(events, (0.5, 0.25, 0.25), 0):
        np.testing.assert_array_equal(part.particle, events.particle[identity(part)])
        np.testing.assert_array_equal(part.features, events.features[identity(part)])


def test_too_few_responses_to_split_are_refused() -> None:
    with pytest.raises(ValueError, match="4 responses are too few to split"):
        split_by_response(make_events([4]), (0.7, 0.1, 0.2), 0)
