"""The index page says what the tables say, and nothing is lost or invented on the way."""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup, Tag
from matplotlib.figure import Figure

from tests.event_sets import as_comparison
from zdc_nb.data.figures import save_figure
from zdc_nb.evaluation import (
    BASELINES,
    METRICS,
    QUANTITIES,
    ablation_findings,
    model_findings,
    model_table,
    name_of,
    published_table,
    relative_changes,
    shape_findings,
    summary_table,
    table1,
    table2,
    verdict,
)
from zdc_nb.params import SETUPS, Study, Variant, load_study
from zdc_nb.study import report
from zdc_nb.study.artefacts import artefacts_of
from zdc_nb.study.pages import write_pages
from zdc_nb.study.progress import describe_failures, states_of
from zdc_nb.study.report import build_index
from zdc_nb.study.speed import engine_findings, speed_findings
from zdc_nb.study.stages import Stage, stages_of
from zdc_nb.study.status import is_complete

ROOT = Path(__file__).parents[1]
START = datetime(2026, 3, 4, 22, 50, tzinfo=UTC)
GONE = {"status": "running", "host": socket.gethostname(), "pid": 2**22 + 1}
"""What the record of a stage says whose process was killed: Linux has no such number."""
STUDENT = "03_student_distillation-n-bs+ch+div"


def study_in(folder: Path) -> Study:
    """The smoke study, its results in ``folder``."""
    study = load_study(ROOT / "params" / "smoke.yaml")
    paths = study.paths.model_copy(
        update={"reports": str(folder / "reports"), "artifacts": str(folder / "artifacts")}
    )
    return study.model_copy(update={"paths": paths})


def names(study: Study) -> list[str]:
    return [stage.name for stage in stages_of(study)]


def write_notebook(stage: Stage, minutes: int = 0) -> None:
    """An executed notebook that says what it was made of, and its page."""
    cells = [nbformat.v4.new_markdown_cell("# What?")]
    start = START + timedelta(minutes=minutes)
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["papermill"] = {"start_time": start.isoformat(), "duration": 90.4}
    notebook.metadata["zdc_nb"] = stage.fingerprint
    for path in (stage.executed, stage.study.reports / "html" / f"{stage.name}.html"):
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)


def write_tables(study: Study) -> None:
    """Tables of random numbers."""
    rng = np.random.default_rng(5)
    models = (*BASELINES, "teacher", *SETUPS, "splitting")
    errors = [f"{quantity} {error}" for quantity in QUANTITIES for error in ("MAE", "RMSE")]
    keys = itertools.product(study.subsets, models, (*METRICS, *errors), range(5))
    runs = pd.DataFrame(list(keys), columns=["subset", "model", "metric", "run"])
    runs["value"] = rng.uniform(1, 60, len(runs))
    scores = list(itertools.product(study.subsets, models, ["AUC"], range(2)))
    scored = pd.DataFrame(scores, columns=["subset", "model", "metric", "run"])
    scored["value"] = rng.uniform(0.5, 1, len(scored))
    trained = ("teacher", *SETUPS, "splitting")
    paid = itertools.product(study.subsets, trained, ["megabytes", "ms_per_sample"], [0])
    costs = pd.DataFrame(list(paid), columns=["subset", "model", "metric", "run"])
    costs["value"] = rng.uniform(1, 9, len(costs))
    left_out = pd.DataFrame({"subset": study.subsets, "test_particles": 400})
    speed = list(itertools.product(("teacher", "student"), ("cpu",), study.speed.batches))
    steps = list(itertools.product(("teacher", "student"), ("fused", "plain")))
    parts = list(itertools.product(study.subsets, ("train", "validation", "test")))
    some = [*itertools.product(study.subsets, ("reference+sum", *trained), _CLOSED)]
    closure = pd.DataFrame(some, columns=["subset", "model", "quantity"]).assign(
        by="photon sum", bin="10 to 30 photons", simulated=1.0, scale=1.0, responses=900
    )
    closure["generated"] = rng.uniform(0.5, 1.5, len(closure))
    closure["difference"] = closure["generated"] - 1
    closure["uncertainty"] = 0.01
    closure["pull"] = closure["difference"] / 0.01
    closure["particles"] = 90
    closure[["floor", "floor_difference", "floor_uncertainty", "floor_pull"]] = 1.0, 0.0, 0.01, 0.0
    tables = {
        "closure": closure,
        "table1": table1(runs),
        "table2": table2(runs),
        "models": model_table(pd.concat([runs, scored]), costs),
        "costs": costs,
        "baselines": table1(runs, BASELINES),
        "relative_changes": relative_changes(runs),
        "comparison": as_comparison(relative_changes(runs)),
        "reference_left_out": left_out.assign(left_out_particles=[31, 32]),
        "speed": pd.DataFrame(speed, columns=["model", "device", "batch"]).assign(
            ms_per_sample=rng.uniform(0.1, 20, len(speed)), runs=3
        ),
        "training_speed": pd.DataFrame(steps, columns=["model", "engine"]).assign(
            precision=["bfloat16", "float32"] * 2,
            ms_per_sample=[1.0, 4.0, 3.0, 9.0],
            responses=[3_600_000, 3_600_000, 7_200_000, 7_200_000],
        ),
        "datasets": pd.DataFrame(parts, columns=["subset", "part"]).assign(
            responses=range(1000, 1006), particles=range(100, 106)
        ),
        "species": pd.DataFrame({"pdg": [2112]}),
        "calibration": pd.DataFrame({"quantity": ["energy"]}),
    }
    # the word of the notebooks of before, as long as the findings know it
    for name, table in tables.items():
        path = study.reports / "tables" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)


