"""Whole collisions: lists of particles, sums by event and side, and what they are compared with."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import uproot
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import wasserstein_distance

from tests.projects import ROOT, new_project, papermill, write_study
from zdc_nb.cli import main
from zdc_nb.data.collisions import can_be_simulated, draw_collisions, respond_once
from zdc_nb.data.events import FEATURES, Events
from zdc_nb.data.particles import Collisions, read_collisions, read_particles
from zdc_nb.data.simulation import Particles, model_of, respond, simulate
from zdc_nb.data.symbols import symbol
from zdc_nb.data.validation import EventFileError
from zdc_nb.detector import ZN, Detector, load_detector
from zdc_nb.evaluation.collisions import (
    BOTH_SIDES,
    channel_column,
    collision_findings,
    collision_sums,
    compare_collisions,
    dark_faces,
    dark_findings,
    left_out_findings,
    write_sums,
)
from zdc_nb.generator.collisions import answer_collisions, unanswered
from zdc_nb.generator.generator import Generator
from zdc_nb.params import ParameterError, Study, load_study
from zdc_nb.study import open_stage
from zdc_nb.study.collisions import collide, study_collisions

ODD = Detector(
    name="odd",
    shape=(3, 5),
    pitch=0.01,
    distance=10.0,
    offset=(0.0, 0.0),
    channels=("left", "the rest"),
    masks=np.stack([np.tile(np.arange(5) < 2, (3, 1)), np.tile(np.arange(5) >= 2, (3, 1))]),
)
"""A face with a middle row and a middle column."""

DETECTORS = {name: load_detector(name) for name in ("zn", "zp", "focal_h")} | {"odd": ODD}


def neutrons(pz: NDArray[np.float64], detector: Detector) -> Events:
    """Particles of these momenta along the beam (GeV)."""
    features = np.zeros((len(pz), len(FEATURES)))
    mass = 939.565
    features[:, FEATURES.index("pz")] = pz
    features[:, FEATURES.index("mass")] = mass
    features[:, FEATURES.index("energy")] = np.hypot(pz, mass / 1000)
    dark = sparse.csr_array((len(pz), detector.dim), dtype=np.uint16)
    return Events.from_arrays(np.full(len(pz), 2112, np.int32), features, dark, detector=detector)


def some_collisions(detector: Detector, count: int = 60) -> tuple[Collisions, NDArray[np.uint16]]:
    """Particles of nine events in any order, and made-up responses, a third of them dark."""
    rng = np.random.default_rng(3)
    sign = rng.choice([-1.0, 1.0], count) if len(detector.sides) == 2 else 1.0
    event = rng.choice([-4, 0, 7, 8, 100, 2**40, 5, 6, 12], count)
    responses = rng.poisson(0.4, (count, *detector.shape)).astype(np.uint16)
    responses[rng.random(count) < 1 / 3] = 0
    responses[event == 7] = 0
    pz = sign * rng.uniform(100, 2000, count)
    return Collisions(event, neutrons(pz, detector)), responses


def by_hand(
    collisions: Collisions, responses: NDArray[np.uint16], detector: Detector
) -> pd.DataFrame:
    """The table of sums, photon by photon."""
    rows = []
    pz = collisions.particles.features[:, FEATURES.index("pz")]
    light_of: dict[tuple[int, str], int] = {}
    for event in sorted({*collisions.event.tolist()}):
        for side in detector.sides:
            mine = (collisions.event == event) & ((pz > 0) == (side == "A"))
            channels = dict.fromkeys(detector.channels, 0)
            photons, row_sum, column_sum = 0, 0, 0
            left = right = top = bottom = 0
            for response in responses[mine]:
                for (i, j), n in np.ndenumerate(response.astype(int)):
                    photons += n
                    row_sum, column_sum = row_sum + n * i, column_sum + n * j
                    left += n if 2 * j < detector.shape[1] - 1 else 0
                    right += n if 2 * j > detector.shape[1] - 1 else 0
                    top += n if 2 * i < detector.shape[0] - 1 else 0
                    bottom += n if 2 * i > detector.shape[0] - 1 else 0
                    for name, mask in zip(detector.channels, detector.masks, strict=True):
                        channels[name] += n if mask[i, j] else 0
            light_of[event, side] = photons
            rows.append(
                {
                    "event": event,
                    "side": side,
                    "particles": int(mine.sum()),
                    "left_out": 0,
                    "photons": photons,
                    **{channel_column(name): n for name, n in channels.items()},
                    "row": row_sum / photons if photons else np.nan,
                    "column": column_sum / photons if photons else np.nan,
                    "left_right": (right - left) / (right + left) if right + left else np.nan,
                    "up_down": (top - bottom) / (top + bottom) if top + bottom else np.nan,
                }
            )
    table = pd.DataFrame(rows)
    if len(detector.sides) == 2:
        both = []
        for event in table["event"]:
            a, c = light_of[event, "A"], light_of[event, "C"]
            both.append((a - c) / (a + c) if a + c else np.nan)
        table["side_asymmetry"] = both
    return table


# --- Sums -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DETECTORS])
def test_sums_are_those_of_every_photon(name: str) -> None:
    detector = DETECTORS[name]
    collisions, responses = some_collisions(detector)
    found = collision_sums([(collisions, responses)], detector)
    expected = by_hand(collisions, responses, detector)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)
    dark = found[found["event"] == 7]
    assert (dark["photons"] == 0).all()
    assert dark["particles"].sum() > 0
    assert dark[["row", "column", "left_right", "up_down"]].isna().all(axis=None)
    assert {*found["side"]} == {*detector.sides}


@pytest.mark.parametrize("size", [1, 7, 60])
def test_neither_order_nor_the_size_of_parts_changes_a_sum(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    collisions, responses = some_collisions(ZN)
    expected = collision_sums([(collisions, responses)], ZN)
    monkeypatch.setattr("zdc_nb.evaluation.collisions._MERGE", 5)
    order = np.random.default_rng(size).permutation(len(collisions))
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    found = collision_sums(((collisions[part], responses[part]) for part in parts), ZN)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_events_without_particles_have_rows_and_who_is_left_out_is_counted() -> None:
    collisions, responses = some_collisions(ZN)
    half = slice(0, 30)
    rest = slice(30, None)
    parts: Any = [(collisions[half], responses[half]), (collisions[rest], None)]
    found = collision_sums(parts, ZN, np.array([999, 0]))
    alone = collision_sums(parts[:1], ZN)
    light = ["photons", *map(channel_column, ZN.channels)]
    merged = found.merge(alone, on=["event", "side"], how="left", suffixes=("", "_alone"))
    for name in ("particles", *light):
        np.testing.assert_array_equal(merged[name], merged[f"{name}_alone"].fillna(0))
    assert found["left_out"].sum() == 30
    assert found["particles"].sum() == 30
    empty = found[found["event"] == 999]
    assert empty["side"].tolist() == ["A", "C"]
    assert (empty[["particles", "left_out", *light]] == 0).all(axis=None)
    assert empty["side_asymmetry"].isna().all()


def test_on_one_side_none_of_the_other_is_added() -> None:
    detector = DETECTORS["focal_h"]
    assert (detector.sides, ZN.sides) == (("A",), ("A", "C"))
    collisions = Collisions(np.array([1, 1]), neutrons(np.array([50.0, -50.0]), detector))
    responses = np.ones((2, *detector.shape), np.uint16)
    with pytest.raises(ValueError, match=r"expected particles of side A.*got one of side C"):
        collision_sums([(collisions, responses)], detector)
    found = collision_sums([(collisions, None)], detector)
    # it flies to where there is nothing to be counted
    assert found[["side", "left_out"]].to_numpy().tolist() == [["A", 1]]
    assert "side_asymmetry" not in found


def test_a_table_is_the_same_in_csv_and_root(tmp_path: Path) -> None:
    collisions, responses = some_collisions(ZN)
    table = collision_sums([(collisions, responses)], ZN)
    for suffix in ("csv", "root"):
        write_sums(table, tmp_path / f"sums.{suffix}")
    csv = pd.read_csv(tmp_path / "sums.csv")
    pd.testing.assert_frame_equal(csv, table, rtol=1e-14)
    with uproot.open(tmp_path / "sums.root") as file:
        assert file.classnames() == {"events;1": "TTree"}
        branches = file["events"].arrays(library="np")
    for name in table:
        np.testing.assert_array_equal(branches[name], table[name].to_numpy())


# --- Lists of particles ---------------------------------------------------------------------------


def frame_of(collisions: Collisions) -> pd.DataFrame:
    frame = pd.DataFrame(collisions.particles.features, columns=[*FEATURES])
    return frame.assign(pdg=collisions.particles.pdg, event=collisions.event)


def write_list(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".npz":
        np.savez_compressed(path, frame.to_numpy(np.float64))
    else:
        with uproot.recreate(path) as file:
            columns = {str(name): frame[name].to_numpy() for name in frame}
            tree = file.mktree("particles", {name: v.dtype for name, v in columns.items()})
            tree.extend(columns)
    return path


@pytest.mark.parametrize("suffix", ["csv", "root", "npz"])
def test_lists_are_read_alike_and_still_are_lists_of_particles(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zdc_nb.data.particles.ROWS", 50)
    collisions = draw_collisions(12, 1, ZN)
    collisions = replace(collisions, event=collisions.event - 3)
    path = write_list(frame_of(collisions), tmp_path / f"particles.{suffix}")
    found = Collisions.join([*read_collisions(path)])
    np.testing.assert_array_equal(found.event, collisions.event)
    np.testing.assert_array_equal(found.particles.features, collisions.particles.features)
    np.testing.assert_array_equal(found.particles.pdg, collisions.particles.pdg)
    plain = Events.join([*read_particles(path)])
    np.testing.assert_array_equal(plain.features, collisions.particles.features)


@pytest.mark.parametrize("suffix", ["csv", "root"])
def test_large_numbers_of_events_stay_what_they_are(suffix: str, tmp_path: Path) -> None:
    collisions = draw_collisions(3, 1, ZN)
    collisions = replace(collisions, event=2**60 + collisions.event)
    path = write_list(frame_of(collisions), tmp_path / f"particles.{suffix}")
    (found,) = read_collisions(path)
    np.testing.assert_array_equal(found.event, collisions.event)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="event"), r"p\.csv: expected a column 'event'"),
        (lambda f: f.rename(columns={"event": "Event"}), "column 'event'; is it 'Event'"),
        (
            lambda f: f.assign(event=f["event"].astype(float).where(f.index != 7, 1.5)),
            r"row 7 \(counted from 0\): expected a whole number in column event, found 1.5",
        ),
        (
            lambda f: f.assign(event=f["event"].astype(float).where(f.index != 7)),
            "row 7 .*a whole number in column event, found nan",
        ),
        (
            lambda f: f.assign(event=f["event"].astype(object).where(f.index != 7, "first")),
            "row 7 .*a number in column event, found 'first'",
        ),
        (
            lambda f: f.assign(event=f["event"].astype(float).where(f.index != 7, 1e300)),
            "row 7 .*a whole number in column event",
        ),
        (
            lambda f: f.assign(
                px=f.px.where(f.index != 7, 1000.0),
                pz=f.pz.where(f.index != 7, 0.0),
                energy=f.energy.where(f.index != 7, np.sqrt(1e6 + f.py**2 + (f.mass / 1e3) ** 2)),
            ),
            "row 7 .*expected a pz above or below 0, which tells the side, found 0",
        ),
        (lambda f: f[:0], "holds no particles"),
    ],
)
def test_a_bad_list_is_refused_by_row_and_column(change: Any, message: str, tmp_path: Path) -> None:
    frame = change(frame_of(draw_collisions(3, 1, ZN)))
    path = write_list(frame, tmp_path / "p.csv")
    with pytest.raises(EventFileError, match=message):
        [*read_collisions(path)]


def test_an_npz_without_numbers_of_events_is_refused(tmp_path: Path) -> None:
    frame = frame_of(draw_collisions(3, 1, ZN)).drop(columns="event")
    path = write_list(frame, tmp_path / "p.npz")
    with pytest.raises(EventFileError, match="expected a column 'event'"):
        [*read_collisions(path)]


# --- Simulated collisions -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zn", "zp", "focal_h"])
def test_collisions_are_drawn_as_the_simulation_says(name: str) -> None:
    detector = DETECTORS[name]
    primaries = model_of(detector).primaries
    drawn = draw_collisions(4000, 5, detector)
    number = np.bincount(drawn.event, minlength=4000)
    mean = primaries.per_collision
    # of a Poisson distribution mean and variance agree; 5 standard errors
    assert abs(number.mean() - mean) < 5 * np.sqrt(mean / 4000)
    assert abs(number.var() - mean) < 5 * np.sqrt((mean + 2 * mean**2) / 4000)
    share = np.array([kind.abundance for kind in primaries.species])
    share /= share.sum()
    for kind, expected in zip(primaries.species, share, strict=True):
        found = (drawn.particles.pdg == kind.pdg).mean()
        assert abs(found - expected) < 5 * np.sqrt(expected / len(drawn)) + 1e-9
    pz = drawn.particles.features[:, FEATURES.index("pz")]
    forward = (pz > 0).mean()
    expected = 1.0 if primaries.sides == "one" else 0.5
    assert abs(forward - expected) < 5 * np.sqrt(expected * (1 - expected) / len(drawn)) + 1e-9
    vertices = pd.DataFrame(drawn.particles.features[:, 1:4]).groupby(drawn.event).nunique()
    assert (vertices == 1).all(axis=None)
    again = draw_collisions(4000, 5, detector)
    np.testing.assert_array_equal(again.particles.features, drawn.particles.features)
    np.testing.assert_array_equal(again.event, drawn.event)
    assert len(draw_collisions(4000, 6, detector)) != len(drawn)


def test_each_particle_is_simulated_once_and_a_seed_repeats_it() -> None:
    particles = draw_collisions(15, 2, ZN).particles
    assert len(particles) > 128
    found = [*respond_once(particles, 4)]
    assert [here.stop - here.start for here, _ in found[:-1]] == [64] * (len(found) - 1)
    responses = np.concatenate([part for _, part in found])
    assert responses.shape == (len(particles), 44, 44)
    np.testing.assert_array_equal(
        responses, np.concatenate([part for _, part in respond_once(particles, 4)])
    )
    other = np.concatenate([part for _, part in respond_once(particles, 5)])
    assert not np.array_equal(responses, other)
    # a part is what the simulation itself gives
    rng = np.random.default_rng(np.random.SeedSequence(4, spawn_key=(1,)))
    second = Particles(particles.pdg[64:128], particles.features[64:128])
    np.testing.assert_array_equal(responses[64:128], respond(rng, second, 1, ZN))


# --- Generated against simulated ------------------------------------------------------------------


def made_up(rng: np.random.Generator, events: int, detector: Detector) -> pd.DataFrame:
    """A table of sums of independent random numbers."""
    n = events * len(detector.sides)
    table = pd.DataFrame({"event": np.repeat(np.arange(events), len(detector.sides))})
    table["side"] = np.tile(detector.sides, events)
    for name in ("photons", *map(channel_column, detector.channels)):
        table[name] = rng.poisson(300.0, n)
    for name in ("row", "column", "left_right", "up_down"):
        table[name] = rng.normal(0, 1, n)
    table["side_asymmetry"] = np.repeat(rng.normal(0, 1, events), len(detector.sides))
    return table


def test_distances_means_and_widths_are_those_of_the_events() -> None:
    rng = np.random.default_rng(1)
    one, again, other = (made_up(rng, 150, ZN) for _ in range(3))
    other["photons"] += 100
    other["row"] *= 2
    dark = (one["event"] < 30) & (one["side"] == "C")
    one.loc[dark, "column"] = np.nan
    found = compare_collisions(one, again, other, ZN, seed=1).set_index(["side", "quantity"])
    assert len(found) == 2 * (1 + 5 + 4) + 1
    assert found["events"].drop(("C", "column")).eq(150).all()
    assert found["events"]["C", "column"] == 120
    for row in found.reset_index().to_dict("records"):
        side, name = row["side"], row["quantity"]
        of = "A" if side == BOTH_SIDES else side
        parts = [table.loc[table["side"] == of, name] for table in (one, other, again)]
        there = parts[0].notna().to_numpy()
        x, y, z = (part[there] for part in parts)
        assert row["WS"] == pytest.approx(wasserstein_distance(x, y))
        assert row["WS_floor"] == pytest.approx(wasserstein_distance(x, z))
        assert row["shift"] == pytest.approx(y.mean() - x.mean())
        assert row["width"] == pytest.approx(x.std(ddof=0))
        assert row["mean_generated"] == pytest.approx(y.mean())
        assert row["width_generated"] == pytest.approx(y.std(ddof=0))
        assert row["ratio"] == pytest.approx(y.std(ddof=0) / x.std(ddof=0))
        assert row["shift_floor"] == pytest.approx(z.mean() - x.mean())
        assert row["ratio_floor"] == pytest.approx(z.std(ddof=0) / x.std(ddof=0))
        # events are drawn in pairs: of the difference, the central limit theorem
        half = 1.96 * (y.to_numpy() - x.to_numpy()).std() / np.sqrt(len(x))
        assert row["shift_high"] - row["shift_low"] == pytest.approx(2 * half, rel=0.25)
        assert row["shift_low"] < row["shift"] < row["shift_high"]
        assert row["ratio_low"] < row["ratio"] < row["ratio_high"]
    for side in ("A", "C"):
        assert found["WS"][side, "photons"] > 5 * found["WS_chance"][side, "photons"]
        assert found["ratio_low"][side, "row"] > 1.5
    text = collision_findings(found.reset_index())
    assert "photon sum (A)" in text.split("Beyond chance:")[1]
    assert "row of the centre (C)" in text.split("Other:")[1]


def test_chance_is_exceeded_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    beyond, shifted, count = 0, 0, 0
    for seed in range(12):
        # what an event has in common makes both alike, and must not matter
        one, again, other = (made_up(rng, 80, ZN) for _ in range(3))
        common = rng.normal(0, 2, len(one))
        for table in (one, other):
            table["row"] += common
        found = compare_collisions(one, again, other, ZN, seed, draws=200)
        beyond += (found["WS"] > found["WS_chance"]).sum()
        shifted += ((found["shift_low"] > 0) | (found["shift_high"] < 0)).sum()
        count += len(found)
    assert 0.01 * count < beyond < 0.1 * count
    assert 0.01 * count < shifted < 0.12 * count


def test_quantities_that_no_event_has_are_not_compared() -> None:
    rng = np.random.default_rng(1)
    one, again, other = (made_up(rng, 20, ZN) for _ in range(3))
    one[["row", "side_asymmetry"]] = np.nan
    other["photons"] = one["photons"] = again["photons"] = 0
    found = compare_collisions(one, again, other, ZN, 1, draws=20).set_index(["side", "quantity"])
    assert found["events"]["A", "row"] == 0
    assert found.drop(columns="events").xs(("A", "row")).isna().all()
    assert found["WS"]["A", "photons"] == 0
    text = collision_findings(found.reset_index())
    assert "of 18 quantities" in text
    assert "nan" not in text
    assert "nothing can be said" in collision_findings(found.reset_index().assign(events=0))


def test_dark_faces_are_counted_by_side() -> None:
    table = made_up(np.random.default_rng(1), 20, ZN)
    table.loc[(table["side"] == "C") & (table["event"] < 5), "photons"] = 0
    dark = dark_faces(table)
    assert dark.to_dict() == {"A": 0.0, "C": 0.25}
    rows = pd.DataFrame({"simulated": dark, "again": dark, "bright": 2 * dark, "generated": 0.5})
    said = dark_findings(rows, 10)
    assert "25.0% and 25.0% in two simulations, 50.0% in the first without" in said
    assert "fewer than 10 photons, 50.0% generated (C)" in said
    assert "0.0% and 0.0% in two simulations, 0.0% in" in said


# --- From particles alone -------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "subsets": ["all"],
    "setups": ["bs"],
    "data": {"responses": 1500, "max_responses": {}},
    "splitting": {"epochs": 1},
    "photon_sum": {"epochs": 2},
    "signal": {"epochs": 1},
    "evaluation": {"runs": 2, "figure_particles": 1},
    "collisions": {"file": None, "events": 25},
    "speed": {"setup": "bs", "batches": [1, 4], "runs": 1},
}


def trained(project: Path, detector: str) -> Study:
    """A study whose generator's parts are trained and whose evaluation is not done."""
    write_study(new_project(project), "tiny", TINY | {"detector": detector})
    study = load_study("params/tiny.yaml")
    keys = {"study": "params/tiny.yaml", "subset": "all"}
    open_stage("04_splitting_flow", **keys).train()
    open_stage("05_photon_sum", **keys).train_photon_sum()
    open_stage("06_signal", **keys).train_signal()
    return study


