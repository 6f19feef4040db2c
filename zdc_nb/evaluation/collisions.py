"""Whole collisions: the light of all particles of an event on each side, generated and simulated.

A table of sums has a row for each event and side (``A``: particles of positive pz, ``C``: negative),
with columns

``event``, ``side``, ``particles``, ``left_out``
    the number of the event; how many particles were answered, and how many were not.
``photons``, ``channel_*``
    photons on the whole face, and in each channel: sums of whole numbers, exact in any order.
``row``, ``column``
    the centre of all light, in fibre units; NaN without light.
``left_right``, ``up_down``
    (right - left) / (right + left) and (top - bottom) / (top + bottom) of the light about the middle
    of the face, a middle row or column left out; NaN without light there.
``side_asymmetry``
    (A - C) / (A + C) of the event's photons, the same in both its rows; NaN without light. There is no
    such column where a detector stands on one side alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pandas as pd
import uproot
from numpy.typing import NDArray
from pandas.io.formats.style import Styler

from zdc_nb.data.events import FEATURES
from zdc_nb.data.particles import Collisions
from zdc_nb.data.symbols import symbol
from zdc_nb.detector.geometry import Detector
from zdc_nb.detector.observables import channel_sums
from zdc_nb.evaluation.sentences import as_list, listed_names
from zdc_nb.storage import write_atomically, write_csv

__all__ = [
    "BOTH_SIDES",
    "channel_column",
    "collision_findings",
    "collision_quantities",
    "collision_sums",
    "compare_collisions",
    "dark_faces",
    "dark_findings",
    "left_out_findings",
    "left_out_table",
    "quantity_name",
    "shown",
    "write_sums",
]

BOTH_SIDES = "A and C"
"""Of a quantity of the event and not of one side."""

_MERGE = 100_000
"""Rows that wait until they are added to those of the same event and side."""

_LEVEL = 0.95
"""Of intervals, and of what chance does."""


def channel_column(channel: str) -> str:
    """How the column of a channel is called: ``channel_top_left``."""
    return "channel_" + channel.replace(" ", "_")


def collision_sums(
    parts: Iterable[tuple[Collisions, NDArray[np.uint16] | None]],
    detector: Detector,
    events: NDArray[np.int64] | None = None,
) -> pd.DataFrame:
    """Add responses by event and side; the table of the top of this module, sorted by both.

    Parameters
    ----------
    parts
        some particles and their responses (n, R, K) at a time, in any order; None instead of responses
        for particles that have none and are only counted. No more than a part is held.
    detector
        that responds. Each event gets a row for each of its sides.
    events
        numbers of events that have rows whether or not a particle is of them.

    Raises
    ------
    ValueError
        where a particle with a response flies to a side on which no such detector stands.
    """
    sums = _Sums(detector)
    for collisions, responses in parts:
        sums.add(collisions, responses)
    sums.know(np.empty(0, np.int64) if events is None else events)
    return sums.table()


class _Sums:
    """Whole numbers by event and side, as they are added."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._names = ["particles", "left_out", "photons", *map(channel_column, detector.channels)]
        self._names += ["rows", "columns", "left", "right", "top", "bottom"]
        # of all rows so far, and how many there were when they were merged last
        self._event = [np.empty(0, np.int64)]
        self._values = [np.empty((0, len(detector.sides), len(self._names)), np.int64)]
        self._merged = 0

    def add(self, collisions: Collisions, responses: NDArray[np.uint16] | None) -> None:
        pz = collisions.particles.features[:, FEATURES.index("pz")]
        flies_to = np.where(pz > 0, "A", "C")
        sides = self._detector.sides
        here = np.isin(flies_to, sides)
        if responses is not None and not here.all():
            raise ValueError(
                f"sums: expected particles of side {' or '.join(sides)}, where the "
                f"{self._detector.name} stands, got one of side {flies_to[~here][0]}"
            )
        values = np.zeros((len(pz), len(sides), len(self._names)), np.int64)
        of = np.argmax(flies_to[:, None] == np.array(sides), axis=1)
        if responses is None:
            values[here, of[here], 1] = 1
        else:
            values[np.arange(len(pz)), of] = self._of(responses)
        self._wait(collisions.event, values)

    def _of(self, responses: NDArray[np.uint16]) -> NDArray[np.int64]:
        """(n, columns) of single responses."""
        rows, columns = (responses.sum(axis=axis, dtype=np.int64) for axis in (2, 1))
        middle_row, middle_column = self._detector.face_centre
        row, column = np.arange(rows.shape[1]), np.arange(columns.shape[1])
        return np.column_stack(
            [
                np.ones(len(responses), np.int64),
                np.zeros(len(responses), np.int64),
                rows.sum(axis=1),
                channel_sums(responses, self._detector),
                rows @ row,
                columns @ column,
                columns[:, column < middle_column].sum(axis=1),
                columns[:, column > middle_column].sum(axis=1),
                rows[:, row < middle_row].sum(axis=1),
                rows[:, row > middle_row].sum(axis=1),
            ]
        )

    def know(self, events: NDArray[np.int64]) -> None:
        self._wait(events, np.zeros((len(events), *self._values[0].shape[1:]), np.int64))

    def _wait(self, event: NDArray[np.int64], values: NDArray[np.int64]) -> None:
        self._event.append(event)
        self._values.append(values)
        if sum(map(len, self._event)) > 2 * self._merged + _MERGE:
            self._merge()

    def _merge(self) -> None:
        event, which = np.unique(np.concatenate(self._event), return_inverse=True)
        values = np.concatenate(self._values)
        total = np.zeros((len(event), *values.shape[1:]), np.int64)
        np.add.at(total, which, values)
        self._event, self._values, self._merged = [event], [total], len(event)

    def table(self) -> pd.DataFrame:
        self._merge()
        (event,), (values,) = self._event, self._values
        sides = self._detector.sides
        by_column = np.moveaxis(values, 2, 0).reshape(len(self._names), -1)
        found = dict(zip(self._names, by_column, strict=True))
        light = found["photons"]
        table = pd.DataFrame({"event": np.repeat(event, len(sides))})
        table["side"] = np.tile(sides, len(event))
        for name in self._names[:-6]:
            table[name] = found[name]
        table["row"], table["column"] = (_ratio(found[name], light) for name in ("rows", "columns"))
        table["left_right"] = _asymmetry(found["right"], found["left"])
        table["up_down"] = _asymmetry(found["top"], found["bottom"])
        if len(sides) == 2:
            both = _asymmetry(*light.reshape(-1, 2).T)
            table["side_asymmetry"] = np.repeat(both, 2)
        return table


