"""Particles without responses, which a generator is asked about: of a frame, or of a file, in parts.

Columns are the nine features, named and in the units of :data:`zdc_nb.data.events.FEATURES`, and
optionally ``pdg``; where particles are asked for by collision, ``event``, too, a whole number that
particles of one collision share, see :func:`read_collisions`. A file is a CSV with a header, an npz of
one array ``arr_0`` of 9 columns (or 10, with the PDG code; or 11, and the number of the event), or a
ROOT file with a tree that has these branches.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import uproot
from numpy.typing import NDArray
from scipy import sparse

from zdc_nb.data.events import FEATURES, Events
from zdc_nb.data.npz import Member
from zdc_nb.data.validation import EventFileError, Rows, Tally, refusing
from zdc_nb.detector.geometry import ZN, Detector

__all__ = [
    "EVENT",
    "Collisions",
    "count_particles",
    "particles_of",
    "read_collisions",
    "read_particles",
]

ROWS = 8192
"""Particles read at once."""

EVENT = "event"
"""The column that says which collision a particle is of."""

_COLUMNS = (*FEATURES, "pdg", EVENT)


@dataclass(frozen=True, eq=False)
class Collisions:
    """N particles of collisions: ``event`` (N,) int64, the number of each one's, in any order.

    ``particles`` are events without light.
    """

    event: NDArray[np.int64]
    particles: Events

    @classmethod
    def join(cls, parts: Sequence[Collisions]) -> Collisions:
        """The particles of all parts, one after the other; at least one part."""
        event = np.concatenate([part.event for part in parts])
        return cls(event, Events.join([part.particles for part in parts]))

    def __len__(self) -> int:
        return len(self.event)

    def __getitem__(self, index: NDArray[np.generic] | slice) -> Collisions:
        """The particles at ``index``."""
        return Collisions(self.event[index], self.particles[index])


def particles_of(
    particles: pd.DataFrame | NDArray[Any],
    detector: Detector = ZN,
    name: str | Path = "particles",
    start: int = 0,
) -> Events:
    """Particles of a frame or a structured array, checked, as events without light.

    ``name`` and ``start`` say where they are from, for messages.

    Raises
    ------
    EventFileError
        naming the column or row and what was expected: features that are not finite, or whose
        units are wrong (E^2 = p^2 + m^2 and the mass of the PDG code tell).
    """
    path = Path(name)
    if isinstance(particles, pd.DataFrame):
        names: Sequence[str] = [str(column) for column in particles.columns]
    else:
        names = particles.dtype.names or ()
        if not names:
            raise EventFileError(
                f"{path}: expected columns with names ({', '.join(FEATURES)}), got an array of "
                f"shape {particles.shape}"
            )
    _check_names(path, names)

    def column(wanted: str) -> NDArray[Any]:
        return _numbers(path, start, wanted, np.asarray(particles[wanted])).astype(np.float64)

    features = np.column_stack([column(wanted) for wanted in FEATURES])
    pdg = column("pdg") if "pdg" in names else None
    return _checked(path, start, features, pdg, detector)


def _numbers(path: Path, start: int, name: str, values: NDArray[Any]) -> NDArray[Any]:
    """A column as numbers; what is missing is NaN."""
    if values.dtype.kind in "iuf":
        return values
    numbers = np.asarray(pd.to_numeric(pd.Series(values), errors="coerce"))
    bad = pd.isna(numbers) & ~pd.isna(values)
    if bad.any():
        k = int(bad.argmax())
        raise EventFileError(
            f"{path}: row {start + k} (counted from 0): expected a number in column {name}, "
            f"found {values[k]!r}"
        )
    return numbers


def _check_names(path: Path, names: Sequence[str], more: Sequence[str] = ()) -> None:
    known = _COLUMNS
    for wanted in (*FEATURES, *more):
        if wanted not in names:
            near = difflib.get_close_matches(wanted, [n for n in names if n not in known], 1)
            hint = f"; is it {near[0]!r}?" if near else f"; found {', '.join(map(str, names))}"
            raise EventFileError(f"{path}: expected a column {wanted!r}{hint}")


def _checked(
    path: Path,
    start: int,
    features: NDArray[np.float64],
    pdg: NDArray[Any] | None,
    detector: Detector,
) -> Events:
    rows = Rows(path, start, len(features), Tally(strict=True), detector)
    dark = sparse.csr_array((len(features), detector.dim), dtype=np.uint16)
    return rows.events(features, pdg, dark, None)


def read_particles(path: Path, detector: Detector = ZN) -> Iterator[Events]:
    """The particles of a file, :data:`ROWS` at a time, as :func:`particles_of`.

    Raises :class:`EventFileError`, also for a file of another format, and ``FileNotFoundError``.
    """
    for _, events in _read(path, detector):
        yield events


def read_collisions(path: Path, detector: Detector = ZN) -> Iterator[Collisions]:
    """The same with the number of each particle's event, some at a time.

    Raises :class:`EventFileError` also where the column ``event`` is missing, where a number of it is
    not whole, and for a particle of which no side can be told, since its pz is 0.
    """
    start = 0
    for part, events in _read(path, detector, [EVENT]):
        event = _event_numbers(path, start, np.asarray(part[EVENT]))
        across = events.features[:, FEATURES.index("pz")] == 0
        if across.any():
            raise EventFileError(
                f"{path}: row {start + int(across.argmax())} (counted from 0): expected a pz above or "
                "below 0, which tells the side, found 0"
            )
        start += len(events)
        yield Collisions(event, events)


def _event_numbers(path: Path, start: int, values: NDArray[Any]) -> NDArray[np.int64]:
    numbers = _numbers(path, start, EVENT, values)
    if numbers.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            # doubles beyond are not all of the whole numbers there
            bad = ~((numbers == np.rint(numbers)) & (np.abs(numbers) <= 2.0**53))
    else:
        bad = numbers > np.iinfo(np.int64).max
    if bad.any():
        k = int(bad.argmax())
        raise EventFileError(
            f"{path}: row {start + k} (counted from 0): expected a whole number in column {EVENT}, "
            f"found {values[k]}"
        )
    return numbers.astype(np.int64)


def _read(
    path: Path, detector: Detector, more: Sequence[str] = ()
) -> Iterator[tuple[pd.DataFrame, Events]]:
    """Rows and their particles, of a file that has ``more`` columns, too."""
    start = 0
    for part in _parts(path):
        _check_names(path, [str(column) for column in part.columns], more)
        if len(part) == 0:  # a header alone
            continue
        events = particles_of(part, detector, path, start)
        start += len(events)
        yield part, events
    if start == 0:
        raise EventFileError(f"{path}: holds no particles")


def count_particles(path: Path) -> int:
    """How many particles a file has; of a CSV file, its lines but for the header."""
    if path.suffix == ".npz":
        with refusing(path, "not readable as an npz file"), Member(path) as table:
            return int(table.shape[0])
    if path.suffix == ".root":
        with refusing(path, "not readable as a ROOT file"), uproot.open(path) as file:
            return int(_tree(path, file).num_entries)
    with path.open("rb") as lines:
        return max(sum(line.strip() != b"" for line in lines) - 1, 0)


def _parts(path: Path) -> Iterable[pd.DataFrame]:
    formats = {".csv": _csv_parts, ".npz": _npz_parts, ".root": _root_parts}
    if path.suffix not in formats:
        raise EventFileError(f"{path}: expected a .csv, .npz or .root file of particles")
    with refusing(path, f"not readable as a {path.suffix} file of particles"):
        yield from formats[path.suffix](path)


def _csv_parts(path: Path) -> Iterator[pd.DataFrame]:
    with pd.read_csv(path, chunksize=ROWS, skipinitialspace=True) as parts:
        yield from parts


def _npz_parts(path: Path) -> Iterator[pd.DataFrame]:
    with Member(path) as table:
        columns = [*_COLUMNS]
        if len(table.shape) != 2 or not len(FEATURES) <= table.shape[1] <= len(columns):
            raise EventFileError(
                f"{path}: expected rows of 9, 10 or 11 numbers (nine features, then the PDG code, "
                f"then the number of the event), got an array of shape {table.shape}"
            )
        for start in range(0, table.shape[0], ROWS):
            rows = table.read(min(ROWS, table.shape[0] - start))
            yield pd.DataFrame(rows, columns=columns[: table.shape[1]])
        table.finish()


def _tree(path: Path, file: Any) -> Any:
    trees = [key for key, kind in file.classnames().items() if kind == "TTree"]
    if len(trees) != 1:
        raise EventFileError(f"{path}: expected one TTree, found {trees}")
    return file[trees[0]]


def _root_parts(path: Path) -> Iterator[pd.DataFrame]:
    with uproot.open(path) as file:
        tree = _tree(path, file)
        wanted = [name for name in _COLUMNS if name in tree]
        if not {*FEATURES} <= {*wanted}:
            _check_names(path, [*tree.keys()])
        for part in tree.iterate(wanted, step_size=ROWS, library="np"):
            yield pd.DataFrame(part)
