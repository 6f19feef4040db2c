"""Data files as O2's Extract macro writes them: two texts, read in parts.

One is a table with the header :data:`HEADER` and, for each response, a row whose Detector is N (the
neutron calorimeter, ZN) and one whose Detector is P (the proton calorimeter), of which one is read.
Mass and charge follow from the PDG code. The other has, for each response, a line for each row of
fibres with a whole number for each column: the photon counts.
Both are ASCII; a byte order mark, which some editors put before it, is skipped.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn, Self, TextIO

import numba
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from zdc_nb.data.events import Events
from zdc_nb.data.validation import LARGEST, EventFileError, Rows, Tally, mass_and_charge, refusing
from zdc_nb.detector.geometry import Detector

__all__ = ["HEADER", "is_table", "read_text"]

HEADER = "Detector,Pdg,Energy,Vx,Vy,Vz,Px,Py,Pz,PhotonSum"

_LETTERS = ("N", "P")

_COLUMNS = HEADER.count(",") + 1
_BYTES = 2**23
"""Bytes of images read at once, some 2000 responses."""


def read_text(
    particles: Path, images: Path, tally: Tally, bar: tqdm[Any], detector: Detector
) -> Iterator[Events]:
    """The events of a pair of texts, some at a time; ``bar`` goes on by bytes of images.

    Raises :class:`EventFileError`, also for a detector that O2 does not write; lines are counted from
    1 and, among the rows that are responses, rows from 0.
    """
    start = 0
    letter = detector.name[-1]
    if letter not in _LETTERS:
        raise EventFileError(
            f"{particles}: O2's texts hold responses of the ZN and the ZP, expected another format "
            f"for the {detector.name}"
        )
    with _Table(particles, letter) as table:
        for lit, fibre, counts, size in _images(images, detector):
            rows = Rows(particles, start, len(lit), tally, detector)
            columns = table.read(len(lit))
            if len(columns) < len(lit):
                raise EventFileError(
                    f"{particles} has {start + len(columns)} rows of detector {letter}, but "
                    f"{images} more responses"
                )
            start += len(lit)
            photons = rows.photons(counts, fibre, lit, images)
            pdg, momenta, photon_sum = columns[:, 0], columns[:, 1:-1], columns[:, -1]
            known = [mass_and_charge(code) for code in pdg.tolist()]
            rows.expect(
                np.isfinite(known).all(axis=1),
                "a PDG code of known mass and charge",
                partial(_value, pdg),
            )
            yield rows.events(np.column_stack([momenta, known]), pdg, photons, photon_sum)
            bar.update(size)
        if len(table.read(1)):
            raise EventFileError(
                f"{particles} has more than {start} rows of detector {letter}, but {images} "
                f"{start} responses"
            )
    if start == 0:
        raise EventFileError(f"{images}: holds no responses")


def is_table(path: Path) -> bool:
    """Whether a text begins as the table does."""
    with refusing(path, "not readable"), path.open("rb") as file:
        _skip_mark(file)
        return file.read(len(HEADER)) == HEADER.encode()


def _skip_mark(file: IO[bytes]) -> None:
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)


# --- The table ----------------------------------------------------------------------------------


class _Table:
    """The rows of one detector, to be read from the first to the last."""

    def __init__(self, path: Path, letter: str) -> None:
        self.path, self._letter = path, letter
        with refusing(path, "not readable as text"):
            # decoded ahead of the line that is read: what is not ASCII is found in its line
            self._file: TextIO = path.open(encoding="utf-8-sig", errors="surrogateescape")
        self._line = 0

    def __enter__(self) -> Self:
        try:
            if self._next_line().rstrip() != HEADER:
                raise EventFileError(f"{self.path}: line 1: expected the header {HEADER}")
        except EventFileError:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _next_line(self) -> str:
        with refusing(self.path, f"line {self._line + 1}: not readable as text"):
            line = self._file.readline()
        self._line += 1
        if not line.isascii():
            raise EventFileError(
                f"{self.path}: line {self._line}: expected ASCII text, got {line.strip()!r:.80}"
            )
        return line

    def read(self, count: int) -> NDArray[np.float64]:
        """At most ``count`` rows: PDG code, energy, vertex, momentum, photon sum."""
        lines: list[str] = []
        numbers: list[int] = []
        while len(lines) < count and (line := self._next_line()):
            if line.isspace():
                continue
            if (
                not line.startswith(tuple(f"{letter}," for letter in _LETTERS))
                or line.count(",") != _COLUMNS - 1
            ):
                raise EventFileError(
                    f"{self.path}: line {self._line}: expected {_COLUMNS} columns, the first of "
                    f"them N or P, got {line.strip()!r:.80}"
                )
            if line.startswith(self._letter):
                lines.append(line[2:])
                numbers.append(self._line)
        if not lines:
            return np.empty((0, _COLUMNS - 1))
        try:
            table: NDArray[np.float64] = np.loadtxt(lines, delimiter=",", comments=None, ndmin=2)
        except ValueError:
            self._refuse(lines, numbers)
        return table

    def _refuse(self, lines: list[str], numbers: list[int]) -> NoReturn:
        for line, number in zip(lines, numbers, strict=True):
            with refusing(self.path, f"line {number}: expected numbers after the first column"):
                np.loadtxt([line], delimiter=",", comments=None)
        raise AssertionError("none of the lines is at fault by itself")


# --- Images -------------------------------------------------------------------------------------


def _images(
    path: Path, detector: Detector
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.int32], int]]:
    """Lit fibres of each response, and their numbers and photons; and bytes read since."""
    rows, columns = detector.shape
    line = 1
    with refusing(path, "not readable"), path.open("rb") as file:
        _skip_mark(file)
        rest, last = b"", False
        while not last:
            part = file.read(_BYTES)
            last = not part
            # the last line, too, ends
            text = np.frombuffer(rest + (part or b"\n"), np.uint8)
            lit = np.zeros(len(text) // (2 * detector.dim) + 1, np.int64)
            fibre = np.zeros(len(text) // 2 + 1, np.uint16)
            photons = np.zeros(len(text) // 2 + 1, np.int32)
            responses, entries, used, lines, fault = _tokenise(
                text, rows, columns, lit, fibre, photons
            )
            if fault:
                raise EventFileError(
                    f"{path}: line {line + fault - 1}: expected {columns} whole numbers"
                )
            rest = text[used:].tobytes()
            line += lines
            if responses:
                yield lit[:responses], fibre[:entries], photons[:entries], used
        if rest.strip():
            raise EventFileError(
                f"{path}: from line {line} on: expected {rows} lines of {columns} whole "
                "numbers for each response, but the file ends"
            )


@numba.njit(cache=True, nogil=True)
def _tokenise(
    text: NDArray[np.uint8],
    rows: int,
    columns: int,
    lit: NDArray[np.int64],
    fibre: NDArray[np.uint16],
    photons: NDArray[np.int32],
) -> tuple[int, int, int, int, int]:
    """Photons of the lit fibres of all responses that are whole in ``text``.

    Returns the number of responses and of lit fibres, bytes and lines that they take, and the
    line (from 1) where something else than ``columns`` numbers stands, or 0. What is negative stays so,
    what is too large is one too large.
    """
    responses = entries = used = lines = 0  # of whole responses
    line, row, column, seen, begin = 1, 0, 0, 0, 0  # of the response that is being read
    value, sign = -1, 1
    for position in range(len(text)):
        byte = text[position]
        if 48 <= byte <= 57:
            value = min(max(value, 0) * 10 + byte - 48, LARGEST + 1)
        elif byte == 45 and value < 0 and sign > 0:
            sign = -1
        elif byte in (9, 10, 13, 32):
            if value >= 0:
                if column == columns:
                    return responses, entries, used, lines, line
                if value > 0:
                    fibre[begin + seen] = row * columns + column
                    photons[begin + seen] = sign * value
                    seen += 1
                column += 1
            elif sign < 0:
                return responses, entries, used, lines, line
            value, sign = -1, 1
            if byte == 10:
                if column not in (0, columns):
                    return responses, entries, used, lines, line
                row += column == columns
                column = 0
                line += 1
                if row == rows:
                    lit[responses] = seen
                    responses += 1
                    entries += seen
                    begin, seen, row = entries, 0, 0
                    used, lines = position + 1, line - 1
        else:
            return responses, entries, used, lines, line
    return responses, entries, used, lines, 0


def _value(values: NDArray[Any], k: int) -> str:
    return f"{values[k]:g}"
