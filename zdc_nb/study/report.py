"""The index page of a study: what it comes to, the tables, the figures, what was run, what failed.

``python -m zdc_nb.study.report params/small.yaml`` writes ``reports/small/index.html``, and the pages of
the notebooks, from what these have left in ``reports/small``, whether or not all have come to their end.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from markupsafe import Markup
from pandas.io.formats.style import Styler
from pydantic import BaseModel

from zdc_nb.params import DRAWN, Study, load_study
from zdc_nb.storage import write_text
from zdc_nb.study.pages import TEMPLATES, navigation, write_pages
from zdc_nb.study.progress import State, states_of
from zdc_nb.study.runs import Record
from zdc_nb.study.status import complete_mark

__all__ = ["build_index", "build_report"]


def build_report(study: Study, file: str | Path, ended: bool = False) -> Path:
    """Write the pages of all notebooks, then the index page; as :func:`build_index`."""
    write_pages(study, states_of(study, ended)[0])
    return build_index(study, file, ended)


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
    states, notes = states_of(study, ended)
    made_by = {table: state for state in states for table in state.stage.row.tables}
    files = {name: study.reports / "tables" / f"{name}.csv" for name in made_by}
    tables = {name: pd.read_csv(path) for name, path in files.items() if path.is_file()}
    begun = [state.started for state in states if state.started]
    ends = [s.started + s.duration for s in states if s.started and s.duration is not None]
    records = {state.name: state.record for state in states if state.record}
    # slow to import
    from zdc_nb.study.dataset import study_detector  # noqa: PLC0415
    from zdc_nb.study.described import in_words, nothing_published  # noqa: PLC0415

    detector, nothing = study_detector(study), nothing_published(study)
    page = TEMPLATES.get_template("index.html.j2").render(
        root="",
        here="index.html",
        groups=navigation(states, "index.html"),
        study=study,
        detector=detector,
        in_words=_html(in_words(detector)),
        published=not nothing,
        nothing_published=_html(nothing),
        file=Path(file).as_posix(),
        stages=states,
        notes=notes,
        unfinished=[state for state in states if state.state != "done"],
        made_by=made_by,
        shown=_shown(tables, study.subsets[-1], published=not nothing),
        left_out=tables.get("reference_left_out", pd.DataFrame()).to_dict("records"),
        figures=_figures(study, states),
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


def _figures(study: Study, states: Sequence[State]) -> dict[str, tuple[str, State]]:
    """Of each figure that there is what it shows, and the stage that makes it."""
    from zdc_nb.data.figures import description_of  # noqa: PLC0415 - slow to import

    found = {}
    for path in sorted((study.reports / "figures").glob("*.png")):
        makers = [state for state in states if state.name[:2] == path.stem[:2]]
        # of many, the one whose keys the figure's name ends with
        of = [m for m in makers if path.stem.endswith("-".join(("", *m.stage.suffixes)))]
        if of or makers:
            try:
                found[path.stem] = description_of(path) or path.stem, (of or makers)[-1]
            except OSError:  # no picture: written when the disk was full, say
                continue
    return found


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


def _shown(tables: Mapping[str, pd.DataFrame], last: str, published: bool) -> dict[str, Markup]:
    """What the page shows of the tables that are there, as HTML; the small one is of data set ``last``.

    With ``published`` the paper's stand beside ours.
    """
    # slow to import, and not needed to tell what failed
    from zdc_nb import evaluation  # noqa: PLC0415

    shown = {}

    def show(name: str, make: Callable[..., Markup | str], *needed: str) -> None:
        if all(table in tables for table in needed):
            made = make(*(tables[table] for table in needed))
            shown[name] = made if isinstance(made, Markup) else _html(made)

    def results(number: Literal[1, 2], rows: list[str], column: str) -> Callable[..., Markup]:
        theirs = evaluation.published_table(number) if published else None
        return lambda table: (
            Markup()  # data without repeats have no Table 2
            if table.empty
            else _table(evaluation.results_table(table, theirs, rows, column))
        )

    of_table1 = ("told", "baselines", "comparison", "closure")
    if "table1" in tables:
        # models that are told the photon sum, as all that they are held against are
        drawn = tables["table1"]["model"].str.endswith(DRAWN)
        tables = {**tables, "told": tables["table1"][~drawn]}
    # nothing to be shown where the numbers mean something
    nothing = pd.DataFrame(columns=["subset", "model", "metric", "mean"])
    if "datasets" in tables:
        means = tables.get("told", nothing)
        if why := evaluation.meaning_warning(tables["datasets"], means, tables.get("comparison")):
            shown["meaning"] = _html(why)
    show("table1", results(1, ["metric", "model"], "subset"), "table1")
    show("table2", results(2, ["subset", "quantity", "error"], "model"), "table2")
    show("datasets", _dataset_table, "datasets")
    show("models", lambda table: _table(evaluation.model_pivot(table).style, "{:.3g}"), "models")
    if len(tables.get("models", ())) and "meaning" not in shown:
        shown["verdict"] = _html(evaluation.verdict(tables["models"], tables.get("comparison")))
    small = evaluation.summary_table(tables.get("models", nothing), last)
    if len(small):
        names = [evaluation.name_of(str(model)) for model in small.index]
        shown["summary"] = _table(small.set_axis(names).style)
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
    """HTML of a styled table with printed names, safe whatever it holds."""
    from zdc_nb.evaluation.names import with_names  # noqa: PLC0415 - slow to import

    styler = styler.format(formatter, escape="html")
    for axis in (0, 1):
        styler = styler.format_index(escape="html", axis=axis)
    styler = with_names(styler)
    return Markup(styler.to_html(table_attributes='class="results"'))


def _html(markdown: str) -> Markup:
    """HTML of the project's own sentences, safe whatever names they quote."""
    from nbconvert.filters import clean_html, markdown2html  # noqa: PLC0415 - slow to import

    # what cleans knows no paragraphs
    text = re.sub(r"^<p>(.*)</p>$", r"\1", markdown2html(markdown).strip(), flags=re.DOTALL)
    return Markup(clean_html(text))


def main() -> int:
    """Command line: build the page of one study; 1 if some of its stages are not done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="a study file, such as params/small.yaml")
    file = parser.parse_args().study
    study = load_study(file)
    print(build_report(study, file))
    states, _ = states_of(study)
    unfinished = [state.name for state in states if state.state != "done"]
    if unfinished:
        complete_mark(study).unlink(missing_ok=True)
        print(f"{len(unfinished)} of {len(states)} stages are not done: {', '.join(unfinished)}")
    else:
        write_text(study.model_dump_json(), complete_mark(study))
    return int(bool(unfinished))


if __name__ == "__main__":
    sys.exit(main())
