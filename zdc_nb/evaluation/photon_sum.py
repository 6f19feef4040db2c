"""Is the photon sum drawn as it should be? Calibration, quantiles, spectra, beside the floor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from zdc_nb.data.events import FEATURES, Events, Trials
from zdc_nb.data.symbols import drawn_symbol, symbol
from zdc_nb.detector.observables import measure
from zdc_nb.evaluation.metrics import Observed
from zdc_nb.evaluation.names import SIMULATED
from zdc_nb.flows.particle_nets import PhotonSum

if TYPE_CHECKING:
    from zdc_nb.data.events import Split

__all__ = [
    "calibration_curves",
    "calibration_figure",
    "channels_figure",
    "draw_sums",
    "light_table",
    "photon_sum_findings",
    "photon_sum_scores",
    "quantile_figure",
    "quantile_table",
    "sum_spectrum_figure",
]

LEVELS = np.arange(1, 20) / 20
"""At which calibration is looked at."""

QUANTILES = (0.1, 0.5, 0.9)

_DRAWN_NAME = "drawn for the same particles"

_BINS = 4
"""Of the energy, of as many responses each."""

_FEWEST = 200
"""Responses of a bin that quantiles are read off."""

_MOST = 0.9
"""Of the test responses, a share of which further simulations must be there for a floor."""

_SIMULATED, _DRAWN = "#333333", "#d1603d"


def draw_sums(distribution: PhotonSum, seed: int, runs: int = 1) -> NDArray[np.int64]:
    """(runs, N) photon sums, drawn for each of N particles."""
    uniform = np.random.default_rng(seed).random((2, runs, len(distribution.centres)))
    component, place = torch.from_numpy(uniform)
    drawn: NDArray[np.int64] = distribution.from_uniform(component, place).numpy()
    return drawn


def _groups(test: Events) -> dict[str, NDArray[np.bool_]]:
    """Test responses by species, those that are no data set of their own together."""
    named = {name: test.pdg == code for name, code in test.detector.codes.items()}
    others = ~np.isin(test.pdg, [*test.detector.codes.values()])
    return {name: rows for name, rows in (named | {"others": others}).items() if rows.any()}


def calibration_curves(test: Events, distribution: PhotonSum, seed: int) -> pd.DataFrame:
    """How often a photon sum lies below a quantile of its distribution.

    The probability integral transform of a whole number n is drawn evenly between F(n - 1) and F(n)
    (Czado, Gneiting and Held, Biometrics 65 (2009) 1254), and is uniform where the model is right.

    Returns
    -------
    Columns group (``all`` and each species), responses, particles, level, share (of the responses
    below the quantile of that level).
    """
    sums = torch.from_numpy(test.photon_sum)
    upper, lower = distribution.cdf(sums).numpy(), distribution.cdf(sums - 1).numpy()
    place = lower + np.random.default_rng(seed).random(len(test)) * (upper - lower)
    rows = []
    for name, chosen in {"all": np.ones(len(test), bool), **_groups(test)}.items():
        particles = len(np.unique(test.particle[chosen]))
        rows += [
            (name, int(chosen.sum()), particles, level, float((place[chosen] <= level).mean()))
            for level in LEVELS
        ]
    return pd.DataFrame(rows, columns=["group", "responses", "particles", "level", "share"])


def quantile_table(test: Events, drawn: NDArray[np.int64]) -> pd.DataFrame:
    """Quantiles of simulated and drawn photon sums, by species and energy.

    ``drawn`` (runs, N). Columns group, energy (mean of the bin, GeV), responses, level, simulated and
    drawn (photons). Bins of fewer than 200 responses are joined to one.
    """
    energy, sums = test.features[:, FEATURES.index("energy")], test.photon_sum
    rows = []
    for name, chosen in _groups(test).items():
        bins = min(_BINS, max(1, int(chosen.sum()) // _FEWEST))
        edges = np.quantile(energy[chosen], np.linspace(0, 1, bins + 1))
        which = np.clip(np.searchsorted(edges, energy, side="right") - 1, 0, bins - 1)
        for k in range(bins):
            here = chosen & (which == k)
            if not here.any():
                continue
            for level in QUANTILES:
                found = [float(np.quantile(part, level)) for part in (sums[here], drawn[:, here])]
                rows.append((name, energy[here].mean(), int(here.sum()), level, *found))
    columns = ["group", "energy", "responses", "level", "simulated", "drawn"]
    return pd.DataFrame(rows, columns=columns)


def photon_sum_scores(
    split: Split, distribution: PhotonSum, drawn: NDArray[np.int64]
) -> pd.DataFrame:
    """Nats and the distance of spectra, of the model, of who knows no particle, and the floor.

    Returns
    -------
    Columns model (``drawn``; ``ignorant``, the frequencies of the training sums, each count at least
    once; ``reference``, further simulations of the test particles, where there are any), nats
    (-log P of a test sum), WS (1-Wasserstein distance of the spectra, photons).
    """
    # slow to import
    from scipy.stats import wasserstein_distance  # noqa: PLC0415

    test, learned = split.test.photon_sum, split.train.photon_sum
    nats = float(-distribution.log_prob(torch.from_numpy(test)).mean())
    most = int(max(test.max(), learned.max())) + 1
    counts = np.bincount(learned, minlength=most) + 1.0
    ignorant = float(-np.log(counts[test] / counts.sum()).mean())
    rows = [
        ("drawn", nats, float(np.mean([wasserstein_distance(test, run) for run in drawn]))),
        ("ignorant", ignorant, float(wasserstein_distance(test, learned))),
    ]
    known = np.isin(split.test.particle, split.reserved.particle)
    if known.mean() > _MOST:
        # as many of each particle as are tested
        rng = np.random.default_rng(0)
        order = np.argsort(split.reserved.particle, kind="stable")
        labels, start, size = np.unique(
            split.reserved.particle[order], return_index=True, return_counts=True
        )
        place = np.searchsorted(labels, split.test.particle[known])
        pick = order[start[place] + rng.integers(size[place])]
        floor = wasserstein_distance(test[known], split.reserved.photon_sum[pick])
        rows.append(("reference", np.nan, float(floor)))
    return pd.DataFrame(rows, columns=["model", "nats", "WS"])


def calibration_figure(curves: pd.DataFrame, title: str) -> Figure:
    """Share of sums below each quantile, less what it should be, for each species."""
    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, part in curves.groupby("group", sort=False):
        main = name == "all"
        axis.plot(
            part["level"],
            part["share"] - part["level"],
            "o-",
            ms=3,
            lw=2.5 if main else 1,
            color="black" if main else None,
            label=f"{drawn_symbol(str(name))} ({part['particles'].iloc[0]} particles)",
        )
    axis.axhline(0, color="0.5", ls=":")
    axis.set_xlabel("level of the quantile")
    axis.set_ylabel("share of simulated sums below it, less the level")
    axis.set_title(title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    return figure


def quantile_figure(table: pd.DataFrame, title: str) -> Figure:
    """Quantiles against energy: simulated as marks, drawn as lines; a panel a species."""
    groups = list(dict.fromkeys(table["group"]))
    figure = Figure(figsize=(2.9 * len(groups) + 0.6, 3.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(groups), sharey=True))
    for axis, group in zip(axes, groups, strict=True):
        for level, part in table[table["group"] == group].groupby("level"):
            style = "-" if level == 0.5 else "--"
            axis.plot(part["energy"], part["drawn"], style, marker="_", color=_DRAWN)
            axis.plot(part["energy"], part["simulated"], "o", ms=4, color=_SIMULATED)
        axis.set_title(drawn_symbol(group))
        axis.set_yscale("log")
        axis.set_xlabel("energy (GeV)")
    axes[0].set_ylabel("10, 50 and 90% points\nof the photon sum (photons)")
    axes[0].plot([], [], "o", ms=4, color=_SIMULATED, label=SIMULATED)
    axes[0].plot([], [], "-", color=_DRAWN, label=_DRAWN_NAME)
    _legend_below(figure, axes[0])
    figure.suptitle(title)
    return figure


def sum_spectrum_figure(test: Events, drawn: NDArray[np.int64], title: str) -> Figure:
    """Spectra of the photon sum, simulated and drawn, and their ratio."""
    sums = test.photon_sum
    edges = np.unique(np.rint(np.geomspace(sums.min(), sums.max() + 1, 40)))
    figure = Figure(figsize=(6.6, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    counts = np.histogram(sums, edges)[0]
    mean = np.histogram(drawn, edges)[0] / len(drawn)
    upper.stairs(counts, edges, color=_SIMULATED, label=SIMULATED)
    upper.stairs(mean, edges, color=_DRAWN, label=_DRAWN_NAME)
    upper.set_yscale("log")
    upper.set_ylabel("responses in a bin")
    upper.set_title(title)
    enough = counts > 0
    middle = np.sqrt(edges[:-1] * edges[1:])[enough]
    ratio, error = (mean / np.maximum(counts, 1))[enough], 1 / np.sqrt(counts[enough])
    lower.errorbar(middle, ratio, ratio * error, fmt=".", color=_DRAWN, lw=1)
    lower.axhline(1, color="0.5", ls=":")
    lower.set_ylim(0.5, 1.5)
    lower.set_xscale("log")
    lower.set_ylabel("drawn / simulated")
    lower.set_xlabel("photon sum (photons)")
    _legend_below(figure, upper)
    return figure


def channels_figure(test: Events, drawn: Observed, title: str) -> Figure:
    """Spectra of the channels, simulated and end to end, and their ratios.

    ``drawn`` is of all generations, each array (runs, N, columns).
    """
    names = test.detector.channels
    simulated = measure(test.responses, test.detector)[0]
    figure = Figure(figsize=(2.7 * len(names), 4.4), layout="constrained")
    axes = figure.subplots(2, len(names), sharex="col", sharey="row", height_ratios=[3, 1])
    axes = axes.reshape(2, len(names))
    for k, name in enumerate(names):
        upper, lower = axes[:, k]
        values, generated = simulated[:, k], drawn.channels[..., k]
        # a bin of its own for what is dark
        whole = np.unique(np.rint(np.geomspace(1, values.max() + 2, 24)))
        edges = np.concatenate([[0.3], whole - 0.5])
        counts = np.histogram(np.maximum(values, 0.4), edges)[0]
        mean = np.histogram(np.maximum(generated, 0.4), edges)[0] / len(generated)
        upper.stairs(counts, edges, color=_SIMULATED, label=SIMULATED)
        upper.stairs(mean, edges, color=_DRAWN, label=_DRAWN_NAME)
        enough = counts > 0
        ratio = (mean / np.maximum(counts, 1))[enough]
        middle = np.sqrt(edges[:-1] * edges[1:])[enough]
        error = ratio / np.sqrt(counts[enough])
        lower.errorbar(middle, ratio, error, fmt=".", color=_DRAWN, lw=1)
        lower.axhline(1, color="0.5", ls=":")
        upper.set_title(name)
        lower.set_xlabel("photons")
        lower.set_xscale("log")
    axes[0, 0].set_yscale("log")
    axes[1, 0].set_ylim(0.5, 1.5)
    axes[0, 0].set_ylabel("responses in a bin\n(leftmost bin: no photon)")
    axes[1, 0].set_ylabel("over simulated")
    _legend_below(figure, axes[0, 0])
    figure.suptitle(title)
    return figure


def _legend_below(figure: Figure, axis: Axes) -> None:
    """Below the panels, where it lies on nothing."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def light_table(trials: Trials, events: Events, drawn: NDArray[np.int64]) -> pd.DataFrame:
    """How much light particles send in all, the dark ones among them, simulated and drawn.

    Parameters
    ----------
    trials
        P particles and how often each was simulated.
    events
        the lit ones of these simulations, and whatever else.
    drawn
        (runs, P) photon sums drawn for them, 0 where there is no light.

    Returns
    -------
    Columns group, particles, simulations, lit_simulated and lit_drawn (shares), photons_simulated and
    photons_drawn (mean of all simulations), ratio of the latter.
    """
    row = trials.find(events)
    # a simulation ends at a number of responses, in the middle of its last particles
    whole = np.bincount(row[row >= 0], minlength=len(trials)) == trials.lit
    trials, drawn = trials[whole], drawn[:, whole]
    row = trials.find(events)
    light = np.bincount(row[row >= 0], weights=events.photon_sum[row >= 0], minlength=len(trials))
    codes = events.detector.codes
    named = {name: trials.pdg == code for name, code in codes.items()}
    named["others"] = ~np.isin(trials.pdg, [*codes.values()])
    rows = []
    for name, here in ({"all": np.ones(len(trials), np.bool_)} | named).items():
        if not here.any():
            continue
        weights = trials.simulated[here]
        total = int(weights.sum())
        mine = drawn[:, here]
        lit = np.average((mine > 0).mean(0), weights=weights)
        given, found = light[here].sum() / total, np.average(mine.mean(0), weights=weights)
        shares = (trials.lit[here].sum() / total, lit)
        ratio = found / given if given else np.nan
        rows.append((name, int(here.sum()), total, *shares, given, found, ratio))
    columns = ["group", "particles", "simulations", "lit_simulated", "lit_drawn"]
    return pd.DataFrame(rows, columns=[*columns, "photons_simulated", "photons_drawn", "ratio"])


