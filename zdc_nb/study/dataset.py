"""A study's events: read once from its files, or simulated, then kept among its artefacts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import uproot
from numpy.typing import NDArray

from zdc_nb.data.events import (
    Events,
    Split,
    Trials,
    cap,
    deal_particles,
    keep_aside,
    select_subset,
    split_by_response,
)
from zdc_nb.data.readers import find_files, in_order, read_events, read_parts
from zdc_nb.data.root import MADE_WITH, read_digest, read_made_with, write_root
from zdc_nb.data.simulation import VERSION, model_of, simulate, simulate_counted
from zdc_nb.data.validation import EventFileError, Tally
from zdc_nb.detector import Detector, load_detector
from zdc_nb.params import PDG, Study, Subset, derive_seed, project_root
from zdc_nb.storage import checksum, exclusive, write_atomically

__all__ = [
    "data_digest",
    "data_files",
    "data_identity",
    "data_report",
    "kept_events",
    "new_particles",
    "simulation_identity",
    "study_detector",
    "study_events",
    "study_split",
    "study_trials",
]

_READER = 3
"""Grows when files are read otherwise than before, so that they are read again."""

_File = dict[str, Any]
"""A data file as it is now: name, size, mtime_ns and sha256."""


def data_files(study: Study) -> list[Path]:
    """The files that the study reads, as they are read; none where it simulates.

    Raises as :func:`zdc_nb.data.readers.find_files` and :func:`zdc_nb.data.readers.in_order`.
    """
    return [project_root() / name for name in _names(study)]


def _names(study: Study) -> list[str]:
    """As the study gives them, relative to the project's root; patterns replaced by matches."""
    if study.data.file is None:
        return []
    root = project_root()
    names = {root / name: name for name in find_files(study.data.file, root)}
    return [names[path] for path in in_order(list(names))]


def study_detector(study: Study) -> Detector:
    """The detector that the study is about."""
    return load_detector(study.detector)


_ZN_OF_BEFORE = (
    "a2267e5c5516c91ba01fbcb2048c4242cf0f7bb375271586457f2be342deef9c",
    "2af23e9bda4b7fc88e5f49979fa30b36a87d4bb4004e98167deb1b7b74955142",
)
"""Checksums of the ZN when it was the only detector, and not part of an identity: of its simulation,
and of files."""


def _detector_identity(study: Study) -> dict[str, str]:
    """A checksum of what its file says; nothing of the ZN as it was, so that what was made of it stays
    what it is."""
    content = study.detector_params.model_dump(mode="json", exclude={"name", "title"})
    # their order is that of columns
    for key in ("conditions", "channels"):
        content[key] = [*content[key].items()]
    if study.data.file is not None:
        content.pop("simulation")  # the label says which rows of O2's texts are read
    else:
        content.pop("label")
        if content["simulation"] is not None:
            content["simulation"]["primaries"].pop("per_collision")  # of events, not of responses
    digest = _checksum_of(content)
    return {} if digest in _ZN_OF_BEFORE else {"detector": digest}


def simulation_identity(study: Study) -> dict[str, Any]:
    """What makes whole collisions what they are, beside particles and models."""
    simulation = study.detector_params.model_dump(mode="json")["simulation"]
    return {"simulation": _checksum_of(simulation), "version": VERSION}


