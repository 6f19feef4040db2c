r"""How probable models think the simulated responses are: nats per response, -log P(response).

Given the particle and the photon sum; smaller is better, and the number means the same for any model
that gives probabilities of counts. The splitting flow's is exact. Teacher and student in split
coordinates give densities of dequantised counts: the mean of their logarithm, with the size of the
cell of t that a count came from, is a lower bound of the log-probability, so their nats are an upper
bound. In the coordinates of the fibres there is no such number: noised counts divided by their sum
lie on a simplex, where the density has no bound.

Densities of dequantised responses are exact for teacher and student in either coordinates, and
comparable between models of the same coordinates. How far a student is from the teacher that it
imitates needs no data: KL(student || teacher) is a mean over the student's own samples.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy
from torch.nn.functional import softplus
from tqdm import tqdm

from zdc_nb.data.events import Events
from zdc_nb.detector import split_tree
from zdc_nb.flows.maf_iaf import Student, Teacher
from zdc_nb.flows.splitting import SplittingFlow
from zdc_nb.generator.encoding import encode_responses, split_cells
from zdc_nb.generator.surrogate import Surrogate

__all__ = ["binomial_nats", "density_nats", "divergence_from_teacher", "has_nats", "nats_of"]


def has_nats(model: Surrogate) -> bool:
    """Whether a model gives probabilities of counts, or a bound of them."""
    known = model.preprocessing
    return known is None or known.coordinates == "splits"


@torch.no_grad()
def nats_of(
    model: Surrogate, events: Events, seed: int, batch: int, progress: bool = False
) -> NDArray[np.float64]:
    """(N,) -log P of each response under a model; see the top of this module.

    Parameters
    ----------
    seed
        of the noise of the bound; an exact likelihood needs none.
    batch
        responses at once.

    Raises
    ------
    TypeError
        where the model has none, see :func:`has_nats`.
    """
    if not has_nats(model):
        raise TypeError("nats_of: expected a model of counts or split coordinates")
    model.flow.eval()
    generator = torch.Generator().manual_seed(seed)
    conditions = model.conditions(events)
    found = []
    for start in tqdm(range(0, len(events), batch), "likelihood", disable=not progress, delay=10):
        here = slice(start, start + batch)
        counts = torch.from_numpy(events.photons[here].toarray().astype(np.int64))
        if isinstance(model.flow, SplittingFlow):
            logs = model.flow.log_prob(counts.to(model.flow.device), conditions[here])
        else:
            logs = _bound(model, counts, conditions[here], events, generator)
        found.append(-logs.to(torch.float64).cpu().numpy())
    return np.concatenate(found)


@torch.no_grad()
def density_nats(
    model: Surrogate, events: Events, seed: int, batch: int, progress: bool = False
) -> NDArray[np.float64]:
    """(N,) -log p(x | particle, photon sum) of dequantised responses x in a flow's coordinates.

    Exact for teacher and student; a student's flow is inverted for it
    (:meth:`zdc_nb.flows.maf_iaf.Student.log_prob`). Equal seeds dequantise equally, so that models
    of the same coordinates are compared on the same x. The rest is as in :func:`nats_of`;
    ``TypeError`` for a model of counts.
    """
    if model.preprocessing is None or isinstance(model.flow, SplittingFlow):
        raise TypeError("density_nats: expected a teacher or a student")
    model.flow.eval()
    generator = torch.Generator().manual_seed(seed)
    conditions = model.conditions(events)
    found = []
    for start in tqdm(range(0, len(events), batch), "density", disable=not progress, delay=10):
        here = slice(start, start + batch)
        counts = torch.from_numpy(events.photons[here].toarray().astype(np.int64))
        x, _ = encode_responses(counts, model.preprocessing, events.detector, generator)
        logs = model.flow.log_prob(x.to(conditions.device), conditions[here])
        found.append(-logs.to(torch.float64).cpu().numpy())
    return np.concatenate(found)


@torch.no_grad()
def divergence_from_teacher(
    student: Surrogate,
    teacher: Surrogate,
    events: Events,
    seed: int,
    batch: int,
    progress: bool = False,
) -> NDArray[np.float64]:
    """(N,) log q(x) - log p(x) at one sample x ~ q for each event's particle and photon sum.

    q is the student and p the teacher that it imitates; the mean over samples is an unbiased
    estimate of KL(q || p) = E_q[log q(x) - log p(x)] in nats, averaged over the events. A single
    value may be negative, the divergence is not.

    Raises
    ------
    TypeError
        where they are not a student and a teacher.
    """
    ours, theirs = student.flow, teacher.flow
    if not (isinstance(ours, Student) and isinstance(theirs, Teacher)):
        raise TypeError("divergence_from_teacher: expected a student and a teacher")
    ours.eval()
    theirs.eval()
    generator = torch.Generator().manual_seed(seed)
    conditions = student.conditions(events)
    found = []
    for start in tqdm(range(0, len(events), batch), "divergence", disable=not progress, delay=10):
        condition = conditions[start : start + batch]
        x, own = ours.sample_with_log_prob(condition, generator)
        difference = own.to(torch.float64) - theirs.log_prob(x, condition).to(torch.float64)
        found.append(difference.cpu().numpy())
    return np.concatenate(found)


def _bound(
    model: Surrogate,
    counts: torch.Tensor,
    condition: torch.Tensor,
    events: Events,
    generator: torch.Generator,
) -> torch.Tensor:
    assert model.preprocessing is not None
    assert not isinstance(model.flow, SplittingFlow)
    x, _ = encode_responses(counts, model.preprocessing, events.detector, generator)
    density = model.flow.log_prob(x.to(condition.device), condition).to(torch.float64).cpu()
    wide = x.to(torch.float64)
    # of t instead of its logit: dx / dt = 1 / (t (1 - t))
    jacobian = (softplus(wide) + softplus(-wide)).sum(1)
    cells = torch.from_numpy(split_cells(counts.numpy(), events.detector).sum(1))
    return density + jacobian + cells


def binomial_nats(train: Events, test: Events) -> NDArray[np.float64]:
    """(N,) -log P of test responses under binomials of fixed shares: what any model should beat.

    Every box of the tree sends each of its photons into its first half with the share of photons
    found there in the training part (half a photon added to each side).
    """
    tree = split_tree(train.detector.shape)
    # a sparse product for each part: only lit boxes take memory
    learned = np.asarray((train.photons.astype(np.int64) @ tree.members).sum(0)).ravel()
    first, second = learned[tree.first] + 0.5, learned[tree.first + 1] + 0.5
    share = first / (first + second)
    found = []
    for start in range(0, len(test), 1024):
        counts = tree.counts(test.photons[start : start + 1024].toarray())
        n, half = counts[:, tree.nodes], counts[:, tree.first]
        logs = gammaln(n + 1) - gammaln(half + 1) - gammaln(n - half + 1)
        logs += xlogy(half, share) + xlogy(n - half, 1 - share)
        found.append(-logs.sum(1))
    return np.concatenate(found)
