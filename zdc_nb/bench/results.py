"""The benchmark's results as tables, sentences and files."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator
from dataclasses import asdict

import pandas as pd

from zdc_nb.bench.cases import CASES, BenchParams, compulsory_bytes
from zdc_nb.bench.run import Benchmark
from zdc_nb.evaluation.conclusions import as_list, listed_names
from zdc_nb.hardware import timing_warning
from zdc_nb.storage import write_csv, write_text

__all__ = [
    "benchmark_findings",
    "checks_table",
    "memory_table",
    "roofline_table",
    "targets_table",
    "times_table",
    "write_results",
]


def roofline_table(result: Benchmark) -> pd.DataFrame:
    """The records with ``name``, ``intensity`` (FLOP / byte) and ``useful_gflops`` (GFLOP/s).

    The name is the contender with its precision. Both numbers count what the case needs at least
    (:func:`~zdc_nb.bench.cases.useful_flop`, :func:`~zdc_nb.bench.cases.compulsory_bytes`), so a
    contender that computes more shows as a lower rate and not as more work done.
    """
    records = _named(result.records)
    table = records.merge(result.work, how="left", on=["case", "dim", "hidden"])
    columns = ["case", "weights", "dim", "batch", "dtype"]
    moved = [
        compulsory_bytes(case, weights, dim, batch, 4 if dtype == "float32" else 2)
        for case, weights, dim, batch, dtype in table[columns].to_numpy()
    ]
    return records.assign(
        intensity=table["flop"] * table["batch"] / moved,
        useful_gflops=table["flop"] / table["ms_per_sample"] / 1e6,
    )


def _named(table: pd.DataFrame) -> pd.DataFrame:
    short = table["dtype"].map({"float32": "", "bfloat16": " bf16"})
    return table.assign(name=table["contender"] + short)


def _largest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the largest network."""
    table = table[table["dim"] == table["dim"].max()]
    return table[table["hidden"].eq(table["hidden"].max())]


def _wide(table: pd.DataFrame, values: str) -> pd.DataFrame:
    """A column for each contender, ours first; the index is (case, dim, hidden, batch)."""
    wide = table.pivot(index=["case", "dim", "hidden", "batch"], columns="name", values=values)
    names = list(dict.fromkeys(["ours", *table["name"]]))
    return wide.reindex(columns=names).reindex(list(CASES), level="case")


