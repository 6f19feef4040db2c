"""What a closure says, in sentences: where a model fails, the worst first, and what is right.

Every sentence is made of the numbers in the tables of :mod:`zdc_nb.evaluation.closure`; none knows
which model it is about.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from zdc_nb.evaluation.closure import (
    CHANCE,
    EVERYTHING,
    FEWEST_PARTICLES,
    SMALLEST,
    Closure,
    beyond_chance,
)
from zdc_nb.evaluation.sentences import as_list, listed_names
from zdc_nb.evaluation.tables import in_order, is_trained

__all__ = ["closure_findings", "summary_sentences"]

_FAR = 3.0
"""Pulls beyond are counted; of a normal distribution 1 in 370 is."""

_TOLD = ("photons", "lit fibres", "radius", "variance of centre", "variance of radius")
"""Quantities of a summary that a sentence names."""


def closure_findings(closure: Closure, model: str, subset: str) -> str:
    """Where a model fails on a data set, worst first, as a Markdown list; then what is right."""
    return as_list(_closure_sentences(closure, model, subset))


def summary_sentences(summary: pd.DataFrame) -> Iterator[str]:
    """Where each model fails, on the data set where it is worst: a sentence for each model.

    ``summary`` is that of :func:`~zdc_nb.evaluation.closure.closure_summary`, with the column
    subset.
    """
    for model in filter(is_trained, in_order(summary["model"])):
        mine = summary[(summary["model"] == model) & summary["quantity"].isin(_TOLD)]
        # sorted: of each quantity the first is the worst
        worst = beyond_chance(mine).drop_duplicates("quantity")
        parts = []
        for row in worst.to_dict("records"):
            text = _mean_said(row["quantity"], row["simulated"], row["generated"]).rstrip(",")
            where = "" if row["by"] == EVERYTHING else f" {_where(row)}"
            parts.append(f"{text}{where} on {row['subset']} ({_beside('means', row)})")
        if parts:
            yield f"**Where {model} fails**, of each the worst data set: it {'; '.join(parts)}."
        else:
            yield (
                f"**{model}**: photons, lit fibres, radius and the variances within a particle are "
                "not told from simulation on any data set, or no worse than new simulations."
            )


def _closure_sentences(closure: Closure, model: str, subset: str) -> Iterator[str]:
    yield _pulls(closure, model, subset)
    tables = {
        "means": closure.means.assign(group=_groups(closure.means["quantity"])),
        "tails": closure.tails.assign(group=_tails(closure.tails["quantity"])),
        "correlations": closure.correlations.assign(group="correlations of fibres"),
    }
    found: list[tuple[float, str]] = []
    right: list[str] = []
    for kind, table in tables.items():
        beyond = beyond_chance(table)
        for group, part in beyond.groupby("group", sort=False):
            worst = part.to_dict("records")[0]
            text = f"**{str(group).capitalize()}**: {_said(kind, worst)} ({_beside(kind, worst)})"
            compared = np.count_nonzero(table["group"] == group)
            if compared > 1:
                text += f"; beyond chance and floor in {len(part)} of {compared} comparisons"
            found.append((worst["excess"], f"{text}."))
        failed = set(beyond["group"])
        right += [group for group in dict.fromkeys(table["group"]) if group not in failed]
    found.sort(key=lambda pair: -pair[0])
    if not found and right:
        yield "**No failure was found** in what is compared here."
    yield from (text for _, text in found)
    if right:
        yield (
            "**Not told from simulation** (within chance, no worse than new simulations, or off by "
            f"at most {SMALLEST:.0%}): {listed_names(right)}."
        )
    if not closure.means["quantity"].str.startswith("variance").any():
        yield (
            "**Not compared**: the variances within a particle. They need at least "
            f"{FEWEST_PARTICLES} particles with several test responses."
        )
    if closure.correlations.empty:
        yield (
            "**Not compared**: correlations of fibres. Each particle's mean image is taken away, which "
            f"needs at least {FEWEST_PARTICLES} particles with several test responses."
        )
    if not closure.has_floor:
        yield (
            "**No floor**: there are no other simulations of these particles, so that all stands beside "
            "chance alone."
        )


def _pulls(closure: Closure, model: str, subset: str) -> str:
    # slow to import, and most who import this module judge nothing
    from scipy import stats  # noqa: PLC0415

    text = (
        f"**{model} on {subset}**, {closure.responses} test responses to {closure.particles} "
        "particles: "
    )
    pulls = closure.means["pull"].dropna()
    if pulls.empty:
        return f"{text}too few particles to compare any means (at least {FEWEST_PARTICLES})."
    text += f"{int((pulls.abs() > _FAR).sum())} of {len(pulls)} pulls of means are beyond {_FAR:g}"
    if closure.has_floor:
        again = int((closure.means["floor_pull"].abs() > _FAR).sum())
        text += f"; of new simulations, scaled to the photon sum, {again} are"
    by_chance = 2 * stats.norm.sf(_FAR) * len(pulls)
    return (
        f"{text}; by chance about {by_chance:.1f} would be. What is named below would come up in "
        f"{CHANCE:.0%} of such tables if nothing were wrong."
    )


def _groups(quantities: pd.Series[str]) -> pd.Series[str]:
    """The channels together, and both coordinates of the centre."""
    shares, centre = (quantities.str.startswith(name) for name in ("share of", "centre"))
    return quantities.mask(shares, "light of the channels").mask(centre, "centre")


def _tails(quantities: pd.Series[str]) -> pd.Series[str]:
    alone = quantities.isin(["radius", "lit fibres"])
    return ("spectrum of " + quantities).where(alone, "tails of the channels")


def _said(kind: str, row: dict[Any, Any]) -> str:
    """One row of a table in words."""
    before, after, quantity = row["simulated"], row["generated"], row.get("quantity", "")
    if kind == "correlations":
        steps = "step" if row["distance"] == 1 else "steps"
        return (
            f"photons of fibres {row['distance']} {steps} apart {row['direction']} have a "
            f"correlation of {round(after, 2) + 0.0:.2f}, in simulation {before:.2f}"
        )
    if kind == "means":
        return f"{_mean_said(quantity, before, after)} {_where(row)}"
    low, high = row["low"], row["high"]
    reach = f"more than {low:.3g}" if np.isinf(high) else f"{low:g} to {high:g}"
    what = {
        "radius": f"a radius of {reach} fibres",
        "lit fibres": f"{reach} lit fibres",
    }.get(quantity, f"{reach} photons in {quantity!r}")
    return f"{_share(after)} of its responses have {what}, of the simulated ones {_share(before)}"


def _mean_said(quantity: str, before: float, after: float) -> str:
    of = quantity.partition(" of ")[2]
    if quantity == "photons":
        return f"gives {after:.0%} of the photons asked for"
    if quantity == "lit fibres":
        return f"lights {after:.1f} fibres where simulation lights {before:.1f},"
    if quantity.startswith("share of "):
        return f"sends {after:.1%} of the light to {of!r}, simulation {before:.1%},"
    if quantity.startswith("centre "):
        return f"puts the {quantity} off by {after - before:+.2f} fibres"
    if quantity.startswith("variance of ") and before > 0:
        kept = after / before
        return f"{'keeps' if kept < 1 else 'has'} {kept:.0%} of the variance of the {of}"
    unit = "fibres squared" if quantity.startswith("variance") else "fibres"
    return f"has a mean {quantity} of {after:.2f} {unit} where simulation has {before:.2f},"


def _where(row: dict[Any, Any]) -> str:
    words = {
        EVERYTHING: "over all responses",
        "species": f"for {row['bin']}",
        "edge": f"where the impact point is {row['bin']} from the edge",
    }
    return words.get(row["by"], f"at {row['bin']}").replace("side by", "side the face by")


def _beside(kind: str, row: dict[Any, Any]) -> str:
    """How sure that is, and what the floor has there."""
    text = f"pull {row['pull']:+.0f}" if np.isfinite(row["pull"]) else "always by as much"
    floor, quantity = row["floor"], row.get("quantity", "")
    if np.isnan(floor):
        return text
    if kind == "tails":
        shown = _share(floor)
    elif quantity == "photons":
        shown = f"{floor:.0%}"
    elif quantity.startswith("share"):
        shown = f"{floor:.1%}"
    elif quantity.startswith("centre"):
        shown = f"{row['floor_difference']:+.2f}"
    elif quantity.startswith("variance") and row["simulated"] > 0:
        # of the simulated responses that the floor answers
        shown = f"{floor / (floor - row['floor_difference']):.0%}"
    else:
        shown = f"{floor:.2f}"
    return f"{text}; new simulations {shown}"


def _share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.2%}"
