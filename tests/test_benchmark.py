"""The benchmark: its peers compute what we do, its records say what was measured.

No test asserts a time: machines are noisy.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from zdc_nb.bench import evaluation as loops
from zdc_nb.bench import results as bench_tables
from zdc_nb.bench import run as benchmark
from zdc_nb.bench.cases import CASES, BenchParams, compulsory_bytes, load_bench, useful_flop
from zdc_nb.bench.evaluation import evaluation_findings, time_evaluation
from zdc_nb.bench.libraries import NflowsPeer, Ours, PyroPeer
from zdc_nb.bench.results import benchmark_findings
from zdc_nb.bench.run import Benchmark, run_benchmark
from zdc_nb.bench.splitting import splitting_findings, time_splitting
from zdc_nb.data import simulate
from zdc_nb.evaluation import evaluate
from zdc_nb.flows.maf_iaf import Student, Teacher
from zdc_nb.params import ParameterError, load_study

ROOT = Path(__file__).parents[1]
TINY: dict[str, Any] = {
    "device": "cpu",
    "dims": [9, 20],
    "hiddens": [5, 24],
    "batches": [1, 4],
    "growth_batch": 4,
    "passes": 3,
    "runs": 3,
    "seconds": 1e-6,
    "product_size": 64,
    "copy_mb": 1,
    "evaluated": 60,
    "generations": 2,
    "splitting": {
        "window": 3,
        "bins": 4,
        "bound": 8.0,
        "hidden": 8,
        "hidden_layers": 1,
        "context_hidden": [8],
        "coarse_nodes": 3,
    },
}
FLOW = load_study(ROOT / "params" / "smoke.yaml").flow
BOUND, BINS = FLOW.bound, FLOW.bins
PEERS = [PyroPeer, NflowsPeer]


def tiny(folder: Path, **changes: Any) -> Path:
    """A file of parameters for the smallest benchmark."""
    content = yaml.safe_load((ROOT / "params" / "bench.yaml").read_text("utf-8"))
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**content, **TINY, **changes}), "utf-8")
    return path


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> BenchParams:
    return load_bench(tiny(tmp_path_factory.mktemp("bench")))


@pytest.fixture(scope="module")
def result(params: BenchParams) -> Benchmark:
    return run_benchmark(params)


def teacher(dim: int = 11, hidden: int = 7, seed: int = 0) -> Teacher:
    """A flow of one transform with weights large enough that nothing is near the identity."""
    torch.manual_seed(seed)
    changes = {"transforms": 1, "hidden_layers": 2, "hidden": hidden, "context_hidden": []}
    flow = Teacher(dim, 1, FLOW.model_copy(update=changes), seed=0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(2)
    return flow.eval()


def points(flow: Teacher, n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(n, flow.dim) * 4, torch.zeros(n, 1)


@pytest.mark.parametrize("hidden", [4, 30])
@torch.no_grad()
def test_pyro_with_our_weights_computes_our_density(hidden: int) -> None:
    flow = teacher(hidden=hidden)
    x, condition = points(flow)
    peer = PyroPeer(flow.networks[0].dense_weights(), flow.dim, 1, BINS, BOUND)
    expected = flow.log_prob(x, condition)
    torch.testing.assert_close(peer.log_prob(x, condition), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("hidden", [4, 30])
@torch.no_grad()
def test_nflows_with_our_weights_computes_our_density(hidden: int) -> None:
    flow = teacher(hidden=hidden)
    x, condition = points(flow)
    peer = NflowsPeer(flow.networks[0].dense_weights(), flow.dim, 1, BINS, BOUND)
    expected = flow.log_prob(x, condition)
    # its splines end with a slope of 1, ours and Pyro's with 0.999
    torch.testing.assert_close(peer.log_prob(x, condition), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", PEERS)
@torch.no_grad()
def test_all_passes_of_a_peer_invert_its_flow(kind: Callable[..., Any]) -> None:
    flow = teacher()
    x, condition = points(flow)
    peer = kind(flow.networks[0].dense_weights(), flow.dim, 1, BINS, BOUND)
    one_pass = peer.inversion_pass(peer.to_latent(x, condition), condition)
    found = torch.zeros_like(x)
    for _ in range(flow.dim):
        found = one_pass(found)
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", PEERS)
@torch.no_grad()
def test_an_iaf_of_a_peer_is_its_transform_run_the_fast_way(kind: Callable[..., Any]) -> None:
    flow = teacher()
    _, condition = points(flow)
    peer = kind(flow.networks[0].dense_weights(), flow.dim, 1, BINS, BOUND)
    torch.manual_seed(1)
    drawn = peer.sample_iaf(condition)
    torch.manual_seed(1)
    noise = torch.randn(len(condition), flow.dim)
    torch.testing.assert_close(drawn, peer.to_latent(noise, condition), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PEERS)
def test_weights_of_ours_and_of_a_peer_are_independent(kind: Callable[..., Any]) -> None:
    flow = teacher()
    before = [parameter.clone() for parameter in flow.parameters()]
    peer = kind(flow.networks[0].dense_weights(), flow.dim, 1, BINS, BOUND)
    with torch.no_grad():
        for parameter in peer.module.parameters():
            parameter.zero_()
    for parameter, old in zip(flow.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_useful_work_is_a_product_for_each_allowed_weight_and_use() -> None:
    dim, hidden = 6, 5
    masks = [mask for _, _, mask in teacher(dim, hidden).networks[0].dense_weights()]
    degrees = [round(i * (dim - 1) / (hidden - 1)) for i in range(hidden)]
    inputs = [0, *range(1, dim + 1)]
    first = sum(u >= i for u, i in product(degrees, inputs))
    of_condition = hidden
    between = 2 * sum(u >= v for u, v in product(degrees, degrees))
    last = (3 * BINS - 1) * sum(d >= u for d, u in product(range(dim), degrees))
    allowed = first + between + last
    assert sum(int(mask.sum()) for mask in masks) == allowed
    for case in ("density", "teacher_sample", "student_sample", "student_likelihood"):
        assert useful_flop(case, masks) == 2 * allowed
    step = 2 * (allowed + allowed + between + last)
    assert useful_flop("train_step", masks) == step
    back = 2 * (allowed + allowed - of_condition)
    assert useful_flop("distil_step", masks) == 2 * allowed + 2 * step + back


def test_least_traffic_by_hand() -> None:
    # 10 weights, 2 samples of 3 dimensions read and written
    data = 2 * 2 * 3 * 4
    assert compulsory_bytes("density", 10, 3, 2, 2) == 10 * 2 + data
    adam = 10 * 4 * 8
    assert compulsory_bytes("train_step", 10, 3, 2, 4) == 2 * 10 * 4 + adam + data


def test_records_have_exactly_the_fields_and_cover_the_grid(
    result: Benchmark, params: BenchParams
) -> None:
    assert list(result.records.columns) == [
        "case",
        "contender",
        "device",
        "dtype",
        "dim",
        "hidden",
        "batch",
        "ms_per_sample",
        "runs",
        "peak_mb",
        "extrapolated_from",
        "spread",
        "others",
    ]
    table = bench_tables.roofline_table(result)
    keys = ["case", "name", "dim", "hidden", "batch"]
    assert not table.duplicated(keys).any()
    assert result.left_out.empty
    cells = {(9, 24, 4), *product([20], [5, 24], [1, 4])}
    assert {(dim, hidden, n) for dim, hidden, ns in params.grid() for n in ns} == cells
    for contender in ("ours", "ours-plain", "nflows", "pyro"):
        found = table[(table["contender"] == contender) & (table["dtype"] == "float32")]
        assert set(found[["dim", "hidden", "batch"]].itertuples(index=False, name=None)) == cells
        # the distillation has channels, which only the whole detector has
        assert set(found["case"]) == set(CASES) - {"distil_step"}
    assert (table["ms_per_sample"] > 0).all()
    assert (table["runs"] == 3).all()
    assert (table["device"] == "cpu").all()
    assert set(table["dtype"]) <= {"float32", "bfloat16"}
    # the slowest quarter of three runs cannot be below the fastest
    assert (table["spread"] >= 0).all()
    assert not (table["others"] < 0).any()


def test_every_extrapolated_loop_is_marked(result: Benchmark) -> None:
    records = result.records
    loops = records["case"].isin(["teacher_sample", "student_likelihood"])
    expected = loops & (records["contender"] != "ours")
    assert records["extrapolated_from"].notna().equals(expected)
    assert (records.loc[expected, "extrapolated_from"] == 3).all()
    times = bench_tables.times_table(bench_tables.roofline_table(result)).reset_index()
    loops = times["case"].isin(["teacher_sample", "student_likelihood"])
    for column in ("ours (ms)", "ours-plain (ms)", "nflows (ms)", "pyro (ms)"):
        marked = times[column].str.endswith("*")
        assert marked.equals(loops & (column != "ours (ms)"))
    assert "**extrapolated** from 3 passes" in benchmark_findings(result)


def test_contenders_with_equal_weights_agree(result: Benchmark) -> None:
    checks = result.checks
    assert set(checks["contender"]) == {"ours", "ours-plain", "nflows", "pyro"}
    exact = checks[checks["dtype"] == "float32"]
    assert (exact["log_density"] < 1e-4).all()
    assert (exact["inversion"] < 1e-3).all()


def job(params: BenchParams, case: Any, name: str = "ours", calls: int = 3) -> benchmark._Job:
    flow = Ours(9, 5, params, "fused" if name == "ours" else "plain", "float32", "cpu")
    return benchmark._Job(case, flow, lambda: None, calls)


def test_the_median_of_a_pass_stands_for_each_of_the_d_passes(params: BenchParams) -> None:
    loop = job(params, "teacher_sample", "ours-plain")
    loop.times += [0.004, 0.002, 0.9]
    record = benchmark._record(loop, batch=2)
    assert record["ms_per_sample"] == pytest.approx(9 * 4 / 2)
    assert (record["runs"], record["extrapolated_from"]) == (3, 3)


def test_spread_is_the_distance_of_the_quartiles_over_the_median(params: BenchParams) -> None:
    whole = job(params, "density")
    whole.times += [1.0, 2.0, 4.0, 8.0, 16.0]
    record = benchmark._record(whole, batch=1)
    assert record["spread"] == pytest.approx((8 - 2) / 4)
    assert record["extrapolated_from"] is None


def test_contenders_take_turns_whatever_their_number_of_runs(params: BenchParams) -> None:
    order: list[str] = []
    first, second = (job(params, "density", calls=calls) for calls in (4, 2))
    first.call, second.call = (lambda: order.append("a")), (lambda: order.append("b"))
    benchmark._take_turns([first, second], "cpu")
    assert "".join(order) == "aabaab"


@pytest.mark.parametrize(
    ("spread", "others", "words"),
    [
        (0.1, None, None),
        (0.1, 0.1, None),
        (0.7, None, "70% of the median"),
        (0.1, 1.5, "used up to 1.5 cores"),
    ],
)
def test_findings_begin_with_a_warning_of_a_busy_machine(
    result: Benchmark, spread: float, others: float | None, words: str | None
) -> None:
    records = result.records.assign(spread=0.0, others=None if others is None else 0.0)
    records.loc[3, ["spread", "others"]] = spread, others
    first = benchmark_findings(replace(result, records=records)).splitlines()[0]
    assert ("busy machine" in first) == (words is not None)
    assert (words or "") in first


@pytest.mark.slow
def test_what_would_take_too_long_is_left_out_with_a_reason(tmp_path: Path) -> None:
    params = load_bench(tiny(tmp_path, dims=[9], hiddens=[4], batches=[1, 4], longest=1e-5))
    result = run_benchmark(params)
    left = result.left_out
    assert {"teacher_sample", "student_likelihood"} <= set(left["case"])
    assert left["reason"].str.contains("would take").all()
    keys = left.columns.drop("reason").tolist()
    ran = set(result.records[keys].itertuples(index=False, name=None))
    assert ran.isdisjoint(left[keys].itertuples(index=False, name=None))
    assert "Left out" in benchmark_findings(result)


def test_targets_are_named_even_where_not_measured(result: Benchmark) -> None:
    targets = bench_tables.targets_table(result)
    assert list(targets.columns) == ["target", "wanted", "measured", "met"]
    assert len(targets) == 9
    # no batch of 256 here
    assert (targets["measured"] == "not measured").sum() >= 6
    assert (targets["met"].eq("") == targets["measured"].eq("not measured")).all()


def test_targets_are_ratios_in_the_right_direction(result: Benchmark) -> None:
    def record(case: str, contender: str, ms: float, **other: Any) -> dict[str, Any]:
        fields = {"device": "cpu", "dtype": "float32", "dim": 1936, "hidden": 1452, "batch": 256}
        fields |= {"runs": 3, "peak_mb": None, "extrapolated_from": None, **other}
        return {"case": case, "contender": contender, "ms_per_sample": ms, **fields}

    records = [
        record("density", "ours", 1.0),
        record("density", "nflows", 4.0),
        record("train_step", "ours", 1.0, peak_mb=50.0),
        record("train_step", "nflows", 2.0),  # memory is not known on every system
        record("teacher_sample", "ours", 2.0),
        record("teacher_sample", "nflows", 5000.0),
        record("teacher_sample", "ours", 2.0, batch=1),
        record("teacher_sample", "nflows", 5000.0, batch=1),
        record("student_sample", "ours", 0.5),
        record("student_sample", "ours", 0.2, dtype="bfloat16"),
        record("student_sample", "nflows", 2.0),
    ]
    products = {**result.products, "useful_gflops": 60.0, "plain_gflops": 100.0}
    changed = replace(result, products=products, records=pd.DataFrame(records))
    targets = bench_tables.targets_table(changed)
    assert list(zip(targets["measured"], targets["met"], strict=True)) == [
        ("2.5e+03", "yes"),  # teacher sampling: 5000 / 2, at least 2000
        ("2.5e+03", "no"),  # one at once: at least 3000
        ("4", "no"),  # teacher / student: 2 / 0.5, at most 2
        ("4", "yes"),  # density
        ("2", "no"),  # training step
        ("not measured", ""),
        ("4", "yes"),  # student sampling
        ("10", "yes"),  # with rounded products
        ("0.6", "no"),  # product rate
    ]


def test_student_of_the_benchmark_has_the_teachers_weights(params: BenchParams) -> None:
    ours = Ours(9, 5, params, "fused", "float32", "cpu")
    assert isinstance(ours.student, Student)
    for mine, theirs in zip(ours.student.parameters(), ours.teacher.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peers": ["zuko"]}, "peers"),
        ({"batches": [1, 1]}, "each value once"),
        ({"growth_batch": 3}, "growth_batch"),
        ({"warmup": 1}, "warmup"),
    ],
)
def test_wrong_parameters_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        load_bench(tiny(tmp_path, **changes))


def test_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nflows.flows", None)
    flow = teacher()
    with pytest.raises(ImportError, match="make bench"):
        NflowsPeer(flow.networks[0].dense_weights(), flow.dim, 1, BINS, BOUND)


def test_the_splitting_flow_is_timed_beside_its_definition_and_a_student(
    params: BenchParams,
) -> None:
    times = time_splitting(params)
    assert (times["ms_per_sample"] > 0).all()
    assert (times["runs"] >= 3).all()
    assert (times["lit_nodes"] > 10).all()
    cases = times.groupby("case")["contender"].agg(set).to_dict()
    assert cases["sample"] == {"splitting", "splitting, plain torch", "student"}
    assert cases["density"] == cases["train_step"] == {"splitting"}
    made_up = times[times["case"] == "sample"].assign(
        ms_per_sample=lambda t: t["contender"].map(
            {"splitting": 2.0, "splitting, plain torch": 6.0, "student": 1.0}
        )
    )
    first = splitting_findings(made_up)[0]
    assert "1 at once" in first
    assert "3 times as long, the student 0.5 times" in first


def test_the_evaluation_is_timed_beside_loops(tmp_path: Path) -> None:
    times = time_evaluation(load_bench(tiny(tmp_path)))
    assert list(times["what"]) == ["metrics", "intervals", "metrics, in loops"]
    assert (times["seconds"] > 0).all()
    assert (times["responses"] == 60).all()
    assert times["looped"].tolist() == [pd.NA, pd.NA, 60]
    made_up = times.assign(seconds=[20.0, 50.0, 400.0])
    first, second = evaluation_findings(made_up)
    assert "together above the 60 s" in first
    assert "20 times the time" in second
    assert "within" in evaluation_findings(made_up.assign(seconds=[2.0, 5.0, 4.0]))[0]


def test_the_loops_find_what_the_metrics_say() -> None:
    events = simulate(50, 10, 10, seed=3)
    other = simulate(50, 10, 10, seed=4).responses
    errors = np.mean(loops.metrics_in_loops(events, other), axis=0)
    found = evaluate(events, other)
    assert errors[:5].mean() == pytest.approx(found["MAE_c"], rel=1e-12)


@pytest.mark.slow
def test_notebook_writes_records_and_figures(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "zdc_nb").symlink_to(ROOT / "zdc_nb")
    file = tiny(tmp_path, reports="results")
    notebook = ROOT / "notebooks" / "17_benchmark.ipynb"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "papermill", str(notebook), "out.ipynb"),
            *("--kernel", "python3", "-r", "bench", file.name),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "tiny"
    records = json.loads((folder / "bench.json").read_text("utf-8"))
    assert set(records[0]) == set(benchmark.RECORD)
    context = json.loads((folder / "context.json").read_text("utf-8"))
    assert set(context) == {"machine", "products", "checks", "left_out", "parameters"}
    assert len(pd.read_csv(folder / "tables" / "targets.csv")) == 9
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "batch.png",
        "growth.png",
        "roofline.png",
    }
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    errors = [out for cell in cells for out in cell.get("outputs", []) if "stderr" in str(out)]
    assert not errors
