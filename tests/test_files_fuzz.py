"""Broken files of every format: told as such, or read as the events that they hold."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zdc_nb.data.events import Events
from zdc_nb.data.readers import read_events
from zdc_nb.data.root import write_root
from zdc_nb.data.simulation import simulate
from zdc_nb.data.validation import EventFileError

Change = tuple[str, int, bytes]

SHARE = 1 if os.environ.get("ZDC_TESTS") == "all" else 3
"""Of all examples `make test` tries one in so many, `make test-all` every one."""


@pytest.fixture(scope="module")
def events() -> Events:
    some = simulate(60, 5, 10, seed=3)
    return Events.join([some[::15]])


def changes(file: int) -> st.SearchStrategy[tuple[int, list[Change]]]:
    """Which of ``file`` files is broken, and how; places are taken modulo its length."""
    place = st.integers(0, 2**20)
    change = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(1, 255).map(lambda mask: bytes([mask]))),
        st.tuples(st.just("flip"), place, st.integers(0, 7).map(lambda bit: bytes([1 << bit]))),
        st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("insert"), place, st.sampled_from([b" ", b"\n", b"0", b"9", b"-", b","])),
        st.tuples(st.just("remove"), place, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("cut"), place, st.just(b"")),
    )
    return st.tuples(st.integers(0, file - 1), st.lists(change, min_size=1, max_size=3))


def broken(content: bytes, changes: list[Change]) -> bytes:
    for kind, place, what in changes:
        at = place % (len(content) + 1)
        if kind == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ what[0]]) + content[at + 1 :]
        elif kind == "insert":
            content = content[:at] + what + content[at:]
        elif kind == "remove":
            content = content[:at] + content[at + len(what) :]
        elif kind == "cut":
            content = content[:at]
    return content


def write_files(kind: str, events: Events, folder: Path) -> list[Path]:
    if kind == "root":
        write_root([events], folder / "data.root")
        return [folder / "data.root"]
    if kind == "text":
        table, image = folder / "non_zero_examples.txt", folder / "neutron_image.txt"
        lines = ["Detector,Pdg,Energy,Vx,Vy,Vz,Px,Py,Pz,PhotonSum"]
        for pdg, row, total in zip(events.pdg, events.features, events.photon_sum, strict=True):
            values = ",".join(f"{value:g}" for value in row[:7])
            lines += [f"N,{pdg},{values},{total}", f"P,{pdg},{values},3"]
        table.write_text("\n".join(lines) + "\n")
        np.savetxt(image, events.responses.reshape(-1, 44), fmt="%d")
        return [table, image]
    paths = [folder / "a_particles.npz", folder / "a_responses.npz"]
    save: Any = np.savez_compressed if kind == "npz, compressed" else np.savez
    save(paths[0], np.column_stack([events.features, events.pdg, events.photon_sum]))
    save(paths[1], events.responses.astype(np.uint8 if kind == "npz, compressed" else np.float32))
    return paths


def read_or_told(paths: list[Path]) -> Events | None:
    try:
        return read_events(paths)
    except EventFileError as error:
        message = str(error)
    assert any(str(path) in message for path in paths)
    return None


def check(
    kind: str,
    events: Events,
    folder: Path,
    which: int,
    how: list[Change],
    agree: Callable[..., None],
) -> None:
    paths = write_files(kind, events, folder)
    expected = read_events(paths)
    paths[which].write_bytes(broken(paths[which].read_bytes(), how))
    read = read_or_told(paths)
    if read is not None:
        agree(read, expected, paths)


def assert_equal(read: Events, expected: Events, _: list[Path]) -> None:
    for name in ("pdg", "features", "responses", "particle"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("kind", "files"), [("root", 1), ("npz, stored", 2), ("npz, compressed", 2)]
)
def test_what_is_broken_is_told_or_changes_nothing(
    events: Events, tmp_path: Path, kind: str, files: int
) -> None:
    @settings(max_examples=150 // SHARE, deadline=None)
    @given(changes(files))
    def run(change: tuple[int, list[Change]]) -> None:
        check(kind, events, tmp_path, *change, assert_equal)

    run()


def assert_as_it_stands(read: Events, _: Events, paths: list[Path]) -> None:
    """The texts have no checksum: what is read is what a plain reading of them gives."""
    header, *lines = paths[0].read_text(encoding="ascii").split("\n")
    assert header.rstrip() == "Detector,Pdg,Energy,Vx,Vy,Vz,Px,Py,Pz,PhotonSum"
    rows = [line.split(",") for line in lines if line.strip()]
    assert all(len(row) == 10 and row[0] in {"N", "P"} for row in rows)
    numbers = np.array([[float(cell) for cell in row[1:]] for row in rows if row[0] == "N"])
    np.testing.assert_array_equal(read.pdg, numbers[:, 0])
    np.testing.assert_array_equal(read.features[:, :7], numbers[:, 1:8])
    np.testing.assert_array_equal(read.photon_sum, numbers[:, 8])
    images = [line.split() for line in paths[1].read_bytes().split(b"\n") if line.strip()]
    assert all(re.fullmatch(rb"-?\d+", number) for line in images for number in line)
    counts = [int(number) for line in images for number in line]
    assert {len(line) for line in images} == {44}
    np.testing.assert_array_equal(read.responses.ravel(), counts)


def test_broken_texts_are_told_or_read_as_they_stand(events: Events, tmp_path: Path) -> None:
    @settings(max_examples=300 // SHARE, deadline=None)
    @given(changes(2))
    def run(change: tuple[int, list[Change]]) -> None:
        check("text", events, tmp_path, *change, assert_as_it_stands)

    run()
