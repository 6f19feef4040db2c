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
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from bs4 import BeautifulSoup, Tag
from nbconvert.exporters import HTMLExporter

from zdc_nb.evaluation import (
    BASELINES,
    METRICS,
    QUANTITIES,
    relative_changes,
    table1,
    table2,
)
from zdc_nb.evaluation.conclusions import (
    ablation_findings,
    shape_findings,
)
from zdc_nb.params import SETUPS, Study, load_study, notebook_names
from zdc_nb.study import runs as records
from zdc_nb.study.report import (
    build_index,
    describe_failures,
    failed_pages,
    main,
    unfinished_stages,
)
from zdc_nb.study.speed import engine_findings, speed_findings

ROOT = Path(__file__).parents[1]
START = datetime(2026, 3, 4, 22, 50, tzinfo=UTC)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """The small study, its results below ``tmp_path``."""
    study = load_study(ROOT / "params" / "small.yaml")
    paths = study.paths.model_copy(
        update={"reports": str(tmp_path / "reports"), "artifacts": str(tmp_path / "artifacts")}
    )
    return study.model_copy(update={"paths": paths})


def write_notebook(study: Study, name: str, minutes: int) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell(f"# About {name} & <more>\n\nWhat?")]
    start = START + timedelta(minutes=minutes)
    notebook.metadata["papermill"] = {"start_time": start.isoformat(), "duration": 90.4}
    path = study.reports / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    page = study.reports / "html" / f"{name}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("<html>", "utf-8")


def write_results(study: Study) -> dict[str, pd.DataFrame]:
    """Tables of random numbers, and notebooks that began a minute after each other."""
    rng = np.random.default_rng(5)
    models = (*BASELINES, "teacher", *SETUPS)
    errors = [f"{quantity} {error}" for quantity in QUANTITIES for error in ("MAE", "RMSE")]
    keys = itertools.product(study.subsets, models, (*METRICS, *errors), range(5))
    runs = pd.DataFrame(list(keys), columns=["subset", "model", "metric", "run"])
    runs["value"] = rng.uniform(1, 60, len(runs))
    left_out = pd.DataFrame({"subset": study.subsets, "test_particles": 400})
    speed = itertools.product(("teacher", "student"), ("cpu",), study.speed.batches)
    tables = {
        "table1": table1(runs),
        "table2": table2(runs),
        "baselines": table1(runs, BASELINES),
        "relative_changes": relative_changes(runs),
        "reference_left_out": left_out.assign(left_out_particles=range(31, 36)),
        "speed": pd.DataFrame(list(speed), columns=["model", "device", "batch"]),
    }
    tables["speed"]["ms_per_sample"] = rng.uniform(0.1, 20, len(tables["speed"]))
    steps = itertools.product(("teacher", "student"), ("fused", "reference"))
    tables["training_speed"] = pd.DataFrame(list(steps), columns=["model", "engine"]).assign(
        precision=["bfloat16", "float32"] * 2,
        ms_per_sample=[1.0, 4.0, 3.0, 9.0],
        responses=[3_600_000, 3_600_000, 7_200_000, 7_200_000],
    )
    parts = list(itertools.product(study.subsets, ("train", "validation", "test")))
    tables["datasets"] = pd.DataFrame(parts, columns=["subset", "part"])
    tables["datasets"]["responses"] = range(1000, 1000 + len(parts))
    tables["datasets"]["particles"] = range(100, 100 + len(parts))
    for name, table in tables.items():
        path = study.reports / "tables" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
    for minutes, name in enumerate(notebook_names(study)):
        write_notebook(study, name, minutes)
    return tables


def read_page(study: Study) -> BeautifulSoup:
    return BeautifulSoup(build_index(study, "params/small.yaml").read_text("utf-8"), "html.parser")


def results(page: BeautifulSoup) -> list[dict[tuple[str, str, str], Tag]]:
    """Each table of results: its cells by heading of the block, row and column."""
    found = []
    for table in page.select("table.results"):
        columns = [cell.get_text() for cell in table.select("thead th")][1:]
        cells = {}
        for body in table.select("tbody"):
            heading, *rows = body.select("tr")
            for row in rows:
                name = row.select("th")[0].get_text()
                for column, cell in zip(columns, row.select("td"), strict=True):
                    cells[heading.get_text(strip=True), name, column] = cell
        found.append(cells)
    return found


def is_bold(cell: Tag) -> bool:
    return cell.get_attribute_list("class") == ["best"]


