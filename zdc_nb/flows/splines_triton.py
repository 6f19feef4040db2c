"""The splines' core for CUDA devices: the formulas of :mod:`zdc_nb.flows.splines_cpu`, in Triton.

A thread holds one element and keeps all of its parameters in registers, so that memory is read
and written once. Parameters are (A, 3K - 1, B) and values (A, B), neighbours along B side by side.
The formulas stand on Python tuples of vectors, one a parameter, which Triton unrolls: a
two-dimensional block of parameters would be spread over threads, and every sum over bins would
become traffic between them.

Triton is optional: the module can be imported without it, and :func:`available` tells. With
``TRITON_INTERPRET=1`` in the environment before Triton is first imported, the kernels run in
Triton's interpreter, on tensors of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zdc_nb.flows.splines_cpu import MIN_FRACTION

try:
    import triton
    import triton.language as tl
except ImportError:  # there are no wheels for macOS
    triton = tl = None

__all__ = ["available", "differentiate", "evaluate", "solve_panel"]

# One element a thread: the 23 loads of a spline of 8 bins are in flight at the same time, and its
# intermediates stay within the registers.
_BLOCK = 128
_WARPS = 4

# The inversion is one long chain of dependent steps: small tiles, so that 4096 samples occupy 128
# multiprocessors. The products are those of matrix units, in three passes that together have the
# precision of float32 (``tf32x3``).
_SAMPLES = 32


def available() -> bool:
    """Whether Triton is installed."""
    return triton is not None


def _jit(function: Callable[..., Any]) -> Any:
    return function if triton is None else triton.jit(function)


# --- The spline on one block ---------------------------------------------------------------------
#
# Comparisons are written so that NaN, for which all are false, stays NaN.


@_jit
def _softplus(raw):
    """``log(1 + exp(raw))``."""
    return tl.where(raw < 0, 0.0, raw) + tl.log(tl.exp(-tl.abs(raw)) + 1.0)


@_jit
def _shares(raw, START: tl.constexpr, BINS: tl.constexpr):
    """Softmax of BINS parameters."""
    largest = raw[START]
    for k in tl.static_range(1, BINS):
        largest = tl.maximum(largest, raw[START + k])
    powers = ()
    for k in tl.static_range(BINS):
        powers += (tl.exp(raw[START + k] - largest),)
    total = powers[0]
    for k in tl.static_range(1, BINS):
        total = total + powers[k]
    inverse = 1.0 / total
    shares = ()
    for k in tl.static_range(BINS):
        shares += (powers[k] * inverse,)
    return shares


@_jit
def _find_bin(
    raw,
    value,
    BINS: tl.constexpr,
    BOUND: tl.constexpr,
    MIN: tl.constexpr,
    BY_HEIGHT: tl.constexpr,
):
    """The bin in which ``value`` lies, an abscissa or an ordinate, and what led to it.

    ``reached`` are K - 1 truth values: the bin is 1, ..., K - 1 or a later one.
    """
    width_shares, height_shares = _shares(raw, 0, BINS), _shares(raw, BINS, BINS)
    left = tl.zeros_like(value) - BOUND
    low = left
    x0, y0 = left, low
    width, height = left, low
    raw_d0, raw_d1 = raw[2 * BINS], raw[2 * BINS]
    reached = ()
    for k in tl.static_range(BINS):
        # the last knot is the bound to the last digit, whatever the sum's rounding
        if k == BINS - 1:
            w, h = BOUND - left, BOUND - low
        else:
            w = width_shares[k] * (2 * BOUND * (1 - MIN * BINS)) + 2 * BOUND * MIN
            h = height_shares[k] * (2 * BOUND * (1 - MIN * BINS)) + 2 * BOUND * MIN
        if k == 0:
            width, height = w, h
        else:
            here = value >= (low if BY_HEIGHT else left)
            reached += (here,)
            x0, width = tl.where(here, left, x0), tl.where(here, w, width)
            y0, height = tl.where(here, low, y0), tl.where(here, h, height)
            raw_d0 = tl.where(here, raw[2 * BINS + k - 1], raw_d0)
            if k < BINS - 1:
                raw_d1 = tl.where(here, raw[2 * BINS + k], raw_d1)
        left, low = left + w, low + h
    d0 = tl.where(reached[0], _softplus(raw_d0) + MIN, 1 - MIN)
    d1 = tl.where(reached[BINS - 2], 1 - MIN, _softplus(raw_d1) + MIN)
    return x0, width, y0, height, d0, d1, raw_d0, raw_d1, reached, width_shares, height_shares


@_jit
def _evaluate(
    raw,
    value,
    BINS: tl.constexpr,
    BOUND: tl.constexpr,
    MIN: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """Image and log-derivative."""
    x0, width, y0, height, d0, d1, _, _, _, _, _ = _find_bin(raw, value, BINS, BOUND, MIN, INVERSE)
    slope = height / width
    curve = d0 + d1 - slope * 2.0
    if INVERSE:
        rise = value - y0
        a = rise * curve + height * (slope - d0)
        minus_b = rise * curve - height * d0
        c = slope * rise
        square = minus_b * minus_b + a * c * 4.0
        # rounding may take it below zero at a knot
        root = tl.sqrt(tl.where(square < 0, 0.0, square))
        # of the two forms of the root, the one without a difference of nearly equal numbers
        steep = minus_b > 0
        t = tl.where(steep, minus_b + root, c * 2.0) / tl.where(steep, a * 2.0, root - minus_b)
    else:
        t = (value - x0) / width
    rest = 1.0 - t
    u = t * rest
    over = 1.0 / (slope + curve * u)
    ratio = slope * over
    logs = tl.log(ratio * ratio * (d1 * t * t + slope * u * 2.0 + d0 * rest * rest))
    if INVERSE:
        image, logs = t * width + x0, -logs
    else:
        image = y0 + height * (slope * t * t + d0 * u) * over
    outside = tl.abs(value) > BOUND
    return tl.where(outside, value, image), tl.where(outside, 0.0, logs)


@_jit
def _softmax_gradient(shares, corner, size, reached, BINS: tl.constexpr, SCALE: tl.constexpr):
    """From the gradients of a bin's corner and size to those of the unnormalised sizes."""
    gradients = ()
    mean = tl.zeros_like(size)
    for k in tl.static_range(BINS):
        # sizes of earlier bins move the corner, the bin's own its size, later ones nothing. The
        # last bin ends at the bound: its size is what the others leave, and so moves with them
        gradient = size
        if k > 0:
            gradient = tl.where(reached[k - 1], size, 0.0)
        if k < BINS - 1:
            gradient = tl.where(reached[k], corner, gradient)
        gradients += (gradient,)
        mean = mean + shares[k] * gradient
    results = ()
    for k in tl.static_range(BINS):
        results += (shares[k] * (gradients[k] - mean) * SCALE,)
    return results


