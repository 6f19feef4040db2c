"""The masked network that makes a flow autoregressive (Germain et al. 2015, arXiv:1502.03509).

Units are sorted by degree, so that every weight matrix is block lower-triangular. Only its lower
triangle is stored and multiplied, in panels of rows: the rows of a panel see the columns up to the
panel's highest degree. A dense product with a mask would do twice the work and hold twice the
weights, gradients and optimiser states.

Inside the package activations are (features, N), samples last: a panel's inputs and outputs are
then contiguous rows, and neighbouring samples fill a vector register in the splines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from zdc_nb.hardware import has_bfloat16

__all__ = [
    "Made",
    "RoundedCopy",
    "TriangularLinear",
    "add_product",
    "hidden_degrees",
    "multiply_into",
]

PANEL = 64
"""Dimensions of a panel of the output layer and of the inversion, if not told otherwise."""

# Hidden layers are small: with panels as narrow, products would be too thin to be fast.
_HIDDEN_PANELS = 4


def hidden_degrees(dim: int, hidden: int) -> NDArray[np.int64]:
    """(hidden,) sorted degrees, spread evenly over 0 .. dim - 1.

    A unit of degree g sees the condition and the first g dimensions. Even spreading keeps every
    output connected to its predecessors at widths below ``dim`` too; degrees counted 1, 2, ...
    as in most implementations would leave all dimensions past the width blind to each other.

    Examples
    --------
    >>> hidden_degrees(dim=7, hidden=4).tolist()
    [0, 2, 4, 6]
    """
    return np.round(np.linspace(0, dim - 1, hidden)).astype(np.int64)


@dataclass(frozen=True)
class _Panel:
    """Rows that are multiplied together, with all columns that any of them sees."""

    rows: slice
    columns: int
    start: int
    """Where its weights begin in the layer's flat parameter."""
    shared: int
    """The first so many columns are seen by all rows; in the others some weights are zero."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns

    def of(self, flat: Tensor) -> Tensor:
        """The panel's (rows, columns) of a layer's flat weights, a view."""
        rows, columns = self.shape
        return flat[self.start : self.start + rows * columns].view(rows, columns)


class RoundedCopy:
    """A weight in another precision, always rounded into the same memory.

    The copy of a weight that is being trained is made again at every call: fused optimisers do not
    count up a tensor's version. The copy of a frozen one is kept until its version changes.
    """

    def __init__(self) -> None:
        self._state: object = None
        self._copy = torch.empty(0)

    def __call__(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight itself if it has this precision, else its copy."""
        if weight.dtype == dtype:
            return weight.detach()
        # what is copied while a weight is trained says nothing about what it is once frozen
        frozen = not (weight.requires_grad or weight.is_inference())
        state = (weight._version, weight.data_ptr(), dtype) if frozen else None
        if state is None or self._state != state:
            kept = self._copy.shape == weight.shape and self._copy.device == weight.device
            # memory that inference mode had made could not be written to outside of it
            with torch.inference_mode(False), torch.no_grad():
                if not (kept and self._copy.dtype == dtype):
                    self._copy = torch.empty_like(weight, dtype=dtype, requires_grad=False)
                self._copy.copy_(weight)
            self._state = state
        return self._copy

    def __deepcopy__(self, memo: object) -> RoundedCopy:
        """A copy of the weight makes its own."""
        return RoundedCopy()


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out += a @ b``; the sum is in the precision of ``out``, also where that of ``a`` is lower."""
    if out.dtype == a.dtype:
        out.addmm_(a, b)
    else:
        out += a @ b


def multiply_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out = a @ b``, also where ``out`` has another precision."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _mask_what_was_loaded(layer: TriangularLinear, _: object) -> None:
    layer.apply_mask()


class TriangularLinear(nn.Module):
    """A linear layer in which row i sees column j where ``rows[i] >= columns[j]``.

    The weights are one flat parameter, panel after panel. Within a panel a few weights lie above
    the diagonal: they are zero from the start, also after loading, and so are their gradients,
    so that no optimiser moves them. Whoever writes to the weights calls :meth:`apply_mask`.

    Parameters
    ----------
    rows, columns
        sorted degrees of the outputs and the inputs.
    cuts
        ascending degrees at which panels begin; the first is 0.
    """

    def __init__(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], cuts: Sequence[int]
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = len(columns), len(rows)
        self._row_degrees, self._column_degrees = rows, columns
        self.panels: list[_Panel] = []
        start = 0
        for low, high in pairwise((*cuts, int(rows[-1]) + 1)):
            first, stop = (int(i) for i in np.searchsorted(rows, (low, high)))
            if first == stop:
                continue
            shared, seen = (
                int(i) for i in np.searchsorted(columns, rows[[first, stop - 1]], side="right")
            )
            self.panels.append(_Panel(slice(first, stop), seen, start, shared))
            start += (stop - first) * seen
        for i, panel in enumerate(self.panels):
            edge = rows[panel.rows, None] >= columns[panel.shared : panel.columns]
            self.register_buffer(f"_edge_{i}", torch.from_numpy(edge), persistent=False)
        # as torch's own linear layer begins
        reach = self.in_features**-0.5 if self.in_features else 0.0
        self.weight = nn.Parameter(torch.empty(start).uniform_(-reach, reach))
        self.bias = nn.Parameter(torch.empty(len(rows)).uniform_(-reach, reach))
        self._rounded = RoundedCopy()
        self.register_load_state_dict_post_hook(_mask_what_was_loaded)  # type: ignore[no-untyped-call]
        self.apply_mask()

    @torch.no_grad()
    def apply_mask(self) -> None:
        """Set the weights above the diagonal to zero."""
        self.mask_edges(self.weight)

    def mask_edges(self, flat: Tensor) -> None:
        """Zero what lies above the diagonal in flat weights or gradients, in place."""
        for i, panel in enumerate(self.panels):
            panel.of(flat)[:, panel.shared :].mul_(self.get_buffer(f"_edge_{i}"))

    def mask(self) -> Tensor:
        """(outputs, inputs) bool, which weights there are."""
        return torch.from_numpy(self._row_degrees[:, None] >= self._column_degrees)

    def dense(self) -> Tensor:
        """(outputs, inputs) weights with their zeros, differentiable."""
        rows = [
            functional.pad(panel.of(self.weight), (0, self.in_features - panel.columns))
            for panel in self.panels
        ]
        # the product keeps gradients off the weights above the diagonal
        return torch.cat(rows) * self.mask().to(self.weight.device)

    @torch.no_grad()
    def copy_dense(self, weight: Tensor) -> None:
        """Take the weights from a dense matrix (outputs, inputs)."""
        for panel in self.panels:
            panel.of(self.weight).copy_(weight[panel.rows, : panel.columns])
        self.apply_mask()

    def part(self, rows: slice, columns: int) -> Tensor:
        """(rows, columns) of the weights, a view; the rows must lie in one panel."""
        for panel in self.panels:
            if panel.rows.start <= rows.start and rows.stop <= panel.rows.stop:
                inside = slice(rows.start - panel.rows.start, rows.stop - panel.rows.start)
                return panel.of(self.weight)[inside, :columns]
        raise IndexError(f"{rows} is not within one panel of {self.panels}")

    def products(self, x: Tensor) -> Iterator[tuple[_Panel, Tensor, Tensor]]:
        """Panels with their weights and the part of the input (inputs, N) that they see."""
        flat = self._rounded(self.weight, x.dtype)
        for panel in self.panels:
            yield panel, panel.of(flat), x[: panel.columns]

    def forward(self, x: Tensor) -> Tensor:
        """(outputs, N) for ``x`` (inputs, N), in the precision of ``x``."""
        return _TriangularProduct.apply(x, self.weight, self.bias, self)  # type: ignore[no-any-return, no-untyped-call]


class _TriangularProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: TriangularLinear) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        y = x.new_empty(layer.out_features, x.shape[1])
        shift = bias.to(x.dtype)[:, None]
        for panel, matrix, seen in layer.products(x):
            # not ``addmm``, which writes the broadcast bias to memory first
            torch.mm(matrix, seen, out=y[panel.rows]).add_(shift[panel.rows])
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        layer = ctx.layer
        want_x, want_weight, want_bias, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_x = torch.zeros_like(x, dtype=weight.dtype) if want_x else None
        grad_weight = torch.empty_like(weight) if want_weight else None
        for panel, matrix, seen in layer.products(x):
            if grad_x is not None:
                add_product(grad_x[: panel.columns], matrix.T, grad[panel.rows])
            if grad_weight is not None:
                multiply_into(panel.of(grad_weight), grad[panel.rows], seen.T)
        if grad_weight is not None:
            layer.mask_edges(grad_weight)
        grad_bias = grad.sum(1, dtype=weight.dtype) if want_bias else None
        return None if grad_x is None else grad_x.to(x.dtype), grad_weight, grad_bias, None


class Made(nn.Module):
    """Spline parameters of each dimension from its predecessors and the condition.

    Layers: condition and input -> hidden, ``hidden_layers`` times hidden -> hidden, hidden -> output;
    ReLU and dropout after every hidden layer. The output's rows are dimension-major, (D, 3K - 1).
    As a module it has the calling convention of Pyro's ``ConditionalAutoRegressiveNN`` with the
    identity permutation, so that it serves as the network of Pyro's own transforms;
    :meth:`dense_weights` gives the weights for Pyro's network.

    A condition reaches early dimensions through the few hidden units of low degree only. The
    optional context network (condition -> ``context_hidden`` -> all parameters, unmasked) is
    added to the output; its last layer starts from zero.

    Parameters
    ----------
    dim, context
        dimensions D of the input and C of the condition.
    bins
        K of the splines, which have P = 3K - 1 parameters.
    hidden, hidden_layers, dropout, context_hidden, precision
        see :class:`zdc_nb.params.FlowParams`.
    panel
        dimensions of a panel.
    """

    location: Tensor
    scale: Tensor

    def __init__(
        self,
        dim: int,
        context: int,
        bins: int,
        hidden: int,
        hidden_layers: int,
        dropout: float = 0.0,
        context_hidden: Sequence[int] = (),
        precision: str = "float32",
        panel: int = PANEL,
    ) -> None:
        super().__init__()
        self.dim, self.context, self.bins, self.panel = dim, context, bins, panel
        self.outputs_per_dim = 3 * bins - 1
        self.precision = precision
        self.degrees = hidden_degrees(dim, hidden)
        inputs = np.concatenate([np.zeros(context, np.int64), np.arange(1, dim + 1)])
        outputs = np.repeat(np.arange(dim), self.outputs_per_dim)
        cuts, hidden_cuts = range(0, dim, panel), range(0, dim, _HIDDEN_PANELS * panel)
        self.first = TriangularLinear(self.degrees, inputs, hidden_cuts)
        self.between = nn.ModuleList(
            TriangularLinear(self.degrees, self.degrees, hidden_cuts) for _ in range(hidden_layers)
        )
        self.last = TriangularLinear(outputs, self.degrees, cuts)
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
        self.rounded_context = RoundedCopy()

    @property
    def hidden_layers(self) -> list[TriangularLinear]:
        """The layers that a ReLU follows."""
        return [self.first, *self.between]

    # --- the fast path's pieces: samples last ---

    def hidden_units(self, x: Tensor, context: Tensor) -> Tensor:
        """(H, R * N) activations of the last hidden layer, for x (D, R * N) and context (N, C)."""
        repeats = x.shape[1] // max(len(context), 1)
        standard = (x - self.location[:, None]) / self.scale[:, None]
        h = torch.cat([context.T.repeat(1, repeats), standard]).to(self.working_type(x))
        for layer in self.hidden_layers:
            h = self.dropout(torch.relu(layer(h)))
        return h

    def context_units(self, context: Tensor) -> tuple[Tensor, Tensor] | None:
        """The context network's last hidden layer (H', N) and output weights (D * P, H')."""
        if self.context_network is None:
            return None
        *layers, final = self.context_network
        for layer in layers:
            context = layer(context)
        assert isinstance(final, nn.Linear)
        return context.T, final.weight

    def working_type(self, x: Tensor) -> torch.dtype:
        """The precision of the matrix products for inputs x."""
        rounded = self.precision == "bfloat16" or (
            self.precision == "auto" and has_bfloat16(x.device.type)
        )
        return torch.bfloat16 if rounded else x.dtype

    # --- the plain path, for comparison and for Pyro: samples first ---

    def spline_parameters(self, x: Tensor, context: Tensor) -> Tensor:
        """(R * N, P, D) spline parameters for inputs (R * N, D) and conditions (N, C).

        Row i of the input belongs to condition i modulo N. This is the definition: dense products
        of masked weights, one operation after the other.
        """
        repeats = len(x) // max(len(context), 1)
        h = torch.cat([context.repeat(repeats, 1), (x - self.location) / self.scale], dim=-1)
        for layer in self.hidden_layers:
            h = self.dropout(torch.relu(functional.linear(h, layer.dense(), layer.bias)))
        out = functional.linear(h, self.last.dense(), self.last.bias)
        if self.context_network is not None:
            out = out + self.context_network(context).repeat(repeats, 1)
        return out.view(len(x), self.dim, self.outputs_per_dim).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Widths (N, K, D), heights (N, K, D) and derivatives (N, K - 1, D), as Pyro wants them."""
        context = context.expand(*x.shape[:-1], context.shape[-1])
        rows = self.spline_parameters(x.reshape(-1, self.dim), context.reshape(-1, self.context))
        widths, heights, derivatives = rows.reshape(
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

    def dense_weights(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Weight (outputs, inputs), bias and mask of each layer, laid out as Pyro's network has it.

        The first layer's inputs are the condition, then the dimensions; the last layer's outputs
        are parameter-major, (3K - 1, D). The input's standardisation is folded into the first
        layer. The context network, which Pyro's has not, is left out.
        """
        layers = [
            (layer.dense().detach(), layer.bias.detach(), layer.mask().to(layer.weight.device))
            for layer in (*self.hidden_layers, self.last)
        ]
        first, shift, seen = layers[0]
        columns = first[:, self.context :] / self.scale
        first = torch.cat([first[:, : self.context], columns], dim=1)
        layers[0] = first, shift - columns @ self.location, seen
        weight, bias, mask = (
            t.unflatten(0, (self.dim, self.outputs_per_dim)).transpose(0, 1).flatten(0, 1)
            for t in layers[-1]
        )
        return [*layers[:-1], (weight, bias, mask)]

    @torch.no_grad()
    def solve(self, context: Tensor, step: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """Find the x (N, D) with ``x[:, s] = step(s, spline_parameters(x, context)[:, :, s])``.

        The plain inversion: dimension by dimension, a whole pass each. Costs D passes.
        """
        x = context.new_zeros(len(context), self.dim)
        for d in range(self.dim):
            here = slice(d, d + 1)
            x[:, here] = step(here, self.spline_parameters(x, context)[:, :, here].contiguous())
        return x
