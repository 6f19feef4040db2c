"""Closure of a model: where its responses are not those of the simulation, with uncertainties.

A model is asked for the response to a particle and photon sum; simulation has answered the same
question. Quantities of a response (:func:`measure`) are averaged in bins of what was asked, and what
differs is divided by its uncertainty: the *pull*. Responses to one particle are correlated, so the
uncertainty comes from particles. Of N responses with differences d_i the mean is D = sum_i d_i / N, and

    Var(D) = G / (G - 1) sum_g (sum_{i in g} (d_i - D))^2 / N^2

over the G particles g (the cluster-robust variance of a mean; Cameron and Miller, J. Human Resources
50 (2015) 317, eq. 11, without regressors). Beside a model stands the *floor*, ``reference+sum``: other
simulations of the same particles, which show the pulls that chance and scaling give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse, stats

from zdc_nb.data.events import FEATURES, Events, Split, impact_point
from zdc_nb.detector import Detector
from zdc_nb.evaluation.baselines import RESIMULATED, matched_runs, what_can_be_evaluated
from zdc_nb.evaluation.metrics import Observed, observe

__all__ = [
    "EVERYTHING",
    "FEWEST_PARTICLES",
    "Closure",
    "Floor",
    "beyond_chance",
    "bins_of",
    "closure_floor",
    "closure_of",
    "closure_summary",
    "compare_correlations",
    "compare_means",
    "measure",
]

EVERYTHING = "all responses"
"""Name of the bin that holds all."""

FEWEST_PARTICLES = 10
"""A bin with fewer has no row: so few do not tell their own spread."""

CHANCE = 0.05
"""Probability that anything at all is found in a table where nothing is wrong."""

SMALLEST = 0.02
"""What is off by less, of its own size, is counted as right: it may be known well, but is small."""

_QUANTILES = (0.9, 0.99, 0.999)
"""Of the simulated values: above these, tails are compared."""

_TAIL = 0.1
"""Least scale of a share of responses: what is off by a tenth of them is as bad as it gets."""

_FARTHEST = 8
"""Largest distance of two fibres whose correlation is looked at, in fibres."""

_DIRECTIONS = {"along a row": (0, 1), "along a column": (1, 0), "on a diagonal": (1, 1)}

_CHUNK = 2048
"""Responses whose fibres are held as floating-point numbers at once, as far as particles allow."""


@dataclass(frozen=True, eq=False)
class Floor:
    """Other simulations of the same particles, scaled to the photon sums that were asked.

    Attributes
    ----------
    answered
        (N,) bool, the test responses that have one.
    responses
        (M, R, K) photons, one for each of these.
    """

    answered: NDArray[np.bool_]
    responses: NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Closure:
    """What was found of one model on one data set.

    Each table has the columns simulated and generated (means, shares or correlations), difference
    (generated less simulated), uncertainty, pull, scale (the size that a difference is compared
    with), particles; and floor, floor_difference, floor_uncertainty, floor_pull, which are empty
    where there is no floor.

    Attributes
    ----------
    means
        by (what is binned), bin, quantity: a row for each quantity of :func:`measure` in each bin.
    tails
        quantity, low, high: the share of responses in which it is above ``low``, and at most ``high``.
    correlations
        direction, distance: of the photons of two fibres, see :func:`compare_correlations`; empty
        where no particle is repeated.
    values
        of ``simulated``, ``generated`` and, where there is one, ``floor``: for each quantity of the
        tails (runs, N), to draw spectra of.
    responses, particles
        how many test responses and unique particles there are.
    """

    means: pd.DataFrame
    tails: pd.DataFrame
    correlations: pd.DataFrame
    values: Mapping[str, Mapping[str, NDArray[np.float64]]]
    responses: int
    particles: int

    @property
    def has_floor(self) -> bool:
        """Whether there was another simulation to compare with."""
        return "floor" in self.values


def closure_floor(split: Split, seed: int) -> Floor | None:
    """The first generation of ``reference+sum``; None where a split does not allow it."""
    possible = what_can_be_evaluated(split.reserved, split.test).baselines
    if RESIMULATED[1] not in possible:
        return None
    drawn = matched_runs(split.reserved, split.test, 1, seed)
    answered = np.isin(split.test.particle, split.reserved.particle)
    return Floor(answered, next(drawn.generations))


def closure_of(
    test: Events,
    generated: NDArray[np.uint16],
    observed: Observed | None = None,
    floor: Floor | None = None,
) -> Closure:
    """Compare a model with the simulation in everything that this module knows.

    Parameters
    ----------
    test
        N test responses of a detector of R x K fibres.
    generated
        (N, R, K), one generation; response k answers test response k.
    observed
        channels, centre and radius of several generations, each (runs, N, columns); of the one
        generation where it is not given.
    floor
        see :func:`closure_floor`.

    Raises
    ------
    ValueError
        where there is not one response for each test response.
    """
    responses, detector, bins = test.responses, test.detector, bins_of(test)
    simulated, observed = _seen(responses, detector), observed or _seen(generated, detector)
    before, after = measure(responses, test, simulated), measure(generated, test, observed)
    means = compare_means(test.particle, before, after, bins)
    values = {
        "simulated": _tailed(responses, simulated, detector),
        "generated": _tailed(generated, observed, detector),
    }
    tails = _compare_tails(test, values["simulated"], values["generated"])
    correlations = compare_correlations(test.particle, responses, generated)
    if floor is None:
        means, tails, correlations = map(_without_floor, (means, tails, correlations))
    else:
        at = floor.answered
        kept, again = test[at], _seen(floor.responses, detector)
        answer = measure(floor.responses, kept, again)
        values["floor"] = _tailed(floor.responses, again, detector)
        same = {name: each[:, at] for name, each in values["simulated"].items()}
        edges = list(zip(tails["quantity"], tails["low"], tails["high"], strict=True))
        of_floor = (
            compare_means(kept.particle, before[at], answer, bins[at]),
            _shares(kept.particle, same, values["floor"], edges),
            compare_correlations(kept.particle, responses[at], floor.responses),
        )
        pairs = zip((means, tails, correlations), of_floor, strict=True)
        means, tails, correlations = (_with_floor(table, other) for table, other in pairs)
    particles = len(np.unique(test.particle))
    return Closure(means, tails, correlations, values, len(test), particles)


def closure_summary(
    test: Events,
    models: Mapping[str, tuple[NDArray[np.uint16], Observed | None]],
    floor: Floor | None = None,
) -> pd.DataFrame:
    """What :func:`compare_means` says of several models, in all responses and at little light.

    Parameters
    ----------
    test
        N test responses.
    models
        by name, as for :func:`closure_of`: one generation and what was observed of all.
    floor
        becomes the model ``reference+sum``.

    Returns
    -------
    The columns model and those of :class:`Closure`'s means, of the bin :data:`EVERYTHING` and of
    that of the lowest photon sums.
    """
    bins = bins_of(test)[[EVERYTHING, "photon sum"]]
    sums = bins["photon sum"]
    counted = pd.Series(test.particle).groupby(sums, observed=False).nunique()
    lowest = [*counted.index[counted >= FEWEST_PARTICLES]][:1]
    bins = bins.assign(**{"photon sum": sums.cat.set_categories(lowest)})
    simulated = measure(test.responses, test)
    parts, again = [], None
    if floor is not None:
        at = floor.answered
        answer = measure(floor.responses, test[at])
        again = compare_means(test.particle[at], simulated[at], answer, bins[at])
        parts.append(_without_floor(again).assign(model=RESIMULATED[1]))
    for name, (generated, observed) in models.items():
        found = measure(generated, test, observed)
        table = compare_means(test.particle, simulated, found, bins)
        table = _without_floor(table) if again is None else _with_floor(table, again)
        parts.append(table.assign(model=name))
    columns = ["model", "by", "bin", "quantity", *_COLUMNS, *_OF_FLOOR.values()]
    every = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return every[columns]


def measure(
    responses: NDArray[np.uint16], test: Events, observed: Observed | None = None
) -> pd.DataFrame:
    """The quantities that are compared, of each of N responses that answer N test responses.

    Parameters
    ----------
    responses
        (N, R, K) photons.
    test
        what they answer: its photon sums were asked for, its particles tell which responses vary.
    observed
        channels, centre and radius of several generations, each (runs, N, columns), of which the
        mean is taken; of ``responses`` where it is not given.

    Returns
    -------
    A row for each response, with the columns

    ``photons``
        photons over photons asked for.
    ``lit fibres``
        how many have light.
    ``share of <channel>``
        of the light that all channels see; of a dark response, of the fibres.
    ``centre row``, ``centre column``, ``radius``
        fibres, see :mod:`zdc_nb.detector.observables`.
    ``variance of centre``, ``variance of radius``
        fibres squared: the squared distance from the mean of the particle's n responses, times
        n / (n - 1), so that the mean is unbiased; not a number where n = 1.

    Raises
    ------
    ValueError
        where there is not one response for each test response.
    """
    if len(responses) != len(test):
        raise ValueError(
            f"generated: expected {len(test)} responses, one for each test response, "
            f"got {len(responses)}"
        )
    detector = test.detector
    observed = _seen(responses, detector) if observed is None else observed
    light = observed.channels.astype(np.float64)
    total = light.sum(-1, keepdims=True)
    fibres = detector.masks.sum(axis=(1, 2)) / detector.masks.sum()
    shares = np.divide(light, total, out=np.tile(fibres, (*total.shape[:2], 1)), where=total > 0)
    flat = responses.reshape(len(responses), -1)
    columns = {
        "photons": flat.sum(axis=1, dtype=np.int64) / np.maximum(test.photon_sum, 1),
        "lit fibres": np.count_nonzero(flat, axis=1).astype(np.float64),
    }
    for name, share in zip(detector.channels, shares.mean(0).T, strict=True):
        columns[f"share of {name}"] = share
    columns["centre row"], columns["centre column"] = observed.centre.mean(0).T
    columns["radius"] = observed.radius.mean(0)[:, 0]
    columns["variance of centre"] = _spread(observed.centre, test.particle)
    columns["variance of radius"] = _spread(observed.radius, test.particle)
    return pd.DataFrame(columns)


def bins_of(events: Events) -> pd.DataFrame:
    """Which bin each of N responses is in, by five things that were asked for.

    Returns
    -------
    Ordered categories, a column each: :data:`EVERYTHING`, a single bin; ``species``; ``energy``
    (GeV) and ``photon sum`` (photons), at 1 and 3 of each power of ten; ``edge``, the
    distance (mm) of the impact point from the nearest edge of the face, inside it, at quarters
    of the largest there is; negative outside. Not a number where there is no such distance.
    """
    names = {code: name for name, code in events.detector.codes.items()}
    known = [*names.values(), "others"]
    species = [names.get(int(code), "others") for code in events.pdg]
    height, width = events.detector.face
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = np.abs(impact_point(events.features, events.detector)).T
        inside = 1e3 * np.minimum(width / 2 - x, height / 2 - y)
    deepest = 1e3 * min(height, width) / 2
    edges = [-np.inf, *(deepest * part for part in (-0.25, 0, 0.25, 0.5)), np.inf]
    at = [f"{edge:.0f}" for edge in edges]
    depths = [f"outside by > {at[1][1:]} mm", f"outside by 0 to {at[1][1:]} mm"]
    depths += [f"inside by {at[2]} to {at[3]} mm", f"inside by {at[3]} to {at[4]} mm"]
    depths += [f"inside by > {at[4]} mm"]
    energy = events.features[:, FEATURES.index("energy")]
    return pd.DataFrame(
        {
            EVERYTHING: pd.Categorical([EVERYTHING] * len(events)),
            "species": pd.Categorical(species, known, ordered=True),
            "energy": _decades(energy, "GeV"),
            "photon sum": _decades(events.photon_sum, "photons"),
            "edge": pd.cut(np.where(np.isfinite(inside), inside, np.nan), edges, labels=depths),
        }
    )


def compare_means(
    particle: NDArray[np.int64],
    simulated: pd.DataFrame,
    generated: pd.DataFrame,
    bins: pd.DataFrame,
) -> pd.DataFrame:
    """Mean of each quantity in each bin, generated against simulated, with pulls.

    Parameters
    ----------
    particle
        (N,), equal for responses to the same particle.
    simulated, generated
        N rows with the same columns, as from :func:`measure`; what is not a number in one of them
        is left out.
    bins
        N rows of categories, as from :func:`bins_of`.

    Returns
    -------
    Columns by, bin, quantity, simulated, generated, difference, uncertainty, pull, scale, responses,
    particles. The scale is the simulated mean, for a centre the simulated standard deviation.
    Bins of fewer than :data:`FEWEST_PARTICLES` have no rows.
    """
    parts = []
    for by in map(str, bins):
        for name in bins[by].cat.categories:
            chosen = (bins[by] == name).to_numpy(bool)
            if len(np.unique(particle[chosen])) < FEWEST_PARTICLES:
                continue
            before, after = simulated[chosen], generated[chosen]
            table = _differences(particle[chosen], before.to_numpy(), after.to_numpy())
            table.insert(0, "quantity", before.columns)
            table.insert(0, "bin", name)
            table.insert(0, "by", by)
            place = table["quantity"].str.startswith("centre")
            spread = before.std(ddof=0).to_numpy()
            table["scale"] = np.where(place, spread, np.abs(table["simulated"]))
            parts.append(table.dropna(subset=["simulated", "uncertainty"]))
    columns = ["by", "bin", "quantity", *_COLUMNS]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def compare_correlations(
    particle: NDArray[np.int64], simulated: NDArray[np.uint16], generated: NDArray[np.uint16]
) -> pd.DataFrame:
    """How the photons of two fibres vary together, by how far apart they are.

    Each particle's mean image is taken away, which leaves r_i(p) of response i at fibre p. The
    correlation of a particle at a displacement d is, over its responses and all pairs of fibres,

        sum r_i(p) r_i(p + d) / (1/2 sum (r_i(p)^2 + r_i(p + d)^2)),

    so that its bright fibres count most. The mean over particles, each with the same weight, is told.

    Parameters
    ----------
    particle
        (N,), equal for responses to the same particle.
    simulated, generated
        (N, R, K) photons.

    Returns
    -------
    Columns direction, distance (in steps), parity (``same`` or ``other`` field of the chess board),
    simulated, generated, difference, uncertainty, pull, scale, responses, particles; no rows where
    fewer than :data:`FEWEST_PARTICLES` are repeated or there is no variation.
    """
    _, index, counts = np.unique(particle, return_inverse=True, return_counts=True)
    repeated = counts[index] > 1
    columns = ["direction", "distance", "parity", *_COLUMNS]
    sides = simulated.shape[1:]
    steps = [
        (direction, far, (far * down, far * right))
        for direction, (down, right) in _DIRECTIONS.items()
        for far in range(1, _FARTHEST + 1)
        if far * down < sides[0] and far * right < sides[1]
    ]
    groups = int(np.count_nonzero(counts > 1))
    if groups < FEWEST_PARTICLES:
        return pd.DataFrame(columns=columns)
    moves = [move for _, _, move in steps]
    found = [
        _correlations(particle[repeated], each[repeated], moves) for each in (simulated, generated)
    ]
    table = _differences(np.arange(groups), *found)
    table["direction"], table["distance"], _ = zip(*steps, strict=True)
    table["parity"] = ["other" if sum(move) % 2 else "same" for move in moves]
    return table.dropna(subset=["uncertainty"])[columns]


def beyond_chance(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a :class:`Closure` table that are worse than chance and the floor explain.

    Kept is what is off by so many uncertainties that in the whole table, were nothing wrong, one
    such row would come up with probability :data:`CHANCE` (Bonferroni's bound, with Student's t of
    as many particles); by more than the floor, to the same side; and by more than :data:`SMALLEST` of its own size.

    Returns
    -------
    These rows with ``excess``, how far beyond chance and floor: (|difference| - the floor's - 2
    uncertainties) / scale, largest first.
    """
    if table.empty:
        return table.assign(excess=0.0)
    freedom = np.maximum(table["particles"] - 1, 1)
    probability = 2 * stats.t.sf(np.abs(table["pull"].to_numpy(np.float64)), freedom)
    # a floor that is off to the other side excuses nothing
    floor = (np.sign(table["difference"]) * table["floor_difference"]).clip(lower=0).fillna(0.0)
    beyond = table["difference"].abs() - floor - 2 * table["uncertainty"]
    scale = table["scale"].where(table["scale"] > 0, 1.0)
    excess = beyond / scale
    large = table["difference"].abs() > SMALLEST * scale
    kept = (probability < CHANCE / len(table)) & (beyond > 0) & large
    found: pd.DataFrame = table.assign(excess=excess)[kept]
    return found.sort_values("excess", ascending=False, kind="stable")


