"""The repository keeps its own rules."""

import ast
import re
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import grimp
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import zdc_nb
from zdc_nb.bench.cases import load_bench
from zdc_nb.params import load_study
from zdc_nb.study.changes import load_changes
from zdc_nb.study.claim import load_claim
from zdc_nb.study.learning import load_learning

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "zdc_nb").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STUDIES = sorted(
    path
    for path in (ROOT / "params").glob("*.yaml")
    if path.stem not in ("bench", "changes", "claim", "claim_centre", "learning")
)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LONGEST_CELL = 35
LONGEST_README = 130


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def pins(lines: list[str]) -> dict[str, str]:
    """Version of each package of lines like ``name==1.0``; anything but an exact pin fails."""
    found: dict[str, str] = {}
    for line in lines:
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{line} is not pinned exactly"
        assert "+" not in specifier.version, f"{line} names a local build"
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def direct_pins() -> dict[str, str]:
    return pins(PYPROJECT["project"]["dependencies"])


def extra_pins() -> dict[str, str]:
    """Of what is installed only where it is asked for."""
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    return pins([line for lines in extras for line in lines])


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return pins([line for line in lines if line and not line.startswith("#")])


def environment() -> tuple[list[str], list[str]]:
    """The conda and the pip requirements of environment.yml."""
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [item for item in content["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in content["dependencies"] if isinstance(item, dict)]
    return conda, pip


def test_conda_environment_is_in_step_with_pyproject() -> None:
    conda, pip = environment()
    options = [line for line in pip if line.startswith("-")]
    assert options == ["--constraint constraints.txt", "--editable ."]
    assert pins([line for line in pip if not line.startswith("-")]) == direct_pins()
    assert f"python{PYPROJECT['project']['requires-python']}" in conda
    assert "pip" in conda


def test_constraints_hold_every_direct_dependency() -> None:
    groups = PYPROJECT["dependency-groups"]
    direct = direct_pins() | extra_pins()
    for group in groups.values():
        direct |= pins([line for line in group if isinstance(line, str)])
    assert constraints().items() >= direct.items()


OPTIONAL = {"triton"}
"""Imported where it is installed: torch brings it with CUDA."""


def third_party(paths: list[Path]) -> set[str]:
    """Distributions that these Python files import."""
    modules = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    provided = packages_distributions()
    outside = modules - sys.stdlib_module_names - OPTIONAL - {"tests", "zdc_nb"}
    # what is not installed, as an extra may be, is taken to be called what it is imported as
    return {canonicalize_name(provided.get(module, [module])[0]) for module in outside}


def group_pins(name: str) -> set[str]:
    """Packages that a dependency group lists itself."""
    return set(pins([x for x in PYPROJECT["dependency-groups"][name] if isinstance(x, str)]))


def test_every_import_is_declared() -> None:
    package, bench = set(direct_pins()), group_pins("bench")
    peers = ROOT / "zdc_nb" / "bench" / "libraries.py"
    extras = set(extra_pins())
    assert third_party([path for path in MODULES if path != peers]) <= package | extras
    # what is compared with is no part of the study, which imports it only to compare
    assert third_party([peers]) - package == bench
    for path in MODULES:
        assert top_level_imports(path).isdisjoint(bench | extras), path
    tests = third_party(sorted((ROOT / "tests").glob("*.py")))
    assert tests <= package | bench | group_pins("test")


def top_level_imports(path: Path) -> set[str]:
    """First names of the modules that a file imports when it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


COMMANDS = {"ipykernel", "jupyterlab", "snakemake"}
"""Direct dependencies that are started and not imported: the kernel, and command-line tools."""

FOR_OTHERS = {"tensorboard"}
"""What others import if it is there: torch writes tensorboard's files."""


def test_every_dependency_is_used(tmp_path: Path) -> None:
    cells = [
        cell.source
        for path in NOTEBOOKS
        for cell in read_notebook(path).cells
        if cell.cell_type == "code"
    ]
    notebooks = tmp_path / "notebooks.py"
    notebooks.write_text("\n".join(cells), encoding="utf-8")
    imported = third_party([*MODULES, notebooks])
    assert set(direct_pins()) - imported == COMMANDS | FOR_OTHERS
    assert set(extra_pins()) - imported == {"snakemake-executor-plugin-slurm"}
    files = ("Makefile", "Snakefile")
    recipes = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    # JupyterLab's command is the only one with another name than its package
    for name in COMMANDS:
        assert name.replace("jupyterlab", "jupyter lab") in recipes, name


def test_readme_holds_no_notes_to_its_authors() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"TODO.*|<!--.*", readme) == []


def test_readme_stays_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST_README
    assert [line for line in lines if len(line) > 120] == []


def without_code(page: str) -> str:
    """A Markdown page without its code, in which a link is none."""
    return re.sub(
        r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    )


def links_of(page: str) -> list[str]:
    """Targets of all links and pictures of a Markdown page, with their anchors."""
    page = without_code(page)
    inline = re.findall(r"\]\(([^)\s]+)\)", page)
    return inline + re.findall(r"^\[[^]]+\]: *(\S+)$", page, flags=re.MULTILINE)


def anchors_of(page: str) -> list[str]:
    """The anchors that GitHub gives to the headings of a Markdown page."""
    blocks = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", blocks, flags=re.MULTILINE)
    found: list[str] = []
    for heading in headings:
        text = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(re.sub(r"-\d+$", "", other) == text for other in found)
        found.append(f"{text}-{again}" if again else text)
    return found


def dead_links(path: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of one."""
    dead = []
    for link in links_of(path.read_text(encoding="utf-8")):
        if link.startswith(("https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (
            anchor and anchor not in anchors_of(target.read_text(encoding="utf-8"))
        ):
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    assert dead_links(path) == []


def test_a_dead_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `page`, and more\n[here](#a-page-and-more) [nowhere](#a-page) ![no](no.png)\n"
        "[other](other.md#two-1) [three](other.md#three) [ref][1] `[code](code.md)`\n"
        "```text\n# comment\n[code](code.md)\n```\n[comment](#comment)\n\n[1]: ref.md\n",
        encoding="utf-8",
    )
    (tmp_path / "other.md").write_text("# One\n## Two\n## Two\n", encoding="utf-8")
    assert dead_links(page) == ["#a-page", "no.png", "other.md#three", "#comment", "ref.md"]


def test_every_page_is_listed_and_the_readme_names_the_list() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {link.partition("#")[0] for link in links_of(index.read_text(encoding="utf-8"))}
    assert {path.name for path in PAGES} - {"README.md", "index.md"} <= listed
    assert "docs/index.md" in links_of((ROOT / "README.md").read_text(encoding="utf-8"))


def test_python_version_is_the_same_everywhere() -> None:
    oldest = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert "3.11" in oldest
    assert "3.10" not in oldest
    assert PYPROJECT["tool"]["mypy"]["python_version"] == "3.11"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "sys.version_info >= (3, 11)" in makefile
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    classifiers = PYPROJECT["project"]["classifiers"]
    assert [f"Programming Language :: Python :: {v}" for v in tested] == [
        line for line in classifiers if re.search(r":: 3\.\d+$", line)
    ]


def rooms() -> dict[str, set[str]]:
    """The rooms of the package, by name, and the rooms that each imports from."""
    graph = grimp.build_graph("zdc_nb", cache_dir=None)
    found = graph.find_children("zdc_nb")
    for room in found:
        graph.squash_module(room)
    # a room that imports within itself imports itself, when it is squashed
    return {room: graph.find_modules_directly_imported_by(room) & found - {room} for room in found}


def floors(imports: dict[str, set[str]]) -> int:
    """How many rooms the longest chain of imports has.

    Raises
    ------
    graphlib.CycleError
        if there is a way from a room back to itself.
    """
    height: dict[str, int] = {}
    for room in TopologicalSorter(imports).static_order():
        height[room] = 1 + max((height[other] for other in imports[room]), default=0)
    return max(height.values())


def test_a_longer_chain_and_a_ring_of_rooms_are_noticed() -> None:
    assert floors({"a": set(), "b": {"a"}, "c": {"a"}, "d": {"c", "a"}}) == 3
    with pytest.raises(CycleError):
        floors({"a": {"c"}, "b": {"a"}, "c": {"b"}})


def test_the_package_is_few_rooms_on_few_floors() -> None:
    """That none imports from a floor above is checked by import-linter, see pyproject.toml."""
    imports = rooms()
    assert len(imports) <= 12
    assert floors(imports) <= 6


def test_every_module_opens_with_docstring_and_all() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
    assert [path for path, tree in trees.items() if not ast.get_docstring(tree)] == []
    # the package itself hands nothing on, so that it is imported at once
    del trees[ROOT / "zdc_nb" / "__init__.py"]
    assert [path for path, tree in trees.items() if sum(map(is_all, tree.body)) != 1] == []


def is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def read_notebook(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_notebooks_are_numbered_without_a_gap() -> None:
    numbers = [name[:3] for name in names(NOTEBOOKS)]
    assert numbers == [f"{number:02}_" for number in range(len(NOTEBOOKS))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_notebook_is_thin_and_clean(path: Path) -> None:
    notebook = read_notebook(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        assert not cell.outputs, "committed with outputs"
        assert cell.execution_count is None
        assert len(cell.source.splitlines()) <= LONGEST_CELL
        tree = ast.parse(cell.source)
        assert not [node for node in tree.body if isinstance(node, ast.ClassDef)]
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_notebook_has_one_parameters_cell_of_plain_values(path: Path) -> None:
    cells = read_notebook(path).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    values = {}
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.Assign)
        values[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    if path.stem.endswith("_benchmark"):
        assert set(values) == {"bench"}
        assert load_bench(ROOT / values["bench"]).name == "bench"
        return
    if path.stem.endswith("_changes"):
        assert set(values) == {"changes"}
        assert load_changes(ROOT / values["changes"]).studies[-1] == "params/small.yaml"
        return
    if path.stem.endswith("_claim"):
        assert set(values) == {"claim"}
        assert [*load_claim(ROOT / values["claim"]).studies][:2] == [
            "fibres",
            "fibres, four times as long",
        ]
        return
    if path.stem.endswith("_learning"):
        assert set(values) == {"learning"}
        assert load_learning(ROOT / values["learning"]).study == "params/small.yaml"
        return
    if path.stem.endswith("_explorer"):
        # the best study that is there
        assert values.pop("study") is None
        assert set(values) == {"model", "species", "energy", "x", "y"}
        return
    assert {"study"} <= set(values) <= {"study", "subset", "setup", "seed", "model", "retrain"}
    study = load_study(ROOT / values["study"])
    assert values.get("subset", "all") in study.subsets
    assert values.get("setup", "bs") in study.setups
    assert values.get("seed", 1) in study.seeds
    assert values.get("model", "splitting") in study.trained_models
    assert values.get("retrain", False) is False


def test_the_studies_are_there() -> None:
    compared = ["fibres", "published", "splits"]
    compared += ["claim_all", "claim_fibres", "claim_long", "claim_open", "claim_splits"]
    compared += ["claim_ctr_focal", "claim_ctr_zn", "claim_ctr_zp"]
    compared += ["focal-small", "focal-smoke", "zp-small", "zp-smoke"]
    assert names(STUDIES) == sorted(["full_size", "paper", "small", "smoke", *compared])


@pytest.mark.parametrize("path", STUDIES, ids=names(STUDIES))
def test_study_file_is_valid(path: Path) -> None:
    assert load_study(path).name == path.stem


def test_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == zdc_nb.__version__
    assert citation["license"] == PYPROJECT["project"]["license"]
    (paper,) = citation["references"]
    assert paper["title"].startswith("Inverse Autoregressive Flows for Zero Degree Calorimeter")
    assert [author["family-names"] for author in paper["authors"]] == [
        "Majerz",
        "Dzwinel",
        "Kitowski",
    ]
    assert "2512.20346" in paper["url"]


def test_makefile_and_hooks_use_the_pinned_tools() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    revisions = {repo["repo"].split("/")[-1]: repo.get("rev", "") for repo in hooks["repos"]}
    assert revisions["ruff-pre-commit"].lstrip("v") == constraints()["ruff"]
    assert revisions["nbstripout"] == constraints()["nbstripout"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("ruff check", "ruff format --check", "mypy", "lint-imports", "pytest"):
        assert f"$(BIN)/{command}" in makefile
