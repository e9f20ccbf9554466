"""ETA: evaluate an answer, then align it, at inference time."""

from __future__ import annotations

from safety_modules.eta.course import EtaResult
from safety_modules.eta.eta import Eta
from safety_modules.eta.evaluators import COSINE, PROBABILITY, REWARD, EtaError, Unit
from safety_modules.eta.settings import EtaSettings
from safety_modules.eta.speaker import Speaker

__all__ = ["COSINE", "PROBABILITY", "REWARD", "Eta", "EtaError", "EtaResult", "EtaSettings", "Speaker", "Unit"]
