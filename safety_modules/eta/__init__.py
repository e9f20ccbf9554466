"""ETA: evaluate an answer, then align it, at inference time."""
