"""Judges: whether an answer is a refusal, or unsafe."""
