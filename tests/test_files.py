"""Events on disk: exact round trips, and everything that may be wrong with a file."""

import json
import tracemalloc
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from particle import Particle

from zdc_nb import files
from zdc_nb.events import FEATURES, Events
from zdc_nb.files import (
    EventFileError,
    nearest_species,
    read_events,
    read_npz,
    read_root,
    study_events,
    study_split,
    write_root,
)
from zdc_nb.params import Study, load_study
from zdc_nb.simulation import SPECIES, simulate

ROOT = Path(__file__).parents[1]
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate(300, 5, 0, seed=3)


def assert_equal(one: Events, other: Events) -> None:
    for name in ("pdg", "features", "responses", "particle"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def numbered_anew(events: Events) -> Events:
    """With the numbers of particles that these events have by themselves."""
    return Events.from_arrays(events.pdg, events.features, events.responses)


def write_tree(path: Path, branches: dict[str, Any], tree: str = "zn") -> Path:
    with uproot.recreate(path) as file:
        file.mktree(
            tree,
            {
                k: v.type.content if isinstance(v, ak.Array) else v.dtype
                for k, v in branches.items()
            },
        ).extend(branches)
    return path


def branches_of(events: Events) -> dict[str, Any]:
    """What a ROOT file holds, made fibre by fibre and not as the package does it."""
    index: list[list[int]] = []
    photons: list[list[int]] = []
    for response in events.responses:
        lit = [(44 * i + j, int(response[i, j])) for i in range(44) for j in range(44)]
        index.append([fibre for fibre, light in lit if light])
        photons.append([light for _, light in lit if light])
    return {
        "pdg": events.pdg,
        **{name: events.features[:, k] for k, name in enumerate(FEATURES)},
        "photon_sum": np.array([sum(light) for light in photons]),
        "index": ak.values_astype(ak.Array(index), np.int32),
        "photons": ak.values_astype(ak.Array(photons), np.int32),
    }


# --- ROOT


def test_root_gives_back_exactly_what_was_written(events: Events, tmp_path: Path) -> None:
    assert (events.photon_sum == 0).any(), "empty responses have to survive too"
    write_root(events, tmp_path / "a.root")
    assert_equal(read_root(tmp_path / "a.root"), events)
    assert_equal(read_events(str(tmp_path / "a.root")), events)
    assert [path.name for path in tmp_path.iterdir()] == ["a.root"]


@settings(max_examples=15, deadline=None)
@given(
    lit=st.lists(
        st.dictionaries(st.integers(0, 1935), st.integers(1, 65535), max_size=8).filter(
            lambda fibres: sum(fibres.values()) <= 65535
        ),
        min_size=1,
        max_size=5,
    ),
    value=st.floats(allow_nan=False, allow_infinity=False),
)
def test_root_keeps_any_counts_and_any_finite_feature(
    lit: list[dict[int, int]], value: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    responses = np.zeros((len(lit), 1936), np.uint16)
    for row, fibres in zip(responses, lit, strict=True):
        row[list(fibres)] = list(fibres.values())
    events = Events.from_arrays(
        np.full(len(lit), -2112, np.int32),
        np.full((len(lit), 9), value),
        responses.reshape(-1, 44, 44),
    )
    path = tmp_path_factory.mktemp("any") / "a.root"
    write_root(events, path)
    assert_equal(read_root(path), events)


def test_the_tree_is_laid_out_as_documented(events: Events, tmp_path: Path) -> None:
    write_root(events, tmp_path / "a.root", "hello")
    expected = branches_of(events)
    with uproot.open(tmp_path / "a.root") as file:
        tree = file["zn"]
        assert {name for name in tree.keys() if not name.startswith("n")} == set(expected)  # noqa: SIM118
        for name, values in expected.items():
            assert ak.all(tree[name].array() == values), name
        assert str(file["made_with"]) == "hello"


def test_a_tree_made_elsewhere_is_read(events: Events, tmp_path: Path) -> None:
    branches = branches_of(events)
    branches["photon_sum"] = branches["photon_sum"].astype(np.float64)
    branches["energy"] = branches["energy"].astype(np.float32)
    read = read_root(write_tree(tmp_path / "a.root", branches))
    np.testing.assert_array_equal(read.responses, events.responses)
    np.testing.assert_allclose(read.features, events.features, rtol=1e-6)


def test_baskets_are_joined_and_their_rows_counted_through(
    events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BASKET", 7)
    write_root(events, tmp_path / "a.root")
    assert_equal(read_root(tmp_path / "a.root"), events)
    branches = branches_of(events[events.photon_sum > 100][:30])
    put("photons", 25, -1)(branches)
    path = write_tree(tmp_path / "b.root", branches)
    with pytest.raises(EventFileError, match=r"row 25 .*photon counts"):
        read_root(path)


def put(name: str, row: int, value: float) -> Change:
    """Change one number of a branch."""

    def change(branches: dict[str, Any]) -> None:
        if isinstance(branches[name], ak.Array):
            lists = ak.to_list(branches[name])
            lists[row][0] = value
            branches[name] = ak.values_astype(ak.Array(lists), np.int32)
        else:
            array = branches[name].astype(np.result_type(branches[name], type(value)))
            array[row] = value
            branches[name] = array

    return change


def lose_a_photon_list(branches: dict[str, Any]) -> None:
    lists = ak.to_list(branches["photons"])
    lists[1] = lists[1][:-1]
    branches["photons"] = ak.values_astype(ak.Array(lists), np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("vz"), "lacks vz"),
        (lambda b: (b.pop("index"), b.pop("photon_sum")), "lacks photon_sum, index"),
        (put("energy", 2, np.nan), r"row 2 .*finite features"),
        (put("px", 1, np.inf), r"row 1 .*finite features"),
        (put("pdg", 1, 22.5), r"row 1 .*a PDG code"),
        (put("pdg", 1, np.nan), r"row 1 .*a PDG code"),
        (put("pdg", 1, 1e12), r"row 1 .*a PDG code"),
        (put("index", 1, 1936), r"row 1 .*fibres from 0 to 1935"),
        (put("index", 1, -1), r"row 1 .*fibres from 0 to 1935"),
        (put("photons", 2, -3), r"row 2 .*photon counts from 0 to 65535"),
        # 65536 photons are none in 16 bits
        (put("photons", 2, 65536), r"row 2 .*photon counts from 0 to 65535"),
        (put("photon_sum", 0, 5), r"row 0 .*a photon sum equal to the response's"),
        (lose_a_photon_list, r"row 1 .*as many photons as lit fibres"),
        (lambda b: b.update(index=b["pdg"]), "'index': expected integers for each lit fibre"),
        (lambda b: b.update(mass=b["photons"]), "'mass': expected one number for each response"),
        (
            lambda b: b.update(photons=ak.values_astype(b["photons"], np.float64)),
            "'photons': expected integers for each lit fibre",
        ),
    ],
    ids=map(str, count()),
)
def test_a_fault_in_a_tree_is_told(
    events: Events, tmp_path: Path, change: Change, message: str
) -> None:
    bright = events[events.photon_sum > 100][:4]
    branches = branches_of(bright)
    change(branches)
    path = write_tree(tmp_path / "a.root", branches)
    with pytest.raises(EventFileError, match=message) as error:
        read_root(path)
    assert str(path) in str(error.value)


def test_a_fibre_named_twice_is_told(events: Events, tmp_path: Path) -> None:
    branches = branches_of(events[events.photon_sum > 100][:3])
    lists = ak.to_list(branches["index"])
    lists[2][1] = lists[2][0]
    branches["index"] = ak.values_astype(ak.Array(lists), np.int32)
    path = write_tree(tmp_path / "a.root", branches)
    with pytest.raises(EventFileError, match=r"row 2 .*each lit fibre once"):
        read_root(path)


def test_another_tree_or_an_empty_one_is_told(events: Events, tmp_path: Path) -> None:
    branches = branches_of(events[:3])
    other = write_tree(tmp_path / "other.root", branches, tree="zp")
    with pytest.raises(EventFileError, match=r"other\.root: no TTree 'zn', found \['zp'\]"):
        read_root(other)
    empty = tmp_path / "empty.root"
    write_root(events[:0], empty)
    with pytest.raises(EventFileError, match=r"empty\.root: holds no responses"):
        read_root(empty)


def test_bytes_that_are_not_root_are_told(events: Events, tmp_path: Path) -> None:
    text = tmp_path / "text.root"
    text.write_text("not a ROOT file")
    nothing = tmp_path / "nothing.root"
    nothing.write_bytes(b"")
    for path in (text, nothing, tmp_path):
        with pytest.raises(EventFileError, match="not readable as a ROOT file"):
            read_root(path)
    with pytest.raises(FileNotFoundError):
        read_root(tmp_path / "missing.root")
    write_root(events, tmp_path / "whole.root")
    content = (tmp_path / "whole.root").read_bytes()
    for share in (0.2, 0.5, 0.9):
        cut = tmp_path / "cut.root"
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(EventFileError, match=r"cut\.root: not readable as a ROOT file"):
            read_root(cut)


def test_an_interrupted_write_leaves_nothing(
    events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_root(events[:5], tmp_path / "a.root")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ak, "unflatten", stop)
    with pytest.raises(KeyboardInterrupt):
        write_root(events, tmp_path / "a.root")
    assert len(read_root(tmp_path / "a.root")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.root"]


# --- npz pair


def write_pair(folder: Path, table: NDArray[Any], counts: NDArray[Any]) -> tuple[Path, Path]:
    paths = folder / "data_particles.npz", folder / "data_responses.npz"
    np.savez(paths[0], table)
    np.savez_compressed(paths[1], counts)
    return paths


def table_of(events: Events, columns: int) -> NDArray[np.float64]:
    return np.column_stack([events.features, events.pdg, events.photon_sum])[:, :columns]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8, np.uint16])
