"""Pictures of the explorer, drawn fast enough to follow a slider.

What does not change (axes, ticks, names) is drawn once and kept as pixels, axes with another scale
once for each; for a view only images, bars and points are drawn on top.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imsave
from matplotlib.patches import StepPatch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from zdc_nb.detector import Detector, measure, split_tree
from zdc_nb.params import UserError

__all__ = ["EXAMPLES", "Batch", "LevelsPicture", "ResponsesPicture"]

EXAMPLES = 4
"""Single responses that are shown of a batch."""

_COLOURS = ("#0173b2", "#de8f05")
"""Of what was simulated and what was generated: those of seaborn's palette for the colour-blind."""

_FAINTEST = 0.01
"""Photons in a fibre where the scale of a mean begins: one photon in a hundred responses."""

_TICKS = (0, 10, 50, 100, 250, 500, 1000, 2000, 4000, 6000, 15000, 30000, 60000)
"""Photons in a channel, of which those on the scale are marked."""

_ENDS = (10, 30, 100, 300, 1000, 3000, 65535)
"""Photons in a fibre where a scale of colour may end."""

_SMALL = 8
"""Points, of nearly all text."""


@dataclass(frozen=True, eq=False)
class Batch:
    """N responses to one particle, and what is measured of them.

    Attributes
    ----------
    name
        what they are, for a picture: ``simulated``.
    responses
        (N, R, K) photons.
    channels, centre, radius
        (N, C) photons, (N, 2) row and column, (N,) fibres; see :func:`zdc_nb.detector.measure`.
    """

    name: str
    responses: NDArray[np.uint16]
    channels: NDArray[np.int64]
    centre: NDArray[np.float64]
    radius: NDArray[np.float64]

    @classmethod
    def of(cls, name: str, responses: NDArray[np.uint16], detector: Detector) -> Batch:
        """Measure responses (N, R, K); N may be 0."""
        return cls(name, responses, *measure(responses, detector))

    @property
    def photon_sum(self) -> NDArray[np.int64]:
        """(N,) photons of each response."""
        total: NDArray[np.int64] = self.channels.sum(axis=1)
        return total


