"""What is timed: this project and its peers, case by case, and the work that a case needs.

Compared are flows of one autoregressive transform, without a context network, at a condition of
zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zdc_nb.bench.cases import LOOPS, BenchParams, Case, ContenderName
from zdc_nb.bench.libraries import Layer, NflowsPeer, PyroPeer, dense_layers
from zdc_nb.bench.machine import Machine
from zdc_nb.detector import ZN
from zdc_nb.flows.maf_iaf import Student, Teacher
from zdc_nb.params import FlowParams, derive_seed
from zdc_nb.training.trainers import combined_loss, distillation_terms

__all__ = [
    "Contender",
    "Inputs",
    "Ours",
    "Peer",
    "all_contenders",
    "compulsory_bytes",
    "make_inputs",
    "useful_flop",
]

CONTEXT = 1
"""Width of the condition, which is zero."""

LEARNING_RATE = 1e-6
"""So small that however many steps are timed, the flow stays what it was."""

# --- What a case costs at least -----------------------------------------------------------------


def useful_flop(case: Case, layers: Sequence[Layer], context: int = CONTEXT) -> int:
    """Floating-point operations a sample that no implementation of the case can do without.

    A multiplication and an addition for each weight that the masks allow and each use of it: once
    in a pass (an exact inversion needs no more); in a training step again for the gradients of
    weights and inputs, the latter but for the first layer; in a distillation step for the teacher's
    pass, two passes of the student with their gradients, and the teacher's way back with the
    gradient of its inputs.
    """
    allowed = [int(layer.mask.sum()) for layer in layers]
    first = allowed[0]
    of_dimensions = int(layers[0].mask[:, context:].sum())
    once = 2 * sum(allowed)
    if case == "train_step":
        return 3 * once - 2 * first
    if case == "distil_step":
        student = 2 * (3 * once - 2 * first)
        back = 2 * once - 2 * (first - of_dimensions)
        return once + student + back
    return once


def compulsory_bytes(case: Case, allowed: int, dim: int, batch: int, size: int) -> int:
    """Bytes that a batch has to move between memory and processor at least.

    The ``allowed`` weights that the masks leave, of ``size`` bytes each, are read once a pass; a step of training
    reads them again for the gradient, writes the gradient, and reads and writes parameter and two
    moments in Adam (float32). Data are read and written once. What lies between layers is not
    counted: it may stay in a cache.
    """
    data = 2 * 4 * batch * dim
    adam = 4 * allowed * (1 + 1 + 3 + 3)
    if case == "train_step":
        return 2 * size * allowed + adam + data
    if case == "distil_step":
        return 5 * size * allowed + adam + 3 * data
    return size * allowed + data


# --- Contenders ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Data and noise (N, D) and conditions (N, C)."""

    x: Tensor
    z: Tensor
    condition: Tensor


class Contender(Protocol):
    """Something that can be timed."""

    name: ContenderName
    dtype: str

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], object] | None:
        """What is timed, with all state of its own; None where there is no such case."""

    def is_loop(self, case: Case) -> bool:
        """Whether the case takes D calls of what is timed."""

    def density(self, inputs: Inputs) -> Tensor:
        """(N,) log-density of the teacher."""

    def there_and_back(self, inputs: Inputs) -> Tensor:
        """(N, D) data that went to the latent space and back."""


def _train_step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def _no_grad(call: Callable[[], object]) -> Callable[[], object]:
    return torch.no_grad()(call)


def _distillation_loss(teacher: Teacher, student: Student, inputs: Inputs) -> Tensor:
    """The full loss of bs+ch+div; its weights, which cost nothing, are ones."""
    terms = distillation_terms(teacher, student, inputs.x, inputs.z, inputs.condition, ZN)
    return combined_loss(terms, torch.ones(len(inputs.x), device=inputs.x.device), 10.0)