def test_every_number_of_table1_is_shown_and_the_best_setup_is_marked(study: Study) -> None:
    table = write_results(study)["table1"]
    cells = results(read_page(study))[0]
    assert len(cells) == len(table) == 5 * 7 * 3
    for subset, model, metric, mean, std, _ in table.itertuples(index=False):
        cell = cells[metric, model, subset]
        assert cell.get_text() == f"{mean:.2f} ± {std:.2f}"
        rivals = table.query("subset == @subset and metric == @metric and model in @SETUPS")
        assert is_bold(cell) == (model in SETUPS and mean == rivals["mean"].min())


def test_every_number_of_table2_is_shown(study: Study) -> None:
    table = write_results(study)["table2"]
    cells = results(read_page(study))[2]
    assert len(cells) == len(table)
    for subset, model, quantity, error, mean, std, _ in table.itertuples(index=False):
        cell = cells[subset, model, f"{quantity} {error}".replace("_", " ")]
        assert cell.get_text() == f"{mean:.2f} ± {std:.2f}"


def test_published_tables_stand_beside_and_are_marked(study: Study) -> None:
    write_results(study)
    page = read_page(study)
    published = results(page)[1], results(page)[3]
    # by hand from the paper
    assert published[0]["MAE_cw", "bs+ch+div", "sigma+"].get_text() == "19.14 ± 0.84"
    assert is_bold(published[0]["MAE_cw", "bs+ch", "sigma+"])
    assert not is_bold(published[0]["MAE_cw", "bs+ch+div", "sigma+"])
    assert published[1]["all", "teacher", "radius variance RMSE"].get_text() == "52.66 ± 1.56"
    for box in page.select("div.published"):
        assert "on other data" in box.get_text()


def test_speed_table_gives_times_and_ratio(study: Study) -> None:
    table = write_results(study)["speed"].set_index(["model", "batch"])["ms_per_sample"]
    cells = results(read_page(study))[4]
    for batch in study.speed.batches:
        teacher, student = table["teacher", batch], table["student", batch]
        assert cells["cpu", str(batch), "teacher"].get_text() == f"{teacher:.3g}"
        assert (
            cells["cpu", str(batch), "teacher / student"].get_text() == f"{teacher / student:.3g}"
        )


def sentences(markdown: str) -> list[str]:
    return [re.sub(r"[*`]", "", line.removeprefix("- ")) for line in markdown.splitlines()]


def test_findings_are_those_of_the_tables(study: Study) -> None:
    tables = write_results(study)
    page = read_page(study)
    expected = [
        ablation_findings(tables["table1"], tables["baselines"], tables["relative_changes"]),
        shape_findings(tables["table2"]),
        speed_findings(tables["speed"]),
        engine_findings(tables["training_speed"]),
    ]
    boxes = page.select("div.findings")
    for markdown, box in zip(expected, boxes, strict=True):
        assert [item.get_text() for item in box.select("li")] == sentences(markdown)


def test_what_speed_bought_is_added_up(study: Study) -> None:
    text = engine_findings(write_results(study)["training_speed"])
    # 3.6 million at 1 ms and 7.2 million at 3 ms are 1 + 6 hours; in plain torch 4 + 18
    assert "take 7 hours, and in plain torch they would take 22." in text
    assert "would have seen 32% of" in text
    assert "ms, 3 times as long" in text


def test_what_the_reference_leaves_out_is_told(study: Study) -> None:
    write_results(study)
    text = " ".join(read_page(study).get_text().split())
    assert "31 of 400 on n, 32 of 400 on lambda" in text
    assert "35 of 400 on all." in text


@pytest.mark.parametrize("caps", [{}, {"proton": 100}])
def test_sizes_and_caps_of_the_data_sets_are_told(study: Study, caps: dict[str, int]) -> None:
    write_results(study)
    page = read_page(study)
    rows = [[cell.get_text() for cell in row.select("th, td")] for row in page.select("tr")]
    assert ["n", "1000 (100)", "1001 (101)", "1002 (102)"] in rows
    assert ["all", "1012 (112)", "1013 (113)", "1014 (114)"] in rows
    text = " ".join(page.get_text().split())
    assert "Caps, kept" in text
    assert f"all at {study.data.max_responses['all']} responses." in text
    whole = study.data.model_copy(update={"max_responses": caps})
    (uncapped,) = (
        paragraph.get_text()
        for paragraph in read_page(study.model_copy(update={"data": whole})).select("p")
        if paragraph.get_text().startswith("The data.")
    )
    assert "Caps" not in uncapped


def test_figures_that_there_are_are_shown(study: Study) -> None:
    write_results(study)
    assert not read_page(study).select("img")
    path = study.reports / "figures" / "03_samples-all-bs+ch+div.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    (image,) = read_page(study).select("img")
    assert image["src"] == "figures/03_samples-all-bs%2Bch%2Bdiv.png"
    assert "student bs+ch+div generated" in read_page(study).select("figcaption")[0].get_text()


