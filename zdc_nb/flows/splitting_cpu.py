"""Sampling of the splitting flow on a CPU: compiled, lit nodes only, a group of responses at a time.

The same steps as in :meth:`zdc_nb.flows.splitting.SplittingFlow.from_uniform` in torch, without
its overhead: a level of a few responses is a handful of rows. Groups are small, so that all that
belongs to one stays in the cache, and every thread works on groups of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from zdc_nb.flows.splines_cpu import COMPILE, VECTOR_BYTES, evaluate_tile

__all__ = ["GROUP", "Inputs", "Network", "sample_boxes"]

Array = NDArray[np.float32]
Integers = NDArray[np.int64]

GROUP = 32
"""Responses that are sampled together."""


class Network(NamedTuple):
    """The flow as arrays: float32 or int64, weights (inputs, outputs)."""

    levels: Integers
    window: Integers
    nodes: Integers
    first: Integers
    middle: Array
    size: Array
    face: Array
    even: Array
    see: Array
    place: Array
    between: Array
    between_bias: Array
    last: Array
    last_bias: Array
    reaches: Array
    face_reaches: Array


class Inputs(NamedTuple):
    """What a batch of N responses is drawn from; ``light`` and ``counts`` are filled.

    ``logit`` (N, D - 1); ``impact`` (N, 2); ``told`` (N, H) and ``coarse`` (N, c, P), what the
    particle adds to the first hidden layer and to the outputs of the first c nodes; ``counts`` and
    ``light`` (N, 2D), with the photon sum in box 0.
    """

    logit: Array
    impact: Array
    told: Array
    coarse: Array
    counts: Array
    light: Array


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def sample_boxes(network: Network, inputs: Inputs, bins: int, bound: float) -> None:
    """Fill the counts of all boxes, level by level, on as many threads as torch has."""
    kernel = _compile_sample(bins)
    starts = range(0, len(inputs.counts), GROUP)

    def work(start: int) -> None:
        kernel(network, Inputs(*(part[start : start + GROUP] for part in inputs)), bound)

    threads = min(torch.get_num_threads(), len(starts))
    # threads of the products inside of ours would only be in each other's way
    with _controller().limit(limits=1, user_api="blas"):
        if threads == 1:
            for start in starts:
                work(start)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, starts))


@numba.njit(**COMPILE)
def _find_lit(network, counts, begin, end):
    """Response and node of every lit node from ``begin`` to ``end``."""
    event = np.empty(len(counts) * (end - begin), np.int64)
    nodes = np.empty_like(event)
    rows = 0
    for i in range(len(counts)):
        for node in range(begin, end):
            if counts[i, network.nodes[node]] > 0:
                event[rows], nodes[rows] = i, node
                rows += 1
    return event[:rows], nodes[:rows]


@numba.njit(**COMPILE)
def _see_place(network, impact, node, x):
    """Fill x with the impact point as seen from a node, in sizes of the box and of the face."""
    local = len(network.reaches)
    for axis in range(2):
        away = impact[axis] - network.middle[node, axis]
        for k in range(local):
            far = away / network.size[node, axis] / network.reaches[k]
            x[2 * k + axis] = far / (1 + abs(far))
        for k in range(len(network.face_reaches)):
            far = away / network.face[axis] / network.face_reaches[k]
            x[2 * (local + k) + axis] = far / (1 + abs(far))


@numba.njit(**COMPILE)
def _features(network, inputs, event, nodes):
    """(M, F) as :meth:`zdc_nb.flows.splitting.SplittingFlow.features`."""
    around = network.window.shape[1]
    x = np.empty((len(event), len(network.see)), np.float32)
    for r in range(len(event)):
        i, node = event[r], nodes[r]
        own = inputs.light[i, network.nodes[node]]
        n = inputs.counts[i, network.nodes[node]]
        for k in range(around):
            x[r, k] = inputs.light[i, network.window[node, k]] - own
        x[r, around] = own
        x[r, around + 1] = 1 / np.sqrt(n + 1)
        x[r, around + 2] = 1 / (n + 1)
        _see_place(network, inputs.impact[i], node, x[r, around + 3 :])
    return x


@numba.njit(**COMPILE)
def _curves(network, inputs, event, nodes, lanes):
    """(P, M') as :meth:`zdc_nb.flows.splitting.SplittingFlow.curves`; M' is a multiple of ``lanes``."""
    layers, width = network.between_bias.shape
    rows = len(event)
    zero = np.float32(0)
    h = np.dot(_features(network, inputs, event, nodes), network.see)
    active = np.zeros(((rows + lanes - 1) // lanes * lanes, width), np.float32)
    for r in range(rows):
        for k in range(width):
            h[r, k] += network.place[nodes[r], k] + inputs.told[event[r], k]
            active[r, k] = max(h[r, k], zero)
    for layer in range(layers):
        more = np.dot(active[:rows], network.between[layer])
        for r in range(rows):
            for k in range(width):
                h[r, k] += more[r, k] + network.between_bias[layer, k]
                active[r, k] = max(h[r, k], zero)
    # samples last, as the splines want them
    raw = np.dot(network.last.T, active.T)
    for p in range(len(raw)):
        raw[p] += network.last_bias[p]
    for r in range(rows):
        if nodes[r] < inputs.coarse.shape[1]:
            raw[:, r] += inputs.coarse[event[r], nodes[r]]
    return raw


@functools.cache
def _compile_sample(bins: int) -> Callable[..., None]:
    lanes = VECTOR_BYTES // 4

    def sample(network, inputs, bound):
        limit = np.float32(bound)
        for level in range(len(network.levels) - 1):
            begin, end = network.levels[level], network.levels[level + 1]
            event, nodes = _find_lit(network, inputs.counts, begin, end)
            if len(event) == 0:
                continue
            raw = _curves(network, inputs, event, nodes, lanes)
            columns = raw.shape[1]
            z, x, log = np.zeros((3, columns), np.float32)
            for r in range(len(event)):
                z[r] = inputs.logit[event[r], nodes[r]]
            for at in range(0, columns, lanes):
                evaluate_tile(bins, 1, limit, raw, at, columns, z, at, x, log)
            for r in range(len(event)):
                i, node = event[r], nodes[r]
                n = inputs.counts[i, network.nodes[node]]
                scale = np.exp(min(max(raw[-1, r], np.float32(-5)), np.float32(5)))
                logit = x[r] / (scale * np.sqrt(n + 4) / 2) + network.even[node] + raw[-2, r]
                t = 1 / (1 + np.exp(-np.float64(logit)))
                half = np.float32(min(np.floor(t * (n + 1)), n))
                first = network.first[node]
                inputs.counts[i, first], inputs.counts[i, first + 1] = half, n - half
                inputs.light[i, first] = np.log1p(half)
                inputs.light[i, first + 1] = np.log1p(n - half)

    sample.__qualname__ += f"_{bins}"
    return numba.njit(**COMPILE)(sample)  # type: ignore[no-any-return]
