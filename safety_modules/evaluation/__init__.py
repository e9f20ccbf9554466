"""Evaluation: what a trained model does, in numbers and on a page."""
