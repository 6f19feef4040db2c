"""Speed, figures, displayed tables and the sentences about them."""

import re
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import StepPatch

from tests.event_sets import as_comparison
from zdc_nb.data.events import Events
from zdc_nb.data.figures import description_of, save_figure
from zdc_nb.evaluation import (
    BASELINES,
    DISTANCES,
    METRICS,
    auc_table,
    figures,
    likeness_findings,
    model_pivot,
    model_table,
    published_table,
)
from zdc_nb.evaluation.closure import closure_summary
from zdc_nb.evaluation.comparison import paired_differences
from zdc_nb.evaluation.conclusions import (
    ablation_findings,
    kept_terms,
    meaning_warning,
    shape_findings,
)
from zdc_nb.params import SETUPS
from zdc_nb.study.speed import speed_findings, speed_ratio, time_sampling


def test_times_are_medians_per_sample_and_models_take_turns() -> None:
    calls: list[tuple[str, int]] = []
    waits = {"teacher": iter([0, 0.03, 0.2, 0.03] * 2), "student": iter([0.2, 0, 0, 0] * 2)}

    def sampler(name: str):  # type: ignore[no-untyped-def]
        def sample(batch: int) -> None:
            calls.append((name, batch))
            time.sleep(next(waits[name]))

        return sample

    models = {name: sampler(name) for name in ("teacher", "student")}
    speed = time_sampling(models, [1, 10], runs=3, device="cpu")
    turns = [("teacher", 1), ("student", 1)] * 4 + [("teacher", 10), ("student", 10)] * 4
    assert calls == turns
    columns = ["model", "device", "batch", "ms_per_sample", "runs", "spread", "others"]
    assert list(speed.columns) == columns
    assert (speed["runs"] == 3).all()
    # one of the teacher's three runs took far longer
    assert speed.set_index(["model", "batch"])["spread"]["teacher", 1] > 0.2
    times = speed.set_index(["model", "batch"])["ms_per_sample"]
    # the first, unmeasured run of the student and one slow run of the teacher do not count
    assert 30 <= times["teacher", 1] < 60
    assert 3 <= times["teacher", 10] < 6
    assert times["student", 1] < 15


def test_speed_ratio_by_hand() -> None:
    speed = pd.DataFrame(
        [("teacher", "cpu", 1, 8.0, 2), ("student", "cpu", 1, 2.0, 2)],
        columns=["model", "device", "batch", "ms_per_sample", "runs"],
    )
    assert speed_ratio(speed).to_dict("records") == [{"device": "cpu", "batch": 1, "ratio": 4.0}]
    assert "2 ms a response, the teacher 8 ms, 4 times as long" in speed_findings(speed)


def test_times_of_a_busy_machine_begin_with_a_warning() -> None:
    row = {"model": "teacher", "device": "cpu", "batch": 1, "ms_per_sample": 8.0, "runs": 2}
    quiet = pd.DataFrame([row, row | {"model": "student"}]).assign(spread=0.05, others=0.1)
    assert "busy" not in speed_findings(quiet)
    assert speed_findings(quiet.assign(others=1.4)).startswith("- **Timings taken on a busy")
    assert "60% of the median" in speed_findings(quiet.assign(spread=[0.1, 0.6]))
    assert "busy" not in speed_findings(quiet.assign(others=float("nan")))


def test_a_slower_student_is_not_called_faster() -> None:
    times = {("teacher", 1): 8.0, ("student", 1): 2.0, ("teacher", 8): 1.0, ("student", 8): 2.0}
    rows = [(model, "cpu", batch, ms, 2) for (model, batch), ms in times.items()]
    speed = pd.DataFrame(rows, columns=["model", "device", "batch", "ms_per_sample", "runs"])
    text = speed_findings(speed)
    assert "best at batch 1 (4 times faster) and worst at batch 8 (2 times slower)" in text
    assert "faster" not in speed_findings(speed[speed["batch"] == 8])


