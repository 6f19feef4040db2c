r"""From photon counts and particles to the flow's variables, and back.

A response becomes, fibre by fibre (Wojnar, Majerz and Dzwinel, Comput. Softw. Big Sci. 9 (2025) 1),

.. math::

    v = n + \nu u,\ u \sim U[0, 1), \qquad x = \mathrm{logit}(\alpha + (1 - 2\alpha)\, v / \sum v),

with the photon counts n, the noise :math:`\nu` and :math:`\alpha`. All of it but the noise is
inverted exactly when the noised sum is known. A generated sample only comes with a photon sum, so
the noised sum is taken to be its mean: the photon sum and :math:`\nu/2` for each of the D fibres
of a detector, R rows of K.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zdc_nb.data.events import FEATURES, Events, impact_point
from zdc_nb.detector.geometry import Detector
from zdc_nb.params import PreprocessingParams

__all__ = [
    "ConditionScaler",
    "counts_from_noised",
    "decode_responses",
    "encode_responses",
    "noised_from_flow",
    "raw_conditions",
]


def encode_responses(
    responses: Tensor, params: PreprocessingParams, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Photon counts to flow space.

    Parameters
    ----------
    responses
        (N, R, K) or (N, D) photon counts of any type.
    generator
        source of the dequantisation noise.

    Returns
    -------
    x, noised_sum
        (N, D) float32 in flow space and (N, 1) float64, the sums that were divided by.

    Examples
    --------
    With the noised sum known, the way back to the noised counts is exact, and the floor of these
    are the photons:

    >>> params = PreprocessingParams(
    ...     noise=0.5,
    ...     alpha=1e-6,
    ...     conditions="paper",
    ...     impact_grid=8,
    ...     denoise="floor-rescale",
    ... )
    >>> responses = torch.zeros(1, 44, 44)
    >>> responses[0, 20, 20:23] = torch.tensor([7.0, 1.0, 30.0])
    >>> x, total = encode_responses(responses, params, torch.Generator().manual_seed(1))
    >>> noised = noised_from_flow(x, params, total).reshape(44, 44)
    >>> noised[20, 20:23].floor().tolist()
    [7.0, 1.0, 30.0]
    """
    counts = responses.flatten(1).to(torch.float64)
    noise = torch.rand(counts.shape, generator=generator, dtype=torch.float64)
    noised = counts + params.noise * noise
    total = noised.sum(1, keepdim=True)
    x = torch.logit(params.alpha + (1 - 2 * params.alpha) * noised / total)
    return x.to(torch.float32), total


def noised_from_flow(x: Tensor, params: PreprocessingParams, noised_sum: Tensor) -> Tensor:
    """(N, D) in flow space to (N, D) noised counts that add up to ``noised_sum`` (N, 1).

    Undoes logit and normalisation. Values that the logit cannot have made (below alpha) come out
    slightly negative, as in the published code, which divides by the sum of absolute values.
    """
    fraction = (torch.sigmoid(x.to(torch.float64)) - params.alpha) / (1 - 2 * params.alpha)
    return fraction / fraction.abs().sum(1, keepdim=True) * noised_sum


def counts_from_noised(
    noised: Tensor, params: PreprocessingParams, photon_sum: Tensor, detector: Detector
) -> NDArray[np.uint16]:
    """Remove the dequantisation noise: (N, D) noised counts to (N, R, K) photon counts.

    ``floor`` undoes the noise exactly where the noised sum was exact. ``shift-floor`` subtracts
    half the noise first. With ``-rescale`` the counts are then scaled to the photon sum (N, 1)
    and floored again.
    """
    shift = params.noise / 2 if params.denoise.startswith("shift-") else 0.0
    counts = torch.floor(noised - shift).clamp_(min=0)
    if params.denoise.endswith("-rescale"):
        total = counts.sum(1, keepdim=True).clamp_(min=1)
        # in this order: a product of integers divided once is exact where it divides
        counts = torch.floor(counts * photon_sum / total)
    # a fibre cannot hold more than all photons; that these fit uint16 is checked on reading
    counts = counts.clamp_(max=np.iinfo(np.uint16).max)
    return counts.reshape(len(counts), *detector.shape).numpy().astype(np.uint16)


