"""Evaluation of data in which particles do not come again: what can be said is said, the rest not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wasserstein_distance

from tests.event_sets import as_comparison, as_split
from zdc_nb.data.events import Events, split_by_response
from zdc_nb.data.figures import save_figure
from zdc_nb.data.simulation import simulate
from zdc_nb.detector import ZN
from zdc_nb.evaluation import (
    BASELINES,
    DISTANCES,
    ablation_findings,
    baseline_evaluations,
    closure_summary,
    evaluate,
    evaluate_runs,
    figures,
    published_table,
    relative_changes,
    shape_findings,
    table1,
    table2,
    what_can_be_evaluated,
)

Parts = tuple[Events, Events]


@pytest.fixture(scope="module")
def unique() -> Parts:
    """Train and test, every particle simulated once."""
    events = simulate(600, 1, 10, seed=3)
    assert len(np.unique(events.particle)) == 600
    train, _, test, _ = split_by_response(events, (0.7, 0.1, 0.2), seed=0)
    return train, test


@pytest.fixture(scope="module")
def repeated() -> Parts:
    train, _, test, _ = split_by_response(simulate(600, 30, 10, seed=4), (0.7, 0.1, 0.2), seed=0)
    return train, test


def evaluations(parts: Parts, subset: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of three stand-ins for flows: responses turned about, and their baselines."""
    train, test = parts
    models = {
        "teacher": test.responses,
        "bs": np.rot90(test.responses, axes=(1, 2)),
        "bs+ch+div": np.rot90(test.responses, 2, axes=(1, 2)),
    }
    rng = np.random.default_rng(1)
    frames = [
        evaluate_runs(subset, name, test, [rng.poisson(responses) for _ in range(2)])
        for name, responses in models.items()
    ]
    baselines, _ = baseline_evaluations(as_split(train, test), subset, runs=2, seed=5)
    return pd.concat(frames, ignore_index=True), baselines


def test_with_repeats_everything_can_be_evaluated(repeated: Parts) -> None:
    possible = what_can_be_evaluated(*repeated)
    assert len(possible.metrics) == 11
    assert possible.baselines == BASELINES
    assert possible.left_out == ()


def test_without_repeats_two_sentences_say_what_is_left_out(unique: Parts) -> None:
    possible = what_can_be_evaluated(*unique)
    assert possible.metrics == ("WS",)
    assert possible.baselines == ("ignorant",)
    metrics, baselines = possible.left_out
    assert metrics.startswith("MAE_c, MAE_cw and the errors of shower centre and radius")
    assert "each of the 120 test particles has a single response" in metrics
    assert baselines.startswith("reference and reference+sum are left out")
    assert baselines.endswith("no test particle has one among those they may draw from.")


