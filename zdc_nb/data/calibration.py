"""How well events match the published facts about the private ZN set, the only one of which there are any.

The facts are ``published/zn_marginals.json``: figures of an *unfiltered* set (511 810 responses,
empty ones among them), of one *filtered* for training, the shares of four species, and ten single
responses. What the filter was is not published. Here it is the study's ``data.min_photons``, 10 by
default, for these reasons. It drops empty and nearly empty responses, and that moves the means of
energy and mass as they move between the published sets. And 10 lies just below the published
lower quartile of 12 photons: more than three quarters of the responses with light pass, which
makes 306 780 of 511 810, three fifths, where a fifth or a quarter are dark. That last step is
doubtful: the published spreads of the vertex differ between the two sets, which a cut on light
cannot do, so they may come from different productions.

What is compared how:

- quantiles and extremes (of sets of different size) as a ratio, within a factor 1.5;
- means, spreads and fractions as a ratio, within 20%;
- a mean below a fifth of its published spread (px, for one: 0.0099 with a spread of 0.23 GeV) as a
  difference in units of that spread, within 0.2: the ratio of two numbers near zero says nothing;
- the fraction of fibres without light by its complement, the lit fraction, within 20%: 0.80 would
  else pass for 0.96;
- what is exactly 0, and the number of species, as a difference, which has to be 0.

The parameters among the facts (shape, distance, split, number of responses) are the study's input
and not compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from particle import Particle

from zdc_nb.data.events import FEATURES, Events
from zdc_nb.data.simulation import Particles, respond, simulate
from zdc_nb.detector import ZN, Detector, load_detector
from zdc_nb.params import Study, derive_seed

__all__ = [
    "PUBLISHED_KEPT",
    "UNITS",
    "calibration_findings",
    "calibration_sample",
    "calibration_table",
    "example_table",
    "has_published",
    "published_facts",
]

UNITS = dict(zip(FEATURES, ("GeV", "m", "m", "m", "GeV", "GeV", "GeV", "MeV", "e"), strict=True))
"""Unit of each feature of a particle."""

SAMPLE = 20_000
"""Particles of :func:`calibration_sample`: enough that the rarest species, three in ten thousand,
is there, and that a share of half a percent is known to a tenth of itself."""

EXAMPLE_REPEATS = 400
"""Simulations of each published single response: the 5% point is then one of 20 below it."""

PUBLISHED_KEPT = 306_780 / 511_810
"""Size of the paper's set, which is filtered, over that of the unfiltered one: the fraction that
the filter kept, if the one was made from the other."""

_UNFILTERED = "neutron_responses_unfiltered_511810"
_FILTERED = "neutron_responses_filtered_for_training"
_PAPER = "paper_2512.20346"
_QUARTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}


@dataclass(frozen=True)
class _Measure:
    """How a simulated figure is held against a published one, and what is good enough."""

    name: str
    tolerance: str
    least: float
    most: float


_WITHIN_FACTOR = _Measure("ratio", "factor 1.5", 1 / 1.5, 1.5)
_WITHIN_PERCENT = _Measure("ratio", "20%", 0.8, 1.2)
_LIT_PERCENT = _Measure("ratio of 1 - value", "20%", 0.8, 1.2)
_IN_SPREADS = _Measure("difference / spread", "0.2", -0.2, 0.2)
_EQUAL = _Measure("difference", "equal", 0.0, 0.0)


def _compare(
    quantity: str,
    unit: str,
    published: float,
    simulated: float,
    measure: _Measure,
    spread: float = 1.0,
) -> dict[str, Any]:
    """One row of the table; ``spread`` is the published one, where the measure asks for it."""
    if measure.name == "ratio":
        value = simulated / published
    elif measure.name.startswith("ratio"):
        value = (1 - simulated) / (1 - published)
    else:
        value = (simulated - published) / spread
    return {
        "quantity": quantity,
        "unit": unit,
        "published": published,
        "simulated": simulated,
        "measure": measure.name,
        "value": value,
        "tolerance": measure.tolerance,
        "within": bool(measure.least <= value <= measure.most),
    }


def has_published(detector: Detector) -> bool:
    """Whether something is published that data of a detector can be held against: of the ZN alone."""
    return replace(detector, name=ZN.name) == ZN


@cache
def published_facts() -> dict[str, Any]:
    """The content of ``published/zn_marginals.json``; its units are in its ``comment``."""
    source = resources.files("zdc_nb.data") / "published" / "zn_marginals.json"
    content: dict[str, Any] = json.loads(source.read_text("utf-8"))
    return content


def calibration_sample(study: Study) -> Events:
    """An unfiltered sample of the open simulation: many particles, each simulated once.

    A study's own events are too few particles, of many repeats each, to tell a fault of the
    simulation from chance. Seeded by the study; of its detector.
    """
    seed = derive_seed(study.seed, "calibration")
    return simulate(SAMPLE, 1, 0, seed, detector=load_detector(study.detector))


def calibration_table(filtered: Events, unfiltered: Events | None = None) -> pd.DataFrame:
    """Every published figure that can be had from some events, beside what they give.

    Parameters
    ----------
    filtered
        events for training: those with at least ``data.min_photons`` photons.
    unfiltered
        events with the empty ones among them; None where nobody has them.

    Returns
    -------
    A frame with the columns set (``filtered`` or ``unfiltered``), quantity, unit, published,
    simulated, measure (how the two are compared), value (of the measure), tolerance, within
    (whether the value is in tolerance). See the module's text for the measures.

    Raises
    ------
    ValueError
        where a set of events is empty, or none of ``unfiltered`` has light; and of another detector
        than the ZN, about which nothing is published.
    """
    if not has_published(filtered.detector):
        raise ValueError(f"calibration: nothing is published about the {filtered.detector.name}")
    if len(filtered) == 0:
        raise ValueError("calibration: expected at least one filtered response")
    facts = published_facts()
    blocks = [("filtered", [*_species(facts, filtered), *_features(facts[_FILTERED], filtered)])]
    if unfiltered is not None:
        if unfiltered.photons.nnz == 0:
            raise ValueError("calibration: expected light in at least one unfiltered response")
        facts = facts[_UNFILTERED]
        rows = [*_light(facts, unfiltered), *_spectra(facts, unfiltered)]
        blocks.insert(0, ("unfiltered", rows))
    return pd.concat(
        [pd.DataFrame(rows).assign(set=name) for name, rows in blocks], ignore_index=True
    )[["set", *_compare("", "", 1, 1, _WITHIN_FACTOR)]]


def _species(facts: Mapping[str, Any], events: Events) -> Iterator[dict[str, Any]]:
    paper = facts[_PAPER]
    kinds = len(np.unique(events.pdg))
    yield _compare("species", "", paper["species"], kinds, _EQUAL)
    for subset, pdg in events.detector.codes.items():
        share = float(np.mean(events.pdg == pdg))
        published = paper["fraction_by_species"][subset]
        yield _compare(f"fraction of {subset}", "", published, share, _WITHIN_PERCENT)


def _features(facts: Mapping[str, Any], events: Events) -> Iterator[dict[str, Any]]:
    for column, (name, unit) in enumerate(UNITS.items()):
        values = events.features[:, column]
        mean, spread = facts["means"][name], facts["stds"][name]
        yield _mean(name, unit, mean, float(values.mean()), spread)
        yield _compare(f"{name}, spread", unit, spread, float(values.std()), _WITHIN_PERCENT)


def _mean(
    name: str, unit: str, published: float, simulated: float, spread: float
) -> dict[str, Any]:
    near_zero = abs(published) < 0.2 * spread
    measure = _IN_SPREADS if near_zero else _WITHIN_PERCENT
    return _compare(f"{name}, mean", unit, published, simulated, measure, spread)


def _light(facts: Mapping[str, Any], events: Events) -> Iterator[dict[str, Any]]:
    dark = 1 - events.photons.nnz / (len(events) * events.detector.dim)
    yield _compare(
        "fibres without light, fraction", "", facts["zero_pixel_fraction"], dark, _LIT_PERCENT
    )
    photons = events.photon_sum[events.photon_sum > 0]
    figures = [
        ("brightest fibre", facts["max_pixel"], events.photons.max(), _WITHIN_FACTOR),
        ("photon sum, largest", facts["photon_sum_max"], photons.max(), _WITHIN_FACTOR),
        (
            "photon sum of responses with light, mean",
            facts["photon_sum_of_nonzero_mean_about"],
            photons.mean(),
            _WITHIN_PERCENT,
        ),
    ]
    for name, published, simulated, measure in figures:
        yield _compare(name, "photons", published, float(simulated), measure)
    yield from _quartiles(
        "photon sum of responses with light",
        "photons",
        facts["photon_sum_of_nonzero_quartiles"],
        photons,
    )


def _spectra(facts: Mapping[str, Any], events: Events) -> Iterator[dict[str, Any]]:
    columns = dict(zip(FEATURES, events.features.T, strict=True))
    for name, values in columns.items():
        unit = UNITS[name]
        if f"{name}_mean" in facts:
            # no spread of the mass is published here; its mean is far from zero anyway
            spread = facts.get(f"{name}_std", 0.0)
            yield _mean(name, unit, facts[f"{name}_mean"], float(values.mean()), spread)
        if f"{name}_std" in facts:
            yield _compare(
                f"{name}, spread", unit, facts[f"{name}_std"], float(values.std()), _WITHIN_PERCENT
            )
        if f"{name}_quartiles" in facts:
            yield from _quartiles(name, unit, facts[f"{name}_quartiles"], values)
        for key, label, extreme in (
            ("min", "least", values.min()),
            ("max", "largest", values.max()),
        ):
            if f"{name}_{key}" in facts:
                published = facts[f"{name}_{key}"]
                yield _compare(f"{name}, {label}", unit, published, float(extreme), _WITHIN_FACTOR)


def _quartiles(
    name: str, unit: str, published: list[float], values: NDArray[Any]
) -> Iterator[dict[str, Any]]:
    for (label, level), figure in zip(_QUARTILES.items(), published, strict=True):
        measure = _WITHIN_FACTOR if figure else _EQUAL
        yield _compare(f"{name}, {label}", unit, figure, float(np.quantile(values, level)), measure)


def example_table(seed: int) -> pd.DataFrame:
    """The ten published single responses of the ZN, each beside many simulations of its particle.

    The vertex is not published and set to 0; momenta are rounded to six decimals, so that the
    energy is taken as it stands.

    Returns
    -------
    A frame with the columns pdg, energy (GeV), px, py (GeV), published (photons), low, median,
    high (5%, 50% and 95% points of the simulated photon sums) and within (published from low to
    high). Where the simulation is right, nine of ten are.
    """
    rows = []
    for number, example in enumerate(published_facts()["example_rows"]):
        entry = Particle.from_pdgid(example["pdg"])
        values = {name: example.get(name, 0.0) for name in FEATURES}
        values |= {"mass": float(entry.mass or 0.0), "charge": float(entry.charge or 0.0)}
        particle = Particles(
            np.array([example["pdg"]], np.int32), np.array([[values[name] for name in FEATURES]])
        )
        rng = np.random.default_rng(derive_seed(seed, "example", number))
        photons = respond(rng, particle, EXAMPLE_REPEATS).sum(axis=(1, 2), dtype=np.int64)
        low, median, high = np.quantile(photons, (0.05, 0.5, 0.95), method="inverted_cdf")
        published = example["zn_photons"]
        rows.append(
            {name: example[name] for name in ("pdg", "energy", "px", "py")}
            | {"published": published, "low": low, "median": median, "high": high}
            | {"within": bool(low <= published <= high)}
        )
    return pd.DataFrame(rows)


def calibration_findings(table: pd.DataFrame) -> str:
    """What a table of :func:`calibration_table` says, in sentences."""
    good, bad = int(table["within"].sum()), table[~table["within"]]
    text = f"{good} of {len(table)} published figures are met within tolerance."
    if bad.empty:
        return text
    lines = [
        f"- {row.quantity} ({row.set}): published {row.published:.4g}, "
        f"here {row.simulated:.4g} {row.unit}".rstrip()
        + f" ({row.measure} {row.value:.3g}, tolerance {row.tolerance})"
        for row in bad.itertuples()
    ]
    return "\n".join([text, "Out of tolerance:", *lines])
