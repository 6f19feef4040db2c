"""The index page of a study: what was run, what failed, the tables, the figures.

``python -m zdc_nb.study.report params/small.yaml`` writes ``reports/small/index.html`` from what the
notebooks have left in ``reports/small``, whether or not all of them have come to their end.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd
from markupsafe import Markup
from nbconvert.exporters import HTMLExporter
from nbconvert.filters import clean_html, markdown2html
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from pydantic import BaseModel, JsonValue

from zdc_nb.evaluation import METRICS, MODELS, published_table
from zdc_nb.evaluation.conclusions import ablation_findings, shape_findings
from zdc_nb.params import SETUPS, SUBSETS, Study, load_study, notebook_names, project_root
from zdc_nb.storage import write_text
from zdc_nb.study.runs import Record, changed_parameters, load_records
from zdc_nb.study.speed import engine_findings, speed_findings

__all__ = ["build_index", "describe_failures", "failed_pages", "unfinished_stages"]


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


MADE_BY = {
    "table1": "04_ablations",
    "baselines": "04_ablations",
    "relative_changes": "04_ablations",
    "reference_left_out": "04_ablations",
    "datasets": "04_ablations",
    "table2": "05_shower_shapes",
    "speed": "06_speed",
    "training_speed": "06_speed",
}
"""Tables of the index page, and the stage that makes each."""


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
class _Failure:
    """How a notebook ended: ``cell`` is None where it has no error of its own."""

    cell: int | None
    error: str
    traceback: str


@dataclass(frozen=True)
class _Stage:
    """One notebook of the study and how far it came.

    Attributes
    ----------
    state
        ``done``, ``failed``, ``stopped`` (without an error of its own: killed, or the machine went
        down), ``running`` or ``not run``; ``failed in an earlier run`` and ``stopped in an earlier
        run``, where a stage before it kept it from being run again; ``of other parameters`` and
        ``outdated``, where what it has left is of parameters that the study had before, or a stage
        that it needs is not done.
    page, notebook, log
        its page, the notebook as far as it came and its log, below ``study.reports``, where they
        are there.
    why
        for the last two states: the parameters, or the stages.
    """

    name: str
    title: str
    state: str
    start: datetime | None
    duration: timedelta | None
    page: str | None
    notebook: str | None
    log: str | None
    failure: _Failure | None
    record: Record | None
    why: str = ""


def build_index(study: Study, file: str | Path, ended: bool = False) -> Path:
    """Write the index page of a study from what there is.

    A stage that is not done is named at the top with what stopped it, and where a table is missing
    the page says which stage makes it.

    Parameters
    ----------
    study
        the study.
    file
        the study file, to be named on the page.
    ended
        whether no stage is running any more, see :func:`zdc_nb.study.runs.load_records`.

    Returns
    -------
    Path
        ``index.html`` below ``study.reports``.
    """
    stages, wrong_records = _stages(study, ended)
    tables = {name: _read_table(study, name) for name in MADE_BY}

    def made(layout: Callable[..., Any], *names: str) -> Any:
        """Something made from tables; None if one of them is missing."""
        frames = [tables[name] for name in names]
        return None if any(frame is None for frame in frames) else layout(*frames)

    begun = [stage.start for stage in stages if stage.start]
    ends = [s.start + s.duration for s in stages if s.start and s.duration is not None]
    elapsed = round((max(ends) - min(begun)).total_seconds()) if ends else None
    recorded = {stage.name: stage.record for stage in stages if stage.record}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("zdc_nb.study"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("index.html.j2").render(
        study=study,
        file=Path(file).as_posix(),
        table1_findings=made(
            lambda *frames: _html(ablation_findings(*frames)),
            *("table1", "baselines", "relative_changes"),
        ),
        table2_findings=made(lambda frame: _html(shape_findings(frame)), "table2"),
        speed_findings=made(lambda frame: _html(speed_findings(frame)), "speed"),
        engine_findings=made(lambda frame: _html(engine_findings(frame)), "training_speed"),
        table1=made(_table1_layout, "table1"),
        table1_published=_table1_layout(published_table(1)),
        table2=made(_table2_layout, "table2"),
        table2_published=_table2_layout(published_table(2)),
        speed=made(_speed_layout, "speed"),
        runs=study.evaluation.runs,
        datasets=made(_dataset_rows, "datasets"),
        left_out=made(lambda frame: frame.to_dict("records"), "reference_left_out"),
        figures=list(_figures(study, stages)),
        csv_files=sorted(path.name for path in (study.reports / "tables").glob("*.csv")),
        parameters=list(_parameters(study)),
        stages=stages,
        unfinished=[stage for stage in stages if stage.state != "done"],
        made_by={
            name: stage for name in MADE_BY for stage in stages if stage.name == MADE_BY[name]
        },
        started=min(begun) if begun else None,
        elapsed=None if elapsed is None else timedelta(seconds=elapsed),
        wrong_records=wrong_records,
        run_with=_run_with(recorded),
        versions=_versions(recorded),
        disagreements=list(_disagreements(recorded)),
        data=_data(recorded),
    )
    index = study.reports / "index.html"
    write_text(page, index)
    return index


# --- Stages and failures ------------------------------------------------------------------------


def unfinished_stages(study: Study) -> list[str]:
    """Names of the study's stages whose state is anything but done, see the page."""
    return [stage.name for stage in _stages(study)[0] if stage.state != "done"]