@_jit
def _differentiate(
    raw,
    value,
    image,
    grad_image,
    grad_logs,
    BINS: tl.constexpr,
    BOUND: tl.constexpr,
    MIN: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """Gradients of the value and the parameters.

    Those of the inverse follow from the forward map's by the implicit function theorem.
    """
    x0, width, _, height, d0, d1, raw_d0, raw_d1, reached, width_shares, height_shares = _find_bin(
        raw, value, BINS, BOUND, MIN, INVERSE
    )
    over_width = 1.0 / width
    slope = height * over_width
    curve = d0 + d1 - slope * 2.0
    t = ((image if INVERSE else value) - x0) * over_width
    rest = 1.0 - t
    u = t * rest
    den = slope + curve * u
    ratio = 1.0 / den
    q = d1 * t * t + slope * u * 2.0 + d0 * rest * rest
    over_q = 1.0 / q
    top = slope * t * t + d0 * u
    bend, dden_dslope = 1.0 - t * 2.0, 1.0 - u * 2.0
    square = height * ratio * ratio
    dy_dt = square * slope * q
    dl_dt = (d1 * t + slope * bend - d0 * rest) * over_q * 2.0 - curve * bend * ratio * 2.0
    if INVERSE:
        g_value = (grad_image * width - grad_logs * dl_dt) / dy_dt
        gy, gl = -g_value, -grad_logs
        gt = gy * dy_dt + gl * dl_dt
    else:
        gy, gl = grad_image, grad_logs
        gt = gy * dy_dt + gl * dl_dt
        g_value = gt * over_width
    g_slope = gy * square * (t * t * den - top * dden_dslope)
    g_slope += gl * 2.0 * (1.0 / slope + u * over_q - dden_dslope * ratio)
    g_d0 = gy * square * u * (den - top) + gl * (rest * rest * over_q - u * ratio * 2.0)
    g_d1 = gl * (t * t * over_q - u * ratio * 2.0) - gy * square * top * u

    outside = tl.abs(value) > BOUND
    g_x0 = tl.where(outside, 0.0, -gt * over_width)
    g_width = tl.where(outside, 0.0, -(gt * t + g_slope * slope) * over_width)
    g_y0 = tl.where(outside, 0.0, gy)
    g_height = tl.where(outside, 0.0, gy * top * ratio + g_slope * over_width)
    gradients = _softmax_gradient(
        width_shares, g_x0, g_width, reached, BINS, 2 * BOUND * (1 - MIN * BINS)
    ) + _softmax_gradient(
        height_shares, g_y0, g_height, reached, BINS, 2 * BOUND * (1 - MIN * BINS)
    )

    # softplus: dL/draw = dL/dd / (1 + exp(-raw)); the derivatives at the ends are fixed
    g_d0, g_d1 = g_d0 / (tl.exp(-raw_d0) + 1.0), g_d1 / (tl.exp(-raw_d1) + 1.0)
    for k in tl.static_range(BINS - 1):
        # inner knot k lies between bins k and k + 1
        as_left = tl.where(reached[k], g_d0, 0.0)
        if k < BINS - 2:
            as_left = tl.where(reached[k + 1], 0.0, as_left)
        as_right = tl.where(reached[k], 0.0, g_d1)
        if k > 0:
            as_right = tl.where(reached[k - 1], as_right, 0.0)
        gradients += (tl.where(outside, 0.0, as_left + as_right),)
    return tl.where(outside, grad_image, g_value), gradients


# --- Kernels ------------------------------------------------------------------------------------


@_jit
def _load_parameters(parameters, width, inside, real, COUNT: tl.constexpr):
    """A tuple of COUNT rows, ``width`` elements apart."""
    raw = ()
    for k in tl.static_range(COUNT):
        row = tl.load(parameters + k * width, mask=inside, other=0.0)
        raw += (row.to(real),)
    return raw


@_jit
def _evaluate_kernel(
    values,
    parameters,
    images,
    logs,
    width,
    BINS: tl.constexpr,
    BOUND: tl.constexpr,
    MIN: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(width, BLOCK)
    row = tl.program_id(0) // blocks
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    # offsets within a row fit into 32 bits, those of a row do not
    at = row.to(tl.int64) * width + column
    start = row.to(tl.int64) * width * (3 * BINS - 1) + column
    value = tl.load(values + at, mask=inside, other=0.0)
    raw = _load_parameters(parameters + start, width, inside, value.dtype, 3 * BINS - 1)
    image, log = _evaluate(raw, value, BINS, BOUND, MIN, INVERSE)
    tl.store(images + at, image, mask=inside)
    tl.store(logs + at, log, mask=inside)


@_jit
def _differentiate_kernel(
    values,
    images,
    parameters,
    grad_images,
    grad_logs,
    grad_values,
    grad_parameters,
    width,
    BINS: tl.constexpr,
    BOUND: tl.constexpr,
    MIN: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(width, BLOCK)
    row = tl.program_id(0) // blocks
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = row.to(tl.int64) * width + column
    start = row.to(tl.int64) * width * (3 * BINS - 1) + column
    value = tl.load(values + at, mask=inside, other=0.0)
    image = tl.load(images + at, mask=inside, other=0.0)
    grad_image = tl.load(grad_images + at, mask=inside, other=0.0)
    grad_log = tl.load(grad_logs + at, mask=inside, other=0.0)
    raw = _load_parameters(parameters + start, width, inside, value.dtype, 3 * BINS - 1)
    grad_value, gradients = _differentiate(
        raw, value, image, grad_image, grad_log, BINS, BOUND, MIN, INVERSE
    )
    tl.store(grad_values + at, grad_value, mask=inside)
    # every gradient depends on all parameters of its element, so that these have been read by now
    for k in tl.static_range(3 * BINS - 1):
        target = grad_parameters + start + k * width
        tl.store(target, gradients[k].to(grad_parameters.dtype.element_ty), mask=inside)


@_jit
def _relu(value):
    return tl.where(value < 0, 0.0, value)


@_jit
def _rows(block, SAMPLES: tl.constexpr, ROWS: tl.constexpr):
    """The columns of a (SAMPLES, ROWS) block as a tuple of vectors."""
    if ROWS == 1:
        rows = (tl.reshape(block, [SAMPLES]),)
    else:
        halves = tl.permute(tl.reshape(block, [SAMPLES, 2, ROWS // 2]), (0, 2, 1))
        one, other = tl.split(halves)
        rows = _rows(one, SAMPLES, ROWS // 2) + _rows(other, SAMPLES, ROWS // 2)
    return rows


@_jit
def _solve_kernel(  # noqa: PLR0915
    sums,
    base,
    outputs,
    first,
    first_unit,
    first_dim,
    blocks,
    block_rows,
    last,
    last_dim,
    last_row,
    counts,
    location,
    scale,
    inputs,
    logs,
    hidden,
    samples,
    dims,
    units,
    BINS: tl.constexpr,
    BOUND: tl.constexpr,
    MIN: tl.constexpr,
    INVERSE: tl.constexpr,
    LAYERS: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    SAMPLES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    column = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    inside = column < samples
    unit = tl.arange(0, UNITS)
    exists = unit < units
    row = tl.arange(0, ROWS)
    given = row < 3 * BINS - 1
    at_units = unit[:, None] * samples + column[None, :]
    # Pre-activations stay in registers throughout: what a thread has written to memory, another
    # one need not see.
    states = ()
    for layer in tl.static_range(LAYERS):
        state = tl.load(
            sums + layer * units * samples + at_units,
            mask=exists[:, None] & inside[None, :],
            other=0.0,
        )
        states += (state,)
    # Each dimension's weights and base are loaded while the one before it is being solved.
    at_weights = last + row[:, None] * last_row + unit[None, :]
    at_base = base + row[:, None] * samples + column[None, :]
    weight_mask, base_mask = given[:, None] & exists[None, :], given[:, None] & inside[None, :]
    weights = tl.load(at_weights, mask=weight_mask, other=0.0)
    start = tl.load(at_base, mask=base_mask, other=0.0)
    done = 0
    for t in range(dims):
        final = tl.load(counts + t)
        output = tl.load(outputs + column, mask=inside, other=0.0)
        centre, spread = tl.load(location + t), tl.load(scale + t)
        later = (unit >= final) & exists
        outgoing = tl.load(first + unit * first_unit + t * first_dim, mask=later, other=0.0)

        seen = (unit < final)[:, None]
        below = tl.where(seen, _relu(states[0]), 0.0)
        updated = (states[0],)
        for layer in tl.static_range(1, LAYERS):
            state = states[layer]
            for u in range(done, final):
                at = blocks[layer - 1] + u * block_rows[layer - 1] + unit
                incoming = tl.load(at, mask=unit < final, other=0.0)
                itself = (unit == u)[:, None]
                terms = incoming[:, None] * below + tl.where(itself, state, 0.0)
                state = tl.where(itself, tl.sum(terms, axis=0)[None, :], state)
            updated += (state,)
            below = tl.where(seen, _relu(state), 0.0)
        states = updated
        done = final

        weights = tl.where((unit < final)[None, :], weights, 0.0)
        product = start + tl.dot(weights, below, input_precision=PRECISION, out_dtype=below.dtype)
        at_weights += last_dim
        at_base += (3 * BINS - 1) * samples
        more = t + 1 < dims
        weights = tl.load(at_weights, mask=weight_mask & more, other=0.0)
        start = tl.load(at_base, mask=base_mask & more, other=0.0)
        raw = _rows(tl.trans(product), SAMPLES, ROWS)
        image, log = _evaluate(raw, output, BINS, BOUND, MIN, INVERSE)
        tl.store(inputs + column, image, mask=inside)
        tl.store(logs + column, log, mask=inside)

        standard = (image - centre) / spread
        first_state = states[0] + outgoing[:, None] * standard[None, :]
        # where, as a NaN must not reach units that do not see it
        states = (tl.where(later[:, None], first_state, states[0]),) + states[1:]  # noqa: RUF005
        outputs += samples
        inputs += samples
        logs += samples

    known = (unit < done)[:, None] & inside[None, :]
    for layer in tl.static_range(LAYERS):
        tl.store(hidden + layer * units * samples + at_units, _relu(states[layer]), mask=known)


# --- Calls --------------------------------------------------------------------------------------


def evaluate(
    values: Tensor,
    parameters: Tensor,
    bound: float,
    inverse: bool,
    images: Tensor,
    logs: Tensor,
) -> None:
    """Fill ``images`` and ``logs`` with the splines' values and log-derivatives.

    Parameters
    ----------
    values, images, logs
        (A, B), of one precision, in which all is computed.
    parameters
        (A, 3K - 1, B), of any precision.
    """
    rows, count, width = parameters.shape
    _check_contiguous(values, parameters, images, logs)
    if not values.numel():
        return
    with torch.cuda.device_of(values):
        _evaluate_kernel[(rows * triton.cdiv(width, _BLOCK),)](
            values,
            parameters,
            images,
            logs,
            width,
            BINS=(count + 1) // 3,
            BOUND=bound,
            MIN=MIN_FRACTION,
            INVERSE=inverse,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )


def differentiate(
    values: Tensor,
    images: Tensor,
    parameters: Tensor,
    bound: float,
    inverse: bool,
    grad_images: Tensor,
    grad_logs: Tensor,
    grad_values: Tensor,
    grad_parameters: Tensor,
) -> None:
    """Fill ``grad_values`` (A, B) and ``grad_parameters`` (A, 3K - 1, B).

    ``grad_parameters`` may be ``parameters`` itself, which it then replaces; the other arguments
    are those of :func:`evaluate`.
    """
    rows, count, width = parameters.shape
    _check_contiguous(
        values, images, parameters, grad_images, grad_logs, grad_values, grad_parameters
    )
    if not values.numel():
        return
    with torch.cuda.device_of(values):
        _differentiate_kernel[(rows * triton.cdiv(width, _BLOCK),)](
            values,
            images,
            parameters,
            grad_images,
            grad_logs,
            grad_values,
            grad_parameters,
            width,
            BINS=(count + 1) // 3,
            BOUND=bound,
            MIN=MIN_FRACTION,
            INVERSE=inverse,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )


def solve_panel(
    sums: Tensor,
    base: Tensor,
    outputs: Tensor,
    first: Tensor,
    blocks: Sequence[Tensor],
    last: Tensor,
    counts: Tensor,
    location: Tensor,
    scale: Tensor,
    bound: float,
    inverse: bool,
    inputs: Tensor,
    logs: Tensor,
    hidden: Tensor,
) -> None:
    """Invert T dimensions of an autoregressive block with U hidden units a layer among them.

    Dimension t has the spline parameters ``base[t] + last[t] @ h``, where h are the first
    ``counts[t]`` units of the last hidden layer; these see dimensions before t only. The
    arithmetic is in the precision of ``outputs``, which all tensors but ``counts`` share.

    Parameters
    ----------
    sums
        (L, U, N) pre-activations of the L hidden layers, of which ``first`` and ``blocks`` are
        missing.
    base
        (T, 3K - 1, N) spline parameters, of which ``last`` is missing.
    outputs
        (T, N) the known side.
    first, blocks, last
        weights within the panel, (U, T), L - 1 of (U, U), and (T, 3K - 1, U), any views whose
        last axis (of all but ``first``) is contiguous.
    counts
        (T,) int32, ascending: how many of the units, sorted by degree, a dimension sees.
    location, scale
        (T,) of the standardisation in front of ``first``.
    inverse
        whether the spline that maps ``outputs`` to ``inputs`` is the inverse one.
    inputs, logs
        (T, N), filled with the solution and the logarithms of that map's derivatives.
    hidden
        (L, U, N), filled with activations, of the first ``counts[-1]`` units; may be ``sums``.
    """
    layers, units, samples = sums.shape
    dims, count, _ = base.shape
    _check_contiguous(sums, base, outputs, counts, location, scale, inputs, logs, hidden)
    if len(blocks) != layers - 1 or any(w.shape[1] > 1 and w.stride(1) != 1 for w in blocks):
        raise ValueError("blocks must be L - 1 matrices with contiguous rows")
    if units > 1 and last.stride(2) != 1:
        raise ValueError("the last axis of last must be contiguous")
    if not outputs.numel():
        return
    # matrix units take no fewer than 16 units
    padded = max(16, triton.next_power_of_2(units))
    with torch.cuda.device_of(outputs):
        _solve_kernel[(triton.cdiv(samples, _SAMPLES),)](
            sums,
            base,
            outputs,
            first,
            first.stride(0),
            first.stride(1),
            # never an empty tuple, which a launch may not take
            tuple(blocks) or (sums,),
            tuple(w.stride(0) for w in blocks) or (0,),
            last,
            last.stride(0),
            last.stride(1),
            counts,
            location,
            scale,
            inputs,
            logs,
            hidden,
            samples,
            dims,
            units,
            BINS=(count + 1) // 3,
            BOUND=bound,
            MIN=MIN_FRACTION,
            INVERSE=inverse,
            LAYERS=layers,
            UNITS=padded,
            ROWS=max(16, triton.next_power_of_2(count)),
            SAMPLES=_SAMPLES,
            PRECISION="tf32x3" if outputs.dtype == torch.float32 else "ieee",
            # the states of more units would not fit into the registers of four warps
            num_warps=_WARPS if padded < 64 else 2 * _WARPS,
        )


def _check_contiguous(*tensors: Tensor) -> None:
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("all but the weights must be contiguous")
