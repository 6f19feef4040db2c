"""What a calorimeter of fibres is: its face, where it stands, and which channel reads which fibre."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zdc_nb.params import PDG, ParameterError, load_detector_params
from zdc_nb.params.detector import (
    ChannelParams,
    Scale,
    SimulationParams,
    detector_file,
    shipped_detector,
)

__all__ = ["FEATURES", "ZN", "Detector", "load_detector"]

FEATURES = ("energy", "vx", "vy", "vz", "px", "py", "pz", "mass", "charge")
"""The nine features of a particle: GeV, m (three), GeV (three), MeV, e."""


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
    offset
        m, x and y of the face's centre; (0, 0) is where a neutral particle without transverse
        momentum arrives.
    channels
        names of the C channels.
    masks
        (C, rows, columns) bool, the fibres that each channel reads; not writable.
    deflection
        m GeV / e: a charged particle arrives at x greater by this times charge / momentum; None
        where charged particles are swept away.
    conditions
        what a flow is told of a particle, among :data:`zdc_nb.params.detector.CONDITIONS`, and how
        each is scaled.
    species
        names of those that are a data set of their own.
    title
        the name in full, for texts.
    simulation
        the open simulation of it; None where there is none.
    sides
        where such a detector stands, as ALICE names it: ``A`` sees particles of positive pz, ``C``
        those of negative pz.

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
    ...     (0.0, 0.0),
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
    offset: tuple[float, float]
    channels: tuple[str, ...]
    masks: NDArray[np.bool_]
    deflection: float | None = None
    conditions: tuple[tuple[str, Scale], ...] = tuple((name, "standard") for name in FEATURES)
    species: tuple[str, ...] = ()
    title: str = ""
    simulation: SimulationParams | None = None
    sides: tuple[str, ...] = ("A", "C")

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
        place = (self.pitch, self.distance, self.offset, self.deflection)
        read_out = (self.channels, self.masks.tobytes(), self.conditions)
        return (self.name, self.shape, *place, *read_out)

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Detector) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    @property
    def codes(self) -> dict[str, int]:
        """PDG codes of the species that are a data set of their own, by name."""
        return {name: PDG[name] for name in self.species}

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


def _mask(pattern: ChannelParams, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(rows, columns), the fibres in all patterns that a channel names."""
    (rows, columns), (row, column) = shape, np.indices(shape)
    mask = np.ones(shape, np.bool_)
    if pattern.checkerboard is not None:
        mask &= (row + column) % 2 == (pattern.checkerboard == "odd")
    if pattern.quadrant is not None:
        mask &= (row < rows // 2) == pattern.quadrant.startswith("top")
        mask &= (column < columns // 2) == pattern.quadrant.endswith("left")
    if pattern.strip is not None:
        number, strips = pattern.strip
        mask &= column * strips // columns == number - 1
    return mask


def load_detector(name: str) -> Detector:
    """The detector of a file of ``detectors/``, by its stem, or of any other such file, by its path.

    Raises :class:`~zdc_nb.params.ParameterError`, naming the file, the key and what was expected.
    """
    params = load_detector_params(name)
    masks = [_mask(pattern, params.shape) for pattern in params.channels.values()]
    for channel, mask in zip(params.channels, masks, strict=True):
        if not mask.any():
            raise ParameterError(
                f"{detector_file(name)}: channels.{channel}: expected a pattern with fibres, "
                "got one without"
            )
    simulation = params.simulation
    one_sided = simulation is not None and simulation.primaries.sides == "one"
    return Detector(
        name=params.label,
        shape=params.shape,
        pitch=params.pitch,
        distance=params.distance,
        offset=params.offset,
        channels=tuple(params.channels),
        masks=np.stack(masks),
        deflection=params.deflection,
        conditions=tuple(params.conditions.items()),
        species=tuple(params.species),
        title=params.title,
        simulation=simulation,
        sides=("A",) if one_sided else ("A", "C"),
    )


ZN = load_detector(str(shipped_detector("zn")))
"""ALICE's neutron ZDC. As in O2, fibres with (row + column) odd form the common channel, the even
ones four quadrants; every fibre is in exactly one channel."""
