"""The index page of a study: what was run, the tables, the figures, a link to each notebook.

``python -m zdc_nb.reports params/small.yaml`` writes ``reports/small/index.html`` from what the
notebooks have left in ``reports/small``.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
import torch
from markupsafe import Markup
from nbconvert.filters import markdown2html
from pydantic import BaseModel

from zdc_nb import __version__
from zdc_nb.evaluation import METRICS, MODELS, published_table
from zdc_nb.findings import (
    ablation_findings,
    engine_findings,
    shape_findings,
    speed_findings,
)
from zdc_nb.params import SETUPS, SUBSETS, Study, load_study, notebook_names
from zdc_nb.storage import write_text

__all__ = ["ReportError", "build_index", "describe_failures"]


CAPTIONS = {
    "01_repeats": "What is to be learned: each row shows responses to one and the same particle, "
    "simulated again and again.",
    "01_spectra": "The data: energy of the particle and photon sum of every response, by species.",
    "03_samples-{subset}-{setup}": "Responses of the test set ({subset}) beside two that the "
    "student {setup} generated for the same particle and photon sum. The two differ, as two "
    "simulations of one particle do.",
    "04_table1": "The three metrics of Table 1 for every model and data set, beside the published "
    "values, which were made on other data.",
    "04_relative_changes": "How much each setup changes the metrics against bs. The bars hold the "
    "noise of generation alone, not that of training again.",
    "04_loss_terms-{subset}": "The terms of the students' loss during training ({subset}): what "
    "each setup does to all of them, also to those that it does not minimise.",
    "05_shape_distributions": "Shower centre and radius of all test responses, and of those that "
    "each model generated.",
    "05_particles": "Mean and variance of shower centre and radius, particle by particle "
    "({subset}): generated against simulated.",
    "06_speed": "Time to generate one response by the number generated at once.",
}
"""Figures of the index page, in this order, and what each shows."""


class ReportError(RuntimeError):
    """Something that a report is made of is missing."""


@dataclass(frozen=True)
class _Cell:
    """A number with its standard deviation, and whether it is the best of the four setups."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class _Block:
    """Rows of a table under one heading: a model each, with a cell for each column."""

    heading: str
    rows: list[tuple[str, list[_Cell]]]


@dataclass(frozen=True)
class _Table:
    """A table of results as the page shows it."""

    columns: list[str]
    blocks: list[_Block]


@dataclass(frozen=True)
class _Stage:
    """One executed notebook: its name, when it began and how long it took."""

    name: str
    title: str
    start: datetime
    duration: timedelta


