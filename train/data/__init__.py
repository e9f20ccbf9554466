"""Rows of a stage: mixture, tensors, batches."""