def describe_failures(study: Study, ended: bool = False) -> str:
    """What stopped each of the study's notebooks that did not succeed: error, where to look.

    Not those of earlier runs. With ``ended`` as for :func:`build_index`.
    """
    found = []
    for stage in _stages(study, ended)[0]:
        if stage.state not in ("failed", "stopped"):
            continue
        if stage.failure and stage.failure.cell:
            text = (
                f"{stage.name} failed in cell {stage.failure.cell}\n{stage.failure.traceback}\n\n"
                f"{stage.failure.error}"
            )
        else:
            log = study.reports / "logs" / f"{stage.name}.log"
            text = f"{stage.name} stopped without an error of its own; see {log}"
        if stage.notebook:
            text += f"\nThe notebook as far as it came: {study.reports / stage.notebook}"
        found.append(text)
    return "\n\n".join(found)


def failed_pages(study: Study) -> list[Path]:
    """Make a page of each notebook that failed, ``html/<name>.failed.html``.

    Pages of failures that are no more are removed. A notebook whose file cannot be read, as when
    the disk was full, has no page.
    """
    exporter = HTMLExporter()
    # of a progress bar only what it came to
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)
    made = []
    for name in notebook_names(study):
        path = _kept(study, name, ".failed")
        notebook = _read_notebook(path)
        if notebook is not None:
            resources = {"metadata": {"name": path.stem}}
            body, _ = exporter.from_notebook_node(notebook, resources)
            made.append(study.reports / "html" / f"{path.stem}.html")
            write_text(body, made[-1])
    for stale in {*(study.reports / "html").glob("*.failed.html")} - {*made}:
        stale.unlink()
    return made


def _kept(study: Study, name: str, suffix: str = "") -> Path:
    """Where the grid keeps an executed notebook: ``.running``, ``.failed``, or done."""
    return study.reports / "notebooks" / f"{name}{suffix}.ipynb"


def _read_notebook(path: Path) -> Any:
    """A notebook; None where there is none, or one whose writing was cut off."""
    try:
        notebook = nbformat.read(path, as_version=4)
        return notebook if notebook.cells else None
    except Exception:  # noqa: BLE001 - nbformat raises almost anything on what is no notebook
        return None


def _failure(path: Path) -> _Failure:
    """How the notebook at ``path``, which did not succeed, ended."""
    notebook = _read_notebook(path)
    if notebook is None:
        return _Failure(None, "its notebook was not written to the end", "")
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error" and output.ename != "KeyboardInterrupt":
                # without the codes that colour it in a terminal
                traceback = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", "\n".join(output.traceback))
                return _Failure(number, f"{output.ename}: {output.evalue}", traceback)
    return _Failure(None, "it stopped without an error of its own", "")


