"""The whole grid of detectors other than the ZN: the same notebooks, by a file of parameters alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.projects import new_project, snakemake
from zdc_nb.data.simulation import draw_particles
from zdc_nb.detector import load_detector
from zdc_nb.generator.generator import Generator
from zdc_nb.params import load_study

ZN_ALONE = ("44 x 44", "44 × 44", "1936", "112.5 m", "neutron Zero Degree", "chess board")  # noqa: RUF001


@pytest.mark.parametrize("name", ["zp-smoke", "focal-smoke"])
def test_the_grid_of_another_detector(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new_project(tmp_path / "project")
    done = snakemake(project, name, "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.chdir(project)
    study = load_study(f"params/{name}.yaml")
    detector = load_detector(study.detector)

    models = pd.read_csv(study.reports / "tables" / "models.csv")
    assert {"teacher", "splitting", *study.setups} <= {*models["model"]}
    assert np.isfinite(models["mean"]).all()

    generator = Generator.load(study.artifacts / "generator" / "all" / "splitting.safetensors")
    assert generator.detector == detector
    rng = np.random.default_rng(1)
    particles = draw_particles(rng, rng.random(200), detector=detector)
    assert len(particles.pdg) == 200

    # the report is about this detector, on every page
    pages = {page.name: page.read_text("utf-8") for page in study.reports.rglob("*.html")}
    assert detector.title in pages["index.html"]
    for page, text in pages.items():
        for words in ZN_ALONE:
            assert words not in text, (page, words)
