"""Evaluators of ETA: how unsafe is an image, a question, an answer."""
