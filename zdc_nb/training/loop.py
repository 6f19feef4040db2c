"""The loop that all trainings share: encoded batches, steps, epochs, checkpoints."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from zdc_nb.data.events import Events
from zdc_nb.generator.encoding import ConditionScaler, encode_responses
from zdc_nb.generator.surrogate import DivergenceError
from zdc_nb.params import (
    PhotonSumParams,
    PreprocessingParams,
    SignalParams,
    SplittingParams,
    StudentParams,
    TeacherParams,
)
from zdc_nb.training.checkpoints import Checkpoint, Progress, StopRequest, TrainingInterrupted
from zdc_nb.training.tracking import Tracker

__all__ = ["Counted", "Encoded", "Fit", "learning_rate_factor", "mean_over"]

Training = TeacherParams | StudentParams | SplittingParams | PhotonSumParams | SignalParams


class Encoded:
    """Events as batches of (x, condition), encoded with fresh noise at every call."""

    def __init__(
        self,
        events: Events,
        scaler: ConditionScaler,
        preprocessing: PreprocessingParams,
        device: torch.device,
    ) -> None:
        self.photons = events.photons
        self.photon_sums = torch.from_numpy(events.photon_sum.astype(np.float32))
        self.conditions = scaler(events, preprocessing).to(device)
        self.preprocessing, self.detector = preprocessing, events.detector

    def __len__(self) -> int:
        return len(self.conditions)

    def __call__(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        counts = torch.from_numpy(self.photons[indices.numpy()].toarray().astype(np.int32))
        x, _ = encode_responses(counts, self.preprocessing, self.detector, generator)
        return x.to(self.conditions.device), self.conditions[indices]


class Counted:
    """Events as batches of (photons, context), as a splitting flow takes them."""

    def __init__(self, events: Events, scaler: ConditionScaler, device: torch.device) -> None:
        self.photons = events.photons
        self.contexts = scaler.context(events).to(device)

    def __len__(self) -> int:
        return len(self.contexts)

    def __call__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.from_numpy(self.photons[indices.numpy()].toarray().astype(np.int32))
        return counts.to(self.contexts.device), self.contexts[indices]


Batches = TypeVar("Batches", Encoded, Counted)


def mean_over(
    data: Batches,
    batch: int,
    seed: int,
    terms: Callable[[Batches, Tensor, torch.Generator], dict[str, Tensor]],
    pause: Callable[[], None],
) -> dict[str, Tensor]:
    """Terms averaged over ``data``, with the same noise at every call; pauses between batches."""
    generator = torch.Generator().manual_seed(seed + 1)
    sums: dict[str, Tensor] = {}
    for indices in torch.arange(len(data)).split(batch):
        for name, value in terms(data, indices, generator).items():
            sums[name] = sums.get(name, torch.zeros(())) + value.cpu() * len(indices) / len(data)
        pause()
    return sums


def learning_rate_factor(
    params: Training, epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """The factor of the learning rate by the number of steps that are done."""
    total = epochs * steps_per_epoch
    warm_up = max(1, min(50, total // 10))

    def cosine(step: int) -> float:
        ramp = min(1.0, (step + 1) / warm_up)
        return ramp * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

    def halve(step: int) -> float:
        return float(0.5 ** sum(step >= epoch * steps_per_epoch for epoch in params.halve_after))

    return cosine if params.schedule == "cosine" else halve


class Fit:
    """Minimises a loss over n responses and keeps the epoch of the best validation loss.

    Goes on from the checkpoint, if there is one that fits.
    """

    def __init__(
        self,
        flow: nn.Module,
        params: Training,
        epochs: int,
        n: int,
        what: str,
        seed: int,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.flow, self.params, self.all, self.what = flow, params, n, what
        self.n = min(n, params.epoch_responses or n)
        self.checkpoint = checkpoint
        steps_per_epoch = math.ceil(self.n / params.batch)
        self.epochs, self.steps = epochs, epochs * steps_per_epoch
        self.lr_factor = learning_rate_factor(params, epochs, steps_per_epoch)
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(flow.parameters(), lr=params.learning_rate, fused=True)
        self.at, self.best = Progress(), dict[str, Tensor]()
        self.order = self._shuffled()
        self.stop, self.clock = StopRequest(), time.monotonic()
        if checkpoint and (found := checkpoint.restore(flow, self.optimizer, self.generator)):
            self.at, self.best, self.order = found
            print(f"{what}: going on from step {self.at.step} of {self.steps}", flush=True)

    def run(
        self,
        loss: Callable[[Tensor, torch.Generator], dict[str, Tensor]],
        validate: Callable[[Callable[[], None]], dict[str, Tensor]],
        progress: bool,
        track: Callable[[int], Tracker] | None,
    ) -> pd.DataFrame:
        """Minimise ``loss(indices, generator)["loss"]``; ``validate`` calls back between batches.

        Returns the history; the flow has the weights of the best epoch then. Its ``attrs`` say from
        which step the training went on, and how many seconds it took in all.
        """
        at, began = self.at, self.at.step
        self.clock = time.monotonic()
        bar = tqdm(
            total=self.steps,
            initial=began,
            desc=self.what,
            # on stdout, since a page shows stderr as a warning
            file=sys.stdout,
            disable=not progress,
            mininterval=5,
        )
        with self.stop, bar, track(began) if track else nullcontext() as tracker:
            while at.epoch <= self.epochs:
                self.flow.train()
                for indices in self.order.split(self.params.batch)[at.batch :]:
                    self._step(loss(indices, self.generator), len(indices) / self.n)
                    bar.update()
                    self._pause()
                self.flow.eval()
                with torch.no_grad():
                    terms = {"train": at.sums, "validation": self._finite(validate(self._pause))}
                for split, values in terms.items():
                    at.note(split, values)
                    if tracker:
                        tracker.log(at.step, split, values)
                bar.set_postfix({split: f"{values['loss']:.4f}" for split, values in terms.items()})
                self._end_epoch(terms["validation"]["loss"])
            # for what is still to be done with the model: its evaluation can be stopped, too
            self._save()
        self.flow.load_state_dict(self.best)
        history = pd.DataFrame(at.rows)
        history.attrs["resumed_from_step"] = began
        history.attrs["training_seconds"] = at.seconds
        return history

    def _step(self, terms: dict[str, Tensor], share: float) -> None:
        """One step down the gradient, on a share of the responses of an epoch."""
        at, largest = self.at, self.params.gradient_clip
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.learning_rate * self.lr_factor(at.step)
        at.batch += 1
        at.step += 1
        values = self._finite(terms)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        gradients = [p.grad for p in self.flow.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._finite({"norm of the gradient": norm})
        if norm > largest:
            torch.nn.utils.clip_grads_with_norm_(self.flow.parameters(), largest, norm)
        self.optimizer.step()
        for name, value in values.items():
            at.sums[name] = at.sums.get(name, 0.0) + value * share

    def _end_epoch(self, validation_loss: float) -> None:
        at = self.at
        if validation_loss < at.best:
            at.best = validation_loss
            self.best = {name: value.clone() for name, value in self.flow.state_dict().items()}
        at.epoch, at.batch, at.sums = at.epoch + 1, 0, {}
        self.order = self._shuffled()
        self._pause()

    def _shuffled(self) -> Tensor:
        return torch.randperm(self.all, generator=self.generator)[: self.n]

    def _pause(self) -> None:
        """Between two batches: save where it is time to, and stop where told to."""
        told = self.stop.signal
        if told or (self.checkpoint and self.checkpoint.is_due()):
            self._save()
        if told:
            saved = "saved" if self.checkpoint else "not saved"
            raise TrainingInterrupted(
                f"{self.what}: stopped by {told} after step {self.at.step} of {self.steps}, {saved}; "
                "the same command goes on"
            )

    def _save(self) -> None:
        now = time.monotonic()
        self.at.seconds, self.clock = self.at.seconds + now - self.clock, now
        if self.checkpoint:
            self.checkpoint.save(
                self.at, self.flow, self.best, self.optimizer, self.generator, self.order
            )

    def _finite(self, terms: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(term.detach()) for name, term in terms.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise DivergenceError(
                    f"{self.what}: the term {name!r} became {value} at step {self.at.step} (epoch "
                    f"{self.at.epoch}); a lower learning_rate or gradient_clip may help"
                )
        return values
