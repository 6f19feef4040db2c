"""Teacher (MAF) and student (IAF): autoregressive flows of rational-quadratic splines.

Both are made of the same transform, out = S(in; MADE(in, c)), which is fast from ``in`` to
``out`` and sequential back. In the teacher S is the spline and runs from data to latent space:
x_i = RQS(x_{i-1}; p_i). In the student S is the *inverse* spline and runs from latent space to
data: y_{i-1} = RQS^{-1}(y_i; q_i). Only so do p_i and q_i parametrise the same function and can be
matched number by number: the inverse of a rational-quadratic spline is none itself.

Between the transforms lie fixed permutations that both share. They act on the response's fibres,
so every block sees its dimensions in its own autoregressive order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import ConditionalSplineAutoregressive as PyroConditional
from pyro.distributions.transforms import Permute
from pyro.distributions.transforms import SplineAutoregressive as PyroSplineAutoregressive
from pyro.nn import ConditionalAutoRegressiveNN
from pyro.nn.auto_reg_nn import MaskedLinear
from torch import Tensor, nn

from zdc_nb.flows.autoregressive import ParameterTarget, forward_pass, invert
from zdc_nb.flows.made import Made
from zdc_nb.flows.splines import rational_quadratic_spline
from zdc_nb.params import FlowParams

__all__ = [
    "ConditionalSplineAutoregressive",
    "Flow",
    "FlowTrace",
    "SplineAutoregressive",
    "Student",
    "Teacher",
    "block_orders",
    "stock_transform",
]


class SplineAutoregressive(PyroSplineAutoregressive):
    """Pyro's autoregressive spline transform of order "quadratic" for one condition.

    It adds a choice of engine, an ``inverse_spline`` that is applied in the fast direction, and
    an exact inversion that costs one pass instead of Pyro's D. The inversion carries no gradient.
    """

    def __init__(self, owner: ConditionalSplineAutoregressive, context: Tensor) -> None:
        # Pyro's class builds a spline module of its own around the network here, which would
        # register the network's weights a second time; the base class is all that is needed.
        super(PyroSplineAutoregressive, self).__init__(cache_size=1)  # type: ignore[no-untyped-call]
        self._owner = (owner,)  # in a tuple: not to be registered as a submodule
        self._context = context

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (..., D) as (D, N), and the context (N, C) of each column."""
        width = self._context.shape[-1]
        context = self._context.expand(*x.shape[:-1], width).reshape(-1, width)
        return x.reshape(-1, x.shape[-1]).T.contiguous(), context

    def _call(self, x: Tensor) -> Tensor:
        columns, context = self._rows(x)
        y, self._cache_log_detJ, _, _ = self._owner[0].fast(columns, context)
        self._cache_log_detJ = self._cache_log_detJ.view(x.shape[:-1])
        return y.T.reshape(x.shape)

    def _inverse(self, y: Tensor) -> Tensor:
        columns, context = self._rows(y)
        x, log_derivative = self._owner[0].slow(columns, context)
        self._cache_log_detJ = -log_derivative.view(y.shape[:-1])
        return x.T.reshape(y.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """(...,) logarithm of the Jacobian determinant from x to y, both (..., D)."""
        known: Any = self._cached_x_y
        if x is not known[0] or y is not known[1]:
            self(x)
        log_derivative: Tensor = self._cache_log_detJ
        return log_derivative


class ConditionalSplineAutoregressive(PyroConditional):
    """Pyro's conditional autoregressive spline transform around our network.

    Parameters
    ----------
    network
        the MADE, of D dimensions.
    bound, engine
        see :class:`zdc_nb.params.FlowParams`.
    inverse_spline
        apply the inverse spline in the fast direction, as a student does.
    """

    def __init__(self, network: Made, bound: float, engine: str, inverse_spline: bool) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            network.dim, network, count_bins=network.bins, bound=bound, order="quadratic"
        )
        self.bound, self.engine, self.inverse_spline = bound, engine, inverse_spline

    @property
    def network(self) -> Made:
        """The MADE that Pyro's class keeps."""
        assert isinstance(self.nn, Made)
        return self.nn

    def fast(
        self,
        inputs: Tensor,
        context: Tensor,
        *,
        keep: bool = False,
        match: ParameterTarget | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The fast pass of inputs (D, R * N), see :func:`zdc_nb.flows.autoregressive.forward_pass`."""
        if self.engine == "fused":
            return forward_pass(
                self.network,
                inputs,
                context,
                self.bound,
                inverse=self.inverse_spline,
                keep=keep,
                match=match,
            )
        parameters = self.network.spline_parameters(inputs.T, context)
        outputs, logs = rational_quadratic_spline(
            inputs.T, parameters, self.bound, inverse=self.inverse_spline, engine=self.engine
        )
        distance = None
        if match is not None:
            theirs = match.parameters[..., match.first : match.first + match.samples]
            ours = parameters[: match.samples].permute(2, 1, 0)
            distance = (ours - theirs).square().mean((0, 1))
        kept = parameters.permute(2, 1, 0) if keep else None
        return outputs.T, logs.sum(1), kept, distance

    def refuse_dropout(self) -> None:
        """Raise ``RuntimeError`` where two passes would not be the same function."""
        if self.network.training and self.network.dropout.p > 0:
            raise RuntimeError(
                "a flow with dropout is sampled and inverted in evaluation mode only: call eval()"
            )

    @torch.no_grad()
    def slow(self, outputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The inversion of :meth:`fast`: inputs (D, N) of outputs (D, N), and their log (N,).

        Exact; with the fused engine at the cost of one pass, with the plain engine of D.
        ``RuntimeError`` where the network would draw dropout.
        """
        self.refuse_dropout()
        if self.engine == "fused":
            return invert(self.network, outputs, context, self.bound, inverse=self.inverse_spline)
        log_derivative = torch.zeros_like(outputs[0])

        def step(here: slice, parameters: Tensor) -> Tensor:
            x, logs = rational_quadratic_spline(
                outputs[here].T,
                parameters,
                self.bound,
                inverse=not self.inverse_spline,
                engine=self.engine,
            )
            log_derivative.add_(logs.sum(1))
            return x

        return self.network.solve(context, step).T, log_derivative

    def condition(self, context: Tensor) -> SplineAutoregressive:
        """The transform for conditions (N, C) or (C,)."""
        return SplineAutoregressive(self, context)


@dataclass(frozen=True)
class FlowTrace:
    """What one fast pass through a flow leaves behind, in the order of the teacher's blocks.

    Tensors are (dimensions, samples), as the compiled core has them.

    Attributes
    ----------
    ends
        B + 1 tensors (D, N): the teacher's x_0 (data) to x_B (latent) or the student's y_0 to
        y_B. Entry i > 0 is in block i's order of dimensions, entry 0 in block 1's.
    log_derivative
        (N,) logarithm of the Jacobian determinant of the pass.
    parameters
        B tensors (D, 3K - 1, N), entry i - 1 made by block i; empty unless asked for.
    distances
        B tensors (M,): mean squared difference of the parameters of each of the first M samples
        to those of another trace; empty unless asked for.
    """

    ends: list[Tensor]
    log_derivative: Tensor
    parameters: list[Tensor]
    distances: list[Tensor]

    @property
    def data(self) -> Tensor:
        """(N, D) the data end."""
        return self.ends[0].T

    @property
    def latent(self) -> Tensor:
        """(N, D) the latent end."""
        return self.ends[-1].T


def block_orders(dim: int, transforms: int, seed: int) -> list[Tensor]:
    """The permutations between ``transforms`` blocks, alternately reversed and random.

    Examples
    --------
    >>> [order.tolist() for order in block_orders(dim=4, transforms=2, seed=1)]
    [[3, 2, 1, 0]]
    """
    generator = torch.Generator().manual_seed(seed)
    orders = []
    for i in range(transforms - 1):
        random = torch.randperm(dim, generator=generator)
        orders.append(torch.arange(dim - 1, -1, -1) if i % 2 == 0 else random)
    return orders


class Flow(nn.Module):
    """What teacher and student have in common.

    Parameters
    ----------
    dim, context
        dimensions D of a response and C of a condition.
    params
        the architecture.
    seed
        of the random permutations; teacher and student need the same.
    """

    _inverse_spline: bool

    def __init__(self, dim: int, context: int, params: FlowParams, seed: int) -> None:
        super().__init__()
        self.dim, self.context = dim, context
        self.blocks = nn.ModuleList(
            ConditionalSplineAutoregressive(
                Made(
                    dim,
                    context,
                    params.bins,
                    params.hidden,
                    params.hidden_layers,
                    params.dropout,
                    params.context_hidden,
                    params.precision,
                ),
                params.bound,
                params.engine,
                self._inverse_spline,
            )
            for _ in range(params.transforms)
        )
        for i, order in enumerate(block_orders(dim, params.transforms, seed)):
            self.register_buffer(f"order_{i}", order)

    @property
    def networks(self) -> list[Made]:
        """The MADE of each block, the teacher's first block (next to the data) first."""
        return [block.network for block in self._typed_blocks]

    @property
    def _typed_blocks(self) -> list[ConditionalSplineAutoregressive]:
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def _permutation(self, i: int) -> Permute:
        """From block i's order of dimensions to block i + 1's (blocks count from 0 here)."""
        return Permute(self.get_buffer(f"order_{i}"))

    def _base(self, n: int) -> Any:
        zero = torch.zeros(n, self.dim, device=self.device)
        return dist.Normal(zero, torch.ones_like(zero), validate_args=False).to_event(1)

    def _between(self, i: int, x: Tensor, back: bool = False) -> Tensor:
        """x (D, N) from block i's order of dimensions to block i + 1's, or back."""
        order = self.get_buffer(f"order_{i}")
        return x.index_select(0, order.argsort() if back else order)

    def _towards_data(self) -> list[Any]:
        """The Pyro transforms from latent space to data."""
        raise NotImplementedError

    def _backwards(self, ends: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Invert :meth:`trace`: the other end (D, N) and the log-derivative (N,) of that."""
        raise NotImplementedError

    def distribution(self, context: Tensor) -> Any:
        """The Pyro distribution of responses in flow space, for conditions (N, C).

        Its ``log_prob`` and ``sample`` are exact for teacher and student alike. A teacher's
        ``sample`` and a student's ``log_prob`` invert the flow: they carry no gradient, and use
        the unrounded weights where ``precision`` lets the fast direction round them.
        """
        return dist.ConditionalTransformedDistribution(
            self._base(len(context)), self._towards_data()
        ).condition(context)


class Teacher(Flow):
    """Masked autoregressive flow: exact and fast log p(x | c).

    Examples
    --------
    >>> params = FlowParams(
    ...     transforms=2,
    ...     bins=4,
    ...     bound=14.0,
    ...     hidden=8,
    ...     hidden_layers=1,
    ...     dropout=0.0,
    ...     context_hidden=[],
    ...     initialise="random",
    ...     engine="fused",
    ...     precision="float32",
    ... )
    >>> teacher = Teacher(dim=6, context=2, params=params, seed=1).eval()
    >>> condition = torch.zeros(3, 2)
    >>> x = teacher.sample(condition, torch.Generator().manual_seed(1))
    >>> x.shape, teacher.log_prob(x, condition).shape
    (torch.Size([3, 6]), torch.Size([3]))

    A sample is the exact inverse of the density's pass:

    >>> z = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    >>> torch.allclose(teacher.trace(x, condition).latent, z, atol=1e-4)
    True

    As a distribution of Pyro's it gives the same:

    >>> exact = teacher.distribution(condition).log_prob(x)
    >>> torch.allclose(exact, teacher.log_prob(x, condition), atol=1e-4)
    True
    """

    _inverse_spline = False

    def _towards_data(self) -> list[Any]:
        transforms: list[Any] = []
        for i in reversed(range(len(self.blocks))):
            transforms.append(self.blocks[i].inv)
            if i > 0:
                transforms.append(self._permutation(i - 1).inv)
        return transforms

    def trace(
        self,
        x: Tensor,
        context: Tensor,
        *,
        keep: bool = False,
        match: tuple[FlowTrace, int] | None = None,
    ) -> FlowTrace:
        """The fast pass from data x (N, D) to latent space, with all that lies between.

        With ``keep`` it holds the spline parameters. ``match`` is a trace to compare these
        with, and the sample of it that belongs to the first one here.
        """
        ends, parameters, distances = [x.T.contiguous()], [], []
        log_derivative = x.new_zeros(len(x))
        for i, block in enumerate(self._typed_blocks):
            inputs = ends[-1] if i == 0 else self._between(i - 1, ends[-1])
            outputs, logs, kept, distance = block.fast(
                inputs, context, keep=keep, match=_match(match, i, len(x))
            )
            ends.append(outputs)
            parameters += [] if kept is None else [kept]
            distances += [] if distance is None else [distance]
            log_derivative = log_derivative + logs
        return FlowTrace(ends, log_derivative, parameters, distances)

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        """(N,) log p(x | c) in nats; the same as ``distribution(context).log_prob(x)``."""
        trace = self.trace(x, context)
        return _log_normal(trace.ends[-1]) + trace.log_derivative

    def _backwards(self, ends: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        log_derivative = ends.new_zeros(ends.shape[1])
        for i in reversed(range(len(self.blocks))):
            ends, logs = self._typed_blocks[i].slow(ends, context)
            log_derivative += logs
            if i > 0:
                ends = self._between(i - 1, ends, back=True)
        return ends, log_derivative

    @torch.no_grad()
    def sample(self, context: Tensor, generator: torch.Generator) -> Tensor:
        """(N, D) exact samples, one for each condition (N, C)."""
        return self.from_latent(_standard_normal(context, self.dim, generator), context)

    @torch.no_grad()
    def from_latent(self, z: Tensor, context: Tensor) -> Tensor:
        """(N, D) what latents (N, D) become under conditions (N, C)."""
        return self._backwards(z.T.contiguous(), context)[0].T.contiguous()

    def stock_pyro(self) -> Any:
        """The same flow in stock Pyro: its classes, its slow loops, this flow's weights.

        For comparison, and for whoever wants to go on with Pyro alone. Returns a conditional
        distribution of responses in flow space. Raises ``ValueError`` where there is a context
        network, which Pyro's class has not.
        """
        transforms: list[Any] = []
        for i, network in enumerate(self.networks):
            if network.context_network is not None:
                raise ValueError("stock Pyro has no context network: set context_hidden to []")
            if i > 0:
                transforms.append(self._permutation(i - 1))
            transforms.append(
                stock_transform(
                    network.dense_weights(),
                    network.dim,
                    network.context,
                    network.bins,
                    self._typed_blocks[i].bound,
                )
            )
        # these run from data to latent space, a Pyro distribution's the other way
        zero = torch.zeros(self.dim, device=self.device)
        base = dist.Normal(zero, torch.ones_like(zero)).to_event(1)
        return dist.ConditionalTransformedDistribution(base, [t.inv for t in reversed(transforms)])


class Student(Flow):
    """Inverse autoregressive flow: exact samples in one pass.

    Examples
    --------
    >>> params = FlowParams(
    ...     transforms=2,
    ...     bins=4,
    ...     bound=14.0,
    ...     hidden=8,
    ...     hidden_layers=1,
    ...     dropout=0.0,
    ...     context_hidden=[],
    ...     initialise="random",
    ...     engine="fused",
    ...     precision="float32",
    ... )
    >>> student = Student(dim=6, context=2, params=params, seed=1).eval()
    >>> condition = torch.zeros(3, 2)
    >>> x = student.sample(condition, torch.Generator().manual_seed(1))
    >>> x.shape, student.log_prob(x, condition).shape
    (torch.Size([3, 6]), torch.Size([3]))
    """

    _inverse_spline = True

    def _towards_data(self) -> list[Any]:
        transforms: list[Any] = []
        for i in reversed(range(len(self.blocks))):
            transforms.append(self.blocks[i])
            if i > 0:
                transforms.append(self._permutation(i - 1).inv)
        return transforms

    def trace(
        self,
        z: Tensor,
        context: Tensor,
        *,
        keep: bool = False,
        match: tuple[FlowTrace, int] | None = None,
    ) -> FlowTrace:
        """The fast pass from latent z (R * N, D) to data, with all that lies between.

        Row i belongs to condition i modulo N of ``context`` (N, C). ``keep`` and ``match`` as in
        :meth:`Teacher.trace`; compared are as many samples as the other trace has.
        """
        ends, parameters, distances = [z.T.contiguous()], [], []
        log_derivative = z.new_zeros(len(z))
        inputs = ends[0]
        for i in reversed(range(len(self.blocks))):
            samples = len(z) if match is None else match[0].ends[0].shape[1]
            outputs, logs, kept, distance = self._typed_blocks[i].fast(
                inputs, context, keep=keep, match=_match(match, i, samples)
            )
            log_derivative = log_derivative + logs
            # kept in the teacher's frame: x_i is block i's output, before the permutation
            inputs = self._between(i - 1, outputs, back=True) if i > 0 else outputs
            ends.append(inputs)
            parameters += [] if kept is None else [kept]
            distances += [] if distance is None else [distance]
        return FlowTrace(ends[::-1], log_derivative, parameters[::-1], distances[::-1])

    @torch.no_grad()
    def sample(self, context: Tensor, generator: torch.Generator) -> Tensor:
        """(N, D) exact samples, one for each condition (N, C)."""
        return self.sample_with_log_prob(context, generator)[0]

    @torch.no_grad()
    def from_latent(self, z: Tensor, context: Tensor) -> Tensor:
        """(N, D) what latents (N, D) become under conditions (N, C)."""
        for block in self._typed_blocks:
            block.refuse_dropout()
        return self.trace(z, context).data.contiguous()

    @torch.no_grad()
    def sample_with_log_prob(
        self, context: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Samples (N, D) as :meth:`sample`, and their log p(x | c) (N,), from the same pass."""
        for block in self._typed_blocks:
            block.refuse_dropout()
        z = _standard_normal(context, self.dim, generator)
        trace = self.trace(z, context)
        return trace.data.contiguous(), _log_normal(trace.ends[-1]) - trace.log_derivative

    def _backwards(self, ends: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        log_derivative = ends.new_zeros(ends.shape[1])
        for i, block in enumerate(self._typed_blocks):
            if i > 0:
                ends = self._between(i - 1, ends)
            ends, logs = block.slow(ends, context)
            log_derivative += logs
        return ends, log_derivative

    @torch.no_grad()
    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        """(N,) exact log p(x | c) in nats, without gradients, at the cost of one pass.

        Where ``precision`` lets the fast pass round its products, this is the likelihood of the
        unrounded network.
        """
        z, log_derivative = self._backwards(x.T.contiguous(), context)
        return _log_normal(z) + log_derivative


def stock_transform(
    layers: Sequence[tuple[Tensor, Tensor, Tensor]], dim: int, context: int, bins: int, bound: float
) -> PyroConditional:
    """Stock Pyro's transform, its own network included, with given weights.

    Parameters
    ----------
    layers
        weight, bias and mask of each layer as in :meth:`zdc_nb.flows.made.Made.dense_weights`.
    dim, context, bins, bound
        dimensions D and C, bins K and limit of the splines.
    """
    identity: Any = torch.arange(dim)
    # Its constructor refuses networks narrower than D. Nothing else in it depends on the width, so
    # its layers are replaced by others of its own class.
    network = ConditionalAutoRegressiveNN(dim, context, [dim], [bins, bins, bins - 1], identity)
    network.layers = nn.ModuleList()
    for weight, bias, mask in layers:
        layer = MaskedLinear(weight.shape[1], weight.shape[0], mask)
        layer.load_state_dict({"weight": weight, "bias": bias, "mask": mask})
        network.layers.append(layer)
    return PyroConditional(
        dim, network.to(layers[0][0].device), count_bins=bins, bound=bound, order="quadratic"
    )


def _match(match: tuple[FlowTrace, int] | None, block: int, samples: int) -> ParameterTarget | None:
    return None if match is None else ParameterTarget(match[0].parameters[block], match[1], samples)


def _log_normal(z: Tensor) -> Tensor:
    """(N,) log-density of z (D, N) under independent standard normals."""
    return -0.5 * (z.square().sum(0) + len(z) * math.log(2 * math.pi))


def _standard_normal(context: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    # drawn where the generator lives, so that a seed means the same on every device
    z = torch.randn(len(context), dim, generator=generator, device=generator.device)
    return z.to(context)
