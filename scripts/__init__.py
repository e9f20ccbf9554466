"""Commands: run from a checkout, `python -m scripts.NAME --help`."""
