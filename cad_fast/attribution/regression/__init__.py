"""Fit J linearly on random ablations: designs, draws and solvers."""
