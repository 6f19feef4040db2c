"""How long teacher and student take to generate a response, and to be trained on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from zdc_nb.data.events import Conditions, Events
from zdc_nb.evaluation.conclusions import as_list
from zdc_nb.generator.generator import OWN_NUMBERS, Generator
from zdc_nb.generator.random_numbers import uniforms_from_seed
from zdc_nb.generator.surrogate import Surrogate
from zdc_nb.hardware import (
    OtherLoad,
    has_bfloat16,
    relative_spread,
    time_call,
    timing_warning,
)
from zdc_nb.study.artefacts import kind_of, trained_models
from zdc_nb.study.session import Session
from zdc_nb.training.trainers import distillation_step, likelihood_step

__all__ = [
    "Sampler",
    "busy_warning",
    "engine_findings",
    "generator_findings",
    "speed_findings",
    "speed_ratio",
    "time_generator",
    "time_models",
    "time_sampling",
    "time_training",
]

Sampler = Callable[[int], object]
"""Generates a batch of the given size; what it returns is not looked at."""

TIMED_BATCH = 256
"""Responses at once for which all models of a study are compared."""


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
    Columns model, device, batch, ms_per_sample (median over the runs), runs, spread (distance
    between the quartiles of the runs over their median) and others (cores that other processes used
    meanwhile; empty where it cannot be told).

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
            time_call(partial(sample, batch), device)
        with OtherLoad() as load:
            turns = [
                {name: time_call(partial(sample, batch), device) for name, sample in models.items()}
                for _ in range(runs)
            ]
        for name in models:
            times = [turn[name] for turn in turns]
            time = 1000 * float(np.median(times)) / batch
            rows.append((name, device, batch, time, runs, relative_spread(times), load.cores))
    columns = ["model", "device", "batch", "ms_per_sample", "runs", "spread", "others"]
    return pd.DataFrame(rows, columns=columns)


def speed_ratio(speed: pd.DataFrame, slow: str = "teacher", fast: str = "student") -> pd.DataFrame:
    """How many times longer one model takes than another: columns device, batch, ratio.

    ``speed`` is the result of :func:`time_sampling`; raises ``KeyError`` where it lacks a model.
    """
    times = speed.pivot_table(
        index=["device", "batch"], columns="model", values="ms_per_sample", sort=False
    )
    return (times[slow] / times[fast]).rename("ratio").reset_index()


def time_training(stage: Session) -> pd.DataFrame:
    """Median time of a training step for one response, with both engines, taking turns.

    Returns
    -------
    Columns model (teacher, student), engine (fused, plain), precision (of the products),
    device, batch, ms_per_sample, runs, and responses: how many all models of this kind were trained
    on, each counted once an epoch.
    """
    study, device = stage.study, stage.device
    steps, work = _training_steps(stage), _training_work(stage)
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


def samplers(stage: Session) -> dict[str, Callable[[int], object]]:
    """Models of the study's ``speed``: functions that generate a batch of a given size.

    What is timed is the flow, from a condition on the device to a sample in flow space, or of the
    splitting flow to photons; what the published times include is not said. Particles are taken from the test split, in turn.
    """
    study, subset = stage.study, stage.study.speed.subset
    test = stage.split(subset).test

    def sampler(surrogate: Surrogate) -> Callable[[int], object]:
        conditions = surrogate.conditions(test)
        generator = torch.Generator(surrogate.flow.device).manual_seed(study.seed)

        def sample(batch: int) -> object:
            rows = torch.arange(batch, device=conditions.device) % len(conditions)
            return surrogate.flow.sample(conditions[rows], generator)

        return sample

    models = {
        "teacher": stage.model("teacher", subset),
        "student": stage.model(study.speed.setup, subset),
    }
    if study.splitting is not None:
        models["splitting"] = stage.model("splitting", subset)
    return {name: sampler(model) for name, model in models.items()}


def time_models(stage: Session) -> pd.DataFrame:
    """What every trained model of the study costs, tidy: subset, model, metric, run, value.

    The metrics are :data:`zdc_nb.evaluation.tables.COSTS`. Models of one data set take turns to
    generate 256 responses each, from particles and photon sums to photons, after one unmeasured
    run; a run's value is the time for one response.
    """
    study, rows = stage.study, []
    for subset in study.subsets:
        test = stage.split(subset).test
        events = test[np.arange(TIMED_BATCH) % len(test)]
        models = {name: stage.model(name, subset) for name in trained_models(study)}

        def generate(model: Surrogate, events: Events = events) -> object:
            return model.generate(events, study.seed, TIMED_BATCH)

        for name, model in models.items():
            time_call(partial(generate, model), stage.device)
            rows.append((subset, name, "megabytes", 0, model.megabytes))
            seconds = stage.training_seconds(name, subset)
            if seconds is not None:
                rows.append((subset, name, "train_seconds", 0, seconds))
        for run in range(study.speed.runs):
            for name, model in models.items():
                taken = 1000 * time_call(partial(generate, model), stage.device) / TIMED_BATCH
                rows.append((subset, name, "ms_per_sample", run, taken))
    return pd.DataFrame(rows, columns=["subset", "model", "metric", "run", "value"])


def time_generator(stage: Session, generator: Generator) -> pd.DataFrame:
    """How long the generator takes from particles to photons, beside its flow alone.

    As :func:`time_sampling`, at batch 1 and 256: ``flow`` (told the photon sum), ``generator`` and,
    where the detector can be exported, ``ONNX``, the exported graph in ONNX Runtime on the CPU, on as
    many threads as torch has. All of a model that takes every particle to send light. Particles are
    those of the test part, in turn.
    """
    # slow to import, and one stage of many needs it
    from zdc_nb.generator.onnx_export import why_not  # noqa: PLC0415

    study, flow = stage.study, generator.surrogate
    lit = replace(generator, signal=None)
    some = stage.answerable(generator)[:TIMED_BATCH]
    uniform = uniforms_from_seed(study.seed, 0, len(some), OWN_NUMBERS + flow.latents)
    sums = lit.photon_sums(some.features, uniform)
    turn = iter(range(10**9))

    def rows(batch: int) -> NDArray[np.int64]:
        """Others at every call: one by one, no particle is timed again and again."""
        return (next(turn) + np.arange(batch)) % len(some)

    def alone(batch: int) -> object:
        chosen = rows(batch)
        asked = Conditions(some.features[chosen], sums[chosen], some.detector)
        return flow.generate(asked, study.seed, batch)

    def whole(batch: int) -> object:
        return lit.sample(some[rows(batch)], study.seed, batch)

    models = {"flow": alone, "generator": whole}
    if why_not(generator.detector) is None:
        graph = _exported(lit, some, study.seed)
        models["ONNX"] = lambda batch: graph(rows(batch))
    runs = max(study.speed.runs, 3)
    each = time_sampling(models, [TIMED_BATCH], runs, stage.device)
    # one response is over soon, and differs from the next
    one = time_sampling(models, [1], 20 * runs, stage.device)
    return pd.concat([one, each], ignore_index=True)


def _exported(
    generator: Generator, some: Events, seed: int
) -> Callable[[NDArray[np.int64]], object]:
    """The exported graph, as a function of which of some events it is asked about."""
    # slow to import
    from zdc_nb.generator.onnx_export import export_onnx  # noqa: PLC0415
    from zdc_nb.generator.onnx_session import o2_inputs, open_onnx  # noqa: PLC0415

    inputs = o2_inputs(generator, some.features, seed)
    with TemporaryDirectory() as folder:
        export_onnx(generator, Path(folder))
        graph = open_onnx(Path(folder) / "neutron.onnx", torch.get_num_threads())
    return lambda chosen: graph(*(part[chosen] for part in inputs))


def generator_findings(times: pd.DataFrame) -> str:
    """What :func:`time_generator` says, in sentences."""
    table = times.pivot(index="batch", columns="model", values="ms_per_sample")
    said = []
    for batch, row in table.sort_index(ascending=False).iterrows():
        text = (
            f"At batch {batch} the generator takes {row['generator']:.3g} ms for a response, "
            f"{row['generator'] / row['flow']:.2f} times its flow alone"
        )
        if "ONNX" in row:
            ratio = row["ONNX"] / row["generator"]
            text += f"; the ONNX graph {row['ONNX']:.3g} ms, {ratio:.2f} times the generator"
        said.append(f"{text}.")
    warning = busy_warning(times)
    return " ".join(said if warning is None else [*said, warning])


def _training_steps(stage: Session) -> dict[str, Callable[[int], object]]:
    """A training step of teacher and student of the study's ``speed``, with both engines.

    As functions that make one on a batch of a given size: loss, gradients and optimiser, on copies
    of the trained weights, with responses of the test split. Names are ``<model> <engine>``, with
    ``fused`` and ``plain``.
    """
    study, subset = stage.study, stage.study.speed.subset
    test = stage.split(subset).test

    def steps(engine: Literal["fused", "plain"]) -> dict[str, Callable[[int], object]]:
        teacher = stage.model("teacher", subset).with_engine(engine)
        student = stage.model(study.speed.setup, subset).with_engine(engine)
        frozen = teacher.with_engine(engine)
        return {
            f"teacher {engine}": likelihood_step(teacher, test, study.seed),
            f"student {engine}": distillation_step(frozen, student, test, study.seed),
        }

    return {**steps("fused"), **steps("plain")}


def _training_work(stage: Session) -> dict[str, int]:
    """How many responses all teachers and all students of the study were trained on.

    A response counts once for each epoch.
    """
    work = {"teacher": 0, "student": 0, "splitting": 0}
    for subset in stage.study.subsets:
        responses = len(stage.split(subset).train)
        for model in trained_models(stage.study):
            kind = kind_of(model)
            params = getattr(stage.study, kind)
            epochs = int(stage.history(model, subset)["epoch"].max())
            work[kind] += epochs * min(responses, params.epoch_responses or responses)
    return work


def speed_findings(speed: pd.DataFrame) -> str:
    """What the times say, as a Markdown list."""
    return as_list(_speed_sentences(speed))


def engine_findings(training: pd.DataFrame) -> str:
    """What the fused engine spared a study (:func:`zdc_nb.study.speed.time_training`), as a list."""
    return as_list(_engine_sentences(training))


def busy_warning(times: pd.DataFrame) -> str | None:
    """The sentence of :func:`zdc_nb.hardware.timing_warning` for a table of times, if it needs one."""
    if not {"spread", "others"} <= set(times.columns):  # of an older study
        return None
    others = pd.to_numeric(times["others"], errors="coerce").max()
    return timing_warning(float(times["spread"].max()), None if pd.isna(others) else float(others))


def _speed_sentences(speed: pd.DataFrame) -> Iterator[str]:
    if warning := busy_warning(speed):
        yield warning
    times = speed.set_index(["device", "model", "batch"])["ms_per_sample"]
    for device, part in speed_ratio(speed).groupby("device", sort=False):
        ratios = part.set_index("batch")["ratio"]
        for batch in dict.fromkeys((ratios.index.min(), ratios.index.max())):
            third = ""
            if (device, "splitting", batch) in times.index:
                third = f" The splitting flow needs {times[device, 'splitting', batch]:.3g} ms."
            yield (
                f"On {device}, {batch} at once: the student needs "
                f"{times[device, 'student', batch]:.3g} ms a response, the teacher "
                f"{times[device, 'teacher', batch]:.3g} ms, {ratios[batch]:.3g} times as long.{third}"
            )
        yield (
            f"Against the teacher the student does best at batch {ratios.idxmax()} "
            f"({_pace(ratios.max())}) and worst at batch {ratios.idxmin()} ({_pace(ratios.min())})."
        )


def _engine_sentences(training: pd.DataFrame) -> Iterator[str]:
    if warning := busy_warning(training):
        yield warning
    seconds = dict.fromkeys(("fused", "plain"), 0.0)
    for model, rows in training.groupby("model", sort=False):
        times = rows.set_index("engine")["ms_per_sample"]
        precision = rows.set_index("engine")["precision"]
        responses = int(rows["responses"].iloc[0])
        for engine in seconds:
            seconds[engine] += responses * times[engine] / 1000
        ratio = times["plain"] / times["fused"]
        yield (
            f"**The {model}s** were trained on {responses:,} responses, each counted once an epoch. "
            f"A training step takes {times['fused']:.3g} ms a response, with products in "
            f"{precision['fused']}; in plain torch and {precision['plain']} it takes "
            f"{times['plain']:.3g} ms, {ratio:.3g} times as long."
        )
    unit, length = _unit_of(seconds["fused"])
    yield (
        f"**What this bought**: at these rates, measured one after the other on all cores, the "
        f"trainings of this study take {seconds['fused'] / length:.3g} {unit}, and in plain torch they "
        f"would take {seconds['plain'] / length:.3g}. In the same time, plain torch would have seen "
        f"{seconds['fused'] / seconds['plain']:.0%} of these responses."
    )


def _unit_of(seconds: float) -> tuple[str, float]:
    """The unit that a time is told in, and its length in seconds."""
    if seconds < 120:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 7200 else ("hours", 3600.0)


def _pace(ratio: float) -> str:
    """The student's pace, from the teacher's time as a multiple of the student's."""
    if ratio < 1:
        return f"{1 / ratio:.3g} times slower"
    return f"{ratio:.3g} times faster"
