"""Does the channel loss, or the centre loss, help? Error against its weight, in pictures and sentences.

A table here has a row for each metric of each model of each study and data set, with the columns

study, subset, model, start
    what the study is called, such as ``fibres``; names; ``scratch`` or ``teacher``, where a student
    began (empty for what is no student).
loss, weight
    ``channel`` or ``centre``, the same in all rows; its weight, 0 without it; empty where more than the weight tells a student from the
    setup ``bs`` of the same start.
metric, value, low, high, trainings
    mean over trainings and generations, with its interval.
baseline, change, change_low, change_high, improvement
    the student without physics of the same start, and against it the change (per cent) with its
    interval, and the probability that it is an improvement.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zdc_nb.data.symbols import drawn_symbol
from zdc_nb.evaluation.comparison import LEVEL
from zdc_nb.evaluation.conclusions import listed_names
from zdc_nb.evaluation.figures import COLOURS
from zdc_nb.evaluation.names import name_of

__all__ = ["MADE_FOR", "claim_figure", "claim_findings", "claim_rest"]

_STARTS = {"scratch": ("#d55e00", "o", "from scratch"), "teacher": ("#0173b2", "s", "as teacher")}

_UNITS = {"centre MAE": "fibres", "radius MAE": "fibres"}

MADE_FOR = {"channel": "MAE_cw", "centre": "centre MAE"}
"""The error that a loss is to make smaller."""

_PRICE = {"channel": ("centre MAE", "radius MAE"), "centre": ("MAE_cw", "radius MAE")}
"""What must not become worse for it."""

_NAMES = {"MAE_cw": "channels", "centre MAE": "centre", "radius MAE": "radius"}


def claim_figure(table: pd.DataFrame, metric: str) -> Figure:
    """A metric against the weight of the loss, with intervals.

    A panel for each data set (row) and study (column), a line for each start; beside them the
    teacher, and new simulations scaled to the photon sum (``reference+sum``). Where every data set is
    of one study alone, all panels stand in one row.
    """
    chosen = table[table["metric"] == metric]
    subsets, studies = (list(dict.fromkeys(chosen[key])) for key in ("subset", "study"))
    grid = [[(subset, name) for name in studies] for subset in subsets]
    pairs = list(dict.fromkeys(zip(chosen["subset"], chosen["study"], strict=True)))
    one_row = len(pairs) == len(subsets) > 1
    if one_row:
        grid = [pairs]
    size = max(9.0, 4.4 * len(grid[0]) + 0.8), 3.5 * len(grid) + 1.0
    figure = Figure(figsize=size, layout="constrained")
    sharing: Literal["none", "row"] = "none" if one_row else "row"
    axes = figure.subplots(len(grid), len(grid[0]), squeeze=False, sharey=sharing)
    weights = sorted({float(weight) for weight in chosen["weight"].dropna()} - {0.0})
    for row, places in zip(axes, grid, strict=True):
        shown = []
        for axis, (subset, name) in zip(row, places, strict=True):
            part = chosen[(chosen["subset"] == subset) & (chosen["study"] == name)]
            if part.empty:
                axis.remove()
                continue
            shown.append(axis)
            _against_weight(axis, part, weights)
            trainings = int(part["trainings"].max())
            axis.set_title(
                f"{drawn_symbol(subset)}, {name}, {trainings} training{'s' * (trainings > 1)} of each"
            )
            axis.set_xlabel(f"weight of the {_loss(table)} loss (0: without)")
        for axis in shown if one_row else shown[:1]:
            axis.set_ylabel(f"{metric} ({_UNITS.get(metric, 'photons')})")
            axis.tick_params(labelleft=True)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(
        f"{metric} of students on particles never seen, less is better\n"
        f"(bars: {LEVEL:.0%} intervals over particles and trainings)"
    )
    return figure


def _against_weight(axis: Axes, part: pd.DataFrame, weights: list[float]) -> None:
    none = weights[0] / 10 if weights else 0.1  # where a logarithmic axis has no weight
    for start, (colour, marker, label) in _STARTS.items():
        line = part[(part["start"] == start) & part["weight"].notna()].sort_values("weight")
        if line.empty:
            continue
        axis.errorbar(
            line["weight"].replace(0.0, none) * (1.04 if start == "scratch" else 0.96),
            line["value"],
            [line["value"] - line["low"], line["high"] - line["value"]],
            fmt=f"{marker}-",
            color=colour,
            capsize=3,
            label=f"students, begun {label}",
        )
    for model, style, label in (
        ("teacher", "--", "their teacher"),
        ("reference+sum", "-", name_of("reference+sum")),
    ):
        for value in part.loc[part["model"] == model, "value"]:
            axis.axhline(value, color=COLOURS[model], linestyle=style, label=label)
    axis.set_xscale("log")
    axis.set_xticks([none, *weights], ["0", *(f"{weight:g}" for weight in weights)])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)


def claim_rest(table: pd.DataFrame) -> pd.DataFrame:
    """Every student against the one without physics: a row each, changes as text.

    Columns study, subset, model, and the change of each metric (per cent) with its interval. No
    rows for an empty table.
    """
    if table.empty:
        return table
    rest = table[(table["start"] != "") & table["change"].notna()]
    text = [
        f"{row['change']:+.1f} [{row['change_low']:+.1f}, {row['change_high']:+.1f}]"
        for row in rest.to_dict("records")
    ]
    keys = ["study", "subset", "model"]
    rest = rest.assign(text=text)
    wide = rest.pivot(index=keys, columns="metric", values="text")
    order = pd.MultiIndex.from_frame(rest[keys].drop_duplicates())
    return wide.reindex(order)[list(dict.fromkeys(rest["metric"]))].reset_index()


def claim_findings(table: pd.DataFrame) -> list[str]:
    """What is shown, and what is not, of the loss."""
    return [*_sentences(table)]


def _loss(table: pd.DataFrame) -> str:
    return str(table["loss"].iloc[0])


def _sentences(table: pd.DataFrame) -> Iterator[str]:
    loss = _loss(table)
    price = " and ".join(_NAMES[metric] for metric in _PRICE[loss])
    verdicts = []
    for (study, start), part in table[table["weight"].notna()].groupby(
        ["study", "start"], sort=False
    ):
        where = f"{study}, begun {_STARTS[str(start)][2]}"
        found = _helpful(part)
        said = [_best(part[part["subset"] == subset]) for subset in dict.fromkeys(part["subset"])]
        yield f"**{where}.** {' '.join(said)}"
        verdicts.append(
            f"{where}: yes, with errors of {price} that are not shown to be larger, on "
            f"{listed_names(found['free'])}; at the price of a larger one on "
            f"{listed_names(found['paid'])}; not shown on {listed_names(found['none'])}"
        )
    yield (
        f"**Does a {loss} loss of any weight give a smaller {MADE_FOR[loss]}?** (Shown where the "
        f"{LEVEL:.0%} interval of the change leaves out 0, at one weight at least.) "
        f"{'. '.join(verdict[0].upper() + verdict[1:] for verdict in verdicts)}."
    )
    trainings = int(table.loc[table["start"] != "", "trainings"].min())
    tried = table.loc[(table["metric"] == MADE_FOR[loss]) & (table["weight"] > 0)]
    yield (
        f"**How sure.** {trainings} training{'s' * (trainings > 1)} of each model at least, "
        f"{len(tried)} changes of {MADE_FOR[loss]}: without any effect about {(1 - LEVEL) * len(tried):.1f} "
        "of them would leave out 0."
        + ("" if trainings > 1 else " One training says nothing of what another seed would give.")
    )


def _best(part: pd.DataFrame) -> str:
    """Of one start on one data set: the best weight, what it brings and what it costs."""
    loss = _loss(part)
    made_for, unit = MADE_FOR[loss], _UNITS.get(MADE_FOR[loss], "photons")
    digits = 1 if unit == "photons" else 2
    mae = part[part["metric"] == made_for]
    with_loss = mae[mae["weight"] > 0]
    subset = str(part["subset"].iloc[0])
    if with_loss.empty:
        return f"{subset}: no {loss} loss was tried."
    best = with_loss.sort_values("value").iloc[0]
    others = part[(part["model"] == best["model"]) & part["metric"].isin(["WS", *_PRICE[loss]])]
    prices = [f"{row['metric']} {_change(row)}" for row in others.to_dict("records")]
    bare = float(mae.loc[mae["weight"] == 0, "value"].iloc[0])
    worse = with_loss[with_loss["change_low"] > 0]
    return (
        f"{subset}: the smallest {made_for} is at weight {best['weight']:g}, {bare:.{digits}f} to "
        f"{best['value']:.{digits}f} {unit} ({_change(best)}); the same students' {', '.join(prices)}. "
        f"Shown worse in {made_for}: weights {listed_names(f'{w:g}' for w in worse['weight'])}."
    )


def _change(row: Mapping[Hashable, Any] | pd.Series) -> str:
    return f"{row['change']:+.0f}% [{row['change_low']:+.0f}, {row['change_high']:+.0f}]"


def _helpful(part: pd.DataFrame) -> dict[str, list[str]]:
    """Data sets where some weight helps: ``free``, only ``paid`` for in shape, or ``none``."""
    found: dict[str, list[str]] = {"free": [], "paid": [], "none": []}
    loss = _loss(part)
    for subset, rows in part[part["weight"] > 0].groupby("subset", sort=False):
        helpful = rows.loc[rows["metric"].eq(MADE_FOR[loss]) & (rows["change_high"] < 0), "model"]
        costly = rows.loc[rows["metric"].isin(_PRICE[loss]) & (rows["change_low"] > 0), "model"]
        kind = "free" if {*helpful} - {*costly} else "paid" if len(helpful) else "none"
        found[kind].append(str(subset))
    return found
