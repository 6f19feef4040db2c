"""The splines' compiled core for processors: sixteen of them at a time, all in registers.

A spline needs some 25 parameters an element and a few hundred instructions. What a compiler makes
of loops over arrays keeps every intermediate in memory; here the formulas of
:mod:`zdc_nb.flows.splines` are written once, on vectors (:class:`_Vector`), and become LLVM vector
instructions of 16 lanes (float32) or 8 (float64), which LLVM maps to whatever the processor has.
A tile reads its parameters once and writes its results once.

Parameters are (A, 3K - 1, B) and values (A, B): neighbours along B share a vector. Parameters may
be bfloat16, handed over as their bits in uint16; the arithmetic is that of the values.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = [
    "IDENTITY_DERIVATIVE",
    "MIN_FRACTION",
    "SplineKernels",
    "spline_kernels",
]

MIN_FRACTION = 1e-3
"""Smallest share of a bin in the width and height, and smallest derivative."""

IDENTITY_DERIVATIVE = math.log(math.expm1(1 - MIN_FRACTION))
"""Unnormalised derivative that stands for 1."""

# --- Vectors ------------------------------------------------------------------------------------

# No reassociation, which would spoil the argument reductions of exp and log, and no assumption
# that NaN does not occur: a diverging training must be seen.
_FLAGS = ("contract", "nsz", "arcp")
_LANES = {"float": 16, "double": 8}


@dataclass(frozen=True)
class _Vector:
    """Lanes of real numbers (or, as the result of a comparison, of truth values)."""

    builder: Any
    value: Any

    def constant(self, number: float) -> _Vector:
        """The same number in every lane."""
        return _Vector(self.builder, ir.Constant(self.value.type, [number] * self.lanes))

    @property
    def lanes(self) -> int:
        return int(self.value.type.count)

    def _apply(self, instruction: str, other: _Vector | float) -> _Vector:
        right = other if isinstance(other, _Vector) else self.constant(other)
        make = getattr(self.builder, instruction)
        return _Vector(self.builder, make(self.value, right.value, flags=_FLAGS))

    def __add__(self, other: _Vector | float) -> _Vector:
        return self._apply("fadd", other)

    def __sub__(self, other: _Vector | float) -> _Vector:
        return self._apply("fsub", other)

    def __mul__(self, other: _Vector | float) -> _Vector:
        return self._apply("fmul", other)

    def __truediv__(self, other: _Vector | float) -> _Vector:
        return self._apply("fdiv", other)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: float) -> _Vector:
        return self.constant(other) - self

    def __rtruediv__(self, other: float) -> _Vector:
        return self.constant(other) / self

    def __neg__(self) -> _Vector:
        return self.constant(-0.0) - self

    def compare(self, how: str, other: _Vector | float) -> _Vector:
        """Truth values; false where either is NaN."""
        right = other if isinstance(other, _Vector) else self.constant(other)
        return _Vector(self.builder, self.builder.fcmp_ordered(how, self.value, right.value))

    def where(self, yes: _Vector | float, no: _Vector) -> _Vector:
        """Of truth values: lanes of ``yes`` where true, of ``no`` elsewhere."""
        yes = yes if isinstance(yes, _Vector) else no.constant(yes)
        return _Vector(self.builder, self.builder.select(self.value, yes.value, no.value))

    def at_least(self, other: _Vector | float) -> _Vector:
        """The larger one; NaN of ``self`` stays."""
        return self.compare("<", other).where(other, self)

    def at_most(self, other: _Vector | float) -> _Vector:
        """The smaller one; NaN of ``self`` stays."""
        return self.compare(">", other).where(other, self)

    def _library(self, name: str) -> _Vector:
        kind = self.value.type
        full_name = f"llvm.{name}.v{kind.count}{kind.element.intrinsic_name}"
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind]), full_name
        )
        return _Vector(self.builder, self.builder.call(function, [self.value]))

    def sqrt(self) -> _Vector:
        return self._library("sqrt")

    def abs(self) -> _Vector:
        return self._library("fabs")

    # integers are needed in exp and log only, to take floating-point numbers apart

    def _bits(self) -> Any:
        return self.builder.bitcast(self.value, ir.VectorType(ir.IntType(32), self.lanes))

    def _from_bits(self, bits: Any) -> _Vector:
        return _Vector(self.builder, self.builder.bitcast(bits, self.value.type))

    def _integer(self, number: int) -> Any:
        return ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [number] * self.lanes)

    def exp(self) -> _Vector:
        """In float32 the Cephes library's expf: 2^n times a polynomial; 1 ulp."""
        if isinstance(self.value.type.element, ir.DoubleType):
            return self._library("exp")
        x = self.at_least(-87.0).at_most(88.0)
        magic = 12582912.0  # 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits
        shifted = x * 1.44269504088896341 + magic
        n = shifted - magic
        r = x - n * 0.693359375 - n * -2.12194440e-4
        y = r * 1.9875691500e-4 + 1.3981999507e-3
        for c in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            y = y * r + c
        y = y * (r * r) + r + 1.0
        build = self.builder
        offset = build.sub(shifted._bits(), self._integer(0x4B400000 - 127))
        return y * self._from_bits(build.shl(offset, self._integer(23)))

    def log(self) -> _Vector:
        """Of positive numbers; in float32 the Cephes library's logf."""
        if isinstance(self.value.type.element, ir.DoubleType):
            return self._library("log")
        build, bits = self.builder, self._bits()
        mantissa = self._from_bits(
            build.or_(
                build.and_(bits, self._integer(0x007FFFFF)),
                self._integer(0x3F000000),
            )
        )
        exponent = build.sub(build.ashr(bits, self._integer(23)), self._integer(126))
        e = _Vector(build, build.sitofp(exponent, self.value.type))
        small = mantissa.compare("<", 0.707106781186547524)
        e = small.where(e - 1.0, e)
        x = small.where(mantissa + mantissa, mantissa) - 1.0
        z = x * x
        y = x * 7.0376836292e-2 + -1.1514610310e-1
        for c in (
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ):
            y = y * x + c
        y = y * (x * z) + e * -2.12194440e-4 - z * 0.5
        # the bits of NaN are those of a number here; adding the difference brings it back
        return x + y + e * 0.693359375 + (self - self)


