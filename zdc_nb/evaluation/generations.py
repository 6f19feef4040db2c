"""Several generations of the test part, as one tidy table of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from zdc_nb.data.events import Events
from zdc_nb.evaluation.classifier import FEWEST_PAIRS, two_sample_test
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
        of these, the first ones that get the metric ``AUC``
        (:func:`zdc_nb.evaluation.classifier.two_sample_test`), too; none of a test part that is
        too small for it.
    keep
        is given what the metrics look at of each generation.

    Returns
    -------
    A frame with columns subset, model, metric, run (from 0), value; see :func:`evaluate`.

    Raises
    ------
    EvaluationError
        naming the subset, model and metric that is not finite.
    """
    observed = observe(test.responses, test.detector)
    rows = []
    for run, generated in enumerate(generations):
        found = observe(generated, test.detector)
        metrics = compare(observed, found, test)
        if keep is not None:
            keep(found)
        if run < classified and len(test) >= FEWEST_PAIRS:
            metrics["AUC"] = two_sample_test(test, generated, seed=run).auc
        rows += [(subset, model, metric, run, value) for metric, value in metrics.items()]
    frame = pd.DataFrame(rows, columns=["subset", "model", "metric", "run", "value"])
    return require_finite(frame, "value")
