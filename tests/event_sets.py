"""Events that the tests of several formats write, read and compare."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zdc_nb.data.events import Events, Split
from zdc_nb.data.validation import mass_and_charge
from zdc_nb.detector import Detector


def channel(row: int, column: int) -> int:
    """Odd fibres in a channel of their own, the even ones in five bands of columns."""
    return 0 if (row + column) % 2 else 1 + column // 6


def small_detector() -> Detector:
    """One of 56 x 30 fibres and six channels, like the ZP's face."""
    rows, columns = 56, 30
    masks = np.zeros((6, rows, columns), np.bool_)
    for row, column in product(range(rows), range(columns)):
        masks[channel(row, column), row, column] = True
    names = ("common", "1", "2", "3", "4", "5")
    return Detector("ZP", (rows, columns), 0.004, 113.0, (0.0, -0.2), names, masks)


def make_events(particle: NDArray[np.int64], seed: int) -> Events:
    """Showers whose place and light depend on the particle, with fluctuations."""
    rng = np.random.default_rng(seed)
    responses = np.zeros((len(particle), 44, 44), np.uint16)
    for k, label in enumerate(particle):
        own = np.random.default_rng(int(label))
        photons = rng.poisson(own.uniform(30, 300))
        place = rng.normal(own.uniform(8, 36, 2), own.uniform(1, 4), (photons, 2))
        row, column = np.clip(np.rint(place), 0, 43).astype(int).T
        np.add.at(responses[k], (row, column), 1)
    features = np.zeros((len(particle), 9))
    features[:, 0] = particle
    return Events.from_arrays(np.full(len(particle), 2112, np.int32), features, responses, particle)


def as_comparison(changes: pd.DataFrame, trainings: int = 1) -> pd.DataFrame:
    """Relative changes with intervals of two uncertainties, as from a comparison."""
    return changes.assign(
        low=changes["change"] - 2 * changes["uncertainty"],
        high=changes["change"] + 2 * changes["uncertainty"],
        improvement=0.5,
        trainings=trainings,
    )


def as_split(train: Events, test: Events) -> Split:
    """A split by response of these parts, whose validation nobody looks at."""
    return Split(train, train, test, train)


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
