"""Events that the tests of several formats write, read and compare."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zdc_nb.data.events import Events


def assert_equal(one: Events, other: Events) -> None:
    """The same values of the same types."""
    for name in ("pdg", "features", "responses", "particle"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def table_of(events: Events, columns: int) -> NDArray[np.float64]:
    """The first columns of what an npz file of particles holds."""
    return np.column_stack([events.features, events.pdg, events.photon_sum])[:, :columns]


def write_pair(folder: Path, table: NDArray[Any], counts: NDArray[Any]) -> tuple[Path, Path]:
    """An npz pair of these particles and responses."""
    paths = folder / "data_particles.npz", folder / "data_responses.npz"
    np.savez(paths[0], table)
    np.savez_compressed(paths[1], counts)
    return paths
