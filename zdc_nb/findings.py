"""What the numbers of a study say, in sentences: Markdown for the ends of the notebooks.

Every sentence is made from the tables; none knows how a study came out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pandas as pd

from zdc_nb.bench_params import CASES
from zdc_nb.bench_tables import records_table, targets_table
from zdc_nb.benchmark import Benchmark
from zdc_nb.params import SETUPS, SUBSETS
from zdc_nb.speed import speed_ratio

__all__ = [
    "ablation_findings",
    "benchmark_findings",
    "engine_findings",
    "kept_terms",
    "shape_findings",
    "speed_findings",
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
    that is 0 in a ``bs``, as the blocks between are for a single transform, has no such change and
    is left out.
    """
    rows = {}
    for key, history in histories.items():
        validation = history[history["split"] == "validation"]
        terms = validation.pivot(index="epoch", columns="term", values="value")
        order = [term for term in history["term"].unique() if term != "loss"]
        rows[key] = terms[order].iloc[int(terms["loss"].argmin())]
    table = pd.DataFrame(rows).T.rename_axis(["subset", "setup"])
    bases = table[table.index.get_level_values("setup") == "bs"]
    table = table.loc[:, (bases != 0).all()]
    for subset, setup in table.index:
        if setup != "bs" and (subset, "bs") in table.index:
            own, base = (rows[subset, name][table.columns] for name in (setup, "bs"))
            table.loc[(subset, setup)] = 100 * (own / base - 1)
    return table


def ablation_findings(table: pd.DataFrame, baselines: pd.DataFrame, changes: pd.DataFrame) -> str:
    """What Table 1 says, as a Markdown list.

    Parameters
    ----------
    table
        Table 1.
    baselines
        the same for the models that need no training.
    changes
        relative changes of the setups against ``bs``; empty where there is no ``bs``.
    """
    return _markdown(_ablation_sentences(table, baselines, changes))


def shape_findings(table: pd.DataFrame) -> str:
    """What Table 2 says, as a Markdown list."""
    return _markdown(_shape_sentences(table))


def speed_findings(speed: pd.DataFrame) -> str:
    """What the times say, as a Markdown list."""
    return _markdown(_speed_sentences(speed))


def engine_findings(training: pd.DataFrame) -> str:
    """What the fused engine spared a study (:func:`zdc_nb.speed.time_training`), as a list."""
    return _markdown(_engine_sentences(training))


def benchmark_findings(result: Benchmark) -> str:
    """What the benchmark says, as a Markdown list."""
    return _markdown(_benchmark_sentences(result))


