"""Flows as ONNX graphs, of standard operators alone.

What is drawn is what the flows draw in torch from the same random numbers, but for rounding. The
first dimension of everything is the batch, of any size; in comments N is its size, M the number of
lit nodes of a level.

A graph of few photons is a long row of small operators, each of which costs more to start than to
run. So there are as few of them as can be: constants are folded when the graph is built, tables are
gathered whole and taken apart, biases go along with products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from spox import Var
from torch import Tensor, nn

from zdc_nb.detector import split_tree
from zdc_nb.flows.made import TriangularLinear
from zdc_nb.flows.maf_iaf import ConditionalSplineAutoregressive, Student
from zdc_nb.flows.splines import MIN_FRACTION
from zdc_nb.flows.splitting import (
    BLINDING,
    FACE_REACHES,
    LARGEST_LOG_SCALE,
    REACHES,
    STEEPNESS,
    SplittingFlow,
)
from zdc_nb.generator.random_numbers import (
    BITS,
    LARGEST,
    LIMB,
    PRIME,
    SCALE,
    column_keys,
    rounds,
)
from zdc_nb.params import PreprocessingParams

LARGEST_LOGIT = math.log(2 ** (BITS + 1) - 1)
"""Of a random number."""

__all__ = [
    "draw_states",
    "draw_uniforms",
    "integers",
    "numbers",
    "perceptron",
    "photons_of_fibres",
    "photons_of_splits",
    "sample_splitting",
    "sample_student",
]


def numbers(value: Any) -> Var:
    """A float32 constant."""
    return op.const(_array(value).astype(np.float32))


def integers(value: Any) -> Var:
    """An int64 constant."""
    return op.const(np.asarray(value, np.int64))


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        found: NDArray[Any] = value.detach().cpu().numpy()
        return found
    return np.asarray(value)


def _columns(x: Var, first: int, end: int) -> Var:
    return op.slice(x, integers([first]), integers([end]), integers([1]))


def _singles(x: Var, count: int) -> Sequence[Var]:
    """The columns of (N, count), (N, 1) each."""
    return op.split(x, integers([1] * count), outputs_count=count, axis=1)


def perceptron(x: Var, layers: nn.Sequential) -> Var:
    """What linear layers and ReLUs make of (N, C)."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = op.gemm(x, numbers(layer.weight.T), numbers(layer.bias))
        elif isinstance(layer, nn.ReLU):
            x = op.relu(x)
        elif isinstance(layer, nn.Dropout):
            continue
        else:
            raise TypeError(f"perceptron: expected linear layers and ReLUs, got {layer}")
    return x


# --- Random numbers: zdc_nb.generator.random_numbers, step by step ---------------------------------


def _power(x: Var, prime: Var) -> Var:
    square = op.mod(op.mul(x, x), prime)
    fourth = op.mod(op.mul(square, square), prime)
    return op.mod(op.mul(fourth, x), prime)


def draw_states(normals: Var) -> Var:
    """(N, 2) int64 states of normal numbers (N, 10)."""
    prime, limb = integers(PRIME), integers(LIMB)
    cut = op.clip(normals, numbers(-LARGEST), numbers(LARGEST))
    whole = op.cast(op.mul(cut, numbers(SCALE)), to=np.int64)
    whole = op.add(whole, integers(int(LARGEST * SCALE)))
    state = op.concat([op.div(whole, limb), op.mod(whole, limb)], axis=1)
    for matrix, offset in rounds():
        mixed = op.add(op.matmul(state, integers(matrix)), integers(offset))
        state = _power(op.mod(mixed, prime), prime)
    return state


def draw_uniforms(states: Var, count: int) -> Var:
    """(N, count) float32 random numbers of states."""
    prime = integers(PRIME)
    c, d, e = column_keys(count)
    a, b = op.split(states, outputs_count=2, axis=1)
    mixed = op.mul(op.add(a, integers(c)), op.add(b, integers(d)))
    mixed = op.mod(op.add(mixed, integers(e)), prime)
    top = op.div(_power(mixed, prime), integers(2 ** (31 - BITS)))
    # exact in float32, product and sum alike
    scaled = op.mul(op.cast(top, to=np.float32), numbers(2.0**-BITS))
    return op.add(scaled, numbers(2.0 ** -(BITS + 1)))


# --- Splines -----------------------------------------------------------------------------------