class Ours:
    """This project, by engine and precision."""

    def __init__(
        self, dim: int, hidden: int, params: BenchParams, engine: str, dtype: str, device: Any
    ) -> None:
        self.name: ContenderName = "ours" if engine == "fused" else "ours-reference"
        self.dtype = dtype
        flow = {
            "transforms": 1,
            "bins": params.bins,
            "bound": params.bound,
            "hidden": hidden,
            "blocks": params.blocks,
            "dropout": 0.0,
            "context_hidden": [],
            "initialise": "random",
            "engine": engine,
            "precision": dtype,
        }
        architecture = FlowParams.model_validate(flow)
        with torch.random.fork_rng():
            # the same weights whatever the engine and precision
            torch.manual_seed(derive_seed(params.seed, dim, hidden))
            self.teacher = Teacher(dim, CONTEXT, architecture, seed=0).to(device).eval()
        self.student = Student(dim, CONTEXT, architecture, seed=0).to(device).eval()
        self.student.load_state_dict(self.teacher.state_dict())

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], object] | None:
        teacher, student, c = self.teacher, self.student, inputs.condition
        if case == "train_step":
            teacher.requires_grad_(True)
            return _train_step(teacher, lambda: -teacher.log_prob(inputs.x, c).mean())
        if case == "distil_step":
            # the channels of its loss are those of the whole detector
            if inputs.x.shape[1] != ZN.dim:
                return None
            teacher.requires_grad_(False)
            return _train_step(student, lambda: _distillation_loss(teacher, student, inputs))
        if self.is_loop(case):
            network = teacher.networks[0]
            return _no_grad(lambda: network.spline_parameters(inputs.x, c))
        generator = torch.Generator(inputs.x.device).manual_seed(0)
        return _no_grad(
            {
                "density": lambda: teacher.log_prob(inputs.x, c),
                "teacher_sample": lambda: teacher.sample(c, generator),
                "student_sample": lambda: student.sample(c, generator),
                "student_likelihood": lambda: student.log_prob(inputs.x, c),
            }[case]
        )

    def is_loop(self, case: Case) -> bool:
        return self.name == "ours-reference" and case in LOOPS

    def density(self, inputs: Inputs) -> Tensor:
        return self.teacher.log_prob(inputs.x, inputs.condition)

    def there_and_back(self, inputs: Inputs) -> Tensor:
        # one distribution for each way: it remembers what it has seen
        flow = self.teacher.distribution(inputs.condition)
        z = inputs.x
        for transform in reversed(flow.transforms):
            z = transform.inv(z)
        x = z.clone()
        for transform in self.teacher.distribution(inputs.condition).transforms:
            x = transform(x)
        return x


class Peer:
    """nflows or stock Pyro."""

    dtype = "float32"

    def __init__(self, peer: NflowsPeer | PyroPeer) -> None:
        self.name: ContenderName = "nflows" if isinstance(peer, NflowsPeer) else "pyro"
        self.peer = peer

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], object] | None:
        peer, c = self.peer, inputs.condition
        if case == "distil_step":
            return None
        if case == "train_step":
            return _train_step(peer.module, lambda: -peer.log_prob(inputs.x, c).mean())
        if case == "density":
            return _no_grad(lambda: peer.log_prob(inputs.x, c))
        if case == "student_sample":
            return _no_grad(lambda: peer.sample_iaf(c))
        one_pass = peer.inversion_pass(inputs.z, c)
        x = torch.zeros_like(inputs.z)

        def advance() -> None:
            nonlocal x
            x = one_pass(x)

        return _no_grad(advance)

    def is_loop(self, case: Case) -> bool:
        return case in LOOPS

    def density(self, inputs: Inputs) -> Tensor:
        return self.peer.log_prob(inputs.x, inputs.condition)

    def there_and_back(self, inputs: Inputs) -> Tensor:
        z = self.peer.to_latent(inputs.x, inputs.condition)
        one_pass = self.peer.inversion_pass(z, inputs.condition)
        x = torch.zeros_like(z)
        for _ in range(x.shape[1]):
            x = one_pass(x)
        return x


def all_contenders(
    dim: int, hidden: int, params: BenchParams, machine: Machine
) -> Iterator[Contender]:
    """All that can take part, ours in float32 first; built as they are asked for."""
    device = torch.device(machine.device)
    ours = Ours(dim, hidden, params, "fused", "float32", device)
    yield ours
    if machine.has_bfloat16:
        yield Ours(dim, hidden, params, "fused", "bfloat16", device)
    yield Ours(dim, hidden, params, "reference", "float32", device)
    for name, peer in (("nflows", NflowsPeer), ("pyro", PyroPeer)):
        if name in params.peers:
            layers = dense_layers(ours.teacher.networks[0])
            yield Peer(peer(layers, dim, CONTEXT, params.bins, params.bound))


def make_inputs(dim: int, batch: int, params: BenchParams, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(derive_seed(params.seed, "inputs", dim))
    # as wide as encoded responses are, and inside the splines' bounds
    x, z = torch.randn(2, batch, dim, generator=generator).clamp(-4, 4)
    condition = torch.zeros(batch, CONTEXT)
    return Inputs((x * params.bound / 5).to(device), z.to(device), condition.to(device))
