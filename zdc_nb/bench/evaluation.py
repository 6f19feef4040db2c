"""The evaluation timed beside its definition, response by response.

What is timed is all that :func:`~zdc_nb.evaluation.evaluate_runs` makes of samples that are there,
without a classifier, and the intervals over particles. No library has these metrics, so the peer is
what their definitions say, in numpy: a loop over responses and one over particles. It is timed on
some of the responses, in turns with the whole, and its time for all of them follows from that.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zdc_nb.bench.cases import FEWEST_RUNS, BenchParams
from zdc_nb.data import simulate
from zdc_nb.data.events import Events
from zdc_nb.detector import Detector
from zdc_nb.evaluation import evaluate_runs, resample
from zdc_nb.evaluation.metrics import Observed
from zdc_nb.hardware import OtherLoad, relative_spread, time_call
from zdc_nb.params import derive_seed

__all__ = ["LIMIT", "evaluation_findings", "metrics_in_loops", "time_evaluation"]

LIMIT = 60.0
"""Seconds that the evaluation of the published test part may take on two cores."""

_REPEATS = 20
_LOOPED = 500
"""Responses that the loops are timed on."""


def time_evaluation(params: BenchParams) -> pd.DataFrame:
    """Median seconds of the evaluation of simulated responses.

    The generations are the simulated responses themselves, shuffled within each particle.

    Returns
    -------
    Columns what (metrics; intervals; metrics, in loops), responses, generations, seconds, runs,
    spread and others, as in :class:`zdc_nb.bench.run.Benchmark`. The loops go over some responses
    alone; ``looped`` says over how many, and is empty where all were looked at.
    """
    seed = derive_seed(params.seed, "evaluation")
    events = simulate(params.evaluated, _REPEATS, 10, seed)
    rng = np.random.default_rng(seed)
    generations = [_shuffled(events, rng) for _ in range(params.generations)]
    some = events[: min(_LOOPED, len(events))]
    seen: list[Observed] = []

    def metrics() -> None:
        seen.clear()
        evaluate_runs("all", "shuffled", events, generations, keep=seen.append)

    def intervals() -> None:
        parts = zip(*seen, strict=True)
        resample(events, {1: Observed(*(np.stack(part) for part in parts))})

    def loops() -> None:
        metrics_in_loops(some, generations[0][: len(some)])

    calls = {"metrics": metrics, "intervals": intervals, "metrics, in loops": loops}
    times: dict[str, list[float]] = {name: [] for name in calls}
    with OtherLoad() as load:
        for _ in range(FEWEST_RUNS):
            for name, call in calls.items():
                times[name].append(time_call(call, "cpu"))
    rows = []
    for name, values in times.items():
        looped = len(some) if name not in ("metrics", "intervals") else None
        share = 1 if looped is None else params.generations * len(events) / looped
        found = (share * float(np.median(values)), len(values), relative_spread(values))
        rows.append((name, len(events), params.generations, looped, *found, load.cores))
    columns = ["what", "responses", "generations", "looped", "seconds", "runs", "spread", "others"]
    return pd.DataFrame(rows, columns=columns).astype({"looped": "Int64"})


def _shuffled(events: Events, rng: np.random.Generator) -> NDArray[np.uint16]:
    order = np.argsort(events.particle, kind="stable")
    drawn = np.lexsort((rng.random(len(events)), events.particle))
    source = np.empty(len(events), np.intp)
    source[order] = drawn
    return events[source].responses


def metrics_in_loops(test: Events, generated: NDArray[np.uint16]) -> list[NDArray[np.float64]]:
    """By particle, the errors of the means of the C channels, of centre and of radius: C + 3 each."""
    found = [
        np.array([_observe(response, test.detector) for response in responses])
        for responses in (test.responses, generated)
    ]
    errors = []
    for label in np.unique(test.particle):
        mine = test.particle == label
        errors.append(np.abs(found[1][mine].mean(axis=0) - found[0][mine].mean(axis=0)))
    return errors


def _observe(response: NDArray[np.uint16], detector: Detector) -> list[float]:
    channels = [float(response[mask].sum()) for mask in detector.masks]
    row, column = np.indices(detector.shape)
    photons = int(response.sum())
    centre = (row * response).sum() / photons, (column * response).sum() / photons
    distance = np.hypot(row - centre[0], column - centre[1]).ravel()
    order = np.argsort(distance)
    held = np.cumsum(response.ravel()[order])
    return [*channels, *centre, float(distance[order][np.argmax(held >= 0.9 * photons)])]


def evaluation_findings(times: pd.DataFrame) -> list[str]:
    """Sentences on how long an evaluation takes, and how it compares."""
    seconds = times.set_index("what")["seconds"]
    first = times.iloc[0]
    whole = seconds["metrics"] + seconds["intervals"]
    verdict = "within" if whole <= LIMIT else "above"
    size = f"{first['responses']} test responses x {first['generations']} generations"
    loops = seconds["metrics, in loops"]
    return [
        (
            f"**Evaluation** of {size}, samples given, without classifiers: "
            f"{seconds['metrics']:.3g} s for the metrics and {seconds['intervals']:.3g} s for the "
            f"intervals over particles, together {verdict} the {LIMIT:.0f} s that the published "
            "test part may take."
        ),
        (
            "Loops over responses, which make channels, centre, radius and their errors alone, "
            f"need {loops:.3g} s (from {times['looped'].max()} responses): "
            f"{loops / seconds['metrics']:.3g} times the time of all metrics."
        ),
    ]
