"""Pictures of where a model fails: pulls, means, tails and correlations beside the floor.

Simulation is the grey area or the line that is to be met, the model has its own colour, and the
floor (``reference+sum``: other simulations of the same particles) is dashed or a grey bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from zdc_nb.data.symbols import drawn_symbol
from zdc_nb.evaluation.closure import EVERYTHING, Closure
from zdc_nb.evaluation.figures import colours_of
from zdc_nb.evaluation.names import SIMULATED, name_of
from zdc_nb.params import order_subsets

__all__ = [
    "correlations_figure",
    "means_figure",
    "overview_figure",
    "pulls_figure",
    "tails_figure",
]

_FLOOR: dict[str, Any] = {"color": "0.45", "linestyle": "--"}
_FLOOR_NAME = name_of("reference+sum")
_SIMULATED = "0.82"

_LARGEST_PULL = 8.0
"""Pulls beyond have the same colour."""

_WRITTEN = 3.0
"""From here a pull is also written as a number."""

_AXES = {
    "species": "species",
    "energy": "energy of the particle (GeV)",
    "photon sum": "photons asked for",
    "edge": "impact point to edge of the face (mm)",
}


def pulls_figure(closure: Closure, model: str) -> Figure:
    """Pull of every quantity in every bin: a model above, chance (the floor) below."""
    columns = {"pull": f"{model}: generated - simulated, over the uncertainty of it"}
    if closure.has_floor:
        columns["floor_pull"] = f"{_FLOOR_NAME}: what chance and scaling give"
    means = closure.means
    bins = list(dict.fromkeys(zip(means["by"], means["bin"], strict=True)))
    names = list(dict.fromkeys(means["quantity"]))
    figure = Figure(
        figsize=(3.2 + 0.52 * len(bins), (1.2 + 0.36 * len(names)) * len(columns) + 1.8),
        layout="constrained",
    )
    axes = figure.subplots(len(columns), squeeze=False, sharex=True)[:, 0]
    for axis, (column, title) in zip(axes, columns.items(), strict=True):
        table = means.pivot(index="quantity", columns=["by", "bin"], values=column)
        values = table.reindex(names).reindex(columns=pd.MultiIndex.from_tuples(bins))
        image = _squares(axis, values.to_numpy(np.float64))
        axis.set_yticks(range(len(names)), names)
        axis.set_title(title, fontsize=11)
        for place in range(1, len(bins)):
            if bins[place][0] != bins[place - 1][0]:
                axis.axvline(place - 0.5, color="black", linewidth=1.5)
    labels = [drawn_symbol(name) if by == "species" else name for by, name in bins]
    axes[-1].set_xticks(range(len(bins)), labels, rotation=40, ha="right")
    figure.colorbar(image, ax=axes, label="pull", extend="both", shrink=0.7, pad=0.01)
    return figure


def _squares(axis: Axes, pulls: NDArray[np.float64]) -> AxesImage:
    """Pulls as coloured squares, the large ones written into them; none where there is no number."""
    axis.set_facecolor("0.93")
    image = axis.imshow(
        np.clip(pulls, -_LARGEST_PULL, _LARGEST_PULL),
        cmap="RdBu_r",
        vmin=-_LARGEST_PULL,
        vmax=_LARGEST_PULL,
        aspect="auto",
    )
    for (row, column), pull in np.ndenumerate(pulls):
        if np.abs(pull) >= _WRITTEN:
            axis.text(
                column,
                row,
                f"{pull:+.0f}" if np.abs(pull) < 1000 else f"{pull:+.0e}".replace("e+0", "e"),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if np.abs(pull) > 0.6 * _LARGEST_PULL else "black",
            )
    axis.set_xticks(np.arange(pulls.shape[1] + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(pulls.shape[0] + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="minor", length=0)
    return image


def means_figure(closure: Closure, model: str) -> Figure:
    """How large what is off is: mean of each quantity over the simulated one, by what was asked.

    Of the centre the difference in fibres is shown, since a ratio of places means nothing.
    """
    means = closure.means
    shares = [name for name in dict.fromkeys(means["quantity"]) if name.startswith("share of")]
    rows: list[tuple[str, Sequence[str], bool]] = [
        ("photons, of\nthose asked for", ["photons"], True),
        ("lit fibres", ["lit fibres"], True),
        ("light of\nthe channels", shares, True),
        ("centre, off\nby (fibres)", ["centre row", "centre column"], False),
        ("radius", ["radius"], True),
        ("variance\nof the centre", ["variance of centre"], True),
        ("variance\nof the radius", ["variance of radius"], True),
    ]
    present = set(means["quantity"])
    rows = [row for row in rows if present & set(row[1])]
    sorts = [by for by in _AXES if (means["by"] == by).any()]
    figure = Figure(figsize=(3.6 * max(len(sorts), 1) + 1, 1.75 * len(rows) + 1.8))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(rows), max(len(sorts), 1), squeeze=False, sharey="row", sharex="col")
    for line, (label, quantities, is_ratio) in zip(axes, rows, strict=True):
        for axis, by in zip(line, sorts, strict=False):
            chosen = means[(means["by"] == by) & means["quantity"].isin(quantities)]
            _deviations(axis, chosen, quantities, is_ratio, colours_of([model])[model])
        line[0].set_ylabel(label)
    for axis, by in zip(axes[-1], sorts, strict=False):
        names = list(dict.fromkeys(means.loc[means["by"] == by, "bin"]))
        short = [drawn_symbol(name) if by == "species" else _without_unit(name) for name in names]
        axis.set_xticks(range(len(names)), short, rotation=35, ha="right")
        axis.set_xlabel(_AXES[by])
    handles: list[Any] = [
        Line2D([], [], marker="o", color=colours_of([model])[model], label=model),
        Line2D([], [], color="0.5", label=SIMULATED),
    ]
    if closure.has_floor:
        handles[1:1] = [Line2D([], [], marker="_", markersize=14, label=_FLOOR_NAME, **_FLOOR)]
    markers = [*zip(shares, _MARKERS, strict=False), ("centre row", "o"), ("centre column", "s")]
    for name, marker in markers:
        handles.append(Line2D([], [], linestyle="", color="0.3", marker=marker, label=name))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    figure.suptitle(
        f"{model}: generated over simulated (of the centre: difference); error bars over particles"
    )
    return figure


_MARKERS = "os^vDP*X"

_DARK = 0.35
"""Where a logarithmic axis has its 0."""


def _without_unit(name: str) -> str:
    """A bin's name as its axis, which has the unit, needs it: ``10 to 30``."""
    for word in (" GeV", " photons", " mm"):
        name = name.replace(word, "")
    return name