def test_stages_link_to_their_pages_with_their_times(study: Study) -> None:
    write_results(study)
    page = read_page(study)
    links = {a.get_text(): a["href"] for a in page.select("td a[href^='html/']")}
    assert list(links) == notebook_names(study)
    assert links["06_speed"] == "html/06_speed.html"
    # a plus sign in a path may not be read as a space
    name = "03_student_distillation-sigma+-bs+ch+div"
    assert links[name] == f"html/{name.replace('+', '%2B')}.html"
    text = page.get_text()
    assert "About 06_speed & <more>" in text
    assert "04 March 2026, 22:50 UTC" in text
    last = timedelta(minutes=len(notebook_names(study)) - 1, seconds=90)
    assert f"{last} (h:mm:ss)" in text
    assert "0:01:30" in text


def test_every_parameter_is_shown_and_the_simulation_is_named(study: Study) -> None:
    write_results(study)
    page = read_page(study)
    shown = {row.select("td")[0].get_text() for row in page.select("table.values tr")}
    for key, value in study.model_dump(exclude={"name"}).items():
        assert shown >= (set(value) if isinstance(value, dict) else {key})
    assert "not GEANT4" in page.get_text()


def test_own_data_are_not_called_a_simulation(study: Study) -> None:
    write_results(study)
    data = study.data.model_copy(update={"file": ["my_particles.npz", "my_responses.npz"]})
    text = read_page(study.model_copy(update={"data": data})).get_text()
    assert "my_particles.npz, my_responses.npz" in text
    assert "not GEANT4" not in text


def test_text_from_outside_is_escaped(study: Study) -> None:
    write_results(study)
    page = build_index(study, "params/<script>alert(1)</script>.yaml").read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


# --- Stages that are not done -------------------------------------------------------------------


def fail(study: Study, name: str, error: str = "step 12: the term latent is nan") -> Path:
    """The stage fails instead: its notebook and its page are gone, the failed one is kept."""
    done = study.reports / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(done, as_version=4)
    output = nbformat.v4.new_output(
        "error",
        ename="DivergenceError",
        evalue=error,
        traceback=["\x1b[31mTraceback\x1b[0m", "\x1b[38;5;28min train()\x1b[0m"],
    )
    notebook.cells.append(nbformat.v4.new_code_cell("train()", outputs=[output]))
    failed = done.with_name(f"{name}.failed.ipynb")
    nbformat.write(notebook, failed)
    forget(study, name)
    return failed


def forget(study: Study, name: str) -> None:
    (study.reports / "notebooks" / f"{name}.ipynb").unlink()
    (study.reports / "html" / f"{name}.html").unlink()


def row_of(page: BeautifulSoup, name: str) -> Tag:
    row = page.find(id=f"stage-{name}")
    assert isinstance(row, Tag)
    return row


def state_of(page: BeautifulSoup, name: str) -> str:
    (cell,) = row_of(page, name).select("td.state")
    return cell.get_text()


def below(page: BeautifulSoup, name: str) -> Tag:
    """What the page says below a stage that did not succeed."""
    row = row_of(page, name).find_next_sibling("tr")
    assert isinstance(row, Tag)
    assert "failure" in row.get_attribute_list("class")
    return row


def check_links(study: Study, page: BeautifulSoup) -> None:
    """Every link leads somewhere."""
    for link in [str(a["href"]) for a in page.select("a")]:
        if link.startswith("#"):
            assert page.find(id=link[1:]) is not None, link
        else:
            assert (study.reports / unquote(link)).is_file(), link


def test_page_of_a_study_that_is_done_has_no_warnings(study: Study) -> None:
    write_results(study)
    page = read_page(study)
    assert page.select(".banner, .missing, .warning, .failure") == []
    assert {state_of(page, name) for name in notebook_names(study)} == {"done"}
    assert unfinished_stages(study) == []
    check_links(study, page)


def test_nothing_run_yet_is_told(study: Study) -> None:
    page = read_page(study)
    total = len(notebook_names(study))
    assert f"{total} of {total} stages are not done" in page.select(".banner")[0].get_text()
    assert {state_of(page, name) for name in notebook_names(study)} == {"not run"}
    # known from the notebooks themselves
    assert "Training a teacher" in row_of(page, "02_teacher_training-n").get_text()
    assert "not begun" in page.select("header")[0].get_text()
    assert unfinished_stages(study) == notebook_names(study)
    check_links(study, page)


