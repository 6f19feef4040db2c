"""How well generated responses agree with simulated ones."""

from zdc_nb.evaluation.baselines import (
    BASELINES,
    Baseline,
    Possible,
    baseline_evaluations,
    matched_runs,
    resimulated_runs,
    scale_to_photon_sum,
    unconditional_runs,
    what_can_be_evaluated,
)
from zdc_nb.evaluation.conclusions import ablation_findings, as_list, kept_terms, shape_findings
from zdc_nb.evaluation.metrics import METRICS, QUANTITIES, EvaluationError, evaluate, evaluate_runs
from zdc_nb.evaluation.tables import (
    MODELS,
    SHAPE_MODELS,
    dataset_sizes,
    published_table,
    relative_changes,
    table1,
    table2,
)

__all__ = [
    "BASELINES",
    "METRICS",
    "MODELS",
    "QUANTITIES",
    "SHAPE_MODELS",
    "Baseline",
    "EvaluationError",
    "Possible",
    "ablation_findings",
    "as_list",
    "baseline_evaluations",
    "dataset_sizes",
    "evaluate",
    "evaluate_runs",
    "kept_terms",
    "matched_runs",
    "published_table",
    "relative_changes",
    "resimulated_runs",
    "scale_to_photon_sum",
    "shape_findings",
    "table1",
    "table2",
    "unconditional_runs",
    "what_can_be_evaluated",
]