@pytest.mark.parametrize(("runs", "batches"), [(0, [1]), (1, [4, 0])])
def test_nothing_to_time_is_refused(runs: int, batches: list[int]) -> None:
    with pytest.raises(ValueError, match="positive runs and batches"):
        time_sampling({}, batches, runs, "cpu")


def make_events(particles: int, repeats: int) -> Events:
    """Responses to particle k have about 10 k + 1 photons."""
    rng = np.random.default_rng(0)
    particle = np.repeat(np.arange(particles), repeats)
    responses = np.zeros((len(particle), 44, 44), np.uint16)
    for k, label in enumerate(particle):
        row, column = rng.integers(44, size=(2, 10 * label + 1))
        np.add.at(responses[k], (row, column), 1)
    features = np.full((len(particle), 9), 1234.0)
    pdg = np.array([2112, 3122, 0], np.int32)[particle % 3]
    return Events.from_arrays(pdg, features, responses, particle)


def test_examples_are_of_different_particles_and_spread_in_light() -> None:
    events = make_events(particles=20, repeats=5)
    chosen = figures.choose_examples(events, 4)
    assert events.particle[chosen].tolist() == [5, 10, 14, 19]
    assert len(figures.choose_examples(make_events(2, 3), 4)) == 2


def test_sample_figure_shows_the_responses_on_one_logarithmic_scale() -> None:
    events = make_events(particles=9, repeats=2)
    generated = [np.roll(events.responses, 3, axis=1), np.roll(events.responses, 5, axis=2)]
    generated[1][16, 0, 0] = 500
    examples = np.array([16, 8, 4])
    shown_only = [responses[examples] for responses in generated]
    figure = figures.sample_figure(events[examples], shown_only)
    axes = [axis for axis in figure.axes if axis.images]
    assert len(axes) == 9
    columns = [events.responses, *generated]
    for axis, (example, responses) in zip(axes, product(examples, columns), strict=True):
        shown = axis.images[0].get_array()
        assert isinstance(shown, np.ma.MaskedArray)
        np.testing.assert_array_equal(shown.filled(0), responses[example])
        norm = axis.images[0].norm
        assert isinstance(norm, LogNorm)
        assert (norm.vmin, norm.vmax) == (1, 500)
        assert f"{responses[example].sum()} photons" in axis.get_title()
    assert axes[1].get_title().startswith("generated 1")
    assert "Λ, 1234 GeV" in axes[3].get_ylabel()
    assert "PDG 0, 1234 GeV" in axes[0].get_ylabel()


def test_sample_figure_of_many_models_has_a_row_for_each() -> None:
    events = make_events(particles=3, repeats=1)
    names = [f"variant{k}" for k in range(9)]
    generated = [np.roll(events.responses, k, axis=1) for k in range(9)]
    figure = figures.sample_figure(events, generated, names)
    axes = np.array([axis for axis in figure.axes if axis.images]).reshape(10, 3)
    assert [axis.get_ylabel().split("\n")[0] for axis in axes[:, 0]] == ["simulated (test)", *names]
    for axis, response in zip(axes[4], generated[3], strict=True):
        shown = axis.images[0].get_array()
        assert isinstance(shown, np.ma.MaskedArray)
        np.testing.assert_array_equal(shown.filled(0), response)


def test_a_figure_is_written_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "new" / "06.png"
    speed = pd.DataFrame(
        [("teacher", "cpu", 1, 8.0, 2), ("student", "cpu", 1, 2.0, 2)],
        columns=["model", "device", "batch", "ms_per_sample", "runs"],
    )
    text = "Time by batch size, for Λ and n̄; less is better."
    shown = save_figure(figures.speed_figure(speed, published=True), path, text)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert shown.data == path.read_bytes()
    _, metadata = shown._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == text
    assert description_of(path) == text
    assert list(path.parent.iterdir()) == [path]


