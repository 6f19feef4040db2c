"""Which files hold a set of events, and reading them whatever their format.

===========  ===========================================================================
ROOT         files with a tree ``zn``, see :mod:`zdc_nb.data.root`
npz pairs    particles and responses, see :mod:`zdc_nb.data.npz`
text pairs   what O2's Extract macro writes, see :mod:`zdc_nb.data.o2_text`
===========  ===========================================================================
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zdc_nb.data.events import Events
from zdc_nb.data.npz import read_npz
from zdc_nb.data.o2_text import is_table, read_text
from zdc_nb.data.root import read_root
from zdc_nb.data.validation import EventFileError, Tally
from zdc_nb.detector.geometry import ZN, Detector

__all__ = ["find_files", "in_order", "read_events", "read_parts"]

_Source = tuple[Path, ...]

_PAIRS = {".npz": ("particles", "responses"), ".txt": ("non_zero_examples", "neutron_image")}
"""What in their names tells the two files of a pair apart."""


def find_files(names: str | Sequence[str], folder: Path) -> list[str]:
    """Names of files, relative ones in ``folder``, each of which may be a pattern.

    A pattern (``*``, ``?``, ``[...]``, ``**`` for folders) gives its matches in order of their
    names. A name that a file has is that file, whatever is in it.

    Raises
    ------
    EventFileError
        for a pattern without a match, and a file that is named twice, however it is spelt.
    FileNotFoundError
        for another name that no file has.
    """
    found: dict[Path, str] = {}
    for name in [names] if isinstance(names, str) else names:
        if (folder / name).exists():
            matches = [name]
        elif glob.has_magic(name):
            # Path.glob takes no absolute pattern
            matches = sorted(glob.glob(name, root_dir=folder, recursive=True))  # noqa: PTH207
        else:
            raise FileNotFoundError(f"{folder / name}: no such file")
        if not matches:
            raise EventFileError(f"{name}: no file in {folder} matches")
        for match in matches:
            path = (folder / match).resolve()
            if path in found:
                also = "" if found[path] == match else f", also as {found[path]}"
                raise EventFileError(f"{match}: this file is named twice{also}")
            found[path] = match
    return list(found.values())


def in_order(paths: Sequence[Path]) -> list[Path]:
    """The files as they are read: those that belong together side by side.

    Raises :class:`EventFileError` as :func:`read_parts`.
    """
    return [path for source in _sources(paths) for path in source]


def _sources(paths: Sequence[Path]) -> list[_Source]:
    """The files, those that belong together side by side; all of one format."""
    suffixes = {path.suffix for path in paths}
    if suffixes == {".root"}:
        return [(path,) for path in paths]
    if suffixes in ({".npz"}, {".txt"}) and len(paths) > 1:
        first, second = _PAIRS[paths[0].suffix]
        pairs = [(path, other) for path in paths if (other := _partner(path, first, second, paths))]
        if 2 * len(pairs) == len(paths) == len({path for pair in pairs for path in pair}):
            return [*pairs]
        if len(paths) == 2:
            return [_in_order(paths[0], paths[1])]
        alone = next(path for path in paths if all(path not in pair for pair in pairs))
        raise EventFileError(
            f"{alone}: belongs to none of the other files; more than two are paired by their "
            f"names, with {first!r} in one where {second!r} is in the other"
        )
    raise EventFileError(
        f"{', '.join(map(str, paths))}: expected files of one format: .root files, pairs of .npz "
        "files (particles, responses), or pairs of .txt files (particles, images)"
    )


def _partner(path: Path, first: str, second: str, paths: Sequence[Path]) -> Path | None:
    """The file named as ``path``, with ``second`` in place of ``first``.

    In the file's name, then in those of its folders too, from the innermost on.
    """
    parts = str(path).split(first)
    for last in range(1, len(parts)):
        name = second.join([first.join(parts[:-last]), *parts[-last:]])
        if Path(name) in paths:
            return Path(name)
    return None


def _in_order(one: Path, other: Path) -> _Source:
    turned = one.suffix == ".txt" and is_table(other) and not is_table(one)
    return (other, one) if turned else (one, other)


def read_parts(
    paths: Sequence[Path], tally: Tally, progress: bool = False, detector: Detector = ZN
) -> Iterator[Events]:
    """The good events of some files, some at a time; particles are numbered in each part only.

    Parameters
    ----------
    paths
        ROOT files, or npz or text files in pairs: by their names, where ``particles`` stands for
        ``responses`` and ``non_zero_examples`` for ``neutron_image``; two files also in order.
    tally
        says whether bad rows are dropped, and counts them.
    progress
        show a bar.
    detector
        whose responses the files hold.

    Raises
    ------
    EventFileError
        naming file, row and what was expected.
    FileNotFoundError
        where a file is missing.
    """
    sources = _sources(paths)
    sizes = [source[-1].stat().st_size for source in sources]
    with tqdm(
        total=sum(sizes),
        desc="reading",
        unit="B",
        unit_scale=True,
        file=sys.stdout,
        disable=not progress,
    ) as bar:
        for number, source in enumerate(sources, start=1):
            yield from _read(source, tally, bar, detector)
            # what stands in a file beside its responses
            bar.update(sum(sizes[:number]) - bar.n)


def _read(source: _Source, tally: Tally, bar: tqdm[Any], detector: Detector) -> Iterator[Events]:
    match source:
        case (path,):
            return read_root(path, tally, bar, detector)
        case (particles, responses) if particles.suffix == ".npz":
            return read_npz(particles, responses, tally, bar, detector)
        case (particles, images):
            return read_text(particles, images, tally, bar, detector)
    raise AssertionError(source)


def read_events(
    files: str | Path | Sequence[str | Path],
    strict: bool = True,
    progress: bool = False,
    detector: Detector = ZN,
) -> Events:
    """All good events of one ROOT file, or of several files as for :func:`read_parts`.

    Where not ``strict``, bad rows are left out; :class:`EventFileError` where all are bad.
    """
    paths = [Path(p) for p in ([files] if isinstance(files, str | Path) else files)]
    tally = Tally(strict)
    parts = list(read_parts(paths, tally, progress, detector))
    if not any(map(len, parts)):
        raise EventFileError(f"{', '.join(map(str, paths))}: all {tally.read} rows are bad")
    return Events.join(parts)