def _deviations(
    axis: Axes, chosen: pd.DataFrame, quantities: Sequence[str], is_ratio: bool, colour: str
) -> None:
    """Ratios or differences of some quantities in the bins of one axis, and the floor's."""
    names = list(dict.fromkeys(chosen["bin"]))
    step = 0.6 / max(len(quantities), 1)
    for place, quantity in enumerate(quantities):
        part = chosen[chosen["quantity"] == quantity]
        x = part["bin"].map(names.index).to_numpy(np.float64)
        x = x + step * (place - (len(quantities) - 1) / 2)
        size = part["simulated"].to_numpy() if is_ratio else np.ones(len(part))
        zero = 1.0 if is_ratio else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            for difference, error, style in (
                ("floor_difference", "floor_uncertainty", {"fmt": "_", "color": "0.45"}),
                ("difference", "uncertainty", {"fmt": _MARKERS[place % 8], "color": colour}),
            ):
                y = zero + part[difference].to_numpy(np.float64) / size
                bar = part[error].to_numpy(np.float64) / np.abs(size)
                axis.errorbar(x, y, bar, markersize=10 if style["fmt"] == "_" else 4.5, **style)  # type: ignore[arg-type]
    axis.axhline(1.0 if is_ratio else 0.0, color="0.5", linewidth=1)
    axis.grid(axis="y", color="0.92")


