"""Figures of the benchmark: against the machine's limits, the batch size and the dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from zdc_nb.bench.cases import CASES
from zdc_nb.bench.machine import Machine

__all__ = ["batch_figure", "growth_figure", "roofline_figure"]

COLOURS = {
    "ours": "#d55e00",
    "ours bf16": "#7a0177",
    "ours-reference": "#de8f05",
    "nflows": "#0173b2",
    "pyro": "#029e73",
}
LINES: dict[str, Literal["-", ":", "--", "-."]] = {
    "ours": "-",
    "ours bf16": "-",
    "ours-reference": ":",
    "nflows": "--",
    "pyro": "-.",
}


def roofline_figure(table: pd.DataFrame, machine: Machine) -> Figure:
    """Useful GFLOP/s against arithmetic intensity, under what the machine can do: a panel a case.

    Parameters
    ----------
    table
        of :func:`zdc_nb.bench.results.roofline_table`; the largest network's rows are drawn, the batch
        sizes of a contender joined by a line, a larger marker for a larger batch.
    machine
        its measured rates are the roofs.
    """
    chosen = table[table["dim"] == table["dim"].max()]
    chosen = chosen[chosen["hidden"] == chosen["hidden"].max()]
    cases = [case for case in CASES if (chosen["case"] == case).any()]
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey="row").ravel()
    ends = 0.6 * chosen["intensity"].min(), 2.5 * chosen["intensity"].max()
    sizes = {batch: 4.0 + 1.6 * i for i, batch in enumerate(sorted(set(chosen["batch"])))}
    for axis, case in zip(axes, cases, strict=False):
        _draw_roofs(axis, machine, ends)
        for name, part in chosen[chosen["case"] == case].groupby("name", sort=False):
            line = part.sort_values("batch")
            colour = COLOURS[str(name)]
            style = LINES[str(name)]
            axis.plot(line["intensity"], line["useful_gflops"], style, color=colour, linewidth=1)
            for row in line.itertuples():
                axis.plot(
                    row.intensity,
                    row.useful_gflops,
                    "o",
                    color=colour,
                    markersize=sizes[row.batch],
                    markerfacecolor="white" if pd.notna(row.extrapolated_from) else colour,
                )
        axis.set_title(CASES[case], fontsize=10)
    for row, here in ((0, cases[:3]), (3, cases[3:])):
        lowest = chosen.loc[chosen["case"].isin(here), "useful_gflops"].min()
        if here:
            axes[row].set_ylim(
                0.3 * lowest, 5 * max(machine.float32_gflops, machine.bfloat16_gflops)
            )
    for axis in axes[: len(cases)]:
        axis.set_xlabel("useful FLOP per byte that has to be moved")
        axis.tick_params(labelbottom=True)
    for axis in axes[::3]:
        axis.set_ylabel("useful GFLOP/s")
    for axis in axes[len(cases) :]:
        axis.set_axis_off()
    extra = [_dot("0.6", f"batch {batch}", size) for batch, size in sizes.items()]
    network = f"D = {chosen['dim'].iloc[0]}, hidden {chosen['hidden'].iloc[0]}"
    _finish(figure, chosen, f"What each contender makes of the machine: {network}", extra)
    return figure


def _draw_roofs(axis: Axes, machine: Machine, ends: tuple[float, float]) -> None:
    roofs = [("fp32 products", machine.float32_gflops, "0.2")]
    if machine.has_bfloat16:
        roofs.append(("bf16 products", machine.bfloat16_gflops, "0.6"))
    intensity = np.geomspace(*ends, 400)
    for _, rate, colour in reversed(roofs):
        roof = np.minimum(rate, intensity * machine.bandwidth_gbs)
        axis.plot(intensity, roof, color=colour, linewidth=1.4)
    # in the corner in which nothing is drawn: beside the roofs they would lie on the markers
    labels = [f"{name}: {rate:.0f} GFLOP/s" for name, rate, _ in reversed(roofs)]
    axis.text(
        0.98,
        0.04,
        "\n".join(["roofs", *labels, f"slope, memory: {machine.bandwidth_gbs:.0f} GB/s"]),
        transform=axis.transAxes,
        horizontalalignment="right",
        fontsize=8,
        color="0.3",
    )
    axis.set(xscale="log", yscale="log", xlim=ends)
    axis.xaxis.set_major_formatter(FuncFormatter(_plain))
    axis.yaxis.set_major_formatter(FuncFormatter(_plain))
    axis.grid(color="0.93")


def batch_figure(table: pd.DataFrame) -> Figure:
    """Milliseconds a sample against the batch size: a panel for each case, one for each width.

    ``table`` is that of :func:`zdc_nb.bench.results.records_table`; its largest dimension is drawn.
    """
    chosen = table[table["dim"] == table["dim"].max()]
    hiddens = sorted(chosen["hidden"].unique())
    cases = [case for case in CASES if (chosen["case"] == case).any()]
    figure = Figure(figsize=(2.6 * len(cases) + 0.5, 3.0 * len(hiddens) + 1), layout="constrained")
    axes = figure.subplots(len(hiddens), len(cases), squeeze=False, sharex=True, sharey="col")
    batches = sorted(chosen["batch"].unique())
    for row, hidden in zip(axes, hiddens, strict=True):
        for axis, case in zip(row, cases, strict=True):
            part = chosen[(chosen["hidden"] == hidden) & (chosen["case"] == case)]
            _draw_lines(axis, part, "batch")
            _log_axes(axis, batches)
            axis.set_title(f"{case.replace('_', ' ')}\nhidden {hidden}", fontsize=10)
        row[0].set_ylabel("time per sample (ms)")
    for axis in axes[-1]:
        axis.set_xlabel("batch size")
    _finish(figure, chosen, f"Time per sample, D = {chosen['dim'].iloc[0]}")
    return figure


def growth_figure(table: pd.DataFrame, batch: int) -> Figure:
    """Milliseconds a sample against the dimensions D, at one batch size: a panel for each case.

    ``table`` is that of :func:`zdc_nb.bench.results.records_table`; its largest width is drawn.
    """
    chosen = table[(table["batch"] == batch) & (table["hidden"] == table["hidden"].max())]
    dims = sorted(chosen["dim"].unique())
    # a case that runs at one D only cannot grow
    counts = chosen.groupby("case")["dim"].nunique()
    cases = [case for case in CASES if counts.get(case, 0) > 1] or list(counts.index)
    chosen = chosen[chosen["case"].isin(cases)]
    figure = Figure(figsize=(2.9 * len(cases) + 0.5, 4.2), layout="constrained")
    axes = figure.subplots(1, len(cases), squeeze=False, sharex=True)[0]
    for axis, case in zip(axes, cases, strict=True):
        _draw_lines(axis, chosen[chosen["case"] == case], "dim")
        _log_axes(axis, dims)
        axis.set_title(case.replace("_", " "), fontsize=10)
        axis.set_xlabel("dimensions D")
    axes[0].set_ylabel("time per sample (ms)")
    _finish(figure, chosen, f"How cost grows: batch {batch}, hidden {chosen['hidden'].iloc[0]}")
    return figure


def _draw_lines(axis: Axes, part: pd.DataFrame, column: str) -> None:
    for name, one in part.groupby("name", sort=False):
        line = one.sort_values(column)
        axis.plot(
            line[column],
            line["ms_per_sample"],
            LINES[str(name)],
            color=COLOURS[str(name)],
            linewidth=1.4,
            label=str(name),
        )
        for hollow in (False, True):
            some = line[line["extrapolated_from"].notna() == hollow]
            axis.plot(
                some[column],
                some["ms_per_sample"],
                "o",
                color=COLOURS[str(name)],
                markerfacecolor="white" if hollow else COLOURS[str(name)],
                markersize=5,
            )


def _log_axes(axis: Axes, ticks: Sequence[Any]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(_plain))
    axis.grid(color="0.93")


def _finish(figure: Figure, chosen: pd.DataFrame, title: str, extra: Sequence[Line2D] = ()) -> None:
    handles = [
        Line2D([], [], linestyle=LINES[name], marker="o", color=COLOURS[name], label=name)
        for name in dict.fromkeys(chosen["name"])
    ]
    if chosen["extrapolated_from"].notna().any():
        handles.append(
            Line2D(
                [],
                [],
                linestyle="",
                marker="o",
                markerfacecolor="white",
                color="0.3",
                label="open: extrapolated from some of the D passes",
            )
        )
    handles += extra
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    figure.suptitle(title)


def _dot(colour: str, label: str, size: float) -> Line2D:
    return Line2D([], [], linestyle="", marker="o", color=colour, label=label, markersize=size)


def _plain(value: float, _: object = None) -> str:
    """A number without powers of ten, where that is short."""
    return f"{value:g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.0e}"