def _knots(bins: int, bound: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(K, K + 1) and (K + 1,): what makes knots, the ends included, of the shares of K bins."""
    below = np.triu(np.ones((bins, bins + 1)), 1)
    matrix = 2 * bound * (1 - bins * MIN_FRACTION) * below
    offset = 2 * bound * MIN_FRACTION * below.sum(0) - bound
    # the last knot is the bound, whatever the sum of the shares is rounded to
    matrix[:, -1], offset[-1] = 0, bound
    return matrix, offset


def _invert_spline(
    z: Var, sizes: Var, derivatives: Var, bins: int, bound: float, factor: float
) -> Var:
    """(M, 1) inverse of splines at z (M, 1) within the bound, times ``factor``.

    ``sizes`` (M, 2K) of heights, then widths; ``derivatives`` (M, K + 1), the ends included: both
    unnormalised.
    """
    shares = op.softmax(op.reshape(sizes, integers([-1, bins])))
    matrix, offset = _knots(bins, bound)
    knots = op.gemm(shares, numbers(matrix), numbers(offset))
    knots = op.reshape(knots, integers([-1, 2 * bins + 2]))
    # of the knots of the heights at least the first is passed, and the last does not count
    passed = op.cast(op.greater_or_equal(z, knots), to=np.float32)
    count = np.zeros((2 * bins + 2, 6))
    count[:bins] = 1
    start = np.array([0, 1, bins + 1, bins + 2, 2 * bins + 2, 2 * bins + 3])
    here = op.cast(op.gemm(passed, numbers(count), numbers(start - 1)), to=np.int64)
    ends = op.gather_elements(op.concat([knots, derivatives], axis=1), here, axis=1)
    ends, raw = op.split(ends, integers([4, 2]), outputs_count=2, axis=1)
    ends = op.concat([ends, op.softplus(raw), z], axis=1)
    # of y0, y1, x0, x1, d0, d1 and z: z - y0, height, width / 2, d0, d0 + d1, and x0 and width times
    # the factor
    combine, more = np.zeros((7, 7)), np.zeros(7)
    combine[[0, 6], 0] = -1, 1
    combine[[0, 1], 1] = -1, 1
    combine[[2, 3], 2] = -0.5, 0.5
    combine[4, 3], more[3] = 1, MIN_FRACTION
    combine[[4, 5], 4], more[4] = 1, 2 * MIN_FRACTION
    combine[2, 5] = factor
    combine[[2, 3], 6] = -factor, factor
    ends = op.gemm(ends, numbers(combine), numbers(more))
    above, height, half_width, d0, both, x0, width = _singles(ends, 7)
    rise = op.div(above, height)
    twice_slope = op.div(height, half_width)
    p = op.mul(twice_slope, rise)
    q = op.sub(twice_slope, p)
    rest = op.sub(d0, op.mul(rise, both))
    b = op.add(rest, p)
    a = op.sub(op.sub(twice_slope, b), b)
    # b^2 + a p, as a sum of what cannot be negative
    root = op.sqrt(op.add(op.mul(rest, rest), op.mul(p, q)))
    together = op.add(root, op.abs(b))
    # of the two forms of the root, the one without a difference of nearly equal numbers
    negative = op.less(b, numbers(0.0))
    t = op.div(op.where(negative, together, p), op.where(negative, a, together))
    return op.add(x0, op.mul(t, width))


def _spline_outputs(raw: NDArray[Any], bins: int, ends: float = 0.0) -> NDArray[Any]:
    """(..., P') of a network's outputs (..., P): heights, widths, derivatives, then the rest.

    The derivatives with those at both ends, which are always the same.
    """
    widths, heights, inner, rest = np.split(raw, [bins, 2 * bins, 3 * bins - 1], axis=-1)
    end = np.full((*raw.shape[:-1], 1), ends)
    return np.concatenate([heights, widths, end, inner, end, rest], axis=-1)


_END_DERIVATIVE = math.log(math.expm1(1 - 2 * MIN_FRACTION))
"""Unnormalised derivative that stands for the one at both ends of a spline."""


# --- The splitting flow ------------------------------------------------------------------------


def sample_splitting(flow: SplittingFlow, context: Var, total: Var, uniform: Var) -> Var:
    """(N, 2D) one more than the photons of every box, as :meth:`SplittingFlow.from_uniform` draws them.

    Parameters
    ----------
    context
        (N, C + 2) as a flow is told, without the photon sum.
    total
        (N, 1) photon sums.
    uniform
        (N, D - 1).

    Returns
    -------
    float32; the first box is the dark one beyond the face, the others are those of the tree.
    """
    graph = _Splitting(flow, context, total, uniform)
    # N * D pairs of halves; those of node k follow on k other pairs; box 1 is the face
    face = np.zeros((1, 2 * flow.dim))
    face[0, 1] = 1
    light = op.add(op.mul(total, numbers(face)), numbers(1.0))
    light = op.reshape(light, integers([-1, 2]))
    for level in flow.tree.levels:
        light = graph.cut(level, light)
    return op.reshape(light, integers([-1, 2 * flow.dim]))


class _Lit(NamedTuple):
    """M lit nodes of a level.

    Attributes
    ----------
    event, node
        (M,) response, and node counted from the level's first.
    boxes
        (M, W) the boxes around each, its own last: where in ``light``, flat.
    places
        (M, 2) its row and its column, among those that the impact point is seen from.
    halves
        (M, 1) the pair in ``light`` that its halves are, and its random number's place.
    coarse
        (M,) the bias of its curve, on the levels where each has its own.
    """

    event: Var
    node: Var
    boxes: Var
    places: Var
    halves: Var
    coarse: Var | None


class _Splitting:
    """What all levels of the tree share: constants, and what the particle tells."""

    def __init__(self, flow: SplittingFlow, context: Var, total: Var, uniform: Var) -> None:
        self.flow, tree = flow, flow.tree
        # that halves follow on each other is what makes them pairs
        assert (tree.first == 2 * np.arange(len(tree.nodes)) + 1).all()
        boxes = np.concatenate([_array(flow.window), tree.nodes[:, None]], axis=1)
        self._boxes = np.where(boxes == len(tree.boxes), 0, boxes + 1)
        levels = [level.stop for level in tree.levels if level.start < flow.coarse_nodes]
        self._coarse_nodes = levels[-1]
        self._set_constants()
        particle = self._tell(context, total)
        self._coarse = self._own_curves(particle)
        # one of no node before the others, so that they lie as the pairs of halves do
        uniform = op.pad(uniform, integers([0, 1, 0, 0]), numbers(0.5))
        odds = op.log(op.div(uniform, op.sub(numbers(1.0), uniform)))
        self._logit = op.reshape(op.div(odds, numbers(STEEPNESS)), integers([-1]))

    def _set_constants(self) -> None:
        """The network's constants, once for all levels."""
        flow = self.flow
        weight = _array(flow.see.weight).astype(np.float64).T
        around = self._boxes.shape[1]
        # the network sees the others relative to the node itself, the graph sees them as they are
        weight[around - 1] -= weight[: around - 1].sum(0)
        # rows and columns come one after the other
        place = weight[around + 2 :]
        self._see = numbers(np.concatenate([weight[: around + 2], place[::2], place[1::2]]))
        # biases are left out of h and added where it is looked at: max(h, -b) is relu(h + b) - b
        less = np.zeros(len(flow.see.bias))
        self._layers = []
        for layer in flow.between:
            matrix, bias = (
                _array(part).astype(np.float64) for part in (layer.weight.T, layer.bias)
            )
            self._layers.append((numbers(less[None]), numbers(matrix)))
            less = less + less @ matrix - bias
        bins = flow.params.bins
        last = _spline_outputs(_array(flow.last.weight).astype(np.float64).T, bins)
        bias = _spline_outputs(_array(flow.last.bias).astype(np.float64), bins, _END_DERIVATIVE)
        self._last = numbers(less[None]), numbers(last)
        self._bias = bias - less @ last

    def _tell(self, context: Var, total: Var) -> Var:
        """The particle's last hidden layer (N, H'); the first layer's part of it; the impact point.

        The impact point as seen from each of the U rows and columns that a node can have: features
        (N * U, 6), of which a node has those of its row and its column.
        """
        flow, columns = self.flow, self.flow.context - 1
        slopes = _columns(context, columns - 2, columns)
        slopes = op.clip(slopes, numbers(-BLINDING), numbers(BLINDING))
        sums = op.sub(op.mul(op.log(op.add(total, numbers(1.0))), numbers(0.25)), numbers(1.0))
        told = op.concat([_columns(context, 0, columns - 2), slopes, sums], axis=1)
        particle = perceptron(told, flow.particle)
        self._told = op.gemm(particle, numbers(flow.tell.weight.T), numbers(flow.see.bias))
        face, scale = _array(flow.face), _array(flow.aim_scale)
        offset = numbers(_array(flow.aim_offset) * face)
        impact = op.add(op.mul(slopes, numbers(scale * face)), offset)
        parts, places, count = [], [], 0
        for axis, at in enumerate(_singles(impact, 2)):
            seen = np.stack([_array(flow.middle)[:, axis], _array(flow.size)[:, axis]], 1)
            known, place = np.unique(seen, axis=0, return_inverse=True)
            places.append(place.reshape(-1) + count)
            count += len(known)
            reaches = [known[:, 1] * reach for reach in REACHES]
            reaches += [np.full(len(known), face[axis] * reach) for reach in FACE_REACHES]
            away = op.unsqueeze(op.sub(at, numbers(known[None, :, 0])), integers([2]))
            parts.append(op.softsign(op.mul(away, numbers(1 / np.stack(reaches, 1)))))
        self._places, self._place_count = np.stack(places, 1), count
        self._seen = op.reshape(
            op.concat(parts, axis=1), integers([-1, len(REACHES) + len(FACE_REACHES)])
        )
        return particle

    def _own_curves(self, particle: Var) -> Var:
        """(N * c, P') biases of the curves of the first c nodes, with what the particle itself says."""
        flow, count = self.flow, self._coarse_nodes
        weight = _array(flow.coarse).reshape(len(flow.coarse), flow.coarse_nodes, -1)
        curves = _spline_outputs(weight, flow.params.bins)
        # of the last level that has some, the others get nothing
        curves = np.pad(curves, ((0, 0), (0, count - flow.coarse_nodes), (0, 0)))
        bias = np.tile(self._bias, (count, 1))
        bias[:, -2] += _array(flow.even)[:count]
        own = op.gemm(particle, numbers(curves.reshape(len(curves), -1)), numbers(bias.reshape(-1)))
        return op.reshape(own, integers([-1, curves.shape[2]]))

    def cut(self, level: slice, light: Var) -> Var:
        """``light`` (N * D, 2) with the halves of all lit nodes of a level."""
        flow, nodes = self.flow, np.arange(level.start, level.stop)
        lit = self._find_lit(nodes, light)
        # n + 1
        around = op.gather(op.reshape(light, integers([-1])), lit.boxes)
        more = _columns(around, self._boxes.shape[1] - 1, self._boxes.shape[1])
        raw = self._curves(nodes, lit, around, more)
        bins = flow.params.bins
        sizes, derivatives, centre, scale = op.split(
            raw, integers([2 * bins, bins + 1, 1, 1]), outputs_count=4, axis=1
        )
        z = op.gather(self._logit, lit.halves)
        x = self._invert(z, sizes, derivatives)
        scale = op.clip(scale, numbers(-LARGEST_LOG_SCALE), numbers(LARGEST_LOG_SCALE))
        factor = op.mul(op.exp(scale), op.sqrt(op.add(more, numbers(3.0))))
        even = _array(flow.even)[nodes]
        if lit.coarse is None and (even != 0).any():
            centre = op.add(centre, op.gather(numbers(even[:, None]), lit.node))
        odds = op.add(op.div(x, factor), centre)
        # t is below 1 there in double precision, and so l not above n
        odds = op.cast(op.clip(odds, numbers(-30.0), numbers(30.0)), to=np.float64)
        half = op.floor(op.mul(op.sigmoid(odds), op.cast(more, to=np.float64)))
        both = op.concat([op.cast(half, to=np.float32), more], axis=1)
        # l + 1 and n + 1 - l
        halves = op.gemm(both, numbers([[1, -1], [0, 1]]), numbers([1, 0]))
        return op.scatter_nd(light, lit.halves, halves)

    def _find_lit(self, nodes: NDArray[np.int64], light: Var) -> _Lit:
        flow, own = self.flow, self._boxes[nodes, -1]
        rows = op.reshape(light, integers([-1, 2 * flow.dim]))
        if own[-1] - own[0] == len(own) - 1:
            counts = _columns(rows, int(own[0]), int(own[-1]) + 1)
        else:
            counts = op.gather(rows, integers(own), axis=1)
        lit = op.transpose(op.non_zero(op.greater(counts, numbers(1.5))))
        event, node = _singles(lit, 2)
        node = op.reshape(node, integers([-1]))
        # where everything is, in one table: for each what it adds for a response
        window = self._boxes.shape[1]
        parts = [
            (self._boxes[nodes], 2 * flow.dim),
            (self._places[nodes], self._place_count),
            (nodes[:, None] + 1, flow.dim),
        ]
        sizes = [window, 2, 1]
        has_coarse = nodes[-1] < self._coarse_nodes
        if has_coarse:
            parts.append((nodes[:, None], self._coarse_nodes))
            sizes.append(1)
        table = np.concatenate([part for part, _ in parts], axis=1)
        strides = np.concatenate([np.full(part.shape[1], stride) for part, stride in parts])
        found = op.add(op.gather(integers(table), node), op.mul(event, integers(strides)))
        boxes, places, halves, *coarse = op.split(
            found, integers(sizes), outputs_count=len(sizes), axis=1
        )
        own_curve = op.reshape(coarse[0], integers([-1])) if has_coarse else None
        return _Lit(op.reshape(event, integers([-1])), node, boxes, places, halves, own_curve)

    def _curves(self, nodes: NDArray[np.int64], lit: _Lit, around: Var, more: Var) -> Var:
        """(M, P') what the network says of lit nodes."""
        inverse = op.reciprocal(more)
        impact = op.gather(self._seen, lit.places)
        impact = op.reshape(impact, integers([-1, 2 * (len(REACHES) + len(FACE_REACHES))]))
        seen = op.concat([op.log(around), op.sqrt(inverse), inverse, impact], axis=1)
        place = op.gather(numbers(self.flow.place.weight[nodes[0] : nodes[-1] + 1]), lit.node)
        h = op.gemm(seen, self._see, op.add(op.gather(self._told, lit.event), place))
        for k, (less, matrix) in enumerate(self._layers):
            h = op.gemm(op.max([h, less]) if k else op.relu(h), matrix, h)
        less, matrix = self._last
        bias = numbers(self._bias) if lit.coarse is None else op.gather(self._coarse, lit.coarse)
        return op.gemm(op.max([h, less]), matrix, bias)

    def _invert(self, z: Var, sizes: Var, derivatives: Var) -> Var:
        """(M, 1) twice what splines lead to z, the identity beyond the bound."""
        bins, bound = self.flow.params.bins, self.flow.params.bound
        if bound * STEEPNESS > LARGEST_LOGIT:
            return _invert_spline(z, sizes, derivatives, bins, bound, 2.0)
        inside = op.clip(z, numbers(-bound), numbers(bound))
        x = _invert_spline(inside, sizes, derivatives, bins, bound, 2.0)
        return op.add(x, op.mul(op.sub(z, inside), numbers(2.0)))


# --- Students ----------------------------------------------------------------------------------


def sample_student(student: Student, conditions: Var, uniform: Var) -> Var:
    """(N, d) float32 in flow space, as :meth:`zdc_nb.generator.surrogate.Surrogate.from_uniform`.

    Of conditions (N, C) and random numbers (N, 2 ceil(d / 2)). Products are in float32 whatever the
    student's ``precision``.
    """
    u = op.reshape(uniform, integers([0, -1, 2]))
    first, second = op.split(u, integers([1, 1]), outputs_count=2, axis=2)
    size = op.sqrt(op.mul(op.log(first), numbers(-2.0)))
    angle = op.mul(second, numbers(2 * math.pi))
    pairs = op.concat([op.mul(size, op.cos(angle)), op.mul(size, op.sin(angle))], axis=2)
    x = _columns(op.reshape(pairs, integers([0, -1])), 0, student.dim)
    blocks: list[Any] = list(student.blocks)
    for i in reversed(range(len(blocks))):
        x = _student_block(blocks[i], x, conditions)
        if i > 0:
            back = np.argsort(_array(student.get_buffer(f"order_{i - 1}")))
            x = op.gather(x, integers(back), axis=1)
    return x


def _student_block(block: ConditionalSplineAutoregressive, x: Var, conditions: Var) -> Var:
    network, bins = block.network, block.network.bins
    standard = op.div(op.sub(x, numbers(network.location)), numbers(network.scale))
    h = op.concat([conditions, standard], axis=1)
    for layer in network.hidden_layers:
        h = op.relu(_multiply_panels(h, layer, _array(layer.bias)))
    bias = _spline_outputs(
        _array(network.last.bias).reshape(network.dim, -1), bins, _END_DERIVATIVE
    )
    raw = _multiply_panels(h, network.last, bias.reshape(-1), bins)
    if network.context_network is not None:
        *before, final = network.context_network
        weight = _of_splines(_array(final.weight).T, bins)
        own = perceptron(conditions, nn.Sequential(*before))
        raw = op.add(raw, op.matmul(own, numbers(weight)))
    curves = op.reshape(raw, integers([-1, 3 * bins + 1]))
    sizes, derivatives = op.split(curves, integers([2 * bins, bins + 1]), outputs_count=2, axis=1)
    column = op.reshape(x, integers([-1, 1]))
    inside = op.clip(column, numbers(-block.bound), numbers(block.bound))
    found = _invert_spline(inside, sizes, derivatives, bins, block.bound, 1.0)
    # beyond the bound a spline is the identity
    found = op.add(found, op.sub(column, inside))
    return op.reshape(found, integers([-1, network.dim]))


def _of_splines(weight: NDArray[Any], bins: int) -> NDArray[Any]:
    """(H, T P') of weights (H, T P) that lead to the splines of T dimensions."""
    outputs = _spline_outputs(weight.reshape(len(weight), -1, 3 * bins - 1), bins)
    return outputs.reshape(len(weight), -1)


def _multiply_panels(
    x: Var, layer: TriangularLinear, bias: NDArray[Any], bins: int | None = None
) -> Var:
    """A triangular layer, only its lower triangle; with ``bins`` its outputs are those of splines."""
    parts = []
    for panel in layer.panels:
        weight = _array(panel.of(layer.weight)).T
        if bins is not None:
            weight = _of_splines(weight, bins)
        parts.append(op.matmul(_columns(x, 0, panel.columns), numbers(weight)))
    return op.add(op.concat(parts, axis=1), numbers(bias[None]))


def photons_of_splits(x: Var, total: Var, shape: tuple[int, int]) -> Var:
    """(N, D) float32 one more than the photons of fibres, of split logits (N, D - 1).

    ``total`` (N, 1) float64; as :func:`zdc_nb.generator.encoding.decode_responses`.
    """
    tree = split_tree(shape)
    t = op.sigmoid(op.cast(x, to=np.float64))
    one = op.const(np.float64(1))
    counts, boxes, begin = total, [total], 0
    for level in tree.levels:
        n = op.gather(counts, integers(tree.nodes[level] - begin), axis=1)
        share = op.slice(t, integers([level.start]), integers([level.stop]), integers([1]))
        half = op.min([op.floor(op.mul(share, op.add(n, one))), n])
        pair = [op.unsqueeze(part, integers([2])) for part in (half, op.sub(n, half))]
        begin = int(tree.first[level.start])
        counts = op.reshape(op.concat(pair, axis=2), integers([0, -1]))
        boxes.append(counts)
    fibres = op.gather(op.concat(boxes, axis=1), integers(tree.fibre), axis=1)
    return op.cast(op.add(fibres, one), to=np.float32)


def photons_of_fibres(x: Var, total: Var, params: PreprocessingParams) -> Var:
    """The same of (N, D) in flow space, in the coordinates ``fibres``."""
    assert params.noise is not None
    assert params.alpha is not None
    denoise = params.denoise or "floor"

    def real(value: float) -> Var:
        return op.const(np.float64(value))

    dim = x.unwrap_tensor().shape
    assert dim is not None
    fraction = op.sub(op.sigmoid(op.cast(x, to=np.float64)), real(params.alpha))
    fraction = op.div(fraction, real(1 - 2 * params.alpha))
    last = integers([1])
    noised_sum = op.add(total, real(int(str(dim[1])) * params.noise / 2))
    whole = op.reduce_sum(op.abs(fraction), last)
    noised = op.mul(op.div(fraction, whole), noised_sum)
    shift = params.noise / 2 if denoise.startswith("shift-") else 0.0
    counts = op.max([op.floor(op.sub(noised, real(shift))), real(0.0)])
    if denoise.endswith("-rescale"):
        found = op.max([op.reduce_sum(counts, last), real(1.0)])
        counts = op.floor(op.div(op.mul(counts, total), found))
    # noise would be left of a response without light
    counts = op.where(op.greater(total, real(0.0)), counts, real(0.0))
    counts = op.min([counts, real(2.0**16 - 1)])
    return op.cast(op.add(counts, real(1.0)), to=np.float32)
