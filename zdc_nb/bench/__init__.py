"""How fast this project is beside other libraries."""

from zdc_nb.bench.cases import load_bench
from zdc_nb.bench.results import benchmark_findings, write_results
from zdc_nb.bench.run import run_benchmark

__all__ = ["benchmark_findings", "load_bench", "run_benchmark", "write_results"]
