"""Particles without responses, which a generator is asked about: of a frame, or of a file, in parts.

Columns are the nine features, named and in the units of :data:`zdc_nb.data.events.FEATURES`, and
optionally ``pdg``. A file is a CSV with a header, an npz of one array ``arr_0`` of 9 columns (or 10,
with the PDG code last), or a ROOT file with a tree that has these branches.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
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

__all__ = ["count_particles", "particles_of", "read_particles"]

ROWS = 8192
"""Particles read at once."""


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
        values = np.asarray(particles[wanted])
        if values.dtype.kind in "iuf":
            return values.astype(np.float64)
        numbers = np.asarray(pd.to_numeric(pd.Series(values), errors="coerce"), np.float64)
        bad = np.isnan(numbers) & ~pd.isna(values)
        if bad.any():
            k = int(bad.argmax())
            raise EventFileError(
                f"{path}: row {start + k} (counted from 0): expected a number in column {wanted}, "
                f"found {values[k]!r}"
            )
        return numbers

    features = np.column_stack([column(wanted) for wanted in FEATURES])
    pdg = column("pdg") if "pdg" in names else None
    return _checked(path, start, features, pdg, detector)


def _check_names(path: Path, names: Sequence[str]) -> None:
    known = (*FEATURES, "pdg")
    for wanted in FEATURES:
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
    start = 0
    for part in _parts(path):
        if len(part) == 0:  # a header alone
            continue
        events = particles_of(part, detector, path, start)
        start += len(events)
        yield events
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
        columns = [*FEATURES, "pdg"]
        if len(table.shape) != 2 or table.shape[1] not in (len(FEATURES), len(columns)):
            raise EventFileError(
                f"{path}: expected rows of 9 or 10 numbers (nine features, then the PDG code), got "
                f"an array of shape {table.shape}"
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
        wanted = [name for name in (*FEATURES, "pdg") if name in tree]
        if len(wanted) < len(FEATURES):
            _check_names(path, [*tree.keys()])
        for part in tree.iterate(wanted, step_size=ROWS, library="np"):
            yield pd.DataFrame(part)
