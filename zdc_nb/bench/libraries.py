"""What is timed: this project, nflows and stock Pyro, with the same weights.

Compared are flows of one autoregressive transform, without a context network, at a condition of
zeros. The libraries are used as they are installed. Only the masks and weights of their networks
are replaced by ours, so that all compute the same function and differ in how. Three things stay
different, and :mod:`zdc_nb.bench.run` measures what they change:

- The derivative of a spline at both ends is 1 in nflows, 0.999 in Pyro and here.
- Theirs is the spline in the fast direction of an inverse autoregressive flow, too; our student
  applies the inverse spline there. The cost is comparable, the function is another one.
- nflows has no condition here (it would enter its network in another place than in Pyro's), and
  Pyro's is multiplied by the same weights as ours. The benchmark's condition is zero for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zdc_nb.bench.cases import CONTEXT, LOOPS, BenchParams, Case, ContenderName
from zdc_nb.detector import ZN
from zdc_nb.flows.maf_iaf import Student, Teacher, stock_transform
from zdc_nb.generator.encoding import channel_fractions
from zdc_nb.params import FlowParams, PreprocessingParams, derive_seed
from zdc_nb.training.losses import combined_loss, distillation_terms

__all__ = ["Contender", "Inputs", "NflowsPeer", "Ours", "PyroPeer", "all_contenders", "make_inputs"]

LEARNING_RATE = 1e-6
"""So small that however many steps are timed, the flow stays what it was."""

Layers = Sequence[tuple[Tensor, Tensor, Tensor]]
"""Weight, bias and mask of each layer as in :meth:`zdc_nb.flows.made.Made.dense_weights`."""


class Inputs(NamedTuple):
    """Data and noise (N, D) and conditions (N, C)."""

    x: Tensor
    z: Tensor
    condition: Tensor


def make_inputs(dim: int, batch: int, params: BenchParams, device: str) -> Inputs:
    """Inputs of a batch, the same for all contenders."""
    generator = torch.Generator().manual_seed(derive_seed(params.seed, "inputs", dim))
    # as wide as encoded responses are, and inside the splines' bounds
    x, z = torch.randn(2, batch, dim, generator=generator).clamp(-4, 4)
    condition = torch.zeros(batch, CONTEXT)
    return Inputs((x * params.bound / 5).to(device), z.to(device), condition.to(device))


class Contender(ABC):
    """Something that can be timed; what is defined here is what a library of flows does.

    It has a ``name``, the ``dtype`` of its matrix products, the dimensions D of a response (``dim``)
    and a ``module`` that holds the weights.
    """

    name: ContenderName
    dtype: str = "float32"
    dim: int
    module: nn.Module

    def runs(self, case: Case) -> bool:
        """Whether there is such a case."""
        return case != "distil_step"

    def is_loop(self, case: Case) -> bool:
        """Whether the case takes D calls of what is timed."""
        return case in LOOPS

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], object]:
        """What is timed; in a loop, one of its passes."""
        x, z, condition = inputs
        if case == "train_step":
            return _adam_step(self.module, lambda: -self.log_prob(x, condition).mean())
        if case == "density":
            return torch.no_grad()(lambda: self.log_prob(x, condition))
        if case == "student_sample":
            return torch.no_grad()(lambda: self.sample_iaf(condition))
        one_pass = self.inversion_pass(z, condition)
        found = torch.zeros_like(z)

        def advance() -> None:
            nonlocal found
            found = one_pass(found)

        return torch.no_grad()(advance)

    @abstractmethod
    def log_prob(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N,) log-density of the masked autoregressive flow at x (N, D), conditions (N, C)."""

    @abstractmethod
    def to_latent(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, D) the fast pass of the masked autoregressive flow."""

    @abstractmethod
    def inversion_pass(self, z: Tensor, condition: Tensor) -> Callable[[Tensor], Tensor]:
        """One of the D passes that invert the flow at z (N, D): the next iterate (N, D)."""

    def from_latent(self, z: Tensor, condition: Tensor) -> Tensor:
        """(N, D) the contender's own inversion."""
        one_pass = self.inversion_pass(z, condition)
        x = torch.zeros_like(z)
        for _ in range(self.dim):
            x = one_pass(x)
        return x

    @abstractmethod
    def sample_iaf(self, condition: Tensor) -> Tensor:
        """(N, D) samples of the inverse autoregressive flow of the same network."""


