"""Figures of whole collisions: spectra of sums, asymmetries and centres, generated and simulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from zdc_nb.detector.geometry import Detector
from zdc_nb.evaluation.collisions import channel_column, collision_quantities, quantity_name

__all__ = ["asymmetry_figure", "centre_figure", "sum_figure"]

_LABELS = ("simulated", "simulated again", "generated")
_COLOURS = ("#333333", "#7f9fbf", "#d1603d")


def sum_figure(tables: Sequence[pd.DataFrame], detector: Detector, title: str) -> Figure:
    """Spectra of photon and channel sums of the events on each side, and their ratios to simulated.

    ``tables`` are sums of the same events: simulated, simulated again, generated.
    """
    names = ["photons", *map(channel_column, detector.channels)]
    sides, found = detector.sides, [collision_quantities(table, detector) for table in tables]
    figure = Figure(figsize=(2.5 * len(names), 3.9 * len(sides) + 0.4), layout="constrained")
    axes = figure.subplots(
        2 * len(sides), len(names), sharex="col", height_ratios=[3, 1] * len(sides), squeeze=False
    )
    for k, name in enumerate(names):
        most = max(part[side, name].max() for part in found for side in sides)
        whole = np.unique(np.rint(np.geomspace(1, most + 2, 22)))
        # a bin of its own for what is dark
        edges = np.concatenate([[0.3], whole - 0.5])
        for place, side in enumerate(sides):
            upper, lower = axes[2 * place : 2 * place + 2, k]
            values = [np.maximum(part[side, name], 0.4) for part in found]
            _histogram(upper, values, edges)
            _ratios(lower, values, edges)
            upper.set_yscale("log")
            upper.set_ylim(bottom=0.7)
            upper.set_title(f"{quantity_name(name)}, {side}", fontsize=10)
            lower.set_xscale("log")
        axes[-1, k].set_xlabel("photons of an event")
    for place in range(len(sides)):
        axes[2 * place, 0].set_ylabel("events in a bin\n(leftmost: no photon)")
        axes[2 * place + 1, 0].set_ylabel("over\nsimulated")
    return _finished(figure, axes[0, 0], title)


def asymmetry_figure(tables: Sequence[pd.DataFrame], detector: Detector, title: str) -> Figure:
    """Distributions of all asymmetries of the events."""
    return _distributions(
        tables, detector, ("left_right", "up_down", "side_asymmetry"), title, np.linspace(-1, 1, 31)
    )


def centre_figure(tables: Sequence[pd.DataFrame], detector: Detector, title: str) -> Figure:
    """Distributions of the row and the column of the centre of an event's light."""
    return _distributions(tables, detector, ("row", "column"), title, None)


def _distributions(
    tables: Sequence[pd.DataFrame],
    detector: Detector,
    names: Sequence[str],
    title: str,
    edges: NDArray[np.float64] | None,
) -> Figure:
    found = [collision_quantities(table, detector) for table in tables]
    keys = [key for key in found[0] if key[1] in names]
    figure = Figure(figsize=(2.9 * len(keys), 3.9), layout="constrained")
    axes = figure.subplots(2, len(keys), sharex="col", height_ratios=[3, 1], squeeze=False)
    for (upper, lower), key in zip(axes.T, keys, strict=True):
        side, name = key
        values = [part[key][~np.isnan(part[key])] for part in found]
        bins = edges
        if bins is None:
            fibres = detector.shape[0 if name == "row" else 1]
            bins = np.linspace(-0.5, fibres - 0.5, 32)
        _histogram(upper, values, bins)
        _ratios(lower, values, bins)
        upper.set_title(f"{quantity_name(name)}, {side}", fontsize=10)
        lower.set_xlabel("fibres" if name in ("row", "column") else "asymmetry")
    axes[0, 0].set_ylabel("events in a bin")
    axes[1, 0].set_ylabel("over\nsimulated")
    return _finished(figure, axes[0, 0], title)


def _histogram(
    axis: Axes, values: Sequence[NDArray[np.float64]], edges: NDArray[np.float64]
) -> None:
    styles: tuple[dict[str, Any], ...] = ({"fill": True, "alpha": 0.25}, {"ls": "--"}, {"lw": 1.5})
    for part, colour, label, style in zip(values, _COLOURS, _LABELS, styles, strict=True):
        counts = np.histogram(part, edges)[0]
        axis.stairs(counts, edges, color=colour, label=label, **style)


def _ratios(axis: Axes, values: Sequence[NDArray[np.float64]], edges: NDArray[np.float64]) -> None:
    """Over simulated, where that has an event; with the square roots of both counts as errors."""
    counts, *others = (np.histogram(part, edges)[0] for part in values)
    enough = counts > 0
    middle = (edges[:-1] + edges[1:])[enough] / 2
    for other, colour in zip(others, _COLOURS[1:], strict=True):
        ratio = other[enough] / counts[enough]
        error = ratio * np.sqrt(1 / counts[enough] + 1 / np.maximum(other[enough], 1))
        axis.errorbar(middle, ratio, error, fmt=".", ms=4, color=colour, lw=1)
    axis.axhline(1, color="0.5", ls=":")
    axis.set_ylim(0, 2)


def _finished(figure: Figure, axis: Axes, title: str) -> Figure:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(title)
    return figure
