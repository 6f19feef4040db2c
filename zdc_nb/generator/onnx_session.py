"""Running what was exported, as O2 does: scaled particles and normal numbers in, photons out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zdc_nb.generator.generator import Generator
from zdc_nb.generator.onnx_export import O2_UNITS, scales_of
from zdc_nb.generator.random_numbers import NORMALS

__all__ = ["o2_inputs", "open_onnx"]


def open_onnx(path: Path, threads: int) -> Callable[..., NDArray[np.float32]]:
    """A function of the graph's inputs, in their order, that returns its first output.

    ``threads`` is how many one operator may take; operators follow each other.
    """
    # slow to import
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session: Any = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, dict(zip(names, inputs, strict=True)))[0]
        return found

    return run


def o2_inputs(
    generator: Generator, features: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Normal numbers (N, 10), and particles of features (N, 9) scaled as O2 does (N, 9)."""
    mean, scale = scales_of(generator)
    raw = (features / O2_UNITS).astype(np.float32)
    normals = np.random.default_rng(seed).standard_normal((len(features), NORMALS), np.float32)
    return normals, (raw - mean) / scale
