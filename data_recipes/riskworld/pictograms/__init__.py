"""How riskworld's images are drawn."""
