"""What the numbers of a study say, in sentences: Markdown for the ends of the notebooks.

Every sentence is made from the tables; none knows how a study came out. What the data did not
allow (:func:`~zdc_nb.evaluation.baselines.what_can_be_evaluated`) is left out, and a sentence says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import pandas as pd

from zdc_nb.evaluation.baselines import RESIMULATED
from zdc_nb.evaluation.closure_conclusions import summary_sentences
from zdc_nb.evaluation.comparison import LEVEL
from zdc_nb.evaluation.distances import DISTANCES
from zdc_nb.evaluation.names import name_of
from zdc_nb.evaluation.sentences import as_list, listed_names
from zdc_nb.evaluation.tables import in_order, is_trained
from zdc_nb.params import order_subsets

__all__ = [
    "ablation_findings",
    "as_list",
    "baseline_findings",
    "evaluation_findings",
    "kept_terms",
    "likeness_findings",
    "listed_names",
    "meaning_warning",
    "model_findings",
    "shape_findings",
]

SIGNIFICANT = 2.0
"""A change counts as more than noise of generation from this many of its uncertainties."""


GOOD_SHARE = 0.5
"""Largest share of the MAE_cw of ``ignorant`` that a generator worth having may have."""


def kept_terms(histories: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Validation terms of each student at the epoch that was kept, beside those of ``bs``.

    Parameters
    ----------
    histories
        (subset, setup) to a frame with the columns epoch, step, split, term, value.

    Returns
    -------
    A row for each subset and setup, a column for each term: ``bs`` in its own numbers, the other
    setups in per cent of change against it (their own numbers where there is no ``bs``). A term
    that is 0 in a ``bs``, as the blocks between are for a single transform, or that a ``bs`` does
    not have, as the centre loss, has no such change and is left out.
    """
    rows: dict[tuple[str, str], pd.Series[float]] = {}
    for key, history in histories.items():
        validation = history[history["split"] == "validation"]
        terms = validation.pivot(index="epoch", columns="term", values="value")
        order = [term for term in history["term"].unique() if term != "loss"]
        rows[key] = terms[order].iloc[int(terms["loss"].argmin())]
    table = pd.DataFrame(rows).T.rename_axis(["subset", "setup"])
    bases = table[table.index.get_level_values("setup") == "bs"]
    table = table.loc[:, (bases.notna() & (bases != 0)).all()]
    for subset, setup in table.index:
        if setup != "bs" and (subset, "bs") in table.index:
            own, base = (rows[subset, name][table.columns] for name in (setup, "bs"))
            table.loc[(subset, setup)] = 100 * (own / base - 1)
    return table


FEWEST_RESPONSES = 500
"""Test responses of a data set that say something: of fewer, a tail of one in a hundred is a handful."""

FEWEST_TEST_PARTICLES = 30
"""Test particles likewise: of fewer, their own spread is not known to a tenth."""


def meaning_warning(
    sizes: pd.DataFrame, table: pd.DataFrame, comparison: pd.DataFrame | None = None
) -> str:
    """Why numbers mean nothing, as a Markdown list of reasons; empty where none is found.

    Parameters
    ----------
    sizes
        of the data sets, as from :func:`~zdc_nb.evaluation.tables.dataset_sizes`.
    table
        means of metrics, with the columns subset, model, metric and mean, of trained models and of
        ``ignorant``, such as Table 1.
    comparison
        of setups with a baseline, as for :func:`ablation_findings`.
    """
    reasons = [*_too_few(sizes), *_no_better_than_ignorant(table)]
    if comparison is not None:
        reasons += _not_told_apart(comparison)
    return as_list(f"**These numbers mean nothing.** {reason}" for reason in reasons)


def _too_few(sizes: pd.DataFrame) -> Iterator[str]:
    test = sizes[sizes["part"] == "test"]
    for column, least, why in (
        ("responses", FEWEST_RESPONSES, "a tail of one in a hundred would be a handful of them"),
        ("particles", FEWEST_TEST_PARTICLES, "other particles would give other numbers"),
    ):
        few = test[test[column] < least]
        if len(few):
            counts = [f"{row['subset']} {row[column]}" for row in few.to_dict("records")]
            yield f"Too few test {column}: {listed_names(counts)}; below {least}, {why}."


