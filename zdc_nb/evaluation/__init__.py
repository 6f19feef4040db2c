"""How well generated responses agree with simulated ones."""

from zdc_nb.evaluation.conclusions import (
    ablation_findings,
    baseline_findings,
    evaluation_findings,
    kept_terms,
    shape_findings,
)
from zdc_nb.evaluation.figures import (
    changes_figure,
    choose_examples,
    loss_terms_figure,
    particle_figure,
    results_table,
    sample_figure,
    save_figure,
    shape_figure,
    speed_figure,
    table1_figure,
)
from zdc_nb.evaluation.metrics import (
    BASELINES,
    published_table,
    relative_changes,
    table1,
    table2,
)

__all__ = [
    "BASELINES",
    "ablation_findings",
    "baseline_findings",
    "changes_figure",
    "choose_examples",
    "evaluation_findings",
    "kept_terms",
    "loss_terms_figure",
    "particle_figure",
    "published_table",
    "relative_changes",
    "results_table",
    "sample_figure",
    "save_figure",
    "shape_figure",
    "shape_findings",
    "speed_figure",
    "table1",
    "table1_figure",
    "table2",
]
