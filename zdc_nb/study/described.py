"""A detector in words, for notebooks and reports, which say nothing about it of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zdc_nb.data.calibration import has_published
from zdc_nb.data.symbols import symbol
from zdc_nb.detector import Detector
from zdc_nb.params import Study, project_root
from zdc_nb.params.detector import detector_file
from zdc_nb.study.dataset import study_detector

__all__ = ["channels_in_words", "described", "in_words", "nothing_published"]


def described(study: Study) -> str:
    """A study's detector and where its responses come from, a paragraph of Markdown."""
    detector = study_detector(study)
    source = (
        "Its responses here are made by the project's open simulation, which is fast and "
        "parametrised: **it is not GEANT4**, nor any other full simulation."
        if study.data.file is None
        else "Its responses here come from the files that the study names."
    )
    return f"**The detector: {detector.title}.** {in_words(detector)} {source}"


def nothing_published(study: Study) -> str:
    """Why nothing published stands beside a study's numbers, Markdown; empty where something does."""
    detector = study_detector(study)
    if has_published(detector):
        return ""
    file = _file_of(study)
    said = (
        "No results of generators are published for this detector to compare these numbers with. "
    )
    if study.data.file is not None or detector.simulation is None:
        return f"{said}What is known of the detector is in its file, `{file}`."
    return f"{said}What of its simulation is published, tuned or chosen, says its file, `{file}`."


def _file_of(study: Study) -> str:
    """The file of a study's detector, as one finds it from the project's root."""
    file, root = detector_file(study.detector).resolve(), project_root().resolve()
    if file.is_relative_to(root):
        return file.relative_to(root).as_posix()
    # one that comes with the package, or that the study names by its path
    by_name = study.detector == file.stem
    return f"detectors/{file.name}" if by_name else Path(study.detector).as_posix()


def in_words(detector: Detector) -> str:
    """Size, place, channels and data sets of a detector, in sentences."""
    rows, columns = detector.shape
    channels = "; ".join(f"*{name}*, {text}" for name, text in channels_in_words(detector).items())
    number = len(detector.channels)
    face = (
        f"Its face has {rows} x {columns} fibres (rows x columns), {_length(detector.pitch)} apart, "
        f"{detector.distance:g} m from the collision; so a response has {detector.dim} numbers."
    )
    sentences = [
        face,
        _flight(detector),
        f"It is read out in {number} channel{'s' * (number > 1)}: {channels}.",
    ]
    if detector.species:
        sets = ", ".join(map(symbol, detector.species))
        sentences.append(f"Species that can be a data set of their own: {sets}.")
    return " ".join(sentences)


def _length(metres: float) -> str:
    return f"{1e3 * metres:g} mm" if metres < 0.1 else f"{metres:g} m"


def _flight(detector: Detector) -> str:
    if detector.deflection is None:
        return "Charged particles are swept away by magnets on the way, neutral ones fly straight."
    if detector.deflection == 0:
        return "Charged particles fly as straight as neutral ones."
    side = "right" if detector.deflection > 0 else "left"
    return (
        f"Charged particles are bent by magnets on the way: one of charge q (e) and momentum p (GeV) "
        f"arrives {abs(detector.deflection):g} q / p m farther to the {side} than it would flying "
        "straight."
    )


def channels_in_words(detector: Detector) -> dict[str, str]:
    """Which fibres each channel reads, by its name: ``every second fibre of the top left quarter``."""
    return {
        name: _fibres(mask) for name, mask in zip(detector.channels, detector.masks, strict=True)
    }


def _fibres(mask: NDArray[np.bool_]) -> str:
    if not mask.any():
        return "no fibre"
    (rows, columns), (row, column) = mask.shape, np.nonzero(mask)
    top, bottom, left, right = row.min(), row.max() + 1, column.min(), column.max() + 1
    i, j = np.indices((bottom - top, right - left))
    block = mask[top:bottom, left:right]
    if block.all():
        which = "every fibre"
    elif any((block == ((i + j) % 2 == parity)).all() for parity in (0, 1)):
        which = "every second fibre, as on a chess board"
    else:
        return f"{mask.sum()} fibres"
    if (top, bottom, left, right) == (0, rows, 0, columns):
        return which
    vertical = {(0, rows // 2): "top", (rows // 2, rows): "bottom"}.get((top, bottom))
    horizontal = {(0, columns // 2): "left", (columns // 2, columns): "right"}.get((left, right))
    which = which.partition(",")[0]
    if vertical and horizontal:
        return f"{which} of the {vertical} {horizontal} quarter"
    if (top, bottom) == (0, rows):
        return f"{which} of columns {left} to {right - 1}"
    return f"{which} of rows {top} to {bottom - 1} and columns {left} to {right - 1}"
