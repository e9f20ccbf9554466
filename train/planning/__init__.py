"""Memory, steps and hours of a stage, before it runs."""