_COLUMNS = (
    "simulated",
    "generated",
    "difference",
    "uncertainty",
    "pull",
    "scale",
    "responses",
    "particles",
)

_OF_FLOOR = {
    "generated": "floor",
    "difference": "floor_difference",
    "uncertainty": "floor_uncertainty",
    "pull": "floor_pull",
}


def _seen(responses: NDArray[np.uint16], detector: Detector) -> Observed:
    """What is observed of one generation, as of several."""
    return Observed(*(part[None] for part in observe(responses, detector)))


def _decades(values: NDArray[Any], unit: str) -> pd.Categorical:
    """Ordered bins between 1 and 3 of each power of ten, as far as there are values."""
    top = max(float(values.max(initial=1.0)), 1.0)
    edges = [0.0]
    for power in range(int(np.log10(top)) + 1):
        edges += [10.0**power, 3 * 10.0**power]
    edges = [edge for edge in edges if edge <= top] + [np.inf]
    names = [f"{low:g} to {high:g} {unit}" for low, high in pairwise(edges)]
    names[-1] = f"{edges[-2]:g} {unit} and more"
    binned: pd.Categorical = pd.cut(values.astype(np.float64), edges, right=False, labels=names)
    return binned.remove_unused_categories()


def _spread(values: NDArray[np.float64], particle: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) squared distance from the particle's mean, unbiased, summed over columns; of (runs, N, c)."""
    _, index, counts = np.unique(particle, return_inverse=True, return_counts=True)
    place = np.arange(len(particle))
    belongs = sparse.csr_array((np.ones(len(place)), (index, place)))
    found = np.zeros(len(particle))
    for run in values:
        off = run - (belongs @ run / counts[:, None])[index]
        found += (off**2).sum(axis=1) / len(values)
    own = counts[index]
    return np.where(own > 1, found * own / np.maximum(own - 1, 1), np.nan)