class _Picture:
    """A figure of which a part is drawn once."""

    def __init__(self, size: tuple[float, float], dpi: int) -> None:
        self.figure = Figure(figsize=size, dpi=dpi)
        # its methods have no types
        self.canvas: Any = FigureCanvasAgg(self.figure)
        self._moving: list[Artist] = []
        self._blank: Any = None
        self._parts: dict[tuple[Axes, float], Any] = {}

    def _axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """Axes whose place is given in inches from the lower left corner."""
        wide, high = self.figure.get_size_inches()
        axes = self.figure.add_axes((left / wide, bottom / high, width / wide, height / high))
        axes.tick_params(labelsize=_SMALL - 1)
        axes.set_axisbelow(True)
        return axes

    def _face(self, left: float, bottom: float, side: float, detector: Detector) -> Axes:
        """Square axes of a detector's face, rows counted from the top."""
        rows, columns = detector.shape
        axes = self._axes(left, bottom, side, side)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        ticks = [0, columns // 2, columns - 1], [0, rows // 2, rows - 1]
        axes.set_xticks(ticks[0])
        axes.set_yticks(ticks[1])
        return axes

    def _image(self, axes: Axes, norm: LogNorm) -> AxesImage:
        """A moving image of a whole face, on a scale of colour that it shares."""
        image = axes.imshow(
            np.ma.masked_less(np.zeros((2, 2)), 1),
            norm=norm,
            cmap="viridis",
            interpolation="nearest",
            extent=(*axes.get_xlim(), *axes.get_ylim()),
        )
        found: AxesImage = self._moves(image)
        return found

    def _title(self, axes: Axes) -> Any:
        text = axes.text(0.5, 1.03, "", transform=axes.transAxes, ha="center", fontsize=_SMALL)
        return self._moves(text)

    def _moves(self, artist: Any) -> Any:
        artist.set_animated(True)
        self._moving.append(artist)
        return artist

    def _png(self, scales: dict[Axes, float]) -> bytes:
        """The picture as it is now; axes whose ticks change, and what they depend on now."""
        if self._blank is None:
            for axes in scales:
                axes.set_visible(False)
            self.canvas.draw()
            self._blank = self.canvas.copy_from_bbox(self.figure.bbox)
            for axes in scales:
                axes.set_visible(True)
        for axes, scale in scales.items():
            if (axes, scale) not in self._parts:
                self._parts[axes, scale] = self._part(axes)
        self.canvas.restore_region(self._blank)
        for pair in scales.items():
            self.canvas.restore_region(self._parts[pair])
        for artist in self._moving:
            if artist.axes is None:
                self.figure.draw_artist(artist)
            else:
                artist.axes.draw_artist(artist)
        out = io.BytesIO()
        # the last bytes are not worth the time
        options = {"compress_level": 1}
        pixels = np.asarray(self.canvas.buffer_rgba())
        imsave(out, pixels, format="png", pil_kwargs=options, dpi=self.figure.dpi)
        return out.getvalue()

    def _part(self, axes: Axes) -> Any:
        """The pixels of some axes with all that stands around them, but for what moves."""
        self.canvas.restore_region(self._blank)
        renderer = self.canvas.get_renderer()
        axes.draw(renderer)
        around = axes.get_tightbbox(renderer)
        assert around is not None
        return self.canvas.copy_from_bbox(around.padded(2))


class ResponsesPicture(_Picture):
    """Simulated and generated responses to one particle: single ones, mean and spread, what is measured.

    Parameters
    ----------
    detector
        whose responses are shown.
    least
        photons from which a response counts as lit.
    dpi
        pixels per inch of 13.4 x 7.9 inches.
    """

    _SIZE = 13.4, 7.9

    def __init__(self, detector: Detector, least: int, dpi: int = 72) -> None:
        super().__init__(self._SIZE, dpi)
        self.detector = detector
        self._norms = LogNorm(1, 100), LogNorm(_FAINTEST, 100)
        self._lines = [
            self._moves(self.figure.text(0.052, y, "", fontsize=size, va="center"))
            for y, size in ((0.974, 11), (0.947, 8.5), (0.925, 8.5))
        ]
        side, across = 1.68, 1.82
        lefts = [0.7 + k * across for k in range(EXAMPLES)]
        lefts += [lefts[-1] + side + 1.15 + k * across for k in range(2)]
        self._rows: list[list[AxesImage]] = []
        self._titles: list[list[Any]] = []
        self._names: list[Any] = []
        for row, bottom in enumerate((5.06, 2.98)):
            axes = [self._face(left, bottom, side, detector) for left in lefts]
            for k, one in enumerate(axes):
                one.tick_params(labelleft=k in (0, EXAMPLES), labelbottom=row == 1)
            axes[EXAMPLES].set_ylabel("row (fibre)", fontsize=_SMALL)
            if row == 1:
                for one in axes:
                    one.set_xlabel("column (fibre)", fontsize=_SMALL, labelpad=1)
            norms = [self._norms[0]] * EXAMPLES + [self._norms[1]] * 2
            self._rows.append([self._image(*pair) for pair in zip(axes, norms, strict=True)])
            self._titles.append([self._title(one) for one in axes])
            name = self.figure.text(
                0.012,
                (bottom + side / 2) / 7.9,
                "",
                rotation=90,
                ha="center",
                va="center",
                fontsize=_SMALL + 1,
                color=_COLOURS[row],
                weight="bold",
            )
            self._names.append(self._moves(name))
        self._scale_bars = []
        for k, place in enumerate((lefts[EXAMPLES - 1], lefts[-1])):
            bar = self._axes(place + side + 0.08, 2.98, 0.12, 5.06 + side - 2.98)
            self.figure.colorbar(self._rows[0][EXAMPLES * k], cax=bar)
            what = ("photons in a fibre (white: none)", "mean or spread of a fibre (photons)")[k]
            bar.set_ylabel(what, fontsize=_SMALL)
            bar.tick_params(labelsize=_SMALL - 1)
            self._scale_bars.append(bar)
        self._add_channels()
        self._sums = self._histogram(
            5.75, np.geomspace(min(least, 10), 7e4, 49), "photon sum (photons)", least
        )
        self._radii = self._histogram(
            8.25, np.arange(0.0, max(detector.shape) * 0.75 + 1), "radius of 90% of light (fibres)"
        )
        self._add_centres()

    def _add_channels(self) -> None:
        axes = self._axes(0.7, 0.55, 4.4, 1.75)
        names = [name.replace(" ", "\n") for name in self.detector.channels]
        places = np.arange(len(names))
        axes.set_xticks(places, names)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylabel("photons in a channel", fontsize=_SMALL)
        axes.set_title(
            f"{len(names)} channels (square-root scale): bars are means, dots responses",
            fontsize=_SMALL,
        )
        # as counts spread: a scale on which few photons and many have room
        axes.set_yscale("function", functions=(_root, np.square))
        self._channels, self._bars, self._dots = axes, [], []
        for k, colour in enumerate(_COLOURS):
            bars = axes.bar(places + 0.4 * k - 0.2, 0, width=0.36, color=colour, alpha=0.45)
            self._bars.append([self._moves(bar) for bar in bars])
            self._dots.append(self._points(axes, colour, 4))
        for k, name in enumerate(("simulated", "generated")):
            axes.bar(0, 0, color=_COLOURS[k], alpha=0.45, label=name)
        axes.legend(fontsize=_SMALL, frameon=False, loc="upper right", ncols=2)

    def _points(self, axes: Axes, colour: str, size: float) -> PathCollection:
        points = axes.scatter([], [], s=size, color=colour, alpha=0.55, linewidths=0)
        found: PathCollection = self._moves(points)
        return found

    def _histogram(
        self, left: float, edges: NDArray[np.float64], label: str, least: int | None = None
    ) -> tuple[Axes, NDArray[np.float64], list[StepPatch]]:
        axes = self._axes(left, 0.55, 1.95, 1.75)
        axes.set_xlim(edges[0], edges[-1])
        if least is not None:
            axes.set_xscale("log")
        axes.set_xlabel(label, fontsize=_SMALL)
        axes.set_ylabel("responses", fontsize=_SMALL, labelpad=1)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        empty = np.zeros(len(edges) - 1)
        steps = [
            self._moves(axes.stairs(empty, edges, color=colour, lw=1.6, alpha=0.9))
            for colour in _COLOURS
        ]
        return axes, edges, steps

    def _add_centres(self) -> None:
        axes = self._face(11.0, 0.55, 1.75, self.detector)
        axes.set_xlabel("column (fibre)", fontsize=_SMALL)
        axes.set_ylabel("row (fibre)", fontsize=_SMALL)
        axes.set_title("shower centres, aim (cross)", fontsize=_SMALL)
        self._centres = [self._points(axes, colour, 9) for colour in _COLOURS]
        (self._cross,) = axes.plot([], [], "x", color="black", ms=8, mew=1.6)
        self._moves(self._cross)

    def draw(
        self,
        batches: Sequence[Batch],
        aimed: NDArray[np.float64],
        lines: Sequence[str],
    ) -> bytes:
        """PNG of a simulated and a generated batch.

        ``aimed`` (2,) are row and column where a straight flight ends; ``lines`` up to three lines of
        text, the first of which is the title.
        """
        for artist, line in zip(self._lines, (*lines, "", "", ""), strict=False):
            artist.set_text(line)
        brightest = max(int(batch.responses[:EXAMPLES].max(initial=0)) for batch in batches)
        summaries = [_mean_and_spread(batch.responses) for batch in batches]
        highest = max(float(part.max()) for pair in summaries for part in pair)
        scales: dict[Axes, float] = {}
        for norm, bar, value in zip(
            self._norms, self._scale_bars, (brightest, highest), strict=True
        ):
            norm.vmax = scales[bar] = _scale(value, _ENDS)
        for row, (batch, pair) in enumerate(zip(batches, summaries, strict=True)):
            self._draw_faces(row, batch, pair)
        scales[self._channels] = self._draw_channels(batches)
        sums, radii = [b.photon_sum for b in batches], [b.radius for b in batches]
        scales[self._sums[0]] = self._draw_histogram(self._sums, sums)
        scales[self._radii[0]] = self._draw_histogram(self._radii, radii)
        for points, batch in zip(self._centres, batches, strict=True):
            points.set_offsets(batch.centre[:, ::-1])
        self._cross.set_data([aimed[1]], [aimed[0]])
        return self._png(scales)

    def _draw_faces(
        self, row: int, batch: Batch, pair: tuple[NDArray[np.float64], NDArray[np.float64]]
    ) -> None:
        images, titles = self._rows[row], self._titles[row]
        self._names[row].set_text(batch.name)
        for k in range(EXAMPLES):
            there = k < len(batch.responses)
            response = batch.responses[k] if there else np.zeros(self.detector.shape)
            images[k].set_data(np.ma.masked_less(response, 1))
            titles[k].set_text(f"{int(response.sum())} photons" if there else "none")
        for k, name in enumerate(("mean", "spread")):
            light = pair[k]
            images[EXAMPLES + k].set_data(np.ma.masked_less(light, _FAINTEST / 2))
            what = "standard deviation" if k else "mean"
            number = len(batch.responses)
            titles[EXAMPLES + k].set_text(f"{what} of {number}" if number else f"{name}: none")

    def _draw_channels(self, batches: Sequence[Batch]) -> float:
        most = max(int(batch.channels.max(initial=0)) for batch in batches)
        top = _scale(most, (100, 1000, 6000, 65535))
        self._channels.set_yticks([t for t in _TICKS if t <= top])
        self._channels.set_ylim(0, top)
        for side, (bars, dots, batch) in enumerate(
            zip(self._bars, self._dots, batches, strict=True)
        ):
            number, channels = batch.channels.shape
            means = batch.channels.mean(axis=0) if number else np.zeros(channels)
            for bar, height in zip(bars, means, strict=True):
                bar.set_height(height)
            # beside each other in an even order, which is the same for every view
            beside = 0.28 * ((np.arange(number) * 0.618034) % 1 - 0.5)
            x = np.arange(channels) + 0.4 * side - 0.2 + beside[:, None]
            dots.set_offsets(np.column_stack([x.ravel(), batch.channels.ravel()]))
        return top

    def _draw_histogram(
        self,
        histogram: tuple[Axes, NDArray[np.float64], list[StepPatch]],
        values: Sequence[NDArray[Any]],
    ) -> float:
        axes, edges, steps = histogram
        counts = [np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] for v in values]
        for step, count in zip(steps, counts, strict=True):
            step.set_data(count)
        top = _scale(max(int(count.max()) for count in counts), (4, 9, 18, 36, 70))
        axes.set_ylim(0, top)
        return top


