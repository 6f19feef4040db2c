"""Metrics against scipy and loops, the two baselines, and what a table refuses."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from tests.event_sets import as_split, make_events
from zdc_nb.data.events import Events, Split
from zdc_nb.detector import ZN, containment_radius, shower_centre
from zdc_nb.evaluation import (
    BASELINES,
    METRICS,
    QUANTITIES,
    EvaluationError,
    baseline_evaluations,
    dataset_sizes,
    evaluate,
    evaluate_runs,
    matched_runs,
    published_table,
    relative_changes,
    resimulated_runs,
    scale_to_photon_sum,
    table1,
    table2,
    unconditional_runs,
)
from zdc_nb.params import SETUPS, SUBSETS

ALL_METRICS = (*METRICS, *(f"{q} {e}" for q, e in product(QUANTITIES, ("MAE", "RMSE"))))


@pytest.fixture(scope="module")
def train() -> Events:
    return make_events(np.repeat(np.arange(3, 20), 12), seed=1)


@pytest.fixture(scope="module")
def test() -> Events:
    """Particles 3 and 4 often, 0 to 2 without a training response, 19 alone."""
    labels = np.repeat([4, 3, 9, 0, 1, 2, 19], [15, 11, 4, 2, 2, 1, 1])
    return make_events(np.random.default_rng(6).permutation(labels), seed=2)


def generated_for(test: Events) -> NDArray[np.uint16]:
    generated = make_events(np.roll(test.particle, 3), seed=3).responses.copy()
    generated[5] = 0
    return generated


def test_table_1_metrics_equal_scipy_and_loops(test: Events) -> None:
    generated = generated_for(test)
    distances, plain, weighted = [], [], []
    for mask in ZN.masks:
        before = [int(response[mask].sum()) for response in test.responses]
        after = [int(response[mask].sum()) for response in generated]
        distances.append(wasserstein_distance(before, after))
        errors, counts = [], []
        for particle in set(test.particle.tolist()):
            mine = [k for k in range(len(test)) if test.particle[k] == particle]
            errors.append(abs(sum(before[k] - after[k] for k in mine) / len(mine)))
            counts.append(len(mine))
        plain.append(sum(errors) / len(errors))
        weighted.append(sum(e * n for e, n in zip(errors, counts, strict=True)) / len(test))
    found = evaluate(test, generated)
    assert found["WS"] == pytest.approx(np.mean(distances), rel=1e-12)
    assert found["MAE_c"] == pytest.approx(np.mean(plain), rel=1e-12)
    assert found["MAE_cw"] == pytest.approx(np.mean(weighted), rel=1e-12)


def test_table_2_metrics_equal_loops(test: Events) -> None:
    generated = generated_for(test)
    before, after = shower_centre(test.responses, ZN), shower_centre(generated, ZN)
    radius_before = containment_radius(test.responses, ZN)
    radius_after = containment_radius(generated, ZN)
    columns = {
        "centre": [(before[:, 0], after[:, 0]), (before[:, 1], after[:, 1])],
        "radius": [(radius_before, radius_after)],
    }
    found = evaluate(test, generated)
    for (name, pairs), (suffix, statistic) in product(
        columns.items(), [("", np.mean), ("_variance", np.var)]
    ):
        absolute = square = 0.0
        for (a, b), k in product(pairs, range(len(test))):
            mine = test.particle == test.particle[k]
            error = float(statistic(a[mine]) - statistic(b[mine]))
            absolute += abs(error) / len(pairs) / len(test)
            square += error**2 / len(pairs) / len(test)
        assert found[f"{name}{suffix} MAE"] == pytest.approx(absolute, rel=1e-9)
        assert found[f"{name}{suffix} RMSE"] == pytest.approx(math.sqrt(square), rel=1e-9)
        assert absolute > 0


def test_a_set_agrees_with_itself(test: Events) -> None:
    assert evaluate(test, test.responses.copy()) == dict.fromkeys(ALL_METRICS, 0.0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_order_within_a_particle_does_not_matter(test: Events, seed: int) -> None:
    generated = generated_for(test)
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(test)), test.particle))
    back = np.empty(len(test), int)
    back[np.lexsort((rng.random(len(test)), test.particle))] = order
    shuffled = evaluate(test, generated[back])
    assert shuffled == pytest.approx(evaluate(test, generated), rel=1e-9, abs=1e-9)


def test_one_more_photon_in_a_channel_shifts_its_metrics_by_one(test: Events) -> None:
    generated = test.responses.copy()
    generated[:, 0, 0] += 10
    found = evaluate(test, generated)
    assert found["WS"] == pytest.approx(10 / 5)
    assert found["MAE_c"] == pytest.approx(10 / 5)
    assert found["MAE_cw"] == pytest.approx(10 / 5)


def test_ws_does_not_see_the_particle_but_mae_does(test: Events) -> None:
    swapped = test.responses[np.random.default_rng(0).permutation(len(test))]
    found = evaluate(test, swapped)
    assert found["WS"] == 0
    assert found["MAE_c"] > 1
    assert found["MAE_cw"] > 1


def test_mae_c_counts_each_particle_once_and_mae_cw_each_response() -> None:
    reference = make_events(np.array([7, 7, 7, 8]), seed=0)
    generated = reference.responses.copy()
    generated[3, 1, 0] += 20
    found = evaluate(reference, generated)
    assert found["MAE_c"] == pytest.approx(20 / 2 / 5)
    assert found["MAE_cw"] == pytest.approx(20 / 4 / 5)


def test_a_response_too_few_is_refused(test: Events) -> None:
    with pytest.raises(ValueError, match=r"expected 36 responses.*got 35"):
        evaluate(test, test.responses[1:])


def position(responses: NDArray[np.uint16], pool: Events) -> list[int]:
    """Which response of ``pool`` each of ``responses`` is."""
    known = {response.tobytes(): k for k, response in enumerate(pool.responses)}
    assert len(known) == len(pool)
    return [known[response.tobytes()] for response in responses]


def test_reference_draws_the_same_particle_as_evenly_as_possible(
    train: Events, test: Events
) -> None:
    baseline = resimulated_runs(train, test, runs=3, seed=1)
    assert set(baseline.test.particle.tolist()) == {3, 4, 9, 19}
    assert (baseline.left_out_responses, baseline.left_out_particles) == (5, 3)
    drawn = [position(generation, train) for generation in baseline.generations]
    assert len(drawn) == 3
    assert drawn[0] != drawn[1]
    for run in drawn:
        np.testing.assert_array_equal(train.particle[run], baseline.test.particle)
        for particle, wanted in [(3, 11), (4, 15), (9, 4), (19, 1)]:
            used = [k for k in run if train.particle[k] == particle]
            times = np.unique(used, return_counts=True)[1]
            # 12 training responses a particle: 15 draws take each once and three twice.
            assert len(times) == min(wanted, 12)
            assert times.max() == (2 if wanted > 12 else 1)


def test_reference_draws_every_training_response_equally_often(train: Events) -> None:
    test = make_events(np.array([5, 5, 6]), seed=9)
    runs = 600
    used = np.zeros(len(train))
    for generation in resimulated_runs(train, test, runs, seed=4).generations:
        used[position(generation, train)] += 1
    expected = runs * (2 * (train.particle == 5) + (train.particle == 6)) / 12
    assert (used[expected == 0] == 0).all()
    sigma = np.sqrt(expected[expected > 0])
    assert (np.abs(used - expected)[expected > 0] / sigma).max() < 4.5


def test_matched_pairs_the_draws_of_reference_by_photon_sum(train: Events, test: Events) -> None:
    reference = resimulated_runs(train, test, runs=2, seed=8)
    matched = matched_runs(train, test, runs=2, seed=8)
    kept = matched.test
    assert (matched.left_out_responses, matched.left_out_particles) == (5, 3)
    np.testing.assert_array_equal(kept.particle, reference.test.particle)
    for drawn, scaled in zip(reference.generations, matched.generations, strict=True):
        np.testing.assert_array_equal(scaled.sum(axis=(1, 2)), kept.photon_sum)
        for particle in (3, 4, 9, 19):
            mine = np.flatnonzero(kept.particle == particle)
            brightest = mine[np.argmax(kept.photon_sum[mine])]
            source = max(drawn[mine], key=np.sum)
            exact = source * (kept.photon_sum[brightest] / source.sum())
            assert np.abs(scaled[brightest] - exact).max() < 1


def test_knowing_the_photon_sum_beats_the_reference() -> None:
    rng = np.random.default_rng(0)
    train, test = (
        Events.from_arrays(
            events.pdg,
            events.features,
            events.responses * rng.integers(1, 6, (len(events), 1, 1)).astype(np.uint16),
            events.particle,
        )
        for events in (make_events(np.repeat(np.arange(60), 8), seed) for seed in (1, 2))
    )
    evaluations, _ = baseline_evaluations(as_split(train, test), "n", runs=3, seed=0)
    mean = evaluations.groupby(["model", "metric"])["value"].mean()
    assert mean["reference+sum", "MAE_cw"] < 0.7 * mean["reference", "MAE_cw"]


def test_reference_needs_a_common_particle(train: Events) -> None:
    with pytest.raises(EvaluationError, match="no test particle"):
        resimulated_runs(train, make_events(np.array([1, 2]), seed=0), runs=2, seed=0)


def test_dataset_sizes_by_hand(train: Events, test: Events) -> None:
    sizes = dataset_sizes("n", Split(train, test[test.particle == 4], test, train))
    assert sizes.to_dict("list") == {
        "subset": ["n"] * 3,
        "part": ["train", "validation", "test"],
        "responses": [17 * 12, 15, 36],
        "particles": [17, 1, 7],
    }


def test_baselines_repeat_with_their_seed(train: Events, test: Events) -> None:
    for draw in (resimulated_runs, matched_runs, unconditional_runs):
        first, again, other = (draw(train, test, 2, seed) for seed in (5, 5, 6))
        for a, b, c in zip(first.generations, again.generations, other.generations, strict=True):
            np.testing.assert_array_equal(a, b)
            assert (a != c).any()


def test_ignorant_keeps_the_photon_sum_and_forgets_the_particle() -> None:
    # Each particle lights one corner of its own, so a drawn corner tells whose response it was.
    particle = np.repeat(np.arange(4), 50)
    responses = np.zeros((200, 44, 44), np.uint16)
    corners = [(0, 0), (0, 43), (43, 0), (43, 43)]
    for k, label in enumerate(particle):
        responses[k][corners[label]] = 10 + k
    train = Events.from_arrays(np.zeros(200, np.int32), np.zeros((200, 9)), responses, particle)
    test = train[np.random.default_rng(0).permutation(200)]
    baseline = unconditional_runs(train, test, runs=30, seed=0)
    assert (baseline.left_out_responses, baseline.left_out_particles) == (0, 0)
    counts = np.zeros((4, 4))
    for generation in baseline.generations:
        np.testing.assert_array_equal(generation.sum(axis=(1, 2)), test.photon_sum)
        lit = np.stack([generation[:, i, j] > 0 for i, j in corners], axis=1)
        np.testing.assert_array_equal(lit.sum(axis=1), 1)
        np.add.at(counts, (test.particle, lit.argmax(axis=1)), 1)
    # 1500 draws a row, a quarter to each corner: sigma is 17.
    assert np.abs(counts - 375).max() < 80


def test_ignorant_can_have_good_ws_and_hopeless_mae() -> None:
    train, test = (make_events(np.repeat(np.arange(60), 8), seed) for seed in (1, 2))
    evaluations, _ = baseline_evaluations(as_split(train, test), "n", runs=3, seed=0)
    mean = evaluations.groupby(["model", "metric"])["value"].mean()
    assert mean["ignorant", "MAE_cw"] > 5 * mean["reference", "MAE_cw"]
    assert mean["ignorant", "MAE_cw"] > 5 * mean["ignorant", "WS"]


def test_scaling_stays_within_a_photon_and_is_right_on_average() -> None:
    rng = np.random.default_rng(0)
    response = rng.poisson(0.3, (44, 44)).astype(np.uint16)
    response[20:23, 20:23] += 40
    own = int(response.sum())
    for wanted in (own // 3, own, 7 * own + 1):
        repeats = np.tile(response, (400, 1, 1))
        total = np.zeros((44, 44))
        for _ in range(5):
            scaled = scale_to_photon_sum(repeats, np.full(400, wanted), rng)
            np.testing.assert_array_equal(scaled.sum(axis=(1, 2)), wanted)
            exact = response * (wanted / own)
            assert np.abs(scaled - exact).max() < 1
            total += scaled.sum(axis=0)
        # A fibre is rounded up or down: sigma of its mean of 2000 is at most 0.5 / sqrt(2000).
        assert np.abs(total / 2000 - exact).max() < 5 * 0.5 / math.sqrt(2000)


def test_scaling_favours_no_channel() -> None:
    # One photon in each fibre of a row: taken in order, every second one would be kept, and the
    # common channel would get all of them or none.
    response = np.zeros((44, 44), np.uint16)
    response[10] = 1
    repeats = np.tile(response, (40, 1, 1))
    rng = np.random.default_rng(0)
    scaled = np.concatenate([scale_to_photon_sum(repeats, np.full(40, 22), rng) for _ in range(50)])
    common = scaled[:, ZN.masks[0]].sum(axis=1)
    assert common.min() > 0
    assert common.max() < 22
    assert common.mean() == pytest.approx(11, abs=1)


def test_scaling_refuses_what_a_fibre_could_not_hold() -> None:
    responses = np.zeros((2, 44, 44), np.uint16)
    responses[:, 5, 5] = 3
    rng = np.random.default_rng(0)
    scaled = scale_to_photon_sum(responses, np.array([7, 65535]), rng)
    assert scaled[:, 5, 5].tolist() == [7, 65535]
    with pytest.raises(EvaluationError, match=r"at most 65535 .*got 65536 \(response 1\)"):
        scale_to_photon_sum(responses, np.array([7, 65536]), rng)


def test_scaling_no_light_gives_no_light() -> None:
    dark = np.zeros((2, 44, 44), np.uint16)
    dark[1, 4, 4] = 1
    scaled = scale_to_photon_sum(dark, np.array([50, 0]), np.random.default_rng(0))
    assert not scaled.any()


def test_baseline_evaluations_are_tidy_and_count_what_is_left_out(
    train: Events, test: Events
) -> None:
    evaluations, left_out = baseline_evaluations(as_split(train, test), "k0s", runs=2, seed=3)
    assert list(evaluations.columns) == ["subset", "model", "metric", "run", "value"]
    # 36 responses are too few for FPD and KPD
    distances = ("sliced WS", "lit fibres", "fibre spectrum")
    names = set(product(BASELINES, (*ALL_METRICS, *distances), range(2)))
    keys = (evaluations[name] for name in ("model", "metric", "run"))
    assert set(zip(*keys, strict=True)) == names
    assert len(evaluations) == len(names)
    assert left_out.to_dict("records") == [
        {
            "subset": "k0s",
            "test_responses": 36,
            "test_particles": 7,
            "left_out_responses": 5,
            "left_out_particles": 3,
        }
    ]


def tidy(values: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """The same values for each metric, times 1, 2, 3 ... in the order of ALL_METRICS."""
    rows = [
        (subset, model, metric, run, value * factor)
        for (subset, model), runs in values.items()
        for factor, metric in enumerate(ALL_METRICS, start=1)
        for run, value in enumerate(runs)
    ]
    return pd.DataFrame(rows, columns=["subset", "model", "metric", "run", "value"])


def test_table_1_has_the_order_of_the_paper_and_sample_deviations() -> None:
    models = ("reference", "ignorant", "teacher", *SETUPS)
    evaluations = tidy({pair: [1.0, 2.0, 6.0] for pair in product(SUBSETS, models)})
    table = table1(evaluations.sample(frac=1, random_state=0))
    numbers = ["mean", "std", "runs", "std_trainings", "trainings"]
    assert list(table.columns) == ["subset", "model", "metric", *numbers]
    rows = list(zip(table["subset"], table["model"], table["metric"], strict=True))
    assert rows == list(product(SUBSETS, models, METRICS))
    assert (table["runs"] == 3).all()
    np.testing.assert_allclose(table["mean"], np.tile([3, 6, 9], 55))
    np.testing.assert_allclose(table["std"], np.sqrt(7) * np.tile([1, 2, 3], 55))
    assert (table["trainings"] == 1).all()
    assert table["std_trainings"].isna().all()


def test_the_spreads_over_generations_and_over_trainings_are_told_apart() -> None:
    # the trainings are far apart, the generations of each near each other
    values = {1: [10.0, 11.0, 12.0], 2: [20.0, 20.0, 26.0], 4: [31.0, 32.0, 33.0]}
    parts = [tidy({("all", "bs"): runs}).assign(seed=seed) for seed, runs in values.items()]
    floor = tidy({("all", "reference"): [1.0, 2.0, 3.0]})  # not trained: without a seed
    table = table1(pd.concat([floor, *parts], ignore_index=True))
    row = table[(table["model"] == "bs") & (table["metric"] == "WS")].iloc[0]
    assert row["mean"] == pytest.approx(np.mean([*values.values()]))
    within = np.mean([np.var(runs, ddof=1) for runs in values.values()])
    assert row["std"] == pytest.approx(math.sqrt(within))
    assert row["std_trainings"] == pytest.approx(np.std([11.0, 22.0, 32.0], ddof=1))
    assert (row["runs"], row["trainings"]) == (3, 3)
    assert table.loc[table["model"] == "reference", "trainings"].tolist() == [1, 1, 1]


def test_a_change_is_taken_between_trainings_of_the_same_seed() -> None:
    # bs+ch is 10% better than the bs of its own seed, whichever order the rows come in
    base = {1: [10.0, 10.2], 2: [40.0, 40.2]}
    parts = [
        tidy({("all", model): [factor * value for value in runs]}).assign(seed=seed)
        for seed, runs in base.items()
        for model, factor in (("bs", 1.0), ("bs+ch", 0.9))
    ]
    changes = relative_changes(pd.concat(parts).sample(frac=1, random_state=3))
    np.testing.assert_allclose(changes["change"], -10)
    np.testing.assert_allclose(changes["uncertainty"], 0, atol=1e-12)


def test_variants_stand_between_the_setups_and_the_splitting_flow() -> None:
    models = ("splitting", "scratch", "bs+ch", "teacher", "apart", "bs", "ignorant")
    table = table1(tidy({("all", model): [1.0, 2.0] for model in models}))
    order = ["ignorant", "teacher", "bs", "bs+ch", "scratch", "apart", "splitting"]
    assert list(dict.fromkeys(table["model"])) == order


def test_table_2_has_the_names_of_the_published_one() -> None:
    models = ("ignorant", "teacher", "bs", "bs+div", "bs+ch+div")
    table = table2(tidy({("all", model): [1.0, 3.0] for model in models}))
    published = published_table(2)
    names = ["subset", "model", "quantity", "error"]
    assert list(table.columns)[:7] == [*names, "mean", "std", "runs"]
    pd.testing.assert_frame_equal(table[names], published[names])
    np.testing.assert_allclose(table["mean"], np.tile(2.0 * np.arange(4, 12), 3))


def test_published_table_1_is_complete() -> None:
    published = published_table(1)
    keys = set(zip(published["subset"], published["model"], published["metric"], strict=True))
    assert keys == set(product(SUBSETS, ("teacher", *SETUPS[:4]), METRICS))


def test_a_study_of_some_subsets_and_setups_gets_the_rows_that_it_has() -> None:
    table = table1(tidy({("lambda", "bs+ch"): [1.0, 2.0], ("lambda", "teacher"): [1.0, 2.0]}))
    assert table["model"].tolist() == ["teacher"] * 3 + ["bs+ch"] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_table_takes_what_is_not_finite(bad: float) -> None:
    evaluations = tidy({("k0s", "teacher"): [1.0, 2.0], ("k0s", "bs"): [1.0, 2.0]})
    chosen = (evaluations["model"] == "bs") & (evaluations["metric"] == "MAE_c")
    evaluations.loc[chosen & (evaluations["run"] == 1), "value"] = bad
    for build in (table1, table2):
        with pytest.raises(EvaluationError, match="'k0s', model 'bs', metric 'MAE_c'"):
            build(evaluations)


def test_one_run_has_no_deviation_and_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"'n', model 'teacher'.*at least two runs"):
        table1(tidy({("n", "teacher"): [1.0]}))


def test_a_missing_entry_is_named() -> None:
    evaluations = tidy(
        {("n", "teacher"): [1.0, 2.0], ("n", "bs"): [1.0, 2.0], ("all", "bs"): [1.0, 2.0]}
    )
    with pytest.raises(EvaluationError, match=r"3 entries.*'all', model 'teacher', metric 'WS'"):
        table1(evaluations)


def test_generated_nan_is_refused_by_name(test: Events) -> None:
    generated = test.responses.astype(np.float64)
    generated[3, 3, 3] = np.nan
    with pytest.raises(EvaluationError, match="subset 'n', model 'teacher', metric 'WS'"):
        evaluate_runs("n", "teacher", test, [test.responses, generated])


def ws_runs(**values: list[float]) -> pd.DataFrame:
    """WS on the neutrons for each run of each model."""
    rows = [
        ("n", model, "WS", run, value)
        for model, runs in values.items()
        for run, value in enumerate(runs)
    ]
    return pd.DataFrame(rows, columns=["subset", "model", "metric", "run", "value"])


def test_relative_changes_by_hand() -> None:
    evaluations = ws_runs(
        **{"bs+ch": [18.0, 22.0], "teacher": [8.0, 8.0], "bs": [9.0, 11.0], "ignorant": [5.0, 6.0]}
    )
    changes = relative_changes(evaluations)
    assert changes["model"].tolist() == ["teacher", "bs+ch"]
    np.testing.assert_allclose(changes["change"], [-20, 100])
    # For the teacher the ratio is 8 / 10 with a standard error of 10% of bs: relative values
    # -0.1 and +0.1, std 0.1 sqrt(2), over sqrt(2) runs. bs+ch is twice bs in every run.
    np.testing.assert_allclose(changes["uncertainty"], [80 * 0.1, 0], atol=1e-12)


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_uncertainty_of_changes_is_the_scatter_of_many_repetitions(shared: float) -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        common = shared * rng.normal(size=5)
        runs = {"bs": 10 + common + 0.5 * rng.normal(size=5)}
        runs["teacher"] = 8 + common + 0.6 * rng.normal(size=5)
        found.append(relative_changes(ws_runs(**{k: list(v) for k, v in runs.items()})))
    changes = pd.concat(found)
    claimed = math.sqrt((changes["uncertainty"] ** 2).mean())
    assert claimed == pytest.approx(changes["change"].std(), rel=0.15)


def test_relative_changes_need_a_baseline_other_than_zero() -> None:
    evaluations = ws_runs(bs=[0.0, 0.0], teacher=[1.0, 2.0])
    with pytest.raises(EvaluationError, match="model 'teacher', metric 'WS'"):
        relative_changes(evaluations)
    assert relative_changes(evaluations, "bs+ch").empty
