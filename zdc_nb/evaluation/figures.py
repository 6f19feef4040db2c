"""Figures and displayed tables of what the models achieved.

Figures are made without a global state. A colour stands for the same model everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from pandas.io.formats.style import Styler

from zdc_nb.data.events import FEATURES, Events
from zdc_nb.data.figures import PlainLog, draw_response, finish_faces, panels_of
from zdc_nb.data.symbols import drawn_symbol
from zdc_nb.detector import containment_radius, shower_centre
from zdc_nb.evaluation.closure import EVERYTHING
from zdc_nb.evaluation.comparison import LEVEL
from zdc_nb.evaluation.distances import photon_spectrum
from zdc_nb.evaluation.metrics import METRICS, QUANTITIES, has_repeats, shape_statistics
from zdc_nb.evaluation.names import SIMULATED, TERMS, name_of, with_names
from zdc_nb.evaluation.tables import UNTRAINED, in_order, is_trained
from zdc_nb.params import DRAWN, order_subsets

__all__ = [
    "changes_figure",
    "choose_examples",
    "closure_figure",
    "epoch_axis",
    "importance_figure",
    "loss_terms_figure",
    "model_figure",
    "particle_figure",
    "results_table",
    "sample_figure",
    "shape_figure",
    "spectrum_figure",
    "speed_figure",
    "table1_figure",
]

COLOURS = {
    "reference": "0.55",
    "reference+sum": "0.75",
    "ignorant": "#8c564b",
    "teacher": "black",
    "bs": "#0173b2",
    "bs+div": "#56b4e9",
    "bs+ch": "#de8f05",
    "bs+ch+div": "#d55e00",
    "bs+ctr": "#5e3c99",
    "bs+ctr+div": "#b2abd2",
    "bs+ch+ctr": "#c51b7d",
    "bs+ch+ctr+div": "#8e0152",
    "student": "#d55e00",
    "splitting": "#029e73",
    "binomial": "#949494",
}
MARKERS = {
    "reference": "_",
    "reference+sum": "_",
    "ignorant": "x",
    "teacher": "o",
    "bs": "s",
    "bs+div": "v",
    "bs+ch": "^",
    "bs+ch+div": "D",
    "bs+ctr": "P",
    "bs+ctr+div": "<",
    "bs+ch+ctr": "X",
    "bs+ch+ctr+div": ">",
    "splitting": "*",
}

_MORE_COLOURS = (
    "#cc78bc",
    "#ece133",
    "#ca9161",
    "#fbafe4",
    "#4c4c99",
    "#66a61e",
    "#a6192e",
    "#17becf",
)
_LABELS = 9
"""Most labels in a row of a legend."""

_FLOOR = "reference+sum"

_MANY = 5
"""More panels than these would be too small side by side."""

_WIDEST = 8
"""More responses than these likewise."""

_MORE_MARKERS = ("P", "X", "<", ">", "p", "h", "d", "8")

OURS, THEIRS = "this study", "published, other data"

PUBLISHED_SPEED = {"published NF (MAF), one A100": 160.0, "published IAF student, one A100": 0.38}
"""ms per response: arXiv 2512.20346, section 4."""

_LINEAR_UP_TO = 100.0
"""Per cent: of a larger change the axis becomes logarithmic."""

SHOWN_FEATURES = 12
"""Most features of a classifier that a figure has bars for."""


def colours_of(models: Iterable[str]) -> dict[str, str]:
    """The colours of models: of variants of students, which have none of their own, in turn."""
    return _with_more(models, COLOURS, _MORE_COLOURS)


def _with_more(models: Iterable[str], known: dict[str, str], more: Sequence[str]) -> dict[str, str]:
    others = [model for model in dict.fromkeys(models) if model not in known]
    return known | {model: more[place % len(more)] for place, model in enumerate(others)}


def columns_of(count: int, most: int = _LABELS) -> int:
    """Columns for labels of a legend, or panels, in rows of about equal length, ``most`` at most."""
    rows = -(-count // most)
    return -(-count // rows)


def choose_examples(events: Events, count: int) -> NDArray[np.intp]:
    """Positions of up to ``count`` responses of different particles, spread in photon sum.

    One response stands for each unique particle (its brightest); of these the ones at evenly
    spaced ranks of the photon sum are taken, the dimmest quarter left out: a few scattered
    photons show little.
    """
    bright_first = np.argsort(-events.photon_sum, kind="stable")
    _, first = np.unique(events.particle[bright_first], return_index=True)
    candidates = np.sort(first)[::-1]
    ranks = np.linspace(len(candidates) // 4, len(candidates) - 1, min(count, len(candidates)))
    chosen: NDArray[np.intp] = bright_first[candidates[np.unique(np.rint(ranks).astype(int))]]
    return chosen


def sample_figure(
    events: Events, generated: Sequence[NDArray[Any]], names: Sequence[str] | None = None
) -> Figure:
    """Test responses beside generated ones, a row for each event (paper, Fig. 1).

    Of many models a column for each event and a row for each model.

    Parameters
    ----------
    events
        a few test events.
    generated
        their generated responses, photons, in arrays of the same shape; a column each.
    names
        the model of each; ``generated 1``, ``generated 2`` ... by default.
    """
    names = names or [f"generated {k}" for k in range(1, len(generated) + 1)]
    columns = [events.responses, *generated]
    # many pictures side by side would be too small on a page
    tall = len(columns) > max(_WIDEST, len(events))
    down, across = (len(columns), len(events)) if tall else (len(events), len(columns))
    side = 2.0 if tall else 2.6
    width, height = panels_of(events.detector.shape, down, across, side, side + 0.15)
    figure = Figure(figsize=(width + 0.8, height), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    axes = grid.T if tall else grid
    brightest = max(int(column.max()) for column in columns)
    for row, column in product(range(len(events)), range(len(columns))):
        image = draw_response(axes[row, column], columns[column][row], brightest)
    finish_faces(figure, grid, image)
    particles = [
        f"{drawn_symbol(int(pdg))}, {features[FEATURES.index('energy')]:.0f} GeV"
        for pdg, features in zip(events.pdg, events.features, strict=True)
    ]
    left, top = particles, [SIMULATED, *map(name_of, names)]
    if tall:
        left, top = top, left
    for axis, name in zip(grid[0], top, strict=True):
        axis.set_title(f"{name}\n{axis.get_title()}", fontsize=9)
    for axis, name in zip(grid[:, 0], left, strict=True):
        axis.set_ylabel(f"{name}\nrow (fibre)")
    return figure


def results_table(
    table: pd.DataFrame, published: pd.DataFrame | None, rows: Sequence[str], column: str
) -> Styler:
    """A table of results beside the published one, the best of the students in bold.

    A second number after ± is the standard deviation over trainings.

    Parameters
    ----------
    table, published
        Table 1 or 2, ours and the paper's (of which the subsets that we have are shown); None
        shows ours alone.
    rows, column
        which columns of the tables become the rows and the columns that are shown.
    """
    texts, weights = [], []
    sources = [(OURS, table)]
    if published is not None:
        sources.append((THEIRS, published[published["subset"].isin(table["subset"])]))
    for source, frame in sources:
        keys = [key for key in (*rows, column) if key != "model"]
        students = ~frame["model"].isin((*UNTRAINED, "teacher", "splitting"))
        students &= ~frame["model"].str.endswith(DRAWN)
        best = frame["mean"].where(students).groupby([frame[key] for key in keys]).transform("min")
        shown = frame.assign(
            source=source,
            text=_numbers(frame),
            weight=np.where(students & (frame["mean"] == best), "font-weight: bold", ""),
        ).set_index([*rows, "source", column])
        texts.append(shown["text"].unstack(["source", column], sort=False))
        weights.append(shown["weight"].unstack(["source", column], sort=False))
    every = product(*(dict.fromkeys(table[row]) for row in rows))
    index = pd.MultiIndex.from_tuples(
        [key for key in every if key in texts[0].index], names=list(rows)
    )
    text, weight = (pd.concat(parts, axis=1).reindex(index) for parts in (texts, weights))
    styles = weight.fillna("")
    return with_names(text.fillna("").style.apply(lambda _: styles, axis=None))


def _numbers(frame: pd.DataFrame) -> list[str]:
    texts = [f"{m:.2f} ± {s:.2f}" for m, s in zip(frame["mean"], frame["std"], strict=True)]
    if "std_trainings" not in frame:
        return texts
    spread = ["" if np.isnan(s) else f" ± {s:.2f}" for s in frame["std_trainings"]]
    return [text + more for text, more in zip(texts, spread, strict=True)]


def table1_figure(table: pd.DataFrame, published: pd.DataFrame | None) -> Figure:
    """Table 1 as points with the standard deviation of a run, ours above the published one, if any."""
    metrics = _metrics(table)
    sources = [(OURS, table)] if published is None else [(OURS, table), (THEIRS, published)]
    figure = Figure(figsize=(13, 0.6 + 3.45 * len(sources)), layout="constrained")
    axes = figure.subplots(len(sources), len(metrics), sharex=True, squeeze=False)
    subsets = order_subsets(table["subset"])
    models = list(dict.fromkeys(table["model"]))
    for row, (source, frame) in enumerate(sources):
        for axis, metric in zip(axes[row], metrics, strict=True):
            chosen = frame[(frame["metric"] == metric) & frame["subset"].isin(subsets)]
            _dodged(axis, chosen, subsets, models, "mean", "std")
            axis.set(title=f"{metric}, {source}", ylabel=f"{metric} (photons)")
            _logarithmic(axis)
    _finish_groups(figure, axes, subsets)
    figure.suptitle("Table 1: mean and standard deviation of a generation; less is better")
    return figure


def _metrics(table: pd.DataFrame) -> list[str]:
    """The metrics of Table 1 that a table has."""
    return [metric for metric in METRICS if (table["metric"] == metric).any()]


def model_figure(table: pd.DataFrame) -> Figure:
    """How far every trained model is from the floor, by data set: ratios, and the AUC itself.

    ``table`` is that of :func:`~zdc_nb.evaluation.tables.model_table`.
    """
    shown = ("WS", "MAE_c", "MAE_cw", "centre", "radius")
    metrics = [name for name in shown if name in set(table["metric"])]
    subsets = order_subsets(table["subset"])
    models = [*filter(is_trained, in_order(table["model"]))]
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, squeeze=False).ravel()
    floor = table[table["model"] == _FLOOR].set_index(["subset", "metric"])["mean"]
    keys = pd.MultiIndex.from_frame(table[["subset", "metric"]])
    ratio = table.assign(mean=table["mean"] / floor.reindex(keys).to_numpy(), std=0.0)
    auc = table[table["metric"] == "AUC"].fillna({"std": 0.0})
    _dodged(axes[0], auc, subsets, models, "mean", "std")
    _steps(axes[0], floor.xs("AUC", level="metric") if len(auc) and len(floor) else floor, subsets)
    axes[0].set(title="AUC of a classifier", ylabel="AUC (0.5: not told apart)")
    for axis, metric in zip(axes[1:], metrics, strict=False):
        chosen = ratio[(ratio["metric"] == metric) & ratio["mean"].notna()]
        _dodged(axis, chosen, subsets, models, "mean", "std")
        axis.axhline(1, color=COLOURS[_FLOOR], linewidth=3, zorder=0)
        axis.set(title=metric, ylabel=f"{metric} / floor")
        _logarithmic(axis)
    for axis in axes[1 + len(metrics) :]:
        axis.remove()
    _finish_groups(figure, axes[: 1 + len(metrics)].reshape(1, -1), subsets, [_floor_line()])
    figure.suptitle("How far each model is from the floor: new simulations, scaled")
    return figure


def closure_figure(summary: pd.DataFrame) -> Figure:
    """How much of light, fibres, radius and variances every model keeps, by data set.

    ``summary`` is that of :func:`~zdc_nb.evaluation.closure.closure_summary`, with the column
    subset. Bars are uncertainties from particles; grey bars the same of ``reference+sum``.
    """
    subsets = order_subsets(summary["subset"])
    models = [*filter(is_trained, in_order(summary["model"]))]
    low, every = summary["by"] == "photon sum", summary["by"] == EVERYTHING
    bins = summary.loc[low, "bin"].unique()
    # a data set may have too few particles in the bin of another
    dim = str(bins[0]) if len(bins) == 1 else "at the lowest photon sums"
    panels = [
        (f"photons given of those asked for,\n{dim}", low, "photons"),
        (f"lit fibres,\n{dim}", low, "lit fibres"),
        ("lit fibres", every, "lit fibres"),
        ("radius", every, "radius"),
        ("variance of the centre\nwithin a particle", every, "variance of centre"),
        ("variance of the radius\nwithin a particle", every, "variance of radius"),
    ]
    found = [
        (title, summary[chosen & (summary["quantity"] == quantity)])
        for title, chosen, quantity in panels
    ]
    found = [(title, part) for title, part in found if len(part)]
    rows = max(1, -(-len(found) // 3))
    figure = Figure(figsize=(13, 3.9 * rows + 0.8), layout="constrained")
    if not found:
        figure.suptitle("Too few test particles to compare")
        return figure
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for axis, (title, part) in zip(axes, found, strict=False):
        known = part[part["simulated"] > 0]
        ratio = known.assign(
            mean=known["generated"] / known["simulated"],
            error=known["uncertainty"] / known["simulated"],
        )
        _dodged(axis, ratio[ratio["model"].isin(models)], subsets, models, "mean", "error")
        floor = ratio[ratio["model"] == _FLOOR].set_index("subset")["mean"]
        _steps(axis, floor, subsets)
        axis.axhline(1, color="0.5", linewidth=1)
        axis.set(title=title, ylabel="generated / simulated")
    for axis in axes[len(found) :]:
        axis.remove()
    _finish_groups(figure, axes[: len(found)].reshape(1, -1), subsets, [_floor_line()])
    figure.suptitle("What each model keeps of what simulation has: 1 is right")
    return figure


def _steps(axis: Axes, values: pd.Series, subsets: Sequence[str]) -> None:
    """A short bar at the floor's value for each subset that has one."""
    for place, subset in enumerate(subsets):
        if subset in values.index:
            ends = place - 0.4, place + 0.4
            axis.hlines(values[subset], *ends, color=COLOURS[_FLOOR], linewidth=3, zorder=0)


