"""Particles seen and never seen: what is near, what is remembered, and what is tested on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import ks_2samp

from tests.event_sets import make_events, small_detector
from tests.projects import ROOT
from zdc_nb.data.events import Events, impact_point
from zdc_nb.data.figures import save_figure
from zdc_nb.data.simulation import simulate
from zdc_nb.evaluation import evaluate, matched_runs, nearest, new_particles, resample
from zdc_nb.evaluation.comparison import (
    LEVEL,
    Resampled,
    errors_by_particle,
    join_trainings,
    over_floor,
)
from zdc_nb.evaluation.metrics import Observed, observe
from zdc_nb.evaluation.nearest import ENERGY_STEP, nearest_particle, nearest_response
from zdc_nb.evaluation.new_particles import (
    COPIED,
    FLOOR,
    distance_figure,
    errors_by_distance,
    memorisation,
    memorisation_figure,
    memorisation_table,
    new_particle_findings,
    remembering,
    seen_and_new,
    seen_and_new_figure,
    seen_and_new_pivot,
)
from zdc_nb.params import PathParams, Study, Subset, load_study
from zdc_nb.study.counterpart import ParticlePart, particle_parts
from zdc_nb.study.dataset import new_particles as simulate_new
from zdc_nb.study.dataset import study_events, study_split

SMOKE = load_study(ROOT / "params" / "smoke.yaml")


@pytest.fixture(scope="module")
def simulated() -> tuple[Events, Events]:
    """What was learned from, and responses to other particles."""
    return simulate(1500, 3, 10, seed=1), simulate(600, 20, 10, seed=2)


# --- Distances


def test_the_nearest_particle_is_that_of_a_search_through_all(
    simulated: tuple[Events, Events],
) -> None:
    train, test = simulated
    train = train[train.pdg != 22]  # of photons nothing was learned
    found = nearest_particle(train, test)
    labels = np.unique(test.particle)
    assert found.shape == labels.shape
    for label, distance in zip(labels[::7], found[::7], strict=True):
        mine = test[test.particle == label][:1]
        best = np.inf
        for k in np.flatnonzero(train.pdg == mine.pdg[0]):
            theirs = train[k : k + 1]
            away = impact_point(mine.features, mine.detector) - impact_point(
                theirs.features, theirs.detector
            )
            energy = np.log(mine.features[0, 0] / theirs.features[0, 0]) / ENERGY_STEP
            best = min(best, float(np.sqrt(((away / 0.0016) ** 2).sum() + energy**2)))
        assert distance == pytest.approx(best, rel=1e-9)
    photons = np.array([test.pdg[test.particle == label][0] == 22 for label in labels])
    np.testing.assert_array_equal(np.isinf(found), photons)
    # a particle that was learned from is at 0
    assert nearest_particle(test, test).max() == 0


@pytest.mark.parametrize("chunk", [7, 2048])
def test_the_nearest_response_is_that_of_hellinger_distances(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "_CHUNK", chunk)
    detector = small_detector()
    rng = np.random.default_rng(3)
    train = rng.poisson(rng.uniform(0, 0.2, (40, 1)), (40, detector.dim))
    mine = rng.poisson(0.1, (9, detector.dim))
    mine[2], mine[3] = 5 * train[7], 0
    train[11] = 0
    found = nearest_response(
        sparse.csr_array(train.astype(np.uint16)), sparse.csr_array(mine.astype(np.uint16))
    )
    for response, distance in zip(mine, found, strict=True):
        expected = 1.0
        for other in train:
            if response.sum() and other.sum():
                roots = np.sqrt(response / response.sum()) - np.sqrt(other / other.sum())
                expected = min(expected, float(np.sqrt(0.5 * (roots**2).sum())))
        assert distance == pytest.approx(expected, abs=4e-4)
    assert found[2] < 1e-3  # the same light, five times as much of it
    assert found[3] == 1
    assert nearest_response(sparse.csr_array((0, 4)), sparse.csr_array((2, 4))).tolist() == [1, 1]


# --- Errors


def answered(test: Events, seed: int, runs: int = 2) -> Observed:
    """Generations that belong to other particles."""
    parts = [
        observe(make_events((test.particle + 1) % 9, seed + run).responses, test.detector)
        for run in range(runs)
    ]
    return Observed(*(np.stack(part) for part in zip(*parts, strict=True)))


def test_errors_by_particle_add_up_to_the_metrics() -> None:
    test = make_events(np.repeat(np.arange(9), [1, 2, 9, 3, 5, 4, 2, 7, 1]), seed=1)
    generated = make_events((test.particle + 1) % 9, 5).responses
    found = errors_by_particle(test, answered(test, 5, runs=1))
    metrics = evaluate(test, generated)
    assert found["particle"].tolist() == list(range(9))
    for name in ("MAE_cw", "centre MAE", "radius MAE"):
        mean = np.average(found[name], weights=found["responses"])
        assert mean == pytest.approx(metrics[name], rel=1e-12)
    # of two generations the mean
    twice = errors_by_particle(test, answered(test, 5))
    other = errors_by_particle(test, answered(test, 6, runs=1))
    np.testing.assert_allclose(twice["MAE_cw"], (found["MAE_cw"] + other["MAE_cw"]) / 2)


def shifted(test: Events, offset: float) -> Observed:
    """One generation whose channels are too large by so many photons, particle for particle."""
    simulated = observe(test.responses, test.detector)
    _, index = np.unique(test.particle, return_inverse=True)
    own = np.linspace(0.5, 1.5, len(np.unique(test.particle)))[index][:, None]
    parts = [simulated.channels + offset * own, simulated.centre + 0.1, simulated.radius + 0.1]
    return Observed(*(part[None] for part in parts))


def models_of(test: Events, offsets: Mapping[str, float], seed: int) -> dict[str, Resampled]:
    return {
        name: resample(test, {1: shifted(test, offset)}, 200, seed)
        for name, offset in offsets.items()
    }


def numbers(table: pd.DataFrame, model: str, *columns: str) -> list[float]:
    """Of the row of one model."""
    return [float(value) for value in table.loc[[model], list(columns)].to_numpy()[0]]


def test_what_remembering_is_worth_is_the_ratio_of_ratios() -> None:
    seen = make_events(np.repeat(np.arange(15), 3), seed=1)
    new = make_events(np.repeat(np.arange(20, 42), 4), seed=2)
    parts = {
        "seen": models_of(seen, {FLOOR: 4.0, "teacher": 6.0, "splitting": 8.0}, 0),
        "new": models_of(new, {FLOOR: 10.0, "teacher": 45.0, "splitting": 20.0}, 1),
    }
    table, gaps = seen_and_new(parts), remembering(parts)
    mae = table[table["metric"] == "MAE_cw"].set_index(["part", "model"])
    assert mae.loc[("new", "teacher"), "ratio"] == pytest.approx(4.5)
    assert mae.loc[("seen", "splitting"), "ratio"] == pytest.approx(2.0)
    assert (mae["ratio_low"] <= mae["ratio"] + 1e-9).all()
    assert (mae.loc[mae.index.get_level_values("model") == FLOOR, "ratio"] == 1).all()
    found = gaps[gaps["metric"] == "MAE_cw"].set_index("model")
    assert list(found.index) == ["teacher", "splitting"]
    # the errors of all models grow alike from particle to particle: nothing is left to chance
    assert numbers(found, "teacher", "gap", "low", "high") == pytest.approx([3, 3, 3])
    assert numbers(found, "splitting", "gap", "low", "high") == pytest.approx([1, 1, 1])
    said = new_particle_findings(table, gaps, pd.DataFrame(), pd.DataFrame())
    assert "it remembers): teacher 3.00 [3.00, 3.00]" in said
    assert "splitting, 20.0 photons" in said
    # without a floor, as of data that nobody can simulate again
    alone = {"new": {name: parts["new"][name] for name in ("teacher", "splitting")}}
    table, gaps = seen_and_new(alone), remembering(alone)
    assert gaps.empty
    assert table["ratio"].isna().all()
    said = new_particle_findings(table, gaps, pd.DataFrame(), pd.DataFrame())
    assert "Particles learned from, simulated anew are not shown" in said
    assert "No floor for particles never seen" in said
    assert "nan" not in said


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    """Errors of model and floor vary from particle to particle; their means are 2 to 1."""
    test = make_events(np.repeat(np.arange(60), 2), seed=3)
    simulated = observe(test.responses, test.detector)
    _, index = np.unique(test.particle, return_inverse=True)
    rng = np.random.default_rng(5)

    def drawn(mean: float, hard: NDArray[np.float64], training: float) -> Resampled:
        trainings = {}
        for seed in (1, 2, 3):
            size = mean * hard * rng.gamma(4, 0.25, 60) * (1 + training * rng.standard_normal())
            values = simulated.channels + size[index][:, None]
            parts = values, simulated.centre + 0.1, simulated.radius + 0.1
            trainings[seed] = Observed(*(part[None] for part in parts))
        return resample(test, trainings, 200)

    held, repetitions = 0, 100
    for _ in range(repetitions):
        hard = rng.gamma(2, 0.5, 60)
        floor = drawn(10.0, hard, 0.0)
        floor = replace(floor, found={k: v[:1] for k, v in floor.found.items()})
        floor = replace(floor, drawn={k: v[:1] for k, v in floor.drawn.items()})
        value, draws = over_floor(drawn(20.0, hard, 0.1), floor)["MAE_cw"]
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        held += low <= 2 <= high
        assert low < value < high
    assert 0.88 <= held / repetitions <= 1


def test_what_a_training_is_worth_on_both_parts_is_no_gap() -> None:
    """Trainings far apart from each other, each of which is twice as far off on new particles."""
    parts = {}
    for number, (part, factor) in enumerate({"seen": 1.0, "new": 2.0}.items()):
        first = 20 * number
        test = make_events(np.repeat(np.arange(first, first + 15 + number), 3), seed=number)
        trainings = {k: shifted(test, 10.0 * k * factor) for k in (1, 2, 5)}
        floor = resample(test, {1: shifted(test, 10.0)}, 200, number)
        parts[part] = {"teacher": resample(test, trainings, 200, number), FLOOR: floor}
    found = remembering(parts).set_index(["model", "metric"])
    row = found.loc[[("teacher", "MAE_cw")]].to_numpy()[0]
    assert row.tolist() == pytest.approx([2, 2, 2])
    table = seen_and_new(parts).query("part == 'new' and model == 'teacher' and metric == 'MAE_cw'")
    wide = table[["ratio_low", "ratio_high"]].to_numpy()[0]
    assert wide[1] - wide[0] > 2


def test_trainings_with_tests_of_their_own_are_joined() -> None:
    tests = [make_events(np.repeat(np.arange(first, first + 9), 3), first) for first in (0, 10)]
    each = [resample(test, {k: answered(test, k)}, 30, k) for k, test in enumerate(tests)]
    joined = join_trainings(each)
    assert joined.seeds == (0, 1)
    assert joined.found["WS"].tolist() == [float(one.found["WS"][0]) for one in each]
    np.testing.assert_array_equal(joined.drawn["MAE_cw"][1], each[1].drawn["MAE_cw"][0])


def by_particle(values: NDArray[np.float64], responses: NDArray[np.int64]) -> pd.DataFrame:
    labels = np.arange(len(values))
    return pd.DataFrame({"particle": labels, "responses": responses, "MAE_cw": values})


def test_classes_of_distance_hold_equal_numbers_and_their_own_means() -> None:
    rng = np.random.default_rng(0)
    responses = rng.integers(1, 9, 41)
    distance = rng.permutation(np.arange(41.0) + 1)
    distance[5] = np.inf
    floor, model = rng.uniform(1, 2, 41), rng.uniform(2, 6, 41)
    seen = {FLOOR: np.full(8, 2.0), "teacher": np.full(8, 3.0)}
    errors = {
        "seen": {name: by_particle(values, np.ones(8, int)) for name, values in seen.items()},
        "new": {
            name: by_particle(values, responses)
            for name, values in {FLOOR: floor, "teacher": model}.items()
        },
    }
    found = errors_by_distance(errors, distance)
    mine = found[found["model"] == "teacher"]
    assert mine["particles"].tolist() == [8, 10, 10, 10, 10]
    assert mine[["value", "low", "high", "ratio"]].iloc[0].tolist() == [3.0, 3.0, 3.0, 1.5]
    for row in mine.iloc[1:].to_dict("records"):
        here = (row["least"] <= distance) & (distance <= row["most"])
        assert here.sum() == row["particles"]
        means = [np.average(v[here], weights=responses[here]) for v in (model, floor)]
        assert row["value"] == pytest.approx(means[0])
        assert row["ratio"] == pytest.approx(means[0] / means[1])
        assert row["ratio_low"] < row["ratio"] < row["ratio_high"]
        # as wide as the standard error of a weighted mean says
        weights = responses[here] / responses[here].sum()
        error = np.sqrt((weights**2 * (model[here] - means[0]) ** 2).sum())
        assert row["high"] - row["low"] == pytest.approx(3.92 * error, rel=0.35)
    few = errors_by_distance(
        {"new": {"teacher": by_particle(model[:6], responses[:6])}}, distance[:6]
    )
    assert few["particles"].tolist() == [5]
    assert few["ratio"].isna().all()
    none = {"new": {"teacher": by_particle(model[:3], responses[:3])}}
    assert errors_by_distance(none, np.full(3, np.inf)).empty


# --- Memorisation


@pytest.fixture(scope="module")
def distances() -> pd.DataFrame:
    """Of a copier, of new simulations, and of a generator that knows nothing of showers."""
    train = simulate(1500, 30, 10, seed=1)
    again = train[::2]
    test, other = train[1::2][:450], train[1::2][450:]
    known = np.isin(test.particle, again.particle) & np.isin(test.particle, other.particle)
    test = test[known]
    rng = np.random.default_rng(2)
    fresh = next(matched_runs(other, test, 1, 0).generations)
    copied = next(matched_runs(again, test, 1, 0).generations)
    noise = np.stack([rng.permutation(r.ravel()).reshape(44, 44) for r in test.responses])
    answers = {"teacher": noise, "splitting": fresh, COPIED: copied}
    return memorisation(again, test, answers, seed=4)


def test_a_copier_is_found_and_new_simulations_are_not(distances: pd.DataFrame) -> None:
    table = memorisation_table(distances).set_index("model")
    assert list(table.index) == ["teacher", "splitting", COPIED]
    low, copies = numbers(table, COPIED, "low", "copies")
    assert low > 0.9
    assert copies > 0.5
    high, copies = numbers(table, "teacher", "high", "copies")
    assert high < 0.2
    assert copies == 0
    said = new_particle_findings(
        pd.DataFrame(columns=["part", "ratio", "metric", "model"]),
        pd.DataFrame(columns=["model", "metric", "gap", "low", "high"]),
        pd.DataFrame(),
        table.reset_index(),
    )
    assert "farther: teacher 0." in said
    assert "what pure memory would give: copied" in said


def test_memorisation_is_counted_response_by_response(distances: pd.DataFrame) -> None:
    table = memorisation_table(distances).set_index("model")
    for name in table.index:
        pairs = zip(distances[name], distances["test"], strict=True)
        counted = [1.0 if mine < theirs else 0.5 * (mine == theirs) for mine, theirs in pairs]
        low, closer, high = numbers(table, str(name), "low", "closer", "high")
        assert closer == pytest.approx(np.mean(counted))
        assert low <= closer <= high
    equal = memorisation_table(distances.assign(teacher=distances["test"])).set_index("model")
    assert numbers(equal, "teacher", "closer", "low", "high") == [0.5, 0.5, 0.5]


def test_a_sample_is_seeded_and_small(
    simulated: tuple[Events, Events], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_particles, "SAMPLED", 50)
    train, test = simulated
    answers = {"teacher": test.responses}
    one, same, other = (memorisation(train, test, answers, seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, same)
    assert len(one) == 50
    assert not one.equals(other)
    np.testing.assert_array_equal(one["teacher"], one["test"])


# --- What is tested on


def study_of(tmp_path: Path, **data: Any) -> Study:
    paths = PathParams(artifacts=str(tmp_path), reports=str(tmp_path))
    update = {"responses": 3000, "max_responses": {}, **data}
    return SMOKE.model_copy(update={"paths": paths, "data": SMOKE.data.model_copy(update=update)})


BY_PARTICLE = {"split": "by_particle", "repeats": 3, "test_repeats": 40, "reserved": 0.75}


def parts_of(study: Study, subset: Subset) -> tuple[Events, dict[str, ParticlePart]]:
    split = study_split(study, subset, study_events(study))
    found = particle_parts(study, subset, split)
    for part in found.values():
        if part.rows is not None:
            np.testing.assert_array_equal(part.test.features, split.test[part.rows].features)
        if part.reserved is not None:
            assert np.isin(part.test.particle, part.reserved.particle).all()
    return split.train, found


def rows(events: Events) -> set[bytes]:
    table = np.column_stack([events.pdg, events.features])
    return {row.tobytes() for row in table}


@pytest.mark.parametrize("subset", ["all", "n"])
def test_split_by_particle_the_seen_are_simulated_again(tmp_path: Path, subset: Subset) -> None:
    train, parts = parts_of(study_of(tmp_path, **BY_PARTICLE), subset)
    assert list(parts) == ["seen", "new"]
    seen, new = parts["seen"], parts["new"]
    assert seen.rows is None
    assert new.rows is not None
    assert rows(seen.test) <= rows(train)
    assert not rows(new.test) & rows(train)
    # further responses, which no training had
    assert seen.reserved is not None
    for part in (seen.test, seen.reserved):
        bright = part[part.photon_sum > 60]
        assert not {r.tobytes() for r in bright.responses} & {r.tobytes() for r in train.responses}
    assert len(seen.reserved) > 2 * len(seen.test)
    assert 50 < len(np.unique(seen.test.particle)) <= 100
    if subset == "n":
        assert {*seen.test.pdg} == {2112}


@pytest.mark.parametrize("subset", ["all", "n"])
def test_split_by_response_the_new_are_simulated(tmp_path: Path, subset: Subset) -> None:
    study = study_of(tmp_path)
    train, parts = parts_of(study, subset)
    seen, new = parts["seen"], parts["new"]
    assert rows(seen.test) <= rows(train)
    assert not rows(new.test) & rows(train)
    assert seen.reserved is not None
    assert new.rows is None
    assert new.reserved is not None
    # about as many test responses to a particle, so that means are as uncertain
    counts = [np.unique(part.test.particle, return_counts=True)[1].mean() for part in (seen, new)]
    assert counts[1] == pytest.approx(counts[0], rel=0.35)
    assert len(new.test) + len(new.reserved) <= 100 * study.data.repeats
    _, again = parts_of(study, subset)
    np.testing.assert_array_equal(again["new"].test.responses, new.test.responses)


def test_unique_particles_are_new_though_the_split_is_by_response(tmp_path: Path) -> None:
    train, parts = parts_of(study_of(tmp_path, repeats=1), "all")
    assert list(parts) == ["new"]
    assert not rows(parts["new"].test) & rows(train)
    # simulated often enough to have means
    assert np.unique(parts["new"].test.particle, return_counts=True)[1].max() > 1


def test_files_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    study = study_of(tmp_path / "own")
    study_events(study)
    file = str(study.artifacts / "data.root")
    for changes, expected in (
        ({}, {"seen", "new"}),
        ({"split": "by_particle", "reserved": 0.5}, {"new"}),
    ):
        of_file = study_of(tmp_path / "other", file=file, **changes)
        train, parts = parts_of(of_file, "all")
        assert set(parts) <= expected
        assert all(part.rows is not None for part in parts.values())
        if "seen" in parts:
            assert rows(parts["seen"].test) <= rows(train)
        if "new" in parts:
            assert not rows(parts["new"].test) & rows(train)
            assert (parts["new"].reserved is None) == (not changes)


def test_new_particles_are_those_of_the_studys_simulation(tmp_path: Path) -> None:
    study = study_of(tmp_path, abundance={"n": 5.0})
    several = simulate_new(study, "all", 1000, 2, seed=3)
    same = simulate(1000, 2, study.data.min_photons, 3, abundance={2112: 5.0})
    np.testing.assert_array_equal(several.responses, same.responses)
    alone = simulate_new(study, "n", 1000, 2, seed=3)
    assert {*alone.pdg} == {2112}
    neutrons = same[same.pdg == 2112]
    for column in (0, 4):
        assert ks_2samp(alone.features[:, column], neutrons.features[:, column]).pvalue > 1e-3
    assert ks_2samp(alone.photon_sum, neutrons.photon_sum).pvalue > 1e-3


def test_figures_are_drawn_with_and_without_a_floor(
    tmp_path: Path, distances: pd.DataFrame
) -> None:
    test = make_events(np.repeat(np.arange(40), 2), seed=1)
    for floor in ({FLOOR: 5.0}, dict[str, float]()):
        offsets = floor | {"teacher": 10.0, "bs": 12.0, "mine": 20.0}
        parts = {"seen": models_of(test, offsets, 0), "new": models_of(test, offsets, 1)}
        table, gaps = seen_and_new(parts), remembering(parts)
        pivot = seen_and_new_pivot(table, gaps)
        assert list(pivot.index) == [*floor, "teacher", "bs", "mine"]
        assert (("MAE_cw", "gap") in pivot.columns) == bool(floor)
        errors = {
            part: {name: errors_by_particle(test, shifted(test, k)) for name, k in offsets.items()}
            for part in parts
        }
        by_distance = errors_by_distance(errors, np.linspace(0.5, 30, 40))
        drawn = [
            seen_and_new_figure(table, "all"),
            distance_figure(by_distance, "all"),
            memorisation_figure(distances, "all", "seen"),
        ]
        for number, figure in enumerate(drawn):
            save_figure(figure, tmp_path / f"{number}.png", "A figure.")
        said = new_particle_findings(table, gaps, by_distance, memorisation_table(distances))
        assert "nan" not in said
        assert ("Distance to training" in said) == bool(floor)
