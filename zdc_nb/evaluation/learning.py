"""The learning curve in pictures and sentences: what should a collaboration simulate?

The table is that of :func:`zdc_nb.study.learning.learning_table`: a row for each curve, number of
repeats, part (``new`` and ``seen`` particles) and metric.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zdc_nb.evaluation.comparison import LEVEL
from zdc_nb.evaluation.names import name_of

__all__ = ["learning_figure", "learning_findings", "learning_pivot"]

SHOWN = ("MAE_cw", "WS")
"""Metrics of the figure and the sentences."""

_PARTS = {
    "new": ("#d55e00", "o", "particles never seen"),
    "seen": ("#0173b2", "s", "particles learned from, simulated anew"),
}

_CURVES = {
    "equal responses": ("particles", "equal numbers of responses"),
    "equal particles": ("responses", "equal numbers of particles"),
}
"""What stands on the axis of each curve, and what its points have in common."""


def learning_figure(table: pd.DataFrame) -> Figure:
    """Errors over their floor: a row of panels for each curve, a column for each metric.

    A line for new and one for seen particles, with intervals; at 1 a generator would be as good as
    new simulations.
    """
    curves = [name for name in _CURVES if name in set(table["curve"])]
    metrics = [name for name in SHOWN if name in set(table["metric"])]
    size = 5.4 * len(metrics) + 0.6, 4.0 * len(curves) + 1.0
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(curves), len(metrics), squeeze=False, sharey="col")
    for row, curve in zip(axes, curves, strict=True):
        for axis, metric in zip(row, metrics, strict=True):
            chosen = table[(table["curve"] == curve) & (table["metric"] == metric)]
            most = float(table.loc[table["metric"] == metric, "ratio_high"].max())
            _panel(axis, chosen, _CURVES[curve][0], most)
            axis.set_ylabel(f"{metric} / its floor")
            axis.set_title(_title(chosen, curve))
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    trainings = int(table["trainings"].max())
    figure.suptitle(
        "Splitting flows on particles never seen and on those they learned from, less is better\n"
        f"(bars: {LEVEL:.0%} intervals over particles and {trainings} "
        f"training{'s' * (trainings > 1)} of each)"
    )
    return figure


def _panel(axis: Axes, table: pd.DataFrame, along: str, most: float) -> None:
    """``most`` is the largest value of a column of panels, which share their axis."""
    for place, (part, (colour, marker, label)) in enumerate(_PARTS.items()):
        line = table[table["part"] == part].sort_values(along)
        axis.errorbar(
            line[along] * (0.97, 1.03)[place],
            line["ratio"],
            np.maximum([line["ratio"] - line["ratio_low"], line["ratio_high"] - line["ratio"]], 0),
            fmt=f"{marker}-",
            color=colour,
            capsize=3,
            label=label,
        )
    axis.set_ylim(0.5, max(2.0, 1.1 * most))
    axis.axhline(
        1.0, color="0.75", linewidth=4, zorder=0, label=f"floor: {name_of('reference+sum')}"
    )
    ticks = table.drop_duplicates(along).sort_values(along)
    labels = [f"{row[along]:.0f}\nx {row['repeats']}" for row in ticks.to_dict("records")]
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(ticks[along], labels)
    axis.minorticks_off()
    marks = [mark for mark in (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 10, 20, 50, 100) if mark <= 1.2 * most]
    axis.set_yticks(marks, [f"{mark:g}" for mark in marks])
    said = {"particles": "training particles", "responses": "training responses"}[along]
    axis.set_xlabel(f"{said} (below: x simulations of each particle)")


def _title(chosen: pd.DataFrame, curve: str) -> str:
    along, common = _CURVES[curve]
    held = "responses" if along == "particles" else "particles"
    return f"{common}: {chosen[held].mean():.0f}"


def learning_pivot(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each point, and for each metric of :data:`SHOWN` what it is on new and seen particles.

    As text: ``value (ratio [low, high])``, photons and multiples of the floor.
    """
    shown = table[table["metric"].isin(SHOWN)]
    text = [
        f"{row['value']:.2f} ({row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}])"
        for row in shown.to_dict("records")
    ]
    keys = ["curve", "repeats", "responses", "particles"]
    wide = shown.assign(text=text, particles=shown["particles"].round().astype(int)).pivot_table(
        index=keys, columns=["metric", "part"], values="text", aggfunc="first", sort=False
    )
    return wide.reset_index()