_CLOSED = ("photons", "lit fibres", "variance of centre")

DATA = {
    "files": [{"name": "mine.root", "size": 12_345_678, "sha256": "0123456789abcdef" * 4}],
    "rows": 5000,
}


def write_record(study: Study, name: str, **changes: Any) -> None:
    device = {"system": "Linux", "cpu": "Xeon", "cores": 64, "threads": 8, "gpu": None, "gpus": 0}
    content = {
        "stage": name,
        "study_file": "smoke.yaml",
        "status": "done",
        "started": START.isoformat(),
        "attempts": 1,
        "host": "node7",
        "pid": 1,
        "slurm_job": None,
        "peak_memory_mb": 1234.4,
        "device": device,
        "versions": {"python": "3.11", "torch": "2.13"},
        "git": {"commit": "c0ffee" * 6 + "1234", "dirty": False},
        "seed": study.seed,
        "parameters": {},
        "data": DATA,
    }
    record_of(study, name).parent.mkdir(parents=True, exist_ok=True)
    record_of(study, name).write_text(json.dumps(content | changes), "utf-8")


def record_of(study: Study, name: str) -> Path:
    return study.reports / "records" / f"{name}.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the smoke study seems to have run."""
    folder = tmp_path_factory.mktemp("finished")
    study = study_in(folder)
    write_tables(study)
    for minutes, stage in enumerate(stages_of(study)):
        for artefact in artefacts_of(stage):
            with artefact.write() as temporary:
                temporary.write_bytes(b"")
        for path in stage.tables:
            # of those that the page does not show
            if not path.is_file():
                path.write_text("part\n", "utf-8")
        write_notebook(stage, minutes)
        write_record(study, stage.name)
    (study.artifacts / "data.root").write_bytes(b"")
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Study:
    """The study that has run, to be changed by a test."""
    return study_in(Path(shutil.copytree(finished, tmp_path / "study")))


def stage_of(study: Study, name: str) -> Stage:
    (stage,) = (stage for stage in stages_of(study) if stage.name == name)
    return stage


def read_table(study: Study, name: str) -> pd.DataFrame:
    return pd.read_csv(study.reports / "tables" / f"{name}.csv")


def read_page(study: Study, ended: bool = False) -> BeautifulSoup:
    index = build_index(study, "params/smoke.yaml", ended)
    page = BeautifulSoup(index.read_text("utf-8"), "html.parser")
    for link in [str(a["href"]) for a in page.select("a")]:  # every link leads somewhere
        if link.startswith("#"):
            assert page.find(id=link[1:]) is not None, link
        else:
            assert (study.reports / unquote(link)).is_file(), link
    return page


def text_of(tag: Tag) -> str:
    return " ".join(tag.get_text().split())


def under(page: BeautifulSoup, heading: str, what: str) -> list[Tag]:
    """What stands under a heading, before the next of its level."""
    return [tag for tag in page.select(what) if heading_of(tag) == heading]


def heading_of(tag: Tag) -> str:
    heading = tag.find_previous("h2")
    return str(heading["id"]) if isinstance(heading, Tag) else ""


def states(study: Study, ended: bool = False) -> dict[str, str]:
    return {state.name: state.state for state in states_of(study, ended)[0]}


def undone(study: Study, ended: bool = False) -> dict[str, str]:
    return {name: state for name, state in states(study, ended).items() if state != "done"}


def below(page: BeautifulSoup, name: str) -> Tag:
    """What the page says below a stage that did not succeed."""
    row = page.find(id=f"stage-{name}").find_next_sibling("tr")  # type: ignore[union-attr]
    assert isinstance(row, Tag)
    assert "failure" in row.get_attribute_list("class")
    return row


# --- Tables, findings and figures ---------------------------------------------------------------


def cells(table: Tag) -> list[list[str]]:
    """Rows of a table as text; a heading that spans rows stands in the first of them."""
    return [[cell.get_text() for cell in row.select("th, td")] for row in table.select("tbody tr")]