def _mean_and_spread(
    responses: NDArray[np.uint16],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(R, K) each: mean and standard deviation of every fibre; 0 of no responses."""
    if len(responses) == 0:
        nothing = np.zeros(responses.shape[1:])
        return nothing, nothing
    light = responses.astype(np.float32)
    return light.mean(axis=0).astype(np.float64), light.std(axis=0).astype(np.float64)


def _root(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # matplotlib asks for what lies below the axis, too
    roots: NDArray[np.float64] = np.sqrt(np.maximum(values, 0))
    return roots


def _scale(value: float, ends: Sequence[float]) -> float:
    """The first of some ends of a scale that is not passed: few, so that each is drawn but once."""
    return next((end for end in ends if value <= end), ends[-1])


class LevelsPicture(_Picture):
    """One response as the splitting flow builds it up: the boxes of a level, the next, and the fibres."""

    def __init__(self, detector: Detector, dpi: int = 72) -> None:
        super().__init__((11.2, 4.1), dpi)
        self.detector, self.tree = detector, split_tree(detector.shape)
        self._norm = LogNorm(_FAINTEST, 100)
        self._heading = self._moves(self.figure.text(0.05, 0.95, "", fontsize=10, va="center"))
        axes = [self._face(0.55 + 3.35 * k, 0.5, 2.95, detector) for k in range(3)]
        axes[0].set_ylabel("row (fibre)", fontsize=_SMALL)
        for one in axes:
            one.set_xlabel("column (fibre)", fontsize=_SMALL)
        self._images = [self._image(one, self._norm) for one in axes]
        self._titles = [self._title(one) for one in axes]
        self._cuts = [
            self._moves(one.plot([], [], color=colour, lw=width)[0])
            for one, colour, width in zip(axes[:2], ("red", "0.55"), (1.0, 0.5), strict=True)
        ]
        self._bar = bar = self._axes(10.25, 0.5, 0.13, 2.95)
        self.figure.colorbar(self._images[0], cax=bar)
        bar.set_ylabel("photons per fibre of a box (white: none)", fontsize=_SMALL)
        bar.tick_params(labelsize=_SMALL - 1)

    def draw(self, response: NDArray[np.uint16], level: int, heading: str) -> bytes:
        """PNG of a response (R, K) after ``level`` cuts, after one more, and at its end."""
        deepest = int(self.tree.depth.max())
        if not 0 <= level <= deepest:
            raise UserError(f"level: expected 0 to {deepest}, got {level}")
        counts = self.tree.counts(response.reshape(1, -1))[0]
        self._norm.vmax = scale = _scale(int(response.max()), _ENDS)
        self._heading.set_text(heading)
        shown = (level, min(level + 1, deepest), deepest)
        for k, depth in enumerate(shown):
            boxes = self.tree.owner[depth]
            inside, area = np.unique(boxes, return_counts=True)
            size = np.zeros(len(self.tree.boxes))
            size[inside] = area
            light = counts[boxes] / size[boxes]
            self._images[k].set_data(np.ma.masked_less_equal(light, 0))
            name = (f"after {depth} cuts", "one cut later", "at the end: every fibre")[k]
            if k == 1 and level == deepest:
                name = "nothing is left to cut"
            lit = np.count_nonzero(counts[inside])
            boxes_of = f"{len(inside)} box{'' if len(inside) == 1 else 'es'}"
            self._titles[k].set_text(f"{name}: {boxes_of}, {lit} lit")
        self._cuts[0].set_data(*self._next_cuts(level))
        self._cuts[1].set_data(*self._outlines(shown[1]))
        return self._png({self._bar: scale})

    def _next_cuts(self, level: int) -> NDArray[np.float64]:
        """(2, M) x and y of the lines that cut the boxes of a level, with gaps between them."""
        nodes = np.flatnonzero(self.tree.depth[self.tree.nodes] == level)
        first = self.tree.boxes[self.tree.first[nodes]]
        whole = self.tree.boxes[self.tree.nodes[nodes]]
        across = first[:, 1] < whole[:, 1]
        # across: a line of constant row at the first half's end; else of constant column
        x = np.where(across[:, None], whole[:, 2:], first[:, 3:4]) - 0.5
        y = np.where(across[:, None], first[:, 1:2], whole[:, :2]) - 0.5
        return _with_gaps(x, y)

    def _outlines(self, depth: int) -> NDArray[np.float64]:
        """(2, M) the edges of all boxes of a level, left out where they would hide the fibres."""
        boxes = self.tree.boxes[np.unique(self.tree.owner[depth])]
        if len(boxes) > 300:
            return np.empty((2, 0))
        x = boxes[:, [2, 3, 3, 2, 2]] - 0.5
        y = boxes[:, [0, 0, 1, 1, 0]] - 0.5
        return _with_gaps(x, y)


def _with_gaps(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, M) lines (L, P) one after the other, none joined with the next."""
    gap = np.full((len(x), 1), np.nan)
    return np.stack([np.hstack([x, gap]).ravel(), np.hstack([y, gap]).ravel()])