def test_stage_that_failed_shows_its_error_and_leads_to_its_page(study: Study) -> None:
    write_results(study)
    name = "03_student_distillation-sigma+-bs+ch+div"
    failed = fail(study, name)
    page = read_page(study)
    # without a page, the file is named
    assert below(page, name).select("a") == []
    assert f"notebooks/{failed.name}" in below(page, name).get_text()

    assert [path.name for path in failed_pages(study)] == [f"{name}.failed.html"]
    page = read_page(study)
    (banner,) = page.select(".banner")
    assert f"1 of {len(notebook_names(study))} stages are not done" in banner.get_text()
    (link,) = banner.select("a")
    assert link["href"] == f"#stage-{name}"
    assert state_of(page, name) == "failed"
    failure = below(page, name)
    error = "Cell 2: DivergenceError: step 12: the term latent is nan"
    assert failure.select("strong")[0].get_text() == error
    assert failure.select("details pre")[0].get_text() == "Traceback\nin train()"
    assert "\x1b" not in page.get_text()
    hrefs = {str(a["href"]) for a in failure.select("a")}
    assert hrefs == {f"html/{name.replace('+', '%2B')}.failed.html"}
    check_links(study, page)
    # nothing else has suffered
    assert len(results(page)) == 5
    assert page.select(".missing") == []


def test_page_of_a_failed_notebook_shows_it_and_goes_with_it(study: Study) -> None:
    write_results(study)
    failed = fail(study, "04_ablations")
    notebook = nbformat.read(failed, as_version=4)
    outputs = [nbformat.v4.new_output("stream", text=f"epoch {i}\r") for i in range(3)]
    notebook.cells.insert(1, nbformat.v4.new_code_cell("train()", outputs=outputs))
    nbformat.write(notebook, failed)
    (path,) = failed_pages(study)
    text = BeautifulSoup(path.read_text("utf-8"), "html.parser").get_text()
    assert "in train()" in text
    assert "About 04_ablations" in text
    # of a progress bar the last state alone
    assert "epoch 2" in text
    assert "epoch 1" not in text
    failed.unlink()
    assert failed_pages(study) == []
    assert not path.exists()
    # the pages of what is done are not touched
    assert (study.reports / "html" / "06_speed.html").is_file()


@pytest.mark.parametrize(
    ("tables", "stage", "left", "is_stale"),
    [
        (("table1", "baselines", "datasets", "relative_changes"), "04_ablations", 4, False),
        (("reference_left_out",), "04_ablations", 5, True),
        (("relative_changes",), "04_ablations", 5, True),
        (("table2",), "05_shower_shapes", 4, False),
        (("speed",), "06_speed", 4, True),
        (("speed", "training_speed"), "06_speed", 4, False),
    ],
)
def test_missing_table_is_told_with_the_stage_that_makes_it(
    study: Study, tables: tuple[str, ...], stage: str, left: int, is_stale: bool
) -> None:
    write_results(study)
    for name in tables:
        (study.reports / "tables" / f"{name}.csv").unlink()
    forget(study, stage)
    page = read_page(study)
    assert len(results(page)) == left
    notes = [note.get_text() for note in page.select(".missing")]
    missing = [note for note in notes if note.startswith("Not there")]
    if tables != ("reference_left_out",):
        assert missing
    assert all(f"{stage}, which makes this, has not run" in note for note in notes)
    # what an earlier run has left is shown, and said to be that
    stale = [note for note in notes if note.startswith("From an earlier run")]
    assert bool(stale) == is_stale
    check_links(study, page)


def test_table_that_is_gone_though_its_stage_is_done_is_told(study: Study) -> None:
    write_results(study)
    (study.reports / "tables" / "table2.csv").unlink()
    notes = [note.get_text() for note in read_page(study).select(".missing")]
    text = "Not there: 05_shower_shapes, which makes this, is done, but its table is gone."
    assert notes == [text]


