"""Events as npz pairs of every kind, and everything that may be wrong with one."""

import tracemalloc
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.event_sets import assert_equal, physical, table_of, write_pair
from zdc_nb.data import npz as files_npz
from zdc_nb.data.events import Events
from zdc_nb.data.readers import read_events, read_parts
from zdc_nb.data.simulation import simulate
from zdc_nb.data.validation import EventFileError, Tally


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate(300, 5, 0, seed=3)


def numbered_anew(events: Events) -> Events:
    """With the numbers of particles that these events have by themselves."""
    return Events.from_arrays(events.pdg, events.features, events.responses)


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
        (cell(2, 9, 21.7), "particles", r"row 2 .*a PDG code, found 21.7$"),
        (cell(2, 9, 123456789), "particles", r"row 2 .*a PDG code that exists"),
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
        read_events(pair)
    assert f"data_{file}.npz" in str(error.value)


def test_counts_of_a_pair_are_checked_in_parts_and_their_rows_counted_through(
    events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_npz, "_ROWS", 7)
    few = numbered_anew(events[:30])
    pair = write_pair(tmp_path, table_of(few, 11), few.responses)
    assert_equal(read_events(pair), few)
    counts = few.responses.astype(np.int64)
    counts[25, 3, 3] = -1
    with pytest.raises(EventFileError, match=r"row 25 .*at least 0"):
        read_events(write_pair(tmp_path, table_of(few, 11), counts))


def test_reading_a_pair_takes_memory_for_a_part_and_not_for_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_npz, "_ROWS", 100)
    counts = np.zeros((4000, 44, 44), np.uint16)
    table = np.zeros((len(counts), 10))
    table[:, 9] = 22
    pair = write_pair(tmp_path, table, counts)
    tracemalloc.start()
    read_events(pair)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.3 * counts.nbytes


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
        read_events(write_pair(tmp_path, np.ones(table), np.zeros(counts)))


