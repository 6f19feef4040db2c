"""Does a particle light the detector? Calibration and ROC of what says so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from zdc_nb.data.events import Trials
from zdc_nb.data.symbols import symbol

__all__ = [
    "calibration_error",
    "reliability_table",
    "signal_figure",
    "signal_findings",
    "signal_scores",
]

BINS = 15
"""Of the probability, of equal width, as is usual for the expected calibration error."""


def reliability_table(probability: NDArray[np.float64], trials: Trials) -> pd.DataFrame:
    """Predicted probability against the share of simulations that were lit, by bins of the first.

    Every simulation counts once. Columns low, high (of the bin), simulations, particles, predicted,
    observed; bins without a simulation are left out.
    """
    which = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    rows = []
    for k in range(BINS):
        here = which == k
        simulations = int(trials.simulated[here].sum())
        if simulations == 0:
            continue
        predicted = float(np.average(probability[here], weights=trials.simulated[here]))
        observed = float(trials.lit[here].sum() / simulations)
        rows.append((k / BINS, (k + 1) / BINS, simulations, int(here.sum()), predicted, observed))
    columns = ["low", "high", "simulations", "particles", "predicted", "observed"]
    return pd.DataFrame(rows, columns=columns)


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error: mean distance of predicted and observed over simulations."""
    off = (table["predicted"] - table["observed"]).abs()
    return float(np.average(off, weights=table["simulations"]))


def signal_scores(
    probability: NDArray[np.float64], trials: Trials, codes: Mapping[str, int]
) -> pd.DataFrame:
    """How good the probabilities are, in all and by species, whose PDG ``codes`` have names.

    Columns group, particles, simulations, lit (share), predicted (mean probability), ece (expected
    calibration error), auc (of lit against dark simulations; empty where all are alike), nats (mean
    cross-entropy) and nats_rate (of who says the share of lit ones of the group for all).
    """
    # slow to import
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415

    named = {name: trials.pdg == code for name, code in codes.items()}
    others = ~np.isin(trials.pdg, [*codes.values()])
    groups = {"all": np.ones(len(trials), np.bool_), **named, "others": others}
    rows = []
    for name, here in groups.items():
        if not here.any():
            continue
        p, part = probability[here], trials[here]
        dark = part.simulated - part.lit
        total, rate = part.simulated.sum(), part.lit.sum() / part.simulated.sum()
        auc = np.nan
        if 0 < rate < 1:
            label = np.repeat([True, False], len(part))
            auc = roc_auc_score(label, np.tile(p, 2), sample_weight=np.append(part.lit, dark))
        q = np.clip(p, 1e-12, 1 - 1e-12)
        nats = -(part.lit * np.log(q) + dark * np.log(1 - q)).sum() / total
        r = np.clip(rate, 1e-12, 1 - 1e-12)
        constant = -(rate * np.log(r) + (1 - rate) * np.log(1 - r))
        predicted = np.average(p, weights=part.simulated)
        ece = calibration_error(reliability_table(p, part))
        rows.append((name, len(part), total, rate, predicted, ece, auc, nats, constant))
    columns = ["group", "particles", "simulations", "lit", "predicted"]
    return pd.DataFrame(rows, columns=[*columns, "ece", "auc", "nats", "nats_rate"])


def signal_figure(probability: NDArray[np.float64], trials: Trials, title: str) -> Figure:
    """Reliability, ROC, and how the probabilities are distributed."""
    # slow to import
    from sklearn.metrics import roc_curve  # noqa: PLC0415

    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    table = reliability_table(probability, trials)
    # by particle: simulations of one share its probability
    error = np.sqrt(table["observed"] * (1 - table["observed"]) / table["particles"])
    left.plot([0, 1], [0, 1], ":", color="0.5")
    left.errorbar(table["predicted"], table["observed"], error, fmt="o", ms=4, color="#3b6fb6")
    left.set_xlabel("predicted probability of light")
    left.set_ylabel("share of simulations with light")
    left.set_title("Calibration")
    dark = trials.simulated - trials.lit
    label = np.repeat([True, False], len(trials))
    weight = np.append(trials.lit, dark)
    false, true, _ = roc_curve(label, np.tile(probability, 2), sample_weight=weight)
    middle.plot(false, true, color="#3b6fb6")
    middle.plot([0, 1], [0, 1], ":", color="0.5")
    middle.set_xlabel("dark simulations taken for lit ones")
    middle.set_ylabel("lit simulations found")
    middle.set_title("ROC")
    edges = np.linspace(0, 1, 41)
    for part, name, colour in ((trials.lit, "with light", "#d1603d"), (dark, "dark", "#333333")):
        right.hist(probability, edges, weights=part, histtype="step", color=colour, label=name)
    right.set_xlabel("predicted probability of light")
    right.set_ylabel("simulations in a bin")
    right.set_yscale("log")
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    right.set_title("What is said of which")
    figure.suptitle(title)
    return figure


def signal_findings(subset: str, scores: pd.DataFrame) -> str:
    """What the numbers say, in sentences."""
    every = scores[scores["group"] == "all"].iloc[0]
    text = (
        f"Of the simulations of {every['particles']} test particles of {symbol(subset)} that training never "
        f"saw, {every['lit']:.1%} have light, and {every['predicted']:.1%} were predicted. The "
        f"expected calibration error is {every['ece']:.3f}, the AUC {every['auc']:.3f}: how much a "
        "particle leaves to chance (an upstream interaction, where a decay happens) bounds it. "
        f"Cross-entropy: {every['nats']:.3f} nats, {every['nats_rate']:.3f} for who knows the rate alone."
    )
    species = scores[scores["group"] != "all"]
    if len(species) > 1:
        off = (species["predicted"] - species["lit"]).abs()
        worst = species.assign(off=off).sort_values("off").iloc[-1]
        text += (
            f" Farthest off is {symbol(str(worst['group']))}: {worst['lit']:.1%} lit, {worst['predicted']:.1%} "
            f"predicted, of {worst['particles']} particles"
            + (", too few to say much." if worst["particles"] < 50 else ".")
        )
    return text