def _softplus(raw: _Vector) -> _Vector:
    """``log(1 + exp(raw))``."""
    return raw.at_least(0.0) + ((-raw.abs()).exp() + 1.0).log()


# --- The spline on one tile ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Bin:
    """The bin of each lane's value, and what led to it."""

    x0: _Vector
    width: _Vector
    y0: _Vector
    height: _Vector
    d0: _Vector
    d1: _Vector
    raw_d0: _Vector
    raw_d1: _Vector
    reached: list[_Vector]
    """K - 1 truth values: the bin is 1, ..., K - 1 or a later one."""
    width_shares: list[_Vector]
    height_shares: list[_Vector]


def _shares(raw: list[_Vector]) -> list[_Vector]:
    """Softmax."""
    largest = functools.reduce(_Vector.at_least, raw)
    powers = [(r - largest).exp() for r in raw]
    inverse = 1.0 / functools.reduce(_Vector.__add__, powers)
    return [power * inverse for power in powers]


def _find_bin(raw: list[_Vector], value: _Vector, bound: _Vector, by_height: bool) -> _Bin:
    """The bin in which ``value`` lies, an abscissa or, with ``by_height``, an ordinate."""
    bins = (len(raw) + 1) // 3
    floor, scale = bound * (2 * MIN_FRACTION), bound * (2 * (1 - MIN_FRACTION * bins))
    width_shares, height_shares = _shares(raw[:bins]), _shares(raw[bins : 2 * bins])
    raw_derivatives = raw[2 * bins :]
    left = low = -bound
    x0, y0 = left, low
    reached: list[_Vector] = []
    for k in range(bins):
        # the last knot is the bound to the last digit, whatever the sum's rounding
        last = k == bins - 1
        w = bound - left if last else width_shares[k] * scale + floor
        h = bound - low if last else height_shares[k] * scale + floor
        if k == 0:
            width, height = w, h
            raw_d0 = raw_d1 = raw_derivatives[0]
        else:
            here = value.compare(">=", low if by_height else left)
            reached.append(here)
            x0, width = here.where(left, x0), here.where(w, width)
            y0, height = here.where(low, y0), here.where(h, height)
            raw_d0 = here.where(raw_derivatives[k - 1], raw_d0)
            if not last:
                raw_d1 = here.where(raw_derivatives[k], raw_d1)
        left, low = left + w, low + h
    end = value.constant(1 - MIN_FRACTION)
    d0 = reached[0].where(_softplus(raw_d0) + MIN_FRACTION, end)
    d1 = reached[-1].where(end, _softplus(raw_d1) + MIN_FRACTION)
    return _Bin(x0, width, y0, height, d0, d1, raw_d0, raw_d1, reached, width_shares, height_shares)


