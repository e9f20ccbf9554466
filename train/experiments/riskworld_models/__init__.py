"""How the embedded world's small models are trained."""