def test_every_number_of_the_tables_stands_beside_the_published_ones(study: Study) -> None:
    page = read_page(study)
    for number, rows, column in (
        (1, ("metric", "model"), "subset"),
        (2, ("subset", "quantity", "error"), "model"),
    ):
        ours, theirs = read_table(study, f"table{number}"), published_table(number)  # type: ignore[arg-type]
        (table,) = under(page, f"table{number}", "table.results")
        expected: dict[tuple[str, ...], list[str]] = {}
        for frame in (ours, theirs[theirs["subset"].isin(study.subsets)]):
            for row in frame.to_dict("records"):
                key = tuple(row[name] for name in (*rows, column))
                expected.setdefault(key, []).append(f"{row['mean']:.2f} ± {row['std']:.2f}")
        shown = [text for row in cells(table) for text in row]
        for key, texts in expected.items():
            if key in set(ours.set_index([*rows, column]).index):
                assert all(text in shown for text in texts), key
        assert "published" in table.get_text()
    # by hand from the paper
    assert "6.65 ± 0.04" not in shown
    assert "52.66 ± 1.56" in shown


def test_the_best_setup_is_marked(study: Study) -> None:
    page = read_page(study)
    style = under(page, "table1", "style")[0].get_text()
    bold = set(re.findall(r"#(T_\w+)", style[: style.index("font-weight: bold")]))
    table = read_table(study, "table1")
    best = table[table["model"].isin(SETUPS)].groupby(["metric", "subset"])["mean"].min()
    (shown,) = under(page, "table1", "table.results")
    marked = {
        cell.get_text().split(" ")[0] for cell in shown.select("td") if cell.get("id") in bold
    }
    assert {f"{value:.2f}" for value in best} <= marked


def test_speed_table_gives_times_and_ratio(study: Study) -> None:
    times = read_table(study, "speed").set_index(["model", "batch"])["ms_per_sample"]
    (table,) = under(read_page(study), "speed", "table.results")
    rows = [row[-4:] for row in cells(table)]
    for batch in study.speed.batches:
        teacher, student = times["teacher", batch], times["student", batch]
        expected = [f"{value:.3g}" for value in (teacher, student, teacher / student)]
        assert [str(batch), *expected] in rows


def test_findings_are_those_of_the_tables(study: Study) -> None:
    tables = {path.stem: pd.read_csv(path) for path in (study.reports / "tables").glob("*.csv")}
    expected = [
        ablation_findings(
            tables["table1"], tables["baselines"], tables["comparison"], tables["closure"]
        ),
        model_findings(tables["models"]),
        shape_findings(tables["table2"]),
        speed_findings(tables["speed"]),
        engine_findings(tables["training_speed"]),
    ]
    boxes = read_page(study).select("div.findings")
    for markdown, box in zip(expected, boxes, strict=True):
        lines = [re.sub(r"[*`]", "", line.removeprefix("- ")) for line in markdown.splitlines()]
        assert [item.get_text() for item in box.select("li")] == lines


def test_failures_stand_among_the_findings_and_lead_to_the_pages(study: Study) -> None:
    page = read_page(study)
    found = under(page, "findings", ".findings li")
    sentences = [text_of(item) for item in found if "fails, of each" in item.get_text()]
    assert len(sentences) == 2 + len(SETUPS)
    assert all("photons asked for at 10 to 30 photons on " in text for text in sentences)
    links = [str(a["href"]) for a in under(page, "closure", "a")]
    models = ("teacher", *study.setups, "splitting")
    assert links[: len(models)] == [f"html/13_closure-{m.replace('+', '%2B')}.html" for m in models]
    assert not under(page, "closure", "img")
    draw(study, "09_closure", "What is kept.")
    assert under(read_page(study), "closure", "img")[0]["alt"] == "What is kept."


def test_a_study_whose_numbers_mean_nothing_says_so_before_all_else(study: Study) -> None:
    sizes, table = (study.reports / "tables" / f"{name}.csv" for name in ("datasets", "table1"))
    means = pd.read_csv(table)
    means.loc[means["model"] == "ignorant", "mean"] = 99.0
    means.to_csv(table, index=False)
    comparison = read_table(study, "comparison").assign(low=1.0, high=2.0)
    comparison.to_csv(study.reports / "tables" / "comparison.csv", index=False)
    assert read_page(study).find(id="meaning") is None
    frame = pd.read_csv(sizes)
    frame.loc[frame["part"] == "test", "responses"] = 160
    frame.to_csv(sizes, index=False)
    page = read_page(study)
    header, first = page.select("main > *")[:2]
    assert header.name == "header"
    assert first.get("id") == "meaning"
    assert text_of(first).startswith(
        "These numbers mean nothing. Too few test responses: n 160, all"
    )
    # nothing is concluded from such numbers
    assert text_of(page.select("#verdict")[0]) == ""
    # nor where what compares the setups is not there
    for name in ("table1", "comparison"):
        (study.reports / "tables" / f"{name}.csv").unlink()
    page = read_page(study)
    assert page.find(id="meaning") is not None
    assert text_of(page.select("#verdict")[0]) == ""