def _ratio(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """NaN where the second is 0."""
    ratio = np.full(len(one), np.nan)
    np.divide(one, other, out=ratio, where=other != 0)
    return ratio


def _asymmetry(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    return _ratio(one - other, one + other)


def write_sums(table: pd.DataFrame, path: Path) -> None:
    """Write a table of sums atomically: CSV, or ROOT (a TTree ``events``), by the suffix of ``path``."""
    if path.suffix == ".csv":
        write_csv(table, path)
        return
    with write_atomically(path) as temporary, uproot.recreate(temporary) as file:
        columns = {name: table[name].to_numpy() for name in table.columns if name != "side"}
        types = {name: values.dtype for name, values in columns.items()}
        tree = file.mktree("events", {"side": "string", **types})
        tree.extend({"side": ak.Array(table["side"].tolist()), **columns})


# --- Generated against simulated ------------------------------------------------------------------


def collision_quantities(
    sums: pd.DataFrame, detector: Detector
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """(events,) values of each quantity of each side, by side and column, in the order of events.

    The asymmetry of the sides is of :data:`BOTH_SIDES`.
    """
    channels = [channel_column(channel) for channel in detector.channels]
    names = ["photons", *channels, "row", "column", "left_right", "up_down"]
    parts = {side: sums[sums["side"] == side] for side in detector.sides}
    found = {
        (side, name): part[name].to_numpy(np.float64)
        for side, part in parts.items()
        for name in names
    }
    if "side_asymmetry" in sums:
        one = parts[detector.sides[0]]
        found[BOTH_SIDES, "side_asymmetry"] = one["side_asymmetry"].to_numpy(np.float64)
    return found


def compare_collisions(
    simulated: pd.DataFrame,
    again: pd.DataFrame,
    generated: pd.DataFrame,
    detector: Detector,
    seed: int,
    draws: int = 400,
) -> pd.DataFrame:
    """Distances, means and widths of every quantity of collisions.

    Parameters
    ----------
    simulated, again, generated
        sums of the same events: simulated, simulated with another seed, and generated.
    detector
        whose sums they are.
    seed
        of the resampled events.
    draws
        of resampled events for intervals, and of swapped ones for chance.

    Returns
    -------
    A row for each side and quantity. Only events in which both that are compared have the quantity
    count, which matters for centres and asymmetries of dark faces. Columns

    ``events``
        in which simulated and generated have it.
    ``WS``, ``WS_floor``
        1-Wasserstein distance of generated and simulated, and of both simulations.
    ``WS_chance``
        the WS that 95% stay below where generated and simulated change places in a random half of the
        events: of a perfect generator one in twenty is larger.
    ``mean``, ``mean_generated``, ``shift``, ``shift_low``, ``shift_high``, ``shift_floor``
        means, their difference generated - simulated, its interval (95%, events resampled), and that of
        the second simulation.
    ``width``, ``width_generated``, ``ratio``, ``ratio_low``, ``ratio_high``, ``ratio_floor``
        standard deviations, their ratio generated / simulated, its interval, and that of the second
        simulation.
    """
    tables = [collision_quantities(table, detector) for table in (simulated, again, generated)]
    rows = []
    for key, one in tables[0].items():
        second, other = tables[1][key], tables[2][key]
        # the same draws for all quantities
        rng = np.random.default_rng(seed)
        rows.append(
            {"side": key[0], "quantity": key[1], **_compared(one, second, other, rng, draws)}
        )
    return pd.DataFrame(rows)


def _compared(
    one: NDArray[np.float64],
    second: NDArray[np.float64],
    other: NDArray[np.float64],
    rng: np.random.Generator,
    draws: int,
) -> dict[str, float]:
    floor = _apart(*_both(one, second))
    one, other = _both(one, other)
    chance, *edges = _by_chance(one, other, rng, draws) if len(one) > 1 else [np.nan] * 5
    found = _apart(one, other)
    return {
        "events": len(one),
        "WS": found["WS"],
        "WS_floor": floor["WS"],
        "WS_chance": chance,
        "mean": found["mean"],
        "mean_generated": found["mean"] + found["shift"],
        "shift": found["shift"],
        "shift_low": edges[0],
        "shift_high": edges[1],
        "shift_floor": floor["shift"],
        "width": found["width"],
        "width_generated": found["width"] * found["ratio"],
        "ratio": found["ratio"],
        "ratio_low": edges[2],
        "ratio_high": edges[3],
        "ratio_floor": floor["ratio"],
    }


def _apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
    """How two samples of the same events differ; NaN where there are fewer than two."""
    if len(one) < 2:
        return dict.fromkeys(("WS", "mean", "shift", "width", "ratio"), np.nan)
    mean, width = float(one.mean()), float(one.std())
    return {
        "WS": _distance(one, other),
        "mean": mean,
        "shift": float(other.mean()) - mean,
        "width": width,
        "ratio": float(other.std()) / width if width > 0 else np.nan,
    }


def _by_chance(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    rng: np.random.Generator,
    draws: int,
) -> list[float]:
    """The WS that chance stays below, and the ends of the intervals of shift and ratio."""
    swapped = []
    for _ in range(draws):
        swap = rng.random(len(one)) < 0.5
        swapped.append(_distance(np.where(swap, other, one), np.where(swap, one, other)))
    chosen = rng.integers(len(one), size=(draws, len(one)))
    shift = other[chosen].mean(axis=1) - one[chosen].mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = other[chosen].std(axis=1) / one[chosen].std(axis=1)
    return [float(np.quantile(swapped, _LEVEL)), *_interval(shift), *_interval(ratio)]


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """That holds :data:`_LEVEL` of the values; those that are NaN do not count, some may be infinite."""
    known = np.sort(values[~np.isnan(values)])
    if len(known) == 0:
        return np.nan, np.nan
    tails = np.array([1 - _LEVEL, 1 + _LEVEL]) / 2 * (len(known) - 1)
    low, high = known[np.rint(tails).astype(np.int64)]
    return float(low), float(high)


def _both(
    one: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    there = ~(np.isnan(one) | np.isnan(other))
    return one[there], other[there]


def _distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """1-Wasserstein distance of two samples of the same size."""
    return float(np.abs(np.sort(one) - np.sort(other)).mean())


# --- What the numbers say -------------------------------------------------------------------------


_NAMES = {
    "photons": "photon sum",
    "row": "row of the centre",
    "column": "column of the centre",
    "left_right": "left-right asymmetry",
    "up_down": "up-down asymmetry",
    "side_asymmetry": "asymmetry of the sides",
}


def quantity_name(quantity: str) -> str:
    """What a column of sums is called where people read it."""
    channel = quantity.removeprefix("channel_").replace("_", " ")
    return _NAMES.get(quantity, f"channel {channel}")


def left_out_table(left_out: pd.DataFrame) -> pd.DataFrame:
    """Particles that are in none of the sums, as they are shown: ``left_out`` as for :func:`left_out_findings`."""
    return pd.DataFrame(
        {
            "reason": [_REASONS[reason] for reason in left_out["reason"]],
            "species": [symbol(int(pdg)) for pdg in left_out["pdg"]],
            "particles": left_out["particles"].to_numpy(),
            "share": left_out["share"].to_numpy(),
        }
    )


def shown(table: pd.DataFrame) -> Styler:
    """What :func:`compare_collisions` gives, as it is shown."""

    def pair(low: str, high: str) -> list[str]:
        return [f"{a:.3g} to {b:.3g}" for a, b in zip(table[low], table[high], strict=True)]

    found = table[["side", "events", "WS", "WS_floor", "WS_chance", "mean", "shift"]].copy()
    found.insert(1, "quantity", [quantity_name(name) for name in table["quantity"]])
    found["interval"] = pair("shift_low", "shift_high")
    found[["shift_floor", "width", "ratio"]] = table[["shift_floor", "width", "ratio"]]
    found["its interval"] = pair("ratio_low", "ratio_high")
    found["ratio_floor"] = table["ratio_floor"]
    digits = ("WS", "WS_floor", "WS_chance", "mean", "shift", "shift_floor", "width")
    formats: dict[Any, Any] = dict.fromkeys(digits, "{:.3g}")
    formats |= dict.fromkeys(("ratio", "ratio_floor"), "{:.3f}")
    return found.style.format(formats, na_rep="").hide(axis="index")


def dark_faces(sums: pd.DataFrame) -> pd.Series:
    """By side, the share of events without a photon there."""
    return sums["photons"].eq(0).groupby(sums["side"], sort=False).mean()


def dark_findings(dark: pd.DataFrame, min_photons: int) -> str:
    """How many events leave a face dark, in a sentence about every side.

    ``dark`` by side: shares ``simulated``, ``again`` (with another seed), ``generated`` and ``bright``,
    simulated without responses of fewer than ``min_photons``.
    """
    said = [
        f"{row['simulated']:.1%} and {row['again']:.1%} in two simulations, {row['bright']:.1%} in the "
        f"first without responses of fewer than {min_photons} photons, {row['generated']:.1%} generated "
        f"({side})"
        for side, row in dark.iterrows()
    ]
    return f"Events without a photon on a face: {'; '.join(said)}."


def left_out_findings(particles: int, left_out: pd.DataFrame) -> str:
    """Which particles are in none of the sums, in a sentence.

    ``left_out`` has a row for each reason and species: ``reason``, ``pdg``, ``particles``, ``share`` (of
    all simulated light; NaN where that cannot be simulated).
    """
    count = int(left_out["particles"].sum())
    if count == 0:
        return f"All {particles} particles are in all of the sums."
    reasons = []
    for reason, part in left_out.groupby("reason", sort=False):
        kinds = part.groupby("pdg")["particles"].sum().sort_values(ascending=False, kind="stable")
        named = [f"{symbol(int(str(pdg)))} {n}" for pdg, n in kinds.items()]
        more = f" and {len(named) - 5} more species" if len(named) > 5 else ""
        reasons.append(
            f"{int(kinds.sum())} {_REASONS[str(reason)]} ({listed_names(named[:5])}{more})"
        )
    text = (
        f"{count} of {particles} particles ({count / particles:.2%}) are left out of all sums, simulated "
        f"and generated alike: {'; '.join(reasons)}. "
    )
    known = left_out["share"].notna()
    if known.any():
        text += f"They would bring {left_out['share'].sum():.2%} of the simulated light"
        dark = int(left_out.loc[~known, "particles"].sum())
        text += f", {dark} that cannot be simulated not counted." if dark else "."
    else:
        text += "What light they would bring is not known: the simulation has no such particles."
    return text


_REASONS = {
    "species": "of species that the generator has not learned",
    "energy": "of energies that it has not learned",
    "direction": "of directions that it has not learned",
    "side": "that fly to a side without a detector",
    "simulation": "of species that the simulation does not have",
}


def collision_findings(table: pd.DataFrame) -> str:
    """What :func:`compare_collisions` says of all quantities, as a Markdown list."""
    table = table[table["events"] >= 2].reset_index(drop=True)
    if table.empty:
        return "- No quantity is there in two events: nothing can be said."
    pairs = zip(table["side"], table["quantity"], strict=True)
    names = [f"{quantity_name(quantity)} ({side})" for side, quantity in pairs]
    return as_list(said(table, names) for said in (_distances, _shifts, _widths))


def _chosen(names: Sequence[str], rows: pd.Series) -> str:
    return listed_names(name for name, chosen in zip(names, rows, strict=True) if chosen)


def _distances(table: pd.DataFrame, names: Sequence[str]) -> str:
    far = table["WS"] > table["WS_chance"]
    expected = (1 - _LEVEL) * len(table)
    text = (
        f"**Distributions.** {far.sum()} of {len(table)} quantities are farther from simulation (WS) "
        f"than chance explains; of a perfect generator about {expected:.1f} would be."
    )
    over = (table["WS"] / table["WS_floor"]).to_numpy()
    if np.isfinite(over).any():
        over = np.where(np.isfinite(over), over, np.nan)
        text += (
            f" WS is {np.nanmedian(over):.2f} times that of two simulations in the median, and "
            f"{np.nanmax(over):.2f} times at most: {names[int(np.nanargmax(over))]}."
        )
    return text + (f" Beyond chance: {_chosen(names, far)}." if far.any() else "")


def _shifts(table: pd.DataFrame, names: Sequence[str]) -> str:
    off = (table["shift_low"] > 0) | (table["shift_high"] < 0)
    text = f"**Means.** The interval of the shift leaves out 0 for {off.sum()} of {len(table)}."
    size = (table["shift"].abs() / table["width"]).to_numpy()
    if np.isfinite(size).any():
        k = int(np.nanargmax(np.where(np.isfinite(size), size, np.nan)))
        text += (
            f" The largest, measured in widths of the simulated distribution ({size[k]:.2f}), is that "
            f"from {table['mean'][k]:.4g} to {table['mean_generated'][k]:.4g}: {names[k]}."
        )
    return text + (f" Shifted: {_chosen(names, off)}." if off.any() else "")


def _widths(table: pd.DataFrame, names: Sequence[str]) -> str:
    off = (table["ratio_low"] > 1) | (table["ratio_high"] < 1)
    text = f"**Widths.** The interval of their ratio leaves out 1 for {off.sum()} of {len(table)}"
    ratio = table["ratio"].to_numpy()
    if np.isfinite(ratio).any():
        ratio = np.where(np.isfinite(ratio), ratio, np.nan)
        low, high = int(np.nanargmin(ratio)), int(np.nanargmax(ratio))
        text += (
            f"; generated over simulated it is from {ratio[low]:.3f} ({names[low]}) to "
            f"{ratio[high]:.3f} ({names[high]})"
        )
    return text + "." + (f" Other: {_chosen(names, off)}." if off.any() else "")
