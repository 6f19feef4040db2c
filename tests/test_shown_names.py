"""What people read: symbols of particles, names of models, and a text for each figure."""

import ast
import json
import unicodedata
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib import get_data_path
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from PIL import Image

from zdc_nb.data.figures import description_of, save_figure
from zdc_nb.data.simulation import model_of
from zdc_nb.data.symbols import drawn_symbol, symbol
from zdc_nb.detector import ZN
from zdc_nb.evaluation.names import TERMS, name_of, with_names
from zdc_nb.params import SUBSETS
from zdc_nb.study.speed import engine_findings
from zdc_nb.training.figures import likelihood_figure, student_figure
from zdc_nb.training.losses import CENTRE, DISTILLATION_TERMS

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
CODES = [species.pdg for species in model_of(ZN).primaries.species]


def test_symbols_are_those_of_the_literature() -> None:
    names = ["n", "Λ", "K⁰ₛ", "Σ⁺", "all species"]
    assert [symbol(subset) for subset in SUBSETS] == names
    wanted = {
        22: "\N{GREEK SMALL LETTER GAMMA}",
        -2112: "n\u0304",
        -3122: "Λ\u0304",
        -3112: "Σ\u0304⁺",
        130: "K⁰ₗ",
        -211: "π⁻",
    }
    assert {pdg: symbol(pdg) for pdg in wanted} == wanted
    assert symbol(0) == "PDG 0"
    # what has no raised or lowered letter in Unicode is still legible
    assert symbol(14) == "\N{GREEK SMALL LETTER NU}_μ"
    assert symbol("others") == "others"


def test_particle_and_antiparticle_of_all_species_have_symbols_of_their_own() -> None:
    both = {code for pdg in CODES for code in (pdg, -pdg) if abs(pdg) not in (22, 130, 310)}
    for named in (symbol, drawn_symbol):
        found = {named(pdg) for pdg in both}
        assert len(found) == len(both)
        assert not any(name.startswith("PDG") for name in found)


def test_what_plain_text_would_hide_is_mathtext_in_figures() -> None:
    assert drawn_symbol(-3122) == r"$\overline{\mathrm{Λ}}$"
    assert drawn_symbol("k0s") == r"K$^0_\mathrm{S}$"
    assert drawn_symbol(130) == r"K$^0_\mathrm{L}$"
    assert drawn_symbol(-3112) == r"$\overline{\mathrm{Σ}}$⁺"
    same: list[int | str] = [-2112, -2212, 22, "n", "lambda", "sigma+", "all"]
    assert [drawn_symbol(species) for species in same] == [symbol(species) for species in same]
    # and every one of them can be drawn
    figure = Figure()
    figure.text(0, 0, "".join(drawn_symbol(pdg) for pdg in CODES))
    figure.savefig(BytesIO(), format="png")


