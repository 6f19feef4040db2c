"""The pages of a report: each notebook as a page, with one navigation on all of them.

``python -m zdc_nb.study.pages notebook.ipynb page.html`` makes a page of a notebook that belongs to
no study. A page holds all that it shows: it can be copied anywhere and needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from zdc_nb.data.symbols import symbol
from zdc_nb.params import Study
from zdc_nb.storage import write_text
from zdc_nb.study.progress import State, read_notebook

__all__ = ["TEMPLATES", "Group", "markdown_html", "navigation", "notebook_page", "write_pages"]

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("zdc_nb.study"),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals["symbol"] = symbol


@dataclass(frozen=True)
class Link:
    """A page, as the navigation names it; ``href`` below the reports, None where there is no page."""

    label: str
    title: str
    href: str | None
    state: str


@dataclass(frozen=True)
class Line:
    """Runs of one notebook on one data set, ``of`` (empty for those that are of none)."""

    of: str
    links: list[Link]


@dataclass(frozen=True)
class Group:
    """All runs of one notebook; ``single``: it has one run and no keys."""

    title: str
    runs: list[Line]
    single: bool
    current: bool


def navigation(states: Sequence[State], here: str) -> list[Group]:
    """All pages by notebook and data set, of which ``here`` is the one that is looked at."""
    groups = []
    for row, same in groupby(states, key=lambda state: state.stage.row):
        runs = [*same]
        title = f"{row.notebook[:2]} {row.title}"
        single = not row.keys
        if single:
            lines = [Line("", [_link(runs[0], title)])]
        elif all(len(state.stage.suffixes) == 1 for state in runs):
            lines = [Line("", [_link(state, symbol(state.stage.suffixes[0])) for state in runs])]
        else:
            lines = [
                Line(
                    symbol(of) if of else "",
                    [_link(state, " ".join(state.stage.suffixes[1:]) or "seed1") for state in part],
                )
                for of, part in groupby(runs, key=lambda state: state.stage.subset or "")
            ]
        groups.append(Group(title, lines, single, any(state.page == here for state in runs)))
    return groups


def _link(state: State, label: str) -> Link:
    return Link(label, _title(state), state.page, state.state)


def _title(state: State) -> str:
    return ", ".join((state.stage.row.title, *map(symbol, state.stage.suffixes)))


def write_pages(study: Study, states: Sequence[State]) -> list[Path]:
    """Make ``html/<name>.html`` of each notebook that was executed, also of one that failed.

    A page that is made already, of the same notebook and navigation, is left alone; pages of
    notebooks that are no more are removed. A notebook whose file cannot be read, as when the disk
    was full, has no page.
    """
    folder = study.reports
    readable = {}
    for state in states:
        state.page = None
        if state.notebook and state.state != "running" and _is_whole(folder / state.notebook):
            readable[state.name] = folder / state.notebook
            state.page = f"html/{Path(state.notebook).stem}.html"
    chain = [state for state in states if state.page]
    pages = []
    for place, state in enumerate(chain):
        page = folder / str(state.page)
        pages.append(page)
        around = (chain[place - 1] if place else None, *chain[place + 1 : place + 2], None)
        frame = {
            "study": study.name,
            "title": f"{_title(state)} - study {study.name}",
            "root": "../",
            "here": state.page,
            "groups": navigation(states, str(state.page)),
            "previous": around[0] and _link(around[0], ""),
            "next": around[1] and _link(around[1], ""),
            "facts": _facts(state),
        }
        _write_page(readable[state.name], page, frame)
    for stale in {*(folder / "html").glob("*.html")} - {*pages}:
        stale.unlink()
    return pages


def _is_whole(notebook: Path) -> bool:
    """Whether a file is a notebook that can be shown: one page less, rather than no report."""
    from nbformat import ValidationError, from_dict, validate  # noqa: PLC0415 - slow to import

    content = read_notebook(notebook)
    try:
        validate(from_dict(content))
    except ValidationError:
        return False
    return bool(content)


def _facts(state: State) -> str:
    """When and where a notebook ran, in a line."""
    facts = [", ".join((state.stage.row.notebook, *state.stage.suffixes)), state.state]
    if state.started:
        facts.append(f"begun {state.started:%d %B %Y, %H:%M} UTC")
    if state.duration is not None:
        facts.append(f"took {state.duration} (h:mm:ss)")
    return "; ".join(facts)


def notebook_page(notebook: Path, page: Path) -> None:
    """Make a page of a notebook that belongs to no study."""
    frame = {"study": "", "title": notebook.stem, "root": "", "here": page.name, "groups": []}
    _write_page(notebook, page, {**frame, "previous": None, "next": None, "facts": ""})


def _write_page(notebook: Path, page: Path, frame: dict[str, Any]) -> None:
    template = TEMPLATES.get_template("page.html.j2")
    made_of = hashlib.sha256(_sources() + notebook.read_bytes() + repr(frame).encode()).hexdigest()
    if _says(page, made_of):
        return
    body, _ = _exporter().from_filename(str(notebook))
    write_text(template.render(**frame, made_of=made_of, body=Markup(body)), page)


def _says(page: Path, made_of: str) -> bool:
    """Whether a page is there and was made of that."""
    try:
        with page.open("rb") as stream:
            return made_of.encode() in stream.read(1000)
    except OSError:
        return False


@cache
def _sources() -> bytes:
    """What pages are made with: this module and the templates."""
    templates = sorted((Path(__file__).parent / "templates").rglob("*.*"))
    return b"".join(path.read_bytes() for path in (Path(__file__), *templates))


# --- Notebooks as HTML ----------------------------------------------------------------------------


@cache
def _exporter() -> Any:
    from nbconvert.exporters import HTMLExporter  # noqa: PLC0415 - slow to import

    # of a progress bar only what it came to
    coalesce = ["nbconvert.preprocessors.CoalesceStreamsPreprocessor"]
    exporter = HTMLExporter(
        template_name="notebook",
        extra_template_basedirs=[str(Path(__file__).parent / "templates")],
        preprocessors=coalesce,
    )
    exporter.register_filter("markdown2html", markdown_html)
    return exporter


def markdown_html(markdown: str) -> str:
    """HTML of Markdown, with its formulas in MathML, which browsers show without a network."""
    from nbconvert.filters.markdown_mistune import MarkdownWithMath  # noqa: PLC0415 - slow to import

    return str(MarkdownWithMath(renderer=_renderer()).render(markdown))


@cache
def _renderer() -> Any:
    from latex2mathml.converter import convert  # noqa: PLC0415
    from nbconvert.filters.markdown_mistune import IPythonRenderer  # noqa: PLC0415

    def mathml(formula: str, display: str) -> str:
        try:
            return convert(formula, display=display)
        except Exception:  # noqa: BLE001 - of whatever it does not know: better read than lost
            return f"<code>{html.escape(formula)}</code>"

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return mathml(body, "block")

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

    return Renderer(escape=False, exclude_anchor_links=True)


def main() -> int:
    """Command line: make a page of one notebook."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args()
    notebook_page(options.notebook, options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
