"""Autoregressive spline flows: teacher (MAF) and student (IAF)."""
