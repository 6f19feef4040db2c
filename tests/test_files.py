"""A study's events: found, read once, kept, and read again where they have changed."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot

from tests.event_sets import assert_equal, table_of, write_pair
from zdc_nb.data.events import Events, Split, Trials
from zdc_nb.data.readers import read_parts
from zdc_nb.data.root import write_root
from zdc_nb.data.simulation import simulate, simulate_counted
from zdc_nb.data.validation import EventFileError
from zdc_nb.params import Study, derive_seed, load_study
from zdc_nb.storage import checksum
from zdc_nb.study import dataset as files
from zdc_nb.study.dataset import (
    data_digest,
    data_files,
    data_identity,
    data_report,
    study_events,
    study_split,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate(300, 5, 0, seed=3)


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

    def counted(*arguments: Any, **options: Any) -> tuple[Events, Trials]:
        calls.append(arguments)
        return simulate_counted(*arguments, **options)

    monkeypatch.setattr(files, "simulate_counted", counted)
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


@pytest.mark.parametrize("source", ["simulation", "files"])
@pytest.mark.parametrize("damage", ["empty", "another", "half", "a byte short", "no JSON"])
def test_a_damaged_data_file_of_a_study_is_made_again(
    study: Study,
    events: Events,
    source: str,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_root([events], Path("own.root"))
    own = with_data(study, file="own.root") if source == "files" else study
    expected, identity = study_events(own), data_identity(own)
    path = study.artifacts / "data.root"
    content = path.read_bytes()
    if damage == "no JSON":
        with uproot.update(path) as file:
            file["made_with"] = "{"
    else:
        damaged = {"empty": b"", "another": b"broken", "half": content[: len(content) // 2]}
        path.write_bytes(damaged.get(damage, content[:-1]))
    assert data_identity(own) == identity
    capsys.readouterr()
    assert_equal(study_events(own), expected)
    again = "simulating again" if source == "simulation" else "reading own.root"
    assert capsys.readouterr().out == f"{path} is damaged: {again}\n"
    assert_equal(study_events(own), expected)
    assert capsys.readouterr().out == ""


def test_events_that_were_changed_are_told_and_made_again_once_deleted(study: Study) -> None:
    expected = study_events(study)
    path = study.artifacts / "data.root"
    content = path.read_bytes()
    with uproot.open(path) as file:
        text = str(file["digest"]).encode()
    assert content.count(text) == 1
    path.write_bytes(content.replace(text, text[::-1]))
    with pytest.raises(EventFileError, match=r"data\.root: its checksum .* delete this file to"):
        study_events(study)
    path.unlink()
    assert_equal(study_events(study), expected)


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


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read or hashed for events since then: a growing list."""
    seen: list[Path] = []
    read = read_parts

    def counted_hash(path: Path) -> str:
        seen.append(path)
        return checksum(path)

    def counted_read(paths: list[Path], *rest: Any) -> Any:
        seen.extend(paths)
        return read(paths, *rest)

    files._sha256.cache_clear()
    monkeypatch.setattr(files, "checksum", counted_hash)
    monkeypatch.setattr(files, "read_parts", counted_read)
    return seen


