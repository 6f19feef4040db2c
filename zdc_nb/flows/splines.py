r"""Monotonic rational-quadratic splines (Durkan et al. 2019, arXiv:1906.04032).

A spline of K bins maps [-B, B] to itself and is the identity outside. Its 3K - 1 unnormalised
parameters are K widths and K heights (softmax, at least 1e-3 of the whole each) and K - 1 inner
derivatives (softplus, at least 1e-3); the derivative at both ends is 0.999. These are Pyro's
conventions for ``order="quadratic"``, so that weights are interchangeable.

In a bin from (x_0, y_0) of width w, height h, slope s = h / w and end derivatives d_0, d_1, with
t = (x - x_0) / w and u = t (1 - t):

.. math::

    y = y_0 + h \frac{s t^2 + d_0 u}{s + (d_0 + d_1 - 2 s) u}, \qquad
    y' = \frac{s^2 (d_1 t^2 + 2 s u + d_0 (1 - t)^2)}{(s + (d_0 + d_1 - 2 s) u)^2}.

Parameters are (A, 3K - 1, B) for values (A, B): (dimensions, parameters, samples) in the flows,
(samples, parameters, dimensions) in Pyro. Values, log-derivatives and gradients are computed in
one pass over the parameters, by :mod:`zdc_nb.flows.splines_cpu` on a CPU and by
:mod:`zdc_nb.flows.splines_triton` on a GPU; :func:`rational_quadratic_spline` with
``engine="plain"`` is the definition in plain torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from zdc_nb.flows import splines_triton as kernels_cuda
from zdc_nb.flows.splines_cpu import IDENTITY_DERIVATIVE, MIN_FRACTION, spline_kernels

__all__ = [
    "IDENTITY_DERIVATIVE",
    "MIN_FRACTION",
    "Panel",
    "evaluate_splines",
    "fill_gradients",
    "rational_quadratic_spline",
    "solve_panel",
]


def rational_quadratic_spline(
    inputs: Tensor,
    parameters: Tensor,
    bound: float,
    *,
    inverse: bool = False,
    engine: str = "fused",
) -> tuple[Tensor, Tensor]:
    """Apply a spline, or its inverse, to each element.

    Parameters
    ----------
    inputs
        (A, B).
    parameters
        (A, 3K - 1, B) unnormalised: widths, heights, inner derivatives.
    bound
        limit B of the splines; outside [-B, B] they are the identity.
    engine
        ``"fused"``: one compiled pass where there is one (CPU; CUDA with Triton), else as
        ``"plain"``; ``"plain"``: plain torch, on any device.

    Returns
    -------
    outputs, log_derivative
        (A, B) each; the logarithm of the derivative of the map that was applied.

    Raises
    ------
    ValueError
        where shapes or precisions do not go together.

    Examples
    --------
    >>> inputs = torch.linspace(-4, 4, 12).reshape(3, 4)
    >>> parameters = torch.linspace(-1, 1, 3 * 11 * 4).reshape(3, 11, 4)  # 4 bins
    >>> outputs, log_derivative = rational_quadratic_spline(inputs, parameters, bound=5.0)
    >>> back, _ = rational_quadratic_spline(outputs, parameters, bound=5.0, inverse=True)
    >>> torch.allclose(back, inputs, atol=1e-5)
    True
    """
    rows, _, width = parameters.shape
    fits = parameters.dtype in {inputs.dtype, torch.bfloat16}
    if (
        inputs.shape != (rows, width)
        or inputs.dtype not in {torch.float32, torch.float64}
        or not fits
    ):
        raise ValueError(
            "expected inputs (A, B) in float32 or float64 and parameters (A, 3K - 1, B) in the same "
            f"precision or bfloat16, got {tuple(inputs.shape)} {inputs.dtype} and "
            f"{tuple(parameters.shape)} {parameters.dtype}"
        )
    if engine == "plain":
        return _plain_spline(inputs, parameters, bound, inverse)
    return _FusedSpline.apply(inputs, parameters, bound, inverse)  # type: ignore[no-any-return, no-untyped-call]


def _plain_spline(
    inputs: Tensor, parameters: Tensor, bound: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The formulas at the top of this module, one operation after the other."""
    bins = (parameters.shape[-2] + 1) // 3
    widths, heights, raw = parameters.split([bins, bins, bins - 1], dim=-2)
    end = torch.full_like(inputs, bound).unsqueeze(-2)

    def knots(sizes: Tensor) -> Tensor:
        shares = MIN_FRACTION + (1 - bins * MIN_FRACTION) * torch.softmax(sizes, dim=-2)
        return torch.cat([-end, bound * (2 * shares.cumsum(-2)[:, :-1] - 1), end], dim=-2)

    abscissae, ordinates = knots(widths), knots(heights)
    last = torch.full_like(end, 1 - MIN_FRACTION)
    derivatives = torch.cat([last, MIN_FRACTION + softplus(raw), last], dim=-2)

    outside = inputs.abs() > bound
    values = torch.where(outside, torch.zeros_like(inputs), inputs)
    inner = (ordinates if inverse else abscissae)[:, 1:-1]
    here = (values.unsqueeze(-2) >= inner).sum(-2, keepdim=True)

    def at(table: Tensor, step: int = 0) -> Tensor:
        return table.gather(-2, here + step).squeeze(-2)

    x0, y0, d0, d1 = at(abscissae), at(ordinates), at(derivatives), at(derivatives, 1)
    width, height = at(abscissae, 1) - x0, at(ordinates, 1) - y0
    slope = height / width
    curve = d0 + d1 - 2 * slope
    if inverse:
        rise = values - y0
        a = rise * curve + height * (slope - d0)
        b = height * d0 - rise * curve
        c = -slope * rise
        # rounding may take it below zero at a knot; NaN stays NaN
        root = (b * b - 4 * a * c).clamp(min=0).sqrt()
        # of the two forms of the root, the one without a difference of nearly equal numbers
        t = torch.where(b < 0, root - b, 2 * c) / torch.where(b < 0, 2 * a, -b - root)
    else:
        t = (values - x0) / width
    u = t * (1 - t)
    den = slope + curve * u
    numerator = slope * slope * (d1 * t * t + 2 * slope * u + d0 * (1 - t) * (1 - t))
    logs = numerator.log() - 2 * den.log()
    image = t * width + x0 if inverse else y0 + height * (slope * t * t + d0 * u) / den
    zero = torch.zeros_like(logs)
    return (
        torch.where(outside, inputs, image),
        torch.where(outside, zero, -logs if inverse else logs),
    )


