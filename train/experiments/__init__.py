"""Runs on the embedded world: demo, control, ablations, ETA."""
