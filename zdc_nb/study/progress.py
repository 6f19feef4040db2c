"""How far each stage of a study came, and what stopped it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from zdc_nb.params import Study, UserError
from zdc_nb.study.runs import Record, load_records
from zdc_nb.study.stages import Stage, stages_of
from zdc_nb.study.status import outdated

__all__ = ["State", "describe_failures", "read_notebook", "states_of"]


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


def states_of(study: Study, ended: bool = False) -> tuple[list[State], list[str]]:
    """The stages in the order of the table, and what is wrong with their records.

    ``ended``: whether no stage is running any more, see :func:`zdc_nb.study.runs.load_records`.
    """
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
    notebook = read_notebook(kept) if kept and state.state != "running" else {}
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


def read_notebook(path: Path) -> dict[str, Any]:
    """A notebook; empty where there is none, or one whose writing was cut off."""
    try:
        notebook = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return notebook if isinstance(notebook, dict) and notebook.get("cells") else {}


def describe_failures(study: Study, ended: bool = False) -> str:
    """What stopped each of the study's stages that did not succeed, and where to look.

    Not those of earlier runs. With ``ended`` as for :func:`states_of`.
    """
    found = []
    for state in states_of(study, ended)[0]:
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
