"""Measure J under many ablations: which rows share a pass, on this machine or on a Ray cluster."""