def build_index(study: Study, file: str | Path) -> Path:
    """Write the index page of a study whose notebooks have all been executed.

    Parameters
    ----------
    study
        the study.
    file
        the study file, to be named on the page.

    Returns
    -------
    Path
        ``index.html`` below ``study.reports``.

    Raises
    ------
    ReportError
        naming the table or notebook that is missing.
    """
    table1 = _read_table(study, "table1")
    table2 = _read_table(study, "table2")
    speed = _read_table(study, "speed")
    baselines = _read_table(study, "baselines")
    stages = [_stage(study, name) for name in notebook_names(study)]
    started = min(stage.start for stage in stages)
    ended = max(stage.start + stage.duration for stage in stages)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("zdc_nb"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("index.html.j2").render(
        study=study,
        file=Path(file).as_posix(),
        table1_findings=_html(
            ablation_findings(table1, baselines, _read_table(study, "relative_changes"))
        ),
        table2_findings=_html(shape_findings(table2)),
        speed_findings=_html(speed_findings(speed)),
        engine_findings=_html(engine_findings(_read_table(study, "training_speed"))),
        table1=_table1_layout(table1),
        table1_published=_table1_layout(published_table(1)),
        table2=_table2_layout(table2),
        table2_published=_table2_layout(published_table(2)),
        speed=_speed_layout(speed),
        runs=study.evaluation.runs,
        datasets=_dataset_rows(_read_table(study, "datasets")),
        left_out=_read_table(study, "reference_left_out").to_dict("records"),
        figures=list(_figures(study)),
        csv_files=sorted(path.name for path in (study.reports / "tables").glob("*.csv")),
        parameters=list(_parameters(study)),
        stages=stages,
        started=started,
        elapsed=timedelta(seconds=round((ended - started).total_seconds())),
        machine=_machine(),
    )
    index = study.reports / "index.html"
    write_text(page, index)
    return index


def describe_failures(study: Study) -> str:
    """What stopped each of the study's notebooks that failed: cell, error, where to look."""
    folder = study.reports / "notebooks"
    # by name: what another selection of subsets and setups left behind is not this run's failure
    failed = [folder / f"{name}.failed.ipynb" for name in notebook_names(study)]
    return "\n\n".join(_describe_failure(path, study) for path in failed if path.is_file())


def _describe_failure(path: Path, study: Study) -> str:
    name = path.name.removesuffix(".failed.ipynb")
    where = f"The notebook as far as it came: {path}"
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error" and output.ename != "KeyboardInterrupt":
                traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
                error = f"{output.ename}: {output.evalue}"
                return f"{name} failed in cell {number}\n{traceback}\n\n{error}\n{where}"
    log = study.reports / "logs" / f"{name}.log"
    return f"{name} stopped without an error of its own; see {log}\n{where}"


def _read_table(study: Study, name: str) -> pd.DataFrame:
    path = study.reports / "tables" / f"{name}.csv"
    if not path.is_file():
        raise ReportError(f"{path}: no such table; run the notebooks of {study.name!r} first")
    return pd.read_csv(path, keep_default_na=False)


def _stage(study: Study, name: str) -> _Stage:
    path = study.reports / "notebooks" / f"{name}.ipynb"
    if not path.is_file():
        raise ReportError(f"{path}: this notebook has not been executed")
    notebook = nbformat.read(path, as_version=4)
    run = notebook.metadata.papermill
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    start = datetime.fromisoformat(run.start_time)
    return _Stage(name, title, start, timedelta(seconds=round(run.duration)))


def _numbers(frame: pd.DataFrame, *columns: str) -> dict[tuple[str, ...], float]:
    """The last of ``columns`` by the values of those before it."""
    rows = frame[list(columns)].itertuples(index=False)
    return {tuple(map(str, row[:-1])): float(row[-1]) for row in rows}


def _layout(
    frame: pd.DataFrame, group: str, groups: Sequence[str], column: str, columns: Sequence[str]
) -> _Table:
    """One block for each of ``groups``, one column for each of ``columns``, as far as there."""
    mean = _numbers(frame, group, "model", column, "mean")
    std = _numbers(frame, group, "model", column, "std")
    shown = [name for name in columns if (frame[column] == name).any()]
    blocks = []
    for heading in groups:
        rows = []
        for model in MODELS:
            keys = [(heading, model, name) for name in shown if (heading, model, name) in mean]
            if keys:
                cells = [_Cell(f"{mean[k]:.2f} ± {std[k]:.2f}", _is_best(mean, k)) for k in keys]
                rows.append((model, cells))
        if rows:
            blocks.append(_Block(heading, rows))
    return _Table(shown, blocks)


def _is_best(mean: dict[tuple[str, ...], float], key: tuple[str, ...]) -> bool:
    """Whether no setup has less than this one in the same block and column."""
    group, model, column = key
    rivals = [mean[group, setup, column] for setup in SETUPS if (group, setup, column) in mean]
    return model in SETUPS and mean[key] == min(rivals)


def _table1_layout(frame: pd.DataFrame) -> _Table:
    return _layout(frame, "metric", METRICS, "subset", SUBSETS)


def _table2_layout(frame: pd.DataFrame) -> _Table:
    named = frame.assign(column=frame["quantity"].str.replace("_", " ") + " " + frame["error"])
    return _layout(named, "subset", SUBSETS, "column", list(named["column"].unique()))


def _dataset_rows(frame: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Each data set with its responses and unique particles by part of the split."""
    rows = []
    for subset, part in frame.groupby("subset", sort=False):
        sizes = zip(part["responses"], part["particles"], strict=True)
        rows.append((str(subset), [f"{responses} ({unique})" for responses, unique in sizes]))
    return rows


def _speed_layout(frame: pd.DataFrame) -> _Table:
    """One block for each device, one row for each batch size."""
    ms = _numbers(frame, "device", "batch", "model", "ms_per_sample")
    students = [model for model in frame["model"].unique() if model != "teacher"]
    blocks = []
    for device, part in frame.groupby("device", sort=False):
        rows = []
        for batch in map(str, part["batch"].unique()):
            here = [ms[str(device), batch, model] for model in ("teacher", *students)]
            here += [here[0] / time for time in here[1:]]
            rows.append((batch, [_Cell(f"{value:.3g}") for value in here]))
        blocks.append(_Block(str(device), rows))
    return _Table(["teacher", *students, *(f"teacher / {name}" for name in students)], blocks)


def _html(markdown: str) -> Markup:
    """HTML of the project's own sentences."""
    return Markup(markdown2html(markdown))


def _figures(study: Study) -> Iterator[tuple[str, str]]:
    """File name and caption of each figure of the page that the study has made."""
    subset, setup = study.subsets[-1], study.setups[-1]
    for name, caption in CAPTIONS.items():
        file = name.format(subset=subset, setup=setup) + ".png"
        if (study.reports / "figures" / file).is_file():
            yield file, caption.format(subset=subset, setup=setup)


def _parameters(study: Study) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Sections of the study file: each key with its value and what it means."""
    top = []
    for key, field in Study.model_fields.items():
        value = getattr(study, key)
        if isinstance(value, BaseModel):
            yield key, list(_section(value))
        else:
            top.append((key, _plain(value), field.description or ""))
    yield "study", top


def _section(section: BaseModel) -> Iterator[tuple[str, str, str]]:
    for key, field in type(section).model_fields.items():
        yield key, _plain(getattr(section, key)), field.description or ""


def _plain(value: object) -> str:
    """A value as a reader of YAML would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "none"
    return str(value)


def _machine() -> str:
    """The machine that this runs on."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, {gpu}"
        f"Python {platform.python_version()}, torch {version('torch')}, zdc-nb {__version__}"
    )


def main() -> None:
    """Command line: build the index page of one study and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="a study file, such as params/small.yaml")
    file = parser.parse_args().study
    print(build_index(load_study(file), file))


if __name__ == "__main__":
    main()