def times_table(table: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds a sample, a column for each contender, and its ratio to ours.

    Extrapolated times are marked with ``*``. Rows are cases by network and batch size; the index
    is (case, dim, hidden, batch). Cells that did not run are empty.
    """
    times = _wide(table, "ms_per_sample")
    stars = _wide(table, "extrapolated_from").notna()
    ratios = times.drop(columns="ours").div(times["ours"], axis=0)
    text = _text(times) + stars.replace({True: "*", False: ""})
    return text.add_suffix(" (ms)").join(_text(ratios).add_suffix(" / ours"))


def memory_table(table: pd.DataFrame) -> pd.DataFrame:
    """Peak memory (MB) of a call, a column for each contender; index as in :func:`times_table`."""
    peaks = _wide(table, "peak_mb").astype(float)
    return _text(peaks.dropna(how="all").dropna(how="all", axis=1))


def _text(numbers: pd.DataFrame, form: str = "{:.3g}", missing: str = "") -> pd.DataFrame:
    return numbers.map(form.format).where(numbers.notna(), missing)


def targets_table(result: Benchmark) -> pd.DataFrame:
    """What this project is meant to reach, and what it reached here.

    Ratios of medians of one run, for the largest network: columns target, wanted, measured, met.
    ``met`` is empty where one of the two did not run.
    """
    cells = _largest(_named(result.records)).set_index(["case", "name", "batch"])
    times, peaks = (
        # memory is not known everywhere
        pd.to_numeric(cells[column]).dropna().to_dict()
        for column in ("ms_per_sample", "peak_mb")
    )

    def speedup(case: str, batch: int = 256, name: str = "ours") -> float:
        return _ratio(times, (case, "nflows", batch), (case, name, batch))

    samples = [(f"{model}_sample", "ours", 256) for model in ("teacher", "student")]
    steps = [("train_step", name, 256) for name in ("ours", "nflows")]
    products = result.products
    rates = (products["useful_gflops"] or math.nan) / products["plain_gflops"]
    at_least, at_most = "at least", "at most"
    rows = [
        ("teacher sampling, batch 256: nflows* / ours", at_least, 2000, speedup("teacher_sample")),
        ("teacher sampling, batch 1: nflows* / ours", at_least, 3000, speedup("teacher_sample", 1)),
        ("teacher / student sampling of ours, batch 256", at_most, 2, _ratio(times, *samples)),
        ("density pass, batch 256: nflows / ours", at_least, 3, speedup("density")),
        ("training step, batch 256: nflows / ours", at_least, 3, speedup("train_step")),
        ("its peak memory: ours / nflows", at_most, 1, _ratio(peaks, *steps)),
        ("student sampling, batch 256: nflows / ours", at_least, 3, speedup("student_sample")),
        (
            "student sampling, batch 256: nflows / ours in bf16",
            at_least,
            5,
            speedup("student_sample", name="ours bf16"),
        ),
        ("useful rate of the density pass's products / plain products", at_least, 0.7, rates),
    ]
    table = []
    for target, bound, wanted, value in rows:
        met = value >= wanted if bound == at_least else value <= wanted
        judged = (f"{value:.3g}", "yes" if met else "no")
        missing = ("not measured", "")
        table.append((target, f"{bound} {wanted:g}", *(missing if math.isnan(value) else judged)))
    return pd.DataFrame(table, columns=["target", "wanted", "measured", "met"])


def _ratio(values: dict[Hashable, float], above: Hashable, below: Hashable) -> float:
    """Of two cells (case, name, batch); NaN where one is not known, or what is below is 0."""
    divisor = values.get(below)
    return values.get(above, math.nan) / divisor if divisor else math.nan


def checks_table(result: Benchmark) -> pd.DataFrame:
    """The checks as a table, with a dash where an inversion in D passes would take too long."""
    numbers = result.checks[["log_density", "inversion"]]
    return result.checks.assign(**_text(numbers, "{:.1e}", "-"))


def write_results(result: Benchmark, params: BenchParams) -> None:
    """Write ``bench.json``, a list of records, and ``context.json``, all else, and two tables."""
    folder = params.folder
    context = {
        "machine": asdict(result.machine),
        "products": result.products,
        "checks": _rows(result.checks),
        "left_out": _rows(result.left_out),
        "parameters": params.model_dump(),
    }
    for name, content in (("bench", _rows(result.records)), ("context", context)):
        text = json.dumps(content, indent=1, allow_nan=False)
        write_text(text + "\n", folder / f"{name}.json")
    times = times_table(_named(result.records))
    write_csv(times.reset_index(), folder / "tables" / "times.csv")
    write_csv(targets_table(result), folder / "tables" / "targets.csv")


def _rows(table: pd.DataFrame) -> list[dict[Hashable, object]]:
    """The rows, with None for what is empty."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def benchmark_findings(result: Benchmark) -> str:
    """What the benchmark says, as a Markdown list; it begins with a warning of a busy machine."""
    return as_list(_sentences(result))


def _sentences(result: Benchmark) -> Iterator[str]:
    table = _named(result.records)
    others = pd.to_numeric(table["others"]).max()
    warning = timing_warning(table["spread"].max(), None if pd.isna(others) else others)
    if warning:
        yield warning
    here = _largest(table)
    for case, part in _wide(here, "ms_per_sample").groupby(level="case", sort=False):
        ratios = part.drop(columns="ours").div(part["ours"], axis=0).dropna(how="all", axis=1)
        listed = [f"{name} {_range(ratio)}" for name, ratio in ratios.items()]
        if listed:
            yield (
                f"**{str(case).replace('_', ' ')}** (D = {here['dim'].max()}, hidden "
                f"{here['hidden'].max()}): ours takes {_range(part['ours'])} ms a sample, "
                "depending on the batch size; the time of the others as a multiple of that: "
                f"{'; '.join(listed)}."
            )
    loops = table[table["extrapolated_from"].notna()]
    if len(loops):
        counts = map(str, sorted(loops["extrapolated_from"].unique()))
        yield (
            f"Inversions in D passes ({listed_names(dict.fromkeys(loops['name']))}) are "
            f"**extrapolated** from {' or '.join(counts)} passes each; everything else ran as a "
            "whole."
        )
    errors = _named(result.checks).groupby("name", sort=False)[["log_density", "inversion"]].max()
    densities, inversions = (
        [f"{name} {value:.1e}" for name, value in errors[column].astype(float).dropna().items()]
        for column in errors
    )
    if len(densities) > 1:
        yield (
            "With equal weights the log-densities differ from ours by at most (relative): "
            f"{', '.join(densities[1:])}."
        )
    yield (
        "Data that went to the latent space and back differ from themselves by at most: "
        f"{', '.join(inversions)} (where the inversion could be run as a whole)."
    )
    if len(result.left_out):
        missing = result.left_out.groupby("contender", sort=False).size()
        counted = ", ".join(f"{name} {count}" for name, count in missing.items())
        yield f"Left out for time or memory, and not estimated: {counted} records (listed above)."
    targets = targets_table(result)
    count = targets["met"].value_counts()
    missed = targets.loc[targets["met"] == "no", "target"]
    yield (
        f"**Targets**: {count.get('yes', 0)} met, {len(missed)} missed "
        f"({'; '.join(missed) or 'none'}), {count.get('', 0)} not measured."
    )


def _range(values: pd.Series[float]) -> str:
    """The smallest and largest of some numbers, or the only one."""
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"
