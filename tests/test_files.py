"""A study's events: found, read once, kept, and read again where they have changed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
from numpy.typing import NDArray

from zdc_nb import files
from zdc_nb.events import Events
from zdc_nb.files import study_events, study_split
from zdc_nb.files_root import write_root
from zdc_nb.params import Study, load_study
from zdc_nb.rows import EventFileError
from zdc_nb.simulation import simulate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate(300, 5, 0, seed=3)


def assert_equal(one: Events, other: Events) -> None:
    for name in ("pdg", "features", "responses", "particle"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def write_pair(folder: Path, table: NDArray[Any], counts: NDArray[Any]) -> tuple[Path, Path]:
    paths = folder / "data_particles.npz", folder / "data_responses.npz"
    np.savez(paths[0], table)
    np.savez_compressed(paths[1], counts)
    return paths


def table_of(events: Events, columns: int) -> NDArray[np.float64]:
    return np.column_stack([events.features, events.pdg, events.photon_sum])[:, :columns]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The smoke study in a folder of its own, with few responses."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "zdc_nb").mkdir()
    monkeypatch.chdir(tmp_path)
    return with_data(load_study(ROOT / "params" / "smoke.yaml"), responses=200, repeats=5)


def with_data(study: Study, **values: Any) -> Study:
    return study.model_copy(update={"data": study.data.model_copy(update=values)})


def test_the_simulation_runs_once_and_again_only_for_other_parameters(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def counted(*arguments: Any, **options: Any) -> Events:
        calls.append(arguments)
        return simulate(*arguments, **options)

    monkeypatch.setattr(files, "simulate", counted)
    first = study_events(study)
    assert len(first) == 200
    assert first.photon_sum.min() >= study.data.min_photons
    assert_equal(study_events(study), first)
    # the split and the cap do not touch the simulation
    assert_equal(study_events(with_data(study, max_responses={})), first)
    assert len(calls) == 1
    for changed in (
        with_data(study, responses=150),
        with_data(study, repeats=4),
        with_data(study, min_photons=20),
        study.model_copy(update={"seed": study.seed + 1}),
    ):
        capsys.readouterr()
        again = study_events(changed)
        assert "was made with other parameters: simulating again" in capsys.readouterr().out
        assert len(again) == changed.data.responses
        assert_equal(study_events(changed), again)
    assert len(calls) == 5
    with uproot.open(study.artifacts / "data.root") as file:
        assert json.loads(str(file["made_with"]))["responses"] == 200


def test_a_broken_data_file_of_a_study_is_told(study: Study) -> None:
    path = study.artifacts / "data.root"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"broken")
    with pytest.raises(EventFileError, match=r"data\.root: not readable as a ROOT file"):
        study_events(study)


def test_ones_own_file_is_filtered_and_never_simulated(
    study: Study, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(files, "simulate")
    write_root([events], Path("own.root"))
    pair = write_pair(Path(), table_of(events, 11), events.responses)
    expected = events[events.photon_sum >= study.data.min_photons]
    for file in ("own.root", [str(path) for path in pair]):
        read = study_events(with_data(study, file=file))
        np.testing.assert_array_equal(read.responses, expected.responses)
        np.testing.assert_array_equal(read.features, expected.features)


def test_ones_own_file_without_enough_light_is_told(study: Study, events: Events) -> None:
    write_root([events[events.photon_sum < 10]], Path("dim.root"))
    with pytest.raises(EventFileError, match=r"dim\.root: no response has 10 photons"):
        study_events(with_data(study, file="dim.root"))


def test_too_few_events_of_a_study_are_told_with_file_and_subset(
    study: Study, events: Events
) -> None:
    bright = events[events.photon_sum >= study.data.min_photons]
    neutrons = bright[bright.pdg == 2112]
    write_root([neutrons[:2]], Path("few.root"))
    own = with_data(study, file="few.root")
    with pytest.raises(EventFileError, match=r"few\.root, subset 'n': 2 responses are too few"):
        study_split(own, "n")
    with pytest.raises(EventFileError, match=r"few\.root, subset 'k0s': none of the 2 responses"):
        study_split(own, "k0s")
    simulated = with_data(study, max_responses={"all": 2})
    with pytest.raises(EventFileError, match=r"data\.root, subset 'all': 2 responses are too few"):
        study_split(simulated, "all")


def test_the_split_of_a_study_is_capped_seeded_and_disjoint(study: Study) -> None:
    parts = study_split(with_data(study, max_responses={"all": 100}), "all")
    assert [len(part) for part in parts] == [70, 10, 20]
    everything = study_events(study)
    whole = study_split(with_data(study, max_responses={}), "all")
    assert sum(map(len, whole)) == len(everything)
    together = np.sort(np.concatenate([part.photon_sum for part in whole]))
    np.testing.assert_array_equal(together, np.sort(everything.photon_sum))
    neutrons = study_split(study, "n")
    assert {int(code) for part in neutrons for code in part.pdg} == {2112}
    for one, other in zip(study_split(study, "n"), neutrons, strict=True):
        assert_equal(one, other)
    reseeded = study_split(study.model_copy(update={"seed": 1}), "n")
    assert not np.array_equal(reseeded[0].responses, neutrons[0].responses)