def _ratio(difference: float, error: float) -> float:
    """A pull: 0 of what is never off, infinite of what is always off by the same."""
    if error > 0 or np.isnan(error):
        return float(difference / error)
    return 0.0 if difference == 0 else float(np.copysign(np.inf, difference))


def _differences(
    particle: NDArray[np.int64],
    simulated: NDArray[np.float64],
    generated: NDArray[np.float64],
) -> pd.DataFrame:
    """A row for each of the columns of two (N, Q); see the top of this module."""
    _, index = np.unique(particle, return_inverse=True)
    place = np.arange(len(particle))
    belongs = sparse.csr_array((np.ones(len(place)), (index, place)))
    valid = np.isfinite(simulated) & np.isfinite(generated)
    number = valid.sum(axis=0)
    rows = np.maximum(number, 1)
    off = np.where(valid, generated - simulated, 0.0)
    mean = off.sum(axis=0) / rows
    by_particle = belongs @ np.where(valid, off - mean, 0.0)
    groups = ((belongs @ valid.astype(np.float64)) > 0).sum(axis=0)
    correction = groups / np.maximum(groups - 1, 1)
    # rounding leaves something of differences that are all the same
    squares = np.where(np.abs(by_particle) > 1e-9 * np.abs(mean), by_particle, 0.0) ** 2
    error = np.sqrt(correction * squares.sum(axis=0)) / rows
    error[groups < FEWEST_PARTICLES] = np.nan
    return pd.DataFrame(
        {
            "simulated": np.where(valid, simulated, 0.0).sum(axis=0) / rows,
            "generated": np.where(valid, generated, 0.0).sum(axis=0) / rows,
            "difference": mean,
            "uncertainty": error,
            "pull": [_ratio(*pair) for pair in zip(mean, error, strict=True)],
            "scale": 1.0,
            "responses": number,
            "particles": groups,
        }
    )


