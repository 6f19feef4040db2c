"""Does a model interpolate between particles, or does it remember them? Tables, figures, sentences.

A model is tested on particles that it learned from, simulated anew (``seen``), and on particles that
training never had (``new``). Both parts hold other particles, which are not equally hard; so each
error is compared with its floor, what new simulations of the same particles score
(``reference+sum``), and the parts by these ratios.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import sparse

from zdc_nb.data.events import Events
from zdc_nb.data.symbols import drawn_symbol
from zdc_nb.evaluation.comparison import (
    LEVEL,
    Resampled,
    gap_over_floor,
    interval,
    intervals,
    over_floor,
)
from zdc_nb.evaluation.conclusions import as_list, listed_names
from zdc_nb.evaluation.figures import colours_of, columns_of
from zdc_nb.evaluation.names import SIMULATED, name_of
from zdc_nb.evaluation.nearest import nearest_response
from zdc_nb.evaluation.tables import in_order
from zdc_nb.params import derive_seed

__all__ = [
    "COPIED",
    "FLOOR",
    "PARTS",
    "distance_figure",
    "errors_by_distance",
    "memorisation",
    "memorisation_figure",
    "memorisation_table",
    "new_particle_findings",
    "remembering",
    "seen_and_new",
    "seen_and_new_figure",
    "seen_and_new_pivot",
]

FLOOR = "reference+sum"
"""What errors are compared with."""

COPIED = "copied"
"""Training responses to the very particles that are asked for, scaled to the photon sum: what memory
without any understanding would look like."""

PARTS = {"seen": "learned from, simulated anew", "new": "never seen"}
"""The two parts, and what their particles are."""

SHOWN = ("MAE_cw", "WS", "centre MAE", "radius MAE")
"""Metrics of tables and figures: photons, and fibres for the last two."""

DISTANCE_METRIC = "MAE_cw"
"""The error that is shown against the distance to what was learned from."""

SAMPLED = 500
"""Most responses whose nearest training response is looked for."""

_BINS, _LEAST_IN_BIN = 4, 10
_CLOSEST = 0.01
"""Quantile of the test responses' distances that counts as a near copy."""

_UNITS = {"centre MAE": "fibres", "radius MAE": "fibres"}


# --- Seen and new ---------------------------------------------------------------------------


def seen_and_new(parts: Mapping[str, Mapping[str, Resampled]]) -> pd.DataFrame:
    """Errors of each model on each part, beside the floor.

    Parameters
    ----------
    parts
        by part and model, metrics as from :func:`~zdc_nb.evaluation.comparison.resample`; a part
        whose responses nobody could simulate again has no :data:`FLOOR`.

    Returns
    -------
    Columns part, model, metric, value, low, high (photons or fibres), ratio (over the floor; empty
    without one), ratio_low, ratio_high, trainings: values with intervals at
    :data:`~zdc_nb.evaluation.comparison.LEVEL` over particles and trainings.
    """
    tables = []
    for part, models in parts.items():
        table = intervals({name: models[name] for name in in_order(models)})
        table.insert(0, "part", part)
        ratios = {
            (name, metric): (ratio, *interval(drawn))
            for name, mine in models.items()
            for metric, (ratio, drawn) in _over_floor(mine, models).items()
        }
        nothing = (np.nan, np.nan, np.nan)
        keys = zip(table["model"], table["metric"], strict=True)
        columns = ["ratio", "ratio_low", "ratio_high"]
        table[columns] = [ratios.get(key, nothing) for key in keys]
        tables.append(table)
    found = pd.concat(tables, ignore_index=True)
    return found[found["metric"].isin(SHOWN)].reset_index(drop=True)


def _over_floor(
    model: Resampled, models: Mapping[str, Resampled]
) -> dict[str, tuple[float, NDArray[np.float64]]]:
    return over_floor(model, models[FLOOR]) if FLOOR in models else {}


def remembering(parts: Mapping[str, Mapping[str, Resampled]]) -> pd.DataFrame:
    """How many times farther from its floor a model is on new particles than on seen ones.

    1: it interpolates as well as it remembers. The particles of the two parts are resampled apart;
    trainings are compared one by one.

    Returns
    -------
    Columns model, metric, gap, low, high; no rows where a part or a floor is missing.
    """
    rows = []
    if all(FLOOR in parts.get(part, {}) for part in PARTS):
        for name in in_order(parts["new"]):
            new, seen = ((parts[part][name], parts[part][FLOOR]) for part in ("new", "seen"))
            for metric, (gap, drawn) in gap_over_floor(new, seen).items():
                if name != FLOOR and metric in SHOWN:
                    rows.append((name, metric, gap, *interval(drawn)))
    return pd.DataFrame(rows, columns=["model", "metric", "gap", "low", "high"])


