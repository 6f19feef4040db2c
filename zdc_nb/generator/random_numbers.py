r"""What a generator draws a response from: many random numbers out of a seed, or out of ten.

In Python they come of a seed and the number of the response (:func:`uniforms_from_seed`). An exported
generator has none of these.

ALICE's O2 hands a model ten normal numbers for each response. All else that is random in it is a
hash of these, in integers modulo the prime p = 2^31 - 1, with nothing but what an ONNX graph can do
exactly in int64: no product of two reduced numbers reaches 2^63.

1. A normal number is multiplied by 2^48, cut to an integer and taken apart into two limbs of 30
   bits: twenty limbs in all.
2. Three rounds mix them into a *state* of two numbers below p, 62 bits. A round is a matrix of
   constants, which makes each number depend on all, and the power x^5, which permutes the numbers
   modulo p (5 has no divisor in common with p - 1) and is far from linear.
3. Random number k comes of the state (a, b) and three constants of its own:

.. math::

    r_k = \left((a + c_k)(b + d_k) + e_k\right)^5 \bmod p, \qquad
    u_k = \frac{\lfloor r_k / 2^8 \rfloor + 1/2}{2^{23}}.

Two states share r_k where they solve one linear equation in c_k and d_k. So different states have
different rows of random numbers: two of them can only agree in columns whose constants lie on a
line. All u are exact in float32, and none is nearer to 0 or 1 than 2^-24.

The constants are 64-bit words of :class:`numpy.random.SeedSequence`, whose output never changes.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BITS",
    "LARGEST",
    "LIMB",
    "NORMALS",
    "PRIME",
    "SCALE",
    "ColumnKeys",
    "Round",
    "column_keys",
    "rounds",
    "states_from_normals",
    "uniforms_from_normals",
    "uniforms_from_seed",
    "uniforms_from_states",
]

Integers = NDArray[np.int64]

NORMALS = 10
"""Normal numbers that are given for a response."""

PRIME = 2**31 - 1

SCALE = 2.0**48
"""Normal numbers from 2^-25 on, all of 24 bits, become integers without loss."""

LARGEST = 2.0**11
"""Normal numbers are cut here: an integer then has at most 60 bits, two limbs, with its offset."""

LIMB = 2**30

BITS = 23
"""Of a random number."""

_WIDTHS = (2 * NORMALS, 8, 8, 2)

_SEED = 2512


class Round(NamedTuple):
    """Constants of one round: ``matrix`` (inputs, outputs) and ``offset`` (outputs,)."""

    matrix: Integers
    offset: Integers


class ColumnKeys(NamedTuple):
    """Constants c, d and e of each random number, (L,) each."""

    c: Integers
    d: Integers
    e: Integers


def _words(purpose: int, count: int) -> NDArray[np.uint64]:
    words = np.random.SeedSequence((_SEED, purpose)).generate_state(count, np.uint64)
    return words.astype(np.uint64, copy=False)


@cache
def rounds() -> list[Round]:
    """The rounds that turn twenty limbs into a state of two numbers."""
    found = []
    for k, (inputs, outputs) in enumerate(pairwise(_WIDTHS)):
        words = _words(k, (inputs + 1) * outputs).astype(np.int64).reshape(inputs + 1, outputs)
        # twenty products of 31 and 26 bits and an offset are below 2^62
        found.append(Round(words[:-1] % 2**26, words[-1] % PRIME))
    return found


@cache
def column_keys(count: int) -> ColumnKeys:
    """The constants of the first ``count`` random numbers, each below 2^29.

    Below 2^29, so that the product of two sums with numbers below p stays below 2^63.
    """
    words = (_words(len(_WIDTHS), 3 * count) % np.uint64(2**29)).astype(np.int64)
    return ColumnKeys(*words.reshape(count, 3).T.copy())


def _power(x: Integers) -> Integers:
    """x^5 modulo p, of numbers below p."""
    square = x * x % PRIME
    return square * square % PRIME * x % PRIME


def states_from_normals(normals: NDArray[np.float32]) -> Integers:
    """(N, 2) the state of each response, numbers below p, of its ten normal numbers (N, 10)."""
    cut = np.clip(normals, -LARGEST, LARGEST) * np.float32(SCALE)
    whole = cut.astype(np.int64) + int(LARGEST * SCALE)
    state = np.concatenate([whole // LIMB, whole % LIMB], axis=1)
    for matrix, offset in rounds():
        state = _power((state @ matrix + offset) % PRIME)
    return state


def uniforms_from_states(states: Integers, count: int) -> NDArray[np.float32]:
    """(N, count) random numbers in (0, 1) of states (N, 2)."""
    c, d, e = column_keys(count)
    mixed = ((states[:, :1] + c) * (states[:, 1:] + d) + e) % PRIME
    top = (_power(mixed) // 2 ** (31 - BITS)).astype(np.float32)
    uniforms: NDArray[np.float32] = (top + np.float32(0.5)) * np.float32(2.0**-BITS)
    return uniforms


def uniforms_from_normals(normals: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Random numbers of responses from the normal numbers that they were given.

    Parameters
    ----------
    normals
        (N, 10) float32.
    count
        random numbers for each response. More of them begin with the same ones.

    Returns
    -------
    (N, count) in [2^-24, 1 - 2^-24], multiples of 2^-24.

    Examples
    --------
    >>> normals = np.zeros((2, 10), np.float32)
    >>> normals[1, 7] = 1e-6
    >>> uniforms_from_normals(normals, 3).astype(float).round(3).tolist()
    [[0.067, 0.947, 0.264], [0.049, 0.507, 0.684]]
    """
    if normals.ndim != 2 or normals.shape[1] != NORMALS or normals.dtype != np.float32:
        raise ValueError(
            f"normals: expected (N, {NORMALS}) float32, got {normals.shape} {normals.dtype}"
        )
    return uniforms_from_states(states_from_normals(normals), count)


def uniforms_from_seed(seed: int, start: int, rows: int, columns: int) -> NDArray[np.float64]:
    """(rows, columns) random numbers in (0, 1), of the responses from number ``start`` on.

    Those of a response depend on seed, its number and ``columns`` alone: Philox, a counter-based
    generator (Salmon et al., SC 2011), is set to where they begin.
    """
    # the counter goes on by four numbers of 64 bits, each of which is two of ours
    blocks = -(-columns // 8)
    philox: Any = np.random.Philox(seed)  # whose methods have no types
    bits: NDArray[np.uint64] = philox.advance(start * blocks).random_raw(rows * blocks * 4)
    words = bits.view(np.uint32).reshape(rows, blocks * 8)[:, :columns]
    return (words.astype(np.float64) + 0.5) * 2.0**-32
