"""Decisions: the head's outputs -> calibrated probabilities -> what is done."""