def test_notebook_that_was_killed_is_stopped_and_not_failed(study: Study) -> None:
    write_results(study)
    killed, cut_off, left = "04_ablations", "05_shower_shapes", "06_speed"
    notebooks = study.reports / "notebooks"
    for name in (killed, cut_off, left):
        shutil.copy(notebooks / f"{name}.ipynb", notebooks / f"{name}.failed.ipynb")
        forget(study, name)
    whole = (notebooks / f"{cut_off}.failed.ipynb").read_bytes()
    (notebooks / f"{cut_off}.failed.ipynb").write_bytes(whole[: len(whole) // 2])
    # with the machine the grid went down, too
    (notebooks / f"{left}.failed.ipynb").rename(notebooks / f"{left}.running.ipynb")
    log = study.reports / "logs" / f"{killed}.log"
    log.parent.mkdir()
    log.write_text("Killed", "utf-8")
    assert {path.stem for path in failed_pages(study)} == {f"{killed}.failed"}
    page = read_page(study)
    assert {state_of(page, name) for name in (killed, cut_off, left)} == {"stopped"}
    assert "without an error of its own" in below(page, killed).get_text()
    assert f"logs/{killed}.log" in {a["href"] for a in below(page, killed).select("a")}
    assert "not written to the end" in below(page, cut_off).get_text()
    assert f"{left}.running.ipynb" in below(page, left).get_text()
    assert unfinished_stages(study) == [killed, cut_off, left]
    assert cut_off in describe_failures(study)
    check_links(study, page)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"nbformat": 4, "cells": []}', b"\xff"])
def test_failed_notebook_that_is_none_stops_nothing(study: Study, content: bytes) -> None:
    write_results(study)
    fail(study, "04_ablations").write_bytes(content)
    assert failed_pages(study) == []
    assert state_of(read_page(study), "04_ablations") == "stopped"


# --- Records ------------------------------------------------------------------------------------

DATA = {
    "files": [{"name": "mine.root", "size": 12_345_678, "sha256": "0123456789abcdef" * 4}],
    "dropped": {"photon count below 0": 17, "no PDG code": 4},
    "rows": 5000,
}


def write_records(study: Study, **changes: Any) -> None:
    """A record of every stage; ``changes`` are made to that of the last."""
    names = notebook_names(study)
    records.start(study, names[0]).finish()
    values = json.loads(record_file(study, names[0]).read_text("utf-8")) | {
        "host": "node7",
        "wall_seconds": 90.0,
        "peak_memory_mb": 1234.4,
        "git": {"commit": "c0ffee" * 6 + "1234", "dirty": False},
        "data": DATA,
    }
    for name in names:
        content = values | {"stage": name} | (changes if name == names[-1] else {})
        record_file(study, name).write_text(json.dumps(content), "utf-8")


def record_file(study: Study, name: str) -> Path:
    return study.reports / "records" / f"{name}.json"


def values_of(page: BeautifulSoup) -> dict[str, str]:
    """The tables of names and values on the page."""
    rows = [row.select("td") for row in page.select("table.values tr")]
    return {row[0].get_text(): row[1].get_text() for row in rows}


def test_records_are_shown(study: Study) -> None:
    write_results(study)
    device = {"system": "Linux", "cpu": "Xeon", "cores": 64, "threads": 8}
    write_records(
        study,
        facts={"resumed_from_step": 120},
        attempts=3,
        slurm_job="4711",
        peak_cuda_memory_mb=2048.0,
        device={**device, "gpu": "H100", "gpus": 2},
    )
    page = read_page(study)
    row = [cell.get_text() for cell in row_of(page, "04_ablations").select("td")]
    threads = torch.get_num_threads()
    assert row[3:5] == ["0:01:30", "1 234 MB"]
    assert row[5] == f"node7, CPU, {threads} thread{'s' if threads > 1 else ''}"
    assert row[6] == "no"
    row = [cell.get_text() for cell in row_of(page, "06_speed").select("td")]
    assert row[4:] == [
        "1 234 MBGPU 2 048 MB",
        "node7, H100, Slurm job 4711",
        "at step 120, attempt 3",
    ]
    shown = values_of(page)
    assert shown["seed"] == str(study.seed)
    assert shown["git commit"] == "c0ffee" * 6 + "1234"
    assert shown["study file"] == "small.yaml"
    assert "node7: 2 x H100, Xeon, 64 CPU cores, Linux" in shown["machine"]
    assert shown["torch"] == version("torch")
    assert shown["data: rows"] == "5000"
    (code,) = page.select("#data-files code")
    assert code["title"] == "0123456789abcdef" * 4
    assert code.get_text() == "0123456789ab…"
    assert "12 MB" in page.select("#data-files")[0].get_text()
    (warning,) = page.select(".warning")
    assert "17 (photon count below 0), 4 (no PDG code)" in " ".join(warning.get_text().split())
    # where the data are described, not at the end
    assert warning.find_previous("h2").get_text() == "What is compared with what"  # type: ignore[union-attr]
    check_links(study, page)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"git": {"commit": "c0ffee" * 6 + "1234", "dirty": True}}, "git commit"),
        ({"git": None}, "git commit"),
        ({"versions": {"torch": "1.0"}}, "version of torch"),
        ({"seed": 1}, "seed"),
        ({"data": {"files": []}}, "data"),
    ],
)
def test_disagreement_of_records_is_told(study: Study, changes: dict[str, Any], what: str) -> None:
    write_results(study)
    write_records(study)
    before = {warning.get_text() for warning in read_page(study).select(".warning")}
    write_records(study, **changes)
    found = [w.get_text() for w in read_page(study).select(".warning")]
    (warning, *_) = [text for text in found if f"same {what}:" in text]
    assert warning not in before
    others = len(notebook_names(study)) - 1
    assert f" in {others} stages; " in warning
    assert warning.endswith(" in 06_speed.")


