"""Checkpoints of a training: killed at any moment, it goes on from the last one.

A checkpoint is a safetensors file: the flow's weights, those of the best epoch so far, Adam's
moments, the states of the random generators, the order of the responses in this epoch, and, as
JSON in its metadata, how far the training is, what it depends on, and a checksum of all this. It is
one file, so that there is always a whole one after the first. On a CPU a training that went on from
a checkpoint ends with the same numbers as one that was never stopped.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from zdc_nb.storage import save_tensors, sweep, write_atomically

__all__ = ["Checkpoint", "Progress", "StopRequest", "TrainingInterrupted"]


class TrainingInterrupted(KeyboardInterrupt):
    """A training was told to stop (SIGTERM or SIGINT) and has saved where it is."""


@dataclass
class Progress:
    """How far a training is, between two steps.

    Attributes
    ----------
    epoch
        the current one, from 1.
    batch
        batches of this epoch that are done.
    step
        batches of all epochs that are done.
    sums
        the terms of the loss, summed over this epoch so far.
    best
        the best validation loss so far.
    rows
        of the history: epoch, step, split, term, value.
    seconds
        that the training has taken so far, all its attempts together.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: float = math.inf
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, split: str, terms: dict[str, float]) -> None:
        """Add the terms of the loss over one split to the history."""
        self.rows += [
            {"epoch": self.epoch, "step": self.step, "split": split, "term": term, "value": value}
            for term, value in terms.items()
        ]


class Checkpoint:
    """Where one training keeps its checkpoint, and when it makes a new one.

    Parameters
    ----------
    path
        a safetensors file.
    made_with
        all that the training depends on, as JSON can hold it. A checkpoint of anything else, or
        of other code that the training runs, is not gone on from.
    seconds
        between two checkpoints.
    """

    def __init__(self, path: Path, made_with: object, seconds: float) -> None:
        self.path = path
        made_with = {
            "training": made_with,
            "code": code_checksum(Path(__file__).parents[1]),
            "torch": str(torch.__version__),
        }
        self.made_with = json.dumps(made_with, sort_keys=True)
        self.seconds = seconds
        self.saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last one is older than ``seconds``."""
        return time.monotonic() - self.saved >= self.seconds

    def prepare(self) -> None:
        """Remove what others left half-written; only for who alone is at this training."""
        sweep(self.path)

    def save(
        self,
        progress: Progress,
        flow: nn.Module,
        best: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        order: Tensor,
    ) -> None:
        """Write a checkpoint; the one before stays until the new one is whole.

        Raises
        ------
        OSError
            naming the file, where it cannot be written, as on a full disk.
        """
        tensors = {f"flow.{name}": value for name, value in flow.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in best.items()}
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in moments.items()}
        tensors |= {"generator": generator.get_state(), "order": order, **_global_generators()}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        metadata = {"progress": json.dumps(asdict(progress)), "made_with": self.made_with}
        metadata["sha256"] = _checksum(metadata, tensors)
        with write_atomically(self.path) as temporary:
            save_tensors(tensors, metadata, temporary)
        self.saved = time.monotonic()

    def restore(
        self,
        flow: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> tuple[Progress, dict[str, Tensor], Tensor] | None:
        """Put the training back to where the checkpoint was made, in place.

        Returns progress, the weights of the best epoch and the order of this epoch's responses; or
        None, where there is nothing to go on from: a checkpoint that does not fit is named in a
        printed line.
        """
        try:
            tensors, progress = self._read()
        except FileNotFoundError:
            return None
        except ValueError as error:
            print(f"{self.path}: {error}; beginning anew", flush=True)
            return None
        flow.load_state_dict(_below("flow.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("adam.", tensors).items():
            number, moment = name.split(".", 1)
            state.setdefault(int(number), {})[moment] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        generator.set_state(tensors["generator"])
        _set_global_generators(tensors)
        device = next(flow.parameters()).device
        best = {name: value.to(device) for name, value in _below("best.", tensors).items()}
        return progress, best, tensors["order"]

    def _read(self) -> tuple[dict[str, Tensor], Progress]:
        """Tensors and progress; ``ValueError`` where they are not to be gone on from."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"not a checkpoint ({error})") from error
        if metadata.pop("sha256", "") != _checksum(metadata, tensors):
            raise ValueError("a damaged checkpoint, its bytes are not those of its checksum")
        if metadata["made_with"] != self.made_with:
            raise ValueError("a checkpoint of other parameters, other data or other code")
        return tensors, Progress(**json.loads(metadata["progress"]))

    def remove(self) -> None:
        """Remove the checkpoint of a stage that is done."""
        self.path.unlink(missing_ok=True)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _checksum(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types and bytes."""
    total = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.numpy().tobytes())
    return total.hexdigest()


def _global_generators() -> dict[str, Tensor]:
    """States of torch's own generators, which dropout draws from."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_global_generators(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


DEPENDS_ON = ("detector", "flows", "generator/encoding.py", "training")
"""Code of this package that the numbers of a training come from."""

_APART = {"training/figures.py", "training/tracking.py"}


def code_checksum(package: Path, wanted: Sequence[str] = DEPENDS_ON) -> str:
    """SHA-256 of what some modules and folders of a package do: comments and docstrings are left out.

    ``package`` is its folder; the names in ``wanted`` lie in it.
    """
    code = hashlib.sha256()
    for name in wanted:
        found = package / name
        for file in sorted(found.rglob("*.py")) if found.is_dir() else [found]:
            if file.relative_to(package).as_posix() not in _APART:
                code.update(_without_texts(file.read_text("utf-8")).encode())
    return code.hexdigest()


def _without_texts(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # docstrings, also those of constants
            kept = [
                part
                for part in body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.dump(tree)


class StopRequest:
    """Notes SIGTERM and SIGINT instead of dying, while used as a context manager.

    So that a training can save itself at the end of a step: Slurm sends SIGTERM at a time limit,
    and SIGINT comes from JupyterLab's stop button and from the grid.
    In other threads than the main one, signals cannot be caught and nothing is noted.

    Attributes
    ----------
    signal
        the name of the last one, None before.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