def tails_figure(closure: Closure, model: str) -> Figure:
    """Spectra of radius, lit fibres and channels with logarithmic counts, and ratios below each.

    Counts of several generations are averages; errors are those of Poisson.
    """
    names = list(closure.values["simulated"])
    across = min(4, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(3.9 * across, 4.2 * down + 0.7), layout="constrained")
    heights = [2.2, 1] * down
    axes = figure.subplots(2 * down, across, squeeze=False, height_ratios=heights)
    for place, name in enumerate(names):
        row, column = divmod(place, across)
        _spectrum(axes[2 * row, column], axes[2 * row + 1, column], closure, name, model)
        if column == 0:
            axes[2 * row, 0].set_ylabel("responses in a bin")
            axes[2 * row + 1, 0].set_ylabel("over simulated")
    for place in range(len(names), down * across):
        row, column = divmod(place, across)
        axes[2 * row, column].remove()
        axes[2 * row + 1, column].remove()
    handles: list[Any] = [Patch(color=_SIMULATED, label=SIMULATED)]
    handles.append(Line2D([], [], color=colours_of([model])[model], label=model))
    if closure.has_floor:
        handles.append(Line2D([], [], label=_FLOOR_NAME, **_FLOOR))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.suptitle(f"{model}: spectra and their tails (logarithmic counts)")
    return figure


