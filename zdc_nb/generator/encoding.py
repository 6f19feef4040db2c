r"""From photon counts and particles to the flow's variables, and back.

In the coordinates ``fibres`` a response becomes, fibre by fibre (Wojnar, Majerz and Dzwinel, Comput.
Softw. Big Sci. 9 (2025) 1),

.. math::

    v = n + \nu u,\ u \sim U[0, 1), \qquad x = \mathrm{logit}(\alpha + (1 - 2\alpha)\, v / \sum v),

with the photon counts n, the noise :math:`\nu` and :math:`\alpha`. All of it but the noise is
inverted exactly when the noised sum is known. A generated sample only comes with a photon sum, so
the noised sum is taken to be its mean: the photon sum and :math:`\nu/2` for each of the D fibres
of a detector, R rows of K.

In the coordinates ``splits`` it becomes the D - 1 numbers

.. math::

    t_k = \frac{l_k + u_k}{n_k + 1},\ u_k \sim U(0, 1), \qquad x_k = \mathrm{logit}\, t_k,

of the tree that cuts the face in halves (:mod:`zdc_nb.detector.splitting`): of the :math:`n_k` photons
in box k, :math:`l_k` fall into its first half. Given the photon sum this is inverted exactly, and
whatever x a flow draws gives whole counts that add up to the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zdc_nb.data.events import FEATURES, Conditioned, Events, bend, impact_point
from zdc_nb.detector import Detector, split_tree
from zdc_nb.params import PreprocessingParams

__all__ = [
    "ConditionScaler",
    "centre_in_flow",
    "channel_fractions",
    "channels_and_centre",
    "counts_from_noised",
    "decode_responses",
    "edge_reaches",
    "encode_responses",
    "flow_dim",
    "noised_from_flow",
    "particle_conditions",
    "raw_conditions",
    "split_cells",
]


def flow_dim(params: PreprocessingParams, detector: Detector) -> int:
    """Dimensions of flow space: one for each fibre, or for each node of the tree."""
    return detector.dim - (params.coordinates == "splits")


def encode_responses(
    responses: Tensor, params: PreprocessingParams, detector: Detector, generator: torch.Generator
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
    x, total
        (N, D) or (N, D - 1) float32 in flow space, see :func:`flow_dim`; and (N, 1) float64, the
        noised sums that were divided by, or the photon sums.

    Examples
    --------
    With the total known, the way back to the counts is exact:

    >>> from zdc_nb.detector import ZN
    >>> params = PreprocessingParams(
    ...     coordinates="splits",
    ...     noise=None,
    ...     alpha=None,
    ...     conditions="paper",
    ...     impact_grid=8,
    ...     denoise=None,
    ... )
    >>> responses = torch.zeros(1, 44, 44)
    >>> responses[0, 20, 20:23] = torch.tensor([7.0, 1.0, 30.0])
    >>> x, total = encode_responses(responses, params, ZN, torch.Generator().manual_seed(1))
    >>> x.shape, decode_responses(x, params, total.numpy(), ZN)[0, 20, 20:23].tolist()
    (torch.Size([1, 1935]), [7, 1, 30])
    """
    flat = responses.flatten(1)
    if params.coordinates == "splits":
        return _split_logits(flat, detector, generator), flat.sum(1, keepdim=True).to(torch.float64)
    noise, alpha = _fibre_values(params)
    counts = flat.to(torch.float64)
    noised = counts + noise * torch.rand(counts.shape, generator=generator, dtype=torch.float64)
    total = noised.sum(1, keepdim=True)
    x = torch.logit(alpha + (1 - 2 * alpha) * noised / total)
    return x.to(torch.float32), total


