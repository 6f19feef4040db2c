"""What a calorimeter is and what it measures."""

from zdc_nb.detector.geometry import ZN, Detector
from zdc_nb.detector.observables import (
    channel_sums,
    containment_radius,
    diversity,
    diversity_weights,
    shower_centre,
)

__all__ = [
    "ZN",
    "Detector",
    "channel_sums",
    "containment_radius",
    "diversity",
    "diversity_weights",
    "shower_centre",
]
