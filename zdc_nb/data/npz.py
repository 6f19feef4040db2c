"""Data files as pairs of npz files of one array ``arr_0`` each, read in parts.

Particles are rows of the nine features in the order of :data:`zdc_nb.data.events.FEATURES`, optionally
followed by the PDG code and then the photon sum; responses are photon counts (N, rows, columns),
integers or floats that are whole. Nothing is unpickled.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from zdc_nb.data.events import FEATURES, Events
from zdc_nb.data.validation import EventFileError, Rows, Tally, refusing
from zdc_nb.detector.geometry import Detector

__all__ = ["Member", "read_npz"]

_MEMBER = "arr_0.npy"
_ROWS = 1024
"""Responses read at once."""

_PIECE = 2**20
"""Bytes unpacked at once."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(
    particles: Path, responses: Path, tally: Tally, bar: tqdm[Any], detector: Detector
) -> Iterator[Events]:
    """The events of a pair of npz files, some at a time; ``bar`` goes on by bytes of responses.

    The particles have 9 columns (the features), 10 (and the PDG code) or 11 (and the photon sum,
    which must agree with the response). Without PDG codes the species is guessed from mass and
    charge (:func:`zdc_nb.data.validation.nearest_species`), and a line says so. Raises
    :class:`EventFileError`.
    """
    with Member(particles) as table, Member(responses) as counts:
        known = len(FEATURES)
        if len(table.shape) != 2 or table.shape[1] not in (known, known + 1, known + 2):
            raise EventFileError(
                f"{particles}: expected rows of 9, 10 or 11 numbers (nine features, then the PDG "
                f"code, then the photon sum), got an array of shape {table.shape}"
            )
        if counts.shape[1:] != detector.shape:
            sizes = ", ".join(map(str, detector.shape))
            raise EventFileError(f"{responses}: expected (N, {sizes}) counts, got {counts.shape}")
        total = counts.shape[0]
        if table.shape[0] != total:
            raise EventFileError(
                f"{particles} has {table.shape[0]} particles, but {responses} {total} responses"
            )
        if total == 0:
            raise EventFileError(f"{particles}: holds no responses")
        if table.shape[1] == known:
            bar.write(
                f"{particles}: holds no PDG codes, so species were guessed from mass and charge: "
                "every neutral kaon is taken for a K0S, every neutral antiparticle for its particle"
            )
        done = 0
        for start in range(0, total, _ROWS):
            rows = Rows(particles, start, min(_ROWS, total - start), tally, detector)
            part = table.read(len(rows.good)).astype(np.float64)
            photons = _lit(counts.read(len(rows.good)), rows, responses)
            finite = np.isfinite(part)
            rows.expect(
                finite.all(axis=1),
                "finite numbers",
                partial(_first_bad, part, finite),
            )
            pdg, photon_sum = (
                part[:, column] if column < table.shape[1] else None
                for column in (known, known + 1)
            )
            if pdg is not None and photon_sum is None:
                _refuse_photon_sum(pdg, photons, particles)
            yield rows.events(part[:, :known], pdg, photons, photon_sum)
            bar.update(counts.position - done)
            done = counts.position
        table.finish()
        counts.finish()


def _refuse_photon_sum(pdg: NDArray[Any], photons: Any, path: Path) -> None:
    """The tenth of ten columns is the PDG code; many a photon sum would pass for one.

    Refused where it is that of most rows: the sums may have been made otherwise for some.
    """
    total = photons.sum(axis=1, dtype=np.int64)
    # an unknown code (0) of a dark response says nothing
    telling = (pdg != 0) | (total != 0)
    same = np.count_nonzero((pdg == total) & telling)
    if same > 1 and 2 * same > np.count_nonzero(telling):
        raise EventFileError(
            f"{path}: expected the PDG code in the last of 10 columns, got the photon sum; "
            "put the code before it, or leave it out"
        )


def _lit(counts: NDArray[Any], rows: Rows, path: Path) -> Any:
    """Sparse (n, fibres) photons; most fibres are dark, so that only the others are checked."""
    flat = counts.reshape(-1)
    place, fibres = np.flatnonzero(flat), rows.detector.dim
    lit = np.diff(np.searchsorted(place, np.arange(len(counts) + 1) * fibres))
    return rows.photons(flat[place], place % fibres, lit, path)


class Member:
    """The array of an npz file, to be read row by row from the first to the last.

    Attributes
    ----------
    shape, dtype
        of the whole array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as stack, self._refusing():
            self._file = stack.enter_context(path.open("rb"))
            archive = stack.enter_context(zipfile.ZipFile(self._file))
            info = archive.getinfo(_MEMBER)
            self._stream: Any = stack.enter_context(archive.open(info))
            self.shape, fortran, self.dtype = _header(self._stream)
            if self.dtype.kind not in "iuf":
                raise EventFileError(f"{path}: expected real numbers, got {self.dtype}")
            size = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
            if info.file_size != self._stream.tell() + size:
                raise ValueError(
                    f"expected {self._stream.tell() + size} bytes for shape {self.shape}, "
                    f"found {info.file_size}"
                )
            # columns of a table one after the other, as pandas keeps them
            self._table: NDArray[Any] | None = None
            if fortran and len(self.shape) == 2:
                self._table = self._numbers(size).reshape(self.shape, order="F")
                self._next = 0
            elif fortran and len(self.shape) > 2:
                raise EventFileError(
                    f"{path}: expected one response after the other, got an array in Fortran "
                    "order; save numpy.ascontiguousarray of it"
                )
            self._stack = stack.pop_all()

    def _refusing(self) -> Any:
        return refusing(self.path, "expected an npz file with one array of numbers, 'arr_0'")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def position(self) -> int:
        """Bytes of the file that have been read."""
        return self._file.tell()

    def _numbers(self, size: int) -> NDArray[Any]:
        content = bytearray(size)
        with memoryview(content) as view:
            done = 0
            while done < size:
                step = self._stream.readinto(view[done : done + _PIECE])
                if not step:
                    raise EOFError(f"it ends {size - done} bytes early")
                done += step
        return np.frombuffer(content, self.dtype)

    def read(self, rows: int) -> NDArray[Any]:
        """The next rows."""
        if self._table is not None:
            self._next += rows
            return self._table[self._next - rows : self._next]
        shape = (rows, *self.shape[1:])
        with self._refusing():
            return self._numbers(int(np.prod(shape)) * self.dtype.itemsize).reshape(shape)

    def finish(self) -> None:
        """At the end the archive's checksum is compared."""
        with self._refusing():
            if self._stream.read(1):
                raise ValueError("more numbers than its header says")


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and type of the array that follows."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"an npy header of version {version}")
    with warnings.catch_warnings():
        # those of the parser about what stands there; what follows from it is checked
        warnings.simplefilter("ignore")
        shape, fortran, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are not read")
    if any(length < 0 for length in shape):
        raise ValueError(f"an array of shape {shape}")
    return shape, fortran, dtype


def _first_bad(values: NDArray[Any], good: NDArray[np.bool_], k: int) -> object:
    return values[k][~good[k]][0]