NO_CLOSURE = closure_summary(make_events(3, 2), {})


def make_table(values: dict[tuple[str, str, str], float]) -> pd.DataFrame:
    rows = [(*key, mean, 0.1, 5) for key, mean in values.items()]
    return pd.DataFrame(rows, columns=["subset", "model", "metric", "mean", "std", "runs"])


@pytest.fixture
def table() -> pd.DataFrame:
    """Subsets n and all; bs+ch is the best setup on n, bs on all; see also the comments below."""
    means = {
        "n": {"reference": 10, "ignorant": 40, "teacher": 5, "bs": 12, "bs+ch": 11},
        "all": {"reference": 10, "ignorant": 30, "teacher": 18, "bs": 19, "bs+ch": 20},
    }
    return make_table(
        {
            (subset, model, metric): float(mean) if metric != "WS" else 6.0
            for subset, models in means.items()
            for model, mean in models.items()
            for metric in METRICS
        }
    )


def test_results_table_puts_the_published_beside_and_the_best_setup_in_bold(
    table: pd.DataFrame,
) -> None:
    styler = figures.results_table(table, published_table(1), ["metric", "model"], "subset")
    assert list(styler.columns) == list(product((figures.OURS, figures.THEIRS), ("n", "all")))
    models = ["reference", "ignorant", "teacher", "bs", "bs+ch"]
    assert list(styler.index) == list(product(METRICS, models))
    texts = styler.data  # type: ignore[attr-defined]
    assert texts.loc[("MAE_cw", "bs"), (figures.OURS, "all")] == "19.00 ± 0.10"
    assert texts.loc[("MAE_cw", "bs"), (figures.THEIRS, "all")] == "5.57 ± 0.03"
    assert texts.loc[("WS", "ignorant"), (figures.THEIRS, "n")] == ""
    html = styler.to_html()
    bold = re.findall(r"(#T_\w+)(?=[^}]*font-weight: bold)", html)
    cells = [re.search(rf'id="{key[1:]}"[^>]*>([^<]*)<', html) for key in bold]
    found = [cell.group(1) for cell in cells if cell]
    assert "11.00 ± 0.10" in found
    assert "19.00 ± 0.10" in found
    for worse in ("12.00 ± 0.10", "20.00 ± 0.10", "5.00 ± 0.10", "18.00 ± 0.10"):
        assert worse not in found


def test_ablation_findings_say_what_the_table_says(table: pd.DataFrame) -> None:
    base = table[table["model"].isin(["reference", "ignorant"])]
    informed = base[base["model"] == "reference"].assign(model="reference+sum", mean=4.0)
    changes = pd.DataFrame(
        [
            ("n", "bs+ch", "MAE_cw", -8.0, 1.0),
            ("all", "bs+ch", "MAE_cw", 5.0, 3.0),
            ("all", "bs+ch", "WS", 5.0, 2.0),
        ],
        columns=["subset", "model", "metric", "change", "uncertainty"],
    )
    comparison = as_comparison(changes)
    text = ablation_findings(table, pd.concat([base, informed]), comparison, NO_CLOSURE)
    # 5 / 40 is at most 0.5, 18 / 30 is not
    assert "At most 0.5 is the least" in text
    assert "n 0.12, all 0.60" in text
    assert "reached on n." in text
    assert "MAE_cw of n 4.00, all 3.00; in WS of n 1.00, all 1.00" in text
    # 5 / 4, 12 / 4; generations leave 0.1 / sqrt(5) of each
    assert "n 1.25 (teacher) to 3.00 (bs), floor 4.00 ± 0.04;" in text
    assert (
        "Above it by more than 2 uncertainties of generation: every flow on every data set" in text
    )
    assert "which are not told the photon sum, have n 10.00, all 10.00" in text
    assert "no praise" not in text
    better = "MAE_cw better on n -8.0% [-10.0, -6.0], worse on none, neither shown on all; "
    assert better + "WS better on none, worse on all +5.0% [+1.0, +9.0], neither" in text
    assert "That is so in 2 of 3 comparisons; without any effect it would be in about 0." in text
    assert "**One training of each model**" in text
    several = ablation_findings(table, base, as_comparison(changes, trainings=3), NO_CLOSURE)
    assert "One training" not in several
    assert "The intervals hold 3 trainings of each model, paired by seed" in several


