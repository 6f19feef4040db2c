"""Whole collisions of a study: its list of particles or its simulation's, simulated and generated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zdc_nb.data.collisions import can_be_simulated, draw_collisions, respond_once
from zdc_nb.data.particles import Collisions, read_collisions
from zdc_nb.detector import Detector
from zdc_nb.evaluation.collisions import (
    collision_findings,
    collision_sums,
    compare_collisions,
    dark_faces,
    dark_findings,
    left_out_findings,
)
from zdc_nb.evaluation.sentences import as_list
from zdc_nb.generator.collisions import OTHER_SIDE, answer_collisions, unanswered
from zdc_nb.generator.generator import Generator
from zdc_nb.params import ParameterError, Study, derive_seed, project_root
from zdc_nb.study.dataset import study_detector

__all__ = ["Collided", "collide", "collided_findings", "study_collisions"]


@dataclass(frozen=True)
class Collided:
    """Sums of a study's collisions, and what is not in them.

    Attributes
    ----------
    simulated, again, generated
        sums of the same particles (:mod:`zdc_nb.evaluation.collisions`): simulated with one seed and
        with another, and generated.
    compared
        of all quantities, see :func:`~zdc_nb.evaluation.collisions.compare_collisions`.
    particles
        of the events, those left out among them.
    left_out
        particles that are in none of the sums: ``reason``, ``pdg``, ``particles``, ``share`` (of all
        simulated light; NaN where that cannot be simulated).
    dark
        by side, the share of events without a photon there: ``simulated``, ``again``, ``generated``, and
        ``bright``, simulated without the faint responses.
    faint
        share of the simulated light of the others that is in responses of fewer photons than the study
        keeps, which its generator has never seen.
    """

    simulated: pd.DataFrame
    again: pd.DataFrame
    generated: pd.DataFrame
    compared: pd.DataFrame
    particles: int
    left_out: pd.DataFrame
    dark: pd.DataFrame
    faint: float

    @property
    def sums(self) -> list[pd.DataFrame]:
        """Simulated, simulated again, generated."""
        return [self.simulated, self.again, self.generated]

    def all_sums(self) -> pd.DataFrame:
        """The three one below the other: their columns, and ``kind`` before them."""
        kinds = ("simulated", "simulated again", "generated")
        tables = zip(kinds, self.sums, strict=True)
        parts = [table.assign(kind=kind) for kind, table in tables]
        names = ["kind", *self.simulated.columns]
        return pd.concat(parts, ignore_index=True)[names]


def study_collisions(study: Study) -> tuple[Collisions, NDArray[np.int64]]:
    """The particles of a study's collisions, and the numbers of all its events.

    Of a list those of the smallest numbers, as many as the study says; without one, drawn from the
    simulation. Raises :class:`~zdc_nb.params.ParameterError` where the study has no collisions or its
    detector no simulation, and :class:`~zdc_nb.data.validation.EventFileError`.
    """
    if study.collisions is None:
        raise ParameterError("collisions: expected a section, the study has null")
    detector, events = study_detector(study), study.collisions.events
    if detector.simulation is None:
        raise ParameterError(
            f"collisions: expected null, the detector {study.detector} has no simulation to compare with"
        )
    if study.collisions.file is None:
        seed = derive_seed(study.seed, "collisions")
        return draw_collisions(events, seed, detector), np.arange(events)
    path = project_root() / study.collisions.file
    found: list[Collisions] = []
    numbers = np.empty(0, np.int64)
    for part in read_collisions(path, detector):
        every = Collisions.join([*found, part])
        numbers = np.unique(every.event)[:events]
        found = [every[np.isin(every.event, numbers)]]
    return found[0], numbers


def collide(study: Study, generator: Generator) -> Collided:
    """Simulate a study's collisions twice, generate them, and compare the sums.

    A particle that the generator has not learned, or the simulation does not have, is left out of all
    sums. All else is simulated once for each sum, whatever the study's own repeats are. Raises as
    :func:`study_collisions`.
    """
    collisions, numbers = study_collisions(study)
    detector, particles = study_detector(study), collisions.particles
    why = unanswered(generator, particles)
    possible = can_be_simulated(particles)
    why = np.where((why == "") & ~possible, "simulation", why)
    kept = why == ""

    def seed(what: str) -> int:
        return derive_seed(study.seed, "collisions", what)

    light = np.zeros(len(collisions), np.int64)
    both = [
        _simulated(collisions[possible], kept[possible], seed(f"simulation {k}"), detector, numbers)
        for k in (1, 2)
    ]
    light[possible] = both[0][1]
    light[why == OTHER_SIDE] = 0
    answers = answer_collisions(
        generator, [collisions[kept]], seed("generation"), study.evaluation.batch, int(kept.sum())
    )
    generated = collision_sums(answers, detector, numbers)
    simulated, again = both[0][0], both[1][0]
    compared = compare_collisions(simulated, again, generated, detector, seed("draws"))
    total = max(int(light.sum()), 1)
    table = pd.DataFrame(
        {
            "reason": why,
            "pdg": particles.pdg,
            "particles": 1,
            "share": np.where(possible, light / total, np.nan),
        }
    )[~kept]
    grouped = table.groupby(["reason", "pdg"], as_index=False)
    left_out = grouped.agg({"particles": "sum", "share": lambda part: part.sum(min_count=1)})
    bright = kept & (light >= study.data.min_photons)
    seen = [dark_faces(table) for table in (simulated, again, generated)]
    lit = collision_sums([(collisions[bright], None)], detector, numbers)
    without_faint = lit["left_out"].eq(0).groupby(lit["side"], sort=False).mean()
    dark = pd.DataFrame(
        {"simulated": seen[0], "again": seen[1], "bright": without_faint, "generated": seen[2]}
    )
    faint = 1 - light[bright].sum() / max(int(light[kept].sum()), 1)
    return Collided(
        simulated, again, generated, compared, len(collisions), left_out, dark, float(faint)
    )


def _simulated(
    collisions: Collisions,
    kept: NDArray[np.bool_],
    seed: int,
    detector: Detector,
    numbers: NDArray[np.int64],
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Sums of those that are kept, and the photons of each response."""
    light = np.zeros(len(collisions), np.int64)

    def parts() -> Iterator[tuple[Collisions, NDArray[np.uint16]]]:
        for here, responses in respond_once(collisions.particles, seed):
            light[here] = responses.sum(axis=(1, 2), dtype=np.int64)
            yield collisions[here][kept[here]], responses[kept[here]]

    return collision_sums(parts(), detector, numbers), light


def collided_findings(study: Study, collided: Collided, signal: bool) -> str:
    """What the numbers say, as a Markdown list; ``signal``: whether the generator knows what is dark."""
    said = [left_out_findings(collided.particles, collided.left_out)]
    said.append(
        f"Responses of fewer than {study.data.min_photons} photons hold {collided.faint:.2%} of the "
        "simulated light; the study drops them, so that its generator is to draw none for such particles."
    )
    said.append(dark_findings(collided.dark, study.data.min_photons))
    if not signal:
        said.append(
            "The generator has no model of the signal: it gives light to every particle, and sums that "
            "are too large are expected."
        )
    if study.data.file is not None:
        said.append(
            "The generator has learned from files, and is compared with the open simulation: what "
            "differs may be what differs between these two."
        )
    return as_list(said) + "\n" + collision_findings(collided.compared)
