"""What a calorimeter of fibres is: its face, where it stands, and which channel reads which fibre."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ZN", "Detector"]


@dataclass(frozen=True, eq=False)
class Detector:
    """A calorimeter whose face is a grid of fibres; two of equal values are equal.

    Fibre (i, j) stands at row i, column j, and has the number i * columns + j. Seen from the
    interaction point, row 0 is at the top and column 0 at the left.

    Attributes
    ----------
    name
        for messages and figures. Its last letter is the detector's in O2's tables.
    shape
        rows (vertical) and columns (horizontal) of fibres.
    pitch
        m, between neighbouring fibres.
    distance
        m, from the interaction point to the face.
    crossing_offset
        m, height of the face's centre above the spot where particles of py = 0 arrive.
    channels
        names of the C channels.
    masks
        (C, rows, columns) bool, the fibres that each channel reads; not writable.

    Raises
    ------
    ValueError
        naming the attribute, what was expected and what was found.

    Examples
    --------
    >>> ZN.shape, ZN.dim, ZN.face_centre
    ((44, 44), 1936, (21.5, 21.5))
    >>> [f"{side:.4f} m" for side in ZN.face]
    ['0.0704 m', '0.0704 m']
    >>> left = np.arange(3) < 2
    >>> small = Detector(
    ...     "small",
    ...     (2, 3),
    ...     0.01,
    ...     5.0,
    ...     0.0,
    ...     ("left", "right"),
    ...     np.tile([[left], [~left]], (1, 2, 1)),
    ... )
    >>> small.dim, small.masks.sum(axis=(1, 2)).tolist()
    (6, [4, 2])
    """

    name: str
    shape: tuple[int, int]
    pitch: float
    distance: float
    crossing_offset: float
    channels: tuple[str, ...]
    masks: NDArray[np.bool_]

    def __post_init__(self) -> None:
        rows, columns = self.shape
        # fibres are numbered in 16 bits in files
        if rows < 1 or columns < 1 or rows * columns > 2**16:
            raise ValueError(f"shape: expected 1 to {2**16} fibres, got {self.shape}")
        for name in ("pitch", "distance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive length, got {getattr(self, name)}")
        masks = np.array(self.masks)
        if masks.shape != (len(self.channels), *self.shape) or masks.dtype != np.bool_:
            raise ValueError(
                f"masks: expected ({len(self.channels)}, {rows}, {columns}) bool, "
                f"got {masks.shape} {masks.dtype}"
            )
        masks.flags.writeable = False
        object.__setattr__(self, "masks", masks)

    def _values(self) -> tuple[object, ...]:
        place = (self.pitch, self.distance, self.crossing_offset)
        return (self.name, self.shape, *place, self.channels, self.masks.tobytes())

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Detector) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    @property
    def dim(self) -> int:
        """Number of fibres, and so of a flow's dimensions."""
        return self.shape[0] * self.shape[1]

    @property
    def face(self) -> tuple[float, float]:
        """Height and width of the face (m)."""
        return self.shape[0] * self.pitch, self.shape[1] * self.pitch

    @property
    def face_centre(self) -> tuple[float, float]:
        """Row and column of the middle of the face, in fibre units."""
        return (self.shape[0] - 1) / 2, (self.shape[1] - 1) / 2


def _zn() -> Detector:
    shape = (44, 44)
    row, column = np.indices(shape)
    even = (row + column) % 2 == 0
    top, left = row < shape[0] // 2, column < shape[1] // 2
    quadrants = (top & left, top & ~left, ~top & left, ~top & ~left)
    return Detector(
        name="ZN",
        shape=shape,
        pitch=0.0016,  # chosen: with 44 fibres the face is 7.04 cm wide
        distance=112.5,  # arXiv 2512.20346
        # chosen: a net vertical half crossing angle of the order of 100 microrad over 112.5 m
        crossing_offset=0.011,
        channels=("common", "top left", "top right", "bottom left", "bottom right"),
        masks=np.stack([~even, *(even & quadrant for quadrant in quadrants)]),
    )


ZN = _zn()
"""ALICE's neutron ZDC. As in O2, fibres with (row + column) odd form the common channel, the even
ones four quadrants; every fibre is in exactly one channel."""
