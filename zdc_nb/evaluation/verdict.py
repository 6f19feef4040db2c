"""What a study comes to: two sentences and one small table, for the top of its report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from zdc_nb.data.symbols import symbol
from zdc_nb.evaluation.comparison import LEVEL
from zdc_nb.evaluation.sentences import listed_names
from zdc_nb.evaluation.tables import in_order, is_trained
from zdc_nb.params import DRAWN, SUBSETS

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
    "splitting": "shares the photons between halves of ever smaller boxes",
}
"""What the rows of :func:`summary_table` are, in a few words."""

_ERRORS = ("MAE_cw", "WS", "centre", "radius")


def verdict(models: pd.DataFrame, comparison: pd.DataFrame) -> str:
    """Two sentences: how near the best and the worst model come to simulation, what physics brought.

    Parameters
    ----------
    models
        of :func:`~zdc_nb.evaluation.tables.model_table`.
    comparison
        of the setups with ``bs``, as for
        :func:`~zdc_nb.evaluation.conclusions.ablation_findings`; it may be empty.

    Returns
    -------
    Markdown. Where no model can be held against the floor, the first sentence says so.
    """
    return f"{_nearness(models)} {_physics(comparison)}"


def summary_table(models: pd.DataFrame) -> pd.DataFrame:
    """The last data set of ``models`` against the floor, as text.

    A row for the floor, for ``ignorant`` and for each trained model; columns what it is, AUC,
    errors (with their multiple of the floor's in brackets), ms and MB, as far as any row has them.
    """
    subset = _subsets(models)[-1]
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


def _subsets(table: pd.DataFrame) -> list[str]:
    return [subset for subset in SUBSETS if (table["subset"] == subset).any()]


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
    of_floor = f"new simulations of the same particles have {_range(floors[judge], judge)}"
    if judge == "AUC":
        said = (
            f"**A classifier that looks for generated responses has an AUC of {_range(own[best][judge], judge)} "
            f"on those of `{best}`**, the nearest to simulation, and of {_range(own[worst][judge], judge)} on those "
            f"of `{worst}`, the farthest ({of_floor}; 0.5 finds none, 1 all)"
        )
        ratios = (own[best]["MAE_cw"] / floors["MAE_cw"]).dropna()
        if len(ratios):
            said += f"; the light in the channels (MAE_cw) of `{best}` is {_range(ratios, '')} times the floor"
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


def _physics(comparison: pd.DataFrame) -> str:
    compared = comparison[comparison["metric"] == "MAE_cw"] if len(comparison) else comparison
    setups = (
        [n for n in in_order(compared["model"]) if n.startswith("bs+")] if len(compared) else []
    )
    if not setups:
        return "Whether physics in the students' loss helps was not asked."
    compared = compared[compared["model"].isin(setups)]
    helped = _where(compared[compared["high"] < 0], setups)
    harmed = _where(compared[compared["low"] > 0], setups)
    trainings = int(compared["trainings"].min())
    trained = (
        "once, which says nothing of another training" if trainings == 1 else f"{trainings} times"
    )
    return (
        f"**Physics in the students' loss** makes MAE_cw better than that of `bs` on {helped}, worse on {harmed} "
        f"({LEVEL:.0%} intervals leave out 0; nothing is shown on the rest of the {len(compared)} pairs of setup and "
        f"data set; each model was trained {trained})."
    )


def _where(found: pd.DataFrame, setups: Sequence[str]) -> str:
    def parts() -> Iterator[str]:
        for setup in setups:
            subsets = found.loc[found["model"] == setup, "subset"]
            if len(subsets):
                yield f"{listed_names(map(symbol, subsets))} (`{setup}`)"

    return listed_names(parts())
