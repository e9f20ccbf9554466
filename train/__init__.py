"""Training: run from a checkout, `torchrun -m train.run --config ...`."""