def test_below_the_floor_is_no_praise(table: pd.DataFrame) -> None:
    base = table[table["model"].isin(["reference", "ignorant"])]
    floor = base[base["model"] == "reference"].assign(model="reference+sum")
    floor["mean"] = floor["subset"].map({"n": 12.05, "all": 18.0})
    text = ablation_findings(table, pd.concat([base, floor]), paired_differences({}), NO_CLOSURE)
    # 12 and 12.05 differ by less than 2 * sqrt(2) * 0.1 / sqrt(5)
    assert "generation: bs on all, bs+ch on all; not told from it: teacher on all, bs on n;" in text
    assert "below it: teacher on n, bs+ch on n." in text
    assert "**Below the floor is no praise.**" in text


def test_findings_name_whom_ws_would_prefer_wrongly(table: pd.DataFrame) -> None:
    good_ws = (table["model"] == "ignorant") & (table["metric"] == "WS") & (table["subset"] == "n")
    table.loc[good_ws, "mean"] = 5.9
    base = table[table["model"].isin(["reference", "ignorant"])]
    informed = base[base["model"] == "reference"].assign(model="reference+sum")
    text = ablation_findings(table, pd.concat([base, informed]), paired_differences({}), NO_CLOSURE)
    assert "with a better MAE_cw: teacher on n, bs on n, bs+ch on n." in text


SIZES = pd.DataFrame(
    [("n", "train", 50, 5), ("n", "test", 2500, 100), ("all", "test", 5000, 200)],
    columns=["subset", "part", "responses", "particles"],
)


def test_numbers_that_mean_something_have_no_warning(table: pd.DataFrame) -> None:
    changes = [("n", "bs+ch", "MAE_cw", -8.0, 1.0), ("all", "bs+ch", "MAE_cw", 5.0, 3.0)]
    columns = ["subset", "model", "metric", "change", "uncertainty"]
    comparison = as_comparison(pd.DataFrame(changes, columns=columns))
    assert meaning_warning(SIZES, table, comparison) == ""
    assert meaning_warning(SIZES, table[table["metric"] == "WS"]) == ""


def test_what_means_nothing_is_said_with_its_reason(table: pd.DataFrame) -> None:
    few = SIZES.assign(responses=[50, 160, 5000], particles=[5, 29, 200])
    text = meaning_warning(few, table)
    assert text.startswith("- **These numbers mean nothing.** Too few test responses")
    assert "Too few test responses: n 160; below 500" in text
    assert "Too few test particles: n 29; below 30" in text
    assert "ignorant" not in text
    blind = table.assign(mean=table["mean"].where(table["model"] != "bs", 35.0))
    text = meaning_warning(SIZES, blind)
    assert "does not look at the particle: bs on all (35 against 30)." in text
    assert "Too few" not in text
    changes = [("n", "bs+ch", "MAE_cw", -1.0, 4.0), ("all", "bs+ch", "MAE_cw", 3.0, 4.0)]
    # differences to the teacher say nothing of the setups
    changes.append(("all", "teacher", "MAE_cw", 90.0, 1.0))
    columns = ["subset", "model", "metric", "change", "uncertainty"]
    comparison = as_comparison(pd.DataFrame(changes, columns=columns))
    text = meaning_warning(SIZES, table, comparison)
    assert "not told apart: 0 of 2 differences leave 0 out of their 95% interval" in text
    assert "A typical difference is 2.0%, a typical interval ± 8.0%." in text