@pytest.fixture(scope="module", params=["zn", "zp", "focal_h"])
def project(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp(request.param) / "project"
    with pytest.MonkeyPatch.context() as patch:
        folder.mkdir()
        patch.chdir(folder)
        trained(folder, request.param)
    return folder, request.param


@pytest.fixture
def tiny(project: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(project[0])
    return load_study("params/tiny.yaml")


def generator_of(study: Study) -> Generator:
    return open_stage("16_collisions", study=f"params/{study.name}.yaml", subset="all").generator()


def test_the_notebook_puts_collisions_side_by_side(tiny: Study, project: tuple[Path, str]) -> None:
    done = papermill(project[0], "16_collisions", "tiny", "subset", "all")
    assert done.returncode == 0, done.stdout + done.stderr
    detector = load_detector(project[1])
    table = pd.read_csv(tiny.reports / "tables" / "collisions-all.csv")
    sides = len(detector.sides)
    assert len(table) == sides * (1 + len(detector.channels) + 4) + (sides == 2)
    assert np.isfinite(table.loc[table["events"] > 1, ["WS", "WS_floor", "WS_chance"]]).all(
        axis=None
    )
    sums = pd.read_csv(tiny.reports / "tables" / "collision_sums-all.csv")
    kinds = {kind: part.reset_index(drop=True) for kind, part in sums.groupby("kind")}
    assert {*kinds} == {"simulated", "simulated again", "generated"}
    for part in kinds.values():
        assert len(part) == 25 * sides
        # all three are of the same particles
        same = ["event", "side", "particles"]
        pd.testing.assert_frame_equal(part[same], kinds["simulated"][same])
        assert part["photons"].sum() > 0
    assert not kinds["simulated"]["photons"].equals(kinds["simulated again"]["photons"])
    for name in ("sums", "asymmetries", "centres"):
        assert (tiny.reports / "figures" / f"16_{name}-all.png").is_file()
    notebook = nbformat.read("16_collisions.out.ipynb", as_version=4)
    said = notebook.cells[-1].outputs[0]["data"]["text/markdown"]
    assert "**Distributions.**" in said
    assert "nan" not in said


def test_a_collided_study_is_repeated_by_its_seed_and_left_out_particles_are_counted(
    tiny: Study, project: tuple[Path, str]
) -> None:
    generator = generator_of(tiny)
    detector = load_detector(project[1])
    one, two = (collide(tiny, generator) for _ in range(2))
    pd.testing.assert_frame_equal(one.compared, two.compared, check_exact=True)
    other = collide(tiny.model_copy(update={"seed": tiny.seed + 1}), generator)
    assert not one.generated.equals(other.generated)
    collisions, numbers = study_collisions(tiny)
    assert numbers.tolist() == list(range(25))
    answered = unanswered(generator, collisions.particles) == ""
    for table in one.sums:
        assert table["particles"].sum() == answered.sum()
    assert one.left_out["particles"].sum() == (~answered).sum()
    assert one.particles == len(collisions)
    # a list with a muon, which neither knows, and a particle to the other side
    first = collisions[:40]
    frame = frame_of(first)
    frame.loc[3, ["pdg", "mass", "charge"]] = [13, 105.658, -1.0]
    momenta = frame.loc[3, ["px", "py", "pz"]].to_numpy(np.float64)
    frame.loc[3, "energy"] = np.sqrt((momenta**2).sum() + 0.105658**2)
    frame["pz"] = frame["pz"].where(frame.index != 5, -frame["pz"])
    write_list(frame.sample(frac=1, random_state=1), Path("list.csv"))
    assert tiny.collisions is not None
    section = tiny.collisions.model_copy(update={"file": "list.csv", "events": 3})
    listed = tiny.model_copy(update={"collisions": section})
    found = collide(listed, generator)
    few = frame[frame["event"] < 3]
    assert found.particles == len(few)
    reasons = found.left_out.groupby("reason")["particles"].sum()
    muon = found.left_out[found.left_out["pdg"] == 13]
    assert muon[["reason", "particles"]].to_numpy().tolist() == [["species", 1]]
    assert muon["share"].isna().all()
    assert ("side" in reasons.index) == (detector.sides == ("A",))
    for table in found.sums:
        assert table["event"].unique().tolist() == [0, 1, 2]
        assert table["particles"].sum() == len(few) - reasons.sum()
    # a face is dark more often where faint responses are dropped
    assert (found.dark["bright"] >= found.dark["simulated"]).all()
    assert found.dark["simulated"].to_numpy() * 3 == pytest.approx(
        [(part["photons"] == 0).sum() for _, part in found.simulated.groupby("side", sort=False)]
    )
    assert f"{reasons.sum()} of {len(few)} particles" in left_out_findings(
        found.particles, found.left_out
    )


def test_who_is_left_out_is_told_by_reason_with_the_light_that_is_missing() -> None:
    rows = [("energy", 22, 3, 0.02), ("energy", 2112, 1, 0.01), ("species", 13, 2, np.nan)]
    left_out = pd.DataFrame(rows, columns=["reason", "pdg", "particles", "share"])
    said = left_out_findings(100, left_out)
    assert "6 of 100 particles (6.00%) are left out of all sums" in said
    assert f"4 of energies that it has not learned ({symbol(22)} 3, n 1)" in said
    assert "2 of species that the generator has not learned (μ⁻ 2)" in said
    assert "bring 3.00% of the simulated light, 2 that cannot be simulated not counted" in said
    assert "is not known" in left_out_findings(100, left_out[2:])
    assert left_out_findings(100, left_out[:0]) == "All 100 particles are in all of the sums."


def test_what_a_study_cannot_compare_is_refused(tiny: Study) -> None:
    with pytest.raises(ParameterError, match="collisions: expected a section"):
        study_collisions(tiny.model_copy(update={"collisions": None}))
    section = tiny.collisions and tiny.collisions.model_copy(update={"file": "none.csv"})
    with pytest.raises(FileNotFoundError):
        study_collisions(tiny.model_copy(update={"collisions": section}))


def test_a_generator_moves_particles_to_the_vertex_that_was_learned(tiny: Study) -> None:
    generator = generator_of(tiny)
    train = open_stage("04_splitting_flow", study="params/tiny.yaml", subset="all").train_events
    conditions = [name for name, _ in generator.detector.conditions]
    for name, found in zip(("vx", "vy", "vz"), generator.vertex, strict=True):
        mean = train.features[:, FEATURES.index(name)].mean()
        assert found == pytest.approx(mean if name in conditions else 0.0, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("batch", [1, 64, 1000])
def test_generated_sums_are_those_of_the_responses_whatever_the_batch(
    tiny: Study, batch: int
) -> None:
    generator = generator_of(tiny)
    collisions, _ = study_collisions(tiny)
    detector = generator.detector
    known = unanswered(generator, collisions.particles) == ""
    responses = generator.sample(collisions.particles[known], seed=3)
    expected = collision_sums(
        [(collisions[known], responses), (collisions[~known], None)], detector
    )
    parts = [collisions[:10], collisions[10:11], collisions[11:]]
    found = collision_sums(answer_collisions(generator, parts, 3, batch), detector)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_the_command_sums_events_and_names_what_it_leaves_out(
    tiny: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = generator_of(tiny)
    model = tmp_path / "generator.safetensors"
    generator.save(model)
    assert Generator.load(model).detector.sides == generator.detector.sides
    collisions, _ = study_collisions(tiny)
    frame = frame_of(collisions)
    known = unanswered(generator, collisions.particles) == ""
    tables = []
    for suffix, out in (("csv", "csv"), ("root", "csv"), ("csv", "root")):
        source = write_list(frame, tmp_path / f"particles.{suffix}")
        target = tmp_path / f"sums_{suffix}.{out}"
        given = ["generate", "--model", str(model), "--particles", str(source), "--events"]
        assert main([*given, "--out", str(target), "--seed", "3"]) == 0
        said = capsys.readouterr().out
        assert f"{known.sum()} particles" in said
        assert ("left out" in said) == (not known.all())
        if out == "csv":
            tables.append(pd.read_csv(target))
    pd.testing.assert_frame_equal(tables[0], tables[1])
    expected = collision_sums(
        answer_collisions(generator, [collisions], 3, 512), generator.detector
    )
    pd.testing.assert_frame_equal(tables[0], expected)
    assert tables[0]["left_out"].sum() == (~known).sum()
    write_list(frame.drop(columns="event"), source)
    before = target.read_bytes()
    assert main([*given, "--out", str(target)]) == 2
    assert "expected a column 'event'" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert main([*given, "--out", str(tmp_path / "sums.npz")]) == 2
    assert "expected a .csv or .root file" in capsys.readouterr().err


def test_the_command_of_the_docs_runs_as_it_stands(
    tiny: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, (collisions, _) = generator_of(tiny), study_collisions(tiny)
    text = (ROOT / "docs" / "generator.md").read_text("utf-8").replace("\\\n", "")
    (line,) = [
        line for line in text.splitlines() if line.startswith(".venv") and "--events" in line
    ]
    program, *words = shlex.split(line)
    assert program == ".venv/bin/zdc-nb"
    monkeypatch.chdir(tmp_path)
    model = Path(words[words.index("--model") + 1])
    model.parent.mkdir(parents=True)
    generator.save(model)
    write_list(frame_of(collisions), Path(words[words.index("--particles") + 1]))
    assert main(words) == 0
    sums = pd.read_csv(words[words.index("--out") + 1])
    assert {*sums["event"]} == {*collisions.event.tolist()}
    # the page tells what every column is
    section = text.split("### Whole events")[1].split("\n## ")[0]
    for name in map(str, sums):
        assert f"`{name}`" in section or (name.startswith("channel_") and "`channel_*`" in section)


def test_particles_that_cannot_be_simulated_are_told() -> None:
    events = simulate(50, 1, 10, seed=1)
    assert can_be_simulated(events).all()
    muons = replace(events, pdg=np.full(50, 13, np.int32))
    assert not can_be_simulated(muons).any()
