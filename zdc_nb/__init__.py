"""Normalizing flows for the fast simulation of ALICE's neutron Zero Degree Calorimeter.

The modules in the order in which data flows, each importing only from those before it:

params, events, simulation, files, detector, preprocessing, splines, made, flows, training,
evaluation, stages, speed, figures, reports
"""

__version__ = "0.1.0"