def test_the_page_begins_with_a_verdict_and_a_small_table(study: Study) -> None:
    sizes = read_table(study, "datasets").assign(responses=5000)
    sizes.to_csv(study.reports / "tables" / "datasets.csv", index=False)
    means = read_table(study, "table1")
    means.loc[means["model"] == "ignorant", "mean"] = 99.0
    means.to_csv(study.reports / "tables" / "table1.csv", index=False)
    compared = read_table(study, "comparison").assign(low=1.0, high=2.0)
    compared.to_csv(study.reports / "tables" / "comparison.csv", index=False)
    page = read_page(study)
    tables = [read_table(study, name) for name in ("models", "comparison")]
    said = re.sub(r"[*`]", "", verdict(*tables))
    assert text_of(page.select("#verdict")[0]) == said
    (table,) = page.select(".small table")
    expected = summary_table(tables[0], "all")
    assert [row[0] for row in cells(table)] == [name_of(str(name)) for name in expected.index]
    assert [row[1] for row in cells(table)] == [*expected["AUC"]]
    # a table of all data sets but the last, or of none
    for rest in (tables[0][tables[0]["subset"] == "n"], tables[0].head(0)):
        rest.to_csv(study.reports / "tables" / "models.csv", index=False)
        assert read_page(study).select(".small table") == []


def test_what_speed_bought_is_added_up(study: Study) -> None:
    text = engine_findings(read_table(study, "training_speed"))
    # 3.6 million at 1 ms and 7.2 million at 3 ms are 1 + 6 hours; in plain torch 4 + 18
    assert "take 7 hours, and in plain torch they would take 22." in text
    assert "would have seen 32% of" in text
    assert "ms, 3 times as long" in text


def test_data_sets_are_described(study: Study) -> None:
    page = read_page(study)
    (table,) = under(page, "background", "table.results")
    assert cells(table)[0] == ["n", "1000 (100)", "1001 (101)", "1002 (102)"]
    text = text_of(page)
    assert "31 of 400 on n, 32 of 400 on all." in text
    assert "not GEANT4" in text
    assert "Caps, kept by leaving out whole particles: n at 500, all at 800 responses" in text
    data = study.data.model_copy(update={"max_responses": {"proton": 100}})
    assert "Caps" not in text_of(read_page(study.model_copy(update={"data": data})))


def test_data_without_repeats_have_no_table_2_and_the_page_says_so(study: Study) -> None:
    read_table(study, "table2").head(0).to_csv(study.reports / "tables" / "table2.csv", index=False)
    page = read_page(study)
    assert "Nothing to compare" in under(page, "table2", ".findings")[0].get_text()
    assert not under(page, "table2", "table")


def test_own_data_are_not_called_a_simulation_even_if_their_files_are_gone(study: Study) -> None:
    data = study.data.model_copy(update={"file": ["my_particles.npz", "my_responses.npz"]})
    page = read_page(study.model_copy(update={"data": data}))
    assert "my_particles.npz, my_responses.npz" in text_of(page)
    assert "not GEANT4" not in page.get_text()
    (note,) = under(page, "run", ".warning")
    assert "my_particles.npz: no such file" in note.get_text()


@pytest.mark.parametrize(
    ("spread", "others", "is_busy"), [(0.9, 0.1, True), (0.01, 1.5, True), (0.01, "", False)]
)
def test_times_of_a_busy_machine_carry_a_warning(
    study: Study, spread: float, others: float | str, is_busy: bool
) -> None:
    table = read_table(study, "training_speed").assign(spread=spread)
    table["others"] = [others, *[""] * (len(table) - 1)]
    table.to_csv(study.reports / "tables" / "training_speed.csv", index=False)
    page = read_page(study)
    boxes = page.select(".warning")
    assert [heading_of(box) for box in boxes] == (["speed", "run"] if is_busy else [])
    first = engine_findings(read_table(study, "training_speed")).splitlines()[0]
    for box in boxes:
        assert text_of(box) == re.sub(r"[*`]", "", first.removeprefix("- "))
    assert ("busy machine" in page.select("header")[0].get_text()) == is_busy


def draw(study: Study, name: str, text: str) -> None:
    save_figure(Figure(figsize=(1, 1)), study.reports / "figures" / f"{name}.png", text)