def decode_responses(
    x: Tensor, params: PreprocessingParams, photon_sum: NDArray[Any], detector: Detector
) -> NDArray[np.uint16]:
    """Generated samples in flow space to (N, R, K) photon counts.

    ``photon_sum`` (N,) is the photon sum that each sample was generated for.

    Examples
    --------
    >>> from zdc_nb.detector import ZN
    >>> params = PreprocessingParams(
    ...     coordinates="fibres",
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
    if params.coordinates == "splits":
        return _from_split_logits(x.cpu(), total.to(torch.int64), detector)
    noise, _ = _fibre_values(params)
    noised = noised_from_flow(x.cpu(), params, total + detector.dim * noise / 2)
    return counts_from_noised(noised, params, total, detector)


# --- Fibres ---


def _fibre_values(params: PreprocessingParams) -> tuple[float, float]:
    """Noise and alpha of the coordinates ``fibres``."""
    if params.noise is None or params.alpha is None:
        raise TypeError("expected the coordinates fibres, which have noise and alpha")
    return params.noise, params.alpha


def noised_from_flow(x: Tensor, params: PreprocessingParams, noised_sum: Tensor) -> Tensor:
    """(N, D) in flow space to (N, D) noised counts that add up to ``noised_sum`` (N, 1).

    Undoes logit and normalisation. Values that the logit cannot have made (below alpha) come out
    slightly negative, as in the published code, which divides by the sum of absolute values.
    """
    _, alpha = _fibre_values(params)
    fraction = (torch.sigmoid(x.to(torch.float64)) - alpha) / (1 - 2 * alpha)
    return fraction / fraction.abs().sum(1, keepdim=True) * noised_sum


def counts_from_noised(
    noised: Tensor, params: PreprocessingParams, photon_sum: Tensor, detector: Detector
) -> NDArray[np.uint16]:
    """Remove the dequantisation noise: (N, D) noised counts to (N, R, K) photon counts.

    ``floor`` undoes the noise exactly where the noised sum was exact. ``shift-floor`` subtracts
    half the noise first. With ``-rescale`` the counts are then scaled to the photon sum (N, 1)
    and floored again.
    """
    noise, _ = _fibre_values(params)
    denoise = params.denoise or "floor"
    shift = noise / 2 if denoise.startswith("shift-") else 0.0
    counts = torch.floor(noised - shift).clamp_(min=0)
    if denoise.endswith("-rescale"):
        total = counts.sum(1, keepdim=True).clamp_(min=1)
        # in this order: a product of integers divided once is exact where it divides
        counts = torch.floor(counts * photon_sum / total)
    # a fibre cannot hold more than all photons; that these fit uint16 is checked on reading
    counts = counts.clamp_(max=np.iinfo(np.uint16).max)
    return counts.reshape(len(counts), *detector.shape).numpy().astype(np.uint16)


# --- Splits ---

_MARGIN = 2.0**-24
"""t stays this far inside its interval, so that x in float32 leads back to the same count for all
photon sums below 2^16."""


def _split_logits(counts: Tensor, detector: Detector, generator: torch.Generator) -> Tensor:
    """(N, D - 1) float32 split logits of counts (N, D)."""
    tree = split_tree(detector.shape)
    boxes = tree.counts(counts.cpu().numpy())
    below = torch.from_numpy(boxes[:, tree.first]).to(torch.float64)
    width = 1 / torch.from_numpy(boxes[:, tree.nodes] + 1).to(torch.float64)
    uniform = torch.rand(width.shape, generator=generator, dtype=torch.float64)
    t = below * width + _MARGIN + uniform * (width - 2 * _MARGIN)
    return torch.logit(t).to(torch.float32)


def _from_split_logits(x: Tensor, photon_sum: Tensor, detector: Detector) -> NDArray[np.uint16]:
    tree = split_tree(detector.shape)
    t = torch.sigmoid(x.to(torch.float64)).numpy()
    boxes = np.zeros((len(x), len(tree.boxes)), np.int64)
    boxes[:, :1] = photon_sum.numpy()
    for level in tree.levels:
        n, first = boxes[:, tree.nodes[level]], tree.first[level]
        half = np.minimum(np.floor(t[:, level] * (n + 1)), n).astype(np.int64)
        boxes[:, first], boxes[:, first + 1] = half, n - half
    return boxes[:, tree.fibre].astype(np.uint16).reshape(-1, *detector.shape)


def split_cells(photons: NDArray[Any], detector: Detector) -> NDArray[np.float64]:
    """(N, D - 1) logarithms of the widths in t of the cells that counts (N, D) came from.

    A density of t at a random place of its cell, times the width, is an unbiased estimate of the
    counts' probability; the mean of its logarithm is a lower bound of that of the probability.
    """
    tree = split_tree(detector.shape)
    n = tree.counts(photons)[:, tree.nodes]
    return np.log(1 / (n + 1) - 2 * _MARGIN)


# --- What a loss sees of the light ---


def channel_fractions(x: Tensor, params: PreprocessingParams, detector: Detector) -> Tensor:
    """(N, C) shares of the light in the detector's channels, differentiable, of x in flow space.

    In split coordinates a box's share is the product of t, or 1 - t, on the way to it.
    """
    return _fibre_shares(x, params, detector) @ _masks(detector).to(x).T


def channels_and_centre(x: Tensor, params: PreprocessingParams, detector: Detector) -> Tensor:
    """(N, C + 2): as :func:`channel_fractions`, and row and column (fibre units) of the light's centre.

    In the coordinates ``fibres`` the noise is part of the light, see :func:`centre_in_flow`. In split
    coordinates t is on average (l + 1/2) / (n + 1) and not l / n, which moves the centre of few photons
    inwards, by about one part in their number.
    """
    places = torch.from_numpy(np.indices(detector.shape).reshape(2, -1)).to(x)
    read = torch.cat([_masks(detector).to(x), places])
    return _fibre_shares(x, params, detector) @ read.T


def centre_in_flow(
    centre: NDArray[np.float64],
    photon_sum: NDArray[Any],
    params: PreprocessingParams,
    detector: Detector,
) -> NDArray[np.float64]:
    r"""(N, 2) where :func:`channels_and_centre` has the centre of responses, on average over the noise.

    Of the true ``centre`` (N, 2) of the photons and the ``photon_sum`` (N,) N: the same in split
    coordinates; with the noise :math:`\nu` of D fibres nearer to the middle of the face, by the factor
    :math:`N / (N + \nu D / 2) \cdot (1 - 2\alpha) / (1 + (D - 2) \alpha)`.
    """
    if params.coordinates == "splits":
        return centre
    noise, alpha = _fibre_values(params)
    total, dim = photon_sum.astype(np.float64)[:, None], detector.dim
    share = total / (total + noise * dim / 2) * (1 - 2 * alpha) / (1 + (dim - 2) * alpha)
    middle = np.array(detector.face_centre)
    moved: NDArray[np.float64] = middle + share * (centre - middle)
    return moved


def _masks(detector: Detector) -> Tensor:
    return torch.tensor(detector.masks.reshape(-1, detector.dim))


def _fibre_shares(x: Tensor, params: PreprocessingParams, detector: Detector) -> Tensor:
    """(N, D) shares of the light in the fibres."""
    if params.coordinates == "fibres":
        light = torch.sigmoid(x)
        return light / light.sum(1, keepdim=True)
    tree = split_tree(detector.shape)
    shares, boxes = x.new_ones(len(x), 1), [x.new_ones(len(x), 1)]
    begin = 0  # the first box of this depth
    for level in tree.levels:
        parents = torch.from_numpy(tree.nodes[level] - begin).to(x.device)
        t = torch.sigmoid(x[:, level])
        of_nodes = shares.index_select(1, parents)
        halves = torch.stack([of_nodes * t, of_nodes * (1 - t)], dim=2)
        begin += shares.shape[1]
        shares = halves.flatten(1)
        boxes.append(shares)
    fibres = torch.from_numpy(tree.fibre).to(x.device)
    return torch.cat(boxes, 1).index_select(1, fibres)


# --- Conditions ---


def raw_conditions(events: Conditioned, params: PreprocessingParams) -> NDArray[np.float64]:
    """(N, C) conditions before standardisation.

    ``paper``: the detector's conditions of a particle (of the ZN the nine features) and the photon
    sum. ``impact``: these, the logarithms of energy and photon sum, and the impact point as Gaussian
    radial basis functions on a grid over the face, so that a network need not build a fine function
    of position out of the ratio px / pz.
    """
    photons = events.photon_sum.astype(np.float64)[:, None]
    columns = [particle_conditions(events.features, events.detector), photons]
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


def particle_conditions(features: NDArray[np.float64], detector: Detector) -> NDArray[np.float64]:
    """(N, K) what the detector's file names as conditions, of features (N, 9).

    Beside the features ``pt`` (GeV), ``eta`` (pseudorapidity), ``phi`` (rad), ``cos_phi`` and
    ``sin_phi``; of those that are scaled as ``log``, log(1 + value).
    """
    known = dict(zip(FEATURES, features.T, strict=True))
    px, py, pz = (known[name] for name in ("px", "py", "pz"))
    known["pt"] = np.hypot(px, py)
    # a particle along the beam has no pseudorapidity; the angle is that of one micron over the way
    least = np.maximum(known["pt"], 1e-6 * np.abs(pz) / detector.distance)
    known["eta"] = np.arcsinh(pz / np.where(least > 0, least, 1.0))
    known["phi"] = np.arctan2(py, px)
    known["cos_phi"], known["sin_phi"] = np.cos(known["phi"]), np.sin(known["phi"])
    columns = [
        np.log1p(np.maximum(known[name], 0.0)) if scale == "log" else known[name]
        for name, scale in detector.conditions
    ]
    return np.column_stack(columns)


def _fitted(
    raw: NDArray[np.float64], detector: Detector
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and spread of raw conditions, the detector's first, each as its file says."""
    mean, std = raw.mean(0), raw.std(0)
    for column, (_, scale) in enumerate(detector.conditions):
        if scale == "robust":
            low, mean[column], high = np.percentile(raw[:, column], (16, 50, 84))
            std[column] = (high - low) / 2
    return mean, std


