"""Whether a convolutional network can tell images of generated responses from simulated ones.

The classifier of :mod:`zdc_nb.evaluation.classifier` sees what somebody has thought of. This one
sees every fibre, and finds flaws that no feature was made for. It is told nothing of the particle:
whether a shower belongs to its particle is not asked here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from zdc_nb.data.events import Events
from zdc_nb.evaluation.classifier import FEWEST_PAIRS, groups_of_pairs, take_pairs
from zdc_nb.evaluation.metrics import EvaluationError
from zdc_nb.params import derive_seed

__all__ = ["MOST_IMAGES", "image_test"]

MOST_IMAGES = 1600
"""Of more pairs so many are looked at, taken at random: a study trains dozens of networks."""

_EPOCHS, _BATCH, _RATE = 4, 64, 0.03

_WIDTHS = 12, 16
"""Channels after each of the two convolutions."""


def image_test(
    test: Events, generated: NDArray[Any], seed: int, at_most: int = MOST_IMAGES
) -> float:
    """AUC of a small convolutional network that looks for generated images.

    It sees log(1 + photons) of every fibre of a response and nothing else. Two convolutions of
    3 x 3 fibres with a stride of 2 look for patterns of up to 7 x 7 fibres; of each pattern its
    mean and its maximum over the face are kept, and weighed by a last linear layer. It therefore
    sees which patterns there are and hardly where on the face: the centre is one of the features
    of :func:`~zdc_nb.evaluation.classifier.two_sample_test`, which sees more of some flaws than
    so small a network, and less of others.

    Half of the pairs are learned from, in four epochs, and the AUC is that of the other half. All
    pairs of a particle are in one half, and a pair is never parted, exactly as there.

    How sure it is: another training and another split move it by about 0.02 at 1600 pairs (as many
    held-out pairs n as there are leave 1 / sqrt(6 n) = 0.014 by themselves). The spread over
    generations that the tables have holds both, since each has its own split. Few pairs teach a
    network little: below some hundred, 0.5 says nothing.

    Parameters
    ----------
    test
        N test responses of a detector of R x K fibres.
    generated
        (N, R, K), photons; response k answers the particle of test response k.
    seed
        of the choice of pairs, the split and the network; on one machine and one number of
        threads, the same seed gives the same result.
    at_most
        of more pairs so many are used, taken at random.

    Raises
    ------
    EvaluationError
        where ``generated`` is not one response of the detector for each test response, or there
        are fewer than ten pairs.
    """
    test, generated = take_pairs(test, generated, seed, at_most)
    if len(test) < FEWEST_PAIRS:
        raise EvaluationError(
            f"image test: expected at least {FEWEST_PAIRS} pairs of responses, got {len(test)}"
        )
    # takes long to import, and most who import this module measure nothing
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415
    from sklearn.model_selection import GroupKFold  # noqa: PLC0415

    rng = np.random.default_rng(derive_seed(seed, "image test"))
    groups = np.tile(groups_of_pairs(test.particle, rng), 2)
    train, held_out = next(GroupKFold(2).split(groups, groups=groups))
    counts = np.concatenate([test.responses, generated]).astype(np.float32)
    images = torch.from_numpy(counts).log1p().unsqueeze(1)
    is_generated = np.repeat([0.0, 1.0], len(test))
    labels = torch.from_numpy(is_generated.astype(np.float32))
    # the network's numbers are its own: who trains beside it has theirs undisturbed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "network"))
        network = _train(images, labels, torch.from_numpy(train))
    with torch.no_grad():
        parts = torch.from_numpy(held_out).split(1024)
        score = torch.cat([network(images[part]) for part in parts])
    return float(roc_auc_score(is_generated[held_out], score.numpy()))


class _Network(nn.Module):
    """Scores (n,) of images (n, 1, R, K); of any size."""

    def __init__(self) -> None:
        super().__init__()
        first, second = _WIDTHS
        self.first = nn.Conv2d(1, first, 3, stride=2, padding=1)
        self.second = nn.Conv2d(first, second, 3, stride=2, padding=1)
        # what is kept of either differs in size
        self.norm = nn.BatchNorm1d(2 * (first + second))
        self.last = nn.Linear(2 * (first + second), 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.first(images).relu()
        coarse = self.second(fine).relu()
        kept = [pooled for x in (fine, coarse) for pooled in (x.mean((2, 3)), x.amax((2, 3)))]
        score: Tensor = self.last(self.norm(torch.cat(kept, dim=1)))
        return score.squeeze(1)


def _train(images: Tensor, labels: Tensor, train: Tensor) -> _Network:
    network = _Network()
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE)
    steps = _EPOCHS * -(-len(train) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
    for _ in range(_EPOCHS):
        for batch in train[torch.randperm(len(train))].split(_BATCH):
            loss = binary_cross_entropy_with_logits(network(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()
