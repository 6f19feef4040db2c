"""The splitting flow timed beside its own definition in plain torch, and beside a student.

No library has such a flow, so there is no peer with the same weights: what it is compared with are
the same numbers computed level by level in torch, and the student of the same benchmark, the
published way to sample fast.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from zdc_nb.bench.cases import FEWEST_RUNS, BenchParams
from zdc_nb.bench.libraries import Ours, make_inputs
from zdc_nb.data import simulate
from zdc_nb.detector import ZN
from zdc_nb.flows import SplittingFlow
from zdc_nb.generator import ConditionScaler
from zdc_nb.hardware import OtherLoad, choose_device, relative_spread, time_call
from zdc_nb.params import derive_seed

__all__ = ["splitting_findings", "time_splitting"]

Calls = dict[tuple[str, str], Callable[[], object]]


def time_splitting(params: BenchParams) -> pd.DataFrame:
    """Median times of the splitting flow on simulated responses, at each batch size.

    Returns
    -------
    Columns case (sample, density, train_step), contender (splitting; splitting, plain torch;
    student), device, batch, ms_per_sample, lit_nodes (mean of the responses), runs, spread and
    others, as in :class:`zdc_nb.bench.run.Benchmark`. Contenders of a case take turns.
    """
    device = choose_device(params.device).type
    events = simulate(max(params.batches), 2, 10, derive_seed(params.seed, "responses"))
    scaler = ConditionScaler.fit_context(events)
    contexts = scaler.context(events).to(device)
    photons = torch.from_numpy(events.photons.toarray().astype(np.int64)).to(device)
    with torch.random.fork_rng():
        torch.manual_seed(params.seed)
        flow = SplittingFlow(ZN.shape, contexts.shape[1], params.splitting).to(device)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-9, fused=True)
    student = Ours(ZN.dim, max(params.hiddens), params, "fused", "float32", device)
    lit = (flow.boxes(photons)[:, flow.nodes] > 0).sum(1).to(torch.float32)
    rows = []
    for batch in sorted(params.batches):
        here, context = photons[:batch], contexts[:batch]
        uniform = torch.rand(batch, ZN.dim - 1, device=device)
        _, _, condition = make_inputs(ZN.dim, batch, params, device)

        def step(here: torch.Tensor = here, context: torch.Tensor = context) -> None:
            optimizer.zero_grad(set_to_none=True)
            (-flow.log_prob(here, context).mean()).backward()
            optimizer.step()

        def plain(uniform: torch.Tensor = uniform, context: torch.Tensor = context) -> object:
            return flow.from_uniform(uniform, context, compiled=False)

        def density(here: torch.Tensor = here, context: torch.Tensor = context) -> object:
            with torch.no_grad():
                return flow.log_prob(here, context)

        def sample(context: torch.Tensor = context) -> object:
            return flow.sample(context)

        def student_sample(condition: torch.Tensor = condition) -> object:
            with torch.no_grad():
                return student.sample_iaf(condition)

        cases: dict[str, Calls] = {
            "sample": {
                ("sample", "splitting"): sample,
                ("sample", "splitting, plain torch"): plain,
                ("sample", "student"): student_sample,
            },
            "density": {("density", "splitting"): density},
            "train_step": {("train_step", "splitting"): step},
        }
        for calls in cases.values():
            for name, (times, others) in _take_turns(calls, params, device).items():
                median = 1000 * float(np.median(times)) / batch
                found = (median, float(lit[:batch].mean()), len(times), relative_spread(times))
                rows.append((*name, device, batch, *found, others))
    columns = ["case", "contender", "device", "batch", "ms_per_sample", "lit_nodes"]
    return pd.DataFrame(rows, columns=[*columns, "runs", "spread", "others"])


def _take_turns(
    calls: Calls, params: BenchParams, device: str
) -> dict[tuple[str, str], tuple[list[float], float | None]]:
    warm = {name: min(time_call(call, device) for _ in range(2)) for name, call in calls.items()}
    runs = max(FEWEST_RUNS, min(params.runs, int(params.seconds / max(warm.values()))))
    times: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    with OtherLoad() as load:
        for _ in range(runs):
            for name, call in calls.items():
                times[name].append(time_call(call, device))
    return {name: (values, load.cores) for name, values in times.items()}


def splitting_findings(times: pd.DataFrame) -> list[str]:
    """Sentences on how the splitting flow's sampling compares, at every batch size."""
    samples = times[times["case"] == "sample"]
    wide = samples.pivot(index="batch", columns="contender", values="ms_per_sample")
    said = []
    for batch, row in wide.iterrows():
        mine = row["splitting"]
        said.append(
            f"**{batch} at once**: {mine:.3g} ms a response; in plain torch "
            f"{row['splitting, plain torch'] / mine:.3g} times as long, the student "
            f"{row['student'] / mine:.3g} times."
        )
    return said
