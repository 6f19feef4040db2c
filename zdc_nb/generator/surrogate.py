"""A trained flow with all that turns particles into responses, and its file."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from zdc_nb.data.events import Conditioned
from zdc_nb.detector import Detector
from zdc_nb.flows.maf_iaf import Student, Teacher
from zdc_nb.flows.splitting import SplittingFlow
from zdc_nb.generator.encoding import ConditionScaler, decode_responses
from zdc_nb.params import (
    FlowParams,
    PreprocessingParams,
    SplittingFlowParams,
    flow_of_today,
)
from zdc_nb.storage import save_tensors

__all__ = [
    "DivergenceError",
    "Surrogate",
    "build_surrogate",
    "describe_surrogate",
    "load_surrogate",
    "save_surrogate",
    "surrogate_tensors",
]


class DivergenceError(ArithmeticError):
    """A training produced a number that is not finite."""


@dataclass(frozen=True)
class Surrogate:
    """A trained flow with all that turns particles into responses.

    Attributes
    ----------
    flow
        teacher, student or splitting flow.
    architecture
        the parameters that ``flow`` was built with.
    scaler, preprocessing
        how conditions were scaled and responses were encoded; a splitting flow takes counts as
        they are and has no ``preprocessing``.

    Examples
    --------
    What a study has trained generates responses, one for each event that it is given:

    .. code-block:: python

        surrogate = load_surrogate(Path("artifacts/small/models/n/bs.safetensors"), device)
        responses = surrogate.generate(events, seed=1, batch=256)  # (N, rows, columns) photons
    """

    flow: Teacher | Student | SplittingFlow
    architecture: FlowParams | SplittingFlowParams
    scaler: ConditionScaler
    preprocessing: PreprocessingParams | None

    def conditions(self, events: Conditioned) -> Tensor:
        """(N, C) what the flow is told of ``events``, on its device."""
        if self.preprocessing is None:
            return self.scaler.context(events).to(self.flow.device)
        return self.scaler(events, self.preprocessing).to(self.flow.device)

    @property
    def megabytes(self) -> float:
        """Size of the weights, which is that of the file but for a few kB of header."""
        tensors = self.flow.state_dict().values()
        total: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return total / 1e6

    def with_engine(self, engine: Literal["fused", "plain"]) -> Surrogate:
        """A copy that computes the same numbers the other way, see :class:`FlowParams`.

        ``TypeError`` for a splitting flow, which has one engine.
        """
        if isinstance(self.flow, SplittingFlow) or isinstance(
            self.architecture, SplittingFlowParams
        ):
            raise TypeError("with_engine: expected a teacher or a student")
        architecture = self.architecture.model_copy(update={"engine": engine})
        flow = type(self.flow)(self.flow.dim, self.flow.context, architecture, seed=0)
        flow.load_state_dict(self.flow.state_dict())
        flow = flow.to(self.flow.device).train(self.flow.training)
        return replace(self, flow=flow, architecture=architecture)

    @property
    def latents(self) -> int:
        """Random numbers that :meth:`from_uniform` takes for a response."""
        if isinstance(self.flow, SplittingFlow):
            return self.flow.dim - 1
        return 2 * ((self.flow.dim + 1) // 2)

    def from_uniform(self, asked: Conditioned, uniform: NDArray[np.float64]) -> NDArray[np.uint16]:
        """(N, R, K) responses from random numbers (N, L) in (0, 1), see :attr:`latents`.

        A splitting flow takes one for each node. For the others each two become two normal numbers
        (Box and Muller, Ann. Math. Stat. 29 (1958) 610). Raises :class:`DivergenceError`.
        """
        self.flow.eval()
        given = torch.from_numpy(uniform.astype(np.float32)).to(self.flow.device)
        conditions = self.conditions(asked)
        if isinstance(self.flow, SplittingFlow):
            x = self.flow.from_uniform(given, conditions)
        else:
            size = torch.sqrt(-2 * torch.log(given[:, ::2]))
            angle = 2 * math.pi * given[:, 1::2]
            pairs = torch.stack([size * torch.cos(angle), size * torch.sin(angle)], dim=2)
            x = self.flow.from_latent(pairs.flatten(1)[:, : self.flow.dim], conditions)
        self._refuse_divergence(x, asked.photon_sum, 0)
        return self._decode(x, asked.photon_sum, asked.detector)

    def generate(
        self, events: Conditioned, seed: int, batch: int, progress: bool = False
    ) -> NDArray[np.uint16]:
        """(N, R, K) responses, one for the particle and photon sum of each event.

        The same seed, batch size and device give the same responses.

        Raises
        ------
        DivergenceError
            where a sample is not finite.
        """
        self.flow.eval()
        generator = torch.Generator(self.flow.device).manual_seed(seed)
        conditions = self.conditions(events)
        photon_sum = events.photon_sum
        parts = []
        starts = range(0, len(events), batch)
        # a bar is for those who wait: not for what is over at once
        bar = tqdm(starts, "generate", file=sys.stdout, disable=not progress, delay=10)
        for start in bar:
            here = slice(start, start + batch)
            x = self.flow.sample(conditions[here], generator)
            self._refuse_divergence(x, photon_sum[here], start)
            parts.append(self._decode(x, photon_sum[here], events.detector))
        return np.concatenate(parts)

    def _refuse_divergence(self, x: Tensor, photon_sum: NDArray[np.int64], start: int) -> None:
        if self.preprocessing is None:
            whole = np.array_equal(x.sum(1).cpu().numpy(), photon_sum)
        else:
            whole = bool(torch.isfinite(x).all())
        if not whole:
            raise DivergenceError(
                f"generate: a sample from number {start} on is not finite; "
                "was the flow trained to the end?"
            )

    def _decode(
        self, x: Tensor, photon_sum: NDArray[np.int64], detector: Detector
    ) -> NDArray[np.uint16]:
        if self.preprocessing is None:
            return x.cpu().numpy().astype(np.uint16).reshape(-1, *detector.shape)
        return decode_responses(x, self.preprocessing, photon_sum, detector)


def save_surrogate(surrogate: Surrogate, path: Path) -> None:
    """Write a trained model (safetensors): weights, scaler and the parameters to rebuild it.

    Not atomic: ``path`` is a temporary one, see :func:`zdc_nb.storage.write_atomically`.
    """
    description = json.dumps(describe_surrogate(surrogate))
    save_tensors(surrogate_tensors(surrogate), {"description": description}, path)


def surrogate_tensors(surrogate: Surrogate) -> dict[str, Tensor]:
    """Weights and scaler, by their names in a file."""
    state = surrogate.flow.state_dict()
    tensors = {f"flow.{name}": value.contiguous() for name, value in state.items()}
    tensors["scaler.mean"] = torch.from_numpy(surrogate.scaler.mean)
    tensors["scaler.std"] = torch.from_numpy(surrogate.scaler.std)
    return tensors


def describe_surrogate(surrogate: Surrogate) -> dict[str, Any]:
    """What :func:`build_surrogate` needs beside the tensors; made of what JSON has."""
    flow, preprocessing = surrogate.flow, surrogate.preprocessing
    return {
        "kind": _kind(flow),
        "dim": flow.shape if isinstance(flow, SplittingFlow) else flow.dim,
        "context": flow.context,
        "flow": surrogate.architecture.model_dump(),
        "preprocessing": None if preprocessing is None else preprocessing.model_dump(),
    }


def build_surrogate(
    description: dict[str, Any], tensors: dict[str, Tensor], device: torch.device
) -> Surrogate:
    """A model of its description and tensors, frozen, on a device."""
    flow, architecture = _build(description)
    weights = {k.removeprefix("flow."): v for k, v in tensors.items() if k.startswith("flow.")}
    flow.load_state_dict(weights)
    scaler = ConditionScaler(tensors["scaler.mean"].numpy(), tensors["scaler.std"].numpy())
    # frozen, so that what is rounded of its weights is rounded once
    frozen = flow.to(device).eval().requires_grad_(False)
    return Surrogate(frozen, architecture, scaler, _preprocessing(description["preprocessing"]))


def load_surrogate(path: Path, device: torch.device) -> Surrogate:
    """Read a model of :func:`save_surrogate`; ``ValueError`` names a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["description"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return build_surrogate(description, tensors, device)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: not a trained model of this project ({error})") from error


def _kind(flow: Teacher | Student | SplittingFlow) -> str:
    return "splitting" if isinstance(flow, SplittingFlow) else type(flow).__name__.lower()


def _build(description: dict[str, Any]) -> tuple[Any, FlowParams | SplittingFlowParams]:
    """An untrained flow of a file's description, and its parameters."""
    dim, context = description["dim"], description["context"]
    if description["kind"] == "splitting":
        splitting = SplittingFlowParams.model_validate(description["flow"])
        return SplittingFlow((dim[0], dim[1]), context, splitting), splitting
    kinds: dict[str, type[Teacher | Student]] = {"teacher": Teacher, "student": Student}
    architecture = FlowParams.model_validate(flow_of_today(description["flow"]))
    # the permutations are among the tensors: any seed will do
    return kinds[description["kind"]](dim, context, architecture, seed=0), architecture


def _preprocessing(known: dict[str, Any] | None) -> PreprocessingParams | None:
    # files of before there was a choice of coordinates have none
    return None if known is None else PreprocessingParams(**{"coordinates": "fibres"} | known)
