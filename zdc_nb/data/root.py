"""Events as a ROOT file, this project's own format, written and read in parts.

One TTree ``zn`` (so called whatever the detector) with a row for each response. Scalar branches pdg, energy, vx, vy, vz, px, py, pz,
mass, charge (units as in :data:`zdc_nb.data.events.FEATURES`) and photon_sum; the lit fibres as jagged
arrays: index (row * columns + column) and photons.

Beside the tree may stand two texts: ``made_with``, what the events were made from, and ``digest``,
a checksum of all values. ROOT itself has none, and a flipped bit would make other events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray
from tqdm import tqdm

from zdc_nb.data.events import FEATURES, Events
from zdc_nb.data.validation import LARGEST, EventFileError, Rows, Tally, refusing
from zdc_nb.detector.geometry import Detector
from zdc_nb.storage import write_atomically

__all__ = ["MADE_WITH", "read_digest", "read_made_with", "read_root", "write_root"]

_TREE = "zn"
MADE_WITH = "made_with"
_DIGEST = "digest"
_SHAPE = "shape"
_SCALARS = ("pdg", *FEATURES, "photon_sum")
_JAGGED = ("index", "photons")

_ROWS = 20_000
"""Responses written, read and checked at once, which bounds the memory that this takes."""


def write_root(
    parts: Iterable[Events], path: Path, made_with: Callable[[], str] | None = None
) -> None:
    """Write events as a ROOT file, atomically.

    What ``made_with`` returns is kept in the file; it is asked once all parts have been written.
    """
    types = {
        "pdg": np.int32,
        **dict.fromkeys(FEATURES, np.float64),
        "photon_sum": np.int64,
        **dict.fromkeys(_JAGGED, "var * uint16"),
    }
    digest = _Digest()
    with write_atomically(path) as temporary, uproot.recreate(temporary) as file:
        tree = file.mktree(_TREE, types)
        for number, part in enumerate(parts):
            if number == 0:
                file[_SHAPE] = _text_of(part.detector)
            for start in range(0, len(part), _ROWS):
                events = part[start : start + _ROWS]
                digest.update(events)
                tree.extend(_branches(events))
        file[_DIGEST] = digest.text()
        if made_with is not None:
            file[MADE_WITH] = made_with()


def _branches(events: Events) -> dict[str, Any]:
    lit = events.lit_fibres
    return {
        "pdg": events.pdg,
        **{name: events.features[:, i] for i, name in enumerate(FEATURES)},
        "photon_sum": events.photon_sum,
        "index": ak.unflatten(events.photons.indices.astype(np.uint16), lit),
        "photons": ak.unflatten(events.photons.data, lit),
    }


class _Digest:
    """A checksum of events, the same however they are divided into parts."""

    def __init__(self) -> None:
        self._columns = [hashlib.sha256() for _ in range(5)]

    def update(self, events: Events) -> None:
        arrays = (
            events.pdg.astype("<i4"),
            events.features.astype("<f8"),
            events.lit_fibres.astype("<i8"),
            events.photons.indices.astype("<u2"),
            events.photons.data.astype("<u2"),
        )
        for column, array in zip(self._columns, arrays, strict=True):
            column.update(array.tobytes())

    def text(self) -> str:
        return hashlib.sha256(b"".join(column.digest() for column in self._columns)).hexdigest()


def read_made_with(path: Path) -> str | None:
    """What :func:`write_root` was told, or None; raises :class:`EventFileError`."""
    with _opened(path) as file:
        return str(file[MADE_WITH]) if MADE_WITH in file else None


def read_digest(path: Path) -> str | None:
    """The checksum of all values that :func:`write_root` left, or None; raises the same."""
    with _opened(path) as file:
        return str(file[_DIGEST]) if _DIGEST in file else None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A ROOT file that does not end early; whatever goes wrong in the block is told with it."""
    with refusing(path, "not readable as a ROOT file"), uproot.open(path) as file:
        size, expected = path.stat().st_size, file.file.fEND
        if size < expected:
            raise ValueError(f"it ends after {size} of {expected} bytes")
        yield file


def _text_of(detector: Detector) -> str:
    """Rows and columns: ``3 x 4``."""
    return " x ".join(map(str, detector.shape))