def _markdown(sentences: Iterator[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _subsets(table: pd.DataFrame) -> list[str]:
    return [subset for subset in SUBSETS if (table["subset"] == subset).any()]


def _means(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Means of one metric: a row for each subset, a column for each model."""
    chosen = table[table["metric"] == metric]
    means = chosen.pivot(index="subset", columns="model", values="mean")
    return means.loc[_subsets(table), list(dict.fromkeys(table["model"]))]


def _ablation_sentences(
    table: pd.DataFrame, baselines: pd.DataFrame, changes: pd.DataFrame
) -> Iterator[str]:
    ws, mae = _means(table, "WS"), _means(table, "MAE_cw")
    trained = [model for model in mae if model in {"teacher", *SETUPS}]
    yield _learned(mae)
    yield _blindness_of_ws(ws, mae)
    yield _preferred_by_ws(ws, mae, trained)
    yield _floor(_means(baselines, "MAE_cw"), mae[trained])
    yield from _setup_sentences(changes)


def _learned(mae: pd.DataFrame) -> str:
    share = mae["teacher"] / mae["ignorant"]
    return (
        "**What the teacher learned.** Its MAE_cw, as a share of that of `ignorant`, which does "
        f"not look at the particle: {_listed(share)}. At most {GOOD_SHARE:g} is the least to ask "
        f"of a generator that knows where a particle's light falls; reached on "
        f"{_names(share.index[share <= GOOD_SHARE])}."
    )


def _blindness_of_ws(ws: pd.DataFrame, mae: pd.DataFrame) -> str:
    in_ws, in_mae = (metric["ignorant"] / metric["reference"] for metric in (ws, mae))
    return (
        "**What `ignorant` teaches.** Knowing nothing of the particle costs, against "
        f"`reference`, a factor in MAE_cw of {_listed(in_mae)}; in WS of {_listed(in_ws)}. "
        f"WS is the milder judge on {_names(in_ws.index[in_ws < in_mae])}: it compares whole data "
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
        f"MAE_cw: {_names(fooled)}."
    )


def _floor(floors: pd.DataFrame, mae: pd.DataFrame) -> str:
    best, lowest = mae.idxmin(axis=1), mae.min(axis=1)
    distances = [
        f"{subset} {lowest[subset]:.2f} ({best[subset]}; `reference` "
        f"{floors.loc[subset, 'reference']:.2f}, `reference+sum` "
        f"{floors.loc[subset, 'reference+sum']:.2f})"
        for subset in mae.index
    ]
    below = [
        f"{model} on {subset}"
        for subset in mae.index
        for model in mae.columns
        if mae.loc[subset, model] < floors.loc[subset, "reference"]
    ]
    named = "every flow on every subset" if len(below) == mae.size else _names(below)
    reason = " (possible, since the flows are told the photon sum)" if below else ""
    return (
        "**How far from the floor.** The best flow's MAE_cw beside those of new simulations of "
        "the same particles, without and with the right photon sums (which the flows are told): "
        f"{'; '.join(distances)}. Below `reference`: {named}{reason}."
    )


def _setup_sentences(changes: pd.DataFrame) -> Iterator[str]:
    significant = changes["change"].abs() > SIGNIFICANT * changes["uncertainty"]
    for setup in [setup for setup in SETUPS if (changes["model"] == setup).any()]:
        parts = []
        for metric, part in changes[changes["model"] == setup].groupby("metric", sort=False):
            clear = part[significant[part.index]]
            better, worse = clear[clear["change"] < 0], clear[clear["change"] > 0]
            parts.append(
                f"{metric} better on {_names(better['subset'])}, worse on {_names(worse['subset'])}"
            )
        yield (
            f"**{setup} against bs**, by more than {SIGNIFICANT:g} uncertainties: "
            f"{'; '.join(parts)}."
        )
    if len(changes):
        yield (
            "These uncertainties hold the noise of generation alone: one test set, one training "
            "of each model. Differences of a few per cent need repeated trainings to be believed."
        )


def _listed(values: pd.Series[float]) -> str:
    return ", ".join(f"{subset} {value:.2f}" for subset, value in values.items())


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _shape_sentences(table: pd.DataFrame) -> Iterator[str]:
    models = list(dict.fromkeys(table["model"]))
    for subset in _subsets(table):
        chosen = table[table["subset"] == subset]
        values = chosen.pivot(index="model", columns=["quantity", "error"], values="mean")
        centre, radius = values["centre", "MAE"], values["radius", "MAE"]
        yield (
            f"**{subset}.** Error (MAE) of the mean centre and radius in fibres: "
            + ", ".join(f"{model} {centre[model]:.2f} and {radius[model]:.2f}" for model in models)
            + "."
        )
        if {"bs", "bs+ch+div"} <= set(models):
            wins = np.count_nonzero(values.loc["bs+ch+div"] < values.loc["bs"])
            yield (
                f"**{subset}.** bs+ch+div has a smaller mean than bs in {wins} of the "
                f"{values.shape[1]} errors."
            )


def _speed_sentences(speed: pd.DataFrame) -> Iterator[str]:
    times = speed.set_index(["device", "model", "batch"])["ms_per_sample"]
    for device, part in speed_ratio(speed).groupby("device", sort=False):
        ratios = part.set_index("batch")["ratio"]
        for batch in dict.fromkeys((ratios.index.min(), ratios.index.max())):
            yield (
                f"On {device}, {batch} at once: the student needs "
                f"{times[device, 'student', batch]:.3g} ms a response, the teacher "
                f"{times[device, 'teacher', batch]:.3g} ms, {ratios[batch]:.3g} times as long."
            )
        yield (
            f"Against the teacher the student does best at batch {ratios.idxmax()} "
            f"({_pace(ratios.max())}) and worst at batch {ratios.idxmin()} ({_pace(ratios.min())})."
        )


def _engine_sentences(training: pd.DataFrame) -> Iterator[str]:
    hours = dict.fromkeys(("fused", "reference"), 0.0)
    for model, rows in training.groupby("model", sort=False):
        times = rows.set_index("engine")["ms_per_sample"]
        precision = rows.set_index("engine")["precision"]
        responses = int(rows["responses"].iloc[0])
        for engine in hours:
            hours[engine] += responses * times[engine] / 3.6e6
        ratio = times["reference"] / times["fused"]
        yield (
            f"**The {model}s** were trained on {responses:,} responses, each counted once an epoch. "
            f"A training step takes {times['fused']:.3g} ms a response, with products in "
            f"{precision['fused']}; in plain torch and {precision['reference']} it takes "
            f"{times['reference']:.3g} ms, {ratio:.3g} times as long."
        )
    yield (
        f"**What this bought**: at these rates, measured one after the other on all cores, the "
        f"trainings of this study take {hours['fused']:.2g} hours, and in plain torch they would "
        f"take {hours['reference']:.2g}. In the same time, plain torch would have seen "
        f"{hours['fused'] / hours['reference']:.0%} of these responses."
    )


def _pace(ratio: float) -> str:
    """The student's pace, from the teacher's time as a multiple of the student's."""
    if ratio < 1:
        return f"{1 / ratio:.3g} times slower"
    return f"{ratio:.3g} times faster"


def _benchmark_sentences(result: Benchmark) -> Iterator[str]:
    table = records_table(result.records)
    dim = table["dim"].max()
    hidden = table.loc[table["dim"] == dim, "hidden"].max()
    here = table[(table["dim"] == dim) & (table["hidden"] == hidden)]
    for case in CASES:
        part = here[here["case"] == case].pivot(
            index="batch", columns="name", values="ms_per_sample"
        )
        others = [name for name in dict.fromkeys(here["name"]) if name in part and name != "ours"]
        ratios = [
            f"{name} {_range(part[name] / part['ours'])}" for name in others if "ours" in part
        ]
        if ratios:
            yield (
                f"**{case.replace('_', ' ')}** (D = {dim}, hidden {hidden}): ours takes "
                f"{_range(part['ours'])} ms a sample, depending on the batch size; the time of "
                f"the others as a multiple of that: {'; '.join(ratios)}."
            )
    loops = table[table["extrapolated_from"].notna()]
    if len(loops):
        counts = sorted({int(count) for count in loops["extrapolated_from"]})
        yield (
            f"Inversions in D passes ({_names(dict.fromkeys(loops['name']))}) are **extrapolated** "
            f"from {' or '.join(map(str, counts))} passes each; everything else ran as a whole."
        )
    yield from _check_sentences(result)
    missing = pd.DataFrame(result.left_out)
    if len(missing):
        what = missing.groupby("contender", sort=False).size()
        counted = ", ".join(f"{name} {count}" for name, count in what.items())
        yield f"Left out for time or memory, and not estimated: {counted} records (listed above)."
    targets = targets_table(result)
    outcome = {
        word: list(targets.loc[targets["met"] == key, "target"])
        for key, word in (("yes", "met"), ("no", "missed"), ("", "not measured"))
    }
    yield (
        f"**Targets**: {len(outcome['met'])} met, {len(outcome['missed'])} missed "
        f"({'; '.join(outcome['missed']) or 'none'}), {len(outcome['not measured'])} not measured."
    )


def _check_sentences(result: Benchmark) -> Iterator[str]:
    densities: dict[str, float] = {}
    inversions: dict[str, float] = {}
    for check in result.checks:
        name = check.contender + (" bf16" if check.dtype == "bfloat16" else "")
        densities[name] = max(densities.get(name, 0.0), check.log_density)
        if check.inversion is not None:
            inversions[name] = max(inversions.get(name, 0.0), check.inversion)
    others = [f"{name} {value:.1e}" for name, value in densities.items() if name != "ours"]
    if others:
        yield (
            "With equal weights the log-densities differ from ours by at most (relative): "
            f"{', '.join(others)}."
        )
    yield (
        "Data that went to the latent space and back differ from themselves by at most: "
        + ", ".join(f"{name} {value:.1e}" for name, value in inversions.items())
        + " (where the inversion could be run as a whole)."
    )


def _range(values: pd.Series[float]) -> str:
    """The smallest and largest of some numbers, or the only one."""
    known = values.dropna()
    low, high = f"{known.min():.3g}", f"{known.max():.3g}"
    return low if low == high else f"{low} to {high}"