def _no_better_than_ignorant(table: pd.DataFrame) -> Iterator[str]:
    mae = _means(table, "MAE_cw")
    if len(mae) == 0 or "ignorant" not in mae:
        return
    trained = [str(model) for model in mae if is_trained(str(model))]
    found = [
        f"{model} on {subset} ({mae.loc[subset, model]:.3g} against {mae.loc[subset, 'ignorant']:.3g})"
        for subset in mae.index
        for model in trained
        if mae.loc[subset, model] >= mae.loc[subset, "ignorant"]
    ]
    if found:
        yield (
            "No better in MAE_cw than `ignorant`, which does not look at the particle: "
            f"{listed_names(found)}."
        )


def _not_told_apart(comparison: pd.DataFrame) -> Iterator[str]:
    """Where no more differences are shown than would be without any."""
    compared = comparison[~comparison["model"].isin(_NO_SETUP)]
    shown = np.count_nonzero((compared["high"] < 0) | (compared["low"] > 0))
    if len(compared) == 0 or shown > (1 - LEVEL) * len(compared):
        return
    width, change = (compared["high"] - compared["low"]) / 2, compared["change"].abs()
    yield (
        f"The setups are not told apart: {shown} of {len(compared)} differences leave 0 out of their "
        f"{LEVEL:.0%} interval, as chance would have it. A typical difference is "
        f"{change.median():.1f}%, a typical interval ± {width.median():.1f}%."
    )


def ablation_findings(
    table: pd.DataFrame, baselines: pd.DataFrame, comparison: pd.DataFrame, closure: pd.DataFrame
) -> str:
    """What Table 1 says, and what its means do not show, as a Markdown list.

    Parameters
    ----------
    table
        Table 1.
    baselines
        the same for the models that need no training.
    comparison
        of :func:`~zdc_nb.evaluation.comparison.paired_differences` with ``bs``, and the column
        subset; empty where there is no ``bs``.
    closure
        of :func:`~zdc_nb.evaluation.closure.closure_summary`, and the column subset.
    """
    return as_list(_ablation_sentences(table, baselines, comparison, closure))


def shape_findings(table: pd.DataFrame) -> str:
    """What Table 2 says, as a Markdown list."""
    return as_list(_shape_sentences(table))


def _subsets(table: pd.DataFrame) -> list[str]:
    return order_subsets(table["subset"])


