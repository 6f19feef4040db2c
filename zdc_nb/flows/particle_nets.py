r"""What the particle alone tells: whether it sends light, and how many photons.

The photon sum N of a particle is a mixture of K logistic distributions of its logarithm, cut into
whole numbers and at the least photon sum :math:`n_0` of a study:

.. math::

    F(N) = \sum_k w_k\, \sigma\left(\frac{\log(N + 1) - m_k}{s_k}\right), \qquad
    P(N) = \frac{F(N) - F(N - 1)}{1 - F(n_0 - 1)}, \quad N \ge n_0,

with the logistic function :math:`\sigma`; w, m and s are what a network says of the particle. Its
likelihood is exact. Showers give a narrow peak, what leaks at the edge of the face and what is lost
on the way a broad one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional

__all__ = ["LARGEST_SUM", "LEAST_SCALE", "PhotonSum", "PhotonSumNetwork", "SignalNetwork"]

LARGEST_SUM = 2**16 - 1
"""Photons that a response can have: as many as the split coordinates can tell apart."""

LEAST_SCALE = 0.005
"""Of a component, in the logarithm of N: a Poisson number of 10^4 is wider."""

_TAIL = 2.0**-40
"""Random numbers stay this far from 0 and 1, whose logits are infinite."""


def _perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(inputs, units), nn.ReLU()]
        inputs = units
    last = nn.Linear(inputs, outputs)
    nn.init.normal_(last.weight, std=1e-2)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class SignalNetwork(nn.Module):
    """Probability that a particle sends at least as much light as a study keeps.

    ``context`` numbers are known of a particle; ``hidden`` are the widths of the layers.
    """

    def __init__(self, context: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = _perceptron(context, hidden, 1)

    def forward(self, context: Tensor) -> Tensor:
        """(N,) logits, of contexts (N, C)."""
        logits: Tensor = self.layers(context)[:, 0]
        return logits


class PhotonSumNetwork(nn.Module):
    """The distribution of the photon sum, given the particle.

    Parameters
    ----------
    context
        numbers that are known of a particle.
    hidden
        widths of the layers.
    components
        K of the mixture.
    least
        the least photon sum.

    Examples
    --------
    >>> network = PhotonSumNetwork(5, [8], components=3, least=10)
    >>> network.start_from(torch.tensor([12.0, 40.0, 90.0, 300.0]))
    >>> photon_sum = network.distribution(torch.zeros(2, 5))
    >>> every = torch.arange(10, 65536).expand(2, -1)
    >>> photon_sum.log_prob(every.T).exp().sum(0)
    tensor([1.0000, 1.0000], dtype=torch.float64, grad_fn=<SumBackward1>)
    """

    def __init__(self, context: int, hidden: Sequence[int], components: int, least: int) -> None:
        super().__init__()
        self.components, self.least = components, least
        self.layers = _perceptron(context, hidden, 3 * components)

    @torch.no_grad()
    def start_from(self, photon_sum: Tensor) -> None:
        """Spread the components over the photon sums (N,) that are learned from."""
        levels = (torch.arange(self.components) + 0.5) / self.components
        centres = torch.quantile(photon_sum.to(torch.float32).log(), levels)
        bias = self.layers[-1].bias
        assert isinstance(bias, Tensor)
        bias[self.components : 2 * self.components] = centres
        bias[2 * self.components :] = -1.0

    def distribution(self, context: Tensor) -> PhotonSum:
        """The distribution, of contexts (N, C)."""
        raw: Tensor = self.layers(context)
        # the tails ask for more digits than the network's
        logits, centres, scales = raw.to(torch.float64).chunk(3, dim=1)
        return PhotonSum(logits, centres, LEAST_SCALE + functional.softplus(scales), self.least)


class PhotonSum(TorchDistribution):
    """The distribution at the top of this module, as one of Pyro's.

    Parameters
    ----------
    logits, centres, scales
        (N, K) of the weights w, and m and s of each component.
    least
        the least photon sum.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch names it

    def __init__(self, logits: Tensor, centres: Tensor, scales: Tensor, least: int) -> None:
        self.log_weights = torch.log_softmax(logits, dim=1)
        self.centres, self.scales, self.least = centres, scales, least
        super().__init__(torch.Size(logits.shape[:1]), torch.Size(), False)

    @property
    def support(self) -> constraints.Constraint:
        """Whole numbers from the least photon sum on."""
        return constraints.integer_interval(self.least, LARGEST_SUM)

    def _edge(self, count: Tensor) -> Tensor:
        """(..., N, K) argument of the logistic function where the counts below ``count`` end."""
        logarithm = torch.log(count.to(torch.float64))[..., None]
        return (logarithm - self.centres) / self.scales

    def _log_above(self) -> Tensor:
        """(N, K) log of weight times what each component has from the least sum on."""
        least = torch.full_like(self.centres[:, 0], self.least)
        return self.log_weights + functional.logsigmoid(-self._edge(least))

    def log_prob(self, value: Tensor) -> Tensor:
        """(..., N) exact log P in nats, of counts (..., N); -infinity below the least."""
        lower, upper = self._edge(value.clamp(min=self.least)), self._edge(value + 1)
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b))
        step = (lower - upper).clamp(max=-1e-12)
        share = functional.logsigmoid(upper) + functional.logsigmoid(-lower)
        share = share + torch.log(-torch.expm1(step)) + self.log_weights
        found = share.logsumexp(-1) - self._log_above().logsumexp(-1)
        return found.masked_fill(value < self.least, -torch.inf)

    def cdf(self, value: Tensor) -> Tensor:
        """(..., N) probability of at most so many photons, of counts (..., N)."""
        above = (self.log_weights + functional.logsigmoid(-self._edge(value + 1))).logsumexp(-1)
        found = 1 - torch.exp(above - self._log_above().logsumexp(-1))
        return torch.where(value < self.least, 0.0, found)

    @torch.no_grad()
    def quantile(self, level: Tensor) -> Tensor:
        """(..., N) int64 least counts whose :meth:`cdf` reaches levels (..., N) in (0, 1)."""
        low = torch.full(level.shape, self.least - 1, device=self.centres.device)
        high = torch.full_like(low, LARGEST_SUM)
        while bool((high - low > 1).any()):
            middle = (low + high) // 2
            enough = self.cdf(middle) >= level
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return high

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        r"""(\*sample_shape, N) int64 counts."""
        shape = (*torch.Size(sample_shape), len(self.centres))
        component, place = torch.rand(2, *shape, device=self.centres.device, dtype=torch.float64)
        return self.from_uniform(component, place)

    @torch.no_grad()
    def from_uniform(self, component: Tensor, place: Tensor) -> Tensor:
        """(..., N) int64 counts from two random numbers in (0, 1) for each, (..., N).

        The first picks the component, the second the place in it: exact, also at the least sum.
        """
        reached = torch.softmax(self._log_above(), 1).cumsum(1)
        k = (reached <= component[..., None]).sum(-1).clamp(max=reached.shape[1] - 1)
        rows = torch.arange(len(reached), device=k.device).expand(k.shape)
        centre, scale = self.centres[rows, k], self.scales[rows, k]
        below = torch.sigmoid(-(centre - torch.log(centre.new_tensor(float(self.least)))) / scale)
        u = below + (1 - below) * place.to(torch.float64).clamp(_TAIL, 1 - _TAIL)
        logarithm = centre + scale * torch.logit(u.clamp(max=1 - 2.0**-53))
        counts = torch.exp(logarithm.clamp(max=12.0)).floor().to(torch.int64)
        return counts.clamp(self.least, LARGEST_SUM)