def test_shape_findings_name_the_worst_error_beside_the_floor() -> None:
    published = published_table(2)
    floor = published[published["model"] == "teacher"].assign(model="reference+sum")
    floor["mean"] = floor["mean"] / 2
    wide = (floor["quantity"] == "radius_variance") & (floor["error"] == "MAE")
    floor.loc[wide, "mean"] /= 2
    text = shape_findings(pd.concat([floor, published]))
    assert (
        "multiple of that of new simulations, scaled: teacher 4.00 (radius variance MAE), bs"
        in text
    )


def test_shape_findings_count_the_errors_that_improve() -> None:
    published = published_table(2)
    text = shape_findings(published)
    assert "teacher 1.60 and 2.22; bs 1.64 and 2.34; bs+ch+div 1.63 and 2.26" in text
    assert "bs+ch+div has a smaller mean than bs in 8 of the 8 errors." in text


def make_history(best: int, **terms: float) -> pd.DataFrame:
    """Terms that hold at the best epoch and are ten times as large at the others."""
    rows = [
        (epoch, 10 * epoch, split, term, value * (1 if epoch == best else 10))
        for epoch in (1, 2, 3)
        for split in ("train", "validation")
        for term, value in terms.items()
    ]
    return pd.DataFrame(rows, columns=["epoch", "step", "split", "term", "value"])


def test_kept_terms_are_those_of_the_best_epoch_beside_bs() -> None:
    histories = {
        ("n", "bs"): make_history(2, end=4.0, channel=0.5, loss=9.0),
        ("n", "bs+ch"): make_history(3, end=5.0, channel=0.25, loss=1.0),
        ("all", "bs+ch"): make_history(1, end=7.0, channel=0.125, loss=1.0),
    }
    assert kept_terms(histories).to_dict("index") == {
        ("n", "bs"): {"end": 4.0, "channel": 0.5},
        ("n", "bs+ch"): pytest.approx({"end": 25.0, "channel": -50.0}),
        ("all", "bs+ch"): {"end": 7.0, "channel": 0.125},
    }


def test_kept_terms_leave_out_what_is_nothing_in_bs() -> None:
    histories = {
        ("n", setup): make_history(2, end=end, blocks=0.0, loss=end)
        for setup, end in (("bs", 4.0), ("bs+div", 5.0))
    }
    assert kept_terms(histories).to_dict("index") == {
        ("n", "bs"): {"end": 4.0},
        ("n", "bs+div"): {"end": pytest.approx(25.0)},
    }


def test_kept_terms_leave_out_what_bs_does_not_have() -> None:
    histories = {
        ("n", "bs"): make_history(2, end=4.0, loss=4.0),
        ("n", "bs+ctr"): make_history(2, end=5.0, centre=1.0, loss=6.0),
    }
    assert kept_terms(histories).to_dict("index") == {
        ("n", "bs"): {"end": 4.0},
        ("n", "bs+ctr"): {"end": pytest.approx(25.0)},
    }
    titles = [
        axis.get_title()
        for axis in figures.loss_terms_figure(
            {setup: history for (_, setup), history in histories.items()}, "n"
        ).axes
    ]
    assert titles == ["end", "what was minimised", "centre loss"]


def test_figures_show_every_number_that_they_are_given(table: pd.DataFrame) -> None:
    figure = figures.table1_figure(table, published_table(1))
    ours = figure.axes[: len(METRICS)]
    for axis in ours:
        heights = sorted(float(y) for line in axis.containers for y in line[0].get_ydata())
        metric = axis.get_title().split(",")[0]
        expected = sorted(table["mean"][table["metric"] == metric])
        np.testing.assert_allclose(heights, expected)
    histories: dict[str, pd.DataFrame] = {
        setup: make_history(2, end=4.0 + k, channel=0.5, loss=9.0) for k, setup in enumerate(SETUPS)
    }
    terms = figures.loss_terms_figure(histories, "n").axes
    assert [axis.get_title() for axis in terms] == ["end", "channel loss", "what was minimised"]
    assert all(len(axis.lines) == 2 * len(SETUPS) for axis in terms)


