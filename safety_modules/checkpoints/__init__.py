"""Checkpoints: the folders that training writes, export makes and others load."""