class Trap:
    """Cries out when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(events: Events, tmp_path: Path) -> None:
    good = np.zeros((1, 44, 44))
    trap = np.array([[Trap()] * 9], dtype=object)
    with pytest.raises(EventFileError, match=r"data_particles\.npz: expected an npz file"):
        read_events(write_pair(tmp_path, trap, good))
    pair = write_pair(tmp_path, table_of(events[:1], 9), trap)
    with pytest.raises(EventFileError, match=r"data_responses\.npz: expected an npz file"):
        read_events(pair)


@pytest.mark.parametrize("bad", [np.array(["a"] * 9), np.ones((5, 9), complex), np.ones(9, bool)])
def test_what_are_no_real_numbers_is_refused(tmp_path: Path, bad: NDArray[Any]) -> None:
    with pytest.raises(EventFileError, match="expected real numbers"):
        read_events(write_pair(tmp_path, bad, np.zeros((5, 44, 44))))


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
            read_events([particles, path])
    with pytest.raises(FileNotFoundError):
        read_events([particles, tmp_path / "missing.npz"])


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
            assert_equal(read_events([particles, responses]), few)
        except EventFileError as error:
            told.append(str(error))
    assert all("data_particles.npz" in message for message in told)
    assert len(told) > len(content) / 2


def test_guessed_species_are_told_and_every_neutral_kaon_is_a_k0s(
    events: Events, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaons = events[np.isin(events.pdg, [130, 310])]
    assert len(np.unique(kaons.pdg)) == 2
    known = read_events(write_pair(tmp_path, table_of(kaons, 10), kaons.responses))
    np.testing.assert_array_equal(known.pdg, kaons.pdg)
    assert capsys.readouterr().out == ""
    guessed = read_events(write_pair(tmp_path, table_of(kaons, 9), kaons.responses))
    assert set(guessed.pdg.tolist()) == {310}
    said = capsys.readouterr().out
    assert "data_particles.npz: holds no PDG codes" in said
    assert "every neutral kaon is taken for a K0S" in said


def test_a_table_in_fortran_order_is_read_and_such_responses_are_refused(
    events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_npz, "_ROWS", 7)
    few = numbered_anew(events[:30])
    table = np.asfortranarray(table_of(few, 11))
    assert_equal(read_events(write_pair(tmp_path, table, few.responses)), few)
    pair = write_pair(tmp_path, table, np.asfortranarray(few.responses))
    with pytest.raises(EventFileError, match=r"data_responses\.npz: .* Fortran order"):
        read_events(pair)


@pytest.mark.parametrize(
    ("columns", "factor", "said"),
    [
        ([7], 1e-3, r"mass 0\.\d+ where -?\d+ has \d+\.?\d* MeV; is the mass in GeV\?"),
        ([7], 1.5, r"the mass \(MeV\) of the PDG code, found mass [\d.]+ where"),
        ([4, 5, 6], 1e3, r"found energy .* they give .*; are the momenta in MeV\?"),
        ([0], 1e3, r"found energy .*; are the energy in MeV\?"),
        ([7], -1.0, r"a mass of at least 0, found mass -"),
    ],
)
def test_a_wrong_unit_is_told_with_the_value_and_the_likely_one(
    events: Events, tmp_path: Path, columns: list[int], factor: float, said: str
) -> None:
    massive = int(np.flatnonzero(events.pdg == 2112)[0])
    table = table_of(events, 11)[massive : massive + 1]
    responses = events.responses[massive : massive + 1]
    # as files have them: in single precision, or with six digits
    for rounded in (table.astype(np.float32), np.vectorize(lambda x: float(f"{x:.6g}"))(table)):
        assert len(read_events(write_pair(tmp_path, rounded, responses))) == 1
    table[:, columns] *= factor
    with pytest.raises(EventFileError, match=rf"particles\.npz: row 0 .*{said}"):
        read_events(write_pair(tmp_path, table, responses))
    tally = Tally(strict=False)
    assert not any(map(len, read_parts(write_pair(tmp_path, table, responses), tally)))
    assert tally.dropped.total() == 1


def test_vertices_beyond_any_beam_spot_are_warned_of(events: Events, tmp_path: Path) -> None:
    table = table_of(events, 11)
    for factor, unit in ((1, None), (100, "cm"), (1000, "mm")):
        scaled = table.copy()
        scaled[:, 1:4] *= factor
        tally = Tally(strict=True)
        assert sum(map(len, read_parts(write_pair(tmp_path, scaled, events.responses), tally)))
        warnings = tally.warnings()
        if unit is None:
            assert warnings == []
        else:
            assert any(
                f"vz is {scaled[:, 3][np.abs(scaled[:, 3]).argmax()]:.4g}" in w for w in warnings
            )
            assert all(w.endswith(f"are the vertices in {unit}?") for w in warnings)
    table[:, [0, 4, 5, 6]] *= 1000
    fast = table[:, 0] > 1e5  # of slower ones energy and momentum do not go together
    tally = Tally(strict=True)
    list(read_parts(write_pair(tmp_path, table[fast], events.responses[fast]), tally))
    (warning,) = tally.warnings()
    assert warning.endswith("above any beam's in GeV; are energies and momenta in MeV?")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.5, -1, 6e4, 7e4, 1e300])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "g", "i8"])
def test_what_is_no_count_is_no_count_in_any_type(
    events: Events, tmp_path: Path, kind: str, value: float
) -> None:
    """Nor is there a warning, which pytest would make an error."""
    counts = events.responses[:5].astype(np.float64)
    counts[3, 2, 2] = value
    with np.errstate(all="ignore"):
        counts = counts.astype(kind)
    pair = write_pair(tmp_path, table_of(events[:5], 10), counts)
    seen = float(counts[3, 2, 2])
    if 0 <= seen < 65536 and seen == int(seen):
        assert read_events(pair).responses[3, 2, 2] == seen
        return
    with pytest.raises(EventFileError, match=r"row 3 .*photon counts"):
        read_events(pair)
    assert len(read_events(pair, strict=False)) == 4


def test_a_photon_sum_in_place_of_the_code_is_told(events: Events, tmp_path: Path) -> None:
    table = np.column_stack([events.features, events.photon_sum])
    with pytest.raises(EventFileError, match=r"expected the PDG code .*, got the photon sum"):
        read_events(write_pair(tmp_path, table, events.responses))
    # some were counted otherwise
    table[::3, 9] += 1
    with pytest.raises(EventFileError, match=r"expected the PDG code .*, got the photon sum"):
        read_events(write_pair(tmp_path, table, events.responses), strict=False)


def test_a_code_that_is_a_photon_sum_now_and_then_is_a_code(events: Events, tmp_path: Path) -> None:
    photons = events[events.pdg == 22][:4]
    responses = np.zeros((4, 44, 44), np.uint16)
    responses[:2, 20, 20] = 22
    responses[2:, 20, 20] = 23
    pair = write_pair(tmp_path, table_of(photons, 10), responses)
    np.testing.assert_array_equal(read_events(pair).pdg, [22] * 4)
    # unknown particles without light
    table = table_of(photons, 10)
    table[:3, 9], responses[:3] = 0, 0
    pair = write_pair(tmp_path, table, responses)
    np.testing.assert_array_equal(read_events(pair).pdg, [0, 0, 0, 22])


_KINDS = ["<f2", "<f4", ">f4", "<f8", ">f8", "g", "u1", "<u2", ">u2", "<i2", "<i4", ">i8", "<u8"]


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(_KINDS),
    columns=st.integers(9, 11),
    rows=st.integers(1, 12),
    step=st.integers(1, 13),
    packed=st.booleans(),
)
def test_any_valid_pair_is_read_as_numpy_reads_it(
    data: st.DataObject,
    kind: str,
    columns: int,
    rows: int,
    step: int,
    packed: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    largest = min(2000, np.iinfo(kind).max if np.dtype(kind).kind in "iu" else 2000)
    counts = rng.integers(0, largest, (rows, 44, 44), endpoint=True)
    counts = (counts * (rng.random(counts.shape) < 0.01)).astype(kind)
    features = rng.normal(size=(rows, 9))
    pdg = rng.choice([22, 2112, -211], rows)
    features = physical(pdg, features)
    features[:, 8] = np.where(pdg == -211, -1, 0)
    total = counts.astype(np.int64).sum((1, 2))
    table = np.column_stack([features, pdg, total])[:, :columns]
    table = table.astype(data.draw(st.sampled_from(["<f8", "<f4", ">f8"])))
    folder = tmp_path_factory.mktemp("any")
    save = np.savez_compressed if packed else np.savez
    save(folder / "p.npz", table)
    save(folder / "r.npz", counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_npz, "_ROWS", step)
        read = read_events([folder / "p.npz", folder / "r.npz"])
    with np.load(folder / "p.npz") as first, np.load(folder / "r.npz") as second:
        np.testing.assert_array_equal(read.features, first["arr_0"][:, :9].astype(np.float64))
        np.testing.assert_array_equal(read.responses, second["arr_0"].astype(np.int64))
        if columns > 9:
            np.testing.assert_array_equal(read.pdg, first["arr_0"][:, 9].astype(np.int64))