def _spectrum(upper: Axes, lower: Axes, closure: Closure, name: str, model: str) -> None:
    every = {which: values[name] for which, values in closure.values.items()}
    top = max(values.max(initial=1.0) for values in every.values())
    straight = name == "radius"
    if straight:
        edges = np.linspace(0, top * 1.0001, 24)
    else:
        # between whole numbers; what is dark has a bin of its own at the left
        whole = np.unique(np.rint(np.geomspace(1, top + 1, 26)))
        edges = np.concatenate([[_DARK / 2], whole - 0.5])
    middle = (edges[:-1] + edges[1:]) / 2 if straight else np.sqrt(edges[:-1] * edges[1:])
    colour = colours_of([model])[model]
    styles = {"generated": {"color": colour, "linestyle": "-"}, "floor": _FLOOR}
    found = {}
    for which, values in every.items():
        shown = values if straight else np.maximum(values, _DARK)
        counts = np.histogram(shown, edges)[0]
        runs, answered = values.shape
        # the floor may not answer all
        scale = closure.responses / (runs * max(answered, 1))
        found[which] = counts * scale, np.sqrt(counts) * scale
    upper.stairs(found["simulated"][0], edges, fill=True, color=_SIMULATED)
    before, error = found["simulated"]
    known = before > 0
    spread = error[known] / before[known]
    lower.bar(
        middle[known],
        2 * spread,
        np.diff(edges)[known],
        1 - spread,
        color=_SIMULATED,
    )
    for which, style in styles.items():
        if which not in found:
            continue
        counts, bars = found[which]
        upper.stairs(counts, edges, linewidth=1.6, **style)
        drawn = {"fmt": "o" if which == "generated" else "_", "color": style["color"]}
        lower.errorbar(
            middle[known],
            counts[known] / before[known],
            bars[known] / before[known],
            markersize=3.5 if which == "generated" else 7,
            linewidth=1,
            **drawn,
        )
        upper.errorbar(middle, counts, bars, fmt="none", color=style["color"], linewidth=1)
    upper.set_yscale("log")
    upper.set_ylim(bottom=0.3)
    upper.set_title(name if name in ("radius", "lit fibres") else f"channel: {name}")
    upper.tick_params(labelbottom=False)
    lower.axhline(1, color="0.4", linewidth=1)
    lower.set_ylim(0, 3)
    if straight:
        lower.set_xlabel("radius of 90% of the light (fibres)")
    else:
        for axis in (upper, lower):
            axis.set_xscale("log")
        ticks = [10.0**power for power in range(int(np.log10(top)) + 1)]
        lower.set_xticks([_DARK, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
        lower.set_xlabel("lit fibres" if name == "lit fibres" else "photons")
    for axis in (upper, lower):
        axis.set_xlim(edges[0], edges[-1])


def correlations_figure(closure: Closure, model: str) -> Figure:
    """How the photons of two fibres vary together, by their distance, a panel for each direction."""
    table = closure.correlations
    if table.empty:
        figure = Figure(figsize=(8, 1.2), layout="constrained")
        figure.suptitle("No correlations: too few particles have several test responses")
        return figure
    directions = list(dict.fromkeys(table["direction"]))
    figure = Figure(figsize=(4.4 * len(directions), 5.4), layout="constrained")
    axes = figure.subplots(
        2, len(directions), squeeze=False, sharex=True, sharey="row", height_ratios=[2, 1]
    )
    colour = colours_of([model])[model]
    for (upper, lower), direction in zip(axes.T, directions, strict=True):
        part = table[table["direction"] == direction]
        x = part["distance"].to_numpy()
        upper.fill_between(x, part["simulated"], color=_SIMULATED)
        lower.fill_between(x, -2 * part["uncertainty"], 2 * part["uncertainty"], color=_SIMULATED)
        for values, off, style in (
            ("floor", "floor_difference", _FLOOR),
            ("generated", "difference", {"color": colour, "linestyle": "-"}),
        ):
            upper.plot(x, part[values], **style)
            lower.plot(x, part[off], **style)
        for parity, filled in (("same", colour), ("other", "white")):
            chosen = part[part["parity"] == parity]
            for axis, values in ((upper, "generated"), (lower, "difference")):
                axis.plot(
                    chosen["distance"], chosen[values], "o", color=colour, markerfacecolor=filled
                )
        upper.set_title(direction)
        for axis in (upper, lower):
            axis.axhline(0, color="0.4", linewidth=1)
        lower.set_xlabel("distance (steps)")
        lower.set_xticks(x)
    axes[0, 0].set_ylabel("correlation of photons")
    axes[1, 0].set_ylabel("less simulated")
    handles: list[Any] = [Patch(color=_SIMULATED, label=f"{SIMULATED}; below: 2 uncertainties")]
    handles.append(Line2D([], [], color=colour, label=model))
    for label, filled in (("same field of the chess board", colour), ("other field", "white")):
        point = Line2D([], [], marker="o", linestyle="", color=colour, markerfacecolor=filled)
        point.set_label(label)
        handles.append(point)
    if closure.has_floor:
        handles.append(Line2D([], [], label=_FLOOR_NAME, **_FLOOR))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    figure.suptitle(f"{model}: do fibres light up together as they should?")
    return figure


def overview_figure(summary: pd.DataFrame, model: str) -> Figure:
    """What is off on every data set: pulls as colours, generated over simulated as numbers.

    ``summary`` is that of :func:`~zdc_nb.evaluation.closure.closure_summary`, with the column
    subset. Of the centre the difference (fibres) is written.
    """
    shown = [name for name in (model, "reference+sum") if (summary["model"] == name).any()]
    subsets = order_subsets(summary["subset"])
    summary = summary.assign(
        row=summary["quantity"].where(
            summary["by"] == EVERYTHING, summary["quantity"] + " at " + summary["bin"]
        )
    )
    wanted = (summary["by"] == EVERYTHING) | summary["quantity"].isin(["photons", "lit fibres"])
    summary = summary[wanted]
    rows = list(dict.fromkeys(summary["row"]))
    size = (4.2 + 1.05 * len(subsets) * len(shown), 1.8 + 0.4 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    titles = {model: model, "reference+sum": _FLOOR_NAME.replace(", ", ",\n")}
    for axis, name in zip(axes, shown, strict=True):
        part = summary[summary["model"] == name].set_index(["row", "subset"])
        wide = part["pull"].unstack().reindex(index=rows, columns=subsets)
        pulls = np.clip(wide.to_numpy(np.float64), -_LARGEST_PULL, _LARGEST_PULL)
        axis.set_facecolor("0.93")
        image = axis.imshow(
            pulls, cmap="RdBu_r", vmin=-_LARGEST_PULL, vmax=_LARGEST_PULL, aspect="auto"
        )
        for cell in part.reset_index().to_dict("records"):
            row = cell["row"]
            place = rows.index(row), subsets.index(cell["subset"])
            text = (
                f"{cell['difference']:+.2f}"
                if row.startswith("centre")
                else f"{cell['generated'] / cell['simulated']:.2f}"
                if cell["simulated"]
                else ""
            )
            pale = np.abs(pulls[place]) < 0.6 * _LARGEST_PULL
            axis.text(*place[::-1], text, ha="center", va="center", color="black" if pale else "w")
        axis.set_xticks(range(len(subsets)), [drawn_symbol(subset) for subset in subsets])
        axis.set_yticks(range(len(rows)), rows)
        axis.set_title(titles[name], fontsize=11)
        axis.set_xlabel("data set")
    figure.colorbar(image, ax=axes, label="pull", extend="both", pad=0.01)
    figure.suptitle("Generated over simulated (of the centre: off by, in fibres)")
    return figure
