"""The whole grid of detectors other than the ZN: the same notebooks, by a file of parameters alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.projects import new_project, snakemake
from zdc_nb.detector import load_detector
from zdc_nb.generator.generator import Generator
from zdc_nb.params import load_study
from zdc_nb.study import stages_of

ZN_ALONE = ("44 x 44", "44 × 44", "1936", "Zero Degree", "five channels")  # noqa: RUF001


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
    sums = pd.read_csv(study.reports / "tables" / "collision_sums-all.csv")
    assert {*sums["kind"]} == {"simulated", "simulated again", "generated"}
    assert {*sums["side"]} == {*detector.sides}
    channels = [name for name in sums.columns if name.startswith("channel_")]
    assert len(channels) == len(detector.channels)
    np.testing.assert_array_equal(sums[channels].sum(axis=1), sums["photons"])

    # the index says nothing of the ZN, and each page says what the detector is
    pages = {page.name: page.read_text("utf-8") for page in study.reports.rglob("*.html")}
    index = pages.pop("index.html")
    assert len(pages) == len(stages_of(study))
    for page, text in pages.items():
        assert detector.title in text, page
    assert detector.title in index
    for words in ZN_ALONE:
        assert words not in index.replace(detector.title, ""), words
