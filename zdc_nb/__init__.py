"""Normalizing flows for the fast simulation of ALICE's neutron Zero Degree Calorimeter.

The modules in the order in which data flows, each importing only from those before it:

params, storage, events, simulation, files, detector, calibration, preprocessing, splines, made,
flows, training, evaluation, stages, speed, findings, figures_data, figures_training,
figures_results, reports
"""

__version__ = "0.1.0"