def test_what_is_possible_is_what_is_evaluated(unique: Parts, repeated: Parts) -> None:
    # test particles that were simulated once more each, and repeats that training never saw
    train, test = repeated
    _, first = np.unique(test.particle, return_index=True)
    strangers = test[~np.isin(test.particle, train.particle[: len(train) // 2])]
    half = train[np.isin(train.particle, train.particle[: len(train) // 2])]
    cases = [unique, repeated, (train, test[np.sort(first)]), (half, strangers)]
    found = []
    for each in cases:
        possible = what_can_be_evaluated(*each)
        rows, _ = baseline_evaluations(as_split(*each), "n", runs=2, seed=0)
        assert tuple(dict.fromkeys(rows["model"])) == possible.baselines
        for _, part in rows.groupby("model"):
            metrics = [name for name in dict.fromkeys(part["metric"]) if name not in DISTANCES]
            assert tuple(metrics) == possible.metrics
        found.append((len(possible.metrics), len(possible.baselines), len(possible.left_out)))
    assert found == [(1, 1, 2), (11, 3, 0), (1, 3, 1), (11, 1, 1)]


def test_reference_is_left_out_where_it_would_answer_single_responses_alone(
    repeated: Parts,
) -> None:
    _, test = repeated
    labels, counts = np.unique(test.particle, return_counts=True)
    alone, often = labels[counts == 1], labels[counts > 3]
    assert len(alone) > 0
    possible = what_can_be_evaluated(test[np.isin(test.particle, alone)], test)
    assert len(possible.metrics) == 11
    assert possible.baselines == ("ignorant",)
    assert "no test particle with several test responses" in possible.left_out[0]
    train = test[np.isin(test.particle, often)]
    assert what_can_be_evaluated(train, test).baselines == BASELINES


def test_ws_is_that_of_any_set(unique: Parts) -> None:
    _, test = unique
    generated = np.roll(test.responses, 1, axis=0)[:, ::-1]
    distances = [
        wasserstein_distance(test.responses[:, mask].sum(axis=1), generated[:, mask].sum(axis=1))
        for mask in ZN.masks
    ]
    found = evaluate(test, generated)
    assert list(found) == ["WS"]
    assert found["WS"] == pytest.approx(np.mean(distances))


def test_all_test_responses_count_as_left_out(unique: Parts) -> None:
    _, left_out = baseline_evaluations(as_split(*unique), "n", runs=2, seed=5)
    assert left_out.to_dict("records") == [
        {
            "subset": "n",
            "test_responses": 120,
            "test_particles": 120,
            "left_out_responses": 120,
            "left_out_particles": 120,
        }
    ]


def test_tables_figures_and_sentences_do_without(unique: Parts, tmp_path: Path) -> None:
    trained, baselines = evaluations(unique, "n")
    every = pd.concat([trained, baselines])
    table = table1(every)
    assert set(zip(table["model"], table["metric"], strict=True)) == {
        (model, "WS") for model in ("ignorant", "teacher", "bs", "bs+ch+div")
    }
    assert np.isfinite(table[["mean", "std"]]).all(axis=None)
    shapes = table2(every)
    assert shapes.empty
    assert list(shapes.columns) == [
        *published_table(2).columns,
        "runs",
        "std_trainings",
        "trainings",
    ]
    changes = as_comparison(relative_changes(every))
    assert set(changes["metric"]) == {"WS"}
    assert changes["model"].tolist() == ["teacher", "bs+ch+div"]
    closure = closure_summary(unique[1], {"teacher": (unique[1].responses, None)})
    closure = closure.assign(subset="n")
    assert not closure["quantity"].str.startswith("variance").any()
    text = ablation_findings(table, table1(baselines, BASELINES), changes, closure)
    assert "**teacher**: photons, lit fibres" in text
    assert "**Not compared by particle**: n." in text
    assert "MAE_cw" not in text
    assert "**bs+ch+div against bs**" in text
    assert "Nothing to compare" in shape_findings(shapes)
    figure = figures.table1_figure(table, published_table(1))
    assert [axis.get_title().split(",")[0] for axis in figure.axes] == ["WS"] * 2
    drawn = [
        figure,
        figures.changes_figure(changes),
        figures.closure_figure(closure),
        figures.shape_figure({"n": (unique[1], {"teacher": unique[1].responses})}),
        figures.particle_figure(unique[1], {"teacher": unique[1].responses}, "n"),
    ]
    for number, each in enumerate(drawn):
        save_figure(each, tmp_path / f"{number}.png", "A figure.")
    shown = figures.results_table(table, published_table(1), ["metric", "model"], "subset")
    assert {metric for metric, _ in shown.index} == {"WS"}
    rows = ["subset", "quantity", "error"]
    assert figures.results_table(shapes, published_table(2), rows, "model").to_html()


def test_a_subset_without_repeats_beside_one_with(unique: Parts, repeated: Parts) -> None:
    pairs = [evaluations(unique, "n"), evaluations(repeated, "all")]
    trained, baselines = (pd.concat(parts, ignore_index=True) for parts in zip(*pairs, strict=True))
    every = pd.concat([trained, baselines])
    table, floors = table1(every), table1(baselines, BASELINES)
    alone = table1(pd.concat(pairs[1]))
    pd.testing.assert_frame_equal(
        table[table["subset"] == "all"].reset_index(drop=True), alone.reset_index(drop=True)
    )
    assert set(table["model"]) == set(every["model"]) - {"reference+sum"}
    nothing = closure_summary(repeated[1][:9], {})
    text = ablation_findings(table, floors, as_comparison(relative_changes(every)), nothing)
    assert "**Not compared by particle**: n." in text
    learned = next(line for line in text.splitlines() if "What the teacher learned" in line)
    assert ": all 0" in learned
    assert "nan" not in text
    shapes = table2(every)
    assert set(shapes["subset"]) == {"all"}
    assert "**all.**" in shape_findings(shapes)
    figures.table1_figure(table, published_table(1))
    shown = figures.results_table(table, published_table(1), ["metric", "model"], "subset")
    assert shown.data.loc[("MAE_cw", "teacher")].tolist().count("") >= 1  # type: ignore[attr-defined]


def test_repeats_that_training_never_saw_are_compared_without_reference(repeated: Parts) -> None:
    train, test = repeated
    seen = np.unique(train.particle)[::2]
    parts = train[np.isin(train.particle, seen)], test[~np.isin(test.particle, seen)]
    trained, baselines = evaluations(parts, "n")
    every = pd.concat([trained, baselines])
    table = table1(every)
    assert "reference" not in set(table["model"])
    assert len(table2(every)) == 24
    text = ablation_findings(
        table,
        table1(baselines, BASELINES),
        as_comparison(relative_changes(every)),
        closure_summary(repeated[1][:9], {}),
    )
    assert "**Not compared with new simulations** of the same particles: n." in text
    assert "What the teacher learned" in text
    assert "How far from the floor" not in text