def test_figures_that_there_are_are_shown_with_what_they_say_of_themselves(study: Study) -> None:
    assert not read_page(study).select("img")
    for name in ("11_speed", "08_samples-all", "08_samples-n", "09_loss_terms-all", "09_other"):
        draw(study, name, f"This is {name} < that.")
    (study.reports / "figures" / "09_table1.png").write_bytes(b"no picture")
    stage_of(study, "08_evaluation-all").executed.unlink()
    page = read_page(study)
    shown = [str(image["src"]) for image in page.select("img.zoom")]
    expected = ("08_samples-all", "09_loss_terms-all", "11_speed")
    assert shown == [f"figures/{name}.png" for name in expected]
    assert [a["href"] for a in page.select("figure a:has(img)")] == shown
    captions = [caption.get_text() for caption in page.select("figcaption")]
    assert captions[0].startswith("This is 08_samples-all < that.")
    assert "earlier run: 08_evaluation-all makes this (not run)" in captions[0]
    assert captions[2] == page.select("img")[2]["alt"] == "This is 11_speed < that."


@pytest.mark.parametrize(
    ("table", "stage", "headings"),
    [
        ("models", "12_models", ["models", "models"]),
        ("datasets", "01_data_exploration", ["background"]),
        ("table1", "09_ablations", ["findings", "table1"]),
        ("closure", "09_ablations", ["findings"]),
        ("comparison", "09_ablations", ["findings"]),
        ("table2", "10_shower_shapes", ["table2", "table2"]),
        ("speed", "11_speed", ["speed", "speed"]),
    ],
)
def test_missing_table_is_told_with_the_stage_that_makes_it(
    study: Study, table: str, stage: str, headings: list[str]
) -> None:
    (study.reports / "tables" / f"{table}.csv").unlink()
    page = read_page(study)
    missing = [note for note in page.select(".missing") if note.get_text().startswith("Not there")]
    assert [heading_of(note) for note in missing] == headings
    assert {text_of(note) for note in missing} == {f"Not there: {stage} makes this (outdated)."}
    assert f"{table}.csv missing" in below(page, stage).get_text()
    # what is left of the stage is shown, and said to be of before
    stale = [note for note in page.select(".missing") if note not in missing]
    assert all(text_of(note).startswith("From an earlier run: ") for note in stale)


# --- Stages that are not done -------------------------------------------------------------------


def fail(study: Study, name: str, error: str = "the term latent is nan", lines: int = 9) -> Path:
    """The stage fails instead: its notebook and its page are gone, the failed one is kept."""
    done = stage_of(study, name).executed
    notebook = nbformat.read(done, as_version=4)
    traceback = [f"\x1b[31mline {number}\x1b[0m" for number in range(lines - 1)]
    output = nbformat.v4.new_output(
        "error",
        ename="DivergenceError",
        evalue=error,
        traceback=[*traceback, f"DivergenceError: {error}"],
    )
    progress = [nbformat.v4.new_output("stream", text=f"epoch {i}\r") for i in range(3)]
    notebook.cells.append(nbformat.v4.new_code_cell("train()", outputs=[*progress, output]))
    failed = done.with_suffix(".failed.ipynb")
    nbformat.write(notebook, failed)
    forget(study, name)
    return failed


def failed_pages(study: Study) -> list[Path]:
    """Pages of notebooks that failed, after all are made."""
    return [page for page in make_pages(study) if page.stem.endswith(".failed")]


def make_pages(study: Study) -> list[Path]:
    return write_pages(study, states_of(study)[0])


def forget(study: Study, name: str) -> None:
    stage_of(study, name).executed.unlink()
    (study.reports / "html" / f"{name}.html").unlink()


def test_page_of_a_study_that_is_done(study: Study) -> None:
    page = read_page(study)
    assert page.select(".banner, .missing, .warning, .failure") == []
    assert undone(study) == {}
    assert describe_failures(study) == ""
    links = {a.get_text(): a["href"] for a in page.select("td a[href^='html/']")}
    assert list(links) == names(study)
    # a plus sign in a path may not be read as a space
    assert links[STUDENT] == f"html/{STUDENT.replace('+', '%2B')}.html"
    last = timedelta(minutes=len(names(study)) - 1, seconds=90)
    header = text_of(page.select("header")[0])
    assert "04 March 2026, 22:50 UTC" in header
    assert f"{last} (h:mm:ss)" in header
    assert "0:01:30" in page.find(id=f"stage-{STUDENT}").get_text()  # type: ignore[union-attr]