def seen_and_new_pivot(table: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """A row for each model, as text: errors on each part, in brackets over the floor, and the gap."""
    rows = [
        (row["metric"], row["part"], row["model"], _with_ratio(row))
        for row in table.to_dict("records")
    ]
    rows += [
        (row["metric"], "gap", row["model"], _with_interval(row["gap"], row["low"], row["high"]))
        for row in gaps.to_dict("records")
    ]
    found = pd.DataFrame(rows, columns=["metric", "part", "model", "text"])
    wide = found.pivot(index="model", columns=["metric", "part"], values="text")
    order = [
        (metric, part)
        for metric in SHOWN
        for part in (*PARTS, "gap")
        if (metric, part) in wide.columns
    ]
    return wide.reindex(index=in_order(table["model"]))[order].fillna("")


def _with_ratio(row: Mapping[Any, Any]) -> str:
    value = f"{row['value']:.3g}"
    if row["model"] == FLOOR or np.isnan(row["ratio"]):
        return value
    return f"{value} ({row['ratio']:.2f})"


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def seen_and_new_figure(table: pd.DataFrame, subset: str) -> Figure:
    """Each model's errors over their floor, on seen and on new particles, with intervals.

    Without a floor the errors themselves.
    """
    with_floor = bool(table["ratio"].notna().any())
    metrics = [metric for metric in SHOWN if metric in set(table["metric"])]
    models = [name for name in in_order(table["model"]) if name != FLOOR]
    figure = Figure(
        figsize=(3.1 * len(metrics) + 1.2, 0.5 * len(models) + 2.4), layout="constrained"
    )
    axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    names = ("ratio", "ratio_low", "ratio_high") if with_floor else ("value", "low", "high")
    looks = {"seen": ("#0173b2", "s", 0.15), "new": ("#d55e00", "o", -0.15)}
    for axis, metric in zip(axes, metrics, strict=True):
        for part, (colour, marker, shift) in looks.items():
            chosen = table[(table["part"] == part) & (table["metric"] == metric)]
            chosen = chosen[chosen["model"] != FLOOR].set_index("model")
            there = [name for name in models if name in chosen.index]
            value, low, high = (chosen.loc[there, name].to_numpy() for name in names)
            axis.errorbar(
                value,
                [len(models) - 1 - models.index(name) + shift for name in there],
                xerr=[np.maximum(value - low, 0), np.maximum(high - value, 0)],
                fmt=marker,
                color=colour,
                capsize=2,
                label=f"particles {PARTS[part]}",
            )
        if with_floor:
            axis.axvline(1.0, color="0.75", linewidth=4, zorder=0, label=f"floor: {name_of(FLOOR)}")
            axis.set_xlabel(f"{metric} / its floor")
        else:
            axis.set_xlabel(f"{metric} ({_UNITS.get(metric, 'photons')})")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(models)), models[::-1])
    axes[0].set_ylim(-0.6, len(models) - 0.4)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(
        f"{drawn_symbol(subset)}: the same models on particles seen and new, less is better "
        f"({LEVEL:.0%} intervals)"
    )
    return figure


# --- Distance -------------------------------------------------------------------------------


