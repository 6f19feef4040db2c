"""What a study comes to: two sentences and one small table, for the top of its report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from zdc_nb.data.symbols import symbol
from zdc_nb.evaluation.comparison import LEVEL
from zdc_nb.evaluation.names import name_of
from zdc_nb.evaluation.sentences import listed_names
from zdc_nb.evaluation.tables import in_order, is_trained
from zdc_nb.params import DRAWN, SETUPS

__all__ = ["FLOOR", "MEANINGS", "summary_table", "verdict"]

FLOOR = "reference+sum"
"""New simulations of the same particles, scaled to the photon sum: what a perfect flow would score."""

MEANINGS = {
    FLOOR: "the floor: new simulations of the same particles, scaled to the photon sum",
    "ignorant": "any training response, scaled to the photon sum, whatever the particle",
    "teacher": "trained on the data, a masked autoregressive flow",
    "bs": "student: learns from its teacher, draws in one pass",
    "bs+ch": "student with the channel loss",
    "bs+div": "student with diversity weights",
    "bs+ch+div": "student with both",
    "bs+ctr": "student with the centre loss",
    "bs+ctr+div": "student with the centre loss and diversity weights",
    "bs+ch+ctr": "student with the channel and the centre loss",
    "bs+ch+ctr+div": "student with all three",
    "splitting": "shares the photons between halves of ever smaller boxes",
}
"""What the rows of :func:`summary_table` are, in a few words."""

_ERRORS = ("MAE_cw", "WS", "centre", "radius")


def verdict(models: pd.DataFrame, comparison: pd.DataFrame | None) -> str:
    """Two sentences: how near the best and the worst model come to simulation, what physics brought.

    Parameters
    ----------
    models
        of :func:`~zdc_nb.evaluation.tables.model_table`.
    comparison
        of the setups with ``bs``, as for
        :func:`~zdc_nb.evaluation.conclusions.ablation_findings`; None where it is not there yet.

    Returns
    -------
    Markdown. Where no model can be held against the floor, the first sentence says so.
    """
    return f"{_nearness(models)} {_physics(comparison)}"


def summary_table(models: pd.DataFrame, subset: str) -> pd.DataFrame:
    """One data set of ``models`` against the floor, as text; no rows where they have none of it.

    A row for the floor, for ``ignorant`` and for each trained model; columns what it is, AUC,
    errors (with their multiple of the floor's in brackets), ms and MB, as far as any row has them.
    """
    part = models[models["subset"] == subset]
    values = part.pivot(index="model", columns="metric", values="mean")
    names = [n for n in (FLOOR, "ignorant") if n in values.index]
    names += [n for n in in_order(part["model"]) if is_trained(n) and not n.endswith(DRAWN)]
    values = values.loc[names]
    table = pd.DataFrame(index=pd.Index(names, name="model"))
    for metric in ("AUC", *_ERRORS):
        if metric not in values or values[metric].isna().all():
            continue
        floor = float(values[metric].get(FLOOR, np.nan))
        table[metric] = [
            _number(value, 3)
            if metric == "AUC"
            else _number(value) + _multiple(value / floor if name != FLOOR else np.nan)
            for name, value in values[metric].items()
        ]
    for metric, heading in (("ms_per_sample", "ms"), ("megabytes", "MB")):
        if metric in values:
            table[heading] = [_number(value) for value in values[metric]]
    table["what it is"] = [MEANINGS.get(name, "a variant of the students") for name in names]
    return table


def _number(value: float, decimals: int | None = None) -> str:
    if np.isnan(value):
        return ""
    return f"{value:.3g}" if decimals is None else f"{value:.{decimals}f}"


def _multiple(ratio: float) -> str:
    return "" if np.isnan(ratio) else f" ({ratio:.2f} ×)"  # noqa: RUF001 - the sign of a multiple


def _nearness(models: pd.DataFrame) -> str:
    values = models.pivot(index=["subset", "model"], columns="metric", values="mean")
    values = values.reindex(columns=["AUC", "MAE_cw"])
    trained = [n for n in in_order(models["model"]) if is_trained(n) and not n.endswith(DRAWN)]
    floors = values.xs(FLOOR, level="model") if FLOOR in set(models["model"]) else values.iloc[:0]
    judge = next((name for name in ("AUC", "MAE_cw") if floors[name].notna().any()), None)
    if judge is None:
        return "No model can be held against new simulations of its particles on these data."
    own = {name: values.xs(name, level="model") for name in trained}
    excess = {
        name: ((found[judge] - floors[judge]) / floors[judge]).mean() for name, found in own.items()
    }
    order = sorted(trained, key=lambda name: excess[name])
    best, worst = order[0], order[-1]
    of_floor = f"{name_of(FLOOR)}, have {_range(floors[judge], judge)}"
    if judge == "AUC":
        said = (
            f"**A classifier that looks for generated responses has an AUC of {_range(own[best][judge], judge)} "
            f"on those of `{best}`**, the nearest to simulation, and of {_range(own[worst][judge], judge)} on those "
            f"of `{worst}`, the farthest ({of_floor}; 0.5 finds none, 1 all)"
        )
        ratios = (own[best]["MAE_cw"] / floors["MAE_cw"]).dropna()
        if len(ratios):
            said += f"; the error of `{best}` in the channels (MAE_cw) is {_range(ratios, '')} times theirs"
        return f"{said}."
    return (
        f"**Nearest to simulation is `{best}` with a MAE_cw of {_range(own[best][judge], judge)} photons**, "
        f"the farthest `{worst}` with {_range(own[worst][judge], judge)} ({of_floor})."
    )


def _range(values: pd.Series[float], metric: str) -> str:
    """``0.63 to 0.69 by data set``, or the one value."""
    digits = ".3f" if metric == "AUC" else ".2f" if metric == "" else ".3g"
    found = values.dropna()
    least, most = f"{found.min():{digits}}", f"{found.max():{digits}}"
    return least if least == most else f"{least} to {most}"


def _physics(comparison: pd.DataFrame | None) -> str:
    if comparison is None:
        return (
            "What physics in the students' loss brings is not known yet: `09_ablations` compares."
        )
    setups = [name for name in in_order(comparison["model"]) if name in SETUPS and "+" in name]
    if not setups:
        return "No setup with physics in its loss stands beside `bs` here."
    compared = comparison[(comparison["metric"] == "MAE_cw") & comparison["model"].isin(setups)]
    if compared.empty:
        return (
            "Whether physics in the students' loss helps cannot be told by particle: each has a "
            "single response."
        )
    helped, harmed = compared[compared["high"] < 0], compared[compared["low"] > 0]
    trainings = int(compared["trainings"].min())
    trained = (
        "once, which says nothing of another training" if trainings == 1 else f"{trainings} times"
    )
    return (
        "**Physics in the students' loss** makes MAE_cw better than that of `bs` on "
        f"{_where(helped, setups)}, worse on {_where(harmed, setups)} ({LEVEL:.0%} intervals leave out "
        f"0; neither is shown in {len(compared) - len(helped) - len(harmed)} of {len(compared)} pairs of "
        f"setup and data set; each model was trained {trained})."
    )


def _where(found: pd.DataFrame, setups: Sequence[str]) -> str:
    def parts() -> Iterator[str]:
        for setup in setups:
            subsets = found.loc[found["model"] == setup, "subset"]
            if len(subsets):
                yield f"{listed_names(map(symbol, subsets))} (`{setup}`)"

    return listed_names(parts())