def decode_responses(
    x: Tensor, params: PreprocessingParams, photon_sum: NDArray[np.int64], detector: Detector
) -> NDArray[np.uint16]:
    """Generated samples (N, D) in flow space to (N, R, K) photon counts.

    ``photon_sum`` (N,) is the photon sum that each sample was generated for.

    Examples
    --------
    >>> from zdc_nb.detector import ZN
    >>> params = PreprocessingParams(
    ...     noise=0.5,
    ...     alpha=1e-6,
    ...     conditions="paper",
    ...     impact_grid=8,
    ...     denoise="floor-rescale",
    ... )
    >>> x = torch.full((1, ZN.dim), -13.8)
    >>> x[0, 100] = 5.0  # nearly all of the light
    >>> counts = decode_responses(x, params, np.array([40]), ZN)
    >>> counts.shape, int(counts[0, 2, 12]), int(counts.sum())
    ((1, 44, 44), 40, 40)
    """
    total = torch.as_tensor(photon_sum, dtype=torch.float64).reshape(-1, 1)
    noised = noised_from_flow(x.cpu(), params, total + detector.dim * params.noise / 2)
    return counts_from_noised(noised, params, total, detector)


def raw_conditions(events: Events, params: PreprocessingParams) -> NDArray[np.float64]:
    """(N, C) conditions before standardisation.

    ``paper``: the nine features and the photon sum. ``impact``: these, the logarithms of energy
    and photon sum, and the impact point as Gaussian radial basis functions on a grid over the
    face, so that a network need not build a fine function of position out of the ratio px / pz.
    """
    photons = events.photon_sum.astype(np.float64)[:, None]
    columns = [events.features, photons]
    if params.conditions == "impact":
        energy = events.features[:, FEATURES.index("energy"), None]
        columns += [np.log1p(photons), np.log1p(energy)]
        side = np.array(events.detector.face[::-1])  # along x, along y
        knots = np.stack([np.linspace(-s / 2, s / 2, params.impact_grid) for s in side])
        width = knots[:, 1:2] - knots[:, :1]
        with np.errstate(divide="ignore", invalid="ignore"):  # pz = 0 never arrives
            point = impact_point(events.features, events.detector)
        # far off the face all functions are zero
        point = np.clip(np.nan_to_num(point, nan=np.inf), -4 * side, 4 * side)
        rbf = np.exp(-0.5 * ((point[:, :, None] - knots) / width) ** 2)
        columns.append((rbf[:, 1, :, None] * rbf[:, 0, None, :]).reshape(len(events), -1))
    return np.concatenate(columns, axis=1)


@dataclass(frozen=True)
class ConditionScaler:
    """Standardises conditions with the training split's mean and standard deviation.

    Attributes
    ----------
    mean, std
        (C,) float64. A column that does not vary has std 1, so that it becomes 0.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def fit(cls, train: Events, params: PreprocessingParams) -> ConditionScaler:
        """Mean and standard deviation of the raw conditions of ``train``."""
        raw = raw_conditions(train, params)
        mean, std = raw.mean(0), raw.std(0)
        # relative, because a constant column's rounding leaves a tiny spread
        constant = std <= 1e-9 * np.abs(mean)
        return cls(mean, np.where(constant | (std == 0), 1.0, std))

    def __call__(self, events: Events, params: PreprocessingParams) -> Tensor:
        """(N, C) float32 standardised conditions of ``events``."""
        scaled = (raw_conditions(events, params) - self.mean) / self.std
        return torch.from_numpy(scaled.astype(np.float32))