def photon_sum_findings(subset: str, scores: pd.DataFrame, curves: pd.DataFrame) -> str:
    """What the numbers say, in sentences."""
    found = scores.set_index("model")
    nats = found["nats"]
    first = f"On {symbol(subset)} the photon sum of a test response has {nats['drawn']:.2f} nats; "
    said = [first + f"who knows no particle has {nats['ignorant']:.2f}."]
    text = (
        f"The spectrum of drawn sums is {found.WS['drawn']:.2f} photons from the simulated one (WS)"
    )
    if "reference" in found.index:
        floor = found.WS["reference"]
        text += (
            f", {found.WS['drawn'] / floor:.2f} times what further simulations of the same particles "
            f"have ({floor:.2f})"
        )
    said.append(text + ".")
    off = curves.assign(off=(curves["share"] - curves["level"]).abs())
    overall = off[off["group"] == "all"]["off"].max()
    species = off[off["group"] != "all"]
    worst = species.sort_values("off").iloc[-1]
    said.append(
        f"Its quantiles are off by at most {overall:.3f} in all, and by {worst['off']:.3f} for "
        f"{symbol(str(worst['group']))}, which has {worst['particles']} test particles"
        + (", too few to say much." if worst["particles"] < 50 else ".")
    )
    return " ".join(said)