def errors_by_distance(
    errors: Mapping[str, Mapping[str, pd.DataFrame]],
    distance: NDArray[np.float64],
    draws: int = 400,
) -> pd.DataFrame:
    """:data:`DISTANCE_METRIC` of each model in classes of the distance to what was learned from.

    Parameters
    ----------
    errors
        by part and model, as from :func:`~zdc_nb.evaluation.comparison.errors_by_particle`; seen
        particles are a class of their own, at distance 0.
    distance
        of each new particle to the nearest one that was learned from; those that have none
        (infinite) are left out.
    draws
        of resampled particles, the same ones for all models of a class.

    Returns
    -------
    Columns least, most (fibres; the limits of a class, which hold equal numbers of new particles),
    particles, model, value, low, high (photons), ratio, ratio_low, ratio_high (over the floor; empty
    without one).
    """
    classes: list[tuple[str, NDArray[np.intp], float, float]] = []
    if "seen" in errors:
        count = len(next(iter(errors["seen"].values())))
        classes.append(("seen", np.arange(count), 0.0, 0.0))
    if "new" in errors:
        order = np.argsort(distance, kind="stable")
        order = order[np.isfinite(distance[order])]
        bins = max(1, min(_BINS, len(order) // _LEAST_IN_BIN))
        classes += [
            ("new", rows, float(distance[rows[0]]), float(distance[rows[-1]]))
            for rows in np.array_split(order, bins)
            if len(rows)
        ]
    found = [
        row
        for number, (part, rows, *limits) in enumerate(classes)
        for row in _of_class(errors[part], rows, limits, draws, number)
    ]
    columns = ["least", "most", "particles", "model", "value", "low", "high"]
    return pd.DataFrame(found, columns=[*columns, "ratio", "ratio_low", "ratio_high"])


def _of_class(
    errors: Mapping[str, pd.DataFrame],
    rows: NDArray[np.intp],
    limits: Sequence[float],
    draws: int,
    seed: int,
) -> Iterator[tuple[Any, ...]]:
    count = len(rows)
    rng = np.random.default_rng(derive_seed(seed, "distance", count))
    times = rng.multinomial(count, np.full(count, 1 / count), draws)

    def means(name: str) -> NDArray[np.float64]:
        """The mean over particles by their responses, and the same on resampled ones."""
        chosen = errors[name].iloc[rows]
        weights = np.vstack([np.ones(count), times]) * chosen["responses"].to_numpy()
        values: NDArray[np.float64] = weights @ chosen[DISTANCE_METRIC] / weights.sum(1)
        return values

    floor = means(FLOOR) if FLOOR in errors else np.full(draws + 1, np.nan)
    for name in in_order(errors):
        mine = means(name)
        ratio = mine / floor
        bounds = interval(ratio[1:]) if FLOOR in errors else (np.nan, np.nan)
        yield (*limits, count, name, mine[0], *interval(mine[1:]), ratio[0], *bounds)


def distance_figure(table: pd.DataFrame, subset: str) -> Figure:
    """Errors against the distance to the nearest training particle: in photons, and over the floor."""
    with_floor = bool(table["ratio"].notna().any())
    panels = [("value", "low", "high", f"{DISTANCE_METRIC} (photons)")]
    if with_floor:
        label = f"{DISTANCE_METRIC} / its floor"
        panels.append(("ratio", "ratio_low", "ratio_high", label))
    figure = Figure(figsize=(6.4 * len(panels), 4.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (value, low, high, label) in zip(axes, panels, strict=True):
        _against_distance(axis, table, (value, low, high))
        axis.set_ylabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns_of(len(labels)))
    figure.suptitle(
        f"{drawn_symbol(subset)}: errors against the distance to the nearest particle that was learned from "
        f"({LEVEL:.0%} intervals over particles)"
    )
    return figure


def _against_distance(axis: Axes, table: pd.DataFrame, names: tuple[str, str, str]) -> None:
    models = in_order(table["model"])
    colours = colours_of(models)
    limits = table[["least", "most", "particles"]].drop_duplicates()
    place = {key: k for k, key in enumerate(limits.itertuples(index=False, name=None))}
    for k, name in enumerate(models):
        chosen = table[table["model"] == name]
        if names[0] == "ratio" and name == FLOOR:
            axis.axhline(1.0, color=colours[name], linewidth=4, zorder=0)
            continue
        keys = zip(chosen["least"], chosen["most"], chosen["particles"], strict=True)
        value, low, high = (chosen[column].to_numpy() for column in names)
        axis.errorbar(
            np.array([place[key] for key in keys]) + 0.6 * (k / max(len(models) - 1, 1) - 0.5),
            value,
            [np.maximum(value - low, 0), np.maximum(high - value, 0)],
            fmt="o-",
            markersize=4,
            linewidth=1,
            color=colours[name],
            label=f"floor: {name_of(name)}" if name == FLOOR else name_of(name),
        )
    labels = [
        "0\nlearned from" if most == 0 else f"{least:.2g} to {most:.2g}\n{count} new ones"
        for least, most, count in place
    ]
    axis.set_xticks(range(len(labels)), labels)
    axis.set_xlabel("distance (fibres; 10% in energy count as one), same species")
    axis.set_ylim(bottom=0)


# --- Memorisation ---------------------------------------------------------------------------


def memorisation(
    train: Events, test: Events, answers: Mapping[str, NDArray[Any]], seed: int
) -> pd.DataFrame:
    """How near simulated and generated responses are to the nearest one that was learned from.

    Parameters
    ----------
    train, test
        what was learned from, and N test responses.
    answers
        by model, (N, R, K) responses; response k answers test response k.
    seed
        of the choice of at most :data:`SAMPLED` test responses.

    Returns
    -------
    A row for each test response: particle, ``test`` and a column for each model: distances, see
    :func:`~zdc_nb.evaluation.nearest.nearest_response`.
    """
    rng = np.random.default_rng(derive_seed(seed, "memorisation"))
    chosen = np.sort(rng.permutation(len(test))[:SAMPLED])
    wanted = {"test": test.photons[chosen]}
    names = [*in_order(name for name in answers if name != COPIED)]
    for name in [*names, COPIED] if COPIED in answers else names:
        wanted[name] = sparse.csr_array(answers[name][chosen].reshape(len(chosen), -1))
    # all at once: what is learned from is gone through once
    every = sparse.csr_array(sparse.vstack(list(wanted.values()), format="csr"))
    distances = nearest_response(train.photons, every).reshape(len(wanted), -1)
    columns = dict(zip(wanted, distances, strict=True))
    return pd.DataFrame({"particle": test.particle[chosen], **columns})


def memorisation_table(distances: pd.DataFrame, draws: int = 1000) -> pd.DataFrame:
    """Whether generated responses are nearer to what was learned from than simulated ones.

    Returns
    -------
    A row for each model: closer, the probability that a generated response is closer to its nearest
    training response than the simulated one that it answers, ties counted half (0.5: neither); low,
    high, its interval over resampled particles; copies, the share of generated responses that are
    closer than the closest 1 in 100 of the simulated ones (about 0.01: no more copies than new
    simulations are); median, of the distances.
    """
    _, index, counts = np.unique(distances["particle"], return_inverse=True, return_counts=True)
    rng = np.random.default_rng(derive_seed(0, "memorisation", len(counts)))
    times = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), draws)
    mine = distances["test"].to_numpy()
    rows = []
    for name in distances.columns.drop(["particle", "test"]):
        theirs = distances[name].to_numpy()
        closer = (theirs < mine) + 0.5 * (theirs == mine)
        sums = np.bincount(index, closer, len(counts))
        low, high = interval(times @ sums / (times @ counts))
        copies = float((theirs < np.quantile(mine, _CLOSEST)).mean())
        rows.append((name, float(closer.mean()), low, high, copies, float(np.median(theirs))))
    return pd.DataFrame(rows, columns=["model", "closer", "low", "high", "copies", "median"])


def memorisation_figure(distances: pd.DataFrame, subset: str, part: str) -> Figure:
    """Cumulative distributions of the distances, a line for each model and for new simulations."""
    figure = Figure(figsize=(8.8, 4.8), layout="constrained")
    axis = figure.subplots()
    names = ["test", *distances.columns.drop(["particle", "test"])]
    colours = colours_of(name for name in names if name not in ("test", COPIED))
    for name in names:
        values = np.sort(distances[name].to_numpy())
        share = np.arange(1, len(values) + 1) / len(values)
        if name == "test":
            axis.step(values, share, color="black", linewidth=2.5, linestyle=":", label=SIMULATED)
        elif name == COPIED:
            label = f"{name_of(name)}:\npure memory"
            axis.step(values, share, color="#8c564b", linestyle="--", label=label)
        else:
            label = name_of(name)
            width = 4 if name == FLOOR else 1.4
            axis.step(values, share, color=colours[name], linewidth=width, label=label)
    axis.set_xlabel(
        "distance to the nearest response that was learned from\n(Hellinger; 0: equal, 1: no common fibre)"
    )
    axis.set_ylabel("share of responses that are at most so far")
    axis.set_title(
        f"{drawn_symbol(subset)}: {len(distances)} responses to particles {PARTS[part]}\n"
        "a line left of the dotted one: closer to training than new simulations are"
    )
    figure.legend(loc="outside right upper", fontsize="small")
    axis.set_ylim(0, 1)
    return figure


# --- Sentences ------------------------------------------------------------------------------


def new_particle_findings(
    table: pd.DataFrame, gaps: pd.DataFrame, by_distance: pd.DataFrame, copies: pd.DataFrame
) -> str:
    """Whether the models interpolate or remember, as a Markdown list.

    Parameters
    ----------
    table, gaps, by_distance, copies
        of :func:`seen_and_new`, :func:`remembering`, :func:`errors_by_distance` and
        :func:`memorisation_table`.
    """
    return as_list(
        [
            *_missing(table),
            *_gap_sentences(table, gaps),
            *_distance_sentences(by_distance),
            *_copy_sentences(copies),
        ]
    )


def _missing(table: pd.DataFrame) -> Iterator[str]:
    there = set(table["part"])
    for part, other in (("seen", "new"), ("new", "seen")):
        if part not in there:
            yield (
                f"**Particles {PARTS[part]} are not shown**: these data cannot be simulated again, and "
                f"the test part holds none. What is shown of those {PARTS[other]} tells nothing of "
                "interpolation by itself."
            )
    for part, what in PARTS.items():
        floor = table[(table["part"] == part) & table["ratio"].notna()]
        if part in there and floor.empty:
            yield (
                f"**No floor for particles {what}**: there are no further simulations of them. "
                "Their errors hold what a mean of few responses is off by, too."
            )


def _gap_sentences(table: pd.DataFrame, gaps: pd.DataFrame) -> Iterator[str]:
    for metric in [name for name in SHOWN if name in set(gaps["metric"])]:
        chosen = gaps[gaps["metric"] == metric]
        groups = {
            "farther from the floor on new particles (it remembers)": chosen["low"] > 1,
            "nearer to it there": chosen["high"] < 1,
            "no difference shown": (chosen["low"] <= 1) & (chosen["high"] >= 1),
        }
        said = [
            f"{what}: {listed_names(_gap(row) for row in chosen[which].to_dict('records'))}"
            for what, which in groups.items()
            if which.any()
        ]
        yield f"**{metric}, how many times farther from its floor on new particles than on seen ones.** {'; '.join(said)}."
    mae = gaps[gaps["metric"] == SHOWN[0]]
    best = table[(table["metric"] == SHOWN[0]) & (table["part"] == "new")]
    best = best[(best["model"] != FLOOR) & best["ratio"].notna()]
    if len(best) and len(mae):
        first = best.sort_values("ratio").iloc[0]
        gap = mae.set_index("model").loc[first["model"], "gap"]
        yield (
            f"**Best on new particles**: {first['model']}, {first['value']:.1f} photons in {SHOWN[0]}, "
            f"{_with_interval(first['ratio'], first['ratio_low'], first['ratio_high'])} times the floor. "
            f"A test on seen particles alone would have shown {first['ratio'] / gap:.2f} times."
        )


def _gap(row: Mapping[Any, Any]) -> str:
    return f"{row['model']} {_with_interval(row['gap'], row['low'], row['high'])}"


def _distance_sentences(table: pd.DataFrame) -> Iterator[str]:
    if table.empty:
        return
    new = table[(table["most"] > 0) & table["ratio"].notna() & (table["model"] != FLOOR)]
    if new.empty or new["least"].nunique() < 2:
        return
    near, far = (new[new["least"] == new["least"].agg(end)] for end in ("min", "max"))
    worse: list[str] = []
    rest: list[str] = []
    for one, other in zip(near.to_dict("records"), far.to_dict("records"), strict=True):
        said = f"{one['model']} {one['ratio']:.2f} and {other['ratio']:.2f}"
        (worse if other["ratio_low"] > one["ratio_high"] else rest).append(said)
    yield (
        f"**Distance to training.** {DISTANCE_METRIC} over its floor within {near['most'].iloc[0]:.2g} fibres of a training "
        f"particle, and from {far['least'].iloc[0]:.2g} on. Worse far away: {listed_names(worse)}; "
        f"not shown: {listed_names(rest)}. Particles far away are rarer ones, too: where the floor "
        "itself rises, they are harder to tell whatever was learned."
    )


def _copy_sentences(copies: pd.DataFrame) -> Iterator[str]:
    if copies.empty:
        return
    models = copies[~copies["model"].isin([FLOOR, COPIED])]
    said = {
        "closer to training than new simulations are": models[models["low"] > 0.5],
        "farther": models[models["high"] < 0.5],
        "no difference shown": models[(models["low"] <= 0.5) & (models["high"] >= 0.5)],
    }
    parts = [
        f"{what}: {listed_names(_closer(row) for row in chosen.to_dict('records'))}"
        for what, chosen in said.items()
        if len(chosen)
    ]
    beside = {
        FLOOR: "New simulations scaled to the photon sum",
        COPIED: "Training responses to the same particles, scaled: what pure memory would give",
    }
    floor = "".join(
        f" {beside[row['model']]}: {_closer(row)}."
        for row in copies[copies["model"].isin(list(beside))].to_dict("records")
    )
    most = models.sort_values("copies").iloc[-1]
    yield (
        "**Memorised responses.** Probability that a generated response is closer to its nearest training "
        f"response than the simulated one that it answers (0.5: neither). {'; '.join(parts)}.{floor} "
        f"As close as the closest 1% of the simulated ones: at most {most['copies']:.1%} of the responses "
        f"({most['model']}). Farther is no praise: what looks unlike any simulation is far from all of "
        "them. Closer need not be copied: responses that vary too little are close to many."
    )


def _closer(row: Mapping[Any, Any]) -> str:
    return f"{row['model']} {_with_interval(row['closer'], row['low'], row['high'])}"
