"""Whether a classifier can tell generated responses from the simulated ones that they answer.

The metrics of the tables each look at one quantity at a time. A classifier looks at many together
and finds what none of them was made for, such as how light is spread among neighbours. It sees
features of a response and not its fibres: few responses then do, and what gives a generator away
has a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zdc_nb.data.events import FEATURES, Events
from zdc_nb.detector import Detector, channel_sums, containment_radius, shower_centre
from zdc_nb.evaluation.metrics import EvaluationError
from zdc_nb.params import derive_seed

__all__ = [
    "FEWEST_PAIRS",
    "FOLDS",
    "MOST_PAIRS",
    "TwoSample",
    "choose_pairs",
    "features_of",
    "features_test",
    "groups_of_pairs",
    "response_features",
    "take_pairs",
    "two_sample_test",
]

FEWEST_PAIRS = 10
"""Pairs without which a fold would hold out a single one."""

MOST_PAIRS = 10_000
"""Of more pairs so many are looked at, taken at random."""

FOLDS = 5
"""Parts that pairs are dealt into, each of which is held out."""

_CHUNK = 2048
"""Responses looked at together, so that memory stays small at the size of the published data set."""

_HELD = (0.5, 0.9)
"""Shares of the photons that a circle, or the brightest fibres, are asked to hold."""

_COUNTS = (
    "lit fibres",
    "largest count",
    "second largest count",
    "third largest count",
    "fibres with one photon",
    "fibres with two photons",
    "horizontal neighbours",
    "vertical neighbours",
    "isolated lit fibres",
    *(f"brightest fibres with {share:.0%} of the photons" for share in _HELD),
)


@dataclass(frozen=True, eq=False)
class TwoSample:
    """How well a classifier tells generated responses from simulated ones.

    Attributes
    ----------
    auc
        area under the ROC curve: the chance that of a generated and a simulated response, drawn at
        random, the generated one looks more generated. 0.5 for a perfect generator, 1 for one that
        always gives itself away; chance may take it a little below 0.5.
    importances
        columns feature and importance, the most important first: how much the AUC falls when the
        feature is shuffled. Empty where it was not asked for.
    """

    auc: float
    importances: pd.DataFrame


def response_features(
    responses: NDArray[Any], energy: NDArray[np.float64], detector: Detector
) -> pd.DataFrame:
    """What a classifier is shown of each response.

    Parameters
    ----------
    responses
        (N, R, K), photons, none negative.
    energy
        (N,), GeV, of the particles that caused them.
    detector
        of R x K fibres and C channels.

    Returns
    -------
    N rows of float64, columns that are named as in a figure:

    ``share of ...``
        of the photons in each of the C channels.
    ``centre row``, ``centre column``, ``radius of 50% of the photons``, ``... 90% ...``
        fibres, as :func:`~zdc_nb.detector.shower_centre` and
        :func:`~zdc_nb.detector.containment_radius`.
    ``lit fibres``, ``fibres with one photon``, ``fibres with two photons``
        how many; the latter two exactly so many.
    ``largest count``, ``second largest count``, ``third largest count``
        photons in the brightest fibres; 0 where there are not so many.
    ``horizontal neighbours``, ``vertical neighbours``
        sum over pairs of neighbours of the product of their photons, over the photon sum.
    ``isolated lit fibres``
        how many have none of their four neighbours lit.
    ``brightest fibres with 50% of the photons``, ``... 90% ...``
        how few fibres hold so much.
    ``photon sum``, ``energy``
        photons and GeV.

    A response without light has the middle of the face for its centre and 0 for all else but the
    energy.

    Raises
    ------
    ValueError
        where the last two axes are not the detector's, or ``energy`` is not one value a response.

    Examples
    --------
    >>> from zdc_nb.detector import ZN
    >>> response = np.zeros((1, 44, 44), np.uint16)
    >>> response[0, 10, 20:22] = 3, 1
    >>> features = response_features(response, np.array([100.0]), ZN)
    >>> features[["share of common", "largest count", "horizontal neighbours"]].values.tolist()
    [[0.25, 3.0, 0.75]]
    """
    if energy.shape != responses.shape[:1]:
        raise ValueError(
            f"energy: expected ({len(responses)},) values, one a response, got {energy.shape}"
        )
    sums = channel_sums(responses, detector)
    photons = responses.sum(axis=(1, 2), dtype=np.float64)
    divisor = np.where(photons > 0, photons, 1.0)
    columns = dict(
        zip(
            (f"share of {name}" for name in detector.channels),
            (sums / divisor[:, None]).T,
            strict=True,
        )
    )
    columns["centre row"], columns["centre column"] = shower_centre(responses, detector).T
    for share in _HELD:
        radius = containment_radius(responses, detector, share)
        columns[f"radius of {share:.0%} of the photons"] = radius
    counts = np.empty((len(responses), len(_COUNTS)))
    for start in range(0, len(responses), _CHUNK):
        part = slice(start, start + _CHUNK)
        counts[part] = _count(responses[part])
    columns |= dict(zip(_COUNTS, counts.T, strict=True))
    return pd.DataFrame(columns | {"photon sum": photons, "energy": energy}, dtype=np.float64)


def two_sample_test(
    test: Events,
    generated: NDArray[Any],
    seed: int,
    importances: bool = False,
    at_most: int = MOST_PAIRS,
) -> TwoSample:
    """Train a classifier to tell generated from test responses, and ask it about others.

    Trees with gradient boosting are trained on four fifths of the pairs of a test response and its
    generated answer; each of five folds is held out once, and the AUC is that of all held-out
    predictions together. Each fold holds as many generated as test responses.

    All pairs of a particle are in one fold, so that what is found holds for particles that the
    classifier has not seen. It would otherwise recognise a particle by its energy and the place of
    its showers, and learn its few responses by heart: an answer that is given twice, as the
    baseline ``reference`` has to where training responses are few, would look generated. (That
    alone took its AUC from 0.51 to 0.57.)

    Of fewer than five particles the pairs are spread over the folds. A pair is never parted,
    because both have the same energy and often the same photon sum: the classifier would recognise
    one by its partner, and call it the opposite.

    Parameters
    ----------
    test
        N test responses of a detector of R x K fibres.
    generated
        (N, R, K), photons; response k answers the particle of test response k.
    seed
        of the choice of pairs, of the folds and of what is shuffled; the same seed gives the same
        result.
    importances
        measure the features too: each is shuffled once within every held-out fold, and its
        importance is how much lower the AUC of all held-out predictions together is then. The
        classifier is not trained again, so features that tell the same share their importance. It
        is for responses with a distinct AUC: near 0.5 there is nothing to fall.
    at_most
        of more pairs so many are used, taken at random.

    Returns
    -------
    The AUC and, where asked for, the importance of each column of :func:`response_features`.

    Raises
    ------
    EvaluationError
        where ``generated`` is not one response of the detector for each test response, or there
        are fewer than ten pairs.
    """
    test, generated = take_pairs(test, generated, seed, at_most)
    simulated, answers = (features_of(test, each) for each in (test.responses, generated))
    return features_test(simulated, answers, test.particle, seed, importances)


def choose_pairs(count: int, seed: int, at_most: int = MOST_PAIRS) -> NDArray[np.intp] | slice:
    """Places of ``at_most`` of ``count`` pairs, taken at random, in order; all of fewer."""
    if count <= at_most:
        return slice(None)
    rng = np.random.default_rng(derive_seed(seed, "pairs"))
    return np.sort(rng.choice(count, at_most, replace=False))


def take_pairs(
    test: Events, generated: NDArray[Any], seed: int, at_most: int
) -> tuple[Events, NDArray[Any]]:
    """Those of :func:`choose_pairs`, of N test events and responses (N, R, K).

    Raises :class:`EvaluationError` where these are not one response for each event.
    """
    expected = (len(test), *test.detector.shape)
    if generated.shape != expected:
        raise EvaluationError(
            f"generated: expected {expected}, a response for each test response, "
            f"got {generated.shape}"
        )
    chosen = choose_pairs(len(test), seed, at_most)
    return test[chosen], generated[chosen]


def features_of(events: Events, responses: NDArray[Any]) -> pd.DataFrame:
    """:func:`response_features` of answers (N, R, K) to the particles of N events."""
    energy = events.features[:, FEATURES.index("energy")]
    return response_features(responses, energy, events.detector)


def features_test(
    test: pd.DataFrame,
    generated: pd.DataFrame,
    particle: NDArray[np.int64],
    seed: int,
    importances: bool = False,
) -> TwoSample:
    """As :func:`two_sample_test`, of features of n pairs that are known already.

    ``test`` and ``generated`` are from :func:`features_of`, ``particle`` (n,) is that of the test
    responses.
    """
    if len(test) < FEWEST_PAIRS:
        raise EvaluationError(
            f"two-sample test: expected at least {FEWEST_PAIRS} pairs of responses, got {len(test)}"
        )
    rng = np.random.default_rng(derive_seed(seed, "two-sample test"))
    is_generated = np.repeat([False, True], len(test))
    groups = np.tile(groups_of_pairs(particle, rng), 2)
    return _cross_validate(pd.concat([test, generated]), is_generated, groups, rng, importances)


def _count(responses: NDArray[Any]) -> NDArray[np.float64]:
    """(n, columns): :data:`_COUNTS` of n responses (n, R, K)."""
    # Dark fibres all around, so that every fibre has four neighbours. Only lit ones are looked
    # at: they are few.
    padded = np.pad(responses, ((0, 0), (1, 1), (1, 1)))
    n, rows, columns = padded.shape
    flat = padded.reshape(-1)
    lit = np.flatnonzero(flat)
    response = lit // (rows * columns)
    # float64, because products of uint16 overflow
    count, left, right, above, below = (
        flat[lit + step].astype(np.float64) for step in (0, -1, 1, -columns, columns)
    )

    def total(values: NDArray[Any]) -> NDArray[Any]:
        """(n,) float64: the sum over the lit fibres of each response."""
        return np.bincount(response, weights=values, minlength=n)

    number, photons = total(np.ones(len(lit))), total(count)
    divisor = np.where(photons > 0, photons, 1.0)
    # lit fibres stand in the order of their responses, and so they do when each is sorted
    falling = count[np.lexsort((-count, response))]
    rank = np.arange(len(lit)) - (np.cumsum(number) - number)[response].astype(np.int64)
    brightest = np.zeros((n, 3))
    top = rank < brightest.shape[1]
    brightest[response[top], rank[top]] = falling[top]
    before = np.cumsum(falling) - falling - (np.cumsum(photons) - photons)[response]
    # The tolerance keeps rounding in the product from asking for one fibre more.
    held = [total(before < share * photons[response] * (1 - 1e-12)) for share in _HELD]
    return np.column_stack(
        [
            number,
            brightest,
            total(count == 1),
            total(count == 2),
            total(count * right) / divisor,
            total(count * below) / divisor,
            total(left + right + above + below == 0),
            *held,
        ]
    )


def groups_of_pairs(particle: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.intp]:
    """(N,): labels of what has to be in one fold, of N pairs; at least as many as :data:`FOLDS`.

    The pairs of a particle have one label; of fewer than five particles each pair has its own.
    ``rng`` decides which label falls into which fold.
    """
    labels, group = np.unique(particle, return_inverse=True)
    if len(labels) < FOLDS:
        labels, group = particle, np.arange(len(particle))
    # groups of one size are dealt out by label, so that the label has to be random
    return rng.permutation(len(labels))[group]


def _cross_validate(
    features: pd.DataFrame,
    is_generated: NDArray[np.bool_],
    groups: NDArray[np.intp],
    rng: np.random.Generator,
    importances: bool,
) -> TwoSample:
    # takes long to import, and most who import this module measure nothing
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415
    from sklearn.model_selection import GroupKFold  # noqa: PLC0415

    values = features.to_numpy()
    shuffled_features = range(values.shape[1] if importances else 0)
    predicted = np.empty(len(values))
    after = np.empty((len(shuffled_features), len(values)))
    for train, held_out in GroupKFold(FOLDS).split(values, groups=groups):
        # Early stopping would be on with many responses alone, and parts the pairs to validate.
        model = HistGradientBoostingClassifier(early_stopping=False, random_state=0)
        model.fit(values[train], is_generated[train])
        asked = values[held_out]
        predicted[held_out] = model.predict_proba(asked)[:, 1]
        for k in shuffled_features:
            shuffled = asked.copy()
            shuffled[:, k] = rng.permutation(asked[:, k])
            after[k, held_out] = model.predict_proba(shuffled)[:, 1]
    auc = float(roc_auc_score(is_generated, predicted))
    table = pd.DataFrame(
        {
            "feature": features.columns[: len(after)],
            "importance": np.array([auc - roc_auc_score(is_generated, each) for each in after]),
        }
    )
    return TwoSample(
        auc, table.sort_values("importance", ascending=False, kind="stable", ignore_index=True)
    )
