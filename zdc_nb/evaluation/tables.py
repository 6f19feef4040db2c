"""Tables 1 and 2, relative changes, and the published tables beside them.

A metric that no model has on a subset is left out of its rows, as where no particle is repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd

from zdc_nb.data.events import Split
from zdc_nb.data.symbols import symbol
from zdc_nb.evaluation.baselines import BASELINES, RESIMULATED
from zdc_nb.evaluation.distances import DISTANCES
from zdc_nb.evaluation.metrics import METRICS, SHAPE_METRICS, EvaluationError, require_finite
from zdc_nb.params import DRAWN, SETUPS, order_subsets

__all__ = [
    "CLASSIFIERS",
    "COSTS",
    "LIKELIHOODS",
    "SHAPE_MODELS",
    "auc_table",
    "dataset_sizes",
    "end_to_end_findings",
    "end_to_end_table",
    "in_order",
    "is_trained",
    "model_pivot",
    "model_table",
    "published_table",
    "relative_changes",
    "table1",
    "table2",
]

SHAPE_MODELS = (
    "reference",
    "reference+sum",
    "teacher",
    "bs",
    "bs+ch+div",
    *SETUPS[4:],
    "splitting",
)
"""Rows of Table 2: the paper's, and the setups with the centre loss."""


UNTRAINED = (*BASELINES, "binomial")

CLASSIFIERS = ("AUC", "AUC image")
"""How well generated responses are told from simulated ones: by their features, by their images."""

LIKELIHOODS = ("nats", "density", "KL")
"""Nats per response: -log P of a test response; -log of its density, dequantised, in a flow's own
coordinates; and KL(student || teacher)."""

COSTS = ("train_seconds", "ms_per_sample", "megabytes")
"""What a model costs: seconds of its training (a student's without its teacher's), milliseconds
from a particle to photons at batch 256, and megabytes of its file."""


_OF_MODELS = (
    *METRICS,
    "centre",
    "radius",
    *CLASSIFIERS,
    *DISTANCES,
    *LIKELIHOODS,
    *COSTS,
)
"""Metrics of the table of models, in its order."""


def is_trained(model: str) -> bool:
    """Whether a model is trained, which a baseline is not."""
    return model not in UNTRAINED


def in_order(models: Iterable[str]) -> list[str]:
    """Names of models, each once: baselines, teacher, setups, variants as they come, splitting.

    Last, in the same order, those whose photon sum is drawn.
    """
    found = list(dict.fromkeys(models))
    first = (*UNTRAINED, "teacher", *SETUPS)
    names = dict.fromkeys(model.removesuffix(DRAWN) for model in found)
    variants = [model for model in names if model not in (*first, "splitting")]
    order = (*first, *variants, "splitting")
    return [model for model in (*order, *(f"{name}{DRAWN}" for name in order)) if model in found]


def dataset_sizes(subset: str, split: Split) -> pd.DataFrame:
    """How many responses, and how many unique particles, each part of a subset's split holds.

    A row for each part, with the columns subset, part (train, validation, test and, split by
    particle, reserved), responses and particles.
    """
    rows = [
        (subset, name, len(part), len(np.unique(part.particle)))
        for name, part in split._asdict().items()
        if name != "reserved" or part is not split.train
    ]
    return pd.DataFrame(rows, columns=["subset", "part", "responses", "particles"])


