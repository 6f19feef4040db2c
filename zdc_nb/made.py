"""The masked network that makes a flow autoregressive (Germain et al. 2015, arXiv:1502.03509)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Made", "MaskedLinear", "hidden_degrees"]


def hidden_degrees(dim: int, hidden: int) -> NDArray[np.int64]:
    """(hidden,) sorted degrees, spread evenly over 0 .. dim - 1.

    A unit of degree g sees the condition and the first g dimensions. Even spreading keeps every
    output connected to its predecessors at widths below ``dim`` too; degrees counted 1, 2, ...
    as in most implementations would leave all dimensions past the width blind to each other.
    """
    return np.round(np.linspace(0, dim - 1, hidden)).astype(np.int64)


class MaskedLinear(nn.Linear):
    """A linear layer some of whose weights are zero for good.

    The mask is not applied in a pass: the forbidden weights are zero from the start, also after
    loading, and their gradients are set to zero, so that no optimiser moves them. Whoever writes
    to the weights directly calls :meth:`apply_mask`.

    Parameters
    ----------
    mask
        (outputs, inputs) bool, which weights are allowed.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)
        self.register_load_state_dict_post_hook(lambda layer, _: layer.apply_mask())  # type: ignore[no-untyped-call]
        self.apply_mask()

    @torch.no_grad()
    def apply_mask(self) -> None:
        """Set the forbidden weights to zero."""
        self.weight.mul_(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs) for ``x`` (N, inputs)."""
        return _MaskedProduct.apply(x, self.weight, self.bias, self.mask)  # type: ignore[no-any-return, no-untyped-call]


class _MaskedProduct(torch.autograd.Function):
    """A linear map whose weight's gradient is masked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        want_x, want_weight, want_bias, _ = ctx.needs_input_grad
        return (
            grad @ weight if want_x else None,
            (grad.T @ x).mul_(mask) if want_weight else None,
            grad.sum(0) if want_bias else None,
            None,
        )


