"""The repository keeps its own rules."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import zdc_nb
from zdc_nb.bench.cases import load_bench
from zdc_nb.params import load_study

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "zdc_nb").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STUDIES = sorted(path for path in (ROOT / "params").glob("*.yaml") if path.stem != "bench")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LONGEST_CELL = 35


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def module_order() -> list[str]:
    """The modules in the order that the package's docstring gives."""
    assert zdc_nb.__doc__ is not None
    return re.findall(r"\w+", zdc_nb.__doc__.strip().split("\n\n")[-1])


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
    direct = direct_pins()
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
    return {canonicalize_name(provided[module][0]) for module in outside}


def group_pins(name: str) -> set[str]:
    """Packages that a dependency group lists itself."""
    return set(pins([x for x in PYPROJECT["dependency-groups"][name] if isinstance(x, str)]))


def test_every_import_is_declared() -> None:
    package, bench = set(direct_pins()), group_pins("bench")
    peers = ROOT / "zdc_nb" / "peers.py"
    assert third_party([path for path in MODULES if path != peers]) <= package
    # what is compared with is no part of the study, which imports it only to compare
    assert third_party([peers]) - package == bench
    assert top_level_imports(peers).isdisjoint(bench)
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

FOR_OTHERS = {"ipywidgets", "snakemake-executor-plugin-slurm", "tensorboard"}
"""What others import if it is there: tqdm warns without ipywidgets, torch writes tensorboard's files."""


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
    files = ("Makefile", "Snakefile")
    recipes = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    # JupyterLab's command is the only one with another name than its package
    for name in COMMANDS:
        assert name.replace("jupyterlab", "jupyter lab") in recipes, name


def test_readme_holds_no_notes_to_its_authors() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"TODO.*|<!--.*", readme) == []


def test_everything_that_the_readme_links_to_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", readme)
    inside = [target for target in targets if not target.startswith(("https://", "#"))]
    assert "LICENSE" in inside
    assert [target for target in inside if not (ROOT / target).exists()] == []


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


def test_every_module_stands_in_the_order() -> None:
    modules = [path.stem for path in MODULES if path.stem != "__init__"]
    assert sorted(module_order()) == modules


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_module_imports_only_from_those_before_it(path: Path) -> None:
    order = module_order()
    own = order.index(path.stem) if path.stem in order else 0
    for imported in imports_of_package(ast.parse(path.read_text(encoding="utf-8"))):
        assert order.index(imported) < own, f"{path.name} imports {imported}"


def imports_of_package(tree: ast.Module) -> set[str]:
    """Modules of zdc_nb that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            module = node.module or ""
            if module == "zdc_nb":
                found |= {alias.name for alias in node.names} - {"__version__"}
            elif module.startswith("zdc_nb."):
                found.add(module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("zdc_nb.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_module_opens_with_docstring_and_all(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    if path.stem == "__init__":
        return
    assert len([node for node in tree.body if is_all(node)]) == 1, "one __all__"


def is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def read_notebook(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_the_seven_notebooks_are_there() -> None:
    assert [name[:2] for name in names(NOTEBOOKS)] == ["01", "02", "03", "04", "05", "06", "07"]


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
def test_notebook_has_one_parameters_cell_of_plain_strings(path: Path) -> None:
    cells = read_notebook(path).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    values = {}
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.Assign)
        values[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    if path.stem == "07_benchmark":
        assert set(values) == {"bench"}
        assert load_bench(ROOT / values["bench"]).name == "bench"
        return
    expected = {"02": {"subset"}, "03": {"subset", "setup"}}.get(path.stem[:2], set())
    assert set(values) == {"study", *expected}
    study = load_study(ROOT / values["study"])
    assert values.get("subset", "all") in study.subsets
    assert values.get("setup", "bs") in study.setups


def test_the_three_studies_are_there() -> None:
    assert names(STUDIES) == ["paper", "small", "smoke"]


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
