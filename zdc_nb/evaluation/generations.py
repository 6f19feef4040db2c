"""Several generations of the test part, as one tidy table of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from zdc_nb.data.events import Events
from zdc_nb.evaluation.classifier import FEWEST_PAIRS, choose_pairs, features_of, features_test
from zdc_nb.evaluation.distances import Distances
from zdc_nb.evaluation.metrics import Observed, compare, observe, require_finite

__all__ = ["evaluate_runs"]


def evaluate_runs(
    subset: str,
    model: str,
    test: Events,
    generations: Iterable[NDArray[Any]],
    classified: int = 0,
    keep: Callable[[Observed], None] | None = None,
) -> pd.DataFrame:
    """Tidy metrics of several generations of the test set.

    Parameters
    ----------
    subset, model
        names for the rows.
    test
        N test responses of a detector of R x K fibres.
    generations
        arrays (N, R, K), one for each run; read one at a time.
    classified
        of these, the first ones that get the metrics ``AUC``
        (:func:`zdc_nb.evaluation.classifier.two_sample_test`) and ``AUC image``
        (:func:`zdc_nb.evaluation.images.image_test`), too; none of a test part that is too small
        for it.
    keep
        is given what the metrics look at of each generation.

    Returns
    -------
    A frame with columns subset, model, metric, run (from 0), value: those of :func:`evaluate` and
    the :data:`~zdc_nb.evaluation.distances.DISTANCES`. What looks at features or projections of
    responses (``AUC``, ``FPD``, ``KPD``, ``sliced WS``) looks at 10 000 pairs at most, the same of
    all generations and models.

    Raises
    ------
    EvaluationError
        naming the subset, model and metric that is not finite.
    """
    observed = observe(test.responses, test.detector)
    chosen = choose_pairs(len(test), seed=0)
    part = test[chosen]
    simulated = features_of(part, part.responses)
    distances = Distances(test, chosen, simulated)
    frames = []
    for run, generated in enumerate(generations):
        found = observe(generated, test.detector)
        metrics = compare(observed, found, test)
        if keep is not None:
            keep(found)
        # first of all, because what follows cannot do with a NaN
        frames.append(_rows(subset, model, run, metrics))
        features = features_of(part, generated[chosen])
        metrics = distances(generated, features)
        if run < classified and len(part) >= FEWEST_PAIRS:
            # torch takes long to import, and most who import this module measure nothing
            from zdc_nb.evaluation.images import image_test  # noqa: PLC0415

            metrics["AUC"] = features_test(simulated, features, part.particle, seed=run).auc
            metrics["AUC image"] = image_test(part, generated[chosen], seed=run)
        frames.append(_rows(subset, model, run, metrics))
    return pd.concat(frames, ignore_index=True)


def _rows(subset: str, model: str, run: int, metrics: dict[str, float]) -> pd.DataFrame:
    rows = [(subset, model, metric, run, value) for metric, value in metrics.items()]
    frame = pd.DataFrame(rows, columns=["subset", "model", "metric", "run", "value"])
    return require_finite(frame, "value")