def _evaluate(
    raw: list[_Vector], value: _Vector, bound: _Vector, inverse: bool
) -> tuple[_Vector, _Vector]:
    """Image and log-derivative."""
    b = _find_bin(raw, value, bound, by_height=inverse)
    slope = b.height / b.width
    curve = b.d0 + b.d1 - slope * 2.0
    if inverse:
        rise = value - b.y0
        a = rise * curve + b.height * (slope - b.d0)
        minus_b = rise * curve - b.height * b.d0
        c = slope * rise
        # rounding may take it below zero at a knot
        root = (minus_b * minus_b + a * c * 4.0).at_least(0.0).sqrt()
        # of the two forms of the root, the one without a difference of nearly equal numbers
        steep = minus_b.compare(">", 0.0)
        t = steep.where(minus_b + root, c * 2.0) / steep.where(a * 2.0, root - minus_b)
    else:
        t = (value - b.x0) / b.width
    rest = 1.0 - t
    u = t * rest
    over = 1.0 / (slope + curve * u)
    ratio = slope * over
    logs = (ratio * ratio * (b.d1 * t * t + slope * u * 2.0 + b.d0 * rest * rest)).log()
    image = t * b.width + b.x0 if inverse else b.y0 + b.height * (slope * t * t + b.d0 * u) * over
    outside = value.abs().compare(">", bound)
    return outside.where(value, image), outside.where(0.0, -logs if inverse else logs)


def _softmax_gradient(
    shares: list[_Vector], corner: _Vector, size: _Vector, b: _Bin, scale: _Vector
) -> list[_Vector]:
    """From the gradients of a bin's corner and size to those of the unnormalised sizes."""
    bins = len(shares)
    after = [*b.reached, None]
    gradients = []
    for k in range(bins):
        # sizes of earlier bins move the corner, the bin's own its size, later ones nothing. The
        # last bin ends at the bound: its size is what the others leave, and so moves with them
        own = size if k == 0 else b.reached[k - 1].where(size, size.constant(0.0))
        later = after[k]
        gradients.append(own if later is None else later.where(corner, own))
    mean = functools.reduce(
        _Vector.__add__, [p * g for p, g in zip(shares, gradients, strict=True)]
    )
    return [p * (g - mean) * scale for p, g in zip(shares, gradients, strict=True)]


