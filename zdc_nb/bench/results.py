"""The benchmark's results as tables and files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict

import numpy as np
import pandas as pd

from zdc_nb.bench.cases import CASES, BenchParams
from zdc_nb.bench.contenders import compulsory_bytes
from zdc_nb.bench.run import Benchmark, LeftOut, Record
from zdc_nb.evaluation.conclusions import as_list, listed_names
from zdc_nb.storage import write_csv, write_text

__all__ = [
    "checks_table",
    "left_out_table",
    "memory_table",
    "records_table",
    "roofline_table",
    "targets_table",
    "times_table",
    "write_results",
]


def records_table(records: Iterable[Record]) -> pd.DataFrame:
    """The records as columns, and ``name``: the contender with its precision."""
    table = pd.DataFrame(
        [asdict(record) for record in records], columns=list(Record.__dataclass_fields__)
    )
    short = table["dtype"].map({"float32": "", "bfloat16": " bf16"})
    return table.assign(name=table["contender"] + short)


def times_table(table: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds a sample, a column for each contender, and its ratio to ours.

    Extrapolated times are marked with ``*``. Rows are cases by network and batch size; the index
    is (case, dim, hidden, batch). Cells that did not run are empty.
    """
    index = ["case", "dim", "hidden", "batch"]
    names = list(dict.fromkeys(table["name"]))
    rows = []
    for key, part in table.groupby(index, sort=False):
        times = part.set_index("name")["ms_per_sample"]
        stars = part.set_index("name")["extrapolated_from"].notna()
        row = dict(zip(index, key, strict=True))
        for name in names:
            if name in times:
                row[f"{name} (ms)"] = f"{times[name]:.3g}" + "*" * bool(stars[name])
        for name in names:
            if name in times and name != "ours" and "ours" in times:
                row[f"{name} / ours"] = f"{times[name] / times['ours']:.3g}"
        rows.append(row)
    columns = [f"{name} (ms)" for name in names]
    columns += [f"{name} / ours" for name in names if name != "ours"]
    wide = pd.DataFrame(rows, columns=[*index, *columns]).fillna("")
    order = pd.Categorical(wide["case"], list(CASES))
    return wide.iloc[
        np.lexsort((wide["batch"], wide["hidden"], wide["dim"], order.codes))
    ].set_index(index)


def roofline_table(result: Benchmark) -> pd.DataFrame:
    """The table of the records with ``intensity`` (FLOP / byte) and ``useful_gflops`` (GFLOP/s).

    Both count what the case needs at least (:func:`useful_flop`, :func:`compulsory_bytes`), so a
    contender that computes more shows as a lower rate and not as more work done.
    """
    table = records_table(result.records)
    flop = [
        result.flop[case, dim, hidden]
        for case, dim, hidden in zip(table["case"], table["dim"], table["hidden"], strict=True)
    ]
    moved = [
        compulsory_bytes(
            row.case,
            result.allowed[row.dim, row.hidden],
            row.dim,
            row.batch,
            4 if row.dtype == "float32" else 2,
        )
        for row in result.records
    ]
    return table.assign(
        intensity=np.array(flop) * table["batch"] / np.array(moved),
        useful_gflops=np.array(flop) / table["ms_per_sample"] / 1e6,
    )


