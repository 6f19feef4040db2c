"""Projects of their own for the tests: results apart, code shared."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
# as in the grid: another number of threads adds up in another order
THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "NUMBA")}


def new_project(folder: Path) -> Path:
    """A project in ``folder`` with notebooks and parameters of its own, and the code of this one."""
    for name in ("detectors", "notebooks", "params"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("zdc_nb", "Snakefile", "profiles"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def write_study(project: Path, name: str, changes: dict[str, Any]) -> Path:
    """``params/<name>.yaml``: the smoke study with changes, of sections or of keys in them."""
    content = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text("utf-8"))
    for key, value in changes.items():
        merged = isinstance(value, dict) and isinstance(content[key], dict)
        content[key] = content[key] | value if merged else value
    path = project / "params" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m command`` in the project."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        env=os.environ | THREADS,
        capture_output=True,
        text=True,
        check=False,
    )


def snakemake(project: Path, study: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the grid of a study in the project."""
    return run(project, "snakemake", *options, "--config", f"study=params/{study}.yaml")


def papermill(
    project: Path, notebook: str, study: str, *parameters: str
) -> subprocess.CompletedProcess[str]:
    """Run one notebook by hand, with ``-p`` of each pair of parameters."""
    pairs = zip(parameters[::2], parameters[1::2], strict=True)
    options = [word for pair in pairs for word in ("-p", *pair)]
    command = ("papermill", f"notebooks/{notebook}.ipynb", f"{notebook}.out.ipynb")
    return run(project, *command, "-p", "study", f"params/{study}.yaml", *options)
