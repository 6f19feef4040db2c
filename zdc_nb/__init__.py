"""Normalizing flows for the fast simulation of ALICE's neutron Zero Degree Calorimeter.

The modules in the order in which data flows, each importing only from those before it:

params, storage, events, simulation, files, detector, calibration, preprocessing, kernels,
kernels_cuda, splines, made, passes, flows, training, evaluation, stages, speed, findings,
figures_data, figures_training, figures_results, reports
"""

import os

__version__ = "0.1.0"

# Gradients and parameters of a batch fill hundreds of megabytes that are taken and given back in
# every step: in pages of 4 kB that alone would cost more than a step with few samples. torch reads
# this when it first allocates.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
