"""A study: its stages, their artefacts, and the report.

What a notebook needs is handed on here; it is imported when it is asked for, because Snakemake, which
reads the table of stages alone, would wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zdc_nb.study.artefacts import trained_models
from zdc_nb.study.stages import TABLE, Stage, find_stage, stages_of

if TYPE_CHECKING:
    from zdc_nb.study.session import Session, open_stage

__all__ = ["TABLE", "Session", "Stage", "find_stage", "open_stage", "stages_of", "trained_models"]


def __getattr__(name: str) -> Any:
    if name not in {"Session", "open_stage"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zdc_nb.study import session  # noqa: PLC0415

    return getattr(session, name)