def _stages(study: Study, ended: bool = False) -> tuple[list[_Stage], list[str]]:
    """The stages in the order of the grid, and what is wrong with their records."""
    records, wrong = load_records(study, ended)
    stages: list[_Stage] = []
    for name in notebook_names(study):
        stage = _stage(study, name, records.get(name))
        stages.append(_compared(study, stage, [s for s in stages if _needs(stage, s)]))
    return stages, wrong


def _needs(stage: _Stage, other: _Stage) -> bool:
    """Whether a stage reads what another has left, itself or by way of a third."""
    number, before = stage.name[:2], other.name[:2]
    if number == "03" and before == "02":
        return stage.name.split("-")[1] == other.name.split("-")[1]
    # the last three read everything but each other
    return before < min(number, "04")


def _compared(study: Study, stage: _Stage, needed: Sequence[_Stage]) -> _Stage:
    """A stage, its state seen beside the study's parameters and the stages that it needs."""
    if stage.state in ("failed", "stopped"):
        # nothing is run before what it needs is done; but a stage that is done may be outdated
        # for the page and not for the grid
        was_run = all(s.state in ("done", "of other parameters", "outdated") for s in needed)
        return stage if was_run else replace(stage, state=f"{stage.state} in an earlier run")
    # the record of a run by hand that was stopped says nothing of the notebook that is there
    if stage.state != "done" or stage.record is None or stage.record.status != "done":
        return stage
    changed = changed_parameters(stage.record, study)
    if changed:
        return replace(stage, state="of other parameters", why=", ".join(changed))
    undone = [s.name for s in needed if s.state != "done"]
    if undone:
        more = f" and {len(undone) - 1} more" if len(undone) > 1 else ""
        return replace(stage, state="outdated", why=f"{undone[0]}{more} not done")
    return stage


def _stage(study: Study, name: str, record: Record | None) -> _Stage:
    done, failed, running = (_kept(study, name, suffix) for suffix in ("", ".failed", ".running"))
    failure = None
    if failed.is_file():
        kept: Path | None = failed
        failure = _failure(failed)
        state = "stopped" if failure.cell is None else "failed"
    elif done.is_file():
        kept, state = done, "done"
    elif record is not None and record.status == "running":
        kept, state = None, "running"
    elif running.is_file() or (record is not None and record.status == "stopped"):
        kept, state = running if running.is_file() else None, "stopped"
    else:
        # what a run by hand has recorded is not this notebook's
        kept, state, record = None, "not run", None
    notebook = _read_notebook(kept) if kept else None
    ran = notebook.metadata.get("papermill", {}) if notebook else {}
    start = datetime.fromisoformat(ran["start_time"]) if ran.get("start_time") else None
    seconds = ran.get("duration") if state == "done" else None
    source = project_root() / "notebooks" / f"{name.partition('-')[0]}.ipynb"
    return _Stage(
        name,
        _title(notebook or _read_notebook(source)),
        state,
        start or (record.started if record else None),
        None if seconds is None else timedelta(seconds=round(seconds)),
        page=_below(study, study.reports / "html" / f"{(kept or done).stem}.html"),
        notebook=_below(study, kept) if kept else None,
        log=_below(study, study.reports / "logs" / f"{name}.log"),
        failure=failure,
        record=record,
    )


def _below(study: Study, path: Path) -> str | None:
    """``path`` from the page's folder, if there is such a file."""
    return path.relative_to(study.reports).as_posix() if path.is_file() else None


def _title(notebook: Any) -> str:
    """The heading that a notebook opens with."""
    cells = notebook.cells if notebook else []
    return cells[0].source.split("\n")[0].lstrip("# ") if cells else ""


# --- Records ------------------------------------------------------------------------------------


def _distinct(
    records: Mapping[str, Record], value: Callable[[Record], str | None]
) -> dict[str, list[str]]:
    """Each value among the records, with the stages that have it."""
    found: dict[str, list[str]] = {}
    for stage, record in records.items():
        found.setdefault(value(record) or "unknown", []).append(stage)
    return found


def _commit(record: Record) -> str:
    if record.git is None:
        return "not from a git repository"
    return record.git.commit + (" with uncommitted changes" if record.git.dirty else "")


def _machine(record: Record) -> str:
    device = record.device
    gpu = f"{device.gpus} x {device.gpu}, " if device.gpu else ""
    return f"{record.host}: {gpu}{device.cpu}, {device.cores} CPU cores, {device.system}"