@dataclass(frozen=True)
class ConditionScaler:
    """Standardises conditions by where they lie in the training split, and how far they spread.

    Attributes
    ----------
    mean, std
        (C,) float64, mean and standard deviation; of what is scaled as ``robust``, and of slopes, the
        median and half the width of the middle 68%. A column that does not vary has std 1, so that
        it becomes 0.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def vertex(self, detector: Detector) -> NDArray[np.float64]:
        """(3,) m, the mean vertex of what was learned from; 0 along an axis that is no condition."""
        means = {
            name: mean
            for (name, scale), mean in zip(detector.conditions, self.mean, strict=False)
            if scale != "log"
        }
        return np.array([means.get(name, 0.0) for name in ("vx", "vy", "vz")])

    @classmethod
    def fit(cls, train: Events, params: PreprocessingParams) -> ConditionScaler:
        """Place and spread of the raw conditions of ``train``, each scaled as its detector says."""
        raw = raw_conditions(train, params)
        return cls(*_standard(*_fitted(raw, train.detector)))

    @classmethod
    def fit_context(cls, train: Events) -> ConditionScaler:
        """The same of what a splitting flow is told, see :meth:`context`.

        Of the slopes median and half the width of the middle 68%: a few particles fly far off.
        """
        raw = _raw_context(train)
        mean, std = _fitted(raw, train.detector)
        low, mean[-2:], high = np.percentile(raw[:, -2:], (16, 50, 84), axis=0)
        std[-2:] = (high - low) / 2
        return cls(*_standard(mean, std))

    @classmethod
    def fit_particle(cls, features: NDArray[np.float64], detector: Detector) -> ConditionScaler:
        """The same of what is known before there is a photon sum, see :meth:`particle`.

        Slopes as in :meth:`fit_context`; the functions of the impact point stay as they are.
        """
        raw = _raw_particle(features, detector)[:, :_OWN_NUMBERS]
        mean, std = raw.mean(0), raw.std(0)
        low, mean[-2:], high = np.percentile(raw[:, -2:], (16, 50, 84), axis=0)
        std[-2:] = (high - low) / 2
        mean, std = _standard(mean, std)
        places = PLACE_GRID**2 + 2 * len(edge_reaches(detector))
        return cls(np.append(mean, np.zeros(places)), np.append(std, np.ones(places)))

    def __call__(self, events: Conditioned, params: PreprocessingParams) -> Tensor:
        """(N, C) float32 standardised conditions of ``events``."""
        return self._scale(raw_conditions(events, params))

    def particle(self, features: NDArray[np.float64], detector: Detector) -> Tensor:
        """(N, C) float32, what the networks of :mod:`zdc_nb.flows.particle_nets` are told.

        Of features (N, 9), whatever the detector's conditions are: energy and its logarithm, momentum,
        mass, charge, side and slopes (from the origin to where the particle arrives: of the vertex
        nothing else), standardised; the impact point as Gaussian radial basis functions on a grid of
        :data:`PLACE_GRID` points a side, somewhat larger than the face; and its distances to the
        edges, as a softsign.
        """
        scaled = self._scale(_raw_particle(features, detector))
        scaled[:, _OWN_NUMBERS - 2 : _OWN_NUMBERS].clamp_(-LARGEST_SLOPE, LARGEST_SLOPE)
        return scaled

    def context(self, events: Conditioned) -> Tensor:
        """(N, C + 3) float32, what :class:`zdc_nb.flows.splitting.SplittingFlow` is told.

        The detector's conditions (of the ZN the nine published features) and the photon sum; whatever
        the conditions are, the logarithms of sum and energy, the side (sign of pz) and the slopes
        along y and x; all standardised, then the photon sum as it is.
        """
        total = torch.from_numpy(events.photon_sum.astype(np.float32))
        return torch.cat([self._scale(_raw_context(events)), total[:, None]], 1)

    def _scale(self, raw: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(((raw - self.mean) / self.std).astype(np.float32))


PLACE_GRID = 12
"""Points a side of the grid that tells where a particle arrives."""

PLACE_REACH = 1.5
"""Extent of that grid, in sizes of the face: beside it showers still leak in."""

LARGEST_SLOPE = 6.0
"""Standardised slopes are cut here: beyond it nothing reaches the face."""

_OWN_NUMBERS = 10
"""Numbers of a particle that are standardised; the last two are its slopes."""


def edge_reaches(detector: Detector) -> tuple[float, ...]:
    """m: distances to the edge of the face at which a network sees it best; of the ZN 2 and 10 mm."""
    return tuple(reach * detector.pitch for reach in (1.25, 6.25))


def _raw_particle(features: NDArray[np.float64], detector: Detector) -> NDArray[np.float64]:
    """(N, C) of :meth:`ConditionScaler.particle`, before standardisation."""
    energy, vx, vy, px, py, pz, mass, charge = (
        features[:, FEATURES.index(name), None]
        for name in ("energy", "vx", "vy", "px", "py", "pz", "mass", "charge")
    )
    along = np.maximum(np.abs(pz), 1e-6)  # GeV; pz = 0 never arrives
    # from the origin to where the particle arrives
    slope_x, slope_y = px / along + vx / detector.distance, py / along + vy / detector.distance
    slope_x = slope_x + bend(features, detector)[:, None]
    own = [energy, np.log1p(energy), px, py, pz, mass, charge, np.sign(pz), slope_y, slope_x]
    x = slope_x * detector.distance - detector.offset[0]
    y = slope_y * detector.distance - detector.offset[1]
    height, width = detector.face
    places, edges = [], []
    for at, side in ((y, height), (x, width)):
        knots = np.linspace(-PLACE_REACH / 2, PLACE_REACH / 2, PLACE_GRID) * side
        near = np.clip(at, -4 * side, 4 * side)
        places.append(np.exp(-0.5 * ((near - knots) / (knots[1] - knots[0])) ** 2))
        inside = side / 2 - np.abs(near)
        edges += [inside / (reach + np.abs(inside)) for reach in edge_reaches(detector)]
    grid = (places[0][:, :, None] * places[1][:, None, :]).reshape(len(features), -1)
    return np.concatenate([*own, grid, *edges], axis=1)


def _standard(
    mean: NDArray[np.float64], std: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # relative, because a constant column's rounding leaves a tiny spread
    constant = std <= 1e-9 * np.abs(mean)
    return mean, np.where(constant | (std == 0), 1.0, std)


def _raw_context(events: Conditioned) -> NDArray[np.float64]:
    """(N, C + 2): conditions, photon sum, logarithms, side; last the slopes along y and x, of what is
    bent that of a straight flight to where it arrives."""
    photons = events.photon_sum.astype(np.float64)[:, None]
    energy, px, py, pz = (
        events.features[:, FEATURES.index(name), None] for name in ("energy", "px", "py", "pz")
    )
    along = np.maximum(np.abs(pz), 1e-6)  # GeV; pz = 0 never arrives
    own = particle_conditions(events.features, events.detector)
    numbers = [own, photons, np.log1p(photons), np.log1p(energy), np.sign(pz)]
    slope_x = px / along + bend(events.features, events.detector)[:, None]
    return np.concatenate([*numbers, py / along, slope_x], axis=1)
