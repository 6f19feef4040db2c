"""Events on disk: this project's ROOT tree, and the npz pairs that others have.

ROOT: one TTree ``zn`` with a row for each response. Scalar branches pdg, energy, vx, vy, vz, px,
py, pz, mass, charge (units as in :data:`zdc_nb.events.FEATURES`) and photon_sum; the lit fibres as
jagged arrays: index (row * 44 + column) and photons.

npz pair: two files of one array ``arr_0`` each. Particles are rows of the nine features in the
same order, optionally followed by the PDG code and then the photon sum; responses are (N, 44, 44)
photon counts, integers or floats that are whole.

Whatever is wrong with a file is told with its name, the row and what was expected. Nothing is
unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray
from particle import Particle

from zdc_nb.events import FEATURES, SHAPE, Events, select_subset, split_events, thin
from zdc_nb.params import Study, Subset, derive_seed, project_root
from zdc_nb.simulation import SPECIES, VERSION, simulate
from zdc_nb.storage import write_atomically

__all__ = [
    "EventFileError",
    "nearest_species",
    "read_events",
    "read_npz",
    "read_root",
    "study_events",
    "study_split",
    "write_root",
]

_TREE = "zn"
_FIBRES = SHAPE[0] * SHAPE[1]
_MADE_WITH = "made_with"
_SCALARS = ("pdg", *FEATURES, "photon_sum")
_LARGEST = np.iinfo(np.uint16).max

_BASKET = 20_000
"""Responses written, read and checked at once, which bounds the memory that this takes."""


class EventFileError(ValueError):
    """A file does not hold events as expected; the message names file, row and expectation."""


# --- ROOT ---------------------------------------------------------------------------------------


def write_root(events: Events, path: Path, made_with: str = "") -> None:
    """Write ``events`` as a ROOT file, under a temporary name until it is whole.

    ``made_with`` is kept in the file: the parameters that the events were simulated with.
    """
    types = {
        "pdg": np.int32,
        **dict.fromkeys(FEATURES, np.float64),
        "photon_sum": np.int64,
        **dict.fromkeys(("index", "photons"), "var * uint16"),
    }
    with write_atomically(path) as temporary, uproot.recreate(temporary) as file:
        tree = file.mktree(_TREE, types)
        for start in range(0, len(events), _BASKET):
            tree.extend(_branches(events[start : start + _BASKET]))
        if made_with:
            file[_MADE_WITH] = made_with


def _branches(events: Events) -> dict[str, Any]:
    flat = events.responses.reshape(len(events), _FIBRES)
    row, fibre = np.nonzero(flat)
    lit = np.bincount(row, minlength=len(events))
    return {
        "pdg": events.pdg,
        **{name: events.features[:, i] for i, name in enumerate(FEATURES)},
        "photon_sum": events.photon_sum,
        "index": ak.unflatten(fibre.astype(np.uint16), lit),
        "photons": ak.unflatten(flat[row, fibre], lit),
    }


def read_root(path: Path) -> Events:
    """Read a ROOT file as :func:`write_root` makes it; raises :class:`EventFileError`."""
    try:
        with uproot.open(path) as file:
            names = [key.split(";")[0] for key in file.keys()]  # noqa: SIM118
            if _TREE not in names:
                raise EventFileError(f"{path}: no TTree {_TREE!r}, found {names}")
            tree = file[_TREE]
            missing = [name for name in (*_SCALARS, "index", "photons") if name not in tree]
            if missing:
                raise EventFileError(f"{path}: the tree {_TREE!r} lacks {', '.join(missing)}")
            scalars = {name: _scalar_branch(path, name, tree[name].array()) for name in _SCALARS}
            responses = np.zeros((tree.num_entries, _FIBRES), np.uint16)
            for start in range(0, tree.num_entries, _BASKET):
                part = slice(start, min(start + _BASKET, tree.num_entries))
                index, photons = (
                    _jagged_branch(path, name, tree[name].array(None, part.start, part.stop))
                    for name in ("index", "photons")
                )
                _scatter(path, start, index, photons, responses[part])
    except (EventFileError, FileNotFoundError):
        raise
    except Exception as error:  # uproot raises almost anything on bytes that are not ROOT's
        raise EventFileError(f"{path}: not readable as a ROOT file ({error})") from error
    return _checked(
        path,
        _pdg_codes(path, scalars["pdg"]),
        np.column_stack([scalars[name].astype(np.float64) for name in FEATURES]),
        responses.reshape(-1, *SHAPE),
        scalars["photon_sum"],
    )


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


def _scatter(path: Path, start: int, index: Any, photons: Any, flat: NDArray[np.uint16]) -> None:
    """Fill ``flat`` (N, 1936) with the lit fibres of the responses from number ``start`` on."""
    lit = ak.to_numpy(ak.num(index))
    unequal = ak.to_numpy(ak.num(photons)) != lit
    _row_check(path, unequal, "as many photons as lit fibres", start)
    row = np.repeat(np.arange(len(lit)), lit)
    fibre, light = (ak.to_numpy(ak.flatten(part)).astype(np.int64) for part in (index, photons))

    def check(good: NDArray[np.bool_], expected: str) -> None:
        _row_check(path, np.bincount(row[~good], minlength=len(lit)) > 0, expected, start)

    check((fibre >= 0) & (fibre < _FIBRES), f"fibres from 0 to {_FIBRES - 1}")
    check((light >= 0) & (light <= _LARGEST), f"photon counts from 0 to {_LARGEST}")
    _, first = np.unique(row * _FIBRES + fibre, return_index=True)
    check(np.isin(np.arange(len(row)), first), "each lit fibre once")
    flat[row, fibre] = light


# --- npz pair -----------------------------------------------------------------------------------


def read_npz(particles: Path, responses: Path) -> Events:
    """Read a pair of npz files.

    The particles have 9 columns (the features), 10 (and the PDG code) or 11 (and the photon sum,
    which must agree with the response). Without PDG codes the species is guessed from mass and
    charge (:func:`nearest_species`), and a line says so. Raises :class:`EventFileError`.
    """
    table = _npz_array(particles)
    columns = (len(FEATURES), len(FEATURES) + 1, len(FEATURES) + 2)
    if table.ndim != 2 or table.shape[1] not in columns:
        raise EventFileError(
            f"{particles}: expected rows of 9, 10 or 11 numbers (nine features, then the PDG "
            f"code, then the photon sum), got an array of shape {table.shape}"
        )
    counts = _npz_array(responses)
    if counts.shape[1:] != SHAPE:
        raise EventFileError(f"{responses}: expected (N, 44, 44) counts, got {counts.shape}")
    if len(counts) != len(table):
        raise EventFileError(
            f"{particles} has {len(table)} particles, but {responses} {len(counts)} responses"
        )
    for start in range(0, len(counts), _BASKET):
        _check_counts(responses, counts[start : start + _BASKET], start)
    features = table[:, : len(FEATURES)].astype(np.float64)
    _row_check(particles, ~np.isfinite(table.astype(np.float64)).all(1), "finite numbers")
    if table.shape[1] > len(FEATURES):
        pdg = _pdg_codes(particles, table[:, len(FEATURES)])
    else:
        pdg = nearest_species(features)
        print(
            f"{particles}: holds no PDG codes, so species were guessed from mass and charge: "
            "every neutral kaon is taken for a K0S, every neutral antiparticle for its particle"
        )
    photon_sum = table[:, columns[1]] if table.shape[1] == columns[2] else None
    return _checked(particles, pdg, features, counts.astype(np.uint16, copy=False), photon_sum)


def _check_counts(path: Path, counts: NDArray[Any], start: int) -> None:
    """``counts`` (N, 44, 44) are the responses from number ``start`` on."""
    if not np.issubdtype(counts.dtype, np.integer):
        _row_check(path, ~np.isfinite(counts).all((1, 2)), "finite photon counts", start)
        _row_check(path, (counts != np.rint(counts)).any((1, 2)), "whole photon counts", start)
    _row_check(path, counts.min((1, 2)) < 0, "photon counts of at least 0", start)
    _row_check(path, counts.max((1, 2)) > _LARGEST, f"photon counts of at most {_LARGEST}", start)


def _npz_array(path: Path) -> NDArray[Any]:
    try:
        # numpy itself leaves a broken file open
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            array: NDArray[Any] = file["arr_0"]
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise almost anything on broken bytes
        raise EventFileError(
            f"{path}: expected an npz file with one array of numbers, 'arr_0' ({error})"
        ) from error
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise EventFileError(f"{path}: expected real numbers, got {array.dtype}")
    return array


def nearest_species(features: NDArray[np.float64]) -> NDArray[np.int32]:
    """(N,) PDG code of the species nearest in mass among those of the same charge.

    A guess: mass and charge cannot tell K0L from K0S, nor a neutral particle from its
    antiparticle. Every neutral kaon becomes K0S (310), every neutral antiparticle the particle.
    Charges that no species has give 0.
    """
    mass, charge = (features[:, FEATURES.index(name)] for name in ("mass", "charge"))
    # particles before antiparticles, so that a tie goes to the particle
    codes = np.array(sorted((s.pdg for s in SPECIES), reverse=True), np.int32)
    table = [Particle.from_pdgid(int(code)) for code in codes]
    distance = np.abs(mass[:, None] - [entry.mass or 0.0 for entry in table])
    distance[charge[:, None] != [entry.charge for entry in table]] = np.inf
    return np.where(np.isfinite(distance.min(1)), codes[distance.argmin(1)], 0).astype(np.int32)


# --- Either -------------------------------------------------------------------------------------


def read_events(source: str | Path | Sequence[str | Path]) -> Events:
    """Read a ROOT file, or an npz pair given as [particles, responses].

    Raises
    ------
    EventFileError
        naming file, row and what was expected.
    FileNotFoundError
        where a file is missing.
    """
    paths = [Path(p) for p in ([source] if isinstance(source, str | Path) else source)]
    suffixes = [path.suffix for path in paths]
    if suffixes == [".root"]:
        return read_root(paths[0])
    if suffixes == [".npz", ".npz"]:
        return read_npz(paths[0], paths[1])
    raise EventFileError(
        f"{', '.join(map(str, paths))}: expected one .root file, or two .npz files (particles, "
        "responses)"
    )


def _row_check(path: Path, bad: Any, expected: str, start: int = 0) -> None:
    """``bad`` (N,) tells which rows are; the first of them has the number ``start`` in the file."""
    if bad.any():
        row = start + int(bad.argmax())
        raise EventFileError(
            f"{path}: row {row} (counted from 0, the first such row): expected {expected}"
        )


def _pdg_codes(path: Path, codes: NDArray[Any]) -> NDArray[np.int32]:
    whole = np.isfinite(codes) & (codes == np.rint(codes))
    _row_check(path, ~whole | (np.abs(codes) > np.iinfo(np.int32).max), "a PDG code")
    return codes.astype(np.int32)


def _checked(
    path: Path,
    pdg: NDArray[np.int32],
    features: NDArray[np.float64],
    responses: NDArray[np.uint16],
    photon_sum: NDArray[Any] | None,
) -> Events:
    if len(responses) == 0:
        raise EventFileError(f"{path}: holds no responses")
    _row_check(path, ~np.isfinite(features).all(1), "finite features")
    events = Events.from_arrays(pdg, features, responses)
    total = events.photon_sum
    # a generated fibre holds at most all of a response's photons, and has to fit in 16 bits too
    _row_check(path, total > _LARGEST, f"at most {_LARGEST} photons in all")
    if photon_sum is not None:
        _row_check(path, total != photon_sum, "a photon sum equal to the response's")
    return events


# --- A study's events ---------------------------------------------------------------------------


def study_events(study: Study, progress: bool = False) -> Events:
    """All events of a study.

    Those of ``data.file`` with at least ``data.min_photons`` photons; or, where it is null, those
    of the open simulation, which is run and kept as ``data.root`` among the artefacts unless one
    made with the same parameters lies there.
    """
    data = study.data
    if data.file is not None:
        names = [data.file] if isinstance(data.file, str) else data.file
        events = read_events([project_root() / name for name in names])
        bright = events[events.photon_sum >= data.min_photons]
        if len(bright) == 0:
            raise EventFileError(f"{data.file}: no response has {data.min_photons} photons")
        return bright
    seed = derive_seed(study.seed, "simulation")
    made_with = json.dumps(
        data.model_dump(include={"responses", "repeats", "min_photons"})
        | {"seed": seed, "version": VERSION}
    )
    path = study.artifacts / "data.root"
    if path.is_file() and _made_with(path) == made_with:
        return read_root(path)
    if path.is_file():
        print(f"{path} was made with other parameters: simulating again")
    events = simulate(data.responses, data.repeats, data.min_photons, seed, progress=progress)
    write_root(events, path, made_with)
    return events


def _made_with(path: Path) -> str | None:
    try:
        with uproot.open(path) as file:
            return str(file[_MADE_WITH]) if _MADE_WITH in file else None
    except Exception as error:
        raise EventFileError(f"{path}: not readable as a ROOT file ({error})") from error


def study_split(study: Study, subset: Subset) -> tuple[Events, Events, Events]:
    """Training, validation and test events of one subset: selected, capped, split; all seeded.

    Raises :class:`EventFileError`, naming file and subset, where these are too few.
    """
    events = study_events(study)
    try:
        events = select_subset(events, subset)
        if subset in study.data.max_responses:
            seed = derive_seed(study.seed, "thin", subset)
            events = thin(events, study.data.max_responses[subset], seed)
        return split_events(events, study.data.split, derive_seed(study.seed, "split", subset))
    except ValueError as error:
        source = study.data.file or study.artifacts / "data.root"
        raise EventFileError(f"{source}, subset {subset!r}: {error}") from error