class _FusedSpline(torch.autograd.Function):
    """Keeps inputs, outputs and parameters only; the backward pass computes the rest again."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, parameters: Tensor, bound: float, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        inputs, parameters = inputs.contiguous(), parameters.contiguous()
        outputs, log_derivative = torch.empty_like(inputs), torch.empty_like(inputs)
        evaluate_splines(inputs, parameters, bound, inverse, outputs, log_derivative)
        ctx.save_for_backward(inputs, parameters, outputs)
        ctx.bound, ctx.inverse = bound, inverse
        return outputs, log_derivative

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_outputs: Tensor, grad_log_derivative: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        inputs, parameters, outputs = ctx.saved_tensors
        grad_inputs, grad_parameters = torch.empty_like(inputs), torch.empty_like(parameters)
        fill_gradients(
            inputs,
            outputs,
            parameters,
            ctx.bound,
            ctx.inverse,
            grad_outputs.contiguous(),
            grad_log_derivative.contiguous(),
            grad_inputs,
            grad_parameters,
        )
        return grad_inputs, grad_parameters, None, None


# --- Without autograd: what the flows' own passes call ------------------------------------------
#
# All tensors are contiguous. Parameters and their gradients may be bfloat16.


def _array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory; numpy has no bfloat16, so its bits."""
    tensor = tensor.detach()
    assert tensor.is_contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _bins(parameters: Tensor) -> int:
    return (parameters.shape[1] + 1) // 3


def evaluate_splines(
    inputs: Tensor,
    parameters: Tensor,
    bound: float,
    inverse: bool,
    outputs: Tensor,
    log_derivative: Tensor,
) -> None:
    """Fill ``outputs`` and ``log_derivative`` (A, B), see :func:`rational_quadratic_spline`."""
    if inputs.device.type == "cpu":
        spline_kernels(_bins(parameters), inverse).evaluate(
            _array(inputs), _array(parameters), bound, _array(outputs), _array(log_derivative)
        )
    elif kernels_cuda.available() and inputs.is_cuda:
        kernels_cuda.evaluate(inputs, parameters, bound, inverse, outputs, log_derivative)
    else:
        y, logs = _plain_spline(inputs, parameters.to(inputs.dtype), bound, inverse)
        outputs.copy_(y)
        log_derivative.copy_(logs)