def targets_table(result: Benchmark) -> pd.DataFrame:
    """What this project is meant to reach, and what it reached here.

    Ratios of medians of one run, for the largest network: columns target, wanted, measured, met.
    ``measured`` is empty, and ``met`` too, where one of the two did not run.
    """
    table = records_table(result.records)
    dim = table["dim"].max()
    hidden = table.loc[table["dim"] == dim, "hidden"].max()
    here = table[(table["dim"] == dim) & (table["hidden"] == hidden)]
    by = here.set_index(["case", "name", "batch"])

    def value(column: str, case: str, name: str, batch: int) -> float:
        key = (case, name, batch)
        # memory is not known everywhere
        known = key in by.index and pd.notna(by.loc[key, column])
        return float(by.loc[key, column]) if known else math.nan

    def ratio(above: float, below: float) -> float:
        return above / below if below else math.nan

    def times(case: str, batch: int, name: str = "ours", peer: str = "nflows") -> float:
        return ratio(
            value("ms_per_sample", case, peer, batch), value("ms_per_sample", case, name, batch)
        )

    def memory(case: str, batch: int) -> float:
        return ratio(value("peak_mb", case, "ours", batch), value("peak_mb", case, "nflows", batch))

    teacher_to_student = ratio(
        value("ms_per_sample", "teacher_sample", "ours", 256),
        value("ms_per_sample", "student_sample", "ours", 256),
    )
    products = result.products
    share = (products.useful_gflops or math.nan) / products.plain_gflops
    at_least, at_most = "at least", "at most"
    rows = [
        (
            "teacher sampling, batch 256: nflows* / ours",
            at_least,
            2000,
            times("teacher_sample", 256),
        ),
        ("teacher sampling, batch 1: nflows* / ours", at_least, 3000, times("teacher_sample", 1)),
        ("teacher / student sampling of ours, batch 256", at_most, 2, teacher_to_student),
        ("density pass, batch 256: nflows / ours", at_least, 3, times("density", 256)),
        ("training step, batch 256: nflows / ours", at_least, 3, times("train_step", 256)),
        ("its peak memory: ours / nflows", at_most, 1, memory("train_step", 256)),
        ("student sampling, batch 256: nflows / ours", at_least, 3, times("student_sample", 256)),
        (
            "student sampling, batch 256: nflows / ours in bf16",
            at_least,
            5,
            times("student_sample", 256, "ours bf16"),
        ),
        ("useful rate of the density pass's products / plain products", at_least, 0.7, share),
    ]
    targets = []
    for target, bound, wanted, measured in rows:
        known = math.isfinite(measured)
        met = measured >= wanted if bound == at_least else measured <= wanted
        targets.append(
            {
                "target": target,
                "wanted": f"{bound} {wanted:g}",
                "measured": f"{measured:.3g}" if known else "not measured",
                "met": ("yes" if met else "no") if known else "",
            }
        )
    return pd.DataFrame(targets)


def checks_table(result: Benchmark) -> pd.DataFrame:
    """The checks as a table, with a dash where an inversion in D passes would take too long."""
    table = pd.DataFrame([asdict(check) for check in result.checks])
    for column in ("log_density", "inversion"):
        table[column] = [f"{value:.1e}" if pd.notna(value) else "-" for value in table[column]]
    return table


def left_out_table(result: Benchmark) -> pd.DataFrame:
    """What did not run and why."""
    return pd.DataFrame(
        [asdict(item) for item in result.left_out], columns=list(LeftOut.__dataclass_fields__)
    )


def memory_table(table: pd.DataFrame) -> pd.DataFrame:
    """Peak memory (MB) of a call, a column for each contender; index as in :func:`times_table`."""
    index = ["case", "dim", "hidden", "batch"]
    known = table[table["peak_mb"].notna()]
    wide = known.pivot(index=index, columns="name", values="peak_mb")
    wide = wide[[name for name in dict.fromkeys(table["name"]) if name in wide]]
    text = wide.map("{:.3g}".format).replace("nan", "")
    order = sorted(text.index, key=lambda key: (list(CASES).index(key[0]), *key[1:]))
    return text.loc[order]


def write_results(result: Benchmark, params: BenchParams) -> None:
    """Write ``bench.json``, a list of records, and ``context.json``, all else, and two tables."""
    folder = params.folder
    write_text(_json([asdict(record) for record in result.records]), folder / "bench.json")
    rest = {
        "machine": asdict(result.machine),
        "products": asdict(result.products),
        "checks": [asdict(check) for check in result.checks],
        "left_out": [asdict(item) for item in result.left_out],
        "parameters": params.model_dump(),
    }
    write_text(_json(rest), folder / "context.json")
    table = records_table(result.records)
    write_csv(times_table(table).reset_index(), folder / "tables" / "times.csv")
    write_csv(targets_table(result), folder / "tables" / "targets.csv")


def _json(content: object) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def benchmark_findings(result: Benchmark) -> str:
    """What the benchmark says, as a Markdown list."""
    return as_list(_benchmark_sentences(result))


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
            f"Inversions in D passes ({listed_names(dict.fromkeys(loops['name']))}) are **extrapolated** "
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
