r"""The splitting flow: photons that go left or right, box after box.

The face of the detector is cut in two again and again (:mod:`zdc_nb.detector.splitting`). All
boxes of a level are cut at once, given the counts of all levels above: an autoregressive spline
flow of block-triangular order. Of the n photons of a node, l fall into its first half where

.. math::

    l = \lfloor t (n + 1) \rfloor, \qquad
    F(t) = \sigma\left(1.7\, \mathrm{RQS}\left((\mathrm{logit}\, t - m)\, e^s
           \sqrt{n + 4} / 2\right)\right),

with the logistic function :math:`\sigma` and a rational-quadratic spline. One network gives m, s and the
spline of every node, so a shower looks the same to it wherever it lands. A spline that is the
identity has about the width of a binomial distribution. The likelihood is discrete and exact,

.. math::

    P(l \mid n) = F\left(\frac{l + 1}{n + 1}\right) - F\left(\frac{l}{n + 1}\right),

and a sample is its inverse, t = F^{-1}(u) for u ~ U(0, 1). Nodes without light have nothing to
learn or to draw and are never computed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional

from zdc_nb.detector.splitting import split_tree
from zdc_nb.flows.splines import IDENTITY_DERIVATIVE, rational_quadratic_spline
from zdc_nb.flows.splitting_cpu import GROUP, Inputs, Network, sample_boxes
from zdc_nb.params import SplittingFlowParams

__all__ = ["BLINDING", "LARGEST_LOG_SCALE", "SplitCounts", "SplittingFlow"]

STEEPNESS = 1.7
"""A logistic distribution with this steepness is close to a standard normal one."""

REACHES = (0.5, 2.0, 8.0)
"""Distances to the impact point, in sizes of the box, at which a network sees it best."""

FACE_REACHES = (0.05, 0.2, 0.7)
"""The same, in sizes of the face."""

BLINDING = 6.0
"""Standardised slopes are cut here: beyond it nothing reaches the face."""

LARGEST_LOG_SCALE = 5.0
"""The scale s of a curve is cut here."""

_TAIL = 2.0**-25
"""Random numbers stay this far from 0 and 1, whose logits are infinite."""


class _Rows(NamedTuple):
    """M lit nodes of a batch, one a row: (M,) each."""

    event: Tensor
    node: Tensor
    n: Tensor


class SplittingFlow(nn.Module):
    """Responses of a face of D fibres, for particles and photon sums.

    A context (N, C + 3) holds C standardised numbers of the particle, its standardised slopes
    py / abs(pz) and px / abs(pz), and the photon sum. Where on the face a slope leads is learned:
    a row and a column of offset and scale.

    Parameters
    ----------
    shape
        rows and columns of the face.
    context
        numbers in a context, C + 3.
    params
        the architecture.

    Examples
    --------
    >>> params = SplittingFlowParams(
    ...     window=3,
    ...     bins=4,
    ...     bound=8.0,
    ...     hidden=8,
    ...     hidden_layers=1,
    ...     context_hidden=[8],
    ...     coarse_nodes=3,
    ... )
    >>> flow = SplittingFlow((4, 6), 5, params).eval()
    >>> context = torch.tensor([[0.3, -1.0, 0.5, 0.1, 40.0]]).expand(3, 5)
    >>> photons = flow.sample(context, torch.Generator().manual_seed(1))
    >>> photons.shape, photons.sum(1).tolist(), flow.log_prob(photons, context).shape
    (torch.Size([3, 24]), [40, 40, 40], torch.Size([3]))
    """

    # what follows of the tree alone
    window: Tensor
    nodes: Tensor
    first: Tensor
    fibre: Tensor
    order: Tensor
    start: Tensor
    end: Tensor
    middle: Tensor
    size: Tensor
    face: Tensor
    even: Tensor

    def __init__(self, shape: tuple[int, int], context: int, params: SplittingFlowParams) -> None:
        super().__init__()
        if context < 4:
            raise ValueError(f"context: expected at least 4 numbers, got {context}")
        self.shape, self.context, self.params = shape, context, params
        self.tree = tree = split_tree(shape)
        self.dim = shape[0] * shape[1]
        count, width = len(tree.nodes), params.hidden
        self.coarse_nodes = min(params.coarse_nodes, count)

        def constant(name: str, value: Any, kind: torch.dtype) -> None:
            self.register_buffer(name, torch.as_tensor(np.asarray(value), dtype=kind), False)

        boxes = len(tree.boxes)
        window = np.delete(tree.window(params.window), params.window**2 // 2, axis=1)
        # beyond the face is one more box, which is always dark
        constant("window", np.where(window < 0, boxes, window), torch.int64)
        constant("nodes", tree.nodes, torch.int64)
        constant("first", tree.first, torch.int64)
        constant("fibre", tree.fibre, torch.int64)
        order, start, end = tree.ranges
        for name, value in (("order", order), ("start", start), ("end", end)):
            constant(name, value, torch.int64)
        top, bottom, left, right = tree.boxes[tree.nodes].T
        constant("middle", np.stack([top + bottom, left + right], 1) / 2, torch.float32)
        constant("size", np.stack([bottom - top, right - left], 1), torch.float32)
        constant("face", shape, torch.float32)
        area = (tree.boxes[:, 1] - tree.boxes[:, 0]) * (tree.boxes[:, 3] - tree.boxes[:, 2])
        even = np.log(area[tree.first] / area[tree.first + 1])
        constant("even", even, torch.float32)

        seen = window.shape[1] + 3 + 2 * (len(REACHES) + len(FACE_REACHES))
        self.see = nn.Linear(seen, width)
        self.place = nn.Embedding(count, width)
        nn.init.normal_(self.place.weight, std=0.05)
        layers: list[nn.Module] = []
        inputs = context
        for units in params.context_hidden:
            layers += [nn.Linear(inputs, units), nn.ReLU()]
            inputs = units
        self.particle = nn.Sequential(*layers)
        self.tell = nn.Linear(inputs, width, bias=False)
        self.between = nn.ModuleList(nn.Linear(width, width) for _ in range(params.hidden_layers))
        self.outputs = 3 * params.bins + 1
        self.last = nn.Linear(width, self.outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        with torch.no_grad():
            self.last.bias[2 * params.bins : 3 * params.bins - 1] = IDENTITY_DERIVATIVE
        # the particle's own way to the first cuts, which decide where the light is
        self.coarse = nn.Parameter(torch.zeros(inputs, self.coarse_nodes * self.outputs))
        # in sizes of the face, from its top left corner
        self.aim_offset = nn.Parameter(torch.tensor([0.5, 0.5]))
        self.aim_scale = nn.Parameter(torch.tensor([-0.25, 0.25]))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.aim_offset.device

    # --- what the network sees ---

    def impact(self, context: Tensor) -> Tensor:
        """(N, 2) row and column, counted from the edge of the face, where a slope leads."""
        slope = context[:, -3:-1].clamp(-BLINDING, BLINDING)
        return (self.aim_offset + self.aim_scale * slope) * self.face

    def boxes(self, photons: Tensor) -> Tensor:
        """(N, 2D) photons in each box of photons (N, D) in each fibre; the last is always dark."""
        running = photons[:, self.order].to(torch.int64).cumsum(1)
        running = functional.pad(running, (1, 0))
        counts = running[:, self.end] - running[:, self.start]
        return functional.pad(counts, (0, 1)).to(torch.float32)

    def features(self, rows: _Rows, light: Tensor, impact: Tensor) -> Tensor:
        """(M, F) what the network sees of lit nodes.

        The logarithms of 1 + n of the boxes around each, relative to its own; of its own n the
        logarithm and two inverse powers; the impact point as seen from the node, in sizes of the
        box and of the face.

        Parameters
        ----------
        light
            (N, 2D) log(1 + n) of all boxes of the levels down to those of the rows.
        impact
            (N, 2) of :meth:`impact`.
        """
        event, node, n = rows
        own = torch.log1p(n)[:, None]
        around = light.view(-1)[(event * light.shape[1])[:, None] + self.window[node]] - own
        away = impact[event] - self.middle[node]
        local, whole = away / self.size[node], away / self.face
        seen = [around, own, torch.rsqrt(n + 1)[:, None], 1 / (n + 1)[:, None]]
        seen += [functional.softsign(local / reach) for reach in REACHES]
        seen += [functional.softsign(whole / reach) for reach in FACE_REACHES]
        return torch.cat(seen, 1)

    def curves(self, rows: _Rows, light: Tensor, impact: Tensor, particle: Tensor) -> Tensor:
        """(3K + 1, M) parameters of lit nodes: those of the spline, then m and s.

        ``particle`` is the last hidden layer (N, H') of what the context says; the rest as in
        :meth:`features`.
        """
        event, node, _ = rows
        h = self.see(self.features(rows, light, impact))
        h = h + self.place(node) + self.tell(particle)[event]
        for layer in self.between:
            h = h + layer(torch.relu(h))
        raw = torch.addmm(self.last.bias[:, None], self.last.weight, torch.relu(h).T)
        coarse = torch.nonzero(node < self.coarse_nodes)[:, 0]
        if len(coarse):
            own = (particle @ self.coarse).view(-1, self.outputs)
            here = event[coarse] * self.coarse_nodes + node[coarse]
            raw = raw.index_add(1, coarse, own[here].T)
        return raw

    def _line(self, raw: Tensor, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Spline parameters (1, 3K - 1, M), and (M,) centre and factor of logit t."""
        centre = self.even[rows.node] + raw[-2]
        scale = raw[-1].clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE).exp()
        return raw[None, :-2].contiguous(), centre, scale * torch.sqrt(rows.n + 4) / 2

    # --- likelihood ---

    def cuts(self, raw: Tensor, rows: _Rows, logit: Tensor) -> Tensor:
        """(M,) logits of F at the logits (M,) of t."""
        splines, centre, factor = self._line(raw, rows)
        x = ((logit - centre) * factor)[None]
        return STEEPNESS * rational_quadratic_spline(x, splines, self.params.bound)[0][0]

    def log_shares(self, raw: Tensor, rows: _Rows, l: Tensor) -> Tensor:
        """(M,) log P(l | n), for counts l (M,) in the first half."""
        n = rows.n
        none, all_of_them = l < 0.5, l > n - 0.5
        # clamped where the other branch is taken: no infinity may reach the gradient
        upper = self.cuts(raw, rows, torch.log(l + 1) - torch.log((n - l).clamp(min=0.5)))
        lower = self.cuts(raw, rows, torch.log(l.clamp(min=0.5)) - torch.log(n - l + 1))
        nothing = torch.zeros_like(n)
        below = torch.where(all_of_them, nothing, functional.logsigmoid(upper))
        above = torch.where(none, nothing, functional.logsigmoid(-lower))
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b))
        step = (lower - upper).clamp(max=-1e-6)
        between = torch.where(none | all_of_them, nothing, torch.log(-torch.expm1(step)))
        return below + above + between

    def lit_log_prob(self, photons: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log P of every lit node of photons (N, D): event, node and value, (M,) each."""
        counts = self.boxes(photons)
        rows = self._lit(counts)
        return rows.event, rows.node, self._log_probs(rows, counts, context)

    def _lit(self, counts: Tensor) -> _Rows:
        at_nodes = counts[:, self.nodes]
        node, event = torch.nonzero(at_nodes.T, as_tuple=True)
        return _Rows(event, node, at_nodes[event, node])

    def _log_probs(self, rows: _Rows, counts: Tensor, context: Tensor) -> Tensor:
        inputs = torch.log1p(counts), self.impact(context), self.particle(self._told(context))
        halves = counts[rows.event, self.first[rows.node]]
        return self.log_shares(self.curves(rows, *inputs), rows, halves)

    def log_prob(self, photons: Tensor, context: Tensor) -> Tensor:
        """(N,) exact log P(photons (N, D) | context (N, C + 3)) in nats.

        Given the photon sum: photons that do not add up to it have probability 0, and get
        -infinity.
        """
        event, _, logs = self.lit_log_prob(photons, context)
        total = logs.new_zeros(len(photons)).index_add(0, event, logs)
        wrong = photons.sum(1) != context[:, -1]
        return total.masked_fill(wrong, -math.inf)

    def estimated_log_prob(
        self, photons: Tensor, context: Tensor, share: float, generator: torch.Generator
    ) -> Tensor:
        """(N,) unbiased estimates of :meth:`log_prob`, from a share of the fine nodes, to learn from.

        The nodes beyond the coarse ones are most of those that are lit, and all alike to the
        network. Of these each is taken with the probability ``share``, and its log P divided by it.
        """
        counts = self.boxes(photons)
        rows = self._lit(counts)
        if share < 1:
            # drawn where the generator is: the same nodes on every device
            drawn = torch.rand(len(rows.node), generator=generator).to(self.device) < share
            taken = drawn | (rows.node < self.coarse_nodes)
            rows = _Rows(*(part[taken] for part in rows))
        logs = self._log_probs(rows, counts, context)
        logs = torch.where(rows.node < self.coarse_nodes, logs, logs / share)
        return logs.new_zeros(len(photons)).index_add(0, rows.event, logs)

    @torch.no_grad()
    def probabilities(self, photons: Tensor, context: Tensor, node: int) -> Tensor:
        """(n + 1,) P(l | n) of one node for l = 0 ... n, in one response.

        ``photons`` (1, D), ``context`` (1, C + 3); n is what the node's box holds of the photons.
        """
        counts = self.boxes(photons)
        n = counts[0, self.nodes[node]]
        half = torch.arange(int(n) + 1, device=n.device, dtype=counts.dtype)
        nowhere = torch.zeros_like(half, dtype=torch.int64)
        rows = _Rows(nowhere, nowhere + node, n.expand(len(half)))
        inputs = torch.log1p(counts), self.impact(context), self.particle(self._told(context))
        return self.log_shares(self.curves(rows, *inputs), rows, half).exp()

    def _told(self, context: Tensor) -> Tensor:
        """What the network is told: no raw photon sum, which standardised numbers stand for."""
        slopes = context[:, -3:-1].clamp(-BLINDING, BLINDING)
        return torch.cat([context[:, :-3], slopes, torch.log1p(context[:, -1:]) / 4 - 1], 1)

    # --- sampling ---

    @torch.no_grad()
    def sample(self, context: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, D) int64 photons, one response for each context (N, C + 3)."""
        shape = len(context), len(self.tree.nodes)
        uniform = torch.rand(shape, generator=generator, device=self.device)
        return self.from_uniform(uniform, context)

    @torch.no_grad()
    def from_uniform(self, uniform: Tensor, context: Tensor, compiled: bool = True) -> Tensor:
        """(N, D) int64 photons from random numbers (N, D - 1), one for each node.

        With ``compiled`` by :mod:`zdc_nb.flows.splitting_cpu` where the weights are on a CPU, else
        level by level in torch: the same numbers but for rounding.
        """
        logit = torch.logit(uniform.clamp(_TAIL, 1 - _TAIL)) / STEEPNESS
        total = context[:, -1].round()
        if compiled and self.device.type == "cpu":
            counts = self._sample_compiled(logit, total, context)
        else:
            impact, particle = self.impact(context), self.particle(self._told(context))
            counts = self._sample(logit, total, impact, particle)
        return counts[:, self.fibre].to(torch.int64)

    def _sample(self, logit: Tensor, total: Tensor, impact: Tensor, particle: Tensor) -> Tensor:
        counts = torch.zeros(len(total), 2 * self.dim, device=total.device)
        counts[:, 0] = total
        light = torch.log1p(counts)
        for level in self.tree.levels:
            at_nodes = counts[:, self.nodes[level]]
            event, node = torch.nonzero(at_nodes, as_tuple=True)
            n = at_nodes[event, node]
            rows = _Rows(event, node + level.start, n)
            raw = self.curves(rows, light, impact, particle)
            splines, centre, factor = self._line(raw, rows)
            z = logit[event, rows.node][None]
            x, _ = rational_quadratic_spline(z, splines, self.params.bound, inverse=True)
            t = torch.sigmoid((x[0] / factor + centre).to(torch.float64))
            half = torch.floor(t * (n + 1)).to(n.dtype).minimum(n)
            first = self.first[rows.node]
            counts[event, first], counts[event, first + 1] = half, n - half
            light[event, first], light[event, first + 1] = torch.log1p(half), torch.log1p(n - half)
        return counts

    def _sample_compiled(self, logit: Tensor, total: Tensor, context: Tensor) -> Tensor:
        counts = np.zeros((len(total), 2 * self.dim), np.float32)
        counts[:, 0] = total.numpy()
        told, coarse = [], []
        # in the groups of the sampler: products are rounded as their sizes have it, and a
        # response shall not depend on how many others are drawn beside it
        for some in self._told(context).split(GROUP):
            particle = self.particle(some)
            told.append(functional.linear(particle, self.tell.weight, self.see.bias))
            coarse.append(particle @ self.coarse)
        inputs = Inputs(
            logit.numpy(),
            self.impact(context).numpy(),
            torch.cat(told).numpy(),
            torch.cat(coarse).view(len(total), self.coarse_nodes, self.outputs).numpy(),
            counts,
            np.log1p(counts),
        )
        sample_boxes(self._network(), inputs, self.params.bins, self.params.bound)
        return torch.from_numpy(counts)

    def _network(self) -> Network:
        def array(tensor: Tensor) -> Any:
            return np.ascontiguousarray(tensor.detach().numpy())

        levels = [level.start for level in self.tree.levels]
        width = len(self.see.bias)
        return Network(
            levels=np.array([*levels, len(self.tree.nodes)]),
            window=array(self.window),
            nodes=array(self.nodes),
            first=array(self.first),
            middle=array(self.middle),
            size=array(self.size),
            face=array(self.face),
            even=array(self.even),
            see=array(self.see.weight.T),
            place=array(self.place.weight),
            between=np.array([array(layer.weight.T) for layer in self._layers], np.float32).reshape(
                -1, width, width
            ),
            between_bias=np.array(
                [array(layer.bias) for layer in self._layers], np.float32
            ).reshape(-1, width),
            last=array(self.last.weight.T),
            last_bias=array(self.last.bias),
            reaches=np.array(REACHES, np.float32),
            face_reaches=np.array(FACE_REACHES, np.float32),
        )

    @property
    def _layers(self) -> list[nn.Linear]:
        return list(self.between)  # type: ignore[arg-type]

    def distribution(self, context: Tensor) -> SplitCounts:
        """The Pyro distribution of photons (N, D), for contexts (N, C + 3)."""
        return SplitCounts(self, context)


class SplitCounts(TorchDistribution):
    """Photons in D fibres that add up to a photon sum, as a distribution of Pyro's.

    ``log_prob`` is the exact discrete log-likelihood; ``sample`` carries no gradient.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch names it
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, flow: SplittingFlow, context: Tensor) -> None:
        self.flow, self.context = flow, context
        super().__init__(torch.Size(context.shape[:1]), torch.Size([flow.dim]), False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        r"""(\*sample_shape, N, D) int64."""
        shape = torch.Size(sample_shape)
        context = self.context.expand(*shape, *self.context.shape).flatten(0, -2)
        return self.flow.sample(context).view(*shape, len(self.context), self.flow.dim)

    def log_prob(self, value: Tensor) -> Tensor:
        """(..., N) nats, of values (..., N, D)."""
        shape = value.shape[:-1]
        context = self.context.expand(*shape, self.context.shape[-1]).flatten(0, -2)
        return self.flow.log_prob(value.reshape(-1, self.flow.dim), context).view(shape)