def _means(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Means of one metric: a row for each subset that has it, a column for each model."""
    chosen = table[table["metric"] == metric]
    means = chosen.pivot(index="subset", columns="model", values="mean")
    return means.reindex(_subsets(chosen), columns=list(dict.fromkeys(table["model"])))


def _ablation_sentences(
    table: pd.DataFrame, baselines: pd.DataFrame, comparison: pd.DataFrame, closure: pd.DataFrame
) -> Iterator[str]:
    ws, mae = _means(table, "WS"), _means(table, "MAE_cw")
    trained = [str(model) for model in mae if is_trained(str(model))]
    floors = _means(baselines, "MAE_cw").reindex(columns=[*RESIMULATED]).dropna()
    known = floors.index.intersection(mae.index, sort=False)
    if len(mae):
        yield _learned(mae)
    if len(known):
        yield _blindness_of_ws(ws.loc[known], mae.loc[known])
    if len(mae):
        yield _preferred_by_ws(ws.loc[mae.index], mae, trained)
    if len(known):
        errors = pd.concat([_errors(table, "MAE_cw"), _errors(baselines, "MAE_cw")], axis=1)
        errors = errors.loc[:, ~errors.columns.duplicated()]
        yield from _floor(floors, mae.loc[known, trained], errors.loc[known])
    yield from summary_sentences(closure)
    if single := [subset for subset in ws.index if subset not in mae.index]:
        yield (
            f"**Not compared by particle**: {listed_names(single)}. Each test particle has a single "
            "response there, which tells nothing of its mean; WS alone is known."
        )
    if unanswered := [subset for subset in mae.index if subset not in known]:
        yield (
            f"**Not compared with new simulations** of the same particles: "
            f"{listed_names(unanswered)}. No test particle has a training response there."
        )
    yield from comparison_sentences(comparison)


def _learned(mae: pd.DataFrame) -> str:
    share = mae["teacher"] / mae["ignorant"]
    return (
        "**What the teacher learned.** Its MAE_cw, as a share of that of `ignorant`, which does "
        f"not look at the particle: {_listed(share)}. At most {GOOD_SHARE:g} is the least to ask "
        f"of a generator that knows where a particle's light falls; reached on "
        f"{listed_names(share.index[share <= GOOD_SHARE])}."
    )


def _blindness_of_ws(ws: pd.DataFrame, mae: pd.DataFrame) -> str:
    in_ws, in_mae = (metric["ignorant"] / metric["reference"] for metric in (ws, mae))
    return (
        "**What `ignorant` teaches.** Knowing nothing of the particle costs, against "
        f"new simulations, a factor in MAE_cw of {_listed(in_mae)}; in WS of {_listed(in_ws)}. "
        f"WS is the milder judge on {listed_names(in_ws.index[in_ws < in_mae])}: it compares whole data "
        "sets and cannot tell whose response is whose, so a good WS alone proves little."
    )


def _preferred_by_ws(ws: pd.DataFrame, mae: pd.DataFrame, trained: list[str]) -> str:
    fooled = [
        f"{model} on {subset}"
        for subset in ws.index
        for model in trained
        if ws.loc[subset, "ignorant"] < ws.loc[subset, model]
        and mae.loc[subset, "ignorant"] > mae.loc[subset, model]
    ]
    return (
        "**Where WS alone would mislead**, preferring `ignorant` to a trained model with a better "
        f"MAE_cw: {listed_names(fooled)}."
    )


def _floor(floors: pd.DataFrame, mae: pd.DataFrame, errors: pd.DataFrame) -> Iterator[str]:
    """Every flow beside ``reference+sum``, which is told what the flows are told."""
    floor = floors["reference+sum"]
    best, worst = mae.idxmin(axis=1), mae.idxmax(axis=1)
    distances = [
        f"{subset} {mae.loc[subset, best[subset]] / floor[subset]:.2f} ({best[subset]}) to "
        f"{mae.loc[subset, worst[subset]] / floor[subset]:.2f} ({worst[subset]}), floor "
        f"{floor[subset]:.2f} ± {errors.loc[subset, 'reference+sum']:.2f}"
        for subset in mae.index
    ]
    sorts: dict[str, list[str]] = {"above": [], "near": [], "below": []}
    for model in map(str, mae):
        for subset in mae.index:
            away = mae.loc[subset, model] - floor[subset]
            noise = np.hypot(errors.loc[subset, model], errors.loc[subset, "reference+sum"])
            sort = "near" if abs(away) <= SIGNIFICANT * noise else "above" if away > 0 else "below"
            sorts[sort].append(f"{model} on {subset}")
    yield (
        "**How far from the floor.** New simulations of the same particles, scaled to the photon "
        "sums that the flows are told, score what a perfect flow would. MAE_cw as a "
        f"multiple of theirs, of the best and the worst flow: {'; '.join(distances)}. Above it by more "
        f"than {SIGNIFICANT:g} uncertainties of generation: {_all_or(sorts['above'], mae)}; not told "
        f"from it: {_all_or(sorts['near'], mae)}; below it: {_all_or(sorts['below'], mae)}. "
        "New simulations as they are, which are not told the photon sum, have "
        f"{_listed(floors['reference'])}: to be below that alone says nothing of a flow."
    )
    if sorts["below"]:
        yield (
            "**Below the floor is no praise.** Nothing is nearer to simulation than simulation. A model "
            "that draws too little spread within a particle has less noise in its means than new "
            "simulations have; its variances below, and its page `13_closure`, tell whether it does."
        )


def _all_or(named: list[str], of: pd.DataFrame) -> str:
    return "every flow on every data set" if len(named) == of.size else listed_names(named)


def _errors(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Uncertainties of :func:`_means` from the generations alone."""
    chosen = table[table["metric"] == metric]
    error = chosen["std"] / np.sqrt(chosen["runs"])
    return chosen.assign(error=error).pivot(index="subset", columns="model", values="error")


_NO_SETUP = ("teacher", "splitting")


def comparison_sentences(comparison: pd.DataFrame, baseline: str = "bs") -> Iterator[str]:
    """What is shown of each setup and variant against a baseline, and what is not.

    ``comparison`` has the columns of :func:`~zdc_nb.evaluation.comparison.paired_differences`, and
    subset.
    """
    setups = [model for model in in_order(comparison["model"]) if model not in _NO_SETUP]
    outside = 0
    for setup in setups:
        parts = []
        for metric, part in comparison[comparison["model"] == setup].groupby("metric", sort=False):
            better, worse = part[part["high"] < 0], part[part["low"] > 0]
            rest = part.drop(index=[*better.index, *worse.index])
            outside += len(better) + len(worse)
            parts.append(
                f"{metric} better on {_changed(better)}, worse on {_changed(worse)}, "
                f"neither shown on {listed_names(rest['subset'])}"
            )
        yield f"**{setup} against {baseline}**: {'; '.join(parts)}."
    compared = comparison[comparison["model"].isin(setups)]
    if compared.empty:
        return
    by_chance = (1 - LEVEL) * len(compared)
    trainings = int(compared["trainings"].min())
    yield (
        f"**Shown** means that the {LEVEL:.0%} interval (in brackets, per cent) leaves out 0. That "
        f"is so in {outside} of {len(compared)} comparisons; without any effect it would be in "
        f"about {by_chance:.0f}."
    )
    if trainings == 1:
        yield (
            "**One training of each model**: these intervals hold what another choice of test "
            "particles would change. How much each training would change from another seed they do not "
            "hold, so a difference is shown of these models, not of the setups that they were "
            "trained with. `seeds: [1, 2, 3]` in the study file trains each three times."
        )
    else:
        yield (
            f"The intervals hold {trainings} trainings of each model, paired by seed, and the "
            "choice of test particles."
        )


def _changed(part: pd.DataFrame) -> str:
    return listed_names(
        f"{row['subset']} {row['change']:+.1f}% [{row['low']:+.1f}, {row['high']:+.1f}]"
        for row in part.to_dict("records")
    )


def _listed(values: pd.Series[float]) -> str:
    return ", ".join(f"{subset} {value:.2f}" for subset, value in values.items())


def _shape_sentences(table: pd.DataFrame) -> Iterator[str]:
    if table.empty:
        yield (
            "Nothing to compare: on no subset has a test particle several responses, of which "
            "a mean or a variance could be taken."
        )
    for subset in _subsets(table):
        chosen = table[table["subset"] == subset]
        models = list(dict.fromkeys(chosen["model"]))
        values = chosen.pivot(index="model", columns=["quantity", "error"], values="mean")
        centre, radius = values["centre", "MAE"], values["radius", "MAE"]
        yield (
            f"**{subset}.** Error (MAE) of the mean centre and radius in fibres: "
            + "; ".join(
                f"{name_of(model)} {centre[model]:.2f} and {radius[model]:.2f}" for model in models
            )
            + "."
        )
        if "reference+sum" in models:
            ratios = values.div(values.loc["reference+sum"])
            ratios.columns = pd.Index([" ".join(pair).replace("_", " ") for pair in ratios.columns])
            worst = [
                f"{model} {ratios.loc[model].max():.2f} ({ratios.loc[model].idxmax()})"
                for model in models
                if is_trained(model)
            ]
            yield (
                f"**{subset}.** The worst error of each as a multiple of that of {name_of('reference+sum')}: "
                f"{', '.join(worst)}."
            )
        if {"bs", "bs+ch+div"} <= set(models):
            wins = np.count_nonzero(values.loc["bs+ch+div"] < values.loc["bs"])
            yield (
                f"**{subset}.** bs+ch+div has a smaller mean than bs in {wins} of the "
                f"{values.shape[1]} errors."
            )


def baseline_findings(table: pd.DataFrame) -> str:
    """What a table of the baselines says of one data set, as a Markdown list."""
    return as_list(_baseline_sentences(table))


def _baseline_sentences(table: pd.DataFrame) -> Iterator[str]:
    for metric, part in table.groupby("metric", sort=False):
        mean = part.set_index("model")["mean"]
        shown = "; ".join(f"{name_of(str(model))} {value:.3g}" for model, value in mean.items())
        ratio = ""
        if {"reference+sum", "ignorant"} <= set(mean.index):
            times = mean["ignorant"] / mean["reference+sum"]
            ratio = f"; knowing nothing of the particle costs a factor {times:.3g} above the floor"
        yield f"**{metric}** (photons): {shown}{ratio}."


def evaluation_findings(table: pd.DataFrame) -> str:
    """What a table of baselines and models says of one data set, as a Markdown list."""
    return as_list(_evaluation_sentences(table))


def _evaluation_sentences(table: pd.DataFrame) -> Iterator[str]:
    for metric, part in table.groupby("metric", sort=False):
        mean = part.set_index("model")["mean"]
        trained = mean[[model for model in mean.index if is_trained(model)]]
        text = (
            f"**{metric}**: the best is {trained.idxmin()} with {trained.min():.3g}, the worst "
            f"{trained.idxmax()} with {trained.max():.3g}"
        )
        if "reference+sum" in mean:
            floor = mean["reference+sum"]
            text += (
                f"; the floor for flows is {floor:.3g}, the best is at {trained.min() / floor:.3g} times "
                f"that, the worst at {trained.max() / floor:.3g}"
            )
        blind = trained.index[trained >= mean["ignorant"]]
        text += f". No better than `ignorant` ({mean['ignorant']:.3g}): {listed_names(blind)}."
        yield text


_BELOW = 0.01
"""An AUC this close to the floor's is not told apart from it: so much it varies by chance."""

_MARGINS = {"AUC": _BELOW, "AUC image": 0.03}
"""The same of each classifier: the network learns from fewer responses and varies more."""

_SEES = {"AUC": "features of a response", "AUC image": "every fibre, but not the particle"}

_RATIOS = ("WS", "MAE_c", "MAE_cw", "centre", "radius")
"""Metrics of a model that are told as multiples of the floor's."""


def likeness_findings(table: pd.DataFrame) -> str:
    """What classifiers, distances and nats say of the models of one data set, as a Markdown list.

    ``table`` is that of :func:`~zdc_nb.evaluation.tables.model_table`, of one subset.
    """
    return as_list(_likeness_sentences(table))


def _likeness_sentences(table: pd.DataFrame) -> Iterator[str]:
    for metric, sees in _SEES.items():
        auc = table[table["metric"] == metric].set_index("model")["mean"]
        trained = auc[[model for model in auc.index if is_trained(model)]].sort_values()
        if len(trained) == 0:
            yield f"**{metric}**: the test part is too small for a classifier."
            continue
        text = f"**{metric}** of a classifier that sees {sees} (0.5: it cannot tell): "
        text += ", ".join(f"{model} {value:.3f}" for model, value in trained.items())
        if "reference+sum" in auc:
            floor, margin = auc["reference+sum"], _MARGINS[metric]
            near = trained.index[trained <= floor + margin]
            text += (
                f". New simulations scaled to the photon sum have {floor:.3f}; within "
                f"{margin:g} of that, or below: {listed_names(near)}"
            )
        if "reference" in auc and abs(auc["reference"] - 0.5) > 2 * _MARGINS[metric]:
            text += (
                f". New simulations as they are have {auc['reference']:.3f}, not 0.5: this "
                "classifier had too few responses, and its numbers mean little"
            )
        yield f"{text}."
    yield from _distance_sentences(table)
    nats = table[table["metric"] == "nats"].set_index("model")["mean"]
    if {"binomial"} < set(nats.index):
        others = nats.drop("binomial").sort_values()
        worse = others.index[others >= nats["binomial"]]
        yield (
            "**Nats** per response (-log P, less is better; exact for splitting, an upper bound for "
            "teacher and students): "
            + ", ".join(f"{model} {value:.1f}" for model, value in others.items())
            + f". Binomials of fixed shares have {nats['binomial']:.1f}; no better than these: "
            f"{listed_names(worse)}."
        )

    divergence = table[table["metric"] == "KL"].set_index("model")["mean"].sort_values()
    density = table[table["metric"] == "density"].set_index("model")["mean"]
    if len(divergence):
        text = "**KL(student || teacher)**, nats per response (0: the student is its teacher): "
        text += ", ".join(f"{model} {value:.1f}" for model, value in divergence.items())
        if "teacher" in density:
            lost = (density.drop("teacher") - density["teacher"]).sort_values()
            text += ". Test responses are less likely to the student than to its teacher by " + (
                ", ".join(f"{model} {value:.1f}" for model, value in lost.items())
            )
        yield f"{text} nats."


def _distance_sentences(table: pd.DataFrame) -> Iterator[str]:
    """How far each model is by every distance, and where these and the classifiers disagree."""
    judges = [name for name in (*_SEES, *DISTANCES) if (table["metric"] == name).any()]
    means, spreads = (
        table.pivot(index="model", columns="metric", values=value).reindex(columns=judges)
        for value in ("mean", "std")
    )
    trained = [model for model in means.index if is_trained(model)]
    distances = [name for name in judges if name in DISTANCES]
    if not (trained and distances):
        return
    if "reference+sum" not in means.index:
        yield "**Distances**, without new simulations to compare with: " + "; ".join(
            f"{name} least {_extreme(means.loc[trained, name], 'min')}, "
            f"most {_extreme(means.loc[trained, name], 'max')}"
            for name in distances
        )
        return
    # of fewer responses than the models answer, the floor may lack some
    floor = means.loc["reference+sum"].dropna()
    means, spreads = means[floor.index], spreads[floor.index]
    distances = [name for name in distances if name in floor]
    variances = spreads.fillna(0) ** 2
    margins = SIGNIFICANT * (variances + variances.loc["reference+sum"]) ** 0.5
    for name, margin in _MARGINS.items():
        if name in margins:
            margins[name] = margin
    told = means > floor + margins
    for name in distances:
        near = [model for model in trained if not told.loc[model, name]]
        yield (
            f"**{name}**: least {_extreme(means.loc[trained, name], 'min')}, most "
            f"{_extreme(means.loc[trained, name], 'max')}; new simulations scaled to the photon "
            f"sum {floor[name]:.3g}. Not told from these (within {SIGNIFICANT:g} standard "
            f"deviations of a generation): {listed_names(near)}."
        )
    if len(told.columns) > 1:
        yield _disagreement(told, trained)
    if "ignorant" in told.index and not told.loc["ignorant"].all():
        blind = [name for name in told.columns if not told.loc["ignorant", name]]
        yield (
            f"**No proof**: {listed_names(blind)} cannot tell `ignorant`, which knows nothing of "
            "the particle, from new simulations either."
        )


def _extreme(values: pd.Series[float], which: Literal["min", "max"]) -> str:
    """The model with the least or the most, and its value."""
    values = values.dropna()
    if which == "min":
        return f"{values.idxmin()} {values.min():.3g}"
    return f"{values.idxmax()} {values.max():.3g}"


def _disagreement(told: pd.DataFrame, trained: list[str]) -> str:
    """Models that some of the classifiers and distances tell from the floor, and others do not."""
    parts = [
        f"{model} is told from new simulations by {listed_names(row.index[row])}, not by "
        f"{listed_names(row.index[~row])}"
        for model, row in told.loc[trained].iterrows()
        if row.any() and not row.all()
    ]
    everywhere = [model for model in trained if told.loc[model].all()]
    return (
        f"**Where they disagree**: {'; '.join(parts) or 'nowhere'}. Told by all "
        f"{told.shape[1]}: {listed_names(everywhere)}."
    )


def model_findings(table: pd.DataFrame) -> str:
    """How every trained model does beside the floor, on every data set, as a Markdown list.

    ``table`` is that of :func:`~zdc_nb.evaluation.tables.model_table`.
    """
    return as_list(_model_sentences(table))


def _model_sentences(table: pd.DataFrame) -> Iterator[str]:
    values = table.pivot(index=["subset", "model"], columns="metric", values="mean")
    for model in filter(is_trained, in_order(table["model"])):
        parts = []
        for subset in _subsets(table):
            if (subset, model) not in values.index:
                continue
            mine = values.xs((subset, model)).dropna()
            text = f"{subset}"
            if (subset, "reference+sum") in values.index:
                floor = values.xs((subset, "reference+sum"))
                ratios = {name: mine[name] / floor[name] for name in _RATIOS if name in mine}
                worst = max(ratios, key=lambda name: ratios[name])
                if "AUC" in mine:
                    text += f" AUC {mine['AUC']:.3f} (floor {floor['AUC']:.3f}),"
                text += f" at worst {ratios[worst]:.2f} times the floor ({worst})"
            elif "AUC" in mine:
                text += f" AUC {mine['AUC']:.3f}"
            parts.append(text)
        yield f"**{model}** beside {name_of('reference+sum')}: {'; '.join(parts)}."