@pytest.mark.parametrize("font", ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf"])
def test_the_font_of_figures_has_every_sign(font: str) -> None:
    known = FT2Font(str(Path(get_data_path()) / "fonts" / "ttf" / font)).get_charmap()
    signs = {sign for pdg in CODES for sign in symbol(pdg)}
    assert [unicodedata.name(sign) for sign in signs if ord(sign) not in known] == []


def test_one_name_a_thing() -> None:
    names = {"reference": "new simulations", "reference+sum": "new simulations, scaled"}
    assert {key: name_of(key) for key in names} == names
    assert name_of("test") == "simulated (test)"
    assert name_of("bs+ch") == "bs+ch"
    assert name_of("bs+ch+N") == "bs+ch+N"


def test_a_table_is_shown_with_names_and_keeps_its_keys() -> None:
    rows = [("k0s", "reference+sum", 1.25), ("all", "<b>", 2.0)]
    table = pd.DataFrame(rows, columns=["subset", "model", "WS"])
    flat = with_names(table.style.format(precision=1).hide(axis="index"))
    cells = [cell.get_text() for cell in BeautifulSoup(flat.to_html(), "html.parser").select("td")]
    assert cells == ["K⁰ₛ", "new simulations, scaled", "1.2", "all species", "<b>", "2.0"]
    wide = with_names(table.pivot(index="subset", columns="model", values="WS"))
    page = BeautifulSoup(wide.to_html(), "html.parser")
    heads = [cell.get_text() for cell in page.select("th.col_heading, th.row_heading")]
    assert sorted(heads) == ["<b>", "K⁰ₛ", "all species", "new simulations, scaled"]
    assert [cell.get_text() for cell in page.select("th.index_name")] == ["model", "data set"]
    assert [*wide.index] == ["all", "k0s"]


def test_a_figure_without_a_text_has_none(tmp_path: Path) -> None:
    figure = Figure()
    figure.savefig(tmp_path / "bare.png")
    assert description_of(tmp_path / "bare.png") == ""
    save_figure(figure, tmp_path / "told.png", "Nothing is shown.")
    assert description_of(tmp_path / "told.png") == "Nothing is shown."
    (tmp_path / "torn.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match="cannot identify image"):
        description_of(tmp_path / "torn.png")


def test_a_saved_figure_has_its_colours_and_is_small(tmp_path: Path) -> None:
    figure = Figure(figsize=(4, 3))
    axis = figure.subplots()
    axis.set_facecolor("0.93")
    axis.imshow(np.ma.masked_less(np.arange(400), 200).reshape(20, 20), cmap="viridis")
    axis.plot([1, 2], [3, 3], color="#d55e00", linewidth=1)
    full = BytesIO()
    figure.savefig(full, dpi=150, bbox_inches="tight", format="png")
    save_figure(figure, tmp_path / "saved.png", "A line on squares.")
    with Image.open(full) as before, Image.open(tmp_path / "saved.png") as after:
        pixels = [np.asarray(each.convert("RGB"), np.int64) for each in (before, after)]
    off = np.abs(pixels[0] - pixels[1]).max(-1)
    assert off.max() <= 12
    # white and the grey of what is empty
    for plain in ((255, 255, 255), (237, 237, 237)):
        there = (pixels[0] == plain).all(-1)
        assert there.sum() > 1000
        assert off[there].max() == 0
    assert (tmp_path / "saved.png").stat().st_size < 0.6 * len(full.getvalue())


@pytest.mark.parametrize(
    ("responses", "said"),
    [
        (30_000, "take 30 seconds, and in plain torch they would take 120."),
        (600_000, "take 10 minutes, and in plain torch they would take 40."),
        (9_000_000, "take 2.5 hours, and in plain torch they would take 10."),
    ],
)
def test_the_time_of_trainings_is_told_in_a_unit_that_suits(responses: int, said: str) -> None:
    rows = [("teacher", "fused", "bfloat16", 1.0), ("teacher", "plain", "float32", 4.0)]
    table = pd.DataFrame(rows, columns=["model", "engine", "precision", "ms_per_sample"])
    assert said in engine_findings(table.assign(responses=responses))


@pytest.mark.parametrize("epochs", [1, 3])
def test_epochs_are_whole(epochs: int) -> None:
    numbers = range(1, epochs + 1)
    rows = [(k, part, "loss", 1.0 / k) for k in numbers for part in ("train", "validation")]
    history = pd.DataFrame(rows, columns=["epoch", "split", "term", "value"])
    for figure in (likelihood_figure(history, "x"), student_figure(history, "k0s", "bs")):
        axis = figure.axes[0]
        assert axis.get_xlabel() == "epoch"
        least, most = axis.get_xlim()
        assert [tick for tick in axis.get_xticks() if least <= tick <= most] == [*numbers]
    assert "K$^0" in figure.get_suptitle()


def test_a_figure_of_a_student_has_a_panel_for_each_term_of_its_own() -> None:
    terms = ("loss", *DISTILLATION_TERMS)
    for more in ((), (CENTRE,)):
        rows = [(1, part, t, 0.5) for part in ("train", "validation") for t in (*terms, *more)]
        history = pd.DataFrame(rows, columns=["epoch", "split", "term", "value"])
        figure = student_figure(history, "n", "bs+ctr")
        titles = [axis.get_title().split("\n")[0] for axis in figure.axes if axis.get_visible()]
        assert titles == [TERMS[term] for term in (*terms, *more)]


def texts_of(path: Path) -> dict[str, str]:
    """The name of each figure that a notebook saves, and its text; braces stand for values."""
    found = {}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        texts = {
            ast.unparse(node.targets[0]): node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "stage.figure",
                "save_figure",
            ):
                _, name, text = node.args
                while isinstance(text, ast.Name):
                    text = texts[text.id]
                found[ast.unparse(name)] = literal(text)
    return found


def literal(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "{}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_of_a_notebook_has_a_text_of_its_own(path: Path) -> None:
    texts = texts_of(path)
    # the explorer's pictures are kept nowhere, and say themselves what they show; those of a claim get
    # their texts where its loss is known
    assert texts or path.stem in ("00_explorer", "20_claim"), "a notebook without a figure"
    assert len({*texts.values()}) == len(texts)
    for name, text in texts.items():
        assert text[0].isupper() or text[0] == "{", name
        assert text.endswith("."), name
        assert 60 < len(text) < 320, name
