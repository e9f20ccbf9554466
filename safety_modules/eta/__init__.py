"""ETA: evaluate an answer, then align it, at inference time."""

from __future__ import annotations

from safety_modules.eta.batch_run import EtaResult
from safety_modules.eta.eta import Eta
from safety_modules.eta.evaluators.protocols import COSINE, PROBABILITY, REWARD, EtaError, Unit
from safety_modules.eta.generator import AnswerGenerator
from safety_modules.eta.settings import EtaSettings
from safety_modules.eta.stock_generator import StockGenerator

__all__ = ["AnswerGenerator", "Eta", "EtaError", "EtaResult", "EtaSettings", "StockGenerator", "Unit"]
__all__ += ["COSINE", "PROBABILITY", "REWARD"]
