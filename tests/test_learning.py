"""The learning curve: its points, that it goes on where it was, and what it says."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.projects import ROOT, new_project, run
from zdc_nb.data.figures import save_figure
from zdc_nb.evaluation.comparison import COMPARED, Resampled
from zdc_nb.evaluation.learning import learning_figure, learning_findings, learning_pivot
from zdc_nb.params import ParameterError
from zdc_nb.study import learning as study_learning
from zdc_nb.study.learning import (
    FLOOR,
    MODEL,
    Learned,
    Learning,
    Point,
    learn,
    learning_table,
    load_learning,
    points_of,
)
from zdc_nb.training import TrainingInterrupted, train_splitting
from zdc_nb.training.loop import Fit

FLOW = {"window": 3, "bins": 4, "hidden": 8, "hidden_layers": 1, "context_hidden": [8]}


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    """The curve of the project, tiny."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "params" / "learning.yaml").read_text("utf-8"))
    splitting = found["splitting"] | {"epochs": 2, "batch": 16, "fine_share": 1.0}
    splitting["flow"] = splitting["flow"] | FLOW | {"coarse_nodes": 7}
    tiny = {
        "artifacts": str(folder / "artifacts"),
        "reports": str(folder / "reports"),
        "study": str(ROOT / "params" / "smoke.yaml"),
        "responses": 60,
        "repeats": [1, 10],
        "equal_particles": {"as_at": 10, "repeats": [5]},
        "seeds": [1, 2],
        "validation_responses": 20,
        "test_particles": 6,
        "test_repeats": 8,
        "runs": 2,
        "draws": 30,
        "splitting": splitting,
    }
    return found | tiny | changes


def tiny(folder: Path, **changes: Any) -> Learning:
    path = folder / "curve.yaml"
    path.write_text(yaml.safe_dump(content(folder, **changes)), "utf-8")
    return load_learning(path)


def same(one: Learned, other: Learned) -> None:
    assert one.particles == other.particles
    assert one.parts.keys() == other.parts.keys()
    for key, metrics in one.parts.items():
        assert metrics.seeds == other.parts[key].seeds
        for which in ("found", "drawn"):
            mine, theirs = getattr(metrics, which), getattr(other.parts[key], which)
            assert list(mine) == list(theirs)
            for metric, values in mine.items():
                np.testing.assert_array_equal(values, theirs[metric])


def test_the_curve_of_the_project_has_equal_responses_and_equal_particles() -> None:
    learning = load_learning(ROOT / "params" / "learning.yaml")
    points = points_of(learning)
    assert len(points) == len(set(points)) == 7 * 3
    assert [point.seed for point in points[:7]] == [1] * 7
    first = {point.repeats: point.responses for point in points[:5]}
    assert first == dict.fromkeys([1, 3, 10, 30, 100], learning.responses)
    assert {(point.repeats, point.responses) for point in points[5:7]} == {(3, 3000), (30, 30_000)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"equal_particles": {"as_at": 7, "repeats": [3]}}, "as_at: expected one of repeats"),
        ({"equal_particles": {"as_at": 10, "repeats": [10]}}, "10 is there already"),
        ({"repeats": [3, 3]}, "repeats: expected different numbers"),
        ({"reserved": 1.5}, "reserved"),
        ({"test_particle": 3}, "test_particle"),
    ],
)
def test_a_curve_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        tiny(tmp_path, **changes)


def test_a_point_is_kept_loaded_and_made_anew_where_it_has_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learning, point = tiny(tmp_path), Point(10, 60, 2)
    first = learn(learning, point)
    assert set(first.parts) == {(part, m) for part in ("new", "seen") for m in (MODEL, FLOOR)}
    assert first.parts["new", MODEL].seeds == (2,)
    path = learning.kept / f"{point.name}.npz"
    assert [file.name for file in learning.kept.iterdir() if file.suffix != ".lock"] == [path.name]
    trained = []

    def train(*arguments: Any, **options: Any) -> Any:
        trained.append(arguments)
        return train_splitting(*arguments, **options)

    monkeypatch.setattr(study_learning, "train_splitting", train)
    same(learn(learning, point), first)
    # what only other points are made of changes nothing
    same(learn(tiny(tmp_path, seeds=[2], repeats=[10, 3]), point), first)
    assert not trained
    whole = path.read_bytes()
    for number, damaged in enumerate((b"", whole[:-20], b"x" * 100), start=1):
        path.write_bytes(damaged)
        same(learn(learning, point), first)
        assert len(trained) == number
        assert "damaged" in capsys.readouterr().out
    other = learn(tiny(tmp_path, test_repeats=9), point)
    assert "of other parameters; making it again" in capsys.readouterr().out
    assert not np.array_equal(
        other.parts["new", MODEL].found["WS"], first.parts["new", MODEL].found["WS"]
    )


def test_a_point_that_was_stopped_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quiet").mkdir()
    (tmp_path / "stopped").mkdir()
    point = Point(1, 60, 1)
    quiet = learn(tiny(tmp_path / "quiet"), point)
    learning = tiny(tmp_path / "stopped")
    step = Fit._step

    def stopping(self: Fit, *rest: Any) -> None:
        step(self, *rest)
        if self.at.step == 3:
            self.stop.signal = signal.Signals.SIGTERM.name

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_step", stopping)
        with pytest.raises(TrainingInterrupted, match="stopped by SIGTERM after step 3"):
            learn(learning, point)
    assert not (learning.kept / f"{point.name}.npz").exists()
    same(learn(learning, point), quiet)
    assert "going on from step 3" in capsys.readouterr().out


