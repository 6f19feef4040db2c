r"""The face of a detector cut in two, again and again: the tree of the split coordinates.

A box of fibres is cut across its longer side (rows first where it is square) into two halves, the
first the larger one where it does not go even, down to single fibres. A response is then told by
its photon sum and, for each box that is cut, by how many of its n photons fall into the first half,

.. math::

    l_k = \lfloor t_k (n_k + 1) \rfloor, \qquad t_k \in (0, 1),

which holds the sum and whole counts whatever the t are: the recursive partition of multiscale
Poisson models (Timmermann and Nowak, IEEE Trans. Inf. Theory 45 (1999) 846; Kolaczyk, J. Am. Stat.
Assoc. 94 (1999) 920).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["SplitTree", "split_tree"]

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SplitTree:
    """All boxes of a face of D fibres, breadth first: box 0 is the face, D of them are fibres.

    The D - 1 boxes that are cut are the *nodes*, numbered in the same order. Made by
    :func:`split_tree`.

    Attributes
    ----------
    shape
        rows and columns of the face.
    boxes
        (2D - 1, 4): first row, row behind the last, first column, column behind the last.
    depth
        (2D - 1,): cuts that led to each box.
    nodes
        (D - 1,): the box that each node is.
    first
        (D - 1,): the box that is the first half of each node; the next box is the second.
    fibre
        (D,): the box that is each fibre, row * columns + column.

    Examples
    --------
    >>> tree = split_tree((2, 3))
    >>> tree.boxes[:3].tolist()
    [[0, 2, 0, 3], [0, 2, 0, 2], [0, 2, 2, 3]]
    >>> counts = np.array([[5, 0, 1, 0, 0, 2]])
    >>> tree.counts(counts)[0, tree.nodes].tolist()
    [8, 5, 3, 5, 0]
    """

    shape: tuple[int, int]
    boxes: Integers
    depth: Integers
    nodes: Integers
    first: Integers
    fibre: Integers

    @cached_property
    def levels(self) -> list[slice]:
        """The nodes of each depth, which are cut at once."""
        ends = np.searchsorted(self.depth[self.nodes], np.arange(self.depth.max() + 1))
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]

    @cached_property
    def members(self) -> sparse.csr_array:
        """(D, 2D - 1): 1 where a fibre is in a box; a sparse response times it counts lit boxes."""
        rows, columns = [], []
        number = np.arange(self.shape[0] * self.shape[1]).reshape(self.shape)
        for box, (top, bottom, left, right) in enumerate(self.boxes):
            rows.append(number[top:bottom, left:right].ravel())
            columns.append(np.full(rows[-1].size, box))
        where = np.concatenate(rows), np.concatenate(columns)
        shape = (number.size, len(self.boxes))
        return sparse.csr_array((np.ones(len(where[0]), np.int64), where), shape=shape)

    @cached_property
    def owner(self) -> Integers:
        """(depths, rows, columns): the box of each depth that holds a fibre; a fibre that was
        reached before holds itself."""
        owner = np.empty((int(self.depth.max()) + 1, *self.shape), np.int64)
        for box, (top, bottom, left, right) in enumerate(self.boxes):
            # deeper boxes come later and write over it
            owner[self.depth[box] :, top:bottom, left:right] = box
        return owner

    @cached_property
    def parent(self) -> Integers:
        """(2D - 1,): the box that each box is a half of; that of the face is itself."""
        parent = np.zeros(len(self.boxes), np.int64)
        parent[self.first] = parent[self.first + 1] = self.nodes
        return parent

    @cached_property
    def ranges(self) -> tuple[Integers, Integers, Integers]:
        """Fibres depth first, and where in this order each box begins and ends."""
        size = (self.boxes[:, 1] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 2])
        start = np.zeros(len(self.boxes), np.int64)
        for node, first in zip(self.nodes, self.first, strict=True):
            start[first] = start[node]
            start[first + 1] = start[node] + size[first]
        return np.argsort(start[self.fibre]), start, start + size

    def counts(self, photons: NDArray[Any]) -> Integers:
        """(N, 2D - 1) photons in each box, of photons (N, D) in each fibre."""
        order, start, end = self.ranges
        running = np.zeros((len(photons), len(order) + 1), np.int64)
        np.cumsum(photons[:, order], axis=1, out=running[:, 1:])
        return running[:, end] - running[:, start]

    def window(self, size: int, up: int = 0) -> Integers:
        """Boxes like a node's own around it, or around what it is a part of.

        Parameters
        ----------
        size
            odd: boxes along each side of the window.
        up
            how many cuts above the node the window is taken.

        Returns
        -------
        (D - 1, size * size): of each place, a whole number of box sizes from the centre of the
        node (or of the box ``up`` cuts above), the box of that depth which holds it, row by row;
        -1 beyond the face. The node itself (or the box above) is in the middle.
        """
        middle = self.nodes
        for _ in range(up):
            middle = self.parent[middle]
        top, bottom, left, right = self.boxes[middle].T
        step = np.arange(size) - size // 2
        row = (top + bottom)[:, None] + 2 * step * (bottom - top)[:, None]
        column = (left + right)[:, None] + 2 * step * (right - left)[:, None]
        row, column = np.broadcast_arrays(row[:, :, None] // 2, column[:, None, :] // 2)
        inside = (row >= 0) & (row < self.shape[0]) & (column >= 0) & (column < self.shape[1])
        at_depth = self.owner[self.depth[middle]]
        nodes = np.arange(len(middle))[:, None, None]
        found = at_depth[nodes, np.where(inside, row, 0), np.where(inside, column, 0)]
        found = np.where(inside, found, -1)
        found[:, size // 2, size // 2] = middle
        return found.reshape(len(middle), -1)


@cache
def split_tree(shape: tuple[int, int]) -> SplitTree:
    """The tree of a face of rows x columns; ``ValueError`` where there is nothing to cut."""
    rows, columns = shape
    if rows < 1 or columns < 1 or rows * columns < 2:
        raise ValueError(f"shape: expected at least two fibres, got {shape}")
    boxes, depth, nodes, first = [(0, rows, 0, columns)], [0], [], []
    box = 0
    while box < len(boxes):
        top, bottom, left, right = boxes[box]
        height, width = bottom - top, right - left
        if height * width > 1:
            nodes.append(box)
            first.append(len(boxes))
            if height >= width:
                cut = top + (height + 1) // 2
                boxes += [(top, cut, left, right), (cut, bottom, left, right)]
            else:
                cut = left + (width + 1) // 2
                boxes += [(top, bottom, left, cut), (top, bottom, cut, right)]
            depth += [depth[box] + 1] * 2
        box += 1
    corners = np.array(boxes)
    fibre = np.empty(rows * columns, np.int64)
    single = np.setdiff1d(np.arange(len(boxes)), nodes)
    fibre[corners[single, 0] * columns + corners[single, 2]] = single
    return SplitTree(shape, corners, np.array(depth), np.array(nodes), np.array(first), fibre)
