"""The index page of a study: what was run, what failed, the tables, the figures.

``python -m zdc_nb.study.report params/small.yaml`` writes ``reports/small/index.html`` from what the
notebooks have left in ``reports/small``, whether or not all of them have come to their end.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup
from pandas.io.formats.style import Styler
from pydantic import BaseModel

from zdc_nb.params import DRAWN, Study, UserError, load_study
from zdc_nb.storage import write_text
from zdc_nb.study.runs import Record, load_records
from zdc_nb.study.stages import Stage, stages_of
from zdc_nb.study.status import complete_mark, outdated

__all__ = ["build_index", "describe_failures", "failed_pages"]

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("zdc_nb.study"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass
class State:
    """How far one stage of the study came.

    Attributes
    ----------
    state
        ``done``, ``failed``, ``stopped`` (without an error of its own), ``running`` or ``not run``;
        ``failed in an earlier run`` and ``stopped in an earlier run``, where a stage before it kept
        it from being run again; ``of other parameters`` and ``outdated``, where it was done and is
        to be done again, see :func:`zdc_nb.study.status.outdated`.
    why
        the error, what stopped it, or why it is outdated.
    cell, traceback
        of an error: the number of the cell, from 1, and what the notebook shows.
    notebook, page, log, full_traceback
        below ``study.reports``; None where there is no such file.
    started, duration
        of the executed notebook; the second is None until it is done.
    """

    name: str
    stage: Stage
    state: str
    why: str = ""
    cell: int | None = None
    traceback: str = ""
    notebook: str | None = None
    page: str | None = None
    log: str | None = None
    full_traceback: str | None = None
    started: datetime | None = None
    duration: timedelta | None = None
    record: Record | None = None


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
    states, notes = _states(study, ended)
    made_by = {table: state for state in states for table in state.stage.row.tables}
    files = {name: study.reports / "tables" / f"{name}.csv" for name in made_by}
    tables = {name: pd.read_csv(path) for name, path in files.items() if path.is_file()}
    begun = [state.started for state in states if state.started]
    ends = [s.started + s.duration for s in states if s.started and s.duration is not None]
    records = {state.name: state.record for state in states if state.record}
    page = _TEMPLATES.get_template("index.html.j2").render(
        study=study,
        file=Path(file).as_posix(),
        stages=states,
        notes=notes,
        unfinished=[state for state in states if state.state != "done"],
        made_by=made_by,
        maker={state.name[:2]: state for state in states},  # of many, the last
        shown=_shown(tables),
        left_out=tables.get("reference_left_out", pd.DataFrame()).to_dict("records"),
        figures={path.stem for path in (study.reports / "figures").glob("*.png")},
        csv_files=sorted(path.name for path in (study.reports / "tables").glob("*.csv")),
        parameters=_parameters(study),
        started=min(begun) if begun else None,
        elapsed=timedelta(seconds=round((max(ends) - min(begun)).total_seconds())) if ends else "",
        data=_data(records),
        told=_told(records),
    )
    index = study.reports / "index.html"
    write_text(page, index)
    return index


def describe_failures(study: Study, ended: bool = False) -> str:
    """What stopped each of the study's stages that did not succeed, and where to look.

    Not those of earlier runs. With ``ended`` as for :func:`build_index`.
    """
    found = []
    for state in _states(study, ended)[0]:
        if state.state not in ("failed", "stopped"):
            continue
        lines = [f"{state.name}{' failed' * bool(state.cell)}: {state.why}"]
        shown = state.traceback.rstrip().splitlines()
        if len(shown) > 1:  # else it is the error itself
            lines += ["    ...", *(f"    {line}" for line in shown[-5:])]
        places = {
            "Its whole traceback": state.full_traceback,
            "The notebook as far as it came": state.notebook,
            "Its log": None if state.cell or not state.notebook else state.log,
        }
        lines += [f"{what}: {study.reports / path}" for what, path in places.items() if path]
        found.append("\n".join(lines))
    return "\n\n".join(found)


def failed_pages(study: Study) -> list[Path]:
    """Make a page of each notebook that failed, ``html/<name>.failed.html``.

    Pages of failures that are no more are removed. A notebook whose file cannot be read, as when
    the disk was full, has no page.
    """
    made = []
    for stage in stages_of(study):
        failed = stage.executed.with_suffix(".failed.ipynb")
        if _read_notebook(failed):
            from nbconvert.exporters import HTMLExporter  # noqa: PLC0415 - slow to import

            # of a progress bar only what it came to
            coalesce = ["nbconvert.preprocessors.CoalesceStreamsPreprocessor"]
            body, _ = HTMLExporter(preprocessors=coalesce).from_filename(str(failed))
            made.append(study.reports / "html" / f"{failed.stem}.html")
            write_text(body, made[-1])
    for stale in {*(study.reports / "html").glob("*.failed.html")} - {*made}:
        stale.unlink()
    return made


# --- Stages -------------------------------------------------------------------------------------


def _states(study: Study, ended: bool = False) -> tuple[list[State], list[str]]:
    """The stages in the order of the table, and what is wrong with their records."""
    records, notes = load_records(study, ended)
    notes = [f"A record was left out: {note}" for note in notes]
    try:
        again = outdated(study)
    except (UserError, ValueError, OSError) as error:  # the data are gone
        again = {}
        notes.append(f"Whether the stages are of these parameters and data cannot be told: {error}")
    states: dict[str, State] = {}
    for stage in stages_of(study):
        state = states[stage.name] = _state(stage, records.get(stage.name))
        if state.state == "done" and (why := again.get(stage.name)):
            parameters = why.removeprefix("other parameters: ")
            state.state = "outdated" if parameters == why else "of other parameters"
            state.why = parameters
        elif state.state in ("failed", "stopped"):
            # nothing is run before what it needs is done; that may be outdated by now
            were_done = ("done", "of other parameters", "outdated")
            if any(states[needed.name].state not in were_done for needed in stage.needs):
                state.state += " in an earlier run"
    return list(states.values()), notes


def _state(stage: Stage, record: Record | None) -> State:
    """How far a stage came by itself."""
    done = stage.executed
    failed, running = (done.with_suffix(f".{how}.ipynb") for how in ("failed", "running"))
    kept = next((path for path in (failed, done, running) if path.is_file()), None)
    state = State(stage.name, stage, "stopped", record=record)
    if kept == done:
        state.state = "done"
    elif kept != failed and record is not None and record.status == "running":
        state.state = "running"
    elif kept is None and (record is None or record.status != "stopped"):
        # what a run by hand has recorded is not this notebook's
        state.state, state.record = "not run", None
    notebook = _read_notebook(kept) if kept and state.state != "running" else {}
    if state.state == "stopped":
        _explain(state, kept, notebook)
    ran = notebook.get("metadata", {}).get("papermill", {})
    if ran.get("start_time"):
        state.started = datetime.fromisoformat(ran["start_time"])
    elif state.record:
        state.started = state.record.started
    if state.state == "done" and ran.get("duration") is not None:
        state.duration = timedelta(seconds=round(ran["duration"]))
    folder = stage.study.reports
    places = {
        "notebook": kept or done,
        "page": folder / "html" / f"{(kept or done).stem}.html",
        "log": folder / "logs" / f"{stage.name}.log",
    }
    whole = folder / "logs" / f"{stage.name}.traceback"
    # not that of an error before
    if state.cell and whole.is_file() and state.why in whole.read_text("utf-8"):
        places["full_traceback"] = whole
    for name, path in places.items():
        if path.is_file():
            setattr(state, name, path.relative_to(folder).as_posix())
    return state


def _explain(state: State, kept: Path | None, notebook: Mapping[str, Any]) -> None:
    """Find what stopped a stage: the error in its notebook, or what its record tells."""
    for number, cell in enumerate(notebook.get("cells", []), start=1):
        for output in cell.get("outputs", []):
            name = output.get("ename", "")
            if output["output_type"] == "error" and "Interrupt" not in name:
                state.state, state.cell = "failed", number
                state.why = f"{name}: {output['evalue']}"
                # without the codes that colour it in a terminal
                text = "\n".join(output["traceback"])
                state.traceback = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
                return
    record = state.record
    told = record.facts.get("stopped") if record and record.status == "stopped" else None
    if told:
        state.why = str(told)
    elif kept and not notebook:
        state.why = "its notebook was not written to the end"
    elif kept:
        state.why = "stopped without an error of its own: it was killed, or the machine went down"
    elif "models" in state.stage.row.artefacts:
        state.why = (
            "was stopped before its training began, or between steps; the same command goes on"
        )
    else:
        state.why = "was stopped; the same command goes on"


def _read_notebook(path: Path) -> dict[str, Any]:
    """A notebook; empty where there is none, or one whose writing was cut off."""
    try:
        notebook = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return notebook if isinstance(notebook, dict) and notebook.get("cells") else {}


# --- Records and parameters ---------------------------------------------------------------------


def _told(records: Mapping[str, Record]) -> dict[str, dict[str, str]]:
    """What should be the same for all stages: each value there is, and of which stages."""
    columns: dict[str, dict[str, str | None]] = {}
    for stage, record in records.items():
        git, device = record.git, record.device
        gpu = f"{device.gpus} x {device.gpu}, " if device.gpu else ""
        machine = f"{record.host}: {gpu}{device.cpu}, {device.cores} CPU cores, {device.system}"
        commit = git.commit + " with uncommitted changes" * git.dirty if git else None
        columns[stage] = {
            "study file": record.study_file,
            "machine": machine,  # these two may differ
            "seed": str(record.seed),
            "git commit": commit or "not from a git repository",
            **{f"version of {name}": version for name, version in record.versions.items()},
        }
    found = {}
    for name, values in pd.DataFrame(columns).fillna("unknown").iterrows():
        stages = {str(v): list(same.index) for v, same in values.groupby(values, sort=False)}
        most = max(stages.values(), key=len)
        found[str(name)] = {
            value: f"{len(names)} stages" if names is most else ", ".join(names)
            for value, names in stages.items()
        }
    return found


def _data(records: Mapping[str, Record]) -> dict[str, Any]:
    """``files``, ``dropped`` and ``more`` of the data, from the first stage that knows them.

    ``differ``: the stages whose data are not those.
    """
    every = {stage: record.data for stage, record in records.items() if record.data}
    first = next(iter(every.values()), {})
    known = dict(first)
    files, dropped = known.pop("files", None), known.pop("dropped", None)
    return {
        "files": [f for f in files if isinstance(f, dict)] if isinstance(files, list) else [],
        "dropped": dropped if isinstance(dropped, dict) else {},
        "more": {f"data: {key}": _plain(value) for key, value in known.items()},
        "differ": [stage for stage, data in every.items() if data != first],
    }


def _parameters(study: Study) -> list[tuple[str, str, str]]:
    """Each parameter, ``teacher.batch``, with its value and what it means."""
    rows = []
    for key, field in Study.model_fields.items():
        section = getattr(study, key)
        if isinstance(section, BaseModel):
            values = section.model_dump(mode="json")
            for name, part in type(section).model_fields.items():
                rows.append((f"{key}.{name}", _plain(values[name]), part.description or ""))
        else:
            value = study.model_dump(mode="json", include={key})[key]
            rows.append((key, _plain(value), field.description or ""))
    return rows


def _plain(value: object) -> str:
    """A value as YAML has it."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=sys.maxsize, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()


