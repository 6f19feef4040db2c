"""Figures and tables of the events that a study runs on, and how a response is drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import PIL.PngImagePlugin
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogFormatter, MaxNLocator
from numpy.typing import NDArray
from pandas.io.formats.style import Styler
from particle import InvalidParticle, Particle, ParticleNotFound
from scipy.spatial import cKDTree

from zdc_nb.data.calibration import has_published, published_facts
from zdc_nb.data.events import FEATURES, Events
from zdc_nb.data.symbols import drawn_symbol
from zdc_nb.detector import diversity
from zdc_nb.params import PDG
from zdc_nb.storage import write_atomically

__all__ = [
    "PlainLog",
    "description_of",
    "diversity_figure",
    "draw_response",
    "finish_faces",
    "gallery_figure",
    "group_table",
    "groups_figure",
    "light_figure",
    "panels_of",
    "repeats_figure",
    "save_figure",
    "species_table",
    "spectra_figure",
    "styled_calibration",
]

OTHER = "all others"
LEADING = 5
"""Species that spectra show apart; the rest is one line."""

_ENERGY = FEATURES.index("energy")


def save_figure(figure: Figure, path: Path, text: str) -> Image:
    """Write a PNG (under a temporary name, then renamed) and return it for a notebook to show.

    ``text`` describes it in a sentence or two. It is written into the file, where
    :func:`description_of` finds it, and stands for the picture where that cannot be seen.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, bbox_inches="tight", format="png")
    with PIL.Image.open(drawn) as full, write_atomically(path) as temporary:
        picture = _with_palette(full.convert("RGB"))
        told = PIL.PngImagePlugin.PngInfo()
        told.add_itxt("Description", text)
        picture.save(temporary, "PNG", pnginfo=told)
    return Image(path.read_bytes(), retina=True, alt=text)  # type: ignore[no-untyped-call]


