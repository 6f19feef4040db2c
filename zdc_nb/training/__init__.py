"""Training: the teacher by maximum likelihood, the student by distillation."""

from zdc_nb.training.checkpoints import Checkpoint, StopRequest, TrainingInterrupted
from zdc_nb.training.losses import (
    DISTILLATION_TERMS,
    combined_loss,
    distillation_terms,
)
from zdc_nb.training.tracking import Tracker, TrackingError, log_metrics, open_tracker
from zdc_nb.training.trainers import (
    distil_student,
    distillation_step,
    likelihood_step,
    train_photon_sum,
    train_signal,
    train_splitting,
    train_teacher,
)

__all__ = [
    "DISTILLATION_TERMS",
    "Checkpoint",
    "StopRequest",
    "Tracker",
    "TrackingError",
    "TrainingInterrupted",
    "combined_loss",
    "distil_student",
    "distillation_step",
    "distillation_terms",
    "likelihood_step",
    "log_metrics",
    "open_tracker",
    "train_photon_sum",
    "train_signal",
    "train_splitting",
    "train_teacher",
]