FIBRES = PreprocessingParams(
    coordinates="fibres",
    noise=0.5,
    alpha=1e-6,
    conditions="paper",
    impact_grid=8,
    denoise="floor-rescale",
)
"""The published coordinates."""


def _shares(x: Tensor) -> Tensor:
    return channel_fractions(x, FIBRES, ZN)


def _adam_step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


class Ours(Contender):
    """This project, by engine and precision; ``layers`` are the weights that all share."""

    def __init__(
        self, dim: int, hidden: int, params: BenchParams, engine: str, dtype: str, device: Any
    ) -> None:
        self.name = "ours" if engine == "fused" else "ours-plain"
        self.dtype, self.dim = dtype, dim
        plain = {"transforms": 1, "dropout": 0.0, "context_hidden": [], "initialise": "random"}
        shared = params.model_dump(include={"bins", "bound", "hidden_layers"})
        own = {"hidden": hidden, "engine": engine, "precision": dtype}
        architecture = FlowParams.model_validate({**plain, **shared, **own})
        with torch.random.fork_rng():
            # the same weights whatever the engine and precision
            torch.manual_seed(derive_seed(params.seed, dim, hidden))
            self.teacher = Teacher(dim, CONTEXT, architecture, seed=0).to(device).eval()
        self.student = Student(dim, CONTEXT, architecture, seed=0).to(device).eval()
        self.student.load_state_dict(self.teacher.state_dict())
        self.module = self.teacher
        self.generator = torch.Generator(device).manual_seed(0)

    @property
    def layers(self) -> Layers:
        """Weight, bias and mask of each layer."""
        return self.teacher.networks[0].dense_weights()

    def runs(self, case: Case) -> bool:
        # the channels of a distillation's loss are those of the whole detector
        return case != "distil_step" or self.dim == ZN.dim

    def is_loop(self, case: Case) -> bool:
        return self.name == "ours-plain" and case in LOOPS

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], object]:
        x, _, condition = inputs
        self.teacher.requires_grad_(case != "distil_step")
        if case == "distil_step":
            return _adam_step(self.student, lambda: self._distillation_loss(inputs))
        if case not in LOOPS or self.is_loop(case):
            return super().prepare(case, inputs)
        if case == "teacher_sample":
            return torch.no_grad()(lambda: self.teacher.sample(condition, self.generator))
        return torch.no_grad()(lambda: self.student.log_prob(x, condition))

    def _distillation_loss(self, inputs: Inputs) -> Tensor:
        """The full loss of bs+ch+div; its weights, which cost nothing, are ones."""
        terms = distillation_terms(self.teacher, self.student, *inputs, _shares)
        return combined_loss(terms, inputs.x.new_ones(len(inputs.x)), 10.0)

    def log_prob(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.teacher.log_prob(x, condition)

    def to_latent(self, x: Tensor, condition: Tensor) -> Tensor:
        for transform in reversed(self.teacher.distribution(condition).transforms):
            x = transform.inv(x)
        # a copy: a transform remembers what it has seen
        return x.clone()

    def inversion_pass(self, z: Tensor, condition: Tensor) -> Callable[[Tensor], Tensor]:  # noqa: ARG002
        """The network alone: the spline of one dimension, which follows it, costs next to nothing."""
        network = self.teacher.networks[0]

        def step(x: Tensor) -> Tensor:
            network.spline_parameters(x, condition)
            return x

        return step

    def from_latent(self, z: Tensor, condition: Tensor) -> Tensor:
        for transform in self.teacher.distribution(condition).transforms:
            z = transform(z)
        return z

    def sample_iaf(self, condition: Tensor) -> Tensor:
        return self.student.sample(condition, self.generator)


class PyroPeer(Contender):
    """Stock Pyro: its autoregressive network, which multiplies by the mask in every pass.

    It copies the ``layers`` of a network of D = ``dim`` dimensions, a condition of ``context`` and
    splines with so many ``bins`` within the ``bound``.
    """

    name = "pyro"

    def __init__(self, layers: Layers, dim: int, context: int, bins: int, bound: float) -> None:
        self.dim = dim
        weights = [(weight, bias, mask.to(weight)) for weight, bias, mask in layers]
        self.transform: Any = stock_transform(weights, dim, context, bins, bound)
        self.module = self.transform.nn
        zero = torch.zeros(dim, device=layers[0][0].device)
        self.base: Any = dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def log_prob(self, x: Tensor, condition: Tensor) -> Tensor:
        towards_data = [self.transform.condition(condition).inv]
        return dist.TransformedDistribution(self.base, towards_data).log_prob(x)  # type: ignore[no-any-return]

    def to_latent(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.transform.condition(condition)(x)  # type: ignore[no-any-return]

    def inversion_pass(self, z: Tensor, condition: Tensor) -> Callable[[Tensor], Tensor]:
        spline = self.transform.condition(condition).spline
        return lambda x: spline.condition(x)._inverse(z)

    def sample_iaf(self, condition: Tensor) -> Tensor:
        towards_data = [self.transform.condition(condition)]
        flow: Any = dist.TransformedDistribution(self.base, towards_data)
        return flow.sample((len(condition),))  # type: ignore[no-any-return]


class NflowsPeer(Contender):
    """nflows: its masked autoregressive transform without residual blocks, see :class:`PyroPeer`.

    Raises ``ImportError`` where nflows is not installed.
    """

    name = "nflows"

    def __init__(self, layers: Layers, dim: int, context: int, bins: int, bound: float) -> None:
        try:
            # needed by the benchmark alone, and so not a dependency of the study
            from nflows.distributions import StandardNormal  # noqa: PLC0415
            from nflows.flows import Flow  # noqa: PLC0415
            from nflows.transforms import (  # noqa: PLC0415
                InverseTransform,
                MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
            )
        except ImportError as error:
            raise ImportError(
                f"nflows is not installed ({error}): `make bench` does so, or leave it out of "
                "`peers` in the benchmark's parameters"
            ) from error
        self.dim = dim
        (first, *between, last), device = layers, layers[0][0].device
        self.transform: Any = MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            features=dim,
            hidden_features=len(first[1]),
            num_bins=bins,
            tails="linear",
            tail_bound=bound,
            num_blocks=len(between),
            use_residual_blocks=False,
        ).to(device)
        self.module = self.transform
        network = self.transform.autoregressive_net
        weight, bias, mask = first
        # rows by dimension first, not by spline parameter
        by_dimension = [t.unflatten(0, (-1, dim)).transpose(0, 1).flatten(0, 1) for t in last]
        theirs = [
            (network.initial_layer, (weight[:, context:], bias, mask[:, context:])),
            *zip([block.linear for block in network.blocks], between, strict=True),
            (network.final_layer, by_dimension),
        ]
        with torch.no_grad():
            for made, ours in theirs:
                for mine, value in zip((made.weight, made.bias, made.mask), ours, strict=True):
                    mine.copy_(value)
        self.maf: Any = Flow(self.transform, StandardNormal([dim])).to(device)
        self.iaf: Any = Flow(InverseTransform(self.transform), StandardNormal([dim])).to(device)

    def log_prob(self, x: Tensor, condition: Tensor) -> Tensor:  # noqa: ARG002
        return self.maf.log_prob(x)  # type: ignore[no-any-return]

    def to_latent(self, x: Tensor, condition: Tensor) -> Tensor:  # noqa: ARG002
        return self.transform(x)[0]  # type: ignore[no-any-return]

    def inversion_pass(self, z: Tensor, condition: Tensor) -> Callable[[Tensor], Tensor]:  # noqa: ARG002
        transform = self.transform

        def step(x: Tensor) -> Tensor:
            parameters = transform.autoregressive_net(x, None)
            return transform._elementwise_inverse(z, parameters)[0]  # type: ignore[no-any-return]

        return step

    def sample_iaf(self, condition: Tensor) -> Tensor:
        return self.iaf.sample(len(condition))  # type: ignore[no-any-return]


def all_contenders(
    dim: int, hidden: int, params: BenchParams, device: str, bfloat16: bool
) -> Iterator[Contender]:
    """All that can take part, ours in float32 first; built as they are asked for.

    ``bfloat16`` says whether ours takes part with rounded products, too.
    """
    ours = Ours(dim, hidden, params, "fused", "float32", device)
    yield ours
    if bfloat16:
        yield Ours(dim, hidden, params, "fused", "bfloat16", device)
    yield Ours(dim, hidden, params, "plain", "float32", device)
    for peer in (NflowsPeer, PyroPeer):
        if peer.name in params.peers:
            yield peer(ours.layers, dim, CONTEXT, params.bins, params.bound)
