"""What a calorimeter is and what it measures."""

from zdc_nb.detector.geometry import FEATURES, ZN, Detector, load_detector
from zdc_nb.detector.observables import (
    channel_sums,
    containment_radius,
    diversity,
    diversity_weights,
    measure,
    shower_centre,
)
from zdc_nb.detector.splitting import SplitTree, split_tree

__all__ = [
    "FEATURES",
    "ZN",
    "Detector",
    "SplitTree",
    "channel_sums",
    "containment_radius",
    "diversity",
    "diversity_weights",
    "load_detector",
    "measure",
    "shower_centre",
    "split_tree",
]
