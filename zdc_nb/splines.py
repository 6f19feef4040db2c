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

Parameters are laid out as (N, 3K - 1, D), the layout of Pyro's autoregressive networks, so that
neighbouring dimensions lie side by side in memory and one vector instruction serves many of them.
The fused engine computes values, log-derivatives and gradients in one pass over them.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["IDENTITY_DERIVATIVE", "MIN_FRACTION", "rational_quadratic_spline"]

MIN_FRACTION = 1e-3
"""Smallest share of a bin in the width and height, and smallest derivative."""

IDENTITY_DERIVATIVE = math.log(math.expm1(1 - MIN_FRACTION))
"""Unnormalised derivative that stands for 1."""

# Dimensions handled together: wide enough to fill vector registers many times over, small enough
# that the buffers of a tile stay in the first-level cache.
_TILE = 128


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
        (N, D).
    parameters
        (N, 3K - 1, D) unnormalised: widths, heights, inner derivatives.
    bound
        B; outside [-B, B] the spline is the identity.
    engine
        ``"fused"``: one compiled pass where there is one (CPU), else as ``"reference"``;
        ``"reference"``: plain torch, on any device.

    Returns
    -------
    outputs, log_derivative
        (N, D) each; the logarithm of the derivative of the map that was applied.
    """
    if engine == "reference" or inputs.device.type != "cpu":
        return _plain_spline(inputs, parameters, bound, inverse)
    return _FusedSpline.apply(inputs, parameters, bound, inverse)  # type: ignore[no-any-return]


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
        t = 2 * c / (-b - root)
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
        _forward(
            inputs.detach().numpy(),
            parameters.detach().numpy(),
            bound,
            inverse,
            outputs.numpy(),
            log_derivative.numpy(),
        )
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
        _backward(
            inputs.numpy(),
            outputs.numpy(),
            parameters.numpy(),
            ctx.bound,
            ctx.inverse,
            grad_outputs.contiguous().numpy(),
            grad_log_derivative.contiguous().numpy(),
            grad_inputs.numpy(),
            grad_parameters.numpy(),
        )
        return grad_inputs, grad_parameters, None, None


# --- compiled core ------------------------------------------------------------------------------
#
# Every loop below that runs over ``t`` is free of branches and calls and touches contiguous
# one-dimensional arrays only, so that the compiler turns it into vector instructions. No
# reassociation is allowed ("reassoc"), which would spoil the argument reductions of exp and log;
# NaN stays NaN, so that a diverging training is seen.

_JIT: dict[str, Any] = {
    "fastmath": {"contract", "nsz", "arcp"},
    "error_model": "numpy",
    "cache": True,
}

_LOG2E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_SQRT_HALF = np.float32(0.707106781186547524)
_E = [
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
              1.6666665459e-1, 5.0000001201e-1)
]  # fmt: skip
_E0, _E1, _E2, _E3, _E4, _E5 = _E
_L = [
    np.float32(c)
    for c in (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1,
              1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1,
              3.3333331174e-1)
]  # fmt: skip
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = _L


def _exp_all(values, bits):
    """``values[:] = exp(values)``; ``bits`` is an int32 scratch array of the same length."""
    raise NotImplementedError("compiled code only")


def _log_all(values, bits):
    """``values[:] = log(values)`` for positive values."""
    raise NotImplementedError("compiled code only")


@overload(_exp_all, jit_options=_JIT)  # type: ignore[arg-type]
def _exp_all_overload(values, bits):  # noqa: ARG001
    if values.dtype == numba.float32:

        def vectorised(values, bits):
            # Cephes expf: 2^n times a polynomial; 1 ulp.
            low, high = np.float32(-87.0), np.float32(88.0)
            shift, offset = np.float32(128.5), np.int32(128)
            one = np.float32(1.0)
            scale = bits.view(np.float32)
            for t in range(values.size):
                x = min(max(values[t], low), high)
                n = np.int32(x * _LOG2E + shift) - offset
                z = np.float32(n)
                r = (x - z * _LN2_HIGH) - z * _LN2_LOW
                y = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
                # max() and min() above drop NaN; adding the difference brings it back
                values[t] = (y * r * r + r + one) + (values[t] - values[t])
                bits[t] = np.int32((n + np.int32(127)) << np.int32(23))
            for t in range(values.size):
                values[t] *= scale[t]

        return vectorised

    def plain(values, bits):  # noqa: ARG001
        for t in range(values.size):
            values[t] = math.exp(values[t])

    return plain


@overload(_log_all, jit_options=_JIT)  # type: ignore[arg-type]
def _log_all_overload(values, bits):  # noqa: ARG001
    if values.dtype == numba.float32:

        def vectorised(values, bits):
            # Cephes logf.
            one, half = np.float32(1.0), np.float32(0.5)
            source = values.view(np.int32)
            mantissa = bits.view(np.float32)
            for t in range(values.size):
                bits[t] = np.int32((source[t] & np.int32(0x007FFFFF)) | np.int32(0x3F000000))
            for t in range(values.size):
                nan = values[t] - values[t]
                e = np.float32((source[t] >> np.int32(23)) - np.int32(126))
                m = mantissa[t]
                small = m < _SQRT_HALF
                e = e - one if small else e
                x = m + m - one if small else m - one
                z = x * x
                y = (((_L0 * x + _L1) * x + _L2) * x + _L3) * x + _L4
                y = (((y * x + _L5) * x + _L6) * x + _L7) * x + _L8
                y = y * x * z + _LN2_LOW * e - half * z
                values[t] = (x + y) + _LN2_HIGH * e + nan

        return vectorised

    def plain(values, bits):  # noqa: ARG001
        for t in range(values.size):
            values[t] = math.log(values[t])

    return plain


@numba.njit(**_JIT)
def _softmax(raw, first, start, probability, scratch, bits):
    """Softmax over the rows ``first`` to ``first + K`` of ``raw`` into ``probability`` (K, T)."""
    bins = probability.shape[0]
    size = scratch.size
    row = raw[first, start : start + size]
    for t in range(size):
        scratch[t] = row[t]
    for k in range(1, bins):
        row = raw[first + k, start : start + size]
        for t in range(size):
            scratch[t] = max(scratch[t], row[t])
    for k in range(bins):
        row = raw[first + k, start : start + size]
        p = probability[k, :size]
        for t in range(size):
            p[t] = row[t] - scratch[t]
        _exp_all(p, bits)
    p = probability[0]
    for t in range(size):
        scratch[t] = p[t]
    for k in range(1, bins):
        p = probability[k]
        for t in range(size):
            scratch[t] += p[t]
    for t in range(size):
        scratch[t] = scratch.dtype.type(1) / scratch[t]
    for k in range(bins):
        p = probability[k]
        for t in range(size):
            p[t] *= scratch[t]


@numba.njit(**_JIT)
def _softplus(raw, value, scratch, bits):
    """``value = MIN_FRACTION + log(1 + exp(raw))``."""
    one, zero = raw.dtype.type(1), raw.dtype.type(0)
    smallest = raw.dtype.type(MIN_FRACTION)
    for t in range(raw.size):
        scratch[t] = -abs(raw[t])
    _exp_all(scratch, bits)
    for t in range(raw.size):
        value[t] = one + scratch[t]
    _log_all(value, bits)
    for t in range(raw.size):
        value[t] += max(raw[t], zero) + smallest


@numba.njit(**_JIT)
def _select_bins(raw, start, values, by_height, bound, pw, ph, s, b, bits):
    """Find each value's bin and what the spline needs of it.

    ``raw`` (3K - 1, D), of which the columns from ``start`` belong to ``values`` (T,): abscissae,
    or ordinates with ``by_height``. ``pw`` and ``ph`` (K, T) receive the softmaxes; the rows of
    ``s`` receive x_0, w, y_0, h, d_0, d_1 and, for the backward pass, the raw d_0 and d_1; ``b``
    (T,) the bin.
    """
    real = values.dtype.type
    bins, size = pw.shape[0], values.size
    x0, w, y0, h = s[0, :size], s[1, :size], s[2, :size], s[3, :size]
    d0, d1, r0, r1, scratch = s[4, :size], s[5, :size], s[6, :size], s[7, :size], s[8, :size]
    bits = bits[:size]
    _softmax(raw, 0, start, pw, scratch, bits)
    _softmax(raw, bins, start, ph, scratch, bits)

    limit, end = real(bound), real(1 - MIN_FRACTION)
    floor = real(2 * bound * MIN_FRACTION)
    scale = real(2 * bound * (1 - MIN_FRACTION * bins))
    # d_0 and d_1 serve as the running knot until the derivatives are needed
    for t in range(size):
        d0[t] = -limit
        d1[t] = -limit
    for k in range(bins):
        last, first = k == bins - 1, k == 0
        kk = np.int32(k)
        p, g = pw[k, :size], ph[k, :size]
        for t in range(size):
            left, low = d0[t], d1[t]
            # the last knot is the bound to the last digit, whatever the sum's rounding
            width = limit - left if last else floor + scale * p[t]
            height = limit - low if last else floor + scale * g[t]
            knot = low if by_height else left
            here = first | (values[t] >= knot)
            x0[t] = left if here else x0[t]
            w[t] = width if here else w[t]
            y0[t] = low if here else y0[t]
            h[t] = height if here else h[t]
            b[t] = kk if here else b[t]
            d0[t] = left + width
            d1[t] = low + height

    for t in range(size):
        r0[t] = real(0)
        r1[t] = real(0)
    for k in range(bins - 1):
        kk, after = np.int32(k), np.int32(k + 1)
        row = raw[2 * bins + k, start : start + size]
        for t in range(size):
            r0[t] = row[t] if b[t] == after else r0[t]
            r1[t] = row[t] if b[t] == kk else r1[t]
    _softplus(r0, d0, scratch, bits)
    _softplus(r1, d1, scratch, bits)
    kk = np.int32(bins - 1)
    for t in range(size):
        d0[t] = end if b[t] == np.int32(0) else d0[t]
        d1[t] = end if b[t] == kk else d1[t]


@numba.njit(parallel=True, **_JIT)
def _forward(inputs, parameters, bound, inverse, outputs, log_derivative):
    n, dim = inputs.shape
    bins = (parameters.shape[1] + 1) // 3
    real = inputs.dtype.type
    one, two, four, zero = real(1), real(2), real(4), real(0)
    limit = real(bound)
    for i in numba.prange(n):
        pw, ph = np.empty((bins, _TILE), inputs.dtype), np.empty((bins, _TILE), inputs.dtype)
        s = np.empty((9, _TILE), inputs.dtype)
        b, bits = np.empty(_TILE, np.int32), np.empty(_TILE, np.int32)
        for start in range(0, dim, _TILE):
            m = min(_TILE, dim - start)
            v = inputs[i, start : start + m]
            out = outputs[i, start : start + m]
            logs = log_derivative[i, start : start + m]
            _select_bins(parameters[i], start, v, inverse, bound, pw, ph, s, b, bits)
            x0, w, y0, h = s[0, :m], s[1, :m], s[2, :m], s[3, :m]
            d0, d1, theta, slope = s[4, :m], s[5, :m], s[6, :m], s[7, :m]
            for t in range(m):
                slope[t] = h[t] / w[t]
            if inverse:
                for t in range(m):
                    curve = d0[t] + d1[t] - two * slope[t]
                    rise = v[t] - y0[t]
                    a = rise * curve + h[t] * (slope[t] - d0[t])
                    half = h[t] * d0[t] - rise * curve
                    c = -slope[t] * rise
                    root = math.sqrt(max(half * half - four * a * c, zero))
                    theta[t] = (two * c) / (-half - root)
            else:
                for t in range(m):
                    theta[t] = (v[t] - x0[t]) / w[t]
            for t in range(m):
                x, d, e, f = theta[t], d0[t], d1[t], slope[t]
                u = x * (one - x)
                den = f + (d + e - two * f) * u
                q = e * x * x + two * f * u + d * (one - x) * (one - x)
                inside = x * w[t] + x0[t] if inverse else y0[t] + h[t] * (f * x * x + d * u) / den
                outside = abs(v[t]) > limit
                out[t] = v[t] if outside else inside
                # one logarithm for 2 log(slope) + log(q) - 2 log(den); 1 outside, but NaN, which
                # lies in no interval, must come out as NaN
                ratio = f / den
                logs[t] = one if outside else q * ratio * ratio
            _log_all(logs, bits[:m])
            if inverse:
                for t in range(m):
                    logs[t] = -logs[t]


@numba.njit(**_JIT)
def _softmax_gradient(probability, corner, size, b, scale, scratch, gradient, first, start):
    """dL/draw_j = p_j (G_j - sum_k p_k G_k) of widths or heights, into ``gradient``.

    G_j is ``corner`` for the bins before bin b, which move its corner, ``size`` for b itself.
    """
    bins, zero = probability.shape[0], scale * 0
    for t in range(b.size):
        scratch[t] = zero
    for k in range(bins):
        kk = np.int32(k)
        p = probability[k]
        for t in range(b.size):
            before = corner[t] if kk < b[t] else zero
            scratch[t] += p[t] * (size[t] if kk == b[t] else before)
    for k in range(bins):
        kk = np.int32(k)
        p = probability[k]
        row = gradient[first + k, start : start + b.size]
        for t in range(b.size):
            before = corner[t] if kk < b[t] else zero
            g = size[t] if kk == b[t] else before
            row[t] = scale * p[t] * (g - scratch[t])


@numba.njit(parallel=True, **_JIT)
def _backward(  # noqa: PLR0915
    inputs,
    outputs,
    parameters,
    bound,
    inverse,
    grad_outputs,
    grad_log,
    grad_inputs,
    grad_parameters,
):
    """Gradients; those of the inverse follow from the forward map's by the implicit function."""
    n, dim = inputs.shape
    bins = (parameters.shape[1] + 1) // 3
    real = inputs.dtype.type
    one, two, zero = real(1), real(2), real(0)
    limit = real(bound)
    scale = real(2 * bound * (1 - MIN_FRACTION * bins))
    for i in numba.prange(n):
        pw, ph = np.empty((bins, _TILE), inputs.dtype), np.empty((bins, _TILE), inputs.dtype)
        s = np.empty((9, _TILE), inputs.dtype)
        b_tile, bits = np.empty(_TILE, np.int32), np.empty(_TILE, np.int32)
        for start in range(0, dim, _TILE):
            m = min(_TILE, dim - start)
            v = inputs[i, start : start + m]
            x = outputs[i, start : start + m] if inverse else v
            out_gradient = grad_outputs[i, start : start + m]
            log_gradient = grad_log[i, start : start + m]
            in_gradient = grad_inputs[i, start : start + m]
            gradient = grad_parameters[i]
            _select_bins(parameters[i], start, v, inverse, bound, pw, ph, s, b_tile, bits)
            b = b_tile[:m]
            x0, w, y0, h = s[0, :m], s[1, :m], s[2, :m], s[3, :m]
            d0, d1, r0, r1, scratch = s[4, :m], s[5, :m], s[6, :m], s[7, :m], s[8, :m]
            for t in range(m):
                f = h[t] / w[t]
                d, e = d0[t], d1[t]
                curve = d + e - two * f
                theta = (x[t] - x0[t]) / w[t]
                rest = one - theta
                u = theta * rest
                den = f + curve * u
                ratio = one / den
                q = e * theta * theta + two * f * u + d * rest * rest
                over_q = one / q
                top = f * theta * theta + d * u
                bend, dden_df = one - two * theta, one - two * u
                dy_dt = h[t] * f * q * ratio * ratio
                dl_dt = (
                    two * (e * theta + f * bend - d * rest) * over_q - two * curve * bend * ratio
                )
                go, gl = out_gradient[t], log_gradient[t]
                into = (go * w[t] - gl * dl_dt) / dy_dt
                gy = -into if inverse else go
                gl = -gl if inverse else gl
                gt = gy * dy_dt + gl * dl_dt
                gf = gy * h[t] * (theta * theta * den - top * dden_df) * ratio * ratio
                gf += gl * two * (one / f + u * over_q - dden_df * ratio)
                g0 = gy * h[t] * u * (den - top) * ratio * ratio
                g0 += gl * (rest * rest * over_q - two * u * ratio)
                g1 = gl * (theta * theta * over_q - two * u * ratio)
                g1 -= gy * h[t] * top * u * ratio * ratio
                outside = abs(v[t]) > limit
                inside = into if inverse else gt / w[t]
                in_gradient[t] = go if outside else inside
                # the gradients of x_0, w, y_0, h, d_0 and d_1 replace their values
                x0[t] = zero if outside else -gt / w[t]
                width = -(gt * theta + gf * f) / w[t]
                height = gy * top * ratio + gf / w[t]
                w[t] = zero if outside else width
                y0[t] = zero if outside else gy
                h[t] = zero if outside else height
                d0[t] = zero if outside else g0
                d1[t] = zero if outside else g1
            _softmax_gradient(pw, x0, w, b, scale, scratch, gradient, 0, start)
            _softmax_gradient(ph, y0, h, b, scale, scratch, gradient, bins, start)
            # softplus: dL/draw = dL/dd / (1 + exp(-raw))
            for t in range(m):
                r0[t] = -r0[t]
                r1[t] = -r1[t]
            _exp_all(r0, bits[:m])
            _exp_all(r1, bits[:m])
            for t in range(m):
                d0[t] /= one + r0[t]
                d1[t] /= one + r1[t]
            for k in range(bins - 1):
                kk, after = np.int32(k), np.int32(k + 1)
                row = gradient[2 * bins + k, start : start + m]
                for t in range(m):
                    g = d0[t] if b[t] == after else zero
                    row[t] = d1[t] if b[t] == kk else g
