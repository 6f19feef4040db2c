"""Pages of notebooks: all that a notebook shows is there, with one navigation, and needs no network."""

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.browser import NO_BROWSER, find_browser, open_browser
from zdc_nb.data.figures import save_figure
from zdc_nb.params import Study, load_study
from zdc_nb.study.pages import main, markdown_html, notebook_page, write_pages
from zdc_nb.study.progress import states_of
from zdc_nb.study.report import build_report
from zdc_nb.study.stages import stages_of

ROOT = Path(__file__).parents[1]
FORMULA = r"$$\mathcal{L} = \frac{1}{N} \sum_{i<j} \lVert x_i - \hat{x}_j \rVert^2$$"


def code(source: str, *outputs: Any) -> Any:
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=1)


def figure_output(folder: Path, text: str) -> Any:
    """A figure as a notebook keeps one that :func:`save_figure` gave it."""
    figure = Figure(figsize=(8, 4))
    figure.subplots().plot([0, 1])
    image = save_figure(figure, folder / "figure.png", text)
    formatter = InteractiveShell.instance().display_formatter
    assert formatter is not None
    data, metadata = formatter.format(image)
    return nbformat.v4.new_output("execute_result", data, metadata=metadata, execution_count=1)


def table_output() -> Any:
    values = [10.0, 9.5, -1.0, 0.5, 100.0]
    table = pd.DataFrame({"model": [f"m{k}" for k in range(5)], "WS": values})
    data = {"text/html": table.to_html(classes="dataframe"), "text/plain": "a table"}
    return nbformat.v4.new_output("execute_result", data, execution_count=1)