def learning_findings(table: pd.DataFrame) -> list[str]:
    """What a collaboration should simulate, as far as the curve tells."""
    return [*_sentences(table)]


def _sentences(table: pd.DataFrame) -> Iterator[str]:
    for metric in SHOWN:
        chosen = table[table["metric"] == metric]
        if len(chosen):
            yield _of_responses(chosen[chosen["curve"] == "equal responses"], metric)
    for metric in SHOWN:
        chosen = table[(table["metric"] == metric) & (table["curve"] == "equal particles")]
        if len(chosen):
            yield _of_particles(chosen, metric)
    mae = table[(table["metric"] == SHOWN[0]) & (table["curve"] == "equal responses")]
    if len(mae):
        yield _advice(mae)
    trainings = int(table["trainings"].min())
    yield (
        f"**How sure.** {trainings} training{'s' * (trainings > 1)} of each point, each on "
        "particles of its own. All are of one small network that made as many steps at each point: "
        "a larger or longer training would lower the whole curve, and could change its shape."
        + ("" if trainings > 1 else " One training says nothing of what another would give.")
    )


def _of_responses(chosen: pd.DataFrame, metric: str) -> str:
    new = chosen[chosen["part"] == "new"].sort_values("particles")
    seen = chosen[chosen["part"] == "seen"].sort_values("particles")
    steps = "; ".join(
        f"{one['particles']:.0f} particles x {one['repeats']}: {_ratio(one)} on new, "
        f"{_ratio(other)} on seen ones"
        for one, other in zip(new.to_dict("records"), seen.to_dict("records"), strict=True)
    )
    responses = int(chosen["responses"].iloc[0])
    few, many = new.iloc[0], new.iloc[-1]
    fewer = "smaller" if many["ratio_high"] < few["ratio_low"] else "not shown to be smaller"
    return (
        f"**{metric} over its floor, {responses} responses in every point.** {steps}. On new particles "
        f"the error is {fewer} with many particles than with few."
    )


def _of_particles(chosen: pd.DataFrame, metric: str) -> str:
    new = chosen[chosen["part"] == "new"].sort_values("responses")
    steps = ", ".join(f"{_ratio(row)} from {row['responses']}" for row in new.to_dict("records"))
    less, more = new.iloc[0], new.iloc[-1]
    helps = "helps" if more["ratio_high"] < less["ratio_low"] else "is not shown to help"
    return (
        f"**{metric}, about {new['particles'].mean():.0f} particles in every point.** On new particles "
        f"{steps} responses: simulating the same particles more often {helps}."
    )


def _advice(mae: pd.DataFrame) -> str:
    new = mae[mae["part"] == "new"].sort_values("ratio")
    best = new.iloc[0]
    as_good = new[new["ratio_low"] <= best["ratio_high"]].sort_values("repeats")
    names = " or ".join(f"{repeats}" for repeats in as_good["repeats"])
    gaps = mae.pivot(index="repeats", columns="part", values="ratio").sort_index()
    apart = gaps["new"] / gaps["seen"]
    return (
        f"**What to simulate.** For a given number of responses the smallest {SHOWN[0]} on new particles "
        f"comes of {best['repeats']} simulation{'s' * int(best['repeats'] > 1)} of each particle; what has "
        f"an interval that reaches that of the best: {names}. New particles are {apart.iloc[0]:.2f} times "
        f"as far from their floor as seen ones with {apart.index[0]} and {apart.iloc[-1]:.2f} times with "
        f"{apart.index[-1]} simulations of each: so much of what the flow knew of its particles it had "
        "remembered. Repeats are needed to test a generator by particle, whatever it was trained on."
    )


def _ratio(row: Mapping[Hashable, Any]) -> str:
    return f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
