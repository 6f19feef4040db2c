"""The index page says what the tables say, and nothing is lost or invented on the way."""

import itertools
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup, Tag

from zdc_nb.evaluation import (
    BASELINES,
    METRICS,
    QUANTITIES,
    relative_changes,
    table1,
    table2,
)
from zdc_nb.findings import (
    ablation_findings,
    engine_findings,
    shape_findings,
    speed_findings,
)
from zdc_nb.params import SETUPS, Study, load_study, notebook_names
from zdc_nb.reports import ReportError, build_index, describe_failures

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


@pytest.mark.parametrize("missing", ["tables/table2.csv", "notebooks/04_ablations.ipynb"])
def test_what_is_missing_is_named(study: Study, missing: str) -> None:
    write_results(study)
    (study.reports / missing).unlink()
    with pytest.raises(ReportError, match=missing):
        build_index(study, "params/small.yaml")
    assert not (study.reports / "index.html").exists()


def test_failure_is_described_with_the_notebooks_own_error(study: Study) -> None:
    assert describe_failures(study) == ""
    write_results(study)
    name = "02_teacher_training-sigma+"
    path = study.reports / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    error = nbformat.v4.new_output(
        "error",
        ename="DivergenceError",
        evalue="step 12: the term latent is nan",
        traceback=["\x1b[31mTraceback\x1b[0m", "in train()"],
    )
    notebook.cells.append(nbformat.v4.new_code_cell("train()", outputs=[error]))
    failed = path.with_name(f"{name}.failed.ipynb")
    nbformat.write(notebook, failed)
    # one that this study no longer has
    nbformat.write(notebook, path.with_name("02_teacher_training-proton.failed.ipynb"))
    text = describe_failures(study)
    assert "proton" not in text
    assert text.startswith(f"{name} failed in cell 2\nTraceback\nin train()")
    assert "DivergenceError: step 12: the term latent is nan" in text
    assert str(failed) in text