def table1(evaluations: pd.DataFrame, models: Sequence[str] | None = None) -> pd.DataFrame:
    """Table 1: mean, and its spread over generations and over trainings apart.

    Parameters
    ----------
    evaluations
        tidy frame of :func:`~zdc_nb.evaluation.generations.evaluate_runs`, of any number of subsets
        and models; of several trainings, their column ``seed`` tells them apart.
    models
        which models to show; those that ``evaluations`` does not have are passed over. None:
        ``reference``, ``ignorant`` and all that are trained.

    Returns
    -------
    Columns subset, model, metric; mean, over all generations of all trainings; std, over the
    generations of one training (ddof = 1, the root of the mean variance where there are several);
    runs, how many generations; std_trainings, over the trainings' means (ddof = 1, empty where
    there is one); trainings. Subsets and metrics are in the order of the paper, models in the
    order given.

    Raises
    ------
    EvaluationError
        naming what is not finite, or missing beside the rest.
    """
    if models is None:
        trained = [model for model in in_order(evaluations["model"]) if is_trained(model)]
        models = ("reference", "ignorant", *trained)
    return _summary(evaluations, models, METRICS)


def table2(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Table 2: the eight errors of shower centre and radius.

    As :func:`table1`, with quantity and error in the place of the metric, and the models of
    :data:`SHAPE_MODELS`.
    """
    table = _summary(evaluations, SHAPE_MODELS, SHAPE_METRICS)
    names = [metric.split(" ") for metric in table["metric"]]
    table = table.assign(quantity=[name[0] for name in names], error=[name[1] for name in names])
    return table[["subset", "model", "quantity", "error", *_NUMBERS]]


def relative_changes(evaluations: pd.DataFrame, baseline: str = "bs") -> pd.DataFrame:
    """Change of each metric of Table 1 against a baseline model.

    The change is the ratio of the means over the runs, less 1. Its uncertainty is the standard
    error of that ratio, to first order: ratio * std(a_k / mean(a) - b_k / mean(b)) / sqrt(runs).
    Taken run by run it is right whether or not the two models start from the same random numbers
    in run k. Of several trainings each is compared with the baseline's training of the same seed,
    and the mean is given. The uncertainty covers the noise of generation alone, for one test set
    and these trainings: :func:`~zdc_nb.evaluation.comparison.paired_differences` has the rest.

    Parameters
    ----------
    evaluations
        tidy frame of :func:`~zdc_nb.evaluation.generations.evaluate_runs`, the baseline with all runs that the others have.
    baseline
        the model to compare with.

    Returns
    -------
    Columns subset, model, metric, change, uncertainty, both in per cent of the baseline's mean;
    a negative change is an improvement. The trained models but the baseline, as
    :func:`in_order`; no rows at all where there is no baseline.

    Raises
    ------
    EvaluationError
        where a change is not finite, naming subset, model and metric.
    """
    trained = evaluations["model"].map(is_trained).astype(bool)
    shown = _with_seed(evaluations[evaluations["metric"].isin(METRICS) & trained])
    base = shown[shown["model"] == baseline].drop(columns="model")
    pairs = shown[shown["model"] != baseline].merge(
        base, on=["subset", "metric", "run", "seed"], suffixes=("", "_base")
    )
    training = ["subset", "model", "metric", "seed"]
    means = pairs.groupby(training)[["value", "value_base"]].transform("mean")
    ratio = means["value"] / means["value_base"]
    scatter = ratio * (pairs["value"] / means["value"] - pairs["value_base"] / means["value_base"])
    changes = (
        pairs[training]
        .assign(change=100 * (ratio - 1), uncertainty=100 * scatter)
        .groupby(training)
        .agg(change=("change", "mean"), uncertainty=("uncertainty", "sem"))
        .groupby(training[:-1])
        .agg(change=("change", "mean"), uncertainty=("uncertainty", _of_mean))
    )
    models = in_order(changes.index.get_level_values("model"))
    order = [
        key
        for key in product(order_subsets(changes.index.get_level_values(0)), models, METRICS)
        if key in changes.index
    ]
    return require_finite(changes.loc[order].reset_index(), "change", "uncertainty")


def model_table(evaluations: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Everything that is known of every model, one tidy table.

    Parameters
    ----------
    evaluations
        tidy metrics (subset, model, metric, run, value) of all models and baselines.
    costs
        the same columns, with the metrics of :data:`COSTS`.

    Returns
    -------
    Columns subset, model, metric, mean, std (over all runs, ddof = 1; empty where there is one),
    runs (those of all trainings). Metrics are those of Table 1; ``centre`` and ``radius``, the MAE of Table 2 (fibres);
    :data:`CLASSIFIERS`; :data:`~zdc_nb.evaluation.distances.DISTANCES`; :data:`LIKELIHOODS`; and
    :data:`COSTS`. What a model does not have is left out.
    """
    renamed = {"centre MAE": "centre", "radius MAE": "radius"}
    every = pd.concat([evaluations, costs], ignore_index=True)
    every = every.assign(metric=every["metric"].replace(renamed))
    groups = require_finite(every, "value").groupby(["subset", "model", "metric"])["value"]
    summary = groups.agg(["mean", "std", "count"]).rename(columns={"count": "runs"})
    models = in_order(every["model"])
    order = [
        key
        for key in product(order_subsets(summary.index.get_level_values(0)), models, _OF_MODELS)
        if key in summary.index
    ]
    return summary.loc[order].reset_index()


def model_pivot(table: pd.DataFrame) -> pd.DataFrame:
    """Means of :func:`model_table`: a row for each subset and model, a column for each metric."""
    columns = [name for name in _OF_MODELS if (table["metric"] == name).any()]
    order = pd.MultiIndex.from_frame(table[["subset", "model"]].drop_duplicates())
    means = table.pivot(index=["subset", "model"], columns="metric", values="mean")
    return means.reindex(order)[columns]


def published_table(number: Literal[1, 2]) -> pd.DataFrame:
    """The paper's Table 1 or 2: the columns of ours but ``runs``, made on ALICE's own data."""
    source = resources.files("zdc_nb.evaluation") / "published" / f"published_table{number}.csv"
    with source.open("r", encoding="utf-8") as lines:
        return pd.read_csv(lines)


def auc_table(table: pd.DataFrame, detector: str) -> pd.DataFrame:
    """Our AUC beside those published for other calorimeters, which are marked as such.

    Parameters
    ----------
    table
        that of :func:`model_table`.
    detector
        what ours are of, as it is to be called.

    Returns
    -------
    Columns detector, model, low_level (a classifier that sees the cells: ``AUC image`` here) and
    high_level (one that sees features: ``AUC``). Ours are of the last data set of ``table``: the
    trained models, and ``reference+sum``, what new simulations have here. The others are of
    submissions to the CaloChallenge 2022 (arXiv 2410.21611), by its own classifiers, and no rows
    beside ours where no model has an AUC.
    """
    means = table.pivot(index=["subset", "model"], columns="metric", values="mean")
    means = means.reindex(columns=["AUC image", "AUC"]).dropna(how="all")
    subsets = order_subsets(means.index.get_level_values("subset"))
    rows = [
        (f"{detector}, {symbol(subset)} (this study)", model, *means.xs((subset, model)))
        for subset in subsets[-1:]
        for model in in_order(means.loc[subset].index)
        if is_trained(model) or model == "reference+sum"
    ]
    source = resources.files("zdc_nb.evaluation") / "published" / "published_auc.csv"
    with source.open("r", encoding="utf-8") as lines:
        others = pd.read_csv(lines)
    others["detector"] = "another detector: " + others["detector"]
    return pd.concat([pd.DataFrame(rows, columns=others.columns), others], ignore_index=True)


def end_to_end_table(given: pd.DataFrame, drawn: pd.DataFrame) -> pd.DataFrame:
    """What it costs that the photon sum is drawn instead of given.

    Parameters
    ----------
    given
        tidy metrics as for :func:`table1`, of models and baselines.
    drawn
        the same of models with the suffix ``+N``.

    Returns
    -------
    Columns subset, model (without the suffix), metric; given and drawn, means; ratio of these; floor
    and floor_ratio, the same of new simulations: ``reference``, and over ``reference+sum``, which is
    paired by the photon sum. Not a number where ``given`` does not tell.
    """
    key = ["subset", "model", "metric"]
    known = given[given["metric"].isin(METRICS)].groupby(key)["value"].mean()
    mine = drawn[drawn["metric"].isin(METRICS)]
    mine = mine.assign(model=mine["model"].str.removesuffix(DRAWN))
    rows = []
    for cell in mine.groupby(key, sort=False)["value"].mean().reset_index().itertuples(index=False):
        subset, model, metric, value = cell
        told = float(known.get((subset, model, metric), np.nan))
        floor, paired = (float(known.get((subset, name, metric), np.nan)) for name in RESIMULATED)
        rows.append((subset, model, metric, told, value, value / told, floor, floor / paired))
    columns = ["given", "drawn", "ratio", "floor", "floor_ratio"]
    return pd.DataFrame(rows, columns=[*key, *columns])


def end_to_end_findings(table: pd.DataFrame) -> str:
    """What :func:`end_to_end_table` says, in sentences."""
    said = []
    for (subset, metric), part in table.groupby(["subset", "metric"], sort=False):
        best = part.sort_values("drawn").iloc[0]
        text = (
            f"- `{subset}`, **{metric}**: from the particle alone the best is {best['model']} with "
            f"{best['drawn']:.3g}, {best['ratio']:.2f} times what it has where the photon sum is given"
        )
        if np.isfinite(best["floor"]):
            text += (
                f". New simulations of the same particles have {best['floor']:.3g}, "
                f"{best['floor_ratio']:.2f} times what they have when paired by the sum"
            )
        said.append(text + ".")
    return "\n".join(said)


def _summary(
    evaluations: pd.DataFrame, models: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    subsets = order_subsets(evaluations["subset"])
    present = [model for model in models if (evaluations["model"] == model).any()]
    cell = ["subset", "model", "metric"]
    values = _with_seed(require_finite(evaluations, "value")).groupby([*cell, "seed"])["value"]
    summary = (
        values.agg(["mean", "var", "count"])
        .groupby(level=cell)
        .agg(
            mean=("mean", "mean"),
            std=("var", _root_of_mean),
            runs=("count", "first"),
            std_trainings=("mean", "std"),
            trainings=("mean", "count"),
        )
    )
    with_model = {(subset, model) for subset, model, _ in summary.index}
    with_metric = {(subset, metric) for subset, _, metric in summary.index}
    wanted = pd.MultiIndex.from_tuples(
        [
            (subset, model, metric)
            for subset, model, metric in product(subsets, present, metrics)
            if (subset, metric) in with_metric
            and ((subset, model) in with_model or model not in RESIMULATED)
        ],
        names=["subset", "model", "metric"],
    )
    missing = wanted[~wanted.isin(summary.index)]
    if len(missing):
        subset, model, metric = missing[0]
        raise EvaluationError(
            f"{len(missing)} entries are missing from the table, the first: "
            f"subset {subset!r}, model {model!r}, metric {metric!r}"
        )
    return require_finite(summary.loc[wanted].reset_index(), "mean", "std")


_NUMBERS = ("mean", "std", "runs", "std_trainings", "trainings")


def _with_seed(evaluations: pd.DataFrame) -> pd.DataFrame:
    """With the column ``seed``, 1 for what is not trained."""
    if "seed" not in evaluations:
        return evaluations.assign(seed=1)
    return evaluations.assign(seed=evaluations["seed"].fillna(1).astype(int))


def _root_of_mean(variances: pd.Series[float]) -> float:
    return float(np.sqrt(variances.mean(skipna=False)))


def _of_mean(uncertainties: pd.Series[float]) -> float:
    """Uncertainty of a mean of independent values."""
    return float(np.sqrt((uncertainties**2).sum(skipna=False)) / len(uncertainties))