def _floor_line() -> Line2D:
    return Line2D([], [], color=COLOURS[_FLOOR], linewidth=3, label=name_of(_FLOOR))


def changes_figure(comparison: pd.DataFrame) -> Figure:
    """Change of each metric against ``bs`` with its interval, by data set.

    ``comparison`` is that of :func:`~zdc_nb.evaluation.comparison.paired_differences`, with the
    column subset.
    """
    metrics = list(dict.fromkeys(comparison["metric"]))
    rows = -(-len(metrics) // 3)
    figure = Figure(figsize=(13, 3.7 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, min(3, len(metrics)), squeeze=False)
    subsets = order_subsets(comparison["subset"])
    models = in_order(comparison["model"])
    errors = comparison.assign(
        below=comparison["change"] - comparison["low"],
        above=comparison["high"] - comparison["change"],
    )
    for axis, metric in zip(axes.flat, metrics, strict=False):
        chosen = errors[errors["metric"] == metric]
        _dodged(axis, chosen, subsets, models, "change", "below", "above")
        axis.axhline(0, color=COLOURS["bs"], label="bs")
        axis.set(title=f"{metric} (below 0: better than bs)", ylabel="change against bs (%)")
        # a model that is far off would leave nothing to be seen of the others
        if chosen["high"].max() > _LINEAR_UP_TO:
            axis.set_yscale("symlog", linthresh=10)
            axis.yaxis.set_major_formatter("{x:g}")
    for axis in axes.flat[len(metrics) :]:
        axis.remove()
    _finish_groups(figure, axes.ravel()[: len(metrics)].reshape(1, -1), subsets)
    trainings = int(comparison["trainings"].min()) if len(comparison) else 1
    held = "particles" + ("" if trainings == 1 else f" and {trainings} trainings")
    figure.suptitle(f"Change against bs, with {LEVEL:.0%} intervals over {held}")
    return figure


def epoch_axis(axis: Axes, last: int) -> None:
    """Whole epochs from 1 to ``last`` along an axis, also where there is one alone."""
    axis.set(xlabel="epoch", xlim=(0.5, last + 0.5))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def loss_terms_figure(histories: Mapping[str, pd.DataFrame], subset: str) -> Figure:
    """Each loss term by epoch, one line for each setup: validation solid, training dotted.

    Parameters
    ----------
    histories
        setup to a frame with the columns epoch, step, split, term, value.
    subset
        for the title.
    """
    # slow to import, and most stages draw nothing with it
    import seaborn as sns  # noqa: PLC0415

    terms = list(dict.fromkeys(term for frame in histories.values() for term in frame["term"]))
    columns = min(4, len(terms))
    rows = -(-len(terms) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.9 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    everything = pd.concat(histories, names=["setup"]).reset_index("setup")
    for axis, term in zip(axes, terms, strict=False):
        chosen = everything[everything["term"] == term]
        sns.lineplot(
            chosen,
            x="epoch",
            y="value",
            hue="setup",
            palette=colours_of(histories),
            style="split",
            dashes={"validation": "", "train": (1, 1)},
            errorbar=None,
            legend=False,
            ax=axis,
        )
        axis.set(title=TERMS.get(term, term), ylabel="")
        epoch_axis(axis, int(everything["epoch"].max()))
        if (chosen["value"] > 0).all():
            _logarithmic(axis)
    for axis in axes[len(terms) :]:
        axis.remove()
    axes[0].set_ylabel("loss term")
    figure.suptitle(
        f"Loss terms of the students of {drawn_symbol(subset)}: validation solid, training dotted"
    )
    colours = colours_of(histories)
    handles = [Line2D([], [], color=colours[name], label=name) for name in histories]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns_of(len(handles)))
    return figure


def shape_figure(
    samples: Mapping[str, tuple[Events, Mapping[str, NDArray[Any]]]],
) -> Figure:
    """Distributions of shower centre and radius, a row for each subset.

    Parameters
    ----------
    samples
        subset to its N test events and, by model, responses (N, R, K) aligned with them.
    """
    # slow to import, and most stages draw nothing with it
    import seaborn as sns  # noqa: PLC0415

    figure = Figure(figsize=(12, 2.9 * len(samples) + 0.5), layout="constrained")
    axes = figure.subplots(len(samples), 3, squeeze=False, sharex="col")
    names = ("centre, row", "centre, column", "radius of 90% of the photons")
    for row, (subset, (test, generated)) in zip(axes, samples.items(), strict=True):
        values = {
            model: (
                *shower_centre(responses, test.detector).T,
                containment_radius(responses, test.detector),
            )
            for model, responses in {SIMULATED: test.responses, **generated}.items()
        }
        # few responses, wide bins: what differs should not be the noise
        bins = int(np.clip(np.sqrt(len(test)), 8, max(test.detector.shape)))
        for k, axis in enumerate(row):
            top = max(each[k].max() for each in values.values())
            for model, each in values.items():
                filled = model == SIMULATED
                sns.histplot(
                    x=each[k],
                    bins=bins,
                    binrange=(0, max(top, 1)),
                    stat="density",
                    element="step",
                    fill=filled,
                    alpha=0.4 if filled else 1,
                    color=COLOURS["reference" if filled else model],
                    label=model,
                    ax=axis,
                )
            axis.set_ylabel("")
        row[0].set_ylabel(f"{drawn_symbol(subset)}: {len(test)} responses\nshare per fibre")
    for axis, name in zip(axes[-1], names, strict=True):
        axis.set_xlabel(f"{name} (fibres)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns_of(len(labels)))
    figure.suptitle("Shower centre and radius: simulated, and one generation of each model")
    return figure


def particle_figure(test: Events, generated: Mapping[str, NDArray[Any]], subset: str) -> Figure:
    """What Table 2 compares: a point for each unique particle, test against generated.

    Parameters
    ----------
    test
        N test events.
    generated
        by model, responses (N, R, K) aligned with ``test``; a row of panels each.
    subset
        for the title.
    """
    if not has_repeats(test):
        figure = Figure(figsize=(8, 1.5), layout="constrained")
        figure.suptitle(
            f"{drawn_symbol(subset)}: no particle has several test responses, so no means to compare"
        )
        return figure
    figure = Figure(figsize=(13, 3.3 * len(generated) + 0.5), layout="constrained")
    axes = figure.subplots(
        len(generated), len(QUANTITIES), squeeze=False, sharex="col", sharey="col"
    )
    before = shape_statistics(test.particle, test.responses, test.detector)
    top = dict.fromkeys(QUANTITIES, 1.0)
    _, counts = np.unique(test.particle, return_counts=True)
    for row, (model, responses) in zip(axes, generated.items(), strict=True):
        after = shape_statistics(test.particle, responses, test.detector)
        for axis, quantity in zip(row, QUANTITIES, strict=True):
            for a, b, name in zip(
                before[quantity].T, after[quantity].T, ("row", "column"), strict=False
            ):
                label = name if quantity.startswith("centre") else None
                axis.scatter(a, b, np.maximum(3 * counts, 9), alpha=0.5, linewidths=0, label=label)
            top[quantity] = max(top[quantity], before[quantity].max(), after[quantity].max())
            axis.set(xlim=(0, 1.05 * top[quantity]), ylim=(0, 1.05 * top[quantity]))
            axis.axline((0, 0), slope=1, color="0.4", linewidth=0.8)
            unit = "fibres²" if quantity.endswith("variance") else "fibres"
            if axis in axes[-1]:
                axis.set_xlabel(f"{SIMULATED} ({unit})")
            axis.set_ylabel(f"{model} ({unit})")
            axis.set_title(quantity.replace("_", " ") + (" (mean)" if unit == "fibres" else ""))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, title="shower centre")
    figure.suptitle(
        f"{drawn_symbol(subset)}: each point a unique particle, its area its number of test responses; "
        "on the line the model is right"
    )
    return figure


def spectrum_figure(test: Events, generated: Mapping[str, NDArray[Any]], subset: str) -> Figure:
    """Photons of single fibres, and lit fibres of responses: simulated against models, with ratios.

    Parameters
    ----------
    test
        N test events.
    generated
        by model, responses (N, R, K) aligned with ``test``.
    subset
        for the title.
    """
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=[2, 1], sharex="col")
    responses = {SIMULATED: test.responses, **generated}
    spectra = {model: photon_spectrum(each) for model, each in responses.items()}
    top = max(len(spectrum) for spectrum in spectra.values())
    # whole numbers first, then ever wider: a bin without a whole number in it would be empty
    edges = np.unique(np.rint(np.geomspace(1, max(top, 2), 30)).astype(int)) - 0.5
    photons = {
        model: np.histogram(np.arange(len(spectrum)), edges, weights=spectrum)[0]
        for model, spectrum in spectra.items()
    }
    _with_ratio(axes[:, 0], edges, photons, len(test))
    axes[0, 0].set(xscale="log", yscale="log", ylabel="fibres per response and photon")
    axes[1, 0].set(xlabel="photons in a lit fibre")
    axes[1, 0].xaxis.set_major_formatter("{x:g}")
    lit = {model: np.count_nonzero(each, axis=(1, 2)) for model, each in responses.items()}
    bins = int(np.clip(np.sqrt(len(test)), 8, 40))
    edges = np.linspace(0, max(each.max() for each in lit.values()) + 1, bins + 1)
    counts = {model: np.histogram(each, edges)[0] for model, each in lit.items()}
    _with_ratio(axes[:, 1], edges, counts, len(test))
    axes[0, 1].set(ylabel="share of the responses per fibre")
    axes[1, 1].set(xlabel="lit fibres of a response")
    for axis in axes[1]:
        axis.axhline(1, color="0.4", linewidth=0.8)
        axis.set(ylim=(0, 2.5), ylabel="over simulated")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns_of(len(labels)))
    figure.suptitle(
        f"{drawn_symbol(subset)}: {len(test)} simulated responses and one generation of each model; "
        "grey below: what chance leaves of the simulated ones"
    )
    return figure


