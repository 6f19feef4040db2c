"""Figures that explain the splitting flow: the tree, what the network sees, what it says."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from zdc_nb.data.events import Events
from zdc_nb.data.figures import finish_faces, panels_of
from zdc_nb.detector import Detector, split_tree
from zdc_nb.flows.splitting import SplittingFlow
from zdc_nb.generator.surrogate import Surrogate

__all__ = ["curves_figure", "levels_figure", "sight_figure"]

_SHOWN = 8


def levels_figure(response: NDArray[np.uint16], detector: Detector) -> Figure:
    """One response (R, K) as the flow builds it up: the counts of the boxes after more and more cuts."""
    tree = split_tree(detector.shape)
    deepest = int(tree.depth.max())
    depths = np.unique(np.rint(np.linspace(0, deepest, _SHOWN)).astype(int))
    counts = tree.counts(response.reshape(1, -1))[0]
    columns = 4
    rows = -(-len(depths) // columns)
    width, height = panels_of(detector.shape, rows, columns, 2.9, 3.1)
    figure = Figure(figsize=(width + 0.9, height + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, depth in zip(axes.flat, depths, strict=False):
        boxes = tree.owner[depth]
        number = len(np.unique(boxes))
        area = np.bincount(boxes.ravel(), minlength=len(tree.boxes))
        image = _draw_boxes(axis, counts[boxes] / area[boxes], max(int(response.max()), 2))
        axis.set_title(
            f"{depth} cuts: {number} box{'es' if number > 1 else ''}, "
            f"{np.count_nonzero(counts[np.unique(boxes)])} lit",
            fontsize=9,
        )
    for axis in axes.flat[len(depths) :]:
        axis.set_visible(False)
    finish_faces(figure, axes, image)
    figure.axes[-1].set_ylabel("photons per fibre of a box (white: none)")
    figure.suptitle(f"One response of {int(response.sum())} photons, cut in halves again and again")
    return figure


def _draw_boxes(axis: Axes, light: NDArray[np.float64], brightest: int):  # type: ignore[no-untyped-def]
    lit = np.ma.masked_less_equal(light, 0)
    norm = LogNorm(1e-2, brightest)
    return axis.imshow(lit, norm=norm, cmap="viridis", interpolation="nearest")


def _choose_nodes(response: NDArray[np.uint16], detector: Detector) -> list[int]:
    """The brightest node of a coarse, a middle and a fine level."""
    tree = split_tree(detector.shape)
    counts = tree.counts(response.reshape(1, -1))[0]
    levels = [round(part * (len(tree.levels) - 1)) for part in (0.25, 0.5, 0.75)]
    chosen = []
    for level in dict.fromkeys(levels):
        nodes = np.arange(*tree.levels[level].indices(len(tree.nodes)))
        chosen.append(int(nodes[counts[tree.nodes[nodes]].argmax()]))
    return chosen


def sight_figure(model: Surrogate, event: Events) -> Figure:
    """What the network sees of three nodes of one response: the boxes around, and the impact point.

    ``event`` is one response. The impact point is where the flow has learned that particles of
    this slope arrive.
    """
    flow, detector = _splitting_flow(model), event.detector
    response = event.responses[0]
    tree = split_tree(detector.shape)
    counts = tree.counts(response.reshape(1, -1))[0]
    row, column = flow.impact(model.conditions(event))[0].detach().cpu().tolist()
    nodes = _choose_nodes(response, detector)
    width, height = panels_of(detector.shape, 1, len(nodes), 3.6, 4.0)
    figure = Figure(figsize=(width + 0.9, height), layout="constrained")
    axes = figure.subplots(1, len(nodes), squeeze=False, sharey=True)
    half = flow.params.window // 2
    for axis, node in zip(axes[0], nodes, strict=True):
        boxes = tree.owner[tree.depth[tree.nodes[node]]]
        area = np.bincount(boxes.ravel(), minlength=len(tree.boxes))
        image = _draw_boxes(axis, counts[boxes] / area[boxes], max(int(response.max()), 2))
        top, bottom, left, right = tree.boxes[tree.nodes[node]]
        high, wide = bottom - top, right - left
        window = left - half * wide - 0.5, top - half * high - 0.5
        size = (2 * half + 1) * wide, (2 * half + 1) * high
        axis.add_patch(Rectangle(window, *size, fill=False, ec="tab:orange", lw=1.5, ls="--"))
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), wide, high, fill=False, ec="red", lw=2))
        if high >= wide:
            cut = top + (high + 1) // 2 - 0.5
            axis.plot([left - 0.5, right - 0.5], [cut, cut], color="red", lw=2)
        else:
            cut = left + (wide + 1) // 2 - 0.5
            axis.plot([cut, cut], [top - 0.5, bottom - 0.5], color="red", lw=2)
        axis.plot(column - 0.5, row - 0.5, "x", color="black", ms=9, mew=2)
        axis.set_xlim(-0.5, detector.shape[1] - 0.5)
        axis.set_ylim(detector.shape[0] - 0.5, -0.5)
        axis.set_title(
            f"after {tree.depth[tree.nodes[node]]} cuts: {counts[tree.nodes[node]]} photons "
            f"in {high} x {wide} fibres",
            fontsize=9,
        )
    finish_faces(figure, axes, image)
    figure.axes[-1].set_ylabel("photons per fibre of a box (white: none)")
    figure.suptitle(
        "Red: a box and its cut; orange: what the network sees of its level; cross: learned impact point"
    )
    return figure


def curves_figure(model: Surrogate, event: Events) -> Figure:
    """How the flow expects the photons of three nodes to be shared, beside a binomial's guess.

    The nodes are those of :func:`sight_figure`. The binomial has the share of the area.
    """
    # slow to import
    from scipy.stats import binom  # noqa: PLC0415

    flow, detector = _splitting_flow(model), event.detector
    response = event.responses[0]
    tree = split_tree(detector.shape)
    counts = tree.counts(response.reshape(1, -1))[0]
    photons = torch.from_numpy(response.reshape(1, -1).astype(np.int64)).to(flow.device)
    nodes = _choose_nodes(response, detector)
    figure = Figure(figsize=(4.0 * len(nodes), 3.4), layout="constrained")
    axes = figure.subplots(1, len(nodes), squeeze=False)
    for axis, node in zip(axes[0], nodes, strict=True):
        chance = flow.probabilities(photons, model.conditions(event), node).cpu().numpy()
        n = len(chance) - 1
        box = tree.boxes[[tree.first[node], tree.nodes[node]]]
        first, whole = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
        half = np.arange(n + 1)
        axis.step(half, chance, where="mid", color="tab:red", label="splitting flow")
        guess = binom.pmf(half, n, first / whole)
        axis.step(half, guess, where="mid", color="0.6", label="binomial, by area")
        found = counts[tree.first[node]]
        axis.axvline(found, color="black", ls=":", label="this response")
        axis.set_xlabel("photons in the first half")
        axis.set_title(f"{n} photons to be shared, {found} in the first half", fontsize=9)
        axis.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("probability")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle("Share of the photons of three boxes, given what the network sees")
    return figure


def _splitting_flow(model: Surrogate) -> SplittingFlow:
    if not isinstance(model.flow, SplittingFlow):
        raise TypeError("expected a splitting flow")
    return model.flow