def notebook(folder: Path) -> Any:
    return nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(f"# What?\n\nWith $\\alpha < 1$ and\n\n{FORMULA}"),
            code("train(1 < 2)", nbformat.v4.new_output("stream", text="epoch 1\repoch 2 <b>\n")),
            code("show()", figure_output(folder, 'Errors "by" <model>: less is better.')),
            code("table", table_output()),
            code(
                "say()",
                nbformat.v4.new_output("display_data", {"text/markdown": "- **said** $x^2$"}),
            ),
        ]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The smoke study with a notebook of everything for each stage, and its report."""
    folder = tmp_path_factory.mktemp("made")
    study = load_study(ROOT / "params" / "smoke.yaml")
    paths = {"reports": str(folder / "reports"), "artifacts": str(folder / "artifacts")}
    study = study.model_copy(update={"paths": study.paths.model_copy(update=paths)})
    for stage in stages_of(study):
        stage.executed.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(folder), stage.executed)
    (study.reports / "figures").mkdir()
    for name in ("08_samples-all", "12_models"):
        shutil.copy(folder / "figure.png", study.reports / "figures" / f"{name}.png")
    build_report(study, "params/smoke.yaml")
    return study


def page_of(study: Study, name: str) -> BeautifulSoup:
    return BeautifulSoup(
        (study.reports / "html" / f"{name}.html").read_text("utf-8"), "html.parser"
    )


def pages_of(study: Study) -> Iterator[tuple[Path, BeautifulSoup]]:
    for path in (study.reports / "index.html", *(study.reports / "html").glob("*.html")):
        yield path, BeautifulSoup(path.read_text("utf-8"), "html.parser")


def test_formulas_are_shown_without_a_network() -> None:
    page = BeautifulSoup(
        markdown_html(f"With $\\alpha < 1$:\n\n{FORMULA}\n\nat $3 each"), "html.parser"
    )
    inline, block = page.select("math")
    assert inline["display"] == "inline"
    assert block["display"] == "block"
    assert inline.get_text() == "\N{GREEK SMALL LETTER ALPHA}<1"
    assert block.select("mfrac")
    assert "$$" not in page.get_text()
    assert "\\" not in page.get_text()
    assert "at $3 each" in page.get_text()


def test_formulas_of_all_notebooks_are_known() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                page = BeautifulSoup(markdown_html(cell.source), "html.parser")
                for hidden in page.select("code"):
                    hidden.extract()
                assert "$" not in page.get_text(), path.name
                assert not re.search(r"\\[a-z]", page.get_text()), path.name


def test_a_formula_that_nobody_knows_can_be_read() -> None:
    assert r"<code>\left( x</code>" in markdown_html(r"$\left( x$")


def test_a_page_shows_all_that_its_notebook_does(made: Study) -> None:
    page = page_of(made, "11_speed")
    folded = page.select("details.code")
    assert [part.get_text(" ", strip=True).startswith("Code") for part in folded] == [True] * 4
    assert not any("open" in part.attrs for part in folded)
    assert "train(1 < 2)" in "".join(folded[0].get_text().split("Code\n"))
    (printed,) = page.select("pre.printed")
    assert printed.get_text().strip() == "epoch 2 <b>"
    (image,) = page.select("figure img")
    assert str(image["src"]).startswith("data:image/png;base64,")
    assert image["alt"] == 'Errors "by" <model>: less is better.'
    assert page.select("figcaption")[0].get_text() == image["alt"]
    assert page.select("table.dataframe td")[0].get_text() == "m0"
    assert page.select(".findings strong")[0].get_text() == "said"


def test_every_page_leads_to_every_other_and_on(made: Study) -> None:
    names = [stage.name for stage in stages_of(made)]
    assert {path.stem for path in (made.reports / "html").iterdir()} == set(names)
    for path, page in pages_of(made):
        targets = [
            (path.parent / unquote(str(a["href"]))).resolve() for a in page.select(".stages-nav a")
        ]
        assert targets == [
            made.reports / "index.html",
            *(made.reports / "html" / f"{n}.html" for n in names),
        ]
        (current,) = page.select(".stages-nav [aria-current=page]")
        assert (path.parent / unquote(str(current["href"]))).resolve() == path
    # forwards from the first, backwards from the last
    for rel, order in (("next", names), ("prev", names[::-1])):
        for name, other in pairwise(order):
            (link,) = page_of(made, name).select(f"a[rel={rel}]")
            assert unquote(str(link["href"])) == f"../html/{other}.html"
        assert page_of(made, order[-1]).select(f"a[rel={rel}]") == []


def test_pages_need_nothing_but_themselves(made: Study) -> None:
    for path, page in pages_of(made):
        assert path.stat().st_size < 3_000_000
        assert page.select("link, script[src], iframe, object") == []
        assert "@import" not in path.read_text("utf-8")
        for image in page.select("img"):
            source = str(image["src"])
            assert source.startswith("data:") or (path.parent / source).is_file()


def test_a_page_is_made_again_where_its_notebook_or_the_others_changed(made: Study) -> None:
    def times() -> dict[str, int]:
        return {
            page.name: page.stat().st_mtime_ns for page in write_pages(made, states_of(made)[0])
        }

    before = times()
    assert times() == before
    changed = stages_of(made)[-1].executed
    kept = changed.read_bytes()
    try:
        found = nbformat.reads(kept.decode(), as_version=4)
        found.cells[0].source = "# Something else"
        nbformat.write(found, changed)
        after = times()
        assert {name for name in before if before[name] != after[name]} == {f"{changed.stem}.html"}
        # one page less: all others lead to it no more
        changed.unlink()
        rest = times()
        assert set(before) - set(rest) == {f"{changed.stem}.html"}
        assert all(after[name] != rest[name] for name in rest)
        assert not (made.reports / "html" / f"{changed.stem}.html").exists()
    finally:
        changed.write_bytes(kept)
        times()


def test_a_notebook_of_no_study_has_a_page_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "17_benchmark.ipynb"
    nbformat.write(notebook(tmp_path), source)
    monkeypatch.setattr("sys.argv", ["pages", str(source), str(tmp_path / "index.html")])
    assert main() == 0
    page = BeautifulSoup((tmp_path / "index.html").read_text("utf-8"), "html.parser")
    assert page.select("h1")[0].get_text() == "What?"
    assert page.select("a") == []


def test_what_failed_is_unfolded(tmp_path: Path) -> None:
    error = nbformat.v4.new_output(
        "error", ename="E", evalue="<x>", traceback=["\x1b[31mat <x>\x1b[0m"]
    )
    cells = [code("fine()"), code("bad()", error)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    notebook_page(tmp_path / "n.ipynb", tmp_path / "n.html")
    page = BeautifulSoup((tmp_path / "n.html").read_text("utf-8"), "html.parser")
    assert ["open" in part.attrs for part in page.select("details.code")] == [False, True]
    assert page.select("pre.error")[0].get_text().strip() == "at <x>"


# --- In a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1400, 400])
def browser(request: pytest.FixtureRequest) -> Iterator[Chrome]:
    if find_browser() is None:
        pytest.skip(NO_BROWSER)
    with open_browser(width=request.param) as driver:
        yield driver


def of(driver: Chrome, script: str) -> Any:
    return driver.execute_script(f"return {script}")


def looks_right(driver: Chrome) -> None:
    """Nothing is wider than the window, nothing went wrong, no picture is broken."""
    assert of(driver, "document.documentElement.scrollWidth <= window.innerWidth")
    assert driver.get_log("browser") == []
    assert of(
        driver,
        "[...document.images].filter(i => i.src).every(i => i.loading == 'lazy' || i.naturalWidth > 0)",
    )


def test_the_index_in_a_browser(made: Study, browser: Chrome) -> None:
    browser.get((made.reports / "index.html").as_uri())
    looks_right(browser)
    # short, until somebody unfolds
    assert of(browser, "document.documentElement.scrollHeight < 6000")
    assert of(browser, "[...document.querySelectorAll('details.part')].every(part => !part.open)")
    browser.get((made.reports / "index.html").as_uri() + "#stage-11_speed")
    row = browser.find_element(By.ID, "stage-11_speed")
    assert row.is_displayed()
    looks_right(browser)
    # a narrow window has the navigation behind a button
    nav = browser.find_element(By.CSS_SELECTOR, ".stages-nav")
    if not nav.is_displayed():
        browser.find_element(By.CSS_SELECTOR, ".open-nav").click()
    assert nav.is_displayed()
    looks_right(browser)
    image = browser.find_element(By.CSS_SELECTOR, "img.zoom")
    of(browser, "document.querySelector('img.zoom').scrollIntoView({block: 'center'})")
    image.click()
    assert browser.find_element(By.CSS_SELECTOR, "dialog img").is_displayed()
    browser.find_element(By.CSS_SELECTOR, "dialog button").click()
    assert not browser.find_element(By.CSS_SELECTOR, "dialog").is_displayed()


def test_a_page_in_a_browser(made: Study, browser: Chrome) -> None:
    browser.get((made.reports / "html" / "11_speed.html").as_uri())
    looks_right(browser)
    # a formula is laid out, not written out
    height = "document.querySelector('math[display=block]').getBoundingClientRect().height"
    assert of(browser, f"{height} > 30")
    source = browser.find_element(By.CSS_SELECTOR, "details.code pre")
    assert not source.is_displayed()
    browser.find_element(By.ID, "code").click()
    assert source.is_displayed()
    looks_right(browser)
    colour = "getComputedStyle(document.body).backgroundColor"
    light = of(browser, colour)
    browser.find_element(By.ID, "theme").click()
    assert of(browser, colour) != light
    # and it stays on the next page
    browser.get((made.reports / "html" / "12_models.html").as_uri())
    assert of(browser, colour) != light
    browser.find_element(By.ID, "theme").click()


def test_tables_are_sorted_by_numbers(made: Study, browser: Chrome) -> None:
    browser.get((made.reports / "html" / "11_speed.html").as_uri())
    heading = next(
        cell
        for cell in browser.find_elements(By.CSS_SELECTOR, "th[aria-sort]")
        if cell.text == "WS"
    )

    def shown() -> list[float]:
        return [
            float(str(v))
            for v in of(
                browser,
                "[...document.querySelectorAll('tbody tr')].map(r => r.cells[2].textContent)",
            )
        ]

    heading.click()
    assert shown() == [-1.0, 0.5, 9.5, 10.0, 100.0]
    heading.click()
    assert shown() == [100.0, 10.0, 9.5, 0.5, -1.0]
    assert heading.get_attribute("aria-sort") == "descending"


def test_a_heading_of_several_rows_goes_with_each(made: Study, browser: Chrome) -> None:
    page = (made.reports / "html" / "11_speed.html").as_uri()
    index = pd.MultiIndex.from_product([["n", "all"], ["bs", "teacher"]], names=["subset", "model"])
    table = pd.DataFrame({"WS": ["4 ± 1", "1 ± 1", "", "1 200 ± 9"]}, index=index)
    browser.get(page)
    browser.execute_script(
        "const box = document.createElement('div'); box.innerHTML = arguments[0];"
        "document.querySelector('main').append(box); sortable(box.querySelector('table'));"
        "[...box.querySelectorAll('th')].find(cell => cell.textContent == 'WS').click()",
        table.style.to_html(),
    )
    rows = of(
        browser,
        "[...document.querySelector('main > div table').tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent))",
    )
    assert rows == [
        ["n", "teacher", "1 ± 1"],
        ["n", "bs", "4 ± 1"],
        ["all", "teacher", "1 200 ± 9"],
        ["all", "bs", ""],
    ]


def test_times_are_sorted_by_how_long_they_are(made: Study, browser: Chrome) -> None:
    browser.get((made.reports / "index.html").as_uri() + "#run")
    cells = "[...document.querySelectorAll('.stages tbody td:nth-child(4)')]"
    browser.execute_script(
        f"const times = ['0:40:12', '1 day, 2:00:00', '0:01:30', '10:00:00'];"
        f"{cells}.forEach((cell, place) => {{ cell.textContent = times[place] ?? ''; }});"
        "[...document.querySelectorAll('.stages th')].find(cell => cell.textContent.startsWith('time')).click()"
    )
    shown = of(browser, f"{cells}.map(cell => cell.textContent).filter(text => text)")
    assert shown == ["0:01:30", "0:40:12", "10:00:00", "1 day, 2:00:00"]


def test_a_page_opens_at_its_top_and_leads_to_where_one_is(made: Study, browser: Chrome) -> None:
    browser.get((made.reports / "html" / "15_generator-all.html").as_uri())
    assert of(browser, "window.scrollY") == 0
    assert browser.find_element(By.TAG_NAME, "h1").is_displayed()


def test_a_notebook_that_cannot_be_shown_costs_its_page_alone(made: Study) -> None:
    broken = stages_of(made)[3].executed
    kept = broken.read_bytes()
    try:
        broken.write_text(
            '{"cells": [{"cell_type": "code", "id": "a"}], "nbformat": 4, "nbformat_minor": 5}'
        )
        pages = write_pages(made, states_of(made)[0])
        assert len(pages) == len(stages_of(made)) - 1
        assert broken.stem not in {page.stem for page in pages}
    finally:
        broken.write_bytes(kept)
        write_pages(made, states_of(made)[0])
