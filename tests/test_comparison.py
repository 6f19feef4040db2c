"""Models compared by particle and seed: the metrics of the tables, and intervals that hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from tests.event_sets import make_events
from zdc_nb.data.events import Events
from zdc_nb.evaluation import changes_figure, evaluate
from zdc_nb.evaluation.comparison import COMPARED, intervals, paired_differences, resample
from zdc_nb.evaluation.metrics import EvaluationError, Observed, observe
from zdc_nb.params import derive_seed


@pytest.fixture(scope="module")
def test() -> Events:
    """Particles with one to nine responses."""
    particle = np.repeat(np.arange(12), [1, 2, 9, 3, 5, 4, 2, 7, 1, 3, 2, 6])
    return make_events(np.random.default_rng(0).permutation(particle), seed=1)


def seen(test: Events, generations: Sequence[NDArray[np.uint16]]) -> Observed:
    parts = zip(*(observe(generated, test.detector) for generated in generations), strict=True)
    return Observed(*(np.stack(part) for part in parts))


def generations(test: Events, seed: int) -> list[NDArray[np.uint16]]:
    """Two generations that belong to other particles, and so have errors of many sizes."""
    return [make_events((test.particle + 1) % 9, seed + run).responses for run in range(2)]


def test_the_test_part_itself_has_the_metrics_of_the_tables(test: Events) -> None:
    every = {seed: generations(test, 10 * seed) for seed in (1, 3)}
    found = resample(test, {seed: seen(test, runs) for seed, runs in every.items()}, draws=3)
    assert found.seeds == (1, 3)
    for place, runs in enumerate(every.values()):
        metrics = [evaluate(test, generated) for generated in runs]
        for name in COMPARED:
            expected = np.mean([each[name] for each in metrics])
            assert found.found[name][place] == pytest.approx(expected, rel=1e-12), name


def test_a_resampled_particle_counts_as_often_as_it_is_drawn(test: Events) -> None:
    """Each draw equals the metrics of a test part in which the particles stand so often."""
    runs = generations(test, 5)
    draws = 4
    found = resample(test, {1: seen(test, runs)}, draws, seed=8)
    labels = np.unique(test.particle)
    other = resample(test, {1: seen(test, runs[::-1])}, draws, seed=8)
    even = np.full(len(labels), 1 / len(labels))
    rng = np.random.default_rng(derive_seed(8, "particles", len(labels)))
    times = rng.multinomial(len(labels), even, draws)
    for draw in range(draws):
        rows, names = [], []
        for label, count in zip(labels, times[draw], strict=True):
            for copy in range(count):
                mine = np.flatnonzero(test.particle == label)
                rows.append(mine)
                # a copy is a particle of its own
                names.append(np.full(len(mine), 100 * label + copy))
        chosen, particle = np.concatenate(rows), np.concatenate(names)
        drawn = Events.from_arrays(
            test.pdg[chosen], test.features[chosen], test.responses[chosen], particle
        )
        metrics = [evaluate(drawn, generated[chosen]) for generated in runs]
        for name in COMPARED:
            expected = np.mean([each[name] for each in metrics])
            assert found.drawn[name][0, draw] == pytest.approx(expected, rel=1e-12), name
            assert other.drawn[name][0, draw] == pytest.approx(expected, rel=1e-12), name


def row_of(table: pd.DataFrame, model: str, metric: str) -> dict[str, float]:
    chosen = table[(table["model"] == model) & (table["metric"] == metric)]
    [row] = chosen.drop(columns=["model", "metric"]).to_dict("records")
    return {str(name): float(value) for name, value in row.items()}


def shifted(test: Events, offsets: NDArray[np.float64]) -> Observed:
    """One generation whose channels are too large by an offset of the particle's own."""
    simulated = observe(test.responses, test.detector)
    _, index = np.unique(test.particle, return_inverse=True)
    channels = simulated.channels + offsets[index][:, None]
    return Observed(channels[None], simulated.centre[None] + 0.5, simulated.radius[None] + 0.5)


