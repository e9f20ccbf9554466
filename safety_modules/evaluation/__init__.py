"""Evaluation: a model on labelled or unlabelled rows -> answers, scores and numbers."""