def _with_ratio(
    axes: NDArray[Any], edges: NDArray[Any], counts: Mapping[str, NDArray[Any]], total: int
) -> None:
    """Densities above, and below each over the first, with its counting error (one sigma)."""
    first, *others = counts.values()
    axes[0].stairs(
        first / np.diff(edges) / total, edges, fill=True, color="0.8", label=next(iter(counts))
    )
    few = first > 0
    error = np.zeros(len(first))
    error[few] = 1 / np.sqrt(first[few])
    axes[1].stairs(1 + error, edges, baseline=1 - error, fill=True, color="0.85")
    colours = colours_of(list(counts)[1:])
    for model, each in zip(list(counts)[1:], others, strict=True):
        axes[0].stairs(each / np.diff(edges) / total, edges, color=colours[model], label=model)
        ratio = np.full(len(first), np.nan)
        ratio[few] = each[few] / first[few]
        axes[1].stairs(ratio, edges, color=colours[model])


def speed_figure(speed: pd.DataFrame, published: bool) -> Figure:
    """Time to generate a response against the batch size, if asked for with the published times."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axis = figure.subplots()
    for (model, device), part in speed.groupby(["model", "device"], sort=False):
        axis.plot(
            part["batch"],
            part["ms_per_sample"],
            "o-",
            color=COLOURS[str(model)],
            label=f"{model}, this study, {device}",
        )
    lines = zip(PUBLISHED_SPEED.items(), ("--", ":"), strict=True)
    for (name, value), line in lines if published else ():
        axis.axhline(value, color="0.5", linestyle=line, label=f"{name}: {value:g} ms")
    axis.set(xlabel="batch size (responses)", ylabel="time per response (ms)")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(speed["batch"].unique(), [str(batch) for batch in speed["batch"].unique()])
    remark = "; the published flows are larger and ran on another machine" if published else ""
    axis.set_title(f"Sampling time{remark}")
    axis.legend(fontsize=9)
    return figure


def importance_figure(importances: pd.DataFrame) -> Figure:
    """What tells the generated responses of each model from simulated ones, a panel a model.

    Parameters
    ----------
    importances
        columns model, feature and importance, as from
        :func:`~zdc_nb.evaluation.classifier.two_sample_test`; at least one model. The features
        that matter most to any of the models are shown, the same for all, the first on top.
    """
    models = list(dict.fromkeys(importances["model"]))
    largest = importances.groupby("feature", sort=False)["importance"].max()
    shown = largest.sort_values(ascending=False, kind="stable").index[:SHOWN_FEATURES]
    across = columns_of(len(models), _MANY)
    down = -(-len(models) // across)
    size = 3.2 + 2.4 * across, down * (0.6 + 0.3 * len(shown)) + 0.8
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, model in zip(axes, models, strict=False):
        part = importances[importances["model"] == model].set_index("feature")["importance"]
        axis.barh(shown, part.reindex(shown), color=colours_of(models)[model])
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set_title(model)
        axis.tick_params(labelbottom=True)
    for axis in axes[len(models) :]:
        axis.remove()
    axes[0].invert_yaxis()
    figure.supxlabel("fall of the AUC when the feature is shuffled", fontsize="medium")
    figure.suptitle("What tells generated from simulated responses")
    return figure


def _dodged(
    axis: Axes,
    frame: pd.DataFrame,
    subsets: Sequence[str],
    models: Sequence[str],
    value: str,
    *errors: str,
) -> None:
    """Points with error bars, of two lengths where there are two: subsets along x."""
    colours, markers = colours_of(models), _with_more(models, MARKERS, _MORE_MARKERS)
    for model, offset in zip(models, np.linspace(-0.32, 0.32, len(models)), strict=True):
        part = frame[frame["model"] == model]
        axis.errorbar(
            part["subset"].map(subsets.index).to_numpy(np.float64) + offset,
            part[value],
            part[list(errors)].to_numpy(np.float64).T,
            fmt=markers[model],
            color=colours[model],
            markersize=6,
            label=name_of(model),
        )


def _logarithmic(axis: Axes) -> None:
    """A logarithmic y axis, labelled between the decades too where it spans few."""
    axis.set_yscale("log")
    for use in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        use(PlainLog(minor_thresholds=(2, 0.6)))


def _finish_groups(
    figure: Figure, axes: NDArray[Any], subsets: Sequence[str], more: Sequence[Line2D] = ()
) -> None:
    """Name the data sets, and the models below; ``more`` are further entries of the legend."""
    for axis in axes.flat:
        axis.set_xticks(range(len(subsets)), [drawn_symbol(subset) for subset in subsets])
        axis.set_xlim(-0.5, len(subsets) - 0.5)
        for edge in range(1, len(subsets)):
            axis.axvline(edge - 0.5, color="0.9", linewidth=0.8)
        axis.set_xlabel("data set")
    handles = [*axes.flat[0].get_legend_handles_labels()[0], *more]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns_of(len(handles)))