def _run_with(records: Mapping[str, Record]) -> list[tuple[str, list[str]]]:
    """What is the same for a whole study, if nothing changed: name and every value there is."""
    values: dict[str, Callable[[Record], str | None]] = {
        "study file": lambda record: record.study_file,
        "seed": lambda record: str(record.seed),
        "git commit": _commit,
        "machine": _machine,
    }
    return [(name, list(_distinct(records, value))) for name, value in values.items()]


def _version(package: str) -> Callable[[Record], str | None]:
    return lambda record: record.versions.get(package)


def _packages(records: Mapping[str, Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records.values() for name in record.versions))


def _versions(records: Mapping[str, Record]) -> list[tuple[str, list[str]]]:
    """Each package with every version of it that a stage ran with."""
    return [(name, list(_distinct(records, _version(name)))) for name in _packages(records)]


def _disagreements(records: Mapping[str, Record]) -> Iterator[tuple[str, dict[str, str]]]:
    """What is not the same for all stages: its name, and the stages by value."""
    values: dict[str, Callable[[Record], str | None]] = {
        "seed": lambda record: str(record.seed),
        "git commit": _commit,
        **{f"version of {name}": _version(name) for name in _packages(records)},
    }
    found = {name: _distinct(records, value) for name, value in values.items()}
    with_data = {stage: record for stage, record in records.items() if record.data}
    data = _distinct(with_data, lambda record: json.dumps(record.data, sort_keys=True))
    # the data themselves are too much for a sentence
    found["data"] = {f"version {i}": names for i, names in enumerate(data.values(), start=1)}
    for name, stages in found.items():
        if len(stages) > 1:
            most = max(stages, key=lambda value: len(stages[value]))
            yield (
                name,
                {
                    value: f"{len(names)} stages" if value == most else ", ".join(names)
                    for value, names in stages.items()
                },
            )


@dataclass(frozen=True)
class _Data:
    """What the records say of the data: see :class:`zdc_nb.study.runs.Record`."""

    files: list[dict[str, JsonValue]]
    dropped: dict[str, JsonValue]
    more: list[tuple[str, str]]


def _data(records: Mapping[str, Record]) -> _Data:
    """The data of the first stage that knows them."""
    known = next((record.data for record in records.values() if record.data), {})
    files, dropped = known.get("files"), known.get("dropped")
    return _Data(
        files=[file for file in files if isinstance(file, dict)] if isinstance(files, list) else [],
        dropped=dropped if isinstance(dropped, dict) else {},
        more=[(k, _plain(v)) for k, v in known.items() if k not in {"files", "dropped"}],
    )


# --- Tables -------------------------------------------------------------------------------------


def _read_table(study: Study, name: str) -> pd.DataFrame | None:
    path = study.reports / "tables" / f"{name}.csv"
    return pd.read_csv(path, keep_default_na=False) if path.is_file() else None


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
    """HTML of the project's own sentences, safe whatever names they quote."""
    return Markup(clean_html(markdown2html(markdown)))


def _figures(study: Study, stages: Sequence[_Stage]) -> Iterator[tuple[str, str, _Stage]]:
    """File name, caption and stage of each figure of the page that the study has made."""
    subset, setup = study.subsets[-1], study.setups[-1]
    made_by = {stage.name[:2]: stage for stage in stages}  # of many, the last
    for name, caption in CAPTIONS.items():
        file = name.format(subset=subset, setup=setup) + ".png"
        if (study.reports / "figures" / file).is_file():
            yield file, caption.format(subset=subset, setup=setup), made_by[name[:2]]


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


def main() -> int:
    """Command line: build the page of one study; 1 if some of its stages are not done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="a study file, such as params/small.yaml")
    file = parser.parse_args().study
    study = load_study(file)
    failed_pages(study)
    print(build_index(study, file))
    unfinished = unfinished_stages(study)
    if unfinished:
        total = len(notebook_names(study))
        print(f"{len(unfinished)} of {total} stages are not done: {', '.join(unfinished)}")
    return int(bool(unfinished))


if __name__ == "__main__":
    sys.exit(main())