def test_stage_whose_process_is_gone_is_stopped(study: Study) -> None:
    write_results(study)
    changes = {"status": "running", "host": socket.gethostname(), "pid": 2**22 + 1}
    write_records(study, **changes)
    forget(study, "06_speed")
    page = read_page(study)
    assert state_of(page, "06_speed") == "stopped"
    assert "its process is gone" in below(page, "06_speed").get_text()
    write_records(study, **changes | {"pid": os.getpid()})
    page = read_page(study)
    assert state_of(page, "06_speed") == "running"
    assert unfinished_stages(study) == ["06_speed"]
    assert "1 of" in page.select(".banner")[0].get_text()
    # a notebook that is there counts more than a run by hand that was stopped
    write_notebook(study, "06_speed", 0)
    write_records(study, **changes)
    assert state_of(read_page(study), "06_speed") == "done"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b'{"stage": "<b>'])
def test_corrupt_record_is_a_note_and_no_more(study: Study, content: bytes) -> None:
    write_results(study)
    write_records(study)
    record_file(study, "04_ablations").write_bytes(content)
    page = read_page(study)
    (note,) = [w.get_text() for w in page.select(".warning") if "record" in w.get_text()]
    assert str(record_file(study, "04_ablations")) in note
    assert state_of(page, "04_ablations") == "done"
    assert values_of(page)["seed"] == str(study.seed)


@pytest.mark.parametrize(
    "data",
    [{"files": "x", "dropped": 3}, {"files": [1, {}], "dropped": []}, {"else": [{"a": None}]}],
)
def test_data_of_another_form_do_not_break_the_page(study: Study, data: dict[str, Any]) -> None:
    write_results(study)
    write_records(study)
    for name in notebook_names(study):
        values = json.loads(record_file(study, name).read_text("utf-8"))
        record_file(study, name).write_text(json.dumps(values | {"data": data}), "utf-8")
    assert state_of(read_page(study), "06_speed") == "done"


# --- Results of other parameters and of earlier runs --------------------------------------------


def with_learning_rate(study: Study, value: float) -> Study:
    teacher = study.teacher.model_copy(update={"learning_rate": value})
    return study.model_copy(update={"teacher": teacher})


def states(study: Study) -> dict[str, str]:
    page = read_page(study)
    return {name: state_of(page, name) for name in notebook_names(study)}


def test_results_of_other_parameters_are_not_called_done(study: Study) -> None:
    write_results(study)
    write_records(study)
    (study.reports / "figures").mkdir()
    for name in ("01_spectra", "06_speed"):
        (study.reports / "figures" / f"{name}.png").write_bytes(b"")
    assert unfinished_stages(study) == []
    assert read_page(study).select(".banner, .missing, .failure, figcaption strong") == []

    changed = with_learning_rate(study, 1e30)
    page = read_page(changed)
    names = notebook_names(study)
    assert state_of(page, names[0]) == "done"
    assert {state_of(page, name) for name in names[1:]} == {"of other parameters"}
    assert unfinished_stages(changed) == names[1:]
    (banner,) = page.select(".banner")
    assert f"{len(names) - 1} of {len(names)} stages are not done" in banner.get_text()
    assert "teacher.learning_rate" in banner.get_text()
    assert "teacher.learning_rate" in below(page, "04_ablations").get_text()
    # every table, and what is said of it
    notes = [note for note in page.select(".missing") if "From an earlier run" in note.get_text()]
    assert all("was run with other parameters" in note.get_text() for note in notes)
    under = [note.find_previous(["h2", "h3"]).get_text() for note in notes]  # type: ignore[union-attr]
    assert under == [
        "What the numbers say",
        "What is compared with what",
        "This study",
        "Position and shape of the showers (Table 2)",
        "Speed of sampling",
        "Speed of training",
    ]
    first, last = page.select("figcaption")
    assert "earlier run" not in first.get_text()
    assert "From an earlier run: 06_speed was run with other parameters" in last.get_text()
    check_links(changed, page)


