"""Where trainings begin: a teacher at independent dimensions, a student at its teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from zdc_nb.flows.maf_iaf import Student, Teacher
from zdc_nb.flows.splines import IDENTITY_DERIVATIVE, MIN_FRACTION
from zdc_nb.flows.splitting import SplittingFlow

__all__ = [
    "marginal_parameters",
    "start_from_centres",
    "start_from_marginals",
    "start_from_teacher",
]


def marginal_parameters(x: Tensor, bins: int, bound: float) -> Tensor:
    """Constant spline parameters that map each dimension's distribution to a standard normal.

    The K - 1 inner knots go from the quantiles of ``x`` (N, D) to those of the normal; the
    derivatives are the harmonic means of the neighbouring slopes, which keep a monotone
    interpolation smooth (Fritsch and Butland 1984). Returns (3K - 1, D) unnormalised parameters.

    Examples
    --------
    >>> from zdc_nb.flows import rational_quadratic_spline
    >>> x = 3 + 2 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    >>> parameters = marginal_parameters(x, bins=8, bound=14.0)
    >>> constant = parameters[None].expand(1, 23, 1).repeat(1, 1, 4000)
    >>> z, _ = rational_quadratic_spline(x.T.contiguous(), constant, 14.0)
    >>> abs(float(z.mean())) < 0.1, abs(float(z.std()) - 1) < 0.1
    (True, True)
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
        last = network.last
        last.weight.mul_(0.1)
        if i == 0:
            start = marginal_parameters(x, network.bins, bound)
            network.location.copy_(x.mean(0))
            network.scale.copy_(x.std(0).clamp(min=1e-3))
        else:
            start = torch.zeros(network.outputs_per_dim, network.dim)
            start[2 * network.bins :] = IDENTITY_DERIVATIVE
        last.bias.copy_(start.T.flatten())


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
        mine.last.load_state_dict(theirs.last.state_dict())
        if mine.context_network is not None and theirs.context_network is not None:
            mine.context_network.load_state_dict(theirs.context_network.state_dict())


@torch.no_grad()
def start_from_centres(flow: SplittingFlow, centres: Tensor, contexts: Tensor) -> None:
    """Start a splitting flow's aim at a straight line through the centres of training responses.

    Parameters
    ----------
    centres
        (N, 2) row and column of the shower centre, fibre units.
    contexts
        (N, C + 3) of the same responses; those of slopes far from the rest are left out.
    """
    slopes = contexts[:, -3:-1].to(torch.float64)
    near = (slopes.abs() < 3).all(1)
    # fibre (0, 0) stands half a fibre from the edge
    height = (centres[near].to(torch.float64) + 0.5) / flow.face.cpu()
    for axis in range(2):
        line = torch.stack([torch.ones_like(height[:, 0]), slopes[near, axis]], 1)
        found = torch.linalg.lstsq(line, height[:, axis, None], driver="gelsd").solution[:, 0]
        flow.aim_offset[axis], flow.aim_scale[axis] = found[0], found[1]
