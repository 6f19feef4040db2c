"""Figures of how a training went."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from zdc_nb.data.symbols import drawn_symbol
from zdc_nb.evaluation.figures import epoch_axis
from zdc_nb.evaluation.names import TERMS
from zdc_nb.training.losses import CENTRE, DISTILLATION_TERMS

__all__ = ["likelihood_figure", "student_figure"]

_COLOURS = {"train": "#3b6fb6", "validation": "#d1603d"}

_COMPARED = {
    "end_data": "x' against x",
    "blocks_data": "$y_i$ against $x_i$",
    "made_data": "$q_i$ against $p_i$",
    "end_latent": "z' against z",
    "blocks_latent": "$x_i$ against $y_i$",
    "made_latent": "$p_i$ against $q_i$",
    "channel": "(eq. 2, unweighted)",
    CENTRE: "(by its particles' weights)",
}
"""What the terms of a student's loss compare."""


def likelihood_figure(history: pd.DataFrame, title: str, unit: str = "fibre") -> Figure:
    """Negative log-likelihood by epoch, with the epoch that was kept.

    ``history`` is that of :func:`zdc_nb.training.trainers.train_teacher`, in nats per dimension,
    or of :func:`zdc_nb.training.trainers.train_splitting`; ``unit`` is what a dimension is.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    losses = history[history.term == "loss"]
    for split, colour in _COLOURS.items():
        part = losses[losses.split == split]
        axis.plot(part.epoch, part.value, "o-", ms=3, color=colour, label=split)
    validation = losses[losses.split == "validation"]
    best = validation.nsmallest(1, "value")
    epoch, value = best["epoch"].item(), best["value"].item()
    axis.axvline(epoch, color="0.5", ls=":", label=f"kept: epoch {epoch}, {value:.4f}")
    epoch_axis(axis, int(losses["epoch"].max()))
    axis.set_ylabel(f"negative log-likelihood (nats per {unit})")
    axis.set_title(title)
    axis.legend(frameon=False)
    return figure


def student_figure(history: pd.DataFrame, subset: str, setup: str) -> Figure:
    """Every term of the distillation by epoch, on a logarithmic scale.

    ``history`` is that of :func:`zdc_nb.training.trainers.distil_student`.
    """
    every = (*DISTILLATION_TERMS, CENTRE)
    terms = [t for t in every if (history[history.term == t].value > 0).any()]
    columns = 4 if len(terms) < 8 else 5
    figure = Figure(figsize=(3 * columns, 6.2), layout="constrained")
    axes = figure.subplots(2, columns, sharex=True).ravel()
    for axis, term in zip(axes, ["loss", *terms], strict=False):
        for split, colour in _COLOURS.items():
            part = history[(history.split == split) & (history.term == term)]
            axis.plot(part.epoch, part.value, "o-", ms=3, color=colour, label=split)
        axis.set_yscale("log")
        axis.set_title("\n".join((TERMS[term], _COMPARED.get(term, ""))), fontsize=10)
        axis.set_ylabel("loss" if term == "loss" else "mean squared difference")
    for axis in axes[len(terms) + 1 :]:
        axis.set_visible(False)
    for axis in axes:
        epoch_axis(axis, int(history["epoch"].max()))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle(
        f"Distilling the student of {drawn_symbol(subset)}, setup {setup}: terms of the loss"
    )
    return figure
