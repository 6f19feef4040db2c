"""Trained networks of :mod:`zdc_nb.flows.particle_nets` with what scales a particle, and their files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import nn

from zdc_nb.detector import Detector
from zdc_nb.flows.particle_nets import PhotonSum, PhotonSumNetwork, SignalNetwork
from zdc_nb.generator.encoding import ConditionScaler
from zdc_nb.storage import save_tensors

__all__ = [
    "GROUP",
    "PhotonSumModel",
    "SignalModel",
    "build_particle_model",
    "describe_particle_model",
    "load_particle_model",
    "save_no_signal",
    "save_particle_model",
]

GROUP = 32
"""Particles that a network takes at once, so that its rounding does not depend on how many are asked
about."""


class _ParticleModel:
    network: nn.Module
    scaler: ConditionScaler

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and scaler, by their names in a file."""
        state = self.network.state_dict()
        tensors = {f"network.{name}": value.contiguous() for name, value in state.items()}
        tensors["scaler.mean"] = torch.from_numpy(self.scaler.mean)
        tensors["scaler.std"] = torch.from_numpy(self.scaler.std)
        return tensors


@dataclass(frozen=True)
class PhotonSumModel(_ParticleModel):
    """How many photons a particle sends, where it sends light.

    ``hidden`` are the widths of the network's layers.
    """

    network: PhotonSumNetwork
    hidden: Sequence[int]
    scaler: ConditionScaler

    @torch.no_grad()
    def distribution(self, features: NDArray[np.float64], detector: Detector) -> PhotonSum:
        """The distribution of the photon sums of particles, features (N, 9)."""
        context = self.scaler.particle(features, detector)
        parts = [self.network.distribution(some) for some in context.split(GROUP)]
        logits, centres, scales = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("log_weights", "centres", "scales")
        )
        return PhotonSum(logits, centres, scales, self.network.least)


@dataclass(frozen=True)
class SignalModel(_ParticleModel):
    """Whether a particle sends as much light as a study keeps."""

    network: SignalNetwork
    hidden: Sequence[int]
    scaler: ConditionScaler

    @torch.no_grad()
    def probability(self, features: NDArray[np.float64], detector: Detector) -> NDArray[np.float64]:
        """(N,) of particles, features (N, 9)."""
        context = self.scaler.particle(features, detector)
        logits = torch.cat([self.network(some) for some in context.split(GROUP)])
        probability: NDArray[np.float64] = torch.sigmoid(logits.to(torch.float64)).numpy()
        return probability


def save_particle_model(model: PhotonSumModel | SignalModel, path: Path) -> None:
    """Write one (safetensors); not atomic, as :func:`zdc_nb.generator.surrogate.save_surrogate`."""
    save_tensors(model.tensors, {"description": json.dumps(describe_particle_model(model))}, path)


def describe_particle_model(model: PhotonSumModel | SignalModel) -> dict[str, Any]:
    """What :func:`build_particle_model` needs beside the weights; made of what JSON has."""
    description: dict[str, Any] = {
        "kind": "photon_sum" if isinstance(model, PhotonSumModel) else "signal",
        "context": len(model.scaler.mean),
        "hidden": [*model.hidden],
    }
    if isinstance(model, PhotonSumModel):
        description |= {"components": model.network.components, "least": model.network.least}
    return description


def build_particle_model(
    known: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> PhotonSumModel | SignalModel:
    """A model of its description and its tensors, which are named as in its file."""
    context, hidden = known["context"], known["hidden"]
    scaler = ConditionScaler(tensors["scaler.mean"].numpy(), tensors["scaler.std"].numpy())
    weights = {
        name.removeprefix("network."): value
        for name, value in tensors.items()
        if name.startswith("network.")
    }
    if known["kind"] == "signal":
        signal = SignalNetwork(context, hidden)
        signal.load_state_dict(weights)
        return SignalModel(signal.eval().requires_grad_(False), hidden, scaler)
    if known["kind"] != "photon_sum":
        raise ValueError(f"kind: expected photon_sum or signal, got {known['kind']!r}")
    photon_sum = PhotonSumNetwork(context, hidden, known["components"], known["least"])
    photon_sum.load_state_dict(weights)
    return PhotonSumModel(photon_sum.eval().requires_grad_(False), hidden, scaler)


def save_no_signal(path: Path) -> None:
    """Write in the place of a :class:`SignalModel` that there is none: all particles send light."""
    save_tensors({"none": torch.zeros(1)}, {"description": json.dumps({"kind": "none"})}, path)


def load_particle_model(path: Path) -> PhotonSumModel | SignalModel | None:
    """Read a file of :func:`save_particle_model`, or :func:`save_no_signal` (None).

    ``ValueError`` names a file that is neither.
    """
    try:
        with safe_open(path, framework="pt") as file:
            known = json.loads((file.metadata() or {})["description"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return None if known["kind"] == "none" else build_particle_model(known, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: not a trained network of a particle ({error})") from error