def read_root(path: Path, tally: Tally, bar: tqdm[Any], detector: Detector) -> Iterator[Events]:
    """The events of a ROOT file, some at a time; ``bar`` goes on by bytes.

    Raises :class:`EventFileError`.
    """
    digest = _Digest()
    size = path.stat().st_size
    with _opened(path) as file:
        names = [key.split(";")[0] for key in file.keys()]  # noqa: SIM118
        if _TREE not in names:
            raise EventFileError(f"{path}: no TTree {_TREE!r}, found {names}")
        tree = file[_TREE]
        branches = (*_SCALARS, *_JAGGED)
        missing = [name for name in branches if name not in tree]
        if missing:
            raise EventFileError(f"{path}: the tree {_TREE!r} lacks {', '.join(missing)}")
        if tree.num_entries == 0:
            raise EventFileError(f"{path}: holds no responses")
        shape = _text_of(detector)
        if _SHAPE in names and str(file[_SHAPE]) != shape:
            raise EventFileError(
                f"{path}: expected responses of the {detector.name}, {shape} fibres, found those of "
                f"{file[_SHAPE]} fibres"
            )
        start = 0
        for part in tree.iterate(filter_name=branches, step_size=_ROWS, library="ak"):
            events = _events(path, start, part, tally, detector)
            digest.update(events)
            start += len(part)
            yield events
            bar.update(
                size * start // tree.num_entries - size * (start - len(part)) // tree.num_entries
            )
        if start != tree.num_entries:
            raise EventFileError(f"{path}: expected {tree.num_entries} rows, found {start}")
        # nor is it where a bad row was dropped: who wrote the checksum wrote good ones
        if _DIGEST in names and str(file[_DIGEST]) != digest.text():
            raise EventFileError(f"{path}: its checksum is not that of its good rows")


def _events(path: Path, start: int, part: Any, tally: Tally, detector: Detector) -> Events:
    scalars = {name: _scalar_branch(path, name, part[name]) for name in _SCALARS}
    index, photons = (_jagged_branch(path, name, part[name]) for name in _JAGGED)
    rows = Rows(path, start, len(part), tally, detector)
    photons = _photons(rows, index, photons)
    features = np.column_stack([scalars[name].astype(np.float64) for name in FEATURES])
    return rows.events(features, scalars["pdg"], photons, scalars["photon_sum"])


def _scalar_branch(path: Path, name: str, array: Any) -> NDArray[Any]:
    """A branch of one number for each response."""
    if array.ndim != 1 or not _is_number(array):
        raise EventFileError(f"{path}: branch {name!r}: expected one number for each response")
    values: NDArray[Any] = ak.to_numpy(array)
    return values


def _jagged_branch(path: Path, name: str, array: Any) -> Any:
    """A branch of a list of integers for each response."""
    if array.ndim != 2 or not _is_number(array, np.integer):
        raise EventFileError(f"{path}: branch {name!r}: expected integers for each lit fibre")
    return array


def _is_number(array: Any, kind: type = np.number) -> bool:
    flat = ak.flatten(array, axis=None)
    return len(flat) == 0 or np.issubdtype(ak.to_numpy(flat).dtype, kind)


def _photons(rows: Rows, index: Any, photons: Any) -> Any:
    """Sparse (n, fibres) photons, of the rows without a fault."""
    lit = ak.to_numpy(ak.num(index))
    counts, fibres_read = ak.to_numpy(ak.num(photons)), lit
    rows.expect(
        counts == lit,
        "as many photons as lit fibres",
        lambda k: f"{counts[k]} and {fibres_read[k]}",
    )
    # rows at fault are emptied, so that the others have a fibre for each number of photons
    lit = np.where(rows.good, lit, 0)
    index, photons = (ak.to_numpy(ak.flatten(part[rows.good])) for part in (index, photons))
    row = np.repeat(np.arange(len(lit)), lit)

    fibres = rows.detector.dim
    inside = (index >= 0) & (index < fibres)
    rows.expect_of_fibres(inside, f"fibres from 0 to {fibres - 1}", row, index)
    in_range = (photons >= 0) & (photons <= LARGEST)
    rows.expect_of_fibres(in_range, f"photon counts from 0 to {LARGEST}", row, photons)
    place = row * fibres + np.where(inside, index, 0).astype(np.int64)
    order = np.argsort(place, kind="stable")
    again = np.zeros(len(place), np.bool_)
    again[order[1:]] = place[order[1:]] == place[order[:-1]]
    rows.expect_of_fibres(~again, "each lit fibre once", row, index)
    return rows.photons(photons[order], (place % fibres)[order], lit, rows.path)