@pytest.mark.parametrize("columns", [9, 10, 11])
def test_npz_pairs_of_every_kind_are_read(
    events: Events, tmp_path: Path, columns: int, dtype: type
) -> None:
    faint = events[events.responses.max(axis=(1, 2)) < 256]
    pair = write_pair(tmp_path, table_of(faint, columns), faint.responses.astype(dtype))
    read = read_events(list(pair))
    np.testing.assert_array_equal(read.responses, faint.responses)
    np.testing.assert_array_equal(read.features, faint.features)
    if columns > 9:
        assert_equal(read, faint)


def cell(row: int, column: int, value: float) -> Callable[..., None]:
    def change(table: NDArray[Any], counts: NDArray[Any]) -> None:  # noqa: ARG001
        table[row, column] = value

    return change


def fibre(row: int, value: float) -> Callable[..., None]:
    def change(table: NDArray[Any], counts: NDArray[Any]) -> None:  # noqa: ARG001
        counts[row, 20, 20] = value

    return change


@pytest.mark.parametrize(
    ("change", "file", "message"),
    [
        (cell(3, 0, np.nan), "particles", r"row 3 .*finite numbers"),
        (cell(2, 9, np.inf), "particles", r"row 2 .*finite numbers"),
        (cell(2, 9, 21.7), "particles", r"row 2 .*a PDG code"),
        (cell(4, 10, 1e6), "particles", r"row 4 .*a photon sum equal to the response's"),
        (fibre(1, np.nan), "responses", r"row 1 .*finite photon counts"),
        (fibre(1, 0.5), "responses", r"row 1 .*whole photon counts"),
        (fibre(0, -1), "responses", r"row 0 .*at least 0"),
        (fibre(5, 65536), "responses", r"row 5 .*photon counts of at most 65535"),
        (fibre(5, 65535), "particles", r"row 5 .*at most 65535 photons in all"),
    ],
    ids=map(str, count()),
)
def test_a_fault_in_a_pair_is_told(
    events: Events, tmp_path: Path, change: Callable[..., None], file: str, message: str
) -> None:
    table, counts = table_of(events, 11), events.responses.astype(np.float64)
    change(table, counts)
    counts[5, 0, 0] += 1  # some light beside the fibre that is changed
    pair = write_pair(tmp_path, table, counts)
    with pytest.raises(EventFileError, match=message) as error:
        read_npz(*pair)
    assert f"data_{file}.npz" in str(error.value)


