"""The installed command `safety-modules`."""