def test_shape_figures_of_a_perfect_model_lie_on_the_line() -> None:
    events = make_events(particles=8, repeats=6)
    figure = figures.particle_figure(events, {"teacher": events.responses}, "n")
    for axis in figure.axes:
        for points in axis.collections:
            x, y = np.asarray(points.get_offsets()).T
            np.testing.assert_array_equal(x, y)
            assert len(x) == 8
    figure = figures.shape_figure({"n": (events, {"teacher": events.responses})})
    for axis in figure.axes:
        (filled,), (line,) = axis.collections, axis.lines
        outline = np.asarray(filled.get_paths()[0].vertices)
        heights = np.asarray(line.get_ydata())
        assert outline[:, 1].max() == heights.max() > 0
        widths = np.diff(np.asarray(line.get_xdata()))
        assert (heights[:-1] * widths).sum() == pytest.approx(1)


def test_results_of_a_study_without_the_full_data_set_stand_alone(table: pd.DataFrame) -> None:
    part = table[table["subset"] == "n"].assign(quantity="centre", error="MAE")
    rows = ["subset", "quantity", "error"]
    styler = figures.results_table(
        part[part["metric"] == "WS"], published_table(2), rows, column="model"
    )
    assert {source for source, _ in styler.columns} == {figures.OURS}


def test_every_model_has_a_colour() -> None:
    assert {*BASELINES, "teacher", *SETUPS} <= set(figures.COLOURS)


