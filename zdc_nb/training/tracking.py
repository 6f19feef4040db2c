"""Curves of a training and the metrics of what came out, for TensorBoard and Weights & Biases.

Below ``study.reports``::

    tensorboard/<stage>/events.out.tfevents.*    always
    wandb/<stage>/wandb/...                      with ``tracking: wandb``

where stage is ``teacher/<subset>`` or ``student/<subset>/<setup>``. A loss term has the tag
``<term>/<split>``, so that its training and its validation curve stand side by side.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from zdc_nb.params import Study

__all__ = ["Tracker", "TrackingError", "log_metrics", "open_tracker"]

PROJECT = "zdc-flows"
"""The project at Weights & Biases; a study is a group in it, a stage a run."""

_STAGE = re.compile(r"[A-Za-z0-9+_-]+(/[A-Za-z0-9+_-]+)*")
_METRICS = ".metrics"


class TrackingError(RuntimeError):
    """Weights & Biases was asked for and cannot be used; the message says what to do."""


class Tracker:
    """Where the terms of one training go; made by :func:`open_tracker`, usable with ``with``."""

    def __init__(self, writer: SummaryWriter, run: Any = None) -> None:
        self._writer = writer
        self._run = run

    def log(self, step: int, split: str, terms: dict[str, float]) -> None:
        """Log the terms of ``split`` (``train`` or ``validation``) after optimiser step ``step``.

        They are on disk when this returns, so that a training that is killed loses none.
        """
        values = {f"{term}/{split}": value for term, value in terms.items()}
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()
        if self._run is not None:
            self._run.log(values, step=step)

    def close(self) -> None:
        """Finish the files and, with Weights & Biases, what is still to be sent."""
        self._writer.close()
        if self._run is not None:
            self._run.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_tracker(study: Study, stage: str, resume_step: int = 0) -> Tracker:
    """Open the curves of one training.

    Parameters
    ----------
    study
        whose reports they lie in, and whose ``tracking`` says whether W&B gets them too.
    stage
        ``teacher/<subset>`` or ``student/<subset>/<setup>``.
    resume_step
        0 begins anew: the curves of an earlier training of this stage are removed. Otherwise the
        curves go on after this optimiser step, and points beyond it, which a training logged
        between its last checkpoint and its end, give way to those logged now.

    Raises
    ------
    TrackingError
        where W&B was asked for and there is no key, or no connection.
    """
    folder = _folder(study, "tensorboard", stage)
    if resume_step == 0:
        for earlier in (folder, _folder(study, "wandb", stage)):
            if earlier.exists():
                shutil.rmtree(earlier)
    # before anything is written: a key that is missing is told at once
    run = _wandb_run(study, stage, resume_step > 0) if study.tracking == "wandb" else None
    return Tracker(SummaryWriter(folder, purge_step=resume_step + 1 if resume_step else None), run)


def log_metrics(study: Study, stage: str, metrics: dict[str, float]) -> None:
    """Log the metrics of a stage's model beside its curves; those of an earlier call give way.

    ``metrics`` has the mean over the generations of the test split by name (``WS``, ``MAE_c``...).
    """
    folder = _folder(study, "tensorboard", stage)
    for earlier in folder.glob(f"*{_METRICS}"):
        earlier.unlink()
    values = {f"metrics/{name}": value for name, value in metrics.items()}
    with SummaryWriter(folder, filename_suffix=_METRICS) as writer:
        for tag, value in values.items():
            writer.add_scalar(tag, value, 0)
    if study.tracking == "wandb":
        run = _wandb_run(study, stage, resume=True)
        # not a point of a curve: a curve may not go back behind its last step
        run.summary.update(values)
        run.finish()


def _folder(study: Study, kind: str, stage: str) -> Path:
    if not _STAGE.fullmatch(stage):
        raise ValueError(
            f"stage: expected names of letters, digits, +, - and _ between slashes, such as "
            f"student/all/bs+ch, got {stage!r}"
        )
    return study.reports.joinpath(kind, *stage.split("/"))


def _wandb_run(study: Study, stage: str, resume: bool) -> Any:
    """The W&B run of a stage, offline where ``WANDB_MODE=offline`` says so."""
    folder = _folder(study, "wandb", stage)
    folder.mkdir(parents=True, exist_ok=True)
    # else its service logs to ~/.cache; read once, when wandb is first set up
    os.environ.setdefault("WANDB_CACHE_DIR", str(study.reports / "wandb" / "cache"))
    try:
        import wandb  # noqa: PLC0415 - an extra, which a study without it shall not wait for
    except ModuleNotFoundError as error:
        raise TrackingError(
            f"tracking: wandb is set for study {study.name!r}, and the package wandb is not "
            'installed: run `pip install --constraint constraints.txt --editable ".[wandb]"` in its '
            "environment (.venv/bin/pip); or set `tracking: tensorboard` in the study file"
        ) from error

    mode = wandb.setup().settings.mode
    # wandb itself would ask for a key, and a notebook in the grid has nobody to answer
    if mode not in {"offline", "dryrun", "disabled"} and not _is_logged_in():
        raise TrackingError(
            f"tracking: wandb is set for study {study.name!r}, and there is no key for Weights & "
            "Biases: run `wandb login` once, or set WANDB_API_KEY; or set WANDB_MODE=offline to "
            "log without a connection; or set `tracking: tensorboard` in the study file"
        )
    try:
        return wandb.init(
            project=PROJECT,
            group=study.name,
            name=stage,
            # the same for every run of this stage; neither part has a dot
            id=f"{study.name}.{stage.replace('/', '.')}",
            # without resume a run of the same id is begun anew
            resume="allow" if resume else None,
            # not the one of the process: a notebook may train a teacher and then its student
            reinit="create_new",
            dir=folder,
            config=study.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
    except wandb.Error as error:
        raise TrackingError(
            f"Weights & Biases cannot be used ({error}); set WANDB_MODE=offline to log without a "
            "connection, or `tracking: tensorboard` in the study file"
        ) from error


def _is_logged_in() -> bool:
    import wandb  # noqa: PLC0415

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except wandb.Error as error:  # such as a key of the wrong length
        raise TrackingError(f"Weights & Biases refuses the key: {error}") from error
