"""Which stages are to run again, and why: what the grid does, and what the index page says."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from zdc_nb.params import Study
from zdc_nb.storage import write_text
from zdc_nb.study.artefacts import differences, is_current
from zdc_nb.study.stages import Stage, stages_of

__all__ = [
    "changed_parameters",
    "complete_mark",
    "is_complete",
    "mark_of",
    "mark_outdated",
    "outdated",
    "read_fingerprint",
]


def read_fingerprint(notebook: Path) -> dict[str, Any]:
    """What an executed notebook says that it was made of; empty where it says nothing."""
    try:
        found = json.loads(notebook.read_text("utf-8"))["metadata"]["zdc_nb"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def changed_parameters(stage: Stage) -> list[str]:
    """Parameters that the study has changed since the stage's notebook was executed: ``flow.bins``.

    Only those that the stage depends on, for its data set alone.
    """
    then = read_fingerprint(stage.executed).get("parameters", {})
    return list(differences(then, stage.fingerprint["parameters"]))


def outdated(study: Study) -> dict[str, str]:
    """Stages that were executed and are to run again, by name, and why.

    One is outdated where a parameter that it depends on, or a cell of its notebook, was changed;
    where something that it left is missing or was made from something else than is there now; and
    where a stage that it needs will leave something new. What only changes a page is not passed on.
    """
    found: dict[str, str] = {}
    renewed: set[str] = set()
    for stage in stages_of(study):
        needed = [other.name for other in stage.needs if other.name in renewed]
        current = is_current(stage)
        if needed or not current:
            renewed.add(stage.name)
        if not stage.executed.is_file():
            continue
        changed = changed_parameters(stage)
        missing = [path.name for path in stage.tables if not path.is_file()]
        if changed:
            found[stage.name] = f"other parameters: {', '.join(changed)}"
        elif needed:
            more = f" and {len(needed) - 1} more" if len(needed) > 1 else ""
            found[stage.name] = f"{needed[0]}{more} to be made again"
        elif missing:
            found[stage.name] = f"{', '.join(missing)} missing"
        elif not current:
            found[stage.name] = "something that it left is missing, or not of this study"
        elif read_fingerprint(stage.executed).get("cells") != stage.fingerprint["cells"]:
            found[stage.name] = "its notebook was changed"
    return found


def complete_mark(study: Study) -> Path:
    """The file in which the index page of a study that is done notes the study's parameters."""
    return study.reports / ".complete"


def is_complete(study: Study) -> bool:
    """Whether the report was written when all was done, with the parameters of now, and is there."""
    pages = (study.reports / "html" / f"{stage.name}.html" for stage in stages_of(study))
    try:
        same = complete_mark(study).read_text("utf-8") == study.model_dump_json()
    except OSError:
        return False
    return same and all(page.is_file() for page in pages)


def mark_of(study: Study, name: str) -> Path:
    """A file that is newer than a stage's notebook exactly where the stage is to run again."""
    return study.reports / ".marks" / name


def mark_outdated(study: Study) -> set[str]:
    """Set the times of the marks, from which Snakemake knows what is to run again.

    Returns the stages that are to run, for the first time or again.
    """
    again = {stage.name for stage in stages_of(study) if not stage.executed.is_file()}
    again |= {*outdated(study)}
    for name in (*(stage.name for stage in stages_of(study)), "index"):
        mark = mark_of(study, name)
        is_old = name not in again if name != "index" else is_complete(study)
        if not is_old or not mark.is_file():
            # never the same twice: a newer file of the same content is no change to Snakemake
            write_text(f"{time.time_ns()}\n", mark)
        if is_old:
            os.utime(mark, (0, 0))
    return again