def _checksum_of(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def data_identity(study: Study) -> dict[str, Any]:
    """What makes a study's events what they are; made of what JSON has.

    For files: their sizes and SHA-256 in the order in which they are read, whatever their names;
    strict, min_photons and the version of the reader. A file whose name, size and time are those
    that it was last read with is not read for that. For the simulation: responses, repeats,
    min_photons, seed and version.
    """
    if study.data.file is None:
        identity = {
            **study.data.model_dump(include={"responses", "repeats", "min_photons"}),
            "seed": derive_seed(study.seed, "simulation"),
            "version": VERSION,
        }
        # only where it is asked for, so that what was simulated before stays what it is
        if study.data.abundance:
            identity["abundance"] = dict(sorted(study.data.abundance.items()))
        if study.data.split == "by_particle":
            identity["test_repeats"] = study.data.test_repeats
            identity["test_responses"] = _test_responses(study)
        return identity | _detector_identity(study)
    return _identity(study, _files(study, _made_with(study) or {}))


def _identity(study: Study, files: list[_File]) -> dict[str, Any]:
    rest = study.data.model_dump(include={"strict", "min_photons"})
    of_files = {"files": _of_each(files, "size", "sha256"), **rest, "reader": _READER}
    return of_files | _detector_identity(study)


def _of_each(files: list[_File], *keys: str) -> list[dict[str, Any]]:
    return [{key: file[key] for key in keys} for file in files]


def _files(study: Study, made_with: dict[str, Any]) -> list[_File]:
    """The files as they are now; those that are as ``made_with`` has them are not read."""
    last = {
        (file["name"], file["size"], file["mtime_ns"]): file["sha256"]
        for file in made_with.get("files", [])
    }
    files = []
    for name in _names(study):
        path = project_root() / name
        stamp = _stamp(path)
        files.append(_file(name, stamp, last.get((name, *stamp)) or _sha256(path, stamp)))
    return files


def _file(name: str, stamp: tuple[int, int], digest: str) -> _File:
    return {"name": name, "size": stamp[0], "mtime_ns": stamp[1], "sha256": digest}


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@cache
def _sha256(path: Path, _stamp: tuple[int, int]) -> str:
    """Of a file, read once as long as its size and time stay what they are."""
    return checksum(path)


def data_report(study: Study) -> dict[str, Any]:
    """Where a study's events come from, and what came of the rows of its files.

    ``files`` (name, size and sha256 of each; none for the simulation), ``read`` (rows), ``dropped``
    (bad rows by what was expected of them), ``faint`` (good rows with fewer than
    ``data.min_photons`` photons), ``kept``, ``guessed_species`` (whether some came without PDG
    codes). The files are read first if they have not been yet.
    """
    if study.data.file is None:
        kept = study.data.responses
        return {
            "files": [],
            "read": kept,
            "dropped": {},
            "faint": 0,
            "kept": kept,
            "guessed_species": False,
            "warnings": [],
        }
    _make_ready(study)
    made_with = _made_with(study) or {}
    return {"files": _of_each(made_with["files"], "name", "size", "sha256"), **made_with["rows"]}


def data_digest(study: Study) -> str | None:
    """A checksum (SHA-256) of the study's events as they are kept; None where there are none yet.

    Of the values, so that events which are made again have the same.
    """
    return read_digest(_kept(study)) if _kept(study).is_file() else None


def study_events(study: Study, progress: bool = False) -> Events:
    """All events of a study, those with at least ``data.min_photons`` photons.

    They come from the files of ``data.file`` or, where it is null, from the open simulation, and
    are kept as ``data.root`` among the artefacts: files are read, and the simulation is run, only
    where none made from the same (see :func:`data_identity`) lies there. ``progress`` shows a bar.

    Raises :class:`EventFileError` for a file that does not hold events as expected, and where
    ``data.root`` was changed since it was made.
    """
    _make_ready(study, progress)
    try:
        return read_events(_kept(study), detector=study_detector(study))
    except EventFileError as error:
        raise EventFileError(f"{error}; delete this file to have it made anew") from error


def kept_events(study: Study) -> Events:
    """The events of :func:`study_events` as they are kept, for who only looks: nothing is made.

    Raises :class:`EventFileError` where there are none, or others than the study has now.
    """
    path = _kept(study)
    make = f"run `make study STUDY=params/{study.name}.yaml`"
    if not path.is_file():
        raise EventFileError(f"{path} is missing: {make}")
    made_with = _made_with(study) or {}
    identity = made_with if study.data.file is None else made_with.get("identity")
    if identity != data_identity(study):
        raise EventFileError(
            f"{path}: was made with other parameters or data than this study has now; {make}"
        )
    return read_events(path, detector=study_detector(study))


def study_trials(study: Study, subset: Subset) -> tuple[Trials, Trials, Trials] | None:
    """How often the particles of a subset sent light: to train on, to validate and to test.

    The parts share no particle; those of a simulation that is split by particle are to test on where
    the study's events are. None where the data do not say: files that hold lit responses only, or
    where a part has no lit or no dark response.
    """
    _make_ready(study)
    with exclusive(study.artifacts / ".data.lock", f"the data of {study.name}"):
        _count_again(study)
    parts = [
        part.of(subset, study_detector(study)) for part in _read_trials(_trials_file(study))[1]
    ]
    shares = np.array(study.data.fractions)
    rng = np.random.default_rng(derive_seed(study.seed, "trials", subset))
    if len(parts) == 1:
        train, validation, test = _deal_trials(parts[0], shares, rng)
    else:
        train, validation = _deal_trials(parts[0], shares[:2] / shares[:2].sum(), rng)
        test = parts[1]
    found = train, validation, test
    both = all(0 < part.lit.sum() < part.simulated.sum() for part in found)
    return found if both else None


def _deal_trials(
    trials: Trials, shares: NDArray[np.float64], rng: np.random.Generator
) -> list[Trials]:
    order = rng.permutation(len(trials))
    ends = np.rint(np.cumsum(shares) * len(trials)).astype(np.int64)
    return [trials[np.sort(part)] for part in np.split(order, ends[:-1])]


def _trials_file(study: Study) -> Path:
    return study.artifacts / "trials.npz"


def _write_trials(parts: list[Trials], identity: dict[str, Any], path: Path) -> None:
    arrays: dict[str, Any] = {"identity": np.array(json.dumps(identity, sort_keys=True))}
    arrays["part"] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    arrays["parts"] = np.array(len(parts))
    for name in ("pdg", "features", "simulated", "lit"):
        arrays[name] = np.concatenate([getattr(part, name) for part in parts])
    with write_atomically(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def _read_trials(path: Path) -> tuple[dict[str, Any] | None, list[Trials]]:
    """What the trials were made from, and their parts; None and nothing where there are none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            every = Trials(file["pdg"], file["features"], file["simulated"], file["lit"])
            parts = [every[file["part"] == k] for k in range(int(file["parts"]))]
            return json.loads(str(file["identity"])), parts
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None, []


def _has_trials(study: Study, identity: dict[str, Any]) -> bool:
    # as JSON gives it back: no tuples
    return bool(_read_trials(_trials_file(study))[0] == json.loads(json.dumps(identity)))


def _kept(study: Study) -> Path:
    return study.artifacts / "data.root"


def _made_with(study: Study) -> dict[str, Any] | None:
    """What ``data.root`` says of itself; nothing where there is none, None where it is damaged."""
    path = _kept(study)
    try:
        content = json.loads(read_made_with(path) or "{}") if path.is_file() else {}
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _make_ready(study: Study, progress: bool = False) -> None:
    """Make ``data.root`` unless it is made from what the study names now; once at a time."""
    with exclusive(study.artifacts / ".data.lock", f"the data of {study.name}"):
        _make(study, progress)


def _make(study: Study, progress: bool) -> None:
    path, made_with = _kept(study), _made_with(study)
    if study.data.file is None:
        identity = data_identity(study)
        if made_with != identity:
            fault = "is damaged" if made_with is None else "was made with other parameters"
            if path.is_file():
                print(f"{path} {fault}: simulating again")
            events, trials = zip(*_simulate(study, progress), strict=True)
            write_root(events, path, lambda: json.dumps(identity))
            _write_trials([*trials], identity, _trials_file(study))
        return
    # files that were never read are hashed while they are
    if made_with is not None and "identity" in made_with:
        files = _files(study, made_with)
        if _identity(study, files) == made_with["identity"]:
            if files != made_with["files"]:
                _restamp(path, json.dumps({**made_with, "files": files}))
            return
    if path.is_file():
        fault = "is damaged" if made_with is None else "was made from other data"
        print(f"{path} {fault}: reading {study.data.file}")
    _ingest(study, path, progress)


def _count_again(study: Study) -> None:
    """Count lit and dark responses of events that are there, where that was not done yet."""
    path, identity = _trials_file(study), data_identity(study)
    if _has_trials(study, identity):
        return
    print(f"{path} is not there or of other data: counting lit and dark responses")
    if study.data.file is None:
        parts = [trials for _, trials in _simulate(study, False)]
    else:
        counted, empty = [], 0
        for part in read_parts(
            data_files(study), Tally(study.data.strict), detector=study_detector(study)
        ):
            photon_sum = part.photon_sum
            empty += int((photon_sum == 0).sum())
            lit = photon_sum >= study.data.min_photons
            counted.append(Trials.count(part.pdg, part.features, lit))
        parts = [_if_dark_ones_are_there(counted, empty)]
    _write_trials(parts, identity, path)


def _if_dark_ones_are_there(parts: list[Trials], empty: int) -> Trials:
    """All trials; none where no response was empty: nobody knows then how many there were."""
    together = Trials.join(parts)
    return together if empty else together[:0]


def _simulate(study: Study, progress: bool) -> list[tuple[Events, Trials]]:
    """What there is to learn from and, split by particle, further particles to test on."""
    data = study.data
    abundance = {PDG[species]: factor for species, factor in data.abundance.items()}

    def run(responses: int, repeats: int, *labels: str) -> tuple[Events, Trials]:
        seed = derive_seed(study.seed, "simulation", *labels)
        detector = study_detector(study)
        return simulate_counted(
            responses, repeats, data.min_photons, seed, progress, abundance, detector
        )

    if data.split == "by_response":
        return [run(data.responses, data.repeats)]
    assert data.test_repeats is not None
    tested = _test_responses(study)
    return [
        run(data.responses - tested, data.repeats),
        run(tested, data.test_repeats, "test"),
    ]


def new_particles(study: Study, subset: Subset, responses: int, repeats: int, seed: int) -> Events:
    """Simulate responses to particles of one subset as the study does, from a seed of their own.

    Light and abundances are the study's, whatever it makes of its data itself; of a single species
    that one alone is drawn. See :func:`zdc_nb.data.simulation.simulate`.
    """
    detector = study_detector(study)
    if subset == "all":
        abundance = {PDG[species]: factor for species, factor in study.data.abundance.items()}
    else:
        species = model_of(detector).primaries.species
        abundance = {kind.pdg: float(kind.pdg == PDG[subset]) for kind in species}
    return simulate(
        responses, repeats, study.data.min_photons, seed, abundance=abundance, detector=detector
    )


def _restamp(path: Path, made_with: str) -> None:
    """Keep that files of the same content have other times or names, so as not to hash them again.

    The events are the same, and so ``path`` keeps its own time.
    """
    status = path.stat()
    with write_atomically(path) as temporary:
        shutil.copyfile(path, temporary)
        with uproot.update(temporary) as file:
            file[MADE_WITH] = made_with
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))


def _ingest(study: Study, path: Path, progress: bool) -> None:
    """Read and check the study's files once, part by part into ``path``."""
    names = _names(study)
    paths = [project_root() / name for name in names]
    if any(file.resolve() == path.resolve() for file in paths):
        raise EventFileError(f"{path}: the study writes this file itself; copy it to read it")
    stamps = {name: _stamp(file) for name, file in zip(names, paths, strict=True)}
    tally, kept, empty = Tally(study.data.strict), 0, 0
    trials: list[Trials] = []

    def bright() -> Iterator[Events]:
        nonlocal kept, empty
        for part in read_parts(paths, tally, progress, study_detector(study)):
            photon_sum = part.photon_sum
            lit = photon_sum >= study.data.min_photons
            trials.append(Trials.count(part.pdg, part.features, lit))
            kept += int(lit.sum())
            empty += int((photon_sum == 0).sum())
            yield part[lit]
        if kept == 0:
            bad = f"; bad rows: {dict(tally.dropped)}" if tally.dropped else ""
            raise EventFileError(
                f"{study.data.file}: no response has {study.data.min_photons} photons{bad}"
            )

    def made_with() -> str:
        files = [
            _file(name, stamps[name], _sha256(file, stamps[name]))
            for name, file in zip(names, paths, strict=True)
        ]
        for name, file in zip(names, paths, strict=True):
            if _stamp(file) != stamps[name]:
                raise EventFileError(f"{file}: was changed while it was read")
        _refuse_copies(files)
        dropped = dict(tally.dropped)
        rows = {
            "read": tally.read,
            "dropped": dropped,
            "faint": tally.read - sum(dropped.values()) - kept,
            "kept": kept,
            "guessed_species": tally.guessed,
            "warnings": tally.warnings(),
        }
        return json.dumps({"identity": _identity(study, files), "files": files, "rows": rows})

    write_root(bright(), path, made_with)
    _write_trials(
        [_if_dark_ones_are_there(trials, empty)], data_identity(study), _trials_file(study)
    )
    for expected, count in tally.dropped.items():
        print(f"{study.data.file}: {count} of {tally.read} rows dropped: expected {expected}")


def _refuse_copies(files: list[_File]) -> None:
    """Raise :class:`EventFileError` where two of the files have the same content."""
    names: dict[str, str] = {}
    for file in files:
        other = names.setdefault(file["sha256"], file["name"])
        if other != file["name"]:
            raise EventFileError(
                f"{file['name']}: has the same content as {other}: expected each file once"
            )


def study_split(study: Study, subset: Subset, events: Events) -> Split:
    """The parts of one subset: selected, capped, split as the study says; all seeded.

    Raises :class:`EventFileError`, naming file and subset, where these are too few.
    """
    data = study.data

    def seed(what: str) -> int:
        return derive_seed(study.seed, what, subset)

    def thin(events: Events, caps: Mapping[Subset, int], what: str) -> Events:
        return cap(events, caps[subset], seed(what)) if subset in caps else events

    try:
        if data.split == "by_response":
            events = thin(select_subset(events, subset), data.max_responses, "thin")
            return split_by_response(events, data.fractions, seed("split"))
        of_train, of_validation, of_test = data.fractions
        if data.file is None:
            # the test particles come last, simulated more often
            learned = data.responses - _test_responses(study)
            parts = [select_subset(part, subset) for part in (events[:learned], events[learned:])]
        else:
            # of all species at once, so that a particle is on one side in every subset
            sides = of_train + of_validation, of_test
            parts = deal_particles(events, sides, derive_seed(study.seed, "split"))
            parts = [select_subset(part, subset) for part in parts]
        shares = np.array([of_train, of_validation]) / (of_train + of_validation)
        learned_from = thin(parts[0], data.max_responses, "thin")
        train, validation = deal_particles(learned_from, shares.tolist(), seed("split"))
        assert data.reserved is not None
        test, reserved = keep_aside(parts[1], data.reserved, seed("reserved"))
        return Split(train, validation, thin(test, data.max_test_responses, "thin test"), reserved)
    except ValueError as error:
        source = data.file or _kept(study)
        raise EventFileError(f"{source}, subset {subset!r}: {error}") from error


def _test_responses(study: Study) -> int:
    """How many of the simulation's responses are to test particles of their own."""
    return round(study.data.fractions[2] * study.data.responses)
