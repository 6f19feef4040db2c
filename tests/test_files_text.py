"""Events as the two texts that O2's Extract macro writes."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from particle import Particle

from zdc_nb.data import o2_text as files_text
from zdc_nb.data.events import Events
from zdc_nb.data.readers import read_events
from zdc_nb.data.simulation import simulate
from zdc_nb.data.validation import EventFileError

HEADER = "Detector,Pdg,Energy,Vx,Vy,Vz,Px,Py,Pz,PhotonSum"


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate(30, 5, 0, seed=3)


def table_lines(events: Events) -> list[str]:
    lines = [HEADER]
    for pdg, features, total in zip(events.pdg, events.features, events.photon_sum, strict=True):
        values = ",".join(repr(float(value)) for value in features[:7])
        lines += [f"N,{pdg},{values},{total}", f"P,{pdg},{values},17"]
    return lines


def image_lines(events: Events) -> list[str]:
    """With a blank at the end of each line, as the macro has it."""
    rows = events.responses.reshape(-1, 44)
    return [" ".join(map(str, row)) + " " for row in rows.tolist()]


def write_texts(folder: Path, table: list[str], images: list[str]) -> tuple[Path, Path]:
    paths = folder / "non_zero_examples.txt", folder / "neutron_image.txt"
    for path, lines in zip(paths, (table, images), strict=True):
        path.write_text("".join(line + "\n" for line in lines), newline="")
    return paths


def assert_same(read: Events, events: Events) -> None:
    """The masses of the simulation are rounded."""
    np.testing.assert_array_equal(read.pdg, events.pdg)
    np.testing.assert_array_equal(read.features[:, :7], events.features[:, :7])
    np.testing.assert_allclose(read.features[:, 7:], events.features[:, 7:], rtol=1e-8)
    np.testing.assert_array_equal(read.responses, events.responses)


def test_texts_are_read(events: Events, tmp_path: Path) -> None:
    paths = write_texts(tmp_path, table_lines(events), image_lines(events))
    read = read_events(paths)
    assert_same(read, events)
    for pdg, mass, charge in zip(read.pdg, read.features[:, 7], read.features[:, 8], strict=True):
        entry = Particle.from_pdgid(int(pdg))
        assert (mass, charge) == (entry.mass or 0.0, entry.charge)


@pytest.mark.parametrize("size", [1, 997, 3873, 4000, 20_000])
def test_parts_are_joined_wherever_they_end(
    events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    few = events[:1] if size == 1 else events
    monkeypatch.setattr(files_text, "_BYTES", size)
    assert_same(read_events(write_texts(tmp_path, table_lines(few), image_lines(few))), few)


def test_other_blanks_line_ends_and_orders_are_read(events: Events, tmp_path: Path) -> None:
    table, images = table_lines(events), image_lines(events)
    by_p = [
        table[0],
        *(line for pair in zip(table[2::2], table[1::2], strict=True) for line in pair),
    ]
    for some_table, some_images in (
        (by_p, images),
        ([table[0], *table[1::2]], images),
        ([line + "\r" for line in table], [line.replace(" ", "\t") + "\r" for line in images]),
        ([*table, ""], ["", *images, " ", ""]),
    ):
        assert_same(read_events(write_texts(tmp_path, some_table, some_images)), events)
    paths = write_texts(tmp_path, table, images)
    for path in paths:
        path.write_text(path.read_text().rstrip("\n"))
    assert_same(read_events(paths), events)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(1, 4), size=st.integers(500, 9000))
def test_any_counts_are_read_as_numpy_reads_them(
    data: st.DataObject, count: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    responses = np.zeros((count, 1936), np.uint16)
    for row in responses:
        lit = data.draw(st.dictionaries(st.integers(0, 1935), st.integers(1, 3000), max_size=20))
        row[list(lit)] = list(lit.values())
    features = np.zeros((count, 9))
    features[:, 0], features[:, 7] = 0.939565, 939.56542
    made = Events.from_arrays(
        np.full(count, 2112, np.int32), features, responses.reshape(-1, 44, 44)
    )
    paths = write_texts(tmp_path_factory.mktemp("any"), table_lines(made), image_lines(made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_text, "_BYTES", size)
        read = read_events(paths)
    expected: NDArray[np.int64] = np.loadtxt(paths[1], np.int64).reshape(-1, 44, 44)
    np.testing.assert_array_equal(read.responses, expected)


def test_rounded_numbers_are_no_fault(tmp_path: Path) -> None:
    """The macro writes six digits: a neutron at rest is then lighter than a neutron."""
    line = "2112,0.939565,1e-05,-2.5e-06,0,0,0,1e-09,0"
    paths = write_texts(tmp_path, [HEADER, f"N,{line}", f"P,{line}"], ["0 " * 44] * 44)
    read = read_events(paths)
    np.testing.assert_array_equal(read.features[0, :4], [0.939565, 1e-05, -2.5e-06, 0])


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "Detector,Pdg,Energy", r"line 1: expected the header Detector,Pdg"),
        (3, "N,2112,1,2", r"line 3: expected 10 columns"),
        (4, "X,2112,1,0,0,0,0,0,1,0", r"line 4: expected 10 columns, the first of them N or P"),
        (5, "P,2112,1", r"line 5: expected 10 columns"),
        (4, "N,2112,one,0,0,0,0,0,1,0", r"line 4: expected numbers after the first column"),
        (2, "N,2112,,0,0,0,0,0,1,0", r"line 2: expected numbers"),
        (4, "N,2112,10,0,0,0,0,0,1,0", r"row 1 .*a photon sum equal to the response's"),
        (6, "N,99999,10,0,0,0,0,0,1,{}", r"row 2 .*a PDG code of known mass and charge"),
        (6, "N,417,10,0,0,0,0,0,1,{}", r"row 2 .*a PDG code of known mass and charge"),
        (6, "N,2112.5,10,0,0,0,0,0,1,{}", r"row 2 .*a PDG code"),
        (6, "N,nan,10,0,0,0,0,0,1,{}", r"row 2 .*a PDG code"),
        (6, "N,inf,10,0,0,0,0,0,1,{}", r"row 2 .*a PDG code"),
        (6, "N,2112,nan,0,0,0,0,0,1,{}", r"row 2 .*finite features"),
        (
            6,
            "N,2112,0.5,0,0,0,0,0,0,{}",
            r"row 2 .*an energy \(GeV\) .*, found energy 0.5 where they give 0.939565",
        ),
        (6, "N,2112,10,0,0,0,0,0,1,é", r"line 6: expected ASCII text, got 'N,2112"),
        (3, "P,2112,10,0,0,0,0,0,1,\u2003", r"line 3: expected ASCII text"),
        (61, "N,2112,10,0,0,0,0,0,1,0", r"more than 30 rows of detector N|expected 10"),
        (2, "", "has 29 rows of detector N, but .*neutron_image.txt more responses"),
    ],
    ids=map(str, count()),
)
def test_a_fault_in_the_table_is_told(
    events: Events, tmp_path: Path, line: int, text: str, message: str
) -> None:
    table = table_lines(events[np.argsort(-events.photon_sum)])
    events = events[np.argsort(-events.photon_sum)]
    table[line - 1] = text.format(table[line - 1].rpartition(",")[2])
    paths = write_texts(tmp_path, table, image_lines(events))
    with pytest.raises(EventFileError, match=message) as error:
        read_events(paths)
    assert "non_zero_examples.txt" in str(error.value)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (50, "0 " * 43, "line 50: expected 44 whole numbers"),
        (50, "0 " * 45, "line 50: expected 44 whole numbers"),
        (3, "0 " * 43 + "x", "line 3: expected 44 whole numbers"),
        (3, "0 " * 43 + "1.0", "line 3: expected 44 whole numbers"),
        (3, "0 " * 43 + "nan", "line 3: expected 44 whole numbers"),
        (3, "0 " * 43 + "-", "line 3: expected 44 whole numbers"),
        (3, "0 " * 43 + "1-2", "line 3: expected 44 whole numbers"),
        (3, "0 " * 43 + "--2", "line 3: expected 44 whole numbers"),
        (3, "0," * 43 + "0", "line 3: expected 44 whole numbers"),
        (44, "", "line 1278 on: expected 44 lines of 44 whole numbers .* but the file ends"),
        (90, "0 " * 43 + "-2", r"row 2 .*photon counts of at least 0"),
        (90, "0 " * 43 + "65536", r"row 2 .*photon counts of at most 65535"),
        (90, "0 " * 43 + "9" * 400, r"row 2 .*photon counts of at most 65535"),
    ],
    ids=map(str, count()),
)
def test_a_fault_in_the_images_is_told(
    events: Events, tmp_path: Path, line: int, text: str, message: str
) -> None:
    images = image_lines(events)
    images[line - 1] = text
    # the photon sums are another matter
    table = table_lines(events) if "row" in message else [*table_lines(events)]
    if "line 1278" in message:
        table = [HEADER, *(entry.rpartition(",")[0] + ",0" for entry in table[1:])]
        images = ["0 " * 44] * len(images)
        images[line - 1] = text
    with pytest.raises(EventFileError, match=message) as error:
        read_events(write_texts(tmp_path, table, images))
    assert "neutron_image.txt" in str(error.value)


def test_bytes_that_are_no_text_are_told_with_their_line(events: Events, tmp_path: Path) -> None:
    paths = write_texts(tmp_path, table_lines(events), image_lines(events))
    lines = paths[0].read_bytes().split(b"\n")
    lines[2] += b"\xff"
    paths[0].write_bytes(b"\n".join(lines))
    with pytest.raises(
        EventFileError, match=r"non_zero_examples\.txt: line 3: expected ASCII"
    ) as e:
        read_events(paths)
    assert str(e.value).isascii()


def test_a_byte_order_mark_is_skipped(events: Events, tmp_path: Path) -> None:
    paths = write_texts(tmp_path, table_lines(events), image_lines(events))
    for path in paths:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert_same(read_events(paths), events)
    # with the table told by its header
    turned = [path.rename(tmp_path / f"{k}.txt") for k, path in enumerate(paths)][::-1]
    assert_same(read_events(turned), events)
    turned[1].write_bytes(b"\xef\xbb\xbf" + turned[1].read_bytes())
    with pytest.raises(EventFileError, match=r"0\.txt: line 1: expected"):
        read_events(turned[::-1])


def test_too_few_images_and_none_are_told(events: Events, tmp_path: Path) -> None:
    table, images = table_lines(events), image_lines(events)
    with pytest.raises(
        EventFileError, match=r"more than 29 rows of detector N, but .* 29 responses"
    ):
        read_events(write_texts(tmp_path, table, images[:-44]))
    with pytest.raises(EventFileError, match=r"neutron_image\.txt: holds no responses"):
        read_events(write_texts(tmp_path, [HEADER], []))


def test_bad_rows_are_left_out_where_asked(events: Events, tmp_path: Path) -> None:
    table, images = table_lines(events), image_lines(events)
    table[1 + 2 * 4] = table[1 + 2 * 4].replace(",", ",9", 1)  # of another species, or none
    images[44 * 7] = "-1 " * 44
    images[44 * 9 + 43] = "70000 " * 44
    paths = write_texts(tmp_path, table, images)
    kept = np.delete(np.arange(len(events)), [4, 7, 9])
    assert_same(read_events(paths, strict=False), events[kept])
