"""Figures of the benchmark: against the machine's limits, the batch size and the dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from zdc_nb.bench.cases import CASES, Case
from zdc_nb.bench.run import Machine
from zdc_nb.evaluation.figures import columns_of

__all__ = ["batch_figure", "growth_figure", "roofline_figure"]

COLOURS = {
    "ours": "#d55e00",
    "ours bf16": "#7a0177",
    "ours-plain": "#de8f05",
    "nflows": "#0173b2",
    "pyro": "#029e73",
}
LINES = {"ours": "-", "ours bf16": "-", "ours-plain": ":", "nflows": "--", "pyro": "-."}


def roofline_figure(table: pd.DataFrame, machine: Machine) -> Figure:
    """Useful GFLOP/s against arithmetic intensity, under what the machine can do: a panel a case.

    Parameters
    ----------
    table
        of :func:`zdc_nb.bench.results.roofline_table`; the largest network's rows are drawn, the
        batch sizes of a contender joined by a line, a larger marker for a larger batch.
    machine
        its measured rates are the roofs.
    """
    chosen = table[table["dim"] == table["dim"].max()]
    chosen = chosen[chosen["hidden"] == chosen["hidden"].max()]
    cases = _cases(chosen)
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey="row").ravel()
    sizes = {batch: 4.0 + 1.6 * i for i, batch in enumerate(sorted(set(chosen["batch"])))}
    ends = 0.6 * chosen["intensity"].min(), 2.5 * chosen["intensity"].max()
    top = 5 * max(machine.float32_gflops, machine.bfloat16_gflops)
    for i, (axis, case) in enumerate(zip(axes, cases, strict=False)):
        _draw_roofs(axis, machine, ends)
        part = chosen[chosen["case"] == case].assign(area=chosen["batch"].map(sizes) ** 2)
        _draw_lines(axis, part, "intensity", "useful_gflops", "area")
        row = chosen["case"].isin(cases[3 * (i // 3) :][:3])
        axis.set(title=CASES[case], xlabel="useful FLOP per byte that has to be moved")
        axis.set_ylim(0.3 * chosen.loc[row, "useful_gflops"].min(), top)
        axis.title.set_fontsize(10)
        axis.tick_params(labelbottom=True)
    for axis in axes[::3]:
        axis.set_ylabel("useful GFLOP/s")
    for axis in axes[len(cases) :]:
        axis.set_axis_off()
    extra = [_marker(f"batch {batch}", "0.6", markersize=size) for batch, size in sizes.items()]
    network = f"D = {chosen['dim'].iloc[0]}, hidden {chosen['hidden'].iloc[0]}"
    _finish(figure, chosen, f"What each contender makes of the machine: {network}", extra)
    return figure


def _draw_roofs(axis: Axes, machine: Machine, ends: tuple[float, float]) -> None:
    roofs = [("fp32 products", machine.float32_gflops, "0.2")]
    if machine.has_bfloat16:
        roofs.insert(0, ("bf16 products", machine.bfloat16_gflops, "0.6"))
    intensity = np.geomspace(*ends, 400)
    for _, rate, colour in roofs:
        roof = np.minimum(rate, intensity * machine.bandwidth_gbs)
        axis.plot(intensity, roof, color=colour, linewidth=1.4)
    # in the corner in which nothing is drawn: beside the roofs they would lie on the markers
    labels = [f"{name}: {rate:.0f} GFLOP/s" for name, rate, _ in roofs]
    text = "\n".join(["roofs", *labels, f"slope, memory: {machine.bandwidth_gbs:.0f} GB/s"])
    axis.text(0.98, 0.04, text, transform=axis.transAxes, ha="right", fontsize=8, color="0.3")
    axis.set(xscale="log", yscale="log", xlim=ends)
    axis.xaxis.set_major_formatter(FuncFormatter(_plain))
    axis.yaxis.set_major_formatter(FuncFormatter(_plain))
    axis.grid(color="0.93")


def batch_figure(table: pd.DataFrame) -> Figure:
    """Milliseconds a sample against the batch size: a panel for each case, one for each width.

    ``table`` is that of :func:`zdc_nb.bench.results.roofline_table`; its largest dimension is drawn.
    """
    chosen = table[table["dim"] == table["dim"].max()]
    title = f"Time per sample, D = {chosen['dim'].iloc[0]}"
    return _times_figure(chosen, _cases(chosen), "batch", "batch size", title)


def growth_figure(table: pd.DataFrame, batch: int) -> Figure:
    """Milliseconds a sample against the dimensions D, at one batch size: a panel for each case.

    ``table`` is that of :func:`zdc_nb.bench.results.roofline_table`; its largest width is drawn.
    """
    chosen = table[(table["batch"] == batch) & (table["hidden"] == table["hidden"].max())]
    # a case that runs at one D only cannot grow
    counts = chosen.groupby("case")["dim"].nunique()
    cases = [case for case in _cases(chosen) if counts[case] > 1] or _cases(chosen)
    chosen = chosen[chosen["case"].isin(cases)]
    return _times_figure(chosen, cases, "dim", "dimensions D", f"How cost grows: batch {batch}")


def _cases(table: pd.DataFrame) -> list[Case]:
    return [case for case in CASES if (table["case"] == case).any()]


def _times_figure(
    table: pd.DataFrame, cases: Sequence[Case], column: str, label: str, title: str
) -> Figure:
    """Times against a column: a panel for each case, a row for each width."""
    hiddens, ticks = (sorted(table[key].unique()) for key in ("hidden", column))
    size = 2.7 * len(cases) + 0.5, 3.0 * len(hiddens) + 1
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(hiddens), len(cases), squeeze=False, sharex=True, sharey="col")
    for row, hidden in zip(axes, hiddens, strict=True):
        for axis, case in zip(row, cases, strict=True):
            part = table[(table["hidden"] == hidden) & (table["case"] == case)]
            _draw_lines(axis, part, column, "ms_per_sample")
            axis.set_title(f"{case.replace('_', ' ')}\nhidden {hidden}", fontsize=10)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axis.yaxis.set_major_formatter(FuncFormatter(_plain))
            axis.grid(color="0.93")
        row[0].set_ylabel("time per sample (ms)")
    for axis in axes[-1]:
        axis.set_xlabel(label)
    _finish(figure, table, title)
    return figure


def _draw_lines(axis: Axes, table: pd.DataFrame, x: str, y: str, area: str | None = None) -> None:
    """A line for each contender, with open markers for what is extrapolated."""
    for name, part in table.groupby("name", sort=False):
        line, colour = part.sort_values(x), COLOURS[str(name)]
        axis.plot(line[x], line[y], LINES[str(name)], color=colour, linewidth=1.2)
        faces = np.where(line["extrapolated_from"].notna(), "white", colour)
        sizes = line[area] if area else 25
        axis.scatter(line[x], line[y], sizes, c=faces, edgecolors=colour, zorder=2)


def _finish(figure: Figure, chosen: pd.DataFrame, title: str, extra: Sequence[Line2D] = ()) -> None:
    handles = [
        _marker(name, COLOURS[name], linestyle=LINES[name])
        for name in dict.fromkeys(chosen["name"])
    ]
    if chosen["extrapolated_from"].notna().any():
        label = "open: extrapolated from some of the D passes"
        handles.append(_marker(label, "0.3", markerfacecolor="white"))
    handles += extra
    figure.legend(handles=handles, loc="outside lower center", ncols=columns_of(len(handles), 6))
    figure.suptitle(title)


def _marker(label: str, colour: str, linestyle: Any = "", **style: Any) -> Line2D:
    return Line2D([], [], linestyle=linestyle, marker="o", color=colour, label=label, **style)


def _plain(value: float, _: object = None) -> str:
    """A number without powers of ten, where that is short."""
    return f"{value:g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.0e}"