def test_what_is_made_from_a_stage_that_is_not_done_is_outdated(study: Study) -> None:
    write_results(study)
    write_records(study)
    fail(study, "02_teacher_training-n")
    found = states(study)
    for name, state in found.items():
        outdated = name.startswith(("03_student_distillation-n-", "04", "05", "06"))
        expected = "failed" if name == "02_teacher_training-n" else "done"
        assert state == ("outdated" if outdated else expected), name
    page = read_page(study)
    text = below(page, "03_student_distillation-n-bs").get_text()
    assert "02_teacher_training-n not done" in text
    assert len(page.select(".missing")) == 6
    # the last three need each other for nothing
    write_notebook(study, "02_teacher_training-n", 1)
    (study.reports / "notebooks" / "02_teacher_training-n.failed.ipynb").unlink()
    forget(study, "04_ablations")
    assert unfinished_stages(study) == ["04_ablations"]
    fail(study, "01_data_exploration")
    assert set(states(study).values()) == {"failed", "outdated", "not run"}


def test_failure_is_not_hidden_by_other_parameters_nor_by_missing_records(study: Study) -> None:
    write_results(study)
    write_records(study)
    fail(study, "02_teacher_training-all")
    changed = with_learning_rate(study, 1e30)
    assert states(changed)["02_teacher_training-all"] == "failed"
    assert states(changed)["02_teacher_training-n"] == "of other parameters"
    # results that are older than records stay what they were
    shutil.rmtree(study.reports / "records")
    found = states(changed)
    assert found.pop("02_teacher_training-all") == "failed"
    assert set(found.values()) == {"done"}


def test_run_by_hand_that_was_stopped_says_nothing_of_the_notebook(study: Study) -> None:
    write_results(study)
    write_records(study, status="running", host=socket.gethostname(), pid=2**22 + 1)
    assert states(with_learning_rate(study, 1e30))["06_speed"] == "done"


def test_failure_of_an_earlier_run_is_not_that_of_this_one(study: Study) -> None:
    write_results(study)
    write_records(study)
    student, other = "03_student_distillation-n-bs", "03_student_distillation-all-bs"
    fail(study, student, "of the run before")
    fail(study, other, "of this run")
    assert "of the run before" in describe_failures(study)
    fail(study, "02_teacher_training-n", "of the teacher")
    notebooks = study.reports / "notebooks"
    (notebooks / "06_speed.ipynb").rename(notebooks / "06_speed.failed.ipynb")
    page = read_page(study)
    assert state_of(page, student) == "failed in an earlier run"
    assert state_of(page, "06_speed") == "stopped in an earlier run"
    assert "of the run before" in below(page, student).get_text()
    assert state_of(page, other) == "failed"
    text = describe_failures(study)
    assert "of the teacher" in text
    assert "of this run" in text
    assert "of the run before" not in text
    assert "06_speed" not in text
    assert {student, "06_speed"} < set(unfinished_stages(study))
    check_links(study, page)

    # a stage that it needs ran to its end, if not with what the page would have: this one began
    write_notebook(study, "02_teacher_training-n", 1)
    (notebooks / "02_teacher_training-n.failed.ipynb").unlink()
    assert "of the run before" in describe_failures(with_learning_rate(study, 1e30))


def test_stage_that_a_cluster_killed_is_stopped_when_the_grid_is_at_its_end(study: Study) -> None:
    write_results(study)
    name = "06_speed"
    write_records(study, status="running", host="node7", slurm_job="4711")
    notebook = study.reports / "notebooks" / f"{name}.ipynb"
    notebook.rename(notebook.with_name(f"{name}.running.ipynb"))
    (study.reports / "html" / f"{name}.html").unlink()
    log = study.reports / "logs" / f"{name}.log"
    log.parent.mkdir()
    log.write_text("oom_kill", "utf-8")
    assert state_of(read_page(study), name) == "running"
    assert describe_failures(study) == ""

    index = build_index(study, "params/small.yaml", ended=True)
    page = BeautifulSoup(index.read_text("utf-8"), "html.parser")
    assert state_of(page, name) == "stopped"
    text = below(page, name).get_text()
    assert f"notebooks/{name}.running.ipynb" in text
    assert "on node7" in text
    assert [a["href"] for a in below(page, name).select("a")] == [f"logs/{name}.log"]
    check_links(study, page)
    assert describe_failures(study, ended=True).splitlines() == [
        f"{name} stopped without an error of its own; see {log}",
        f"The notebook as far as it came: {notebook.with_name(f'{name}.running.ipynb')}",
    ]
    # also where not even a notebook is left
    notebook.with_name(f"{name}.running.ipynb").unlink()
    assert describe_failures(study, ended=True).splitlines() == [
        f"{name} stopped without an error of its own; see {log}"
    ]


# --- Text from outside --------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


def is_harmless(page: BeautifulSoup) -> bool:
    """Whether nothing of :data:`HOSTILE` has become a tag, an attribute or a link."""
    scripts = [tag for tag in page.select("script") if "alert(" in tag.get_text()]
    handlers = [tag for tag in page.find_all(True) if "onerror" in tag.attrs]
    links = [a for a in page.select("a[href]") if str(a["href"]).startswith("javascript:")]
    return not [*scripts, *handlers, *links]


