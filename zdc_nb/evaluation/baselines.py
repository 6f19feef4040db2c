"""Generators that need no training, to tell what a metric is worth.

``reference`` answers each test response with another one to the same particle, which was simulated
again: the floor for a generator that is not told the photon sum. Split by response these come from
the training part; split by particle they are kept aside for that alone. Flows are told it, that
of the very response that they answer; ``reference+sum`` uses it too and is the floor for them.
``ignorant`` answers with any training response scaled to the photon sum, so it knows nothing
of the particle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zdc_nb.data.events import Events, Split
from zdc_nb.evaluation.generations import evaluate_runs
from zdc_nb.evaluation.metrics import (
    METRICS,
    SHAPE_METRICS,
    EvaluationError,
    has_repeats,
)
from zdc_nb.params import derive_seed

__all__ = [
    "BASELINES",
    "RESIMULATED",
    "Baseline",
    "Possible",
    "baseline_draws",
    "baseline_evaluations",
    "matched_runs",
    "resimulated_runs",
    "scale_to_photon_sum",
    "unconditional_runs",
    "what_can_be_evaluated",
]

RESIMULATED = ("reference", "reference+sum")
"""Baselines that need further responses to the test particles."""

BASELINES = (*RESIMULATED, "ignorant")
"""Generators that need no training; see the top of this module."""

_MOST_PHOTONS = np.iinfo(np.uint16).max
"""Largest photon sum that a response can be scaled to: all of it may fall into one fibre."""

_CHUNK = 2048
"""Responses scaled at once, so that memory stays small at the size of the published data set."""


@dataclass(frozen=True)
class Possible:
    """What a subset's data can be evaluated with.

    Attributes
    ----------
    metrics, baselines
        names of those that are possible.
    left_out
        a sentence for each group of metrics or baselines that is not.
    """

    metrics: tuple[str, ...]
    baselines: tuple[str, ...]
    left_out: tuple[str, ...]


def what_can_be_evaluated(source: Events, test: Events) -> Possible:
    """Metrics and baselines that a test part allows, and the events that floors are drawn from.

    ``WS`` and ``ignorant`` need nothing. What compares particles needs a test particle of at least
    two responses; :data:`RESIMULATED` need further responses to such test particles, or to any
    where none is repeated.
    """
    metrics: tuple[str, ...] = (*METRICS, *SHAPE_METRICS)
    baselines: tuple[str, ...] = BASELINES
    left_out = []
    if not has_repeats(test):
        metrics = ("WS",)
        left_out.append(
            f"MAE_c, MAE_cw and the errors of shower centre and radius are left out: they compare "
            f"particles by their mean responses, and each of the {len(test)} test particles has a "
            "single response."
        )
    answered = _answered(source, test)
    if len(answered) == 0 or has_repeats(answered) != has_repeats(test):
        baselines = tuple(name for name in BASELINES if name not in RESIMULATED)
        several = "with several test responses " if len(answered) else ""
        left_out.append(
            f"{' and '.join(RESIMULATED)} are left out: they answer with other simulations of the "
            f"same particle, and no test particle {several}has one among those they may draw from."
        )
    return Possible(metrics, baselines, tuple(left_out))


def _answered(source: Events, test: Events) -> Events:
    """Test responses to particles that ``source`` has a response to."""
    return test[np.isin(test.particle, source.particle)]


@dataclass(frozen=True)
class Baseline:
    """Generations of a baseline and the test events that they answer.

    Attributes
    ----------
    test
        the M test events that the baseline has an answer to.
    generations
        arrays (M, R, K) uint16, one for each run; an iterator, to be read once.
    left_out_responses, left_out_particles
        test responses without an answer, and unique particles that they belong to.
    """

    test: Events
    generations: Iterator[NDArray[np.uint16]]
    left_out_responses: int
    left_out_particles: int


def resimulated_runs(source: Events, test: Events, runs: int, seed: int) -> Baseline:
    """Answer each test response with another response to the same particle.

    The draw is without replacement within a particle and a run: n draws from its m >= n further
    responses are then distributed like n new simulations, as a perfect generator would give. (With
    replacement the same response comes twice and the metrics grow.) Where m < n, each is drawn
    n // m or n // m + 1 times.

    Parameters
    ----------
    source, test
        what is drawn from and what is answered; ``particle`` means the same in both.
    runs, seed
        number of generations; run k depends on the seed and k alone.

    Returns
    -------
    Test responses to particles that ``source`` has no response to are left out and counted.

    Raises
    ------
    EvaluationError
        where ``source`` has no response to any test particle.
    """
    kept = _answered(source, test)
    if len(kept) == 0:
        raise EvaluationError("reference: no test particle has a response to draw from")

    def generations() -> Iterator[NDArray[np.uint16]]:
        for run in range(runs):
            rng = np.random.default_rng(derive_seed(seed, "reference", run))
            yield source[_draw(source.particle, kept.particle, rng)].responses

    particles = len(np.unique(test.particle)) - len(np.unique(kept.particle))
    return Baseline(kept, generations(), len(test) - len(kept), particles)


def matched_runs(source: Events, test: Events, runs: int, seed: int) -> Baseline:
    """As :func:`resimulated_runs`, and told the photon sum, as the flows are.

    The responses that ``reference`` draws for a particle are paired with its test responses by
    the rank of their photon sums, then scaled by :func:`scale_to_photon_sum`. After the pairing
    the factors are mostly close to 1, so that scaling hardly changes what a response looks like.

    Parameters, returns and raises as :func:`resimulated_runs`; run k starts from the same draws.
    """
    resimulated = resimulated_runs(source, test, runs, seed)
    kept = resimulated.test
    by_sum = np.lexsort((kept.photon_sum, kept.particle))

    def generations() -> Iterator[NDArray[np.uint16]]:
        for run, drawn in enumerate(resimulated.generations):
            rng = np.random.default_rng(derive_seed(seed, "reference+sum", run))
            drawn_sum = drawn.sum(axis=(1, 2), dtype=np.int64)
            paired = np.empty_like(drawn)
            paired[by_sum] = drawn[np.lexsort((drawn_sum, kept.particle))]
            yield scale_to_photon_sum(paired, kept.photon_sum, rng)

    return replace(resimulated, generations=generations())


def unconditional_runs(train: Events, test: Events, runs: int, seed: int) -> Baseline:
    """Answer each test response with any training response, scaled to its photon sum.

    Drawn without replacement within a run (see :func:`resimulated_runs`) and scaled by
    :func:`scale_to_photon_sum`. Nothing is left out.

    Parameters
    ----------
    train, test
        two parts of one split.
    runs, seed
        number of generations; run k depends on the seed and k alone.
    """
    nobody = np.zeros(len(train), np.int64), np.zeros(len(test), np.int64)

    def generations() -> Iterator[NDArray[np.uint16]]:
        for run in range(runs):
            rng = np.random.default_rng(derive_seed(seed, "ignorant", run))
            drawn = train[_draw(*nobody, rng)].responses
            yield scale_to_photon_sum(drawn, test.photon_sum, rng)

    return Baseline(test, generations(), 0, 0)


def scale_to_photon_sum(
    responses: NDArray[np.uint16], photon_sum: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Scale responses so that each holds exactly the given number of photons.

    Rounding each fibre to the nearest integer would lose the halo of single photons when a
    response shrinks. Systematic rounding keeps every fibre within one photon of its scaled value,
    right on average, and the sum exact: the running sum along the fibres, taken in random order
    so that no channel is favoured, is cut at whole photons from a random start.

    Parameters
    ----------
    responses
        (N, R, K), photons.
    photon_sum
        (N,), photons wanted, each at most 65535.
    rng
        source of the order of fibres and the starts.

    Returns
    -------
    (N, R, K); a response without light stays without.

    Raises
    ------
    EvaluationError
        naming a photon sum that is too large: its fibres could overflow.
    """
    if np.max(photon_sum, initial=0) > _MOST_PHOTONS:
        k = int(np.argmax(photon_sum))
        raise EvaluationError(
            f"photon_sum: expected at most {_MOST_PHOTONS} photons in a response, "
            f"got {photon_sum[k]} (response {k})"
        )
    flat = responses.reshape(len(responses), -1)
    order = rng.permutation(flat.shape[1])
    scaled = np.empty_like(flat)
    for first in range(0, len(flat), _CHUNK):
        part = slice(first, first + _CHUNK)
        running = np.cumsum(flat[part][:, order], axis=1, dtype=np.int64)
        own = np.maximum(running[:, -1:], 1)
        cuts = (running * photon_sum[part, None] + rng.integers(own)) // own
        scaled[part, order] = np.diff(cuts, axis=1, prepend=0)
    return scaled.reshape(responses.shape)