# --- Tables and findings ------------------------------------------------------------------------


def _shown(tables: Mapping[str, pd.DataFrame]) -> dict[str, Markup]:
    """What the page shows of the tables that are there, as HTML."""
    # slow to import, and not needed to tell what failed
    from zdc_nb import evaluation  # noqa: PLC0415

    shown = {}

    def show(name: str, make: Callable[..., Markup | str], *needed: str) -> None:
        if all(table in tables for table in needed):
            made = make(*(tables[table] for table in needed))
            shown[name] = made if isinstance(made, Markup) else _html(made)

    def results(number: Literal[1, 2], rows: list[str], column: str) -> Callable[..., Markup]:
        published = evaluation.published_table(number)
        return lambda table: (
            Markup()  # data without repeats have no Table 2
            if table.empty
            else _table(evaluation.results_table(table, published, rows, column))
        )

    of_table1 = ("told", "baselines", "comparison", "closure")
    if "table1" in tables:
        # models that are told the photon sum, as all that they are held against are
        drawn = tables["table1"]["model"].str.endswith(DRAWN)
        tables = {**tables, "told": tables["table1"][~drawn]}
    # nothing to be shown where the numbers mean something
    if {"datasets", "told", "comparison"} <= set(tables):
        wanted = (tables[name] for name in ("datasets", "told", "comparison"))
        if why := evaluation.meaning_warning(*wanted):
            shown["meaning"] = _html(why)
    show("table1", results(1, ["metric", "model"], "subset"), "table1")
    show("table2", results(2, ["subset", "quantity", "error"], "model"), "table2")
    show("datasets", _dataset_table, "datasets")
    show("models", lambda table: _table(evaluation.model_pivot(table).style, "{:.3g}"), "models")
    show("models_findings", evaluation.model_findings, "models")
    show("table1_findings", evaluation.ablation_findings, *of_table1)
    show("table2_findings", evaluation.shape_findings, "table2")
    timed = ("speed", "training_speed")
    if any(name in tables for name in timed):
        from zdc_nb.study import speed  # noqa: PLC0415 - it needs torch

        for name in timed:
            if name in tables and (warning := speed.busy_warning(tables[name])):
                shown["busy"] = Markup.escape(warning.replace("*", ""))
        show("speed", _speed_table, "speed")
        show("speed_findings", speed.speed_findings, "speed")
        show("engine_findings", speed.engine_findings, "training_speed")
    return shown


