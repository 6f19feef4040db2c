"""How long teacher and student take to generate a response, and to be trained on one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from zdc_nb import stages
from zdc_nb.made import has_bfloat16
from zdc_nb.params import Study

__all__ = ["Sampler", "speed_ratio", "time_sampling", "time_training"]

Sampler = Callable[[int], object]
"""Generates a batch of the given size; what it returns is not looked at."""


def time_sampling(
    models: Mapping[str, Sampler], batches: Sequence[int], runs: int, device: str
) -> pd.DataFrame:
    """Median time of each model to generate one response, by batch size.

    For each batch size every model first runs once unmeasured (compilation, memory), then the
    models take turns (A B A B ...), so that what else the machine does falls on all alike. On a
    GPU the clock is read when the device has finished its work.

    Parameters
    ----------
    models
        name to a function that generates a batch of a given size.
    batches
        batch sizes.
    runs
        timed runs of each model at each batch size.
    device
        where the models run, ``cpu`` or ``cuda``.

    Returns
    -------
    Columns model, device, batch, ms_per_sample (median over the runs), runs.

    Raises
    ------
    ValueError
        where ``runs`` or a batch size is not positive.
    """
    if runs < 1 or any(batch < 1 for batch in batches):
        raise ValueError(f"expected positive runs and batches, got {runs} and {list(batches)}")
    rows = []
    for batch in batches:
        for sample in models.values():
            _seconds(sample, batch, device)
        turns = [
            {name: _seconds(sample, batch, device) for name, sample in models.items()}
            for _ in range(runs)
        ]
        for name in models:
            median = float(np.median([turn[name] for turn in turns]))
            rows.append((name, device, batch, 1000 * median / batch, runs))
    return pd.DataFrame(rows, columns=["model", "device", "batch", "ms_per_sample", "runs"])


def speed_ratio(speed: pd.DataFrame, slow: str = "teacher", fast: str = "student") -> pd.DataFrame:
    """How many times longer one model takes than another: columns device, batch, ratio.

    ``speed`` is the result of :func:`time_sampling`; raises ``KeyError`` where it lacks a model.
    """
    times = speed.pivot_table(
        index=["device", "batch"], columns="model", values="ms_per_sample", sort=False
    )
    return (times[slow] / times[fast]).rename("ratio").reset_index()


def time_training(study: Study) -> pd.DataFrame:
    """Median time of a training step for one response, with both engines, taking turns.

    Returns
    -------
    Columns model (teacher, student), engine (fused, reference), precision (of the products),
    device, batch, ms_per_sample, runs, and responses: how many all models of this kind were trained
    on, each counted once an epoch.
    """
    steps = stages.training_steps(study)
    work = stages.training_work(study)
    device = stages.device(study)
    rounded = study.flow.precision == "bfloat16" or (
        study.flow.precision == "auto" and has_bfloat16(device)
    )
    parts = []
    for model, params in (("teacher", study.teacher), ("student", study.student)):
        mine = {name: step for name, step in steps.items() if name.startswith(model)}
        times = time_sampling(mine, [params.batch], study.speed.runs, device)
        engine = times["model"].str.removeprefix(f"{model} ")
        precision = np.where((engine == "fused") & rounded, "bfloat16", "float32")
        parts.append(
            times.assign(model=model, engine=engine, precision=precision, responses=work[model])
        )
    return pd.concat(parts, ignore_index=True)


def _seconds(sample: Sampler, batch: int, device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    sample(batch)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
