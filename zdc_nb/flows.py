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

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import ConditionalSplineAutoregressive as PyroConditional
from pyro.distributions.transforms import Permute
from pyro.distributions.transforms import SplineAutoregressive as PyroSplineAutoregressive
from torch import Tensor, nn

from zdc_nb.made import Made
from zdc_nb.params import FlowParams
from zdc_nb.splines import IDENTITY_DERIVATIVE, MIN_FRACTION, rational_quadratic_spline

__all__ = [
    "ConditionalSplineAutoregressive",
    "Flow",
    "Passage",
    "SplineAutoregressive",
    "Student",
    "Teacher",
    "block_orders",
    "marginal_parameters",
    "start_from_marginals",
    "start_from_teacher",
]


class SplineAutoregressive(PyroSplineAutoregressive):
    """Pyro's autoregressive spline transform of order "quadratic" for one condition.

    It adds a choice of engine, an ``inverse_spline`` that is applied in the fast direction, and
    an exact inversion that costs one pass instead of Pyro's D.
    """

    def __init__(self, owner: ConditionalSplineAutoregressive, context: Tensor) -> None:
        # Pyro's class builds a spline module of its own around the network here, which would
        # register the network's weights a second time; the base class is all that is needed.
        super(PyroSplineAutoregressive, self).__init__(cache_size=1)  # type: ignore[no-untyped-call]
        self._owner = (owner,)  # in a tuple: not to be registered as a submodule
        self._context = context

    def parameters_at(self, inputs: Tensor) -> Tensor:
        """(R * N, 3K - 1, D) spline parameters for ``inputs`` (R * N, D) and N conditions."""
        return self._owner[0].network.spline_parameters(inputs, self._context)

    def _context_of(self, inputs: Tensor) -> Tensor:
        """The context (prod(...), C) of each row of inputs (..., D)."""
        width = self._context.shape[-1]
        return self._context.expand(*inputs.shape[:-1], width).reshape(-1, width)

    def apply_spline(self, inputs: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and elementwise log-derivatives in the fast direction."""
        owner = self._owner[0]
        return rational_quadratic_spline(
            inputs, parameters, owner.bound, inverse=owner.inverse_spline, engine=owner.engine
        )

    def _call(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        parameters = self._owner[0].network.spline_parameters(rows, self._context_of(x))
        y, log_derivative = self.apply_spline(rows, parameters)
        self._cache_log_detJ = log_derivative.view_as(x)
        return y.view_as(x)

    def _inverse(self, y: Tensor) -> Tensor:
        owner = self._owner[0]
        rows = y.reshape(-1, y.shape[-1])
        log_derivative = torch.empty_like(rows)

        def step(here: slice, parameters: Tensor) -> Tensor:
            x, log_derivative[:, here] = rational_quadratic_spline(
                rows[:, here],
                parameters,
                owner.bound,
                inverse=not owner.inverse_spline,
                engine=owner.engine,
            )
            return x

        x = owner.network.solve(self._context_of(y), step)
        self._cache_log_detJ = -log_derivative.view_as(y)
        return x.view_as(y)


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

    def condition(self, context: Tensor) -> SplineAutoregressive:
        """The transform for conditions (N, C) or (C,)."""
        return SplineAutoregressive(self, context)


@dataclass(frozen=True)
class Passage:
    """What one fast pass through a flow leaves behind, in the order of the teacher's blocks.

    Attributes
    ----------
    ends
        B + 1 tensors (N, D): the teacher's x_0 (data) to x_B (latent) or the student's y_0 to
        y_B. Entry i > 0 is in block i's order of dimensions, entry 0 in block 1's.
    parameters
        B tensors (N, 3K - 1, D), entry i - 1 made by block i.
    log_derivative
        (N,) logarithm of the Jacobian determinant of the pass.
    """

    ends: list[Tensor]
    parameters: list[Tensor]
    log_derivative: Tensor

    def rows(self, rows: slice) -> Passage:
        """What belongs to some of the samples."""
        return Passage(
            [end[rows] for end in self.ends],
            [parameters[rows] for parameters in self.parameters],
            self.log_derivative[rows],
        )

    @property
    def data(self) -> Tensor:
        """(N, D) the data end."""
        return self.ends[0]

    @property
    def latent(self) -> Tensor:
        """(N, D) the latent end."""
        return self.ends[-1]


def block_orders(dim: int, transforms: int, seed: int) -> list[Tensor]:
    """The permutations between ``transforms`` blocks, alternately reversed and random."""
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
                    params.blocks,
                    params.dropout,
                    params.context_hidden,
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
        return [block.network for block in self.blocks]  # type: ignore[misc]

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

    def _towards_data(self) -> list[Any]:
        """The Pyro transforms from latent space to data."""
        raise NotImplementedError

    def distribution(self, context: Tensor) -> Any:
        """The Pyro distribution of responses in flow space, for conditions (N, C).

        Its ``log_prob`` and ``sample`` are exact for teacher and student alike; a teacher's
        ``log_prob`` and a student's ``sample`` are fast.
        """
        return dist.ConditionalTransformedDistribution(
            self._base(len(context)), self._towards_data()
        ).condition(context)


class Teacher(Flow):
    """Masked autoregressive flow: exact and fast log p(x | c)."""

    _inverse_spline = False

    def _towards_data(self) -> list[Any]:
        transforms: list[Any] = []
        for i in reversed(range(len(self.blocks))):
            transforms.append(self.blocks[i].inv)
            if i > 0:
                transforms.append(self._permutation(i - 1).inv)
        return transforms

    def passage(self, x: Tensor, context: Tensor) -> Passage:
        """The fast pass from data x (N, D) to latent space, with all that lies between."""
        ends, parameters = [x], []
        log_derivative = x.new_zeros(len(x))
        for i, block in enumerate(self.blocks):
            transform = block.condition(context)  # type: ignore[operator]
            inputs = ends[-1] if i == 0 else self._permutation(i - 1)(ends[-1])
            parameters.append(transform.parameters_at(inputs))
            outputs, logs = transform.apply_spline(inputs, parameters[-1])
            ends.append(outputs)
            log_derivative = log_derivative + logs.sum(-1)
        return Passage(ends, parameters, log_derivative)

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        """(N,) log p(x | c) in nats; the same as ``distribution(context).log_prob(x)``."""
        passage = self.passage(x, context)
        base: Tensor = self._base(len(x)).log_prob(passage.latent)
        return base + passage.log_derivative

    @torch.no_grad()
    def sample(self, context: Tensor, generator: torch.Generator) -> Tensor:
        """(N, D) exact samples, one for each condition (N, C)."""
        x = _standard_normal(len(context), self.dim, generator, self.device)
        for i in reversed(range(len(self.blocks))):
            x = self.blocks[i].condition(context)._inverse(x)  # type: ignore[operator]
            if i > 0:
                x = self._permutation(i - 1).inv(x)
        return x


class Student(Flow):
    """Inverse autoregressive flow: exact samples in one pass."""

    _inverse_spline = True

    def _towards_data(self) -> list[Any]:
        transforms: list[Any] = []
        for i in reversed(range(len(self.blocks))):
            transforms.append(self.blocks[i])
            if i > 0:
                transforms.append(self._permutation(i - 1).inv)
        return transforms

    def passage(self, z: Tensor, context: Tensor) -> Passage:
        """The fast pass from latent z (R * N, D) to data, with all that lies between.

        Row i belongs to condition i modulo N of ``context`` (N, C).
        """
        ends, parameters = [z], []
        log_derivative = z.new_zeros(len(z))
        inputs = z
        for i in reversed(range(len(self.blocks))):
            transform = self.blocks[i].condition(context)  # type: ignore[operator]
            parameters.append(transform.parameters_at(inputs))
            outputs, logs = transform.apply_spline(inputs, parameters[-1])
            log_derivative = log_derivative + logs.sum(-1)
            # kept in the teacher's frame: x_i is block i's output, before the permutation
            inputs = self._permutation(i - 1).inv(outputs) if i > 0 else outputs
            ends.append(inputs)
        return Passage(ends[::-1], parameters[::-1], log_derivative)

    @torch.no_grad()
    def sample(self, context: Tensor, generator: torch.Generator) -> Tensor:
        """(N, D) exact samples, one for each condition (N, C)."""
        z = _standard_normal(len(context), self.dim, generator, self.device)
        return self.passage(z, context).data


def _standard_normal(n: int, dim: int, generator: torch.Generator, device: torch.device) -> Tensor:
    # drawn where the generator lives, so that a seed means the same on every device
    return torch.randn(n, dim, generator=generator, device=generator.device).to(device)


def marginal_parameters(x: Tensor, bins: int, bound: float) -> Tensor:
    """Constant spline parameters that map each dimension's distribution to a standard normal.

    The K - 1 inner knots go from the quantiles of ``x`` (N, D) to those of the normal; the
    derivatives are the harmonic means of the neighbouring slopes, which keep a monotone
    interpolation smooth (Fritsch and Butland 1984). Returns (3K - 1, D) unnormalised parameters.
    """
    x = x.to(torch.float64)
    n = len(x)
    reach = torch.special.ndtri(torch.tensor(1 - 0.5 / n, dtype=torch.float64)).clamp(max=3)
    target = torch.linspace(-float(reach), float(reach), bins - 1, dtype=torch.float64)
    source = torch.quantile(x, torch.special.ndtr(target), dim=0)
    end = torch.full((1, x.shape[1]), bound, dtype=torch.float64)
    source = torch.cat([-end, source.clamp(-bound, bound), end])
    target = torch.cat([-end[:, 0], target, end[:, 0]])[:, None].expand_as(source)

    smallest = 4 * bound * MIN_FRACTION
    widths = source.diff(dim=0).clamp(min=smallest)
    widths = widths / widths.sum(0) * 2 * bound
    heights = target.diff(dim=0)
    slopes = heights / widths
    derivatives = 2 / (1 / slopes[1:] + 1 / slopes[:-1])
    fractions = torch.cat([widths, heights]) / (2 * bound)
    free = (fractions - MIN_FRACTION) / (1 - bins * MIN_FRACTION)
    rest = (derivatives - MIN_FRACTION).clamp(min=MIN_FRACTION)
    return torch.cat([free.log(), torch.expm1(rest).log()]).to(torch.float32)


@torch.no_grad()
def start_from_marginals(teacher: Teacher, x: Tensor, bound: float) -> None:
    """Start a teacher from the marginal distributions of training responses x (N, D).

    Its first block standardises its input and begins at :func:`marginal_parameters`, the others
    begin at the identity, so that training starts where independent fibres would end.
    """
    for i, network in enumerate(teacher.networks):
        last = network.layer("last")
        last.weight.mul_(0.1)
        if i == 0:
            start = marginal_parameters(x, network.bins, bound)
            network.location.copy_(x.mean(0))
            network.scale.copy_(x.std(0).clamp(min=1e-3))
        else:
            start = torch.zeros(network.outputs_per_dim, network.dim)
            start[2 * network.bins :] = IDENTITY_DERIVATIVE
        last.bias.copy_(start.flatten())


@torch.no_grad()
def start_from_teacher(student: Student, teacher: Teacher, *, everything: bool) -> None:
    """Give a student its teacher's permutations, and with ``everything`` its weights too.

    The masked part of a student's network reads the other side of its block, so its first layers
    stay as they are; what the output layer and the context network have learned carries over.
    """
    for name, order in teacher.named_buffers(recurse=False):
        student.get_buffer(name).copy_(order)
    if not everything:
        return
    for mine, theirs in zip(student.networks, teacher.networks, strict=True):
        mine.layer("last").load_state_dict(theirs.layer("last").state_dict())
        if mine.context_network is not None and theirs.context_network is not None:
            mine.context_network.load_state_dict(theirs.context_network.state_dict())