def test_nothing_run_yet_is_told(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    page = read_page(study)
    total = len(names(study))
    assert f"{total} of {total} stages are not done" in page.select(".banner")[0].get_text()
    assert set(states(study).values()) == {"not run"}
    assert "not begun" in page.select("header")[0].get_text()
    assert describe_failures(study) == ""


def test_stage_that_failed_shows_its_error_and_leads_to_its_page(study: Study) -> None:
    failed = fail(study, STUDENT)
    # without a page, the file is named
    assert f"notebooks/{failed.name}" in below(read_page(study), STUDENT).get_text()
    (path,) = failed_pages(study)
    own = BeautifulSoup(path.read_text("utf-8"), "html.parser").get_text()
    assert "DivergenceError: the term latent is nan" in own
    # of a progress bar the last state alone
    assert "epoch 2" in own
    assert "epoch 1" not in own

    page = read_page(study)
    assert undone(study)[STUDENT] == "failed"
    (banner,) = page.select(".banner")
    assert f"failed: {STUDENT} (DivergenceError: the term latent is nan)" in text_of(banner)
    failure = below(page, STUDENT)
    strong = failure.select("strong")[0].get_text()
    assert strong == "Cell 2: DivergenceError: the term latent is nan"
    assert failure.select("details pre")[0].get_text().startswith("line 0\nline 1\n")
    assert "\x1b" not in page.get_text()
    hrefs = {str(a["href"]) for a in failure.select("a")}
    assert hrefs == {f"html/{STUDENT.replace('+', '%2B')}.failed.html"}

    # it goes when the failure does; the pages of what is done stay
    failed.unlink()
    assert failed_pages(study) == []
    assert not path.exists()
    assert (study.reports / "html" / "11_speed.html").is_file()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"nbformat": 4, "cells": []}', b"\xff"])
def test_failed_notebook_that_is_none_stops_nothing(study: Study, content: bytes) -> None:
    fail(study, "09_ablations").write_bytes(content)
    assert failed_pages(study) == []
    assert undone(study) == {"09_ablations": "stopped"}
    assert "not written to the end" in describe_failures(study)


def with_value(study: Study, section: str, **values: object) -> Study:
    changed = getattr(study, section).model_copy(update=values)
    return study.model_copy(update={section: changed})


def test_the_centre_loss_is_explained_where_a_student_has_it(study: Study) -> None:
    assert "with ctr" not in [term.get_text() for term in read_page(study).select("dt")]
    student = {"centre_weight": 3.0, "centre_offset": "given"}
    pulled = {"pull": Variant(setup="bs+ch+ctr", student=student)}
    page = read_page(study.model_copy(update={"variants": pulled}))
    (term,) = [term for term in page.select("dt") if term.get_text() == "with ctr"]
    assert "centre loss" in text_of(term.find_next("dd"))  # type: ignore[arg-type]


def test_results_of_other_parameters_are_not_called_done(study: Study) -> None:
    changed = with_value(study, "student", channel_weight=77.0)
    page = read_page(changed)
    for name, state in states(changed).items():
        depends = name[:2] == "03" or name[:2] > "07"
        assert state == ("of other parameters" if depends else "done"), name
    assert "student.channel_weight" in page.select(".banner")[0].get_text()
    assert "student.channel_weight" in below(page, STUDENT).get_text()
    notes = [text_of(note) for note in page.select(".missing")]
    assert len(notes) == 9
    assert "From an earlier run: 11_speed makes this (of other parameters)." in notes


def test_failure_outdates_what_needs_it_and_hides_no_other(study: Study) -> None:
    teacher, other = "02_teacher_training-n", "03_student_distillation-all-bs"
    fail(study, STUDENT, "of the run before")
    fail(study, other, "of this run")
    assert "of the run before" in describe_failures(study)
    fail(study, teacher, "of the teacher")
    shutil.rmtree(study.artifacts / "models" / "n")
    found = undone(study)
    assert found[teacher] == found[other] == "failed"
    assert found[STUDENT] == "failed in an earlier run"
    assert found["03_student_distillation-n-bs"] == found["08_evaluation-n"] == "outdated"
    page = read_page(study)
    assert f"{teacher} to be made again" in below(page, "03_student_distillation-n-bs").get_text()
    assert "of the run before" in below(page, STUDENT).get_text()
    text = describe_failures(study)
    assert "of the teacher" in text
    assert "of this run" in text
    assert "of the run before" not in text
    # it began, if not with what the study has now
    write_notebook(stage_of(study, teacher))
    stage_of(study, teacher).executed.with_suffix(".failed.ipynb").unlink()
    assert "of the run before" in describe_failures(with_value(study, "flow", bins=17))


# --- What a terminal and a log show -------------------------------------------------------------


def test_error_that_the_user_can_mend_is_described_in_three_lines(study: Study) -> None:
    failed = fail(study, STUDENT, lines=1)
    # one that this study no longer has
    shutil.copy(failed, failed.with_name("02_teacher_training-proton.failed.ipynb"))
    first, where = describe_failures(study).splitlines()
    assert first == f"{STUDENT} failed: DivergenceError: the term latent is nan"
    assert str(failed) in where
    traceback = study.reports / "logs" / f"{STUDENT}.traceback"
    traceback.parent.mkdir()
    traceback.write_text("of an error before", "utf-8")
    assert str(traceback) not in describe_failures(study)
    traceback.write_text("...\nzdc_nb.DivergenceError: the term latent is nan\n", "utf-8")
    assert str(traceback) in describe_failures(study)
    assert f"logs/{STUDENT}.traceback" in text_of(below(read_page(study), STUDENT))