class Made(nn.Module):
    """Spline parameters of each dimension from its predecessors and the condition.

    Layers: condition and input -> hidden, ``blocks`` times hidden -> hidden, hidden -> output;
    ReLU and dropout after every hidden layer. Masks and calling convention are those of Pyro's
    ``ConditionalAutoRegressiveNN`` with the identity permutation, so that it serves as the
    network of Pyro's own transforms and weights can be exchanged.

    A condition reaches early dimensions through the few hidden units of low degree only. The
    optional context network (condition -> ``context_hidden`` -> all parameters, unmasked) is
    added to the output; its last layer starts from zero.

    Parameters
    ----------
    dim, context
        dimensions D of the input and C of the condition.
    bins
        K of the splines, which have P = 3K - 1 parameters.
    hidden, blocks, dropout, context_hidden
        see :class:`zdc_nb.params.FlowParams`.
    """

    location: Tensor
    scale: Tensor

    def __init__(
        self,
        dim: int,
        context: int,
        bins: int,
        hidden: int,
        blocks: int,
        dropout: float = 0.0,
        context_hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.dim, self.context, self.bins = dim, context, bins
        self.outputs_per_dim = 3 * bins - 1
        degrees = hidden_degrees(dim, hidden)
        inputs = np.concatenate([np.zeros(context, np.int64), np.arange(1, dim + 1)])
        outputs = np.tile(np.arange(dim), self.outputs_per_dim)
        self._add_layer("first", degrees[:, None] >= inputs)
        for i in range(blocks):
            self._add_layer(f"block_{i}", degrees[:, None] >= degrees)
        self._add_layer("last", outputs[:, None] >= degrees)
        self.hidden_names = ("first", *(f"block_{i}" for i in range(blocks)))
        self.dropout = nn.Dropout(dropout)
        # A fixed standardisation of the input. It could be folded into the first layer's weights,
        # but gradient descent on an input far from zero would be slow.
        self.register_buffer("location", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

        self.context_network: nn.Sequential | None = None
        if context_hidden:
            layers: list[nn.Module] = []
            for a, b in pairwise((context, *context_hidden)):
                layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
            # no bias: the masked output layer has one
            final = nn.Linear(context_hidden[-1], dim * self.outputs_per_dim, bias=False)
            nn.init.zeros_(final.weight)
            self.context_network = nn.Sequential(*layers, final)

        starts = np.unique(degrees)
        ends = np.append(starts[1:], dim)
        units = np.searchsorted(degrees, starts, side="right")
        self._segments = [
            (int(a), int(b), int(k)) for a, b, k in zip(starts, ends, units, strict=True)
        ]

    def _add_layer(self, name: str, mask: NDArray[np.bool_]) -> None:
        self.add_module(name, MaskedLinear(torch.from_numpy(mask)))

    def layer(self, name: str) -> MaskedLinear:
        """The layer ``first``, ``block_i`` or ``last``."""
        layer = self.get_submodule(name)
        assert isinstance(layer, MaskedLinear)
        return layer

    def spline_parameters(self, x: Tensor, context: Tensor) -> Tensor:
        """(R * N, P, D) spline parameters for inputs (R * N, D) and conditions (N, C).

        Row i of the input belongs to condition i modulo N, so that what follows of a condition
        alone is computed once for R inputs.
        """
        repeats = len(x) // len(context)
        h = torch.cat([context.repeat(repeats, 1), (x - self.location) / self.scale], dim=-1)
        for name in self.hidden_names:
            h = self.dropout(torch.relu(self.layer(name)(h)))
        out = self.layer("last")(h)
        if self.context_network is not None:
            own = self.context_network(context)
            out = (out.view(repeats, *own.shape) + own).view_as(out)
        parameters: Tensor = out.view(len(x), self.outputs_per_dim, self.dim)
        return parameters

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Widths (N, K, D), heights (N, K, D) and derivatives (N, K - 1, D), as Pyro wants them."""
        context = context.expand(*x.shape[:-1], context.shape[-1])
        rows = self.spline_parameters(x.reshape(-1, self.dim), context.reshape(-1, self.context))
        widths, heights, derivatives = rows.view(
            *x.shape[:-1], self.outputs_per_dim, self.dim
        ).split([self.bins, self.bins, self.bins - 1], dim=-2)
        return widths, heights, derivatives

    @property
    def permutation(self) -> Tensor:
        """The identity, (D,): dimensions are in autoregressive order."""
        return torch.arange(self.dim)

    def get_permutation(self) -> Tensor:
        """As :attr:`permutation`; Pyro asks for both."""
        return self.permutation

    @torch.no_grad()
    def solve(self, context: Tensor, step: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """Find the x (N, D) with ``x[:, s] = step(s, spline_parameters(x, context)[:, :, s])``.

        A hidden unit of degree g is final as soon as the first g dimensions are known, so each
        unit is computed once, and all dimensions from one degree to the next are solved together.
        The arithmetic is that of one pass.
        """
        if self.training and self.dropout.p > 0:
            raise RuntimeError("a network with dropout is inverted in evaluation mode only")
        n = len(context)
        first, first_bias = self.layer("first").weight, self.layer("first").bias
        blocks = [
            (self.layer(name).weight, self.layer(name).bias) for name in self.hidden_names[1:]
        ]
        by_dimension = (self.outputs_per_dim, self.dim)
        last = self.layer("last").weight.unflatten(0, by_dimension)
        base = self.layer("last").bias.unflatten(0, by_dimension).expand(n, -1, -1)
        if self.context_network is not None:
            base = base + self.context_network(context).view_as(base)
        x = context.new_zeros(n, self.dim)
        inputs = torch.cat([context, x], dim=-1)
        hidden = [context.new_zeros(n, len(first)) for _ in self.hidden_names]
        done = 0
        for start, end, units in self._segments:
            # all of ``new`` have one degree, so nothing within them is masked
            new, seen = slice(done, units), self.context + start
            h = functional.linear(inputs[:, :seen], first[new, :seen], first_bias[new])
            hidden[0][:, new] = torch.relu(h)
            for below, above, (weight, bias) in zip(hidden, hidden[1:], blocks, strict=False):
                h = functional.linear(below[:, :units], weight[new, :units], bias[new])
                above[:, new] = torch.relu(h)
            here = slice(start, end)
            rows = last[:, here, :units].flatten(0, 1)
            p = functional.linear(hidden[-1][:, :units], rows)
            x[:, here] = step(here, p.unflatten(1, (-1, end - start)) + base[:, :, here])
            inputs[:, seen : self.context + end] = (x[:, here] - self.location[here]) / self.scale[
                here
            ]
            done = units
        return x
