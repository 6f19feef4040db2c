"""Where the centres of showers are, and how far they spread, beside where they should be.

A loss that pulls a centre to one point is right about showers that are at that point on average, and
wrong about all others. So particles are looked at apart, by what may happen to them
(:func:`centre_groups`), and by two lengths in fibres: how far the mean centre of a particle's
responses lies from the expected one, and how far its responses spread about their own mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zdc_nb.data.events import Events, impact_point
from zdc_nb.data.expected import expected_centre
from zdc_nb.evaluation.comparison import paired_differences, resample
from zdc_nb.evaluation.metrics import Observed, observe
from zdc_nb.evaluation.names import SIMULATED

__all__ = ["centre_groups", "centre_table"]

EDGE = 0.1
"""Share of the face's longer side within which a particle is called near the edge."""

FEWEST = 5
"""Particles of a group; fewer say nothing."""


def centre_groups(events: Events) -> dict[str, NDArray[np.bool_]]:
    """(N,) each, which responses belong to which group of particles; every response to one.

    ``arrives``: undecayed with a chance of at least 1/2, away from the edges; ``at the edge``: the same
    within :data:`EDGE` of one; ``decays``: undecayed with a smaller chance; ``no weight``: swept away,
    aimed beside the face, or not known.
    """
    detector = events.detector
    weight = expected_centre(events.pdg, events.features, detector).weight
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = np.abs(impact_point(events.features, detector)).T
    height, width = detector.face
    margin = EDGE * max(detector.face)
    edge = (x > width / 2 - margin) | (y > height / 2 - margin)
    arrives = weight >= 0.5
    return {
        "arrives": arrives & ~edge,
        "at the edge": arrives & edge,
        "decays": (weight > 0) & ~arrives,
        "no weight": weight == 0,
    }


def centre_table(
    test: Events, models: Mapping[str, Mapping[int, Observed]], baseline: str = "bs"
) -> pd.DataFrame:
    """Distance to the expected centre and spread of the centres, by group and model.

    Parameters
    ----------
    test
        N test responses, whose particles are repeated.
    models
        by name and seed, what is observed of all generations, each (runs, N, columns).
    baseline
        the model that others are compared with, if it is there.

    Returns
    -------
    Columns group, particles, model (:data:`~zdc_nb.evaluation.names.SIMULATED` first), ``distance``
    (root mean square over responses, of their particles' mean centre from the expected one; empty
    without weight), ``spread`` (root mean square distance of responses from their particle's mean
    centre), in fibres, means over generations and trainings; ``centre MAE`` as of the metric, ``change``
    against the baseline (per cent) with ``low`` and ``high`` as in
    :func:`~zdc_nb.evaluation.comparison.paired_differences`. Groups of fewer than :data:`FEWEST`
    particles are left out.
    """
    simulated = observe(test.responses, test.detector)
    parts = []
    for group, chosen in centre_groups(test).items():
        part = test[chosen]
        particles = len(np.unique(part.particle))
        if particles < FEWEST:
            continue
        own = {
            name: {seed: Observed(*(a[:, chosen] for a in seen)) for seed, seen in each.items()}
            for name, each in models.items()
        }
        lengths = {SIMULATED: _lengths(part, simulated.centre[chosen])}
        for name, each in own.items():
            runs = [_lengths(part, centre) for seen in each.values() for centre in seen.centre]
            lengths[name] = (
                float(np.mean([r[0] for r in runs])),
                float(np.mean([r[1] for r in runs])),
            )
        table = pd.DataFrame.from_dict(lengths, orient="index", columns=["distance", "spread"])
        table = table.rename_axis("model").reset_index()
        table.insert(0, "group", group)
        table.insert(1, "particles", particles)
        resampled = {name: resample(part, each) for name, each in own.items()}
        errors = {name: float(r.found["centre MAE"].mean()) for name, r in resampled.items()}
        table["centre MAE"] = table["model"].map(errors)
        against = paired_differences(resampled, baseline)
        against = against[against["metric"] == "centre MAE"]
        columns = ["model", "change", "low", "high"]
        parts.append(table.merge(against[columns], on="model", how="left"))
    return pd.concat(parts, ignore_index=True)


def _lengths(events: Events, centre: NDArray[np.float64]) -> tuple[float, float]:
    """Distance and spread of :func:`centre_table`, of centres (N, 2)."""
    _, index, counts = np.unique(events.particle, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(index, weights=column) for column in centre.T], axis=1)
    mean = (sums / counts[:, None])[index]
    expected, weight = expected_centre(events.pdg, events.features, events.detector)
    spread = float(np.sqrt(((centre - mean) ** 2).sum(1).mean()))
    if not (weight > 0).any():
        return np.nan, spread
    return float(np.sqrt(((mean - expected) ** 2).sum(1).mean())), spread