def test_of_another_error_the_last_lines_are_shown(study: Study) -> None:
    failed = fail(study, STUDENT, lines=60)
    lines = describe_failures(study).splitlines()
    assert lines[0] == f"{STUDENT} failed: DivergenceError: the term latent is nan"
    assert [line.strip() for line in lines[2:7]] == [
        *(f"line {number}" for number in (55, 56, 57, 58)),
        "DivergenceError: the term latent is nan",
    ]
    assert len(lines) == 8
    assert str(failed) in lines[-1]


STOPPED = "student n/bs+ch+div: stopped by SIGINT after step 120 of 500, saved; the same goes on"


@pytest.mark.parametrize(
    ("name", "facts", "said"),
    [
        (STUDENT, {"stopped": STOPPED}, STOPPED),
        (STUDENT, {}, "was stopped before its training began, or between steps; the same command"),
        ("09_ablations", {}, "was stopped; the same command goes on"),
    ],
)
def test_stage_that_was_told_to_stop_says_that_it_goes_on(
    study: Study, name: str, facts: dict[str, str], said: str
) -> None:
    forget(study, name)
    write_record(study, name, facts=facts, **({"status": "stopped"} if facts else GONE))
    assert undone(study)[name] == "stopped"
    page = read_page(study)
    assert said in below(page, name).get_text()
    assert said in page.select(".banner")[0].get_text()
    (line,) = describe_failures(study).splitlines()
    assert line.startswith(f"{name}: {said}")
    # a notebook that is there counts more than a run by hand that was stopped
    write_notebook(stage_of(study, name))
    assert undone(study) == {}


@pytest.mark.parametrize("suffix", [".running.ipynb", ".failed.ipynb"])
def test_stage_that_was_killed_is_stopped_when_the_grid_is_at_its_end(
    study: Study, suffix: str
) -> None:
    name = "11_speed"
    write_record(study, name, status="running", slurm_job="4711")
    executed = stage_of(study, name).executed
    killed = executed.rename(executed.with_suffix(suffix))
    (study.reports / "html" / f"{name}.html").unlink()
    log = study.reports / "logs" / f"{name}.log"
    log.parent.mkdir()
    log.write_text("oom_kill", "utf-8")
    if suffix == ".running.ipynb":  # on another host it may be alive
        assert undone(study) == {name: "running"}
        assert describe_failures(study) == ""
    assert undone(study, ended=True) == {name: "stopped"}
    failure = below(read_page(study, ended=True), name)
    assert "without an error of its own" in failure.get_text()
    assert "on node7" in failure.get_text()
    assert [a["href"] for a in failure.select("a")] == [f"logs/{name}.log"]
    text = describe_failures(study, ended=True)
    assert str(killed) in text
    assert str(log) in text


def test_stage_that_runs_is_neither_stopped_nor_done(study: Study) -> None:
    forget(study, "11_speed")
    write_record(study, "11_speed", **GONE | {"pid": os.getpid()})
    assert undone(study) == {"11_speed": "running"}
    assert describe_failures(study) == ""


# --- Records and parameters ---------------------------------------------------------------------


def values_of(page: BeautifulSoup) -> dict[str, str]:
    """The tables of names and values on the page."""
    rows = [row.select("td") for row in page.select("table.values tr")]
    return {row[0].get_text(): row[1].get_text() for row in rows}


def test_records_and_parameters_are_shown(study: Study) -> None:
    device = {"system": "Linux", "cpu": "Xeon", "cores": 64, "threads": 8}
    write_record(
        study,
        "11_speed",
        facts={"resumed_from_step": 120},
        attempts=3,
        slurm_job="4711",
        peak_cuda_memory_mb=2048.0,
        device={**device, "gpu": "H100", "gpus": 2},
    )
    write_record(study, names(study)[0], data=DATA | {"dropped": {"no PDG code": 4}})
    page = read_page(study)
    rows = {name: page.find(id=f"stage-{name}") for name in ("09_ablations", "11_speed")}
    shown = {n: [cell.get_text() for cell in row.select("td")] for n, row in rows.items()}  # type: ignore[union-attr]
    assert shown["09_ablations"][3:] == ["0:01:30", "1 234 MB", "node7, CPU, 8 threads", "no"]
    assert shown["11_speed"][4:] == [
        "1 234 MBGPU 2 048 MB",
        "node7, H100, Slurm job 4711",
        "at step 120, attempt 3",
    ]
    values = values_of(page)
    assert "node7: 2 x H100, Xeon, 64 CPU cores, Linux" in values["machine"]
    assert values["git commit"] == "c0ffee" * 6 + "1234"
    assert (values["study file"], values["version of torch"]) == ("smoke.yaml", "2.13")
    assert values["data: rows"] == "5000"
    (code,) = page.select("#data-files code")
    assert code["title"] == "0123456789abcdef" * 4
    assert "12 MB" in page.select("#data-files")[0].get_text()
    (warning,) = under(page, "background", ".warning")
    assert "4 (no PDG code)" in text_of(warning)
    # and every parameter
    for key, value in study.model_dump(exclude={"name"}).items():
        parts = {f"{key}.{part}" for part in value} if isinstance(value, dict) else {key}
        assert values.keys() >= parts - {"teacher.epochs"}
    assert values["seed"] == str(study.seed)
    assert values["data.file"] == "null"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"git": {"commit": "c0ffee" * 6 + "1234", "dirty": True}}, "git commit"),
        ({"git": None, "seed": 1}, "seed"),
        ({"versions": {"torch": "1.0"}}, "version of torch"),
        ({"data": {"files": []}}, "data"),
    ],
)
def test_disagreement_of_records_is_told(study: Study, changes: dict[str, Any], what: str) -> None:
    write_record(study, "11_speed", **changes)
    found = [text_of(warning) for warning in read_page(study).select(".warning")]
    (warning,) = [text for text in found if f"same {what}:" in text]
    assert warning.endswith(" in 11_speed.")
    assert f" in {len(names(study)) - 1} stages; " in warning or what == "data"