def _differentiate(
    raw: list[_Vector],
    value: _Vector,
    image: _Vector,
    grad_image: _Vector,
    grad_logs: _Vector,
    bound: _Vector,
    inverse: bool,
) -> tuple[_Vector, list[_Vector]]:
    """Gradients of the value and the parameters.

    Those of the inverse follow from the forward map's by the implicit function theorem.
    """
    bins = (len(raw) + 1) // 3
    b = _find_bin(raw, value, bound, by_height=inverse)
    x = image if inverse else value
    over_width = 1.0 / b.width
    slope = b.height * over_width
    curve = b.d0 + b.d1 - slope * 2.0
    t = (x - b.x0) * over_width
    rest = 1.0 - t
    u = t * rest
    ratio = 1.0 / (slope + curve * u)
    q = b.d1 * t * t + slope * u * 2.0 + b.d0 * rest * rest
    over_q = 1.0 / q
    top = slope * t * t + b.d0 * u
    bend, dden_dslope = 1.0 - t * 2.0, 1.0 - u * 2.0
    square = b.height * ratio * ratio
    dy_dt = square * slope * q
    dl_dt = (b.d1 * t + slope * bend - b.d0 * rest) * over_q * 2.0 - curve * bend * ratio * 2.0
    if inverse:
        into = (grad_image * b.width - grad_logs * dl_dt) / dy_dt
        gy, gl = -into, -grad_logs
    else:
        gy, gl = grad_image, grad_logs
    gt = gy * dy_dt + gl * dl_dt
    den = slope + curve * u
    g_slope = gy * square * (t * t * den - top * dden_dslope)
    g_slope += gl * 2.0 * (1.0 / slope + u * over_q - dden_dslope * ratio)
    g_d0 = gy * square * u * (den - top) + gl * (rest * rest * over_q - u * ratio * 2.0)
    g_d1 = gl * (t * t * over_q - u * ratio * 2.0) - gy * square * top * u
    g_value = into if inverse else gt * over_width

    outside = value.abs().compare(">", bound)
    zero = value.constant(0.0)
    g_x0 = outside.where(zero, -gt * over_width)
    g_width = outside.where(zero, -(gt * t + g_slope * slope) * over_width)
    g_y0 = outside.where(zero, gy)
    g_height = outside.where(zero, gy * top * ratio + g_slope * over_width)
    scale = bound * (2 * (1 - MIN_FRACTION * bins))
    gradients = _softmax_gradient(b.width_shares, g_x0, g_width, b, scale)
    gradients += _softmax_gradient(b.height_shares, g_y0, g_height, b, scale)

    # softplus: dL/draw = dL/dd / (1 + exp(-raw)); the derivatives at the ends are fixed
    g_d0 = b.reached[0].where(g_d0 / ((-b.raw_d0).exp() + 1.0), zero)
    g_d1 = b.reached[-1].where(zero, g_d1 / ((-b.raw_d1).exp() + 1.0))
    g_d0, g_d1 = outside.where(zero, g_d0), outside.where(zero, g_d1)
    for k in range(bins - 1):
        # inner knot k lies between bins k and k + 1
        is_left = b.reached[k]
        beyond = b.reached[k + 1] if k + 1 < bins - 1 else None
        as_left = is_left.where(g_d0, zero)
        as_left = as_left if beyond is None else beyond.where(zero, as_left)
        as_right = is_left.where(zero, g_d1)
        as_right = as_right if k == 0 else b.reached[k - 1].where(as_right, zero)
        gradients.append(as_left + as_right)
    return outside.where(grad_image, g_value), gradients


# --- From arrays to tiles and back --------------------------------------------------------------


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset], inbounds=True)


def _load(builder: Any, array_type: Any, pointer: Any, real: Any) -> _Vector:
    lanes = _LANES[str(real)]
    size = array_type.dtype.bitwidth // 8
    element = ir.IntType(16) if array_type.dtype == types.uint16 else real
    vector = ir.VectorType(element, lanes)
    loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=size)
    if array_type.dtype != types.uint16:
        return _Vector(builder, loaded)
    # a bfloat16 is the upper half of a float32
    wide = ir.VectorType(ir.IntType(32), lanes)
    shifted = builder.shl(builder.zext(loaded, wide), ir.Constant(wide, [16] * lanes))
    return _Vector(builder, builder.bitcast(shifted, ir.VectorType(real, lanes)))


def _store(builder: Any, array_type: Any, pointer: Any, vector: _Vector) -> None:
    value = vector.value
    size = array_type.dtype.bitwidth // 8
    if array_type.dtype == types.uint16:
        # round to nearest, ties to even
        wide = ir.VectorType(ir.IntType(32), vector.lanes)

        def number(n: int) -> Any:
            return ir.Constant(wide, [n] * vector.lanes)

        bits = builder.bitcast(value, wide)
        even = builder.and_(builder.lshr(bits, number(16)), number(1))
        bits = builder.add(builder.add(bits, number(0x7FFF)), even)
        narrow = ir.VectorType(ir.IntType(16), vector.lanes)
        value = builder.trunc(builder.lshr(bits, number(16)), narrow)
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=size)


class _Rows:
    """Rows of a tile: (count, lanes) at an offset in a flat array, ``step`` elements apart."""

    def __init__(self, context: Any, builder: Any, array: tuple[Any, Any], real: Any) -> None:
        self._context, self._builder, self._real = context, builder, real
        self._type, self._array = array

    def _at(self, offset: Any, step: Any, row: int) -> Any:
        index = self._builder.add(offset, self._builder.mul(step, step.type(row)))
        return _pointer(self._context, self._builder, self._type, self._array, index)

    def load(self, offset: Any, step: Any, count: int) -> list[_Vector]:
        return [
            _load(self._builder, self._type, self._at(offset, step, k), self._real)
            for k in range(count)
        ]

    def store(self, offset: Any, step: Any, rows: list[_Vector]) -> None:
        for k, row in enumerate(rows):
            _store(self._builder, self._type, self._at(offset, step, k), row)