def test_files_are_read_once_and_again_where_their_content_differs(
    study: Study, events: Events, reads: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    own = with_data(study, file="own.root")
    path = Path("own.root").absolute()
    write_root([events], path)
    first = study_events(own)
    assert reads.count(path) == 2, "once for the events, once for the checksum"
    reads.clear()
    capsys.readouterr()
    assert_equal(study_events(own), first)
    data_identity(own)
    data_report(own)
    assert reads == [] == capsys.readouterr().out.split()

    kept = study.artifacts / "data.root"
    made = kept.stat().st_mtime_ns
    os.utime(path, ns=(1, 1))
    assert_equal(study_events(own), first)
    assert reads == [path], "another time: hashed, but not read"
    assert kept.stat().st_mtime_ns == made, "what depends on it need not be made again"
    reads.clear()
    assert_equal(study_events(own), first)
    assert reads == []

    content = bytearray(path.read_bytes())
    write_root([events[::-1]], path)
    again = study_events(own)
    assert "was made from other data: reading own.root" in capsys.readouterr().out
    np.testing.assert_array_equal(again.responses, first[::-1].responses)
    path.write_bytes(content)
    assert_equal(study_events(own), first)


@pytest.mark.parametrize("values", [{"min_photons": 30}, {"strict": False}, {"file": "b.root"}])
def test_files_are_read_again_for_other_parameters(
    study: Study, events: Events, reads: list[Path], values: dict[str, Any]
) -> None:
    write_root([events], Path("a.root"))
    write_root([events[::2]], Path("b.root"))
    own = with_data(study, file="a.root")
    study_events(own)
    reads.clear()
    other = with_data(own, **values)
    assert len(study_events(other)) == data_report(other)["kept"]
    assert Path(str(other.data.file)).absolute() in reads
    # nor does the simulation take another's data for its own
    assert len(study_events(study)) == study.data.responses


def test_the_identity_is_that_of_content_and_parameters(study: Study, events: Events) -> None:
    write_root([events], Path("a.root"))
    write_root([events], Path("b.root"))
    own = with_data(study, file=["[ab].root"])
    assert data_files(own) == [Path("a.root").absolute(), Path("b.root").absolute()]
    identity = data_identity(own)
    assert not study.artifacts.exists(), "nothing is read or simulated for it"
    assert identity["files"] == [
        {
            "size": Path(name).stat().st_size,
            "sha256": hashlib.sha256(Path(name).read_bytes()).hexdigest(),
        }
        for name in ("a.root", "b.root")
    ]
    assert (identity["strict"], identity["min_photons"]) == (True, study.data.min_photons)
    study_events(own)
    assert data_identity(own) == identity == json.loads(json.dumps(identity))
    for values in ({"strict": False}, {"min_photons": 11}, {"file": "a.root"}):
        assert data_identity(with_data(own, **values)) != identity

    simulated = data_identity(study)
    assert simulated["responses"] == study.data.responses
    assert data_identity(study.model_copy(update={"seed": 1})) != simulated
    assert data_files(study) == []


def test_the_same_content_under_another_name_is_not_read_again(
    study: Study, events: Events, reads: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_root([events], Path("a.root"))
    own = with_data(study, file="a.root")
    first, identity, report = study_events(own), data_identity(own), data_report(own)
    kept = study.artifacts / "data.root"
    made = kept.stat().st_mtime_ns
    Path("a.root").rename("b.root")
    renamed = with_data(study, file="b.root")
    assert data_identity(renamed) == identity
    reads.clear()
    capsys.readouterr()
    assert_equal(study_events(renamed), first)
    assert (reads, capsys.readouterr().out) == ([], "")
    assert kept.stat().st_mtime_ns == made
    assert [set(file) for file in report["files"]] == [{"name", "size", "sha256"}]
    assert data_report(renamed) == {
        **report,
        "files": [{**report["files"][0], "name": "b.root"}],
    }
    # and is known by its new name from then on
    files._sha256.cache_clear()
    assert data_identity(renamed) == identity
    assert reads == []


def test_names_that_pair_files_otherwise_make_other_events(study: Study, events: Events) -> None:
    for k in (0, 1):
        np.savez(f"{k}_particles.npz", table_of(events, 10)[k::2])
        np.savez(f"{k}_responses.npz", events.responses[k::2])
    own = with_data(study, file=["*_particles.npz", "*_responses.npz"])
    assert [path.name[:3] for path in data_files(own)] == ["0_p", "0_r", "1_p", "1_r"]
    first, identity = study_events(own), data_identity(own)
    for old, new in (("0", "x"), ("1", "0"), ("x", "1")):
        Path(f"{old}_responses.npz").rename(f"{new}_responses.npz")
    assert data_identity(own) != identity
    assert not np.array_equal(study_events(own).photon_sum, first.photon_sum)


def test_the_same_content_twice_is_refused_with_both_names(study: Study, events: Events) -> None:
    write_root([events], Path("a.root"))
    Path("b.root").write_bytes(Path("a.root").read_bytes())
    with pytest.raises(EventFileError, match=r"b\.root: has the same content as a\.root"):
        study_events(with_data(study, file=["a.root", "b.root"]))
    assert not (study.artifacts / "data.root").exists()


def test_warnings_are_kept_with_the_data(study: Study, events: Events) -> None:
    in_cm = events.features.copy()
    in_cm[:, 1:4] *= 100
    write_root([Events.from_arrays(events.pdg, in_cm, events.photons)], Path("cm.root"))
    own = with_data(study, file="cm.root")
    for _ in range(2):  # also of a second run, which reads nothing
        study_events(own)
        (warning,) = data_report(own)["warnings"]
        assert "vz is" in warning
        assert "in cm?" in warning
    assert data_report(study)["warnings"] == []


def test_bad_rows_are_dropped_told_and_counted_where_asked(
    study: Study, events: Events, capsys: pytest.CaptureFixture[str]
) -> None:
    table, counts = table_of(events, 11), events.responses.astype(np.float64)
    table[3, 0] = np.nan
    table[4, 10] += 1
    table[5, 0] = table[5, 7] / 2e3
    counts[7, 0, 0], counts[8, 0, 0], counts[9, 0, 0], counts[10, 0, 0] = -1, 0.5, np.inf, 70000
    table[8, 0] = np.nan  # two faults count once
    table[11, 9] = 0.5
    pair = [str(path) for path in write_pair(Path(), table, counts)]
    with pytest.raises(EventFileError, match="row"):
        study_events(with_data(study, file=pair))
    own = with_data(study, file=pair, strict=False)
    read = study_events(own)
    said = capsys.readouterr().out
    good = np.delete(np.arange(len(events)), [3, 4, 5, 7, 8, 9, 10, 11])
    kept = good[events.photon_sum[good] >= study.data.min_photons]
    np.testing.assert_array_equal(read.responses, events[kept].responses)
    report = data_report(own)
    assert report["dropped"] == {
        "finite photon counts": 1,
        "whole photon counts": 1,
        "photon counts of at least 0": 1,
        "photon counts of at most 65535": 1,
        "finite numbers": 1,
        "a PDG code": 1,
        "an energy (GeV) that follows from momentum (GeV) and mass (MeV)": 1,
        "a photon sum equal to the response's": 1,
    }
    for expected in report["dropped"]:
        assert f"1 of {len(events)} rows dropped: expected {expected}" in said
    assert report["read"] == len(events)
    assert (report["kept"], report["faint"]) == (len(kept), len(good) - len(kept))
    assert report["guessed_species"] is False


def test_guessed_species_are_reported(study: Study, events: Events) -> None:
    pair = [str(path) for path in write_pair(Path(), table_of(events, 9), events.responses)]
    assert data_report(with_data(study, file=pair))["guessed_species"] is True
    assert data_report(study)["guessed_species"] is False


def test_a_file_without_a_good_row_is_told(study: Study, events: Events) -> None:
    bad = table_of(events, 11) * np.nan
    pair = [str(path) for path in write_pair(Path(), bad, events.responses)]
    with pytest.raises(EventFileError, match=r"no response has 10 photons; bad rows: .*300"):
        study_events(with_data(study, file=pair, strict=False))
    assert not (study.artifacts / "data.root").exists()


def test_a_file_that_changes_while_it_is_read_is_told(
    study: Study, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_root([events], Path("own.root"))

    def touched(*arguments: Any) -> Any:
        yield from read_parts(*arguments)
        os.utime("own.root", ns=(1, 1))

    monkeypatch.setattr(files, "read_parts", touched)
    with pytest.raises(EventFileError, match=r"own\.root: was changed while it was read"):
        study_events(with_data(study, file="own.root"))
    assert [path.name for path in study.artifacts.iterdir()] == [".data.lock"]


def test_a_study_does_not_read_what_it_writes(study: Study, events: Events) -> None:
    path = study.artifacts / "data.root"
    write_root([events], path)
    with pytest.raises(EventFileError, match=r"data\.root: the study writes this file itself"):
        study_events(with_data(study, file=str(path)))


@pytest.mark.parametrize("kind", ["root", "npz"])
def test_a_bar_shows_how_far_the_reading_is(
    study: Study, events: Events, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_root([events], Path("own.root"))
    pair = [str(path) for path in write_pair(Path(), table_of(events, 11), events.responses)]
    study_events(with_data(study, file="own.root" if kind == "root" else pair), progress=True)
    said = capsys.readouterr().out
    assert "reading:   0%" in said
    assert "reading: 100%|██████████|" in said


def test_the_events_of_any_format_are_the_same(study: Study, events: Events) -> None:
    write_root([events], Path("own.root"))
    pair = [str(path) for path in write_pair(Path(), table_of(events, 10), events.responses)]
    one, other = (study_events(with_data(study, file=file)) for file in ("own.root", pair))
    assert_equal(one, other)


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
        study_split(own, "n", study_events(own))
    with pytest.raises(EventFileError, match=r"few\.root, subset 'k0s': none of the 2 responses"):
        study_split(own, "k0s", study_events(own))
    simulated = with_data(study, max_responses={"all": 2})
    with pytest.raises(EventFileError, match=r"data\.root, subset 'all': 2 responses are too few"):
        study_split(simulated, "all", study_events(simulated))


def test_the_split_of_a_study_is_capped_seeded_and_disjoint(study: Study) -> None:
    everything = study_events(study)
    parts = study_split(with_data(study, max_responses={"all": 100}), "all", everything)
    assert [len(part) for part in parts[:3]] == [70, 10, 20]
    assert parts.reserved is parts.train
    whole = study_split(with_data(study, max_responses={}), "all", everything)[:3]
    assert sum(map(len, whole)) == len(everything)
    together = np.sort(np.concatenate([part.photon_sum for part in whole]))
    np.testing.assert_array_equal(together, np.sort(everything.photon_sum))
    neutrons = study_split(study, "n", everything)
    assert {int(code) for part in neutrons for code in part.pdg} == {2112}
    for one, other in zip(study_split(study, "n", everything), neutrons, strict=True):
        assert_equal(one, other)
    reseeded = study_split(study.model_copy(update={"seed": 1}), "n", everything)
    assert not np.array_equal(reseeded[0].responses, neutrons[0].responses)


BY_PARTICLE = {
    "split": "by_particle",
    "fractions": (0.5, 0.1, 0.4),
    "reserved": 0.6,
    "max_responses": {},
}


def particles_of(parts: Split) -> list[set[int]]:
    return [set(part.particle.tolist()) for part in parts]


def check_split_by_particle(parts: Split) -> None:
    train, validation, test, reserved = particles_of(parts)
    assert not train & validation
    assert not (train | validation) & (test | reserved)
    assert reserved <= test
    # of each test particle's m responses about 0.4 m are tested on, at least one
    for particle in test:
        tested = int((parts.test.particle == particle).sum())
        aside = int((parts.reserved.particle == particle).sum())
        assert tested == max(1, round(0.4 * (tested + aside)))


def test_files_split_by_particle_share_none(study: Study) -> None:
    everything = study_events(study)
    write_root([everything], Path("some.root"))
    own = with_data(study, file="some.root", **BY_PARTICLE)
    read = study_events(own)
    parts = study_split(own, "all", read)
    check_split_by_particle(parts)
    assert sum(map(len, parts)) == len(read)
    assert abs(len(parts.train) / len(read) - 0.5) < 0.05
    # a particle is on the same side in every data set
    alone = particles_of(study_split(own, "n", read))
    whole = particles_of(parts)
    assert (alone[2] | alone[3]) <= (whole[2] | whole[3])
    assert (alone[0] | alone[1]) <= (whole[0] | whole[1])
    few = study_split(with_data(own, max_test_responses={"all": 30}), "all", read)
    assert len(few.test) == 30
    assert_equal(few.reserved, parts.reserved)


def test_simulated_test_particles_are_others_and_simulated_more_often(study: Study) -> None:
    own = with_data(study, responses=1500, repeats=2, test_repeats=40, **BY_PARTICLE)
    everything = study_events(own)
    assert len(everything) == 1500
    parts = study_split(own, "all", everything)
    check_split_by_particle(parts)
    assert len(parts.test) + len(parts.reserved) == 600
    often = np.unique(parts.reserved.particle, return_counts=True)[1].max()
    assert np.unique(parts.train.particle, return_counts=True)[1].max() <= 2 < often
    # what there is to learn from is not changed by how much is tested
    alone = simulate(900, 2, own.data.min_photons, derive_seed(own.seed, "simulation"))
    learned = np.sort(np.concatenate([parts.train.photon_sum, parts.validation.photon_sum]))
    np.testing.assert_array_equal(np.sort(alone.photon_sum), learned)


def test_rare_species_come_as_often_as_asked(study: Study) -> None:
    plain = study_events(with_data(study, responses=3000, repeats=1))
    more = study_events(with_data(study, responses=3000, repeats=1, abundance={"sigma+": 40.0}))
    found = [int((events.pdg == 3222).sum()) for events in (plain, more)]
    # of photons alone 60 in 99.5 come, and few leave light: the share among kept responses
    share = found[0] / 3000
    expected = 3000 * 40 * share / (1 + 39 * share)
    assert found[0] > 5
    assert abs(found[1] - expected) < 5 * math.sqrt(40 * expected)
    assert data_identity(with_data(study, abundance={})) == data_identity(study)


def test_events_that_are_made_again_have_the_same_digest(study: Study) -> None:
    assert data_digest(study) is None
    study_events(study)
    digest = data_digest(study)
    assert digest is not None
    first = (study.artifacts / "data.root").read_bytes()
    (study.artifacts / "data.root").unlink()
    study_events(study)
    assert data_digest(study) == digest
    assert (study.artifacts / "data.root").read_bytes() != first, "ROOT files hold their time"
    other = study.model_copy(update={"seed": study.seed + 1})
    study_events(other)
    assert data_digest(other) != digest
