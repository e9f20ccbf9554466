"""The training loop: trainer, learning rates, sampler, recovery."""
