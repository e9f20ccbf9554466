"""What every recipe is made of: rows, labels, splits, mixtures."""
