"""What trainings minimise: the terms of the distillation and the channel loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zdc_nb.flows.maf_iaf import Student, Teacher

__all__ = ["CENTRE", "DISTILLATION_TERMS", "Aim", "combined_loss", "distillation_terms"]

DISTILLATION_TERMS = (
    "end_data",
    "blocks_data",
    "made_data",
    "end_latent",
    "blocks_latent",
    "made_latent",
    "channel",
)
"""Terms of the distillation loss: mean squared differences between the ends of the data and the
latent loop, the outputs of every block in between, and the MADE outputs; and the channel loss."""

CENTRE = "centre"
"""The term that setups with ``ctr`` have beside these: the centre loss."""


class Aim(NamedTuple):
    """Where the light of N responses should be.

    ``centre`` (N, 2): row and column in fibre units; ``weight`` (N,), how much it counts; ``side``: the longer of
    the face, in fibres, the unit of distances.
    """

    centre: Tensor
    weight: Tensor
    side: float


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """(N,) squared differences of (D, N), averaged over dimensions."""
    return (a - b).square().mean(0)


def _average(each: list[Tensor], n: int) -> Tensor:
    """(N,) mean over the blocks; a flow of one block has nothing between its ends."""
    return torch.stack(each).mean(0) if each else torch.zeros(n)


def distillation_terms(
    teacher: Teacher,
    student: Student,
    x: Tensor,
    z: Tensor,
    condition: Tensor,
    shares_of: Callable[[Tensor], Tensor],
    aim: Aim | None = None,
) -> dict[str, Tensor]:
    """The terms of :data:`DISTILLATION_TERMS` for each sample, (N,) each; with an aim :data:`CENTRE`.

    Parameters
    ----------
    x, z
        (N, D) data and noise: the data loop x -(teacher)-> z -(student)-> x' and the latent loop
        z -(student)-> x' -(teacher)-> z'.
    condition
        (N, C), of both loops.
    shares_of
        the channels' shares (N, C) of the light of x, which are compared; with an aim (N, C + 2), and
        the light's centre.
    aim
        of each sample: the weighted squared distance of the centre of x' to it is a term, too.
    """
    n = len(x)
    with torch.no_grad():
        target = teacher.trace(x, condition, keep=True)
    # both of the student's passes at once: what follows of the condition alone is needed once
    both = student.trace(torch.cat([target.latent, z]), condition, keep=True, match=(target, 0))
    copy = [end[:, :n] for end in both.ends]
    drawn = [end[:, n:] for end in both.ends]
    back = teacher.trace(drawn[0].T, condition, match=(both, n))
    shares = [shares_of(light) for light in (copy[0].T, x)]
    centre = {}
    if aim is not None:
        off = (shares[0][:, -2:] - aim.centre) / aim.side
        centre[CENTRE] = aim.weight * off.square().sum(1)
        shares = [share[:, :-2] for share in shares]
    channels = (shares[0] - shares[1]).square().sum(1)

    def between(a: list[Tensor], b: list[Tensor]) -> Tensor:
        pairs = zip(a[1:-1], b[1:-1], strict=True)
        return _average([_difference(p, q) for p, q in pairs], n).to(x)

    return {
        "end_data": _difference(copy[0], target.ends[0]),
        "blocks_data": between(copy, target.ends),
        "made_data": _average(both.distances, n),
        "end_latent": _difference(back.ends[-1], drawn[-1]),
        "blocks_latent": between(back.ends, drawn),
        "made_latent": _average(back.distances, n),
        "channel": channels,
        **centre,
    }


def combined_loss(
    terms: dict[str, Tensor], weights: Tensor, channel_weight: float, centre_weight: float = 0.0
) -> Tensor:
    """What a setup minimises: the mean over samples of weight times the sum of the terms.

    Parameters
    ----------
    terms
        those of :func:`distillation_terms`, (N,) each.
    weights
        (N,) of eq. 3, or ones.
    channel_weight
        factor of the channel term (eq. 2); 0 leaves it out.
    centre_weight
        factor of the centre term, where there is one.
    """
    own = ("channel", CENTRE)
    squares = torch.stack([term for name, term in terms.items() if name not in own]).sum(0)
    each = squares + channel_weight * terms["channel"]
    if CENTRE in terms:
        each = each + centre_weight * terms[CENTRE]
    return (weights * each).mean()