def _dataset_table(frame: pd.DataFrame) -> Markup:
    sizes = frame["responses"].astype(str) + " (" + frame["particles"].astype(str) + ")"
    table = sizes.groupby([frame["subset"], frame["part"]], sort=False).first().unstack(sort=False)
    return _table(table.rename_axis(index="data set", columns="responses (unique particles)").style)


def _speed_table(frame: pd.DataFrame) -> Markup:
    table = frame.pivot_table("ms_per_sample", ["device", "batch"], "model", sort=False)
    for name in table.columns.drop("teacher"):
        table[f"teacher / {name}"] = table["teacher"] / table[name]
    return _table(table.style, "{:.3g}")


def _table(styler: Styler, formatter: str | None = None) -> Markup:
    """HTML of a styled table, safe whatever names it holds."""
    styler = styler.format(formatter, escape="html")
    for axis in (0, 1):
        styler = styler.format_index(escape="html", axis=axis)
    return Markup(styler.to_html(table_attributes='class="results"'))


def _html(markdown: str) -> Markup:
    """HTML of the project's own sentences, safe whatever names they quote."""
    from nbconvert.filters import clean_html, markdown2html  # noqa: PLC0415 - slow to import

    return Markup(clean_html(markdown2html(markdown)))


def main() -> int:
    """Command line: build the page of one study; 1 if some of its stages are not done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="a study file, such as params/small.yaml")
    file = parser.parse_args().study
    study = load_study(file)
    failed_pages(study)
    print(build_index(study, file))
    states, _ = _states(study)
    unfinished = [state.name for state in states if state.state != "done"]
    if unfinished:
        complete_mark(study).unlink(missing_ok=True)
        print(f"{len(unfinished)} of {len(states)} stages are not done: {', '.join(unfinished)}")
    else:
        write_text(study.model_dump_json(), complete_mark(study))
    return int(bool(unfinished))


if __name__ == "__main__":
    sys.exit(main())