def _with_palette(full: PIL.Image.Image) -> PIL.Image.Image:
    """The same picture in 256 colours, a third of the file: pages hold many.

    The most frequent half of them is exact, so that a grey stays grey; the other half is spread over
    all that there is, so that a rare colour is no farther off than the eye can tell.
    """
    red, green, blue = np.moveaxis(np.asarray(full, np.uint32), -1, 0)
    codes, place, counts = np.unique(
        (red << 16) + (green << 8) + blue, return_inverse=True, return_counts=True
    )
    colours = np.column_stack([codes >> 16, (codes >> 8) & 255, codes & 255])
    frequent = colours[np.argsort(-counts, kind="stable")[:128]]
    spread = full.quantize(128, PIL.Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = np.concatenate([frequent, np.reshape(np.array(spread, np.uint32), (-1, 3))])
    # pillow's own search for the nearest colour rounds
    nearest = cKDTree(palette).query(colours)[1].astype(np.uint8)
    picture = PIL.Image.fromarray(nearest[place].reshape(full.height, full.width), "P")
    picture.putpalette(palette.astype(np.uint8).tobytes())
    return picture


def description_of(path: Path) -> str:
    """The text that :func:`save_figure` has written into a PNG, or "" where there is none.

    Raises ``FileNotFoundError``, and ``OSError`` for what is no picture.
    """
    with PIL.Image.open(path) as picture:
        return str(picture.info.get("Description", ""))


def panels_of(
    shape: tuple[int, ...], down: int, across: int, wide: float, high: float
) -> tuple[float, float]:
    """Inches across and down of a grid of faces of ``shape``, of which a square one takes wide x high.

    One that is not square takes less along its shorter side.
    """
    rows, columns = shape
    spared = wide * (1 - min(1.0, columns / rows)), wide * (1 - min(1.0, rows / columns))
    # labels take their place all the same
    return across * max(wide - spared[0], 1.5), down * max(high - spared[1], 1.5)


def gallery_figure(events: Events, chosen: Sequence[int] | NDArray[np.intp]) -> Figure:
    """Pictures of single responses on one logarithmic scale of colour.

    ``chosen`` are positions of events, as from
    :func:`zdc_nb.evaluation.figures.choose_examples`.
    """
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    width, height = panels_of(events.detector.shape, rows, columns, 2.9, 3.1)
    figure = Figure(figsize=(width + 0.9, height + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    shown = events[np.asarray(chosen)]
    responses = shown.responses
    for k, axis in enumerate(axes.flat[: len(shown)]):
        image = draw_response(axis, responses[k], int(responses.max()))
        axis.set_title(
            f"{drawn_symbol(int(shown.pdg[k]))}, {shown.features[k, _ENERGY]:.0f} GeV\n"
            f"{shown.photon_sum[k]} photons in {shown.lit_fibres[k]} fibres",
            fontsize=9,
        )
    for axis in axes.flat[len(chosen) :]:
        axis.set_visible(False)
    finish_faces(figure, axes, image)
    name, (rows, columns) = events.detector.name, events.detector.shape
    figure.suptitle(f"Responses of the {name}, {rows} x {columns} fibres, to single particles")
    return figure


def repeats_figure(events: Events, count: int) -> Figure:
    """Several responses to one and the same particle, a row for each of some species.

    The species are the photon, for its steadiness, and those that are a data set of their own, as
    far as there are responses to them, or else the most frequent one. Of each it is the particle of
    the largest f_div, where the repeats differ most; of its responses, up to ``count`` at even ranks
    of the photon sum, from the dimmest to the brightest.
    """
    codes, frequency = np.unique(events.pdg, return_counts=True)
    shown = dict.fromkeys((PDG["gamma"], *events.detector.codes.values()))
    species = [pdg for pdg in shown if pdg in codes] or [int(codes[frequency.argmax()])]
    rows = [_repeats(events, pdg, count) for pdg in species]
    width, height = panels_of(events.detector.shape, len(rows), count, 2.3, 2.5)
    figure = Figure(figsize=(width + 1.4, height + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False, sharex=True, sharey=True)
    brightest = int(events[np.concatenate(rows)].photons.max())
    for line, positions in zip(axes, rows, strict=True):
        for axis, response in zip(line, events[positions].responses, strict=False):
            image = draw_response(axis, response, brightest)
        for axis in line[len(positions) :]:
            axis.set_visible(False)
    finish_faces(figure, axes, image)
    for axis, positions in zip(axes[:, 0], rows, strict=True):
        name = drawn_symbol(int(events.pdg[positions[0]]))
        energy = events.features[positions[0], _ENERGY]
        axis.set_ylabel(f"{name}, {energy:.0f} GeV\nrow (fibre)")
    figure.suptitle("Each row: one particle, simulated again and again; dim to bright")
    return figure


class PlainLog(LogFormatter):
    """Labels the ticks that matplotlib would, with plain numbers to three digits."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""


def draw_response(axis: Axes, response: NDArray[Any], brightest: int) -> AxesImage:
    """A picture of one response, with its photon sum above; fibres without light stay white.

    ``brightest`` is the number of photons (in a fibre) at which the logarithmic scale ends.
    """
    axis.set_title(f"{int(response.sum())} photons", fontsize=9)
    lit = np.ma.masked_less(response, 1)
    norm = LogNorm(1, max(brightest, 2))
    return axis.imshow(lit, norm=norm, cmap="viridis", interpolation="nearest")


def finish_faces(figure: Figure, axes: NDArray[Any], image: AxesImage) -> None:
    """Name rows and columns of a grid of :func:`draw_response`, and its scale of colour."""
    for axis in axes[-1]:
        axis.set_xlabel("column (fibre)")
    for axis in axes[:, 0]:
        axis.set_ylabel("row (fibre)")
    label = "photons in a fibre (white: none)"
    shrink = min(0.7, 6 / figure.get_figheight())
    bar = figure.colorbar(image, ax=axes, label=label, shrink=shrink)
    for use in (bar.ax.yaxis.set_major_formatter, bar.ax.yaxis.set_minor_formatter):
        use(PlainLog(minor_thresholds=(2, 0.6)))


def species_table(events: Events) -> pd.DataFrame:
    """One row for each species, the most frequent first.

    Columns: pdg, name, mass (MeV), charge (e), particles (unique ones), responses, fraction,
    published (fraction, where published; of the ZN alone), energy_mean (GeV), photons_median, f_div_median
    (photons, over particles with at least two responses).
    """
    groups = group_table(events)
    frame = pd.DataFrame(
        {
            "pdg": events.pdg,
            "mass": events.features[:, FEATURES.index("mass")],
            "charge": events.features[:, FEATURES.index("charge")],
            "energy": events.features[:, _ENERGY],
            "photons": events.photon_sum,
        }
    ).groupby("pdg")
    table = frame.agg(
        mass=("mass", "median"),
        charge=("charge", "median"),
        responses=("pdg", "size"),
        energy_mean=("energy", "mean"),
        photons_median=("photons", "median"),
    )
    repeated = groups[groups["responses"] > 1]
    table.insert(0, "name", [_name(int(str(pdg))) for pdg in table.index])
    table.insert(3, "particles", groups.groupby("pdg").size())
    table.insert(5, "fraction", table["responses"] / len(events))
    if has_published(events.detector):
        facts = published_facts()["paper_2512.20346"]["fraction_by_species"]
        published = {pdg: facts[subset] for subset, pdg in events.detector.codes.items()}
        table.insert(6, "published", table.index.map(published).astype(float))
    table["f_div_median"] = repeated.groupby("pdg")["f_div"].median()
    return table.sort_values("responses", ascending=False, kind="stable").reset_index()


def group_table(events: Events) -> pd.DataFrame:
    """One row for each unique particle: pdg, responses (their number), f_div (photons)."""
    _, first, counts = np.unique(events.particle, return_index=True, return_counts=True)
    f_div = diversity(events.photons, events.particle)
    return pd.DataFrame({"pdg": events.pdg[first], "responses": counts, "f_div": f_div})


def spectra_figure(events: Events) -> Figure:
    """Spectra of energy and photon sum: all responses, the leading species, and the rest."""
    # slow to import, and most stages draw nothing with it
    import seaborn as sns  # noqa: PLC0415

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    codes, counts = np.unique(events.pdg, return_counts=True)
    leading = codes[np.argsort(-counts, kind="stable")[:LEADING]]
    parts = {drawn_symbol(int(code)): events.pdg == code for code in leading}
    others = ~np.isin(events.pdg, leading)
    if others.any():
        parts[OTHER] = others
    spectra = (
        (events.features[:, _ENERGY], "energy of the particle (GeV)"),
        (events.photon_sum.astype(np.float64), "photon sum of the response (photons)"),
    )
    for axis, (values, label) in zip(axes, spectra, strict=True):
        edges = np.geomspace(values[values > 0].min(), values.max() * 1.001, 41).tolist()
        axis.hist(values, edges, histtype="step", color="black", linewidth=1.6, label="all species")
        colours = [*sns.color_palette("colorblind", len(leading)), "0.5"]
        for (name, mask), colour in zip(parts.items(), colours, strict=False):
            axis.hist(values[mask], edges, histtype="step", color=colour, label=name)
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="responses in a bin")
    axes[0].set_title("Energy")
    axes[1].set_title("Light")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    figure.suptitle(f"Spectra of {len(events)} responses, by species (bins of equal ratio)")
    return figure


def light_figure(unfiltered: Events, min_photons: int) -> Figure:
    """Photon sums of the open simulation before the filter, of the ZN with the published figures."""
    photons = unfiltered.photon_sum[unfiltered.photon_sum > 0]
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axis = figure.subplots()
    # edges between whole numbers, and the width divided out: else few photons make a comb
    edges = np.unique(np.rint(np.geomspace(1, photons.max() + 1, 46))) - 0.5
    density = np.histogram(photons, edges)[0] / np.diff(np.log(edges))
    name = f"simulated: {len(photons)} responses with light"
    axis.stairs(density, edges, fill=True, color="0.8", label=name)
    title = "Light before the filter: open simulation"
    lines = [("simulated", np.quantile(photons, (0.25, 0.5, 0.75)), "black", "-")]
    if has_published(unfiltered.detector):
        facts = published_facts()["neutron_responses_unfiltered_511810"]
        quartiles = np.array(facts["photon_sum_of_nonzero_quartiles"])
        lines.append(("published", quartiles, "#d55e00", "--"))
        title += " and published quartiles"
    for name, quartiles, colour, line in lines:
        text = ", ".join(f"{value:.0f}" for value in quartiles)
        for k, value in enumerate(quartiles):
            label = None if k else f"{name} quartiles: {text} photons"
            axis.axvline(value, color=colour, linestyle=line, label=label)
    name = f"fewer than {min_photons} photons: dropped"
    dropped = max(min_photons - 0.5, edges[0])
    axis.axvspan(edges[0], dropped, color="#0173b2", alpha=0.12, label=name)
    axis.set(xscale="log", xlabel="photon sum of a response, s (photons)")
    axis.set_ylabel("responses per unit of ln s")
    axis.set_xlim(edges[0], edges[-1])
    axis.set_ylim(top=1.5 * axis.get_ylim()[1])
    axis.set_title(title)
    axis.legend(fontsize=9, loc="upper left", framealpha=1)
    return figure


def groups_figure(groups: pd.DataFrame) -> Figure:
    """How many responses a particle has, from :func:`group_table`."""
    # slow to import, and most stages draw nothing with it
    import seaborn as sns  # noqa: PLC0415

    sizes = groups["responses"]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    width = max(1, -(-int(sizes.max()) // 50))
    edges = np.arange(0.5, sizes.max() + width + 0.5, width).tolist()
    sns.histplot(sizes, bins=edges, ax=axis)
    median = sizes.median()
    axis.axvline(median, color="black", linestyle="--", label=f"median: {median:.0f} responses")
    axis.set(xlabel="responses to one particle", ylabel="particles", yscale="log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(f"Group sizes of {len(sizes)} unique particles (bins of {width})")
    axis.legend()
    return figure


def diversity_figure(groups: pd.DataFrame) -> Figure:
    """f_div by species, from :func:`group_table`; a particle of one response has none."""
    repeated = groups[(groups["responses"] > 1) & (groups["f_div"] > 0)]
    order = repeated["pdg"].value_counts().index
    values = [repeated.loc[repeated["pdg"] == pdg, "f_div"].to_numpy() for pdg in order]
    figure = Figure(figsize=(9, 0.27 * len(order) + 1.6), layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel="diversity of a particle's responses, f_div (photons)")
    axis.set_ylabel("species (particles)")
    axis.set_title("f_div (eq. 1) by species: median, quartiles, extremes", fontsize=11)
    if not values:
        axis.text(0.5, 0.5, "no particle has two different responses", ha="center", va="center")
        return figure
    # whiskers to the extremes, so that no particle is hidden
    axis.boxplot(values, orientation="horizontal", whis=(0, 100), widths=0.6)
    names = [drawn_symbol(int(pdg)) for pdg in order]
    labels = [f"{name} ({len(part)})" for name, part in zip(names, values, strict=True)]
    axis.set_yticks(range(1, len(order) + 1), labels)
    axis.invert_yaxis()
    axis.set_xscale("log")
    return figure


def styled_calibration(table: pd.DataFrame) -> Styler:
    """A table of :func:`zdc_nb.data.calibration.calibration_table`, what is out of tolerance marked."""

    def mark(row: pd.Series[Any]) -> list[str]:
        return ["" if row["within"] else "background-color: #f9d9c9; font-weight: bold"] * len(row)

    formats = {"published": "{:.4g}", "simulated": "{:.4g}", "value": "{:.3g}"}
    return (
        table.style.apply(mark, axis=1)
        .format({**formats, "within": lambda good: "yes" if good else "NO"})
        .hide(axis="index")
    )


def _repeats(events: Events, pdg: int, count: int) -> NDArray[np.intp]:
    """Positions of up to ``count`` responses to the most diverse particle of a species."""
    (positions,) = np.nonzero(events.pdg == pdg)
    labels = np.unique(events.particle[positions])
    f_div = diversity(events.photons[positions], events.particle[positions])
    group = positions[events.particle[positions] == labels[f_div.argmax()]]
    bright_last = group[np.argsort(events.photon_sum[group], kind="stable")]
    ranks = np.linspace(0, len(group) - 1, min(count, len(group)))
    chosen: NDArray[np.intp] = bright_last[np.rint(ranks).astype(int)]
    return chosen


def _name(pdg: int) -> str:
    try:
        return str(Particle.from_pdgid(pdg).name)
    except (InvalidParticle, ParticleNotFound):
        return "unknown"