def _tailed(
    responses: NDArray[np.uint16], observed: Observed, detector: Detector
) -> dict[str, NDArray[np.float64]]:
    """Quantities whose tails are compared, each (runs, N)."""
    light = observed.channels.transpose(2, 0, 1).astype(np.float64)
    found = {"radius": observed.radius[:, :, 0]}
    found["lit fibres"] = np.count_nonzero(responses, axis=(1, 2))[None].astype(np.float64)
    return found | dict(zip(detector.channels, light, strict=True))


def _compare_tails(
    test: Events,
    simulated: Mapping[str, NDArray[np.float64]],
    generated: Mapping[str, NDArray[np.float64]],
) -> pd.DataFrame:
    """Shares above high quantiles of the simulated values, and of each stretch of radii."""
    edges = []
    for name, values in simulated.items():
        lows = np.unique(np.quantile(values, _QUANTILES, method="higher"))
        edges += [(name, float(low), np.inf) for low in lows]
    width = np.ceil(max(test.detector.shape) / 22)
    top = max(each["radius"].max(initial=0.0) for each in (simulated, generated))
    for low in np.arange(0, top, width):
        edges.append(("radius", float(low), float(low + width)))
    return _shares(test.particle, simulated, generated, edges)


def _shares(
    particle: NDArray[np.int64],
    simulated: Mapping[str, NDArray[np.float64]],
    generated: Mapping[str, NDArray[np.float64]],
    edges: list[tuple[str, float, float]],
) -> pd.DataFrame:
    """Share of responses above ``low`` and at most at ``high``, with pulls."""
    shares = [
        np.stack([((each[q] > low) & (each[q] <= high)).mean(axis=0) for q, low, high in edges], 1)
        for each in (simulated, generated)
    ]
    table = _differences(particle, *shares)
    table["scale"] = np.maximum(table["simulated"], _TAIL)
    for place, (name, values) in enumerate(
        zip(("quantity", "low", "high"), zip(*edges, strict=True), strict=True)
    ):
        table.insert(place, name, list(values))
    return table