@pytest.mark.parametrize("content", [b"\xff\x00", b'{"stage": "<b>'])
def test_corrupt_record_is_a_note_and_no_more(study: Study, content: bytes) -> None:
    record_of(study, "09_ablations").write_bytes(content)
    (note,) = [warning.get_text() for warning in read_page(study).select(".warning")]
    assert str(record_of(study, "09_ablations")) in note
    assert undone(study) == {}


@pytest.mark.parametrize("data", [{"files": "x", "dropped": 3}, {"files": [1, {}]}])
def test_data_of_another_form_do_not_break_the_page(study: Study, data: dict[str, Any]) -> None:
    write_record(study, names(study)[0], data=data)
    assert under(read_page(study), "run", ".warning")


# --- Text from outside --------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


def is_harmless(page: BeautifulSoup) -> bool:
    """Whether nothing of :data:`HOSTILE` has become a tag, an attribute or a link."""
    scripts = [tag for tag in page.select("script") if "alert(" in tag.get_text()]
    handlers = [tag for tag in page.find_all(True) if "onerror" in tag.attrs]
    links = [a for a in page.select("a[href]") if str(a["href"]).startswith("javascript:")]
    return not [*scripts, *handlers, *links]


def test_hostile_names_are_text_in_the_page(study: Study) -> None:
    shutil.rmtree(study.reports / "records")
    write_record(
        study,
        "11_speed",
        host=HOSTILE,
        slurm_job=HOSTILE,
        versions={HOSTILE: HOSTILE},
        facts={"resumed_from_step": HOSTILE},
        data={
            "files": [{"name": HOSTILE, "size": 1, "sha256": HOSTILE}],
            "dropped": {HOSTILE: HOSTILE},
            HOSTILE: HOSTILE,
        },
    )
    fail(study, "09_ablations", HOSTILE)
    tables = study.reports / "tables"
    (tables / "a<b>&#.csv").write_text("", "utf-8")
    for name in ("speed", "table1", "datasets"):
        frame = read_table(study, name).replace({"cpu": HOSTILE, "bs": HOSTILE, "train": HOSTILE})
        frame.to_csv(tables / f"{name}.csv", index=False)
    data = study.data.model_copy(update={"file": [f"{HOSTILE}.npz", "javascript:alert(3).npz"]})
    index = build_index(study.model_copy(update={"data": data}), f"params/{HOSTILE}.yaml")
    page = BeautifulSoup(index.read_text("utf-8"), "html.parser")
    assert is_harmless(page)
    assert len(page.select("script")) == 1
    text = page.get_text()
    for where in (f"params/{HOSTILE}.yaml", f"{HOSTILE}.npz", f"DivergenceError: {HOSTILE}"):
        assert where in text
    assert text.count(HOSTILE) >= 12
    (failed,) = failed_pages(study)
    assert is_harmless(BeautifulSoup(failed.read_text("utf-8"), "html.parser"))


# --- Command line -------------------------------------------------------------------------------


def test_command_says_whether_all_is_done(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "load_study", lambda _: study)
    monkeypatch.setattr(sys, "argv", ["report", "params/smoke.yaml"])
    assert report.main() == 0
    index = study.reports / "index.html"
    assert capsys.readouterr().out.splitlines() == [str(index)]
    assert is_complete(study)
    fail(study, "11_speed")
    assert report.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        str(index),
        f"1 of {len(names(study))} stages are not done: 11_speed",
    ]
    assert not is_complete(study)
    assert (study.reports / "html" / "11_speed.failed.html").is_file()


def test_it_can_be_imported_without_torch_and_plots() -> None:
    code = "import sys, zdc_nb.study.report; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"torch", "matplotlib", "nbconvert", "zdc_nb.bench"}.isdisjoint(loaded)
