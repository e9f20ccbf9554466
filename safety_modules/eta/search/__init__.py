"""Search of ETA: sentence-level best of N with a shared cache."""