def baseline_draws(split: Split, runs: int, seed: int) -> dict[str, Baseline]:
    """Those of the :data:`BASELINES` that a split allows, in their order."""
    draws = {
        "reference": (resimulated_runs, split.reserved),
        "reference+sum": (matched_runs, split.reserved),
        "ignorant": (unconditional_runs, split.train),
    }
    possible = what_can_be_evaluated(split.reserved, split.test).baselines
    return {
        name: draw(source, split.test, runs, seed)
        for name, (draw, source) in draws.items()
        if name in possible
    }


def baseline_evaluations(
    split: Split, subset: str, runs: int, seed: int, classified: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics of the possible :data:`BASELINES` on one subset, and what :data:`RESIMULATED` leave out.

    Parameters
    ----------
    split
        of the subset.
    subset, runs, seed, classified
        name for the rows, number of generations, seed of the draws, generations to be classified.

    Returns
    -------
    The tidy frame of :func:`~zdc_nb.evaluation.generations.evaluate_runs`, of the baselines that
    :func:`what_can_be_evaluated` names; and a frame of one row with the columns subset,
    test_responses, test_particles, left_out_responses, left_out_particles (all of them where the
    baselines are not possible).
    """
    test, baselines = split.test, baseline_draws(split, runs, seed)
    evaluations = pd.concat(
        [
            evaluate_runs(subset, name, baseline.test, baseline.generations, classified)
            for name, baseline in baselines.items()
        ],
        ignore_index=True,
    )
    particles = len(np.unique(test.particle))
    resimulated = baselines.get(RESIMULATED[0])
    left_out = pd.DataFrame(
        {
            "subset": [subset],
            "test_responses": [len(test)],
            "test_particles": [particles],
            "left_out_responses": [resimulated.left_out_responses if resimulated else len(test)],
            "left_out_particles": [resimulated.left_out_particles if resimulated else particles],
        }
    )
    return evaluations, left_out


def _draw(
    source: NDArray[np.int64], wanted: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.intp]:
    """For each label of ``wanted`` a position in ``source`` with that label, none used twice
    before all with that label are used."""
    shuffled = rng.permutation(len(source))
    pool = shuffled[np.argsort(source[shuffled], kind="stable")]
    labels, first, size = np.unique(source[pool], return_index=True, return_counts=True)
    group = np.searchsorted(labels, wanted)
    return pool[first[group] + _occurrence(wanted) % size[group]]


def _occurrence(labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """How many equal labels stand before each."""
    _, counts = np.unique(labels, return_counts=True)
    occurrence = np.empty(len(labels), np.intp)
    order = np.argsort(labels, kind="stable")
    occurrence[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return occurrence