def _splat(builder: Any, scalar: Any, real: Any) -> _Vector:
    vector = ir.VectorType(real, _LANES[str(real)])
    first = builder.insert_element(
        ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return _Vector(builder, builder.shuffle_vector(first, first, mask))


# Typed as anything: the compiler passes its own context where a caller passes nothing.
_intrinsic: Any = intrinsic(prefer_literal=True)


@_intrinsic
def evaluate_tile(
    typing_context, bins, inverse, bound, parameters, start, step, values, at, images, logs
):
    """One vector of ``images`` and ``logs``, at the offset of the ``values`` they belong to."""
    del typing_context
    count, backwards = 3 * bins.literal_value - 1, bool(inverse.literal_value)
    signature = types.void(bins, inverse, bound, parameters, start, step, values, at, images, logs)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        typed = list(zip(signature.args, args, strict=True))
        _, _, limit, raw, start, step, source, at, images, logs = typed
        real = context.get_data_type(source[0].dtype)
        one = step[1].type(1)
        tile = _Rows(context, builder, raw, real).load(start[1], step[1], count)
        (value,) = _Rows(context, builder, source, real).load(at[1], one, 1)
        image, log = _evaluate(tile, value, _splat(builder, limit[1], real), backwards)
        _Rows(context, builder, images, real).store(at[1], one, [image])
        _Rows(context, builder, logs, real).store(at[1], one, [log])
        return context.get_dummy_value()

    return signature, generate


@_intrinsic
def _differentiate_tile(
    typing_context,
    bins,
    inverse,
    bound,
    parameters,
    start,
    step,
    values,
    images,
    grad_images,
    grad_logs,
    at,
    grad_values,
    grad_parameters,
):
    """Gradients of one vector of values and of its parameters, at the same offsets."""
    del typing_context
    count, backwards = 3 * bins.literal_value - 1, bool(inverse.literal_value)
    signature = types.void(
        bins,
        inverse,
        bound,
        parameters,
        start,
        step,
        values,
        images,
        grad_images,
        grad_logs,
        at,
        grad_values,
        grad_parameters,
    )

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        typed = list(zip(signature.args, args, strict=True))
        _, _, limit, raw, start, step, *sources, at, grad_values, grad_parameters = typed
        real = context.get_data_type(sources[0][0].dtype)
        one = step[1].type(1)
        tile = _Rows(context, builder, raw, real).load(start[1], step[1], count)
        inputs = [_Rows(context, builder, s, real).load(at[1], one, 1)[0] for s in sources]
        bound = _splat(builder, limit[1], real)
        value, image, grad_image, grad_log = inputs
        grad_value, gradients = _differentiate(
            tile, value, image, grad_image, grad_log, bound, backwards
        )
        _Rows(context, builder, grad_values, real).store(at[1], one, [grad_value])
        _Rows(context, builder, grad_parameters, real).store(start[1], step[1], gradients)
        return context.get_dummy_value()

    return signature, generate


@_intrinsic
def _solve_tile(
    typing_context,
    bins,
    inverse,
    bound,
    base,
    start,
    step,
    weights,
    weight_start,
    weight_step,
    units,
    hidden,
    hidden_start,
    values,
    images,
    logs,
    at,
):
    """One vector of images under splines whose parameters are ``base + weights @ hidden``.

    Rows of ``base`` and of ``hidden`` are ``step`` apart. The parameters never leave registers.
    """
    del typing_context
    count, backwards = 3 * bins.literal_value - 1, bool(inverse.literal_value)
    signature = types.void(
        bins,
        inverse,
        bound,
        base,
        start,
        step,
        weights,
        weight_start,
        weight_step,
        units,
        hidden,
        hidden_start,
        values,
        images,
        logs,
        at,
    )

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        typed = list(zip(signature.args, args, strict=True))
        _, _, limit, base, start, step, weights, weight_start, weight_step, *typed = typed
        units, hidden, hidden_start, values, images, logs, at = typed
        real = context.get_data_type(values[0].dtype)
        one = step[1].type(1)
        sums = []
        for row in _Rows(context, builder, base, real).load(start[1], step[1], count):
            sums.append(cgutils.alloca_once_value(builder, row.value))
        with cgutils.for_range(builder, units[1], intp=units[1].type) as loop:
            here = builder.add(hidden_start[1], builder.mul(loop.index, step[1]))
            (unit,) = _Rows(context, builder, hidden, real).load(here, one, 1)
            for k, pointer in enumerate(sums):
                row = builder.mul(weight_step[1], weight_step[1].type(k))
                index = builder.add(builder.add(weight_start[1], row), loop.index)
                weight = builder.load(_pointer(context, builder, *weights, index))
                total = _Vector(builder, builder.load(pointer))
                total += _splat(builder, weight, real) * unit
                builder.store(total.value, pointer)
        tile = [_Vector(builder, builder.load(pointer)) for pointer in sums]
        (value,) = _Rows(context, builder, values, real).load(at[1], one, 1)
        image, log = _evaluate(tile, value, _splat(builder, limit[1], real), backwards)
        _Rows(context, builder, images, real).store(at[1], one, [image])
        _Rows(context, builder, logs, real).store(at[1], one, [log])
        return context.get_dummy_value()

    return signature, generate


@_intrinsic
def _add_scaled_tile(typing_context, target, to, factor, source, at):
    """``target[to:] += factor * source[at:]``, one vector of them."""
    del typing_context
    signature = types.void(target, to, factor, source, at)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, to, factor, source, at = zip(signature.args, args, strict=True)
        real = context.get_data_type(target[0].dtype)
        one = to[1].type(1)
        rows = _Rows(context, builder, target, real)
        (total,) = rows.load(to[1], one, 1)
        (term,) = _Rows(context, builder, source, real).load(at[1], one, 1)
        rows.store(to[1], one, [total + _splat(builder, factor[1], real) * term])
        return context.get_dummy_value()

    return signature, generate


COMPILE: dict[str, Any] = {"error_model": "numpy", "cache": True, "nogil": True}
VECTOR_BYTES = 64


@dataclass(frozen=True)
class SplineKernels:
    """Compiled loops over arrays, for one number of bins and one direction.

    ``evaluate(values, parameters, bound, images, logs)`` fills the last two;
    ``differentiate(values, images, parameters, bound, grad_images, grad_logs, grad_values,
    grad_parameters)`` fills the last two. All arrays are C-contiguous, (A, B), parameters
    (A, 3K - 1, B), where ``grad_parameters`` may be ``parameters`` itself.

    ``solve_panel`` inverts T dimensions of an autoregressive block with U hidden units a layer
    that lie among them, for N samples, a multiple of the lanes: see
    :func:`zdc_nb.flows.autoregressive.invert`, which calls it panel by panel. It takes the pre-activations
    ``sums`` (L, U, N) and ``base`` (T, 3K - 1, N), which hold all that lies before the panel; the
    known ``outputs`` (T, N); the weights inside the panel, ``first`` (U, T), ``blocks``
    (L - 1, U, U) and the flat ``last``, whose row of parameter k of dimension t starts at
    ``last_start + (t (3K - 1) + k) last_step``; ``counts`` (T,), how many of the units (sorted by
    degree) dimension t sees; and the network's ``location`` and ``scale`` (T,). It fills
    ``inputs`` and ``logs`` (T, N), and ``hidden`` (L, U, N) with activations.
    """

    evaluate: Callable[..., None]
    differentiate: Callable[..., None]
    solve_panel: Callable[..., None]


def _compile(function: Callable[..., None], bins: int, backwards: int) -> Callable[..., None]:
    # Numba keeps all closures of one function in one file of its cache, without a lock: a name for
    # each, so that processes which compile different ones at the same time do not mix them up.
    function.__qualname__ += f"_{bins}_{'inverse' if backwards else 'forward'}"
    return numba.njit(parallel=True, **COMPILE)(function)  # type: ignore[no-any-return]


def _compile_evaluate(bins: int, backwards: int) -> Callable[..., None]:
    def evaluate(values, parameters, bound, images, logs):
        rows, count, width = parameters.shape
        lanes = VECTOR_BYTES // values.itemsize
        limit = values.dtype.type(bound)
        whole = width - width % lanes
        for i in numba.prange(rows):
            for j in range(0, whole, lanes):
                start, at = i * count * width + j, i * width + j
                evaluate_tile(
                    bins, backwards, limit, parameters, start, width, values, at, images, logs
                )
            if whole < width:
                # the rest of the row, in a tile of its own
                left = width - whole
                tile = np.zeros((count, lanes), parameters.dtype)
                value = np.zeros(lanes, values.dtype)
                image, log = np.empty_like(value), np.empty_like(value)
                tile[:, :left] = parameters[i, :, whole:]
                value[:left] = values[i, whole:]
                evaluate_tile(bins, backwards, limit, tile, 0, lanes, value, 0, image, log)
                images[i, whole:] = image[:left]
                logs[i, whole:] = log[:left]

    return _compile(evaluate, bins, backwards)


def _compile_differentiate(bins: int, backwards: int) -> Callable[..., None]:
    def differentiate(
        values, images, parameters, bound, grad_images, grad_logs, grad_values, grad_parameters
    ):
        rows, count, width = parameters.shape
        lanes = VECTOR_BYTES // values.itemsize
        limit = values.dtype.type(bound)
        whole = width - width % lanes
        for i in numba.prange(rows):
            for j in range(0, whole, lanes):
                start, at = i * count * width + j, i * width + j
                _differentiate_tile(
                    bins, backwards, limit, parameters, start, width,
                    values, images, grad_images, grad_logs, at, grad_values, grad_parameters,
                )  # fmt: skip
            if whole < width:
                left = width - whole
                tile = np.zeros((count, lanes), parameters.dtype)
                inputs = np.zeros((4, lanes), values.dtype)
                result = np.empty(lanes, values.dtype)
                tile[:, :left] = parameters[i, :, whole:]
                inputs[0, :left] = values[i, whole:]
                inputs[1, :left] = images[i, whole:]
                inputs[2, :left] = grad_images[i, whole:]
                inputs[3, :left] = grad_logs[i, whole:]
                _differentiate_tile(
                    bins, backwards, limit, tile, 0, lanes,
                    inputs[0], inputs[1], inputs[2], inputs[3], 0, result, tile,
                )  # fmt: skip
                grad_values[i, whole:] = result[:left]
                grad_parameters[i, :, whole:] = tile[:, :left]

    return _compile(differentiate, bins, backwards)


def _compile_solve_panel(bins: int, backwards: int) -> Callable[..., None]:
    def solve_panel(
        sums, base, outputs, first, blocks, last, last_start, last_step, counts,
        location, scale, bound, inputs, logs, hidden,
    ):  # fmt: skip
        layers, units, width = sums.shape
        lanes = VECTOR_BYTES // sums.itemsize
        limit = sums.dtype.type(bound)
        dims, count, _ = base.shape
        zero = sums.dtype.type(0)
        for tile in numba.prange(width // lanes):
            column = tile * lanes
            standard = np.empty(lanes, sums.dtype)
            done = 0
            for t in range(dims):
                final = counts[t]
                for layer in range(layers):
                    for u in range(done, final):
                        here = (layer * units + u) * width + column
                        if layer > 0:
                            for v in range(final):
                                below = ((layer - 1) * units + v) * width + column
                                weight = blocks[layer - 1, u, v]
                                _add_scaled_tile(sums, here, weight, hidden, below)
                        for j in range(lanes):
                            # this way round, NaN stays
                            hidden[layer, u, column + j] = max(sums[layer, u, column + j], zero)
                done = final
                at = t * width + column
                _solve_tile(
                    bins, backwards, limit, base, t * count * width + column, width,
                    last, last_start + t * count * last_step, last_step, final,
                    hidden, (layers - 1) * units * width + column,
                    outputs, inputs, logs, at,
                )  # fmt: skip
                for j in range(lanes):
                    standard[j] = (inputs[t, column + j] - location[t]) / scale[t]
                for u in range(done, units):
                    _add_scaled_tile(sums, u * width + column, first[u, t], standard, 0)

    return _compile(solve_panel, bins, backwards)


@functools.cache
def spline_kernels(bins: int, inverse: bool) -> SplineKernels:
    """Kernels for splines of ``bins`` bins, compiled at their first call."""
    kind = bins, int(inverse)
    return SplineKernels(
        _compile_evaluate(*kind), _compile_differentiate(*kind), _compile_solve_panel(*kind)
    )