def test_every_point_makes_as_many_steps_and_sees_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning = tiny(tmp_path, equal_particles={"as_at": 10, "repeats": [5, 20]})
    seen: dict[tuple[int, int, int], Any] = {}

    def train(train: Any, validation: Any, study: Any, subset: str, *_: Any, **options: Any) -> Any:
        key = (len(train), len(np.unique(train.particle)), options["training"])
        params = study.splitting
        seen[key] = params.epochs_for(subset) * params.epoch_responses, train, validation
        raise InterruptedError

    monkeypatch.setattr(study_learning, "train_splitting", train)
    for point in points_of(learning):
        with pytest.raises(InterruptedError):
            learn(learning, point)
    assert len(seen) == 8
    assert {steps for steps, _, _ in seen.values()} == {120}
    for (responses, particles, seed), (_, train_events, validation) in seen.items():
        assert responses in (30, 60, 120)
        assert not np.isin(train_events.features[:, 0], validation.features[:, 0]).any()
        for (_, _, other_seed), (_, other, _) in seen.items():
            if seed != other_seed:
                assert not np.isin(train_events.features[:, 0], other.features[:, 0]).any()
        assert particles <= responses


def learned(particles: int, new: float, seen: float, seed: int) -> Learned:
    """A point whose errors are multiples of their floor, which vary a little."""
    rng = np.random.default_rng(seed)
    hard = {"new": rng.uniform(0.9, 1.1, 50), "seen": rng.uniform(0.9, 1.1, 50)}

    def metrics(part: str, factor: float) -> Resampled:
        found = {metric: np.array([10 * factor * (1 + 0.01 * seed)]) for metric in COMPARED}
        drawn = dict.fromkeys(COMPARED, (10 * factor * hard[part])[None])
        return Resampled((seed,), found, drawn)

    parts = {
        (part, model): metrics(part, factor if model == MODEL else 1.0)
        for part, factor in (("new", new), ("seen", seen))
        for model in (MODEL, FLOOR)
    }
    return Learned(particles, 1.0, parts)


def test_the_table_holds_ratios_of_means_over_seeds_and_the_sentences_follow(
    tmp_path: Path,
) -> None:
    learning = tiny(tmp_path, repeats=[1, 10, 30])
    errors = {(1, 60): (1.2, 1.2), (10, 60): (2.0, 1.3), (30, 60): (3.5, 1.0), (5, 30): (2.0, 1.3)}
    results = {
        point: learned(600 // point.repeats, *errors[point.repeats, point.responses], point.seed)
        for point in points_of(learning)
    }
    table = learning_table(learning, results)
    assert len(table) == (3 + 2) * 2 * len(COMPARED)
    chosen = table.query("curve == 'equal responses' and repeats == 30 and metric == 'WS'")
    new = chosen[chosen["part"] == "new"].iloc[0]
    assert new["particles"] == 20
    assert new["ratio"] == pytest.approx(3.5)
    assert new["value"] == pytest.approx(35 * 1.015)
    assert new["floor"] == pytest.approx(10 * 1.015)
    assert new["ratio_low"] <= 3.5 <= new["ratio_high"]
    assert new["trainings"] == 2
    said = " ".join(learning_findings(table))
    assert "comes of 1 simulation of each particle" in said
    assert "interval that reaches that of the best: 1." in said
    assert "1.00 times as far from their floor as seen ones with 1 and 3.50 times with 30" in said
    assert "smaller with many particles than with few" in said
    assert "is not shown to help" in said
    assert "not shown to be smaller" not in said
    pivot = learning_pivot(table)
    assert len(pivot) == 5
    save_figure(learning_figure(table), tmp_path / "curve.png", "A curve.")
    # the other way round, and of one seed
    alone = tiny(tmp_path, repeats=[1, 10, 30], seeds=[1], equal_particles=None)
    other = {Point(r, 60, 1): learned(600 // r, 2.0, 2.0, 1) for r in (1, 10, 30)}
    table = learning_table(alone, other)
    assert set(table["curve"]) == {"equal responses"}
    said = " ".join(learning_findings(table))
    assert "not shown to be smaller with many particles" in said
    assert "One training says nothing" in said
    save_figure(learning_figure(table), tmp_path / "alone.png", "A curve.")


def test_the_notebook_runs_and_runs_again_at_once(tmp_path: Path) -> None:
    project = new_project(tmp_path)
    changes = {"artifacts": "artifacts", "reports": "reports", "study": "params/smoke.yaml"}
    path = project / "params" / "tiny.yaml"
    path.write_text(yaml.safe_dump(content(project, **changes, seeds=[1])), "utf-8")
    command = ("papermill", "notebooks/19_learning.ipynb", "out.ipynb", "-r", "learning")
    kept = project / "artifacts" / "learning" / "tiny"
    times = []
    for _ in range(2):
        done = run(project, *command, "params/tiny.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
        times.append({file.name: file.stat().st_mtime_ns for file in kept.glob("*.npz")})
    assert len(times[0]) == 3
    assert times[0] == times[1]
    table = pd.read_csv(project / "reports" / "tiny" / "learning.csv")
    assert set(table["part"]) == {"new", "seen"}
    assert (project / "reports" / "tiny" / "learning.png").is_file()
