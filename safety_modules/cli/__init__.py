"""The installed command `safety-modules`. Its modules import torch and transformers late, where they run."""