def _correlations(
    particle: NDArray[np.int64], responses: NDArray[np.uint16], moves: list[tuple[int, int]]
) -> NDArray[np.float64]:
    """(particles, moves); 0 where nothing varies."""
    order = np.argsort(particle, kind="stable")
    _, first, counts = np.unique(particle[order], return_index=True, return_counts=True)
    ends = first + counts
    found = np.zeros((len(first), len(moves)))
    start = 0
    while start < len(first):
        # whole particles, at least one
        stop = max(start + 1, int(np.searchsorted(ends, first[start] + _CHUNK, side="right")))
        part = responses[order[first[start] : ends[stop - 1]]].astype(np.float32)
        begins = first[start:stop] - first[start]
        means = np.add.reduceat(part, begins, axis=0) / counts[start:stop, None, None]
        part -= np.repeat(means, counts[start:stop], axis=0).astype(np.float32)
        for k, (down, right) in enumerate(moves):
            rows, columns = part.shape[1] - down, part.shape[2] - right
            one, other = part[:, :rows, :columns], part[:, down:, right:]
            both, before, after = (
                np.add.reduceat(np.einsum("nij,nij->n", *pair).astype(np.float64), begins)
                for pair in ((one, other), (one, one), (other, other))
            )
            size = (before + after) / 2
            np.divide(both, size, out=found[start:stop, k], where=size > 0)
        start = stop
    return found


def _with_floor(table: pd.DataFrame, floor: pd.DataFrame) -> pd.DataFrame:
    """A table and, beside it, what another of the same rows says of the floor."""
    keys = [name for name in table.columns if name not in _COLUMNS]
    shown = floor[[*keys, *_OF_FLOOR]].rename(columns=_OF_FLOOR)
    return table.merge(shown, on=keys, how="left")


def _without_floor(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**dict.fromkeys(_OF_FLOOR.values(), np.nan))