def evaluated(values: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    """Values of each generation, by model and metric, on the neutrons."""
    rows = [
        ("n", model, metric, run, value)
        for model, metrics in values.items()
        for metric, runs in metrics.items()
        for run, value in enumerate(runs)
    ]
    return pd.DataFrame(rows, columns=["subset", "model", "metric", "run", "value"])


def likeness_of(values: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    evaluations = evaluated(values)
    return model_table(evaluations, evaluations.iloc[:0])


def near(value: float) -> list[float]:
    return [value - 0.01, value + 0.01]


LIKENESS = {
    "splitting": {
        "AUC image": near(0.57),
        "fibre spectrum": near(3.0),
        "AUC": near(0.63),
        "FPD": near(0.08),
        "nats": [400.0],
    },
    "teacher": {
        "AUC": near(0.98),
        "AUC image": near(0.9),
        "FPD": near(2.0),
        "fibre spectrum": near(9.0),
    },
    "reference": {"AUC": near(0.51), "AUC image": near(0.49), "FPD": near(-0.01)},
    "reference+sum": {
        "AUC": near(0.625),
        "AUC image": near(0.6),
        "FPD": near(0.09),
        "fibre spectrum": near(1.0),
    },
    "ignorant": {
        "AUC": near(0.88),
        "AUC image": near(0.61),
        "FPD": near(2.5),
        "fibre spectrum": near(7.0),
    },
}


def test_models_stand_in_order_with_classifiers_and_distances_in_their_columns() -> None:
    pivot = model_pivot(likeness_of(LIKENESS))
    assert list(pivot.columns) == ["AUC", "AUC image", "FPD", "fibre spectrum", "nats"]
    models = ["reference", "reference+sum", "ignorant", "teacher", "splitting"]
    assert list(pivot.index) == [("n", model) for model in models]
    assert pivot.loc[("n", "reference"), "FPD"] == pytest.approx(-0.01)


def test_likeness_findings_say_who_is_told_and_where_the_judges_disagree() -> None:
    text = likeness_findings(likeness_of(LIKENESS))
    assert "features of a response (0.5: it cannot tell): splitting 0.630, teacher 0.980" in text
    assert "have 0.600; within 0.03 of that, or below: splitting." in text
    assert "**FPD**: least splitting 0.08, most teacher 2; new simulations scaled" in text
    assert "sum 0.09. Not told from these (within 2 standard deviations" in text
    assert "told from new simulations by fibre spectrum, not by AUC, AUC image, FPD." in text
    assert "Told by all 4: teacher." in text
    assert "**No proof**: AUC image cannot tell `ignorant`" in text
    assert "mean little" not in text
    # a reference that is told from simulation, which it is, is the classifier's own fault
    odd = LIKENESS | {"reference": {"AUC": near(0.51), "AUC image": near(0.6)}}
    said = "as they are have 0.600, not 0.5: this classifier had too few"
    assert said in likeness_findings(likeness_of(odd))


def test_likeness_findings_without_a_floor_or_a_classifier_claim_nothing() -> None:
    alone = {"teacher": LIKENESS["teacher"], "splitting": LIKENESS["splitting"]}
    text = likeness_findings(likeness_of(alone))
    assert "without new simulations to compare with: FPD least splitting 0.08, most" in text
    assert "told from" not in text
    small = {
        model: {name: runs for name, runs in metrics.items() if name == "fibre spectrum"}
        for model, metrics in LIKENESS.items()
    }
    text = likeness_findings(likeness_of(small))
    assert text.count("the test part is too small for a classifier") == 2
    assert "**fibre spectrum**: least splitting 3, most teacher 9" in text


def test_auc_of_others_is_marked_as_of_another_detector() -> None:
    table = auc_table(likeness_of(LIKENESS), "ZN")
    ours = table[table["detector"] == "ZN, n (this study)"].set_index("model")
    assert list(ours.index) == ["reference+sum", "teacher", "splitting"]
    assert ours.loc["splitting", "low_level"] == pytest.approx(0.57)
    assert ours.loc["splitting", "high_level"] == pytest.approx(0.63)
    others = table[table["detector"] != "ZN, n (this study)"]
    assert others["detector"].str.startswith("another detector: CaloChallenge").all()
    published = others[["low_level", "high_level"]].to_numpy(np.float64)
    assert ((published > 0.5) & (published < 1)).all()
    best = others.set_index("model").loc["CaloDREAM"]
    assert (best["low_level"], best["high_level"]) == (0.531, 0.521)
    # where nothing could be classified, the others are left
    nothing = auc_table(likeness_of({"teacher": {"FPD": [1.0, 2.0]}}), "ZN")
    assert nothing["detector"].tolist() == others["detector"].tolist()


def test_spectrum_figure_holds_every_fibre_and_response() -> None:
    events = make_events(particles=12, repeats=6)
    doubled = 2 * events.responses
    figure = figures.spectrum_figure(events, {"teacher": doubled, "bs": events.responses}, "n")
    figure.draw_without_rendering()
    fibres, lit, fibre_ratio, lit_ratio = figure.axes

    def sums(axis: Axes) -> list[float]:
        """What the densities of an axis add up to, one for each set of responses."""
        data = [patch.get_data() for patch in axis.patches if isinstance(patch, StepPatch)]
        return [float((values * np.diff(edges)).sum()) for values, edges, _ in data]

    np.testing.assert_allclose(sums(fibres), events.lit_fibres.mean())
    np.testing.assert_allclose(sums(lit), 1)
    for axis, right in ((fibre_ratio, [False, True]), (lit_ratio, [True, True])):
        _, *models = (patch.get_data() for patch in axis.patches if isinstance(patch, StepPatch))
        ratios = [values[np.isfinite(values)] for values, *_ in models]
        assert [bool(np.allclose(each, 1)) for each in ratios] == right


def test_every_distance_has_a_place_in_the_table_of_models() -> None:
    names = ["AUC", "AUC image", *DISTANCES]
    table = likeness_of({"bs": {name: near(1.0) for name in reversed(names)}})
    assert list(model_pivot(table).columns) == names
