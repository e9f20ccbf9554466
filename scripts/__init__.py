"""Commands that need the checkout."""

import train  # noqa: F401 - first: it says how OpenMP waits before torch is loaded