def test_hostile_names_are_text_in_the_page(study: Study) -> None:
    write_results(study)
    write_records(
        study,
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
    for name in notebook_names(study)[:-1]:
        record_file(study, name).unlink()
    fail(study, "04_ablations", HOSTILE)
    (study.reports / "tables" / "a<b>&#.csv").write_text("", "utf-8")
    data = study.data.model_copy(update={"file": [f"{HOSTILE}.npz", "javascript:alert(3).npz"]})
    index = build_index(study.model_copy(update={"data": data}), f"params/{HOSTILE}.yaml")
    page = BeautifulSoup(index.read_text("utf-8"), "html.parser")
    assert is_harmless(page)
    assert page.select("script") == []
    text = page.get_text()
    for where in (f"params/{HOSTILE}.yaml", f"{HOSTILE}.npz", f"DivergenceError: {HOSTILE}"):
        assert where in text
    assert text.count(HOSTILE) >= 10
    check_links(study, page)
    (failed,) = failed_pages(study)
    assert is_harmless(BeautifulSoup(failed.read_text("utf-8"), "html.parser"))


def test_hostile_names_in_a_table_are_text_among_the_findings(study: Study) -> None:
    write_results(study)
    path = study.reports / "tables" / "speed.csv"
    path.write_text(
        path.read_text("utf-8").replace(",cpu,", ",<script>alert(1)</script>,"), "utf-8"
    )
    page = read_page(study)
    assert is_harmless(page)
    assert any("On <script>alert(1)</script>" in box.get_text() for box in page.select(".findings"))


def test_hostile_file_name_is_text_in_the_page_of_notebook_01(tmp_path: Path) -> None:
    source = nbformat.read(ROOT / "notebooks" / "01_data_exploration.ipynb", as_version=4)
    (cell,) = [cell for cell in source.cells if "own_file =" in cell.source]
    # a file may have any name but one with a slash
    hostile = f"{HOSTILE.replace('/', '|')}[link](javascript:alert(3)).npz"
    report = {
        "files": [{"name": hostile, "size": 1, "sha256": hostile}],
        "read": 2,
        "dropped": {hostile: 1},
        "faint": 0,
        "guessed_species": True,
    }
    setting = (
        "from types import SimpleNamespace\n"
        "from IPython.display import Markdown, display\n"
        f"config = SimpleNamespace(data=SimpleNamespace(file={hostile!r}))\n"
        f"data_report = lambda _: {report!r}"
    )
    notebook = nbformat.v4.new_notebook(metadata=source.metadata)
    notebook.cells = [nbformat.v4.new_code_cell(text) for text in (setting, cell.source)]
    path = tmp_path / "01_data_exploration.ipynb"
    nbformat.write(notebook, path)
    papermill.execute_notebook(path, path, progress_bar=False, log_output=False)
    body, _ = HTMLExporter().from_filename(str(path))
    page = BeautifulSoup(body, "html.parser")
    assert is_harmless(page)
    assert page.get_text().count(hostile) == 3, "as name, checksum, reason; quoted in the setting"


# --- Command line -------------------------------------------------------------------------------


def test_command_says_whether_all_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params").mkdir()
    shutil.copy(ROOT / "params" / "small.yaml", tmp_path / "params" / "small.yaml")
    monkeypatch.chdir(tmp_path)
    study = load_study("params/small.yaml")
    write_results(study)
    monkeypatch.setattr(sys, "argv", ["reports", "params/small.yaml"])
    assert main() == 0
    assert capsys.readouterr().out.splitlines() == [str(study.reports / "index.html")]
    fail(study, "06_speed")
    failed = subprocess.run(
        [sys.executable, "-m", "zdc_nb.study.report", "params/small.yaml"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (failed.returncode, failed.stderr) == (1, "")
    assert failed.stdout.splitlines() == [
        str(study.reports / "index.html"),
        f"1 of {len(notebook_names(study))} stages are not done: 06_speed",
    ]
    assert (study.reports / "html" / "06_speed.failed.html").is_file()


def test_failure_is_described_with_the_notebooks_own_error(study: Study) -> None:
    assert describe_failures(study) == ""
    write_results(study)
    name = "02_teacher_training-sigma+"
    failed = fail(study, name)
    # one that this study no longer has
    shutil.copy(failed, failed.with_name("02_teacher_training-proton.failed.ipynb"))
    text = describe_failures(study)
    assert "proton" not in text
    assert text.startswith(f"{name} failed in cell 2\nTraceback\nin train()")
    assert "DivergenceError: step 12: the term latent is nan" in text
    assert str(failed) in text
