"""Training: one stage from one YAML. Run from a checkout: `torchrun -m train.run --config FILE`."""

import os

# A waiting OpenMP thread sleeps. Spinning is a tenth faster alone, and many times slower beside other multi-threaded
# processes (docs/scale.md). OpenMP reads this when torch is loaded, so it stands before every import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
