"""Events that the tests of several formats write, read and compare."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zdc_nb.data.events import Events
from zdc_nb.data.validation import mass_and_charge


def assert_equal(one: Events, other: Events) -> None:
    """The same values of the same types."""
    for name in ("pdg", "features", "responses", "particle"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def table_of(events: Events, columns: int) -> NDArray[np.float64]:
    """The first columns of what an npz file of particles holds."""
    return np.column_stack([events.features, events.pdg, events.photon_sum])[:, :columns]


def physical(pdg: Any, features: NDArray[Any]) -> NDArray[np.float64]:
    """The features with the mass of each PDG code, as far as it is known, and the energy to it."""
    features = np.array(features, np.float64)
    mass = np.array([mass_and_charge(float(code))[0] for code in pdg])
    features[:, 7] = np.where(np.isnan(mass), features[:, 7], mass)
    features[:, 0] = np.sqrt((features[:, 4:7] ** 2).sum(1) + (1e-3 * features[:, 7]) ** 2)
    return features


def write_pair(folder: Path, table: NDArray[Any], counts: NDArray[Any]) -> tuple[Path, Path]:
    """An npz pair of these particles and responses."""
    paths = folder / "data_particles.npz", folder / "data_responses.npz"
    np.savez(paths[0], table)
    np.savez_compressed(paths[1], counts)
    return paths