@pytest.mark.parametrize(("of_particles", "of_trainings"), [(20.0, 0.0), (0.0, 8.0), (10.0, 6.0)])
def test_the_interval_holds_the_truth_as_often_as_it_says(
    of_particles: float, of_trainings: float
) -> None:
    """Two models that are equally good, but for chance: 0 lies in 95 of 100 intervals."""
    test = make_events(np.repeat(np.arange(40), 2), seed=3)
    rng = np.random.default_rng(4)
    held, likely, repetitions = 0, [], 200
    for _ in range(repetitions):
        own = rng.uniform(100, 200, 40)
        apart = rng.normal(0, of_particles, 40)
        models = {
            name: resample(
                test,
                {
                    seed: shifted(test, own + effect + rng.normal(0, of_trainings))
                    for seed in (1, 2, 3)
                },
                draws=200,
            )
            for name, effect in (("bs", 0.0), ("bs+ch", apart))
        }
        row = row_of(paired_differences(models), "bs+ch", "MAE_cw")
        held += row["low"] <= 0 <= row["high"]
        likely.append(row["improvement"])
    assert 0.89 <= held / repetitions <= 0.99
    # a probability that is right is as often below as above any value
    assert np.mean(np.array(likely) < 0.25) == pytest.approx(0.25, abs=0.1)


def test_an_interval_holds_what_was_found_where_resampling_makes_a_distance_larger() -> None:
    """A good model against a bad one in WS: drawn twice, particles hurt the good one most."""
    test = make_events(np.repeat(np.arange(30), 3), seed=3)
    simulated = observe(test.responses, test.detector)
    # the right light, nearly, at the wrong particles
    order = np.random.default_rng(1).permutation(len(test))
    swapped = [part[order].astype(np.float64)[None] for part in simulated]
    models = {
        name: resample(test, {1: Observed(swapped[0] + offset, *swapped[1:])}, draws=200)
        for name, offset in (("bs", 0.5), ("bs+ch", 30.0))
    }
    # the draws of the ratio lie below what was found
    drawn = models["bs+ch"].drawn["WS"] / models["bs"].drawn["WS"]
    found = (models["bs+ch"].found["WS"] / models["bs"].found["WS"]).item()
    assert np.quantile(drawn, 0.975) < found
    for table, column in ((paired_differences(models), "change"), (intervals(models), "value")):
        low, found_here, high = table[["low", column, "high"]].to_numpy(np.float64).T
        assert (low <= found_here).all()
        assert (found_here <= high).all()
    assert changes_figure(paired_differences(models).assign(subset="n")).axes


def test_a_clear_improvement_is_found_and_has_its_size(test: Events) -> None:
    own = np.linspace(50, 150, 12)
    models = {
        name: resample(test, {s: shifted(test, factor * own + s) for s in (1, 2, 3)})
        for name, factor in (("bs", 1.0), ("bs+ch", 0.8), ("bs+div", 1.0))
    }
    table = paired_differences(models)
    better, same = (row_of(table, model, "MAE_cw") for model in ("bs+ch", "bs+div"))
    assert better["high"] < 0
    assert better["improvement"] == 1
    assert better["change"] == pytest.approx(
        100 * (better["value"] / better["baseline"] - 1), rel=1e-12
    )
    assert (same["low"], same["change"], same["high"]) == (0, 0, 0)
    assert same["improvement"] == 0


def test_seeds_are_paired(test: Events) -> None:
    """Trainings far apart from each other say much where their differences are alike."""
    own = np.linspace(50, 150, 12)
    trainings = {
        name: {s: shifted(test, (own + 100 * s) * factor) for s in (1, 2, 3)}
        for name, factor in (("bs", 1.0), ("bs+ch", 0.97))
    }
    models = {name: resample(test, found) for name, found in trainings.items()}
    paired = row_of(paired_differences(models), "bs+ch", "MAE_cw")
    assert paired["high"] < 0
    one, other = (row_of(intervals(models), model, "MAE_cw") for model in models)
    assert one["low"] < other["high"]


def test_other_trainings_than_the_baselines_are_refused(test: Events) -> None:
    one = resample(test, {1: shifted(test, np.full(12, 5.0))}, draws=10)
    two = resample(test, {2: shifted(test, np.full(12, 5.0))}, draws=10)
    with pytest.raises(EvaluationError, match=r"bs\+ch: expected the trainings of bs.*\(2,\)"):
        paired_differences({"bs": one, "bs+ch": two})
    assert paired_differences({"bs+ch": one}).empty


def test_responses_that_are_missing_are_refused(test: Events) -> None:
    short = Observed(*(part[:, :-1] for part in shifted(test, np.full(12, 5.0))))
    with pytest.raises(EvaluationError, match=f"seed 4: expected {len(test)} responses"):
        resample(test, {4: short})


def test_without_repeats_there_is_ws_alone() -> None:
    test = make_events(np.arange(20), seed=2)
    found = resample(test, {1: seen(test, [make_events(np.arange(20), 7).responses])}, draws=5)
    assert [*found.found] == ["WS"]
