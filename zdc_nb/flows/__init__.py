"""Autoregressive spline flows: teacher (MAF) and student (IAF)."""

from zdc_nb.flows.initialise import start_from_marginals, start_from_teacher
from zdc_nb.flows.made import Made
from zdc_nb.flows.maf_iaf import (
    ConditionalSplineAutoregressive,
    Flow,
    FlowTrace,
    SplineAutoregressive,
    Student,
    Teacher,
)
from zdc_nb.flows.splines import rational_quadratic_spline
from zdc_nb.flows.splitting import SplitCounts, SplittingFlow

__all__ = [
    "ConditionalSplineAutoregressive",
    "Flow",
    "FlowTrace",
    "Made",
    "SplineAutoregressive",
    "SplitCounts",
    "SplittingFlow",
    "Student",
    "Teacher",
    "rational_quadratic_spline",
    "start_from_marginals",
    "start_from_teacher",
]