def test_counts_of_a_pair_are_checked_in_parts_and_their_rows_counted_through(
    events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BASKET", 7)
    few = numbered_anew(events[:30])
    pair = write_pair(tmp_path, table_of(few, 11), few.responses)
    assert_equal(read_npz(*pair), few)
    counts = few.responses.astype(np.int64)
    counts[25, 3, 3] = -1
    with pytest.raises(EventFileError, match=r"row 25 .*at least 0"):
        read_npz(*write_pair(tmp_path, table_of(few, 11), counts))


def test_reading_a_pair_takes_little_more_memory_than_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BASKET", 100)
    counts = np.zeros((4000, 44, 44), np.uint16)
    pair = write_pair(tmp_path, np.ones((len(counts), 10)), counts)
    tracemalloc.start()
    read_npz(*pair)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * counts.nbytes


def test_photons_of_a_tree_fit_in_16_bits_in_all(events: Events, tmp_path: Path) -> None:
    responses = np.zeros((3, 44, 44), np.uint16)
    responses[:, 3, 4] = 65535
    most = Events.from_arrays(events.pdg[:3], events.features[:3], responses.copy())
    write_root(most, tmp_path / "most.root")
    assert_equal(read_root(tmp_path / "most.root"), most)
    responses[1, 9, 9] = 1
    write_root(Events.from_arrays(most.pdg, most.features, responses), tmp_path / "more.root")
    with pytest.raises(EventFileError, match=r"more\.root: row 1 .*at most 65535 photons in all"):
        read_root(tmp_path / "more.root")


@pytest.mark.parametrize(
    ("table", "counts", "message"),
    [
        ((5, 8), (5, 44, 44), r"expected rows of 9, 10 or 11 numbers .*\(5, 8\)"),
        ((5, 12), (5, 44, 44), "expected rows of 9, 10 or 11 numbers"),
        ((9,), (5, 44, 44), "expected rows of 9, 10 or 11 numbers"),
        ((5, 9), (5, 1936), r"expected \(N, 44, 44\) counts, got \(5, 1936\)"),
        ((5, 9), (5, 44, 44, 1), r"expected \(N, 44, 44\) counts"),
        ((5, 9), (), r"expected \(N, 44, 44\) counts"),
        ((5, 9), (4, 44, 44), r"has 5 particles, but .*data_responses.npz 4 responses"),
        ((0, 9), (0, 44, 44), "holds no responses"),
    ],
)
def test_shapes_of_a_pair_are_checked(
    tmp_path: Path, table: tuple[int, ...], counts: tuple[int, ...], message: str
) -> None:
    with pytest.raises(EventFileError, match=message):
        read_npz(*write_pair(tmp_path, np.ones(table), np.zeros(counts)))


class Trap:
    """Cries out when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(events: Events, tmp_path: Path) -> None:
    good = np.zeros((1, 44, 44))
    trap = np.array([[Trap()] * 9], dtype=object)
    with pytest.raises(EventFileError, match=r"data_particles\.npz: expected an npz file"):
        read_npz(*write_pair(tmp_path, trap, good))
    pair = write_pair(tmp_path, table_of(events[:1], 9), trap)
    with pytest.raises(EventFileError, match=r"data_responses\.npz: expected an npz file"):
        read_npz(*pair)


@pytest.mark.parametrize("bad", [np.array(["a"] * 9), np.ones((5, 9), complex), np.ones(9, bool)])
def test_what_are_no_real_numbers_is_refused(tmp_path: Path, bad: NDArray[Any]) -> None:
    with pytest.raises(EventFileError, match="expected real numbers"):
        read_npz(*write_pair(tmp_path, bad, np.zeros((5, 44, 44))))


def test_bytes_that_are_no_npz_are_told(events: Events, tmp_path: Path) -> None:
    particles, responses = write_pair(tmp_path, table_of(events, 9), events.responses)
    content = responses.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    array, other = tmp_path / "array.npz", tmp_path / "other.npz"
    with array.open("wb") as file:
        np.save(file, events.responses)
    np.savez(other, responses=events.responses)
    broken = [b"", b"no zip", content[: len(content) // 2], bytes(flipped)]
    for number, part in enumerate([*broken, array.read_bytes(), other.read_bytes()]):
        path = tmp_path / f"broken-{number}.npz"
        path.write_bytes(part)
        with pytest.raises(EventFileError, match=rf"broken-{number}\.npz: expected an npz file"):
            read_npz(particles, path)
    with pytest.raises(FileNotFoundError):
        read_npz(particles, tmp_path / "missing.npz")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x10])
def test_a_flipped_byte_of_an_npz_is_told_or_changes_nothing(
    events: Events, tmp_path: Path, mask: int, compressed: bool
) -> None:
    few = numbered_anew(events[:3])
    particles, responses = write_pair(tmp_path, table_of(few, 11), few.responses)
    if compressed:
        np.savez_compressed(particles, table_of(few, 11))
    content = particles.read_bytes()
    told = []
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= mask
        particles.write_bytes(flipped)
        try:
            assert_equal(read_npz(particles, responses), few)
        except EventFileError as error:
            told.append(str(error))
    assert all("data_particles.npz" in message for message in told)
    assert len(told) > len(content) / 2


@pytest.mark.parametrize(
    "names", [["a.txt"], ["a.npz"], ["a.root", "b.root"], ["a.npz", "b.npz", "c.npz"], []]
)
def test_other_sets_of_files_are_refused(names: list[str]) -> None:
    with pytest.raises(EventFileError, match=r"expected one \.root file, or two \.npz files"):
        read_events(names)


def test_the_nearest_species_finds_every_species_but_neutral_antiparticles() -> None:
    features = np.zeros((len(SPECIES), len(FEATURES)))
    expected = []
    for row, species in zip(features, SPECIES, strict=True):
        entry = Particle.from_pdgid(species.pdg)
        # masses of other programs' tables differ a little
        row[7], row[8] = (entry.mass or 0.0) * 1.0001, entry.charge
        neutral = entry.charge == 0 and entry.pdgid < 0
        expected.append(abs(species.pdg) if neutral else species.pdg)
    found = nearest_species(features).tolist()
    kaons = {130, 310}  # nobody can tell K0L from K0S by mass and charge
    for pdg, guess in zip(expected, found, strict=True):
        assert guess == pdg or {guess, pdg} <= kaons


def test_guessed_species_are_told_and_every_neutral_kaon_is_a_k0s(
    events: Events, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaons = events[np.isin(events.pdg, [130, 310])]
    assert len(np.unique(kaons.pdg)) == 2
    known = read_npz(*write_pair(tmp_path, table_of(kaons, 10), kaons.responses))
    np.testing.assert_array_equal(known.pdg, kaons.pdg)
    assert capsys.readouterr().out == ""
    guessed = read_npz(*write_pair(tmp_path, table_of(kaons, 9), kaons.responses))
    assert set(guessed.pdg.tolist()) == {310}
    said = capsys.readouterr().out
    assert "data_particles.npz: holds no PDG codes" in said
    assert "every neutral kaon is taken for a K0S" in said


def test_a_charge_that_no_species_has_is_unknown() -> None:
    features = np.zeros((1, len(FEATURES)))
    features[0, 7:9] = 3727.379, 2
    assert nearest_species(features).tolist() == [0]


# --- A study's events


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
    write_root(events, Path("own.root"))
    pair = write_pair(Path(), table_of(events, 11), events.responses)
    expected = events[events.photon_sum >= study.data.min_photons]
    for file in ("own.root", [str(path) for path in pair]):
        read = study_events(with_data(study, file=file))
        np.testing.assert_array_equal(read.responses, expected.responses)
    assert not study.artifacts.exists()


def test_ones_own_file_without_enough_light_is_told(study: Study, events: Events) -> None:
    write_root(events[events.photon_sum < 10], Path("dim.root"))
    with pytest.raises(EventFileError, match=r"dim\.root: no response has 10 photons"):
        study_events(with_data(study, file="dim.root"))


def test_too_few_events_of_a_study_are_told_with_file_and_subset(
    study: Study, events: Events
) -> None:
    bright = events[events.photon_sum >= study.data.min_photons]
    neutrons = bright[bright.pdg == 2112]
    write_root(neutrons[:2], Path("few.root"))
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