def fill_gradients(
    inputs: Tensor,
    outputs: Tensor,
    parameters: Tensor,
    bound: float,
    inverse: bool,
    grad_outputs: Tensor,
    grad_log_derivative: Tensor,
    grad_inputs: Tensor,
    grad_parameters: Tensor,
) -> None:
    """Fill the last two from what :func:`evaluate_splines` took and gave, and its gradients."""
    if inputs.device.type == "cpu":
        spline_kernels(_bins(parameters), inverse).differentiate(
            _array(inputs),
            _array(outputs),
            _array(parameters),
            bound,
            _array(grad_outputs),
            _array(grad_log_derivative),
            _array(grad_inputs),
            _array(grad_parameters),
        )
    elif kernels_cuda.available() and inputs.is_cuda:
        kernels_cuda.differentiate(
            inputs,
            outputs,
            parameters,
            bound,
            inverse,
            grad_outputs,
            grad_log_derivative,
            grad_inputs,
            grad_parameters,
        )
    else:
        with torch.enable_grad():
            leaves = inputs.detach().requires_grad_(), parameters.detach().requires_grad_()
            results = _plain_spline(leaves[0], leaves[1].to(inputs.dtype), bound, inverse)
        gradients = torch.autograd.grad(results, leaves, (grad_outputs, grad_log_derivative))
        grad_inputs.copy_(gradients[0])
        grad_parameters.copy_(gradients[1])


class Panel(NamedTuple):
    """T dimensions of an autoregressive block that are inverted together, for N samples.

    Attributes
    ----------
    sums
        (L, U, N) pre-activations of the U hidden units of each of L layers that lie among these
        dimensions, with all that lies before them; overwritten.
    base
        (T, 3K - 1, N) the same for the spline parameters.
    outputs
        (T, N) what is known.
    first, blocks, last
        weights within the panel: (U, T), (L - 1, U, U) and (T (3K - 1), U). Only ``last`` may be
        a strided view.
    counts
        (T,) int64, how many of the units, sorted by degree, each dimension sees.
    location, scale
        (T,) the standardisation of the network's inputs.
    inputs, log_derivative, hidden
        (T, N), (T, N) and (L, U, N): filled with the solution, the log-derivative of the spline
        that was applied, and the units' activations.
    """

    sums: Tensor
    base: Tensor
    outputs: Tensor
    first: Tensor
    blocks: Tensor
    last: Tensor
    counts: Tensor
    location: Tensor
    scale: Tensor
    inputs: Tensor
    log_derivative: Tensor
    hidden: Tensor


def solve_panel(panel: Panel, bound: float, inverse: bool) -> None:
    """Invert a panel, dimension by dimension for each sample; it is filled with the solution.

    ``inverse`` tells whether the spline from ``outputs`` to ``inputs`` is the inverse one.
    """
    sums, base, outputs, first, blocks, last, counts, location, scale = panel[:9]
    inputs, log_derivative, hidden = panel[9:]
    if outputs.device.type == "cpu":
        # the kernel walks along the rows of the flat weights in which ``last`` is a view
        span = (last.shape[0] - 1) * last.stride(0) + last.shape[1]
        flat = last.detach().as_strided((max(span, 0),), (1,))
        spline_kernels(_bins(base), inverse).solve_panel(
            *map(_array, (sums, base, outputs, first, blocks, flat)),
            0,
            last.stride(0),
            *map(_array, (counts, location, scale)),
            bound,
            *map(_array, (inputs, log_derivative, hidden)),
        )
    elif kernels_cuda.available() and outputs.is_cuda:
        within = list(blocks[: len(sums) - 1])
        rows = last.unflatten(0, base.shape[:2])
        seen = counts.to(device=outputs.device, dtype=torch.int32)
        kernels_cuda.solve_panel(
            sums, base, outputs, first, within, rows, seen, location, scale, bound, inverse,
            inputs, log_derivative, hidden,
        )  # fmt: skip
    else:
        _plain_solve_panel(panel, bound, inverse)


def _plain_solve_panel(panel: Panel, bound: float, inverse: bool) -> None:
    """The same in plain torch, for devices without a kernel."""
    sums, hidden = panel.sums, panel.hidden
    rows = panel.last.unflatten(0, panel.base.shape[:2])
    done = 0
    for t, final in enumerate(panel.counts.tolist()):
        for layer in range(len(sums)):
            new = sums[layer, done:final]
            if layer > 0:
                within = panel.blocks[layer - 1, done:final, :final]
                new = new + within @ hidden[layer - 1, :final]
            hidden[layer, done:final] = torch.relu(new)
        done = final
        parameters = panel.base[t] + rows[t, :, :final] @ hidden[-1, :final]
        x, logs = _plain_spline(panel.outputs[t : t + 1], parameters[None], bound, inverse)
        panel.inputs[t], panel.log_derivative[t] = x[0], logs[0]
        standard = (x[0] - panel.location[t]) / panel.scale[t]
        sums[0, done:] += panel.first[done:, t, None] * standard
