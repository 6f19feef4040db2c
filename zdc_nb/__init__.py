"""Normalizing flows for the fast simulation of ALICE's neutron Zero Degree Calorimeter.

The modules in the order in which data flows, each importing only from those before it:

params, storage, events, simulation, rows, files_root, files_npz, files_text, sources, files,
records, detector, calibration, preprocessing, kernels, kernels_cuda, splines, made, passes, flows,
checkpoints, tracking, training, evaluation, stages, speed, bench_params, machine, peers,
contenders, benchmark, bench_tables, findings, figures_data, figures_training, figures_results,
figures_bench, reports, execute
"""

__version__ = "0.1.0"
