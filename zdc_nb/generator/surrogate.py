"""A trained flow with all that turns particles into responses, and its file."""

from __future__ import annotations

import json
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

from zdc_nb.data.events import Events
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

__all__ = ["DivergenceError", "Surrogate", "load_surrogate", "save_surrogate"]


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
        responses = surrogate.generate(events, seed=1, batch=256)  # (N, 44, 44) photons
    """

    flow: Teacher | Student | SplittingFlow
    architecture: FlowParams | SplittingFlowParams
    scaler: ConditionScaler
    preprocessing: PreprocessingParams | None

    def conditions(self, events: Events) -> Tensor:
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

    def generate(
        self, events: Events, seed: int, batch: int, progress: bool = False
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
            if not self._is_whole(x, photon_sum[here]):
                raise DivergenceError(
                    f"generate: a sample from number {start} on is not finite; "
                    "was the flow trained to the end?"
                )
            parts.append(self._decode(x, photon_sum[here], events.detector))
        return np.concatenate(parts)

    def _is_whole(self, x: Tensor, photon_sum: NDArray[np.int64]) -> bool:
        if self.preprocessing is None:
            return bool(np.array_equal(x.sum(1).cpu().numpy(), photon_sum))
        return bool(torch.isfinite(x).all())

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
    flow = surrogate.flow
    tensors = {f"flow.{name}": value.contiguous() for name, value in flow.state_dict().items()}
    tensors["scaler.mean"] = torch.from_numpy(surrogate.scaler.mean)
    tensors["scaler.std"] = torch.from_numpy(surrogate.scaler.std)
    preprocessing = surrogate.preprocessing
    description = {
        "kind": _kind(flow),
        "dim": flow.shape if isinstance(flow, SplittingFlow) else flow.dim,
        "context": flow.context,
        "flow": surrogate.architecture.model_dump(),
        "preprocessing": None if preprocessing is None else preprocessing.model_dump(),
    }
    save_tensors(tensors, {"description": json.dumps(description)}, path)


def load_surrogate(path: Path, device: torch.device) -> Surrogate:
    """Read a model of :func:`save_surrogate`; ``ValueError`` names a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["description"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        flow, architecture = _build(description)
        weights = {k.removeprefix("flow."): v for k, v in tensors.items() if k.startswith("flow.")}
        flow.load_state_dict(weights)
        scaler = ConditionScaler(tensors["scaler.mean"].numpy(), tensors["scaler.std"].numpy())
        preprocessing = _preprocessing(description["preprocessing"])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: not a trained model of this project ({error})") from error
    # frozen, so that what is rounded of its weights is rounded once
    frozen = flow.to(device).eval().requires_grad_(False)
    return Surrogate(frozen, architecture, scaler, preprocessing)


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
